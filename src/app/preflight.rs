//! Checks whether the files and folders that a config names can be used, by the user of this
//! process or by the service.

use std::{fs, io, path::Path};

use super::service::Service;
use crate::{
    auth::Policy,
    base::regular_file,
    bundle::{MaxInflated, served::ServedBundle},
    config::{AdminAddress, check::named_paths, load::Fault, load::LoadedConfig},
    http::tls,
    storage::postgres,
};

/// Opens everything that the config names and returns the faults. With a service, files are opened
/// as its user, and its sandbox is checked; without one, as the user of this process.
/// [`check`](crate::config::check::check) reports relative paths.
pub fn open(loaded: &LoadedConfig, service: Option<&Service>) -> Vec<Fault> {
    let Some(service) = service else { return open_here(loaded, |_| false) };
    let mut faults = sandbox_faults(loaded, service);
    let look = || {
        let file = loaded.file.as_deref().map_or(Ok(()), can_read);
        (file, open_here(loaded, |path| service.will_make(path)))
    };
    match service.run(look) {
        Ok((file, mut found)) => {
            // Root has already read the config file.
            found.extend(file.err().map(|problem| loaded.fault("", problem)));
            let is_new = |fault: &Fault| faults.iter().all(|known| known.key != fault.key);
            found.retain(is_new);
            for fault in &mut found {
                fault.problem.push_str(&format!(" (checked as {})", service.describe()));
            }
            faults.extend(found);
        }
        Err(error) => faults.push(
            loaded.fault("", format!("cannot be checked as {}: {error}", service.describe())),
        ),
    }
    faults
}

/// Returns a fault for each path that the sandbox of the service hides or makes read-only.
fn sandbox_faults(loaded: &LoadedConfig, service: &Service) -> Vec<Fault> {
    let config = &loaded.config;
    let sockets = config.admin.listen.iter().filter_map(|address| match address {
        AdminAddress::Unix(path) => Some(("admin.listen", path.parent()?)),
        AdminAddress::Tcp(_) => None,
    });
    let file = loaded.file.as_deref().map(|file| ("", file));
    let named = named_paths(config).into_iter().chain(sockets).chain(file);
    let faults = named.filter(|(_, path)| path.is_absolute()).filter_map(|(key, path)| {
        let is_written = ["bundles.path", "storage.path", "admin.listen"].contains(&key);
        let kept = service.hidden(path);
        let kept = kept.or_else(|| service.read_only(path).filter(|_| is_written))?;
        Some(loaded.fault(key, kept))
    });
    faults.collect()
}

/// Opens everything that the config names, as the user of this thread, and returns the faults. A
/// missing folder is not a fault if `will_be_made` accepts its path.
#[expect(clippy::disallowed_methods, reason = "runs in a command")]
fn open_here(loaded: &LoadedConfig, will_be_made: impl Fn(&Path) -> bool) -> Vec<Fault> {
    let config = &loaded.config;
    let is_named = |path: &Path| path.is_absolute();
    let mut faults = Vec::new();
    let mut fault = |key: &str, problem: String| faults.push(loaded.fault(key, problem));

    if is_named(&config.bundle.path)
        && let Err(error) = ServedBundle::load(&config.bundle.path, MaxInflated::of(config))
    {
        fault("bundle.path", error.to_string());
    }
    if is_named(&config.tls.cert)
        && is_named(&config.tls.key)
        && let Err(error) = tls::load(&config.tls)
    {
        fault(error.key(), error.to_string());
    }
    if let Err(error) = Policy::load(&config.auth, config.cluster.is_set()) {
        fault(error.key(), error.to_string());
    }
    for (key, path) in
        [("bundle.wasm", &config.bundle.wasm), ("bundle.blank", &config.bundle.blank)]
    {
        if is_named(path)
            && let Err(problem) = can_read(path)
        {
            fault(key, format!("{}: {problem}", path.display()));
        }
    }
    let written = ["storage.path", "bundles.path"];
    for (key, path) in named_paths(config).into_iter().filter(|(key, _)| written.contains(key)) {
        if is_named(path)
            && !will_be_made(path)
            && let Err(problem) = can_write(path)
        {
            fault(key, format!("{}: {problem}", path.display()));
        }
    }
    if let Ok(Some(database)) = config.cluster.database.read()
        && let Err(error) = postgres::check(&database, &config.cluster)
    {
        fault("cluster.database", format!("cannot use {database}: {error}"));
    }
    for address in &config.admin.listen {
        if let AdminAddress::Unix(path) = address
            && let Some(folder) = path.parent()
        {
            // systemd creates it when the unit starts (RuntimeDirectory), and removes it when the
            // unit stops.
            let is_runtime_directory = folder.parent() == Some(Path::new("/run"));
            if !folder.exists() && (is_runtime_directory || will_be_made(folder)) {
                continue;
            }
            if let Err(problem) = can_write(folder) {
                fault("admin.listen", format!("{}: {problem}", folder.display()));
            }
        }
    }
    faults
}

#[expect(clippy::disallowed_methods, reason = "runs in a command")]
fn can_read(path: &Path) -> Result<(), String> {
    regular_file::open(path).map(drop).map_err(|error| reason(&error))
}

/// Checks that a folder can be written, or created in its nearest existing parent.
#[expect(clippy::disallowed_methods, reason = "runs in a command")]
fn can_write(folder: &Path) -> Result<(), String> {
    let mut there = folder;
    loop {
        match fs::metadata(there) {
            Ok(found) if !found.is_dir() => {
                return Err(format!("{} is not a folder", there.display()));
            }
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => match there.parent() {
                Some(above) => there = above,
                None => return Err(reason(&error)),
            },
            Err(error) => return Err(reason(&error)),
        }
    }
    // The mode is not enough: only a write shows a read-only mount or the sandbox of the unit.
    match tempfile::NamedTempFile::new_in(there) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{} cannot be written: {}", there.display(), reason(&error))),
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "not found; if it exists, the sandbox of the unit may hide it (ProtectHome, PrivateTmp)"
                .to_owned()
        }
        io::ErrorKind::PermissionDenied => "permission denied for this user".to_owned(),
        io::ErrorKind::ReadOnlyFilesystem => {
            "read-only; under systemd, ReadWritePaths must name it".to_owned()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    #[test]
    fn files_and_folders_of_the_config_are_opened() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "no ZIP").expect("written");
        let text = format!(
            "[bundle]\npath = {:?}\nwasm = {:?}\n[storage]\npath = {:?}\n[bundles]\npath = {:?}\n\
             [admin]\nlisten = [\"unix:{}\"]\n",
            at("file"),
            at("missing"),
            at("file").join("below"),
            at("new"),
            at("admin.sock").display()
        );
        let (config, origins) = load::parse("x.toml", &text).expect("reads");
        let loaded = LoadedConfig { file: Some("x.toml".into()), text, config, origins };
        let faults = open_here(&loaded, |_| false);
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(
            faults[0].contains(&format!(
                "x.toml:2: bundle.path: {}: not a ZIP archive",
                at("file").display()
            )),
            "{faults:?}"
        );
        assert!(
            faults[1].contains("x.toml:3: bundle.wasm: ") && faults[1].contains("not found"),
            "{faults:?}"
        );
        assert!(faults[2].contains("x.toml:5: storage.path: "), "{faults:?}");
        assert!(!at("new").exists(), "a check creates nothing");
    }
}
