//! The service that runs the relay: its user, and the sandbox of its unit. A check of the config by
//! root needs both, since root itself may read and write everything.

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::geteuid;

use crate::{
    base::user::{User, output_of},
    config::load::Fault,
};

/// Its properties that matter here (systemd.exec(5)). They include drop-ins.
const PROPERTIES: &str = "LoadState,User,Group,SupplementaryGroups,ProtectHome,ProtectSystem,\
                          PrivateTmp,ReadWritePaths,ReadOnlyPaths,InaccessiblePaths,BindPaths,\
                          BindReadOnlyPaths,StateDirectory,RuntimeDirectory";

/// The user and sandbox of the service.
#[derive(Debug)]
pub struct Service {
    /// Its unit, such as `tonk-relay.service`.
    unit: String,
    user: User,
    sandbox: Sandbox,
}

/// What a unit allows of the file system.
#[derive(Debug, Default)]
struct Sandbox {
    protect_home: String,
    protect_system: String,
    private_tmp: String,
    writable: Vec<PathBuf>,
    read_only: Vec<PathBuf>,
    inaccessible: Vec<PathBuf>,
    bound: Vec<PathBuf>,
    /// Folders that systemd creates for the user when the unit starts.
    made: Vec<PathBuf>,
}

impl Service {
    /// Returns the service of an installed unit. Returns nothing if it is not installed, if it runs
    /// as root, or if this process does not.
    ///
    /// # Errors
    /// Its user or one of its groups does not exist.
    pub fn find(unit: &str) -> Result<Option<Self>, Fault> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let Some(shown) =
            output_of(Command::new("systemctl").args(["show", "--property", PROPERTIES, unit]))
        else {
            return Ok(None);
        };
        let value = |key: &str| {
            let mut lines = shown.lines().filter_map(|line| line.split_once('='));
            lines.find(|(found, _)| *found == key).map_or("", |(_, value)| value)
        };
        let user = value("User").to_owned();
        if value("LoadState") != "loaded" || ["", "root", "0"].contains(&user.as_str()) {
            return Ok(None);
        }
        let missing = |what: String| Fault {
            location: unit.to_owned(),
            key: String::new(),
            problem: format!("runs as the {what}, which does not exist"),
        };
        let mut user = User::find(&user).ok_or_else(|| missing(format!("user {user}")))?;
        let group = value("Group");
        if !group.is_empty() {
            user.set_group(group).map_err(|error| missing(error.to_string()))?;
        }
        for group in value("SupplementaryGroups").split_whitespace() {
            user.add_group(group).map_err(|error| missing(error.to_string()))?;
        }
        Ok(Some(Self { unit: unit.to_owned(), user, sandbox: Sandbox::read(value) }))
    }

    /// Returns a description of the user for messages.
    pub fn describe(&self) -> String {
        format!("the user {} of {}", self.user.name, self.unit)
    }

    /// Runs `work` in a thread with the rights of the service's user.
    ///
    /// # Errors
    /// The thread cannot be started, or cannot take these rights.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        self.user.run(work)
    }

    /// Returns why the sandbox hides a path, and what to do. `None` if it is visible.
    pub fn hidden(&self, path: &Path) -> Option<String> {
        let setting = self.sandbox.hides(&resolve_links(path))?;
        Some(format!(
            "{}: {} hides it from the user {} ({setting}); move it, for example to /srv or \
             /var/lib/tonk-relay, and change the path here",
            path.display(),
            self.unit,
            self.user.name
        ))
    }

    /// Returns why the sandbox makes a path read-only, and what to do. `None` if it is writable.
    pub fn read_only(&self, path: &Path) -> Option<String> {
        let real = resolve_links(path);
        let setting = self.sandbox.denies(&real)?;
        Some(format!(
            "{}: {} makes it read-only for the user {} ({setting}); run `systemctl edit {}`, and \
             add the lines [Service] and ReadWritePaths={}",
            path.display(),
            self.unit,
            self.user.name,
            self.unit.trim_end_matches(".service"),
            real.display()
        ))
    }

    /// Whether a path is in a folder that does not exist yet and that systemd creates when the unit
    /// starts.
    #[expect(clippy::disallowed_methods, reason = "runs in a command")]
    pub fn will_make(&self, path: &Path) -> bool {
        self.sandbox.made.iter().any(|made| path.starts_with(made) && !made.exists())
    }
}

impl Sandbox {
    fn read<'a>(value: impl Fn(&str) -> &'a str) -> Self {
        let paths = |key: &str| -> Vec<PathBuf> {
            // Strip the prefixes of systemd.exec(5), and take the target of a bind mount.
            let words =
                value(key).split_whitespace().map(|word| word.trim_start_matches(['-', '+']));
            words.map(|word| word.split(':').nth(1).unwrap_or(word).into()).collect()
        };
        let below = |folder: &str, key: &str| -> Vec<PathBuf> {
            // A name may be followed by that of a symbolic link.
            let names = value(key).split_whitespace().filter_map(|word| word.split(':').next());
            names.map(|name| Path::new(folder).join(name)).collect()
        };
        let mut made = below("/var/lib", "StateDirectory");
        made.extend(below("/run", "RuntimeDirectory"));
        let mut writable = paths("ReadWritePaths");
        writable.extend(paths("BindPaths"));
        writable.extend(made.clone());
        let mut bound = paths("BindPaths");
        bound.extend(paths("BindReadOnlyPaths"));
        Self {
            protect_home: value("ProtectHome").to_owned(),
            protect_system: value("ProtectSystem").to_owned(),
            private_tmp: value("PrivateTmp").to_owned(),
            writable,
            read_only: paths("ReadOnlyPaths"),
            inaccessible: paths("InaccessiblePaths"),
            bound,
            made,
        }
    }

    /// Returns the setting that hides a path.
    fn hides(&self, path: &Path) -> Option<String> {
        let Self { protect_home, private_tmp, .. } = self;
        if is_in(path, &self.bound) {
            None
        } else if is_in(path, &self.inaccessible) {
            Some("InaccessiblePaths".to_owned())
        } else if ["yes", "tmpfs"].contains(&protect_home.as_str()) && is_in(path, &HOMES) {
            Some(format!("ProtectHome={protect_home}"))
        } else if !["", "no"].contains(&private_tmp.as_str()) && is_in(path, &["/tmp", "/var/tmp"])
        {
            Some(format!("PrivateTmp={private_tmp}"))
        } else {
            None
        }
    }

    /// Returns the setting that makes a visible path read-only.
    fn denies(&self, path: &Path) -> Option<String> {
        let Self { protect_home, protect_system, .. } = self;
        let system: &[&str] = match protect_system.as_str() {
            "strict" => &["/"],
            "full" => &["/usr", "/boot", "/efi", "/etc"],
            "yes" => &["/usr", "/boot", "/efi"],
            _ => &[],
        };
        if is_in(path, &self.writable) {
            None
        } else if is_in(path, &self.read_only) {
            Some("ReadOnlyPaths".to_owned())
        } else if protect_home == "read-only" && is_in(path, &HOMES) {
            Some(format!("ProtectHome={protect_home}"))
        } else if is_in(path, system) {
            Some(format!("ProtectSystem={protect_system}"))
        } else {
            None
        }
    }
}

const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];

fn is_in(path: &Path, folders: &[impl AsRef<Path>]) -> bool {
    folders.iter().any(|folder| path.starts_with(folder))
}

/// Resolves the links in the part of a path that exists.
#[expect(clippy::disallowed_methods, reason = "runs in a command")]
fn resolve_links(path: &Path) -> PathBuf {
    for there in path.ancestors() {
        if let (Ok(found), Ok(rest)) = (there.canonicalize(), path.strip_prefix(there)) {
            return if rest.as_os_str().is_empty() { found } else { found.join(rest) };
        }
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(shown: &[(&str, &str)]) -> Sandbox {
        let value =
            |key: &str| shown.iter().find(|(k, _)| *k == key).map_or("", |(_, value)| value);
        Sandbox::read(value)
    }

    #[test]
    fn the_packaged_sandbox_hides_homes_and_makes_other_folders_read_only() {
        let packaged = [
            ("ProtectHome", "yes"),
            ("ProtectSystem", "strict"),
            ("PrivateTmp", "yes"),
            ("StateDirectory", "tonk-relay"),
            ("RuntimeDirectory", "tonk-relay"),
        ];
        let unit = sandbox(&packaged);
        let hides = |path: &str| unit.hides(Path::new(path));
        assert_eq!(hides("/home/ann/app.tonk").as_deref(), Some("ProtectHome=yes"));
        assert_eq!(hides("/tmp/app.tonk").as_deref(), Some("PrivateTmp=yes"));
        assert_eq!(hides("/srv/app.tonk"), None);
        let denies = |path: &str| unit.denies(Path::new(path));
        assert_eq!(denies("/var/lib/tonk-relay/documents"), None);
        assert_eq!(denies("/run/tonk-relay"), None);
        assert_eq!(denies("/mnt/disk/documents").as_deref(), Some("ProtectSystem=strict"));
    }

    #[test]
    fn settings_of_drop_ins_are_applied() {
        let unit = sandbox(&[
            ("ProtectHome", "read-only"),
            ("ProtectSystem", "strict"),
            ("PrivateTmp", "no"),
            ("ReadWritePaths", "-/mnt/disk /srv/a"),
            ("BindPaths", "/home/ann/data:/data:rbind"),
            ("InaccessiblePaths", "/srv/b"),
        ]);
        let denies = |path: &str| unit.denies(Path::new(path));
        assert_eq!(denies("/mnt/disk/documents"), None);
        assert_eq!(denies("/data"), None);
        assert_eq!(denies("/home/ann").as_deref(), Some("ProtectHome=read-only"));
        assert_eq!(unit.hides(Path::new("/home/ann")), None);
        assert_eq!(unit.hides(Path::new("/srv/b/app.tonk")).as_deref(), Some("InaccessiblePaths"));
        assert_eq!(unit.hides(Path::new("/tmp/x")), None);
    }
}
