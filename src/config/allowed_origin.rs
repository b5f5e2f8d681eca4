//! Entries of `http.allowed_origins`.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The origins of web pages that may use the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedOrigin {
    /// `*`: all.
    Any,
    /// One origin, such as `https://app.example.org`.
    One(String),
    /// The origins of all subdomains, `https://*.example.org`. As in a Content Security Policy, a
    /// subdomain may have several labels, and the domain itself is not included.
    Subdomains {
        /// The scheme with `://`.
        scheme: String,
        /// The domain with the dot before it, and the port, if any.
        domain: String,
    },
}

impl AllowedOrigin {
    /// Whether it includes the origin in an `Origin` header.
    pub fn includes(&self, origin: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::One(one) => one.as_bytes() == origin,
            Self::Subdomains { scheme, domain } => {
                let host = origin.strip_prefix(scheme.as_bytes());
                let name = host.and_then(|host| host.strip_suffix(domain.as_bytes()));
                name.is_some_and(is_name)
            }
        }
    }

    /// Returns how browsers write this origin, if that differs. Such an entry never matches.
    pub fn as_browsers_write_it(&self) -> Option<String> {
        let text = self.to_string();
        let lower = text.to_ascii_lowercase();
        let port = match lower.split_once("://") {
            Some(("https", _)) => ":443",
            Some(("http", _)) => ":80",
            _ => "",
        };
        let written = lower.strip_suffix(port).unwrap_or(&lower);
        (written != text).then(|| written.to_owned())
    }
}

/// Whether a text consists of the labels of a host name.
fn is_name(text: &[u8]) -> bool {
    text.split(|byte| *byte == b'.').all(|label| {
        !label.is_empty()
            && label.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte))
    })
}

/// Whether a text is a host, with or without a port.
fn is_authority(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_address = || {
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        inner.is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok())
    };
    (is_name(host.as_bytes()) || is_address())
        && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

impl FromStr for AllowedOrigin {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let (scheme, host) = text.split_once("://").ok_or(())?;
        let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if scheme.is_empty() || !scheme.bytes().all(is_scheme) {
            return Err(());
        }
        match host.strip_prefix("*.") {
            Some(domain) if is_authority(domain) => Ok(Self::Subdomains {
                scheme: format!("{scheme}://"),
                domain: format!(".{domain}"),
            }),
            None if is_authority(host) => Ok(Self::One(text.to_owned())),
            _ => Err(()),
        }
    }
}

impl fmt::Display for AllowedOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::One(origin) => f.write_str(origin),
            Self::Subdomains { scheme, domain } => write!(f, "{scheme}*{domain}"),
        }
    }
}

impl Serialize for AllowedOrigin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AllowedOrigin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|()| {
            de::Error::custom(format!(
                "{text:?} is not an origin; expected \"*\", or a scheme and a host without a path, \
                 such as \"https://app.example.org\", or \"https://*.example.org\" for all \
                 subdomains"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> AllowedOrigin {
        text.parse().unwrap_or_else(|()| panic!("{text} is refused"))
    }

    #[test]
    fn an_origin_is_included_as_it_is_written() {
        let includes = |allowed: &str, origin: &str| of(allowed).includes(origin.as_bytes());
        assert!(includes("*", "https://app.example.org") && includes("*", "null"));
        assert!(includes("https://app.example.org", "https://app.example.org"));
        assert!(!includes("https://app.example.org", "https://app.example.org:8443"));
        assert!(!includes("https://app.example.org", "http://app.example.org"));
        assert!(includes("http://[::1]:3000", "http://[::1]:3000"));
        assert!(includes("capacitor://localhost", "capacitor://localhost"));
    }

    #[test]
    fn a_wildcard_includes_subdomains_of_any_depth() {
        let includes = |origin: &str| of("https://*.example.org").includes(origin.as_bytes());
        for origin in
            ["https://app.example.org", "https://a.b.example.org", "https://a-1.example.org"]
        {
            assert!(includes(origin), "{origin}");
        }
        for origin in [
            "https://example.org",
            "https://.example.org",
            "https://a..example.org",
            "https://badexample.org",
            "http://app.example.org",
            "https://app.example.org:8443",
            "https://app.example.org.evil.example",
            "https://evil.example/.example.org",
            "https://evil.example#.example.org",
            "https://user@x.example.org",
            "https://evil.example:1.example.org",
            "null",
            "",
        ] {
            assert!(!includes(origin), "{origin}");
        }
        let with_port = of("https://*.example.org:8443");
        assert!(with_port.includes(b"https://app.example.org:8443"));
        assert!(!with_port.includes(b"https://app.example.org"));
    }

    #[test]
    fn what_is_not_an_origin_is_refused() {
        for text in [
            "",
            "example.org",
            "https://",
            "https://example.org/",
            "https://example.org/app",
            "https://*",
            "https://*.",
            "https://*example.org",
            "https://a.*.example.org",
            "https://*.*.example.org",
            "*.example.org",
            "https://example.org:x",
            "https://a b",
            "null",
        ] {
            assert_eq!(text.parse::<AllowedOrigin>(), Err(()), "{text}");
        }
    }

    #[test]
    fn spellings_that_browsers_do_not_send_are_known() {
        let written = |text: &str| of(text).as_browsers_write_it();
        assert_eq!(written("https://app.example.org"), None);
        assert_eq!(written("http://app.example.org:443"), None);
        assert_eq!(written("*"), None);
        let plain = Some("https://app.example.org".to_owned());
        assert_eq!(written("https://app.example.org:443"), plain);
        assert_eq!(written("HTTPS://App.Example.org"), plain);
        assert_eq!(written("https://*.Example.org:443"), Some("https://*.example.org".to_owned()));
    }
}
