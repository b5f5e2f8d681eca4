//! Addresses of the admin port.

use std::{fmt, net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Where the admin port listens: `unix:/path/of/socket`, or an address with a port.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum AdminAddress {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

impl Serialize for AdminAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AdminAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if let Some(path) = text.strip_prefix("unix:/") {
            return Ok(Self::Unix(format!("/{path}").into()));
        }
        text.parse().map(Self::Tcp).map_err(|_| {
            de::Error::custom(format!(
                "{text:?} is not an address to listen on; expected \"unix:/absolute/path\", or an \
                 IP address with a port, such as \"127.0.0.1:9464\""
            ))
        })
    }
}
