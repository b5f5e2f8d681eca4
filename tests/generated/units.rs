//! `tonk-relay@.service`: the same unit as `tonk-relay.service`, for an instance.

use super::compare;

/// What differs. Everything else must stay the same, above all the sandbox.
const CHANGES: [(&str, &str); 9] = [
    ("automerge-repo apps\n", "automerge-repo apps, instance %i\n"),
    (
        "# If tonk-relay.socket is enabled, systemd listens for the relay, and a restart refuses no \
         connection.\n",
        "# tonk-relay@NAME.service runs the relay with the config /etc/tonk-relay/NAME.toml.\n",
    ),
    (" tonk-relay.socket ", " "),
    (
        "reset-failed tonk-relay`. A crash loop, with a start every second, ",
        "reset-failed tonk-relay@NAME`. A crash loop ",
    ),
    (
        "Documents on another disk need a drop-in: systemctl edit tonk-relay,",
        "Another disk needs a drop-in: systemctl edit tonk-relay@NAME,",
    ),
    ("ExecStart=/usr/bin/tonk-relay\n", "ExecStart=/usr/bin/tonk-relay --config FILE\n"),
    ("/usr/bin/tonk-relay reload\n", "/usr/bin/tonk-relay reload --config FILE\n"),
    ("--config FILE\n", "--config /etc/tonk-relay/%i.toml\n"),
    ("Directory=tonk-relay\n", "Directory=tonk-relay-%i\n"),
];

#[test]
fn unit_of_instances() {
    let mut unit = include_str!("../../packaging/systemd/tonk-relay.service").to_owned();
    for (only, instance) in CHANGES {
        assert!(unit.contains(only), "tonk-relay.service has no {only:?}");
        unit = unit.replace(only, instance);
    }
    compare("packaging/systemd/tonk-relay@.service", unit.as_bytes());
}
