//! Which certificates are trusted.

use std::{io, path::Path, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};

use super::error::{ConnectError, is_untrusted};
use crate::base::regular_file;

/// The largest token or certificate file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Certificates that are trusted besides the system's.
#[derive(Clone, Copy)]
pub(super) enum Trust<'a> {
    /// None.
    System,
    /// Those in a file: of authorities, and of servers themselves.
    File(&'a Path),
    /// All: the connection is encrypted, and may be with anybody.
    All,
}

/// Returns the config of TLS connections.
pub(super) fn tls_config(trust: Trust<'_>) -> Result<ClientConfig, ConnectError> {
    let provider = Arc::new(ring::default_provider());
    let mut verifier = Verifier { provider: provider.clone(), chains: None, named: Vec::new() };
    if !matches!(trust, Trust::All) {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Trust::File(path) = trust {
            verifier.named = read_certificates(path)?;
            roots.add_parsable_certificates(verifier.named.clone());
        }
        if roots.is_empty() {
            return Err(ConnectError::NoRoots);
        }
        let chains = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone());
        verifier.chains = Some(chains.build().map_err(|error| ConnectError::tls_setup(&error))?);
    }
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ConnectError::tls_setup(&error))?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    Ok(builder.with_no_client_auth())
}

/// Reads a file that the argument `option` names.
pub(super) fn read(option: &'static str, path: &Path) -> Result<Vec<u8>, ConnectError> {
    regular_file::read(path, MAX_FILE).map_err(|source| ConnectError::File {
        option,
        path: path.to_owned(),
        source,
    })
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(&read("--ca-file", path)?).filter_map(Result::ok).collect();
    if found.is_empty() {
        let source = io::Error::other("the file has no certificate (PEM)");
        return Err(ConnectError::File { option: "--ca-file", path: path.to_owned(), source });
    }
    Ok(found)
}

/// Verifies a chain of certificates up to a trusted authority, as rustls does. It also accepts a
/// server's certificate that was named itself: a self-signed one often is its own authority, which
/// rustls refuses.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    /// `None` if every certificate is accepted.
    chains: Option<Arc<WebPkiServerVerifier>>,
    named: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        server: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chains) = &self.chains else { return Ok(ServerCertVerified::assertion()) };
        match chains.verify_server_cert(server, intermediates, name, ocsp, now) {
            Err(error) if is_untrusted(&error) && self.named.contains(server) => {
                verify_server_name(&ParsedCertificate::try_from(server)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let supported = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, supported)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let supported = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, supported)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
