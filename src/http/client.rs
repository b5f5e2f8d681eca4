//! Where a request comes from: the address of its client, as far as proxies that are trusted tell it.

use std::net::IpAddr;

use axum::http::HeaderMap;

use crate::{auth::Client, config::Network};

const FORWARDED_FOR: &str = "x-forwarded-for";
/// Headers by which proxies say that a request is somebody else's.
const FORWARDING: [&str; 3] = [FORWARDED_FOR, "forwarded", "x-real-ip"];

/// Make out the client of a request that came over a connection from `peer`; none for the relay's own.
///
/// `X-Forwarded-For` is read from its end, where the nearest proxy writes: up to the first address that is no trusted
/// proxy's, for what stands before it is what that one claims.
pub fn client(peer: Option<IpAddr>, headers: &HeaderMap, trusted: &[Network]) -> Client {
    let Some(peer) = peer.map(|peer| peer.to_canonical()) else {
        return Client { address: None, peer: None, is_local: true };
    };
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.has(address));
    let forwarded: Vec<Option<IpAddr>> = headers
        .get_all(FORWARDED_FOR)
        .iter()
        .flat_map(|value| value.to_str().unwrap_or("unreadable").split(','))
        .map(address)
        .collect();
    let is_forwarded = FORWARDING.iter().any(|name| headers.contains_key(*name));
    let all_local = forwarded.iter().all(|at| at.is_some_and(|at| at.is_loopback()));
    // What does not say where it comes from may come from anywhere.
    let is_local = peer.is_loopback() && (!is_forwarded || (!forwarded.is_empty() && all_local));
    if !is_trusted(peer) {
        return Client { address: Some(peer), peer: Some(peer), is_local };
    }
    // A proxy's own address limits nobody: all its clients have it.
    let client = forwarded.iter().rev().find(|at| at.is_none_or(|at| !is_trusted(at)));
    let address = match client {
        Some(found) => *found,
        None => forwarded.first().copied().flatten(),
    };
    Client { address, peer: Some(peer), is_local }
}

/// An address as proxies write it: bare, in brackets, or with a port.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = match text.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None if text.matches(':').count() == 1 => text.split(':').next().unwrap_or_default(),
        None => text,
    };
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn from(peer: &str, forwarded: &[&str]) -> Client {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(FORWARDED_FOR, value.parse().expect("a value"));
        }
        client(Some(ip(peer)), &headers, &Config::default().http.trusted_proxies)
    }

    #[test]
    fn only_what_trusted_proxies_add_is_believed() {
        let address = |peer, forwarded: &[&str]| from(peer, forwarded).address;
        assert_eq!(address("203.0.113.9", &[]), Some(ip("203.0.113.9")));
        assert_eq!(
            address("203.0.113.9", &["198.51.100.1"]),
            Some(ip("203.0.113.9")),
            "a stranger's word"
        );
        assert_eq!(address("127.0.0.1", &["198.51.100.1"]), Some(ip("198.51.100.1")));
        assert_eq!(address("127.0.0.1", &["10.9.9.9, 198.51.100.1"]), Some(ip("198.51.100.1")));
        assert_eq!(address("127.0.0.1", &["198.51.100.1, 127.0.0.5"]), Some(ip("198.51.100.1")));
        assert_eq!(address("127.0.0.1", &["10.0.0.1", "198.51.100.1"]), Some(ip("198.51.100.1")));
        assert_eq!(address("::1", &["[2001:db8::7]:443"]), Some(ip("2001:db8::7")));
        assert_eq!(address("::ffff:127.0.0.1", &["198.51.100.1:9"]), Some(ip("198.51.100.1")));
        assert_eq!(address("127.0.0.1", &[]), None, "a proxy, or this machine: not limited");
        assert_eq!(address("127.0.0.1", &["unknown"]), None);
        assert_eq!(address("127.0.0.1", &["127.0.0.1"]), Some(ip("127.0.0.1")));
    }

    #[test]
    fn who_is_local_is_so_at_every_step() {
        let is_local = |peer, forwarded: &[&str]| from(peer, forwarded).is_local;
        assert!(
            is_local("127.0.0.1", &[]) && is_local("::1", &[]) && is_local("127.0.0.1", &["::1"])
        );
        assert!(!is_local("203.0.113.9", &[]) && !is_local("203.0.113.9", &["127.0.0.1"]));
        assert!(!is_local("127.0.0.1", &["203.0.113.9"]));
        assert!(!is_local("127.0.0.1", &["203.0.113.9, 127.0.0.1"]), "a client behind two proxies");
        assert!(!is_local("127.0.0.1", &["unknown"]) && !is_local("127.0.0.1", &[""]));
        for name in ["forwarded", "x-real-ip"] {
            let mut headers = HeaderMap::new();
            headers.insert(name, "for=127.0.0.1".parse().expect("a value"));
            assert!(!client(Some(ip("127.0.0.1")), &headers, &[]).is_local, "{name}");
        }
        assert!(client(None, &HeaderMap::new(), &[]).is_local, "the relay itself");
    }

    proptest! {
        #[test]
        fn no_header_brings_it_down(value in "[ -~]{0,60}") {
            let mut headers = HeaderMap::new();
            headers.insert(FORWARDED_FOR, value.parse().expect("a value"));
            let _ = client(Some(ip("127.0.0.1")), &headers, &Config::default().http.trusted_proxies);
        }
    }
}
