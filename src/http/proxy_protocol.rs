//! The PROXY protocol, by which a proxy sends the client's address before the first byte of a
//! connection.
//!
//! Source: <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>, versions 1 and 2. Bytes
//! after the header are not read: they are the client's.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

// ppp: the most widely used parser.
use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes to read first. Every header of both versions is longer.
const PREFIX_LENGTH: usize = 12;
/// The longest line of version 1, in bytes.
const MAX_LINE: usize = 107;
/// The most bytes after the prefix of version 2: addresses, and extensions.
const MAX_REST: u16 = 4096;

/// The address for a client that the proxy does not report. It is not an address of this machine.
pub const UNKNOWN_CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Reads a header. Returns the client, or `None` if the connection is the proxy's own, such as for
/// a health check.
///
/// # Errors
/// The header is missing or invalid.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut header = vec![0; PREFIX_LENGTH];
    stream.read_exact(&mut header).await?;
    if header == v2::PROTOCOL_PREFIX {
        let mut rest = [0; 4];
        stream.read_exact(&mut rest).await?;
        let [_, _, high, low] = rest;
        let length = u16::from_be_bytes([high, low]);
        if length > MAX_REST {
            return Err(bad("it is too long"));
        }
        header.extend(rest);
        let start = header.len();
        header.resize(start + usize::from(length), 0);
        stream.read_exact(header.get_mut(start..).unwrap_or_default()).await?;
        let parsed = v2::Header::try_from(header.as_slice()).map_err(bad)?;
        return Ok(match (parsed.command, parsed.addresses) {
            (v2::Command::Proxy, v2::Addresses::IPv4(at)) => {
                Some((at.source_address, at.source_port).into())
            }
            (v2::Command::Proxy, v2::Addresses::IPv6(at)) => {
                Some((at.source_address, at.source_port).into())
            }
            (v2::Command::Proxy, _) => Some(UNKNOWN_CLIENT),
            (v2::Command::Local, _) => None,
        });
    }
    if !header.starts_with(b"PROXY ") {
        return Err(bad("it does not begin with PROXY"));
    }
    while !header.ends_with(b"\r\n") {
        if header.len() >= MAX_LINE {
            return Err(bad("its line is too long"));
        }
        header.push(stream.read_u8().await?);
    }
    let parsed = v1::Header::try_from(header.as_slice()).map_err(bad)?;
    Ok(match parsed.addresses {
        v1::Addresses::Tcp4(at) => Some((at.source_address, at.source_port).into()),
        v1::Addresses::Tcp6(at) => Some((at.source_address, at.source_port).into()),
        v1::Addresses::Unknown => Some(UNKNOWN_CLIENT),
    })
}

fn bad(why: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a header from `bytes`. Returns it, and how many bytes are left.
    async fn of(bytes: &[u8]) -> (io::Result<Option<SocketAddr>>, usize) {
        let mut rest = bytes;
        (read(&mut rest).await, rest.len())
    }

    fn at(text: &str) -> Option<SocketAddr> {
        Some(text.parse().expect("an address"))
    }

    #[tokio::test]
    async fn headers_of_both_versions_are_read_and_nothing_beyond() {
        let (found, left) =
            of(b"PROXY TCP4 203.0.113.9 198.51.100.1 4000 443\r\nGET / HTTP/1.1").await;
        assert_eq!((found.expect("read"), left), (at("203.0.113.9:4000"), 14));
        let (found, _) = of(b"PROXY TCP6 2001:db8::9 ::1 4000 443\r\n").await;
        assert_eq!(found.expect("read"), at("[2001:db8::9]:4000"));
        assert_eq!(of(b"PROXY UNKNOWN\r\nx").await.0.expect("read"), Some(UNKNOWN_CLIENT));

        let mut header = v2::PROTOCOL_PREFIX.to_vec();
        header.extend([0x21, 0x11, 0, 12, 203, 0, 113, 9, 198, 51, 100, 1, 0x0f, 0xa0, 1, 0xbb]);
        let (found, left) = of(&[header.as_slice(), b"GET"].concat()).await;
        assert_eq!((found.expect("read"), left), (at("203.0.113.9:4000"), 3));
        let local = [v2::PROTOCOL_PREFIX, &[0x20, 0, 0, 0]].concat();
        assert_eq!(of(&local).await.0.expect("read"), None);
    }

    #[tokio::test]
    async fn an_invalid_header_is_refused() {
        let long = format!("PROXY TCP4 {}", "1".repeat(200));
        for bad in
            [b"GET / HTTP/1.1\r\n".as_slice(), b"PROXY TCP4 x y 1 2\r\n", long.as_bytes(), b"PROX"]
        {
            assert!(of(bad).await.0.is_err(), "{}", String::from_utf8_lossy(bad));
        }
        let endless = [v2::PROTOCOL_PREFIX, &[0x21, 0x11, 0xff, 0xff]].concat();
        assert!(of(&endless).await.0.is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
            kind in 0usize..3,
        ) {
            let start: [&[u8]; 3] = [b"", b"PROXY TCP4 ", v2::PROTOCOL_PREFIX];
            let start = start[kind];
            let all = [start, &bytes].concat();
            let _ = futures::executor::block_on(of(&all));
        }
    }
}
