//! `tonk-relay demo`: starts a relay with a small bundle and everything in one folder.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{
    daemon::{config_without_file, serve},
    error::{CliError, io_error},
    files::absolute,
};
use crate::{
    base::folder::Folder,
    config::{AdminAddress, check, load::LoadedConfig},
};

/// The bundle that the demo serves; it has three documents.
const DEMO_BUNDLE: &[u8] = include_bytes!("../../etc/demo.tonk");

pub(super) fn run(
    bundle: Option<PathBuf>,
    folder: &Path,
    listen: SocketAddr,
) -> Result<(), CliError> {
    serve(prepare(bundle, folder, listen)?)
}

/// Makes the folder and the bundle, and returns a config that names them.
fn prepare(
    bundle: Option<PathBuf>,
    folder: &Path,
    listen: SocketAddr,
) -> Result<LoadedConfig, CliError> {
    let folder = absolute(folder)?;
    let opened = Folder::create(&folder).map_err(io_error(&folder))?;
    let bundle = match bundle {
        Some(bundle) => absolute(&bundle)?,
        None => {
            const NAME: &str = "demo.tonk";
            if opened.stat(NAME).map_err(io_error(&folder))?.is_none() {
                opened.write(NAME, DEMO_BUNDLE, 0o666, None).map_err(io_error(&folder))?;
            }
            folder.join(NAME)
        }
    };
    let loaded = config_without_file("demo", |config| {
        config.http.listen = vec![listen];
        config.admin.listen = vec![AdminAddress::Unix(folder.join("admin.sock"))];
        config.bundle.path = bundle;
        config.bundles.path = folder.join("bundles");
        config.storage.path = folder.join("documents");
    });
    let faults = check::check(&loaded);
    if faults.is_empty() { Ok(loaded) } else { Err(CliError::Config(faults)) }
}
