//! `tonk-relay demo`: starts a relay with a small bundle, a page to try it with, and everything in
//! one folder.

mod page;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use super::{
    daemon::{config_without_file, serve_with},
    error::{CliError, io_error},
    files::absolute,
    output::print,
};
use crate::{
    app::{Addresses, AppError},
    base::{document_id::DocumentId, folder::Folder},
    config::{
        AdminAddress, check,
        load::{Fault, LoadedConfig},
    },
};

/// The bundle that the demo serves; it has three documents.
const DEMO_BUNDLE: &[u8] = include_bytes!("../../../etc/demo.tonk");
/// The document in it that the page shows.
const LIST: DocumentId = DocumentId::from_bytes([0xd4; 16]);
/// Where clients connect unless they are told otherwise.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8081);

pub(super) fn run(
    bundle: Option<PathBuf>,
    folder: &Path,
    listen: SocketAddr,
) -> Result<(), CliError> {
    let list = bundle.is_none().then_some(LIST);
    let loaded = prepare(bundle, folder, listen)?;
    let result =
        serve_with(loaded, page::routes(), |addresses| print(&what_to_open(addresses, list)));
    result.map_err(|error| match error {
        CliError::App(AppError::Listen { address, source, .. }) => CliError::Problem(format!(
            "cannot listen on {address}: {source}; if another relay runs there, start this one \
             with `--listen 127.0.0.1:0 --folder other-data`, on a free port and in another folder"
        )),
        CliError::App(AppError::AdminListen { address: AdminAddress::Unix(_), source, .. })
            if source.kind() == io::ErrorKind::AddrInUse =>
        {
            CliError::Problem(format!(
                "another relay uses the folder {}; stop it, or name another folder, such as \
                 `--folder other-data`",
                folder.display()
            ))
        }
        error => error,
    })
}

/// Makes the folder and the bundle, and returns a config that names them.
fn prepare(
    bundle: Option<PathBuf>,
    folder: &Path,
    listen: SocketAddr,
) -> Result<LoadedConfig, CliError> {
    if !listen.ip().is_loopback() {
        return Err(CliError::Config(vec![not_for_others(listen)]));
    }
    let folder = absolute(folder)?;
    let opened = Folder::create(&folder).map_err(io_error(&folder))?;
    let bundle = match bundle {
        Some(bundle) => absolute(&bundle)?,
        None => {
            // Written each time: that of an older version has other documents.
            const NAME: &str = "demo.tonk";
            opened.write(NAME, DEMO_BUNDLE, 0o666, None).map_err(io_error(&folder))?;
            folder.join(NAME)
        }
    };
    let loaded = config_without_file("demo", |config| {
        config.http.listen = vec![listen];
        config.admin.listen = vec![
            AdminAddress::Unix(folder.join("admin.sock")),
            AdminAddress::Tcp(status_address(listen)),
        ];
        config.bundle.path = bundle;
        config.bundles.path = folder.join("bundles");
        config.storage.path = folder.join("documents");
    });
    let faults = check::check(&loaded);
    if faults.is_empty() { Ok(loaded) } else { Err(CliError::Config(faults)) }
}

fn not_for_others(listen: SocketAddr) -> Fault {
    Fault {
        location: "demo".to_owned(),
        key: "--listen".to_owned(),
        problem: format!(
            "{listen} can be reached by other machines, and the demo asks nobody for a token and \
             has no TLS. For others, write a config with http.listen = [\"{listen}\"], an [auth] \
             mode, and [tls] or a proxy in front, and start it with `tonk-relay --config FILE`; \
             `man tonk-relay.toml` has two examples. For this machine alone: --listen 127.0.0.1:{}",
            listen.port()
        ),
    }
}

/// The address of the status page: the next port, if that is free and the demo's own port is fixed.
fn status_address(listen: SocketAddr) -> SocketAddr {
    let mut address = listen;
    address.set_port(listen.port().checked_add(1).filter(|_| listen.port() > 0).unwrap_or(0));
    if TcpListener::bind(address).is_err() {
        address.set_port(0);
    }
    address
}

/// Says what can be opened, and with which commands. `list` is the document that the page shows.
fn what_to_open(addresses: &Addresses, list: Option<DocumentId>) -> String {
    let Some(address) = addresses.public.first() else { return String::new() };
    let option = match *address == DEFAULT_LISTEN {
        true => String::new(),
        false => format!(" --url ws://{address}"),
    };
    let (hash, command) = match list {
        Some(list) => (format!("#{list}"), format!("open {list}")),
        None => (String::new(), "new".to_owned()),
    };
    let mut text = format!(
        "A shared list, for two browser windows:  http://{address}/demo{hash}\n\
         The same in a terminal:                  tonk-relay client {command}{option}\n"
    );
    for admin in &addresses.admin {
        text.push_str(&format!("The relay's status page:                 http://{admin}/status\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_the_page_the_command_and_the_status_page() {
        let addresses = |port| Addresses {
            public: vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)],
            admin: vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port + 1)],
        };
        let text = what_to_open(&addresses(8081), Some(LIST));
        assert!(text.contains(&format!("http://127.0.0.1:8081/demo#{LIST}\n")), "{text}");
        assert!(text.contains(&format!("tonk-relay client open {LIST}\n")), "{text}");
        assert!(text.contains("http://127.0.0.1:8082/status\n"), "{text}");
        let text = what_to_open(&addresses(9), None);
        assert!(text.contains("http://127.0.0.1:9/demo\n"), "{text}");
        assert!(text.contains("tonk-relay client new --url ws://127.0.0.1:9\n"), "{text}");
    }

    #[test]
    fn for_other_machines_it_says_what_they_need() {
        let folder = tempfile::tempdir().expect("a folder");
        let listen = "0.0.0.0:8081".parse().expect("an address");
        let error = prepare(None, &folder.path().join("data"), listen).expect_err("refused");
        assert_eq!(error.exit_code(), 78);
        let text = error.to_string();
        for part in ["0.0.0.0:8081", "[auth] mode", "[tls]", "--config", "--listen 127.0.0.1:8081"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!folder.path().join("data").exists(), "nothing is made");
    }
}
