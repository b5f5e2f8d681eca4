//! The notifications to the service manager: the datagrams of `sd_notify(3)` in their order.
#![expect(clippy::expect_used, reason = "a failed expectation is a failed test")]

#[allow(dead_code, reason = "other tests use more of it")]
mod common;

use std::{net::TcpStream, os::unix::net::UnixDatagram, process::Command, time::Duration};

use common::Relay;

/// Reads datagrams until one contains `wanted`, which is returned.
fn wait_for(manager: &UnixDatagram, wanted: &str) -> String {
    let mut buffer = [0; 4096];
    loop {
        let length = manager.recv(&mut buffer).expect("a notification in time");
        let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
        if text.lines().any(|line| line.starts_with(wanted)) {
            return text;
        }
    }
}

fn signal(relay: &Relay, name: &str) {
    let pid = relay.child.id().to_string();
    let sent = Command::new("kill").args([name, &pid]).status().expect("kill runs");
    assert!(sent.success());
}

#[test]
fn ready_reload_and_stop_are_notified_in_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("binds");
    manager.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    let mut relay = Relay::start(&[
        ("NOTIFY_SOCKET", &path.display().to_string()),
        ("WATCHDOG_USEC", "400000"),
    ]);

    let ready = wait_for(&manager, "READY=1");
    assert!(ready.contains("STATUS=Serving"), "{ready}");
    assert!(TcpStream::connect(("127.0.0.1", relay.port)).is_ok(), "ready means bound");

    for _ in 0..10 {
        wait_for(&manager, "WATCHDOG=1");
    }

    signal(&relay, "-HUP");
    let reloading = wait_for(&manager, "RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    let over = wait_for(&manager, "READY=1");
    assert!(
        over.contains("STATUS=Serving; reload: the relay was started without a config file"),
        "{over}"
    );

    signal(&relay, "-TERM");
    let stopping = wait_for(&manager, "STOPPING=1");
    assert!(stopping.contains("EXTEND_TIMEOUT_USEC=35000000"), "{stopping}");
    assert_eq!(relay.child.wait().expect("ends").code(), Some(0));
}
