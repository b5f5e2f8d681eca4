//! `manifest.json` of a bundle.

use serde::Deserialize;

use super::error::BundleError;
use crate::base::document_id::DocumentId;

/// The name of the manifest's entry.
pub(super) const MANIFEST: &str = "manifest.json";
/// The largest manifest, in bytes.
pub(super) const MAX_MANIFEST: u64 = 1 << 20;

/// What the relay reads of a manifest. The slim form keeps the manifest byte for byte.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The document that a client opens first; also the bundle's id.
    pub root: DocumentId,
    /// The servers with which the bundle tells clients to synchronise.
    pub network_uris: Vec<String>,
}

impl Manifest {
    pub(super) fn parse(json: &[u8]) -> Result<Self, BundleError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Fields {
            manifest_version: Option<serde_json::Value>,
            root_id: Option<serde_json::Value>,
            #[serde(default)]
            network_uris: Option<Vec<String>>,
        }
        let fields: Fields =
            serde_json::from_slice(json).map_err(|e| BundleError::BadManifest(e.to_string()))?;
        match &fields.manifest_version {
            None => {}
            Some(version) if version.as_u64() == Some(1) => {}
            Some(other) => return Err(BundleError::ManifestVersion(other.to_string())),
        }
        let root = match fields.root_id {
            Some(serde_json::Value::String(id)) if !id.is_empty() => id.parse()?,
            _ => return Err(BundleError::NoRootId),
        };
        Ok(Self { root, network_uris: fields.network_uris.unwrap_or_default() })
    }
}

/// The manifest of a bundle that has only a root document.
pub fn minimal_manifest(root: DocumentId) -> Vec<u8> {
    let manifest = serde_json::json!({
        "manifestVersion": 1,
        "version": { "major": 1, "minor": 0 },
        "rootId": root.to_string(),
        "entrypoints": [],
        "networkUris": [],
    });
    serde_json::to_vec_pretty(&manifest).unwrap_or_default()
}
