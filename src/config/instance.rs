//! Instances: several relays on one machine, each with a config of its own.
//!
//! `tonk-relay@NAME.service` reads `/etc/tonk-relay/NAME.toml`. What a machine has once for the
//! only relay, each instance has under its own name, so that its config need not say so.

use std::path::{Path, absolute};

use super::{AdminAddress, Config, peer_id_of_host};

/// The folder with the configs of instances.
const FOLDER: &str = "/etc/tonk-relay";

/// Returns the unit that runs the relay with this config, in the packages.
pub fn unit(file: &Path) -> String {
    match name(file) {
        Some(instance) => format!("tonk-relay@{instance}.service"),
        None => "tonk-relay.service".to_owned(),
    }
}

/// Returns the name of the instance whose config this is, if it is one of an instance.
#[expect(clippy::disallowed_methods, reason = "the config file is read at the same time")]
pub(super) fn name(file: &Path) -> Option<String> {
    let file = absolute(file).ok()?;
    let real = |folder: &Path| folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let is_config = real(file.parent()?) == real(Path::new(FOLDER))
        && file.extension().is_some_and(|extension| extension == "toml");
    if is_config { Some(file.file_stem()?.to_str()?.to_owned()) } else { None }
}

/// The admin socket of an instance, in the unit's `RuntimeDirectory`.
pub(super) fn admin_socket(instance: &str) -> AdminAddress {
    AdminAddress::Unix(format!("/run/tonk-relay-{instance}/admin.sock").into())
}

/// Sets the defaults of an instance, for the keys that its config does not set. Its metrics are at
/// the public port only, because two instances cannot share the default address of the admin port.
pub(super) fn set_defaults(config: &mut Config, instance: &str, is_default: impl Fn(&str) -> bool) {
    // The unit's `StateDirectory`.
    let state = Path::new("/var/lib").join(format!("tonk-relay-{instance}"));
    if is_default("storage.path") {
        config.storage.path = state.join("documents");
    }
    if is_default("bundles.path") {
        config.bundles.path = state.join("bundles");
    }
    if is_default("admin.listen") {
        config.admin.listen = vec![admin_socket(instance)];
    }
    if config.sync.peer_id.is_empty() {
        config.sync.peer_id = format!("{}-{instance}", peer_id_of_host());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_named_by_its_config() {
        assert_eq!(name(Path::new("/etc/tonk-relay/a.toml")), Some("a".to_owned()));
        for other in ["/etc/tonk-relay.toml", "/etc/tonk-relay/a.conf", "/srv/tonk-relay/a.toml"] {
            assert_eq!(name(Path::new(other)), None, "{other}");
        }
    }
}
