//! Determines the client of a request: its address, as far as trusted proxies report it.

use std::net::IpAddr;

use axum::http::{HeaderMap, Uri, header};

use super::proxy_protocol;
use crate::{auth::Client, config::Network};

const FORWARDED_FOR: &str = "x-forwarded-for";
/// Headers that show that a proxy has forwarded a request.
const FORWARDING: [&str; 8] = [
    FORWARDED_FOR,
    "forwarded",
    "x-real-ip",
    "x-forwarded-host",
    "x-forwarded-proto",
    "via",
    "cf-connecting-ip",
    "true-client-ip",
];

/// Determines the client of a request over a connection from `peer`. `None` is the relay itself.
///
/// `X-Forwarded-For` is read from its end, where the nearest proxy writes. The client is the first
/// address from there that is not a trusted proxy's; earlier entries are claims of that client.
pub fn client(peer: Option<IpAddr>, headers: &HeaderMap, trusted: &[Network]) -> Client {
    let Some(peer) = peer.map(|peer| peer.to_canonical()) else {
        return Client { address: None, peer: None, is_local: true };
    };
    if peer == proxy_protocol::UNKNOWN_CLIENT.ip() {
        return Client { address: None, peer: None, is_local: false };
    }
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let forwarded: Vec<Option<IpAddr>> = headers
        .get_all(FORWARDED_FOR)
        .iter()
        .flat_map(|value| value.to_str().unwrap_or("unreadable").split(','))
        .map(address)
        .collect();
    let is_forwarded = FORWARDING.iter().any(|name| headers.contains_key(*name));
    let all_local = forwarded.iter().all(|at| at.is_some_and(|at| at.is_loopback()));
    // A forwarded request without an address may come from anywhere.
    let is_local = peer.is_loopback()
        && (!is_forwarded || (!forwarded.is_empty() && all_local))
        && is_asked_locally(headers);
    if !is_trusted(peer) {
        return Client { address: Some(peer), peer: Some(peer), is_local };
    }
    // The address of a proxy is not used for limits, since all its clients share it.
    let client = forwarded.iter().rev().find(|at| at.is_none_or(|at| !is_trusted(at)));
    let address = match client {
        Some(found) => *found,
        None => forwarded.first().copied().flatten(),
    };
    Client { address, peer: Some(peer), is_local }
}

/// Whether a request is for this machine, and not from another site's page in a browser here.
/// `Origin` names the page's site. If its name was made to resolve to this machine, `Host` has that
/// name.
fn is_asked_locally(headers: &HeaderMap) -> bool {
    let origin = headers.get(header::ORIGIN).map(|origin| origin.to_str().unwrap_or_default());
    let origin_host = origin.map(|origin| {
        let uri = origin.parse::<Uri>().unwrap_or_default();
        uri.authority().map(|authority| authority.host().to_owned()).unwrap_or_default()
    });
    asked_host(headers).is_none_or(is_this_machine)
        && origin_host.is_none_or(|host| is_this_machine(without_brackets(&host)))
}

/// Returns the host of a request, without its port and brackets. Empty if it is invalid.
pub fn asked_host(headers: &HeaderMap) -> Option<&str> {
    let host = headers.get(header::HOST)?.to_str().unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    };
    Some(without_brackets(name))
}

fn without_brackets(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Whether a host name always means the machine on which it is resolved (RFC 6761, 6.3).
fn is_this_machine(host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|at| at.is_loopback())
}

/// Parses an address as proxies write it: plain, in brackets, or with a port.
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
    fn only_trusted_proxies_determine_the_address() {
        let address = |peer, forwarded: &[&str]| from(peer, forwarded).address;
        assert_eq!(address("203.0.113.9", &[]), Some(ip("203.0.113.9")));
        assert_eq!(
            address("203.0.113.9", &["198.51.100.1"]),
            Some(ip("203.0.113.9")),
            "an untrusted client's claim"
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
    fn a_client_is_local_if_every_hop_is() {
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

    #[test]
    fn requests_of_other_sites_pages_are_not_local() {
        let is_local = |host: &str, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().expect("a host"));
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().expect("an origin"));
            }
            client(Some(ip("127.0.0.1")), &headers, &[]).is_local
        };
        for host in ["localhost", "LOCALHOST:8081", "127.0.0.1:8081", "[::1]:8081", "app.localhost"]
        {
            assert!(is_local(host, None), "{host}");
        }
        assert!(is_local("localhost:8081", Some("http://localhost:3000")));
        assert!(is_local("localhost:8081", Some("http://[::1]:3000")));
        for origin in ["https://evil.example", "null", "http://localhost.evil.example", ""] {
            assert!(!is_local("localhost:8081", Some(origin)), "{origin}");
        }
        for host in ["evil.example:8081", "127.0.0.1.evil.example", "", "203.0.113.9"] {
            assert!(!is_local(host, None), "{host}");
        }
        let unknown = client(Some(proxy_protocol::UNKNOWN_CLIENT.ip()), &HeaderMap::new(), &[]);
        assert_eq!(
            unknown,
            Client::default(),
            "a client that the proxy does not report has no address"
        );
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(value in "[ -~]{0,60}") {
            let mut headers = HeaderMap::new();
            headers.insert(FORWARDED_FOR, value.parse().expect("a value"));
            let trusted = Config::default().http.trusted_proxies;
            let _ = client(Some(ip("127.0.0.1")), &headers, &trusted);
        }
    }
}
