//! TLS to the database.

use std::{io, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};
// It passes rustls to tokio-postgres, with the channel binding of SCRAM.
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::ConnectError;
use crate::base::regular_file;

/// The largest file of certificates that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Returns a connector that accepts the certificates of the authorities in a file, or of those that
/// this machine trusts.
#[expect(clippy::disallowed_methods, reason = "nothing is served yet")]
pub(super) fn connector(
    roots_file: Option<&std::path::Path>,
) -> Result<MakeRustlsConnect, ConnectError> {
    let mut roots = RootCertStore::empty();
    match roots_file {
        None => _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
        Some(path) => {
            let unreadable = |source| ConnectError::Roots { path: path.to_owned(), source };
            let text = regular_file::read(path, MAX_FILE).map_err(unreadable)?;
            let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
            let certificates =
                certificates.map_err(|error| unreadable(io::Error::other(error.to_string())))?;
            roots.add_parsable_certificates(certificates);
        }
    }
    if roots.is_empty() {
        return Err(ConnectError::NoRoots(roots_file.map(ToOwned::to_owned)));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| ConnectError::Tls(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}
