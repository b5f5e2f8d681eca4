//! The S3 client, as configured.

use std::time::Duration;

use aws_config::{
    BehaviorVersion, Region, profile::ProfileFileCredentialsProvider,
    provider_config::ProviderConfig, timeout::TimeoutConfig,
};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_s3::{
    Client,
    config::{RequestChecksumCalculation, ResponseChecksumValidation},
};
use aws_smithy_http_client::tls;

use crate::config::{self, credentials::credential};

/// The systemd credential with access keys, in the format of `~/.aws/credentials`.
const CREDENTIAL: &str = "aws-credentials";
/// The SDK's environment variables for checksums.
const REQUEST_CHECKSUMS: &str = "AWS_REQUEST_CHECKSUM_CALCULATION";
const RESPONSE_CHECKSUMS: &str = "AWS_RESPONSE_CHECKSUM_VALIDATION";

/// Creates the client that `config` describes.
pub(super) async fn client(config: &config::Bundles) -> Client {
    // Of the providers that rustls offers, ring is the one that needs only a C compiler to build.
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
        .build_https();
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(config.timeout.0.min(Duration::from_secs(5)))
        .read_timeout(config.timeout.0)
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http.clone())
        .timeout_config(timeouts)
        .retry_config(aws_config::retry::RetryConfig::standard().with_max_attempts(2));
    if !config.region.is_empty() {
        loader = loader.region(Region::new(config.region.clone()));
    } else if !config.endpoint_url.is_empty() {
        // The SDK requires a region. Most other stores accept any.
        loader = loader.region(
            aws_config::meta::region::RegionProviderChain::default_provider().or_else("us-east-1"),
        );
    }
    if !config.endpoint_url.is_empty() {
        loader = loader.endpoint_url(&config.endpoint_url);
    }
    if let Some(file) = credential(CREDENTIAL) {
        let files =
            EnvConfigFiles::builder().with_file(EnvConfigFileKind::Credentials, file).build();
        // A profile may name a role or the instance's keys, which are fetched over HTTP.
        let provider = ProfileFileCredentialsProvider::builder()
            .configure(&ProviderConfig::default().with_http_client(http))
            .profile_files(files)
            .build();
        loader = loader.credentials_provider(provider);
    }
    // By default the SDK adds CRC32 trailers to every upload, which Ceph, OVH and older MinIO
    // refuse.
    if std::env::var_os(REQUEST_CHECKSUMS).is_none() {
        loader = loader.request_checksum_calculation(RequestChecksumCalculation::WhenRequired);
    }
    if std::env::var_os(RESPONSE_CHECKSUMS).is_none() {
        loader = loader.response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    }
    let shared = loader.load().await;
    let own =
        aws_sdk_s3::config::Builder::from(&shared).force_path_style(config.path_style).build();
    Client::from_conf(own)
}
