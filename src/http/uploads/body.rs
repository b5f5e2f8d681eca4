//! Receives the body of an upload: decodes it, and writes it to a file on threads that may block.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use axum::{
    body::BodyDataStream,
    http::{HeaderMap, header},
};
use bytes::Bytes;
// flate2: the crate that automerge uses as well.
use flate2::write::MultiGzDecoder;
use futures::StreamExt;
use tokio::time::timeout;

use super::super::{error::HttpError, grant::Grant};
use crate::{
    base::blocking,
    bundle::{disk_budget::Reservation, store::ReceivedFile},
    config::{Config, Limits},
    limits::{
        Charge,
        turns::{Payer, Turns},
    },
    storage::StorageError,
};

/// How a body is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Identity,
    Gzip,
}

impl Coding {
    /// Reads `Content-Encoding`, whose values are case-insensitive (RFC 9110, 8.4.1).
    ///
    /// # Errors
    /// Another encoding, or more than one.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, HttpError> {
        let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
        let coding = codings.next().map_or(b"identity".as_slice(), |coding| coding.as_bytes());
        let is = |name: &str| coding.trim_ascii().eq_ignore_ascii_case(name.as_bytes());
        match codings.next() {
            None if is("identity") => Ok(Self::Identity),
            None if is("gzip") || is("x-gzip") => Ok(Self::Gzip),
            _ => Err(HttpError::ContentEncoding),
        }
    }

    /// Returns the largest size of the encoded body. gzip can enlarge a body by a thousandth, and
    /// could add empty blocks without an end.
    fn max_encoded(self, max_upload: u64) -> u64 {
        match self {
            Self::Identity => max_upload,
            Self::Gzip => max_upload.saturating_add(max_upload / 100).saturating_add(1 << 10),
        }
    }
}

/// A received body: its decoded size, and what is reserved for it.
pub(super) struct Spooled {
    file: File,
    path: PathBuf,
    pub(super) size: u64,
    pub(super) reservation: Reservation,
    pub(super) charge: Charge,
    max_upload: u64,
    limits: Limits,
}

impl Spooled {
    /// Reserves space and quota for decoded bytes, and writes them.
    fn append(&mut self, data: &[u8]) -> Result<(), HttpError> {
        let bytes = data.len() as u64;
        self.size += bytes;
        if self.size > self.max_upload {
            return Err(HttpError::TooLarge(self.max_upload));
        }
        if !self.charge.bytes(bytes, &self.limits) {
            return Err(HttpError::StoredBytes);
        }
        self.reservation.reserve(bytes)?;
        let written = self.file.write_all(data);
        written.map_err(|error| StorageError::io("write", self.path.as_path(), error))?;
        self.reservation.record_written(bytes);
        Ok(())
    }
}

impl Write for Spooled {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.append(data).map_err(io::Error::other)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Decoder {
    Identity(Box<Spooled>),
    Gzip(Box<MultiGzDecoder<Spooled>>),
}

/// Decodes a body and writes it to its file.
pub(super) struct Spool {
    /// `None` while it is in use on a thread that may block.
    decoder: Option<Decoder>,
    coding: Coding,
    /// Turns for decoding, and who takes them.
    turns: (Arc<Turns>, Payer),
}

impl Spool {
    /// Returns a spool for a body with this encoding.
    pub(super) async fn create(
        file: &ReceivedFile,
        coding: Coding,
        turns: (Arc<Turns>, Payer),
        reservation: Reservation,
        charge: Charge,
        config: &Config,
    ) -> Result<Self, HttpError> {
        let path = file.path().to_owned();
        #[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
        let (path, file) = blocking::run(move || {
            let opened = OpenOptions::new().write(true).open(&path);
            (path, opened)
        })
        .await;
        let file = file.map_err(|error| StorageError::io("write", path.as_path(), error))?;
        let (max_upload, limits) = (config.bundles.max_upload.0, config.limits.clone());
        let spooled = Spooled { file, path, size: 0, reservation, charge, max_upload, limits };
        let decoder = match coding {
            Coding::Identity => Decoder::Identity(Box::new(spooled)),
            Coding::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(spooled))),
        };
        Ok(Self { decoder: Some(decoder), coding, turns })
    }

    async fn write(&mut self, data: Bytes) -> Result<(), HttpError> {
        // A few bytes may decode to a thousand times as many, which takes long.
        let turn = match self.coding {
            Coding::Identity => None,
            Coding::Gzip => Some(self.turns.0.take(self.turns.1.clone()).await),
        };
        let Some(mut decoder) = self.decoder.take() else { return Ok(()) };
        let writing = blocking::run(move || -> Result<Decoder, HttpError> {
            let _turn = turn;
            match &mut decoder {
                Decoder::Identity(spooled) => spooled.append(&data)?,
                Decoder::Gzip(gzip) => gzip.write_all(&data).map_err(decoding_failed)?,
            }
            Ok(decoder)
        });
        self.decoder = Some(writing.await?);
        Ok(())
    }

    async fn finish(mut self) -> Result<Spooled, HttpError> {
        match self.decoder.take() {
            Some(Decoder::Identity(spooled)) => Ok(*spooled),
            Some(Decoder::Gzip(gzip)) => {
                blocking::run(move || gzip.finish()).await.map_err(decoding_failed)
            }
            None => Err(HttpError::Internal("an upload's decoder is gone".to_owned())),
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // Dropping a decoder writes its remaining output, which blocks.
        if let Some(decoder) = self.decoder.take() {
            blocking::detach(move || drop(decoder));
        }
    }
}

/// Returns the error of [`Spooled::append`] in an error of a decoder, or that the body is not valid
/// gzip.
fn decoding_failed(error: io::Error) -> HttpError {
    error.downcast().unwrap_or_else(|error| HttpError::Body(format!("not valid gzip: {error}")))
}

/// Receives a body.
///
/// # Errors
/// The body is too large or too slow, or cannot be decoded; the client may no longer upload; or
/// space or quota is used up.
pub(super) async fn receive(
    chunks: &mut BodyDataStream,
    mut spool: Spool,
    grant: &mut Grant,
    config: &Config,
) -> Result<Spooled, HttpError> {
    let (idle, min_rate) = (config.http.body_idle_timeout.0, config.http.body_min_rate);
    let max_upload = config.bundles.max_upload.0;
    let max_encoded = spool.coding.max_encoded(max_upload);
    let (began, mut received) = (Instant::now(), 0u64);
    loop {
        let chunk = match timeout(idle, chunks.next()).await {
            Err(_) => return Err(HttpError::Slow(idle)),
            Ok(None) => break,
            Ok(Some(Err(error))) => return Err(HttpError::Body(error.to_string())),
            Ok(Some(Ok(chunk))) => chunk,
        };
        received = received.saturating_add(chunk.len() as u64);
        if received > max_encoded {
            return Err(HttpError::TooLarge(max_upload));
        }
        let lasted = began.elapsed();
        if lasted > idle && received < min_rate.0 * lasted.as_secs() {
            return Err(HttpError::Trickle(min_rate));
        }
        grant.check()?;
        spool.write(chunk).await?;
    }
    spool.finish().await
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn the_encoding_is_case_insensitive() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            Coding::of(&headers).ok()
        };
        assert_eq!(of(&[]), Some(Coding::Identity));
        assert_eq!(of(&["Identity"]), Some(Coding::Identity));
        for gzip in ["gzip", "GZIP", "x-gzip", "X-GZip", " gzip "] {
            assert_eq!(of(&[gzip]), Some(Coding::Gzip), "{gzip}");
        }
        for other in [&["br"][..], &["gzip, gzip"], &["gzip", "gzip"], &[""]] {
            assert_eq!(of(other), None, "{other:?}");
        }
    }
}
