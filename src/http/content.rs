//! Conditional requests and ranges (RFC 9110, 13 and 14).

use std::ops::RangeInclusive;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_range_header::StartPosition;

use super::error::HttpError;

/// The properties of a response's content.
pub(super) struct Content {
    pub(super) etag: String,
    pub(super) kind: &'static str,
    /// The name under which a browser saves it.
    pub(super) file_name: Option<String>,
    pub(super) cache_control: &'static str,
    /// "gzip", if it is encoded.
    pub(super) encoding: Option<&'static str>,
    pub(super) size: u64,
}

/// The answer to a request.
pub(super) enum Answer {
    /// A response without content, which the client already has.
    Known(Response),
    /// The status and headers of a response with the content, or with a range of it.
    Send(StatusCode, HeaderMap, Option<RangeInclusive<u64>>),
}

impl Content {
    /// Returns the answer to a request with these headers.
    ///
    /// # Errors
    /// The requested range is beyond the end.
    pub(super) fn answer(&self, request: &HeaderMap) -> Result<Answer, HttpError> {
        let mut head = HeaderMap::new();
        let mut set = |name: HeaderName, value: &str| {
            // Ids, ETags and numbers are always good header values.
            if let Ok(value) = HeaderValue::from_str(value) {
                head.insert(name, value);
            }
        };
        set(header::ETAG, &self.etag);
        set(header::CACHE_CONTROL, self.cache_control);
        set(header::ACCEPT_RANGES, "bytes");
        if is_known(request, &self.etag) {
            return Ok(Answer::Known((StatusCode::NOT_MODIFIED, head).into_response()));
        }
        set(header::CONTENT_TYPE, self.kind);
        if let Some(name) = &self.file_name {
            set(header::CONTENT_DISPOSITION, &format!("attachment; filename=\"{name}\""));
        }
        if let Some(encoding) = self.encoding {
            set(header::CONTENT_ENCODING, encoding);
        }
        let part = range(request, &self.etag, self.size)?;
        let (status, length) = match &part {
            None => (StatusCode::OK, self.size),
            Some(part) => {
                let shown = format!("bytes {}-{}/{}", part.start(), part.end(), self.size);
                set(header::CONTENT_RANGE, &shown);
                (StatusCode::PARTIAL_CONTENT, part.end() - part.start() + 1)
            }
        };
        set(header::CONTENT_LENGTH, &length.to_string());
        Ok(Answer::Send(status, head, part))
    }

    /// Returns a response with content that is in memory.
    ///
    /// # Errors
    /// The requested range is beyond the end.
    pub(super) fn send(&self, request: &HeaderMap, data: &Bytes) -> Result<Response, HttpError> {
        let (status, head, part) = match self.answer(request)? {
            Answer::Known(answer) => return Ok(answer),
            Answer::Send(status, head, part) => (status, head, part),
        };
        let data = match part {
            None => data.clone(),
            Some(part) => {
                let at = |index: u64| usize::try_from(index).unwrap_or(usize::MAX).min(data.len());
                data.slice(at(*part.start())..at(part.end() + 1))
            }
        };
        Ok((status, head, Body::from(data)).into_response())
    }
}

/// Whether the client already has the content with this ETag (RFC 9110, 13.1.2).
pub(super) fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|tag| tag.trim())
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// Whether the response to a request may be gzip (RFC 9110, 12.5.3). Ranges are never compressed.
pub(super) fn accepts_gzip(headers: &HeaderMap) -> bool {
    let mut gzip = None;
    let mut others = None;
    let accepted = headers.get_all(header::ACCEPT_ENCODING).iter();
    let accepted = accepted.filter_map(|value| value.to_str().ok());
    for coding in accepted.flat_map(|value| value.split(',')) {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().trim_start_matches(['q', 'Q']).trim_start().strip_prefix('=');
        let is_wanted =
            weight.is_none_or(|weight| weight.trim().parse().is_ok_and(|q: f32| q > 0.0));
        match name.trim().to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => gzip = Some(is_wanted),
            "*" => others = Some(is_wanted),
            _ => {}
        }
    }
    gzip.or(others).unwrap_or(false) && !headers.contains_key(header::RANGE)
}

/// Returns the requested range, or `None` for the whole content. A request for several ranges gets
/// the whole content, which RFC 9110 (14.2) permits.
fn range(
    headers: &HeaderMap,
    etag: &str,
    size: u64,
) -> Result<Option<RangeInclusive<u64>>, HttpError> {
    let Some(range) = headers.get(header::RANGE).and_then(|range| range.to_str().ok()) else {
        return Ok(None);
    };
    if headers.get(header::IF_RANGE).is_some_and(|known| known.as_bytes() != etag.as_bytes()) {
        return Ok(None);
    }
    if range.contains(',') {
        // The crate checks in quadratic time whether ranges overlap.
        return Ok(None);
    }
    let Ok(parsed) = http_range_header::parse_range_header(range) else {
        return Ok(None);
    };
    let is_beyond = parsed.ranges.iter().all(|range| match range.start {
        StartPosition::Index(start) => start >= size,
        StartPosition::FromLast(last) => last == 0,
    });
    match parsed.validate(size) {
        Ok(mut parts) if parts.len() == 1 => Ok(parts.pop()),
        Err(_) if is_beyond => Err(HttpError::Range(size)),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_sent_to_clients_that_accept_it() {
        let accepts = |value: &'static str| {
            accepts_gzip(&HeaderMap::from_iter([(
                header::ACCEPT_ENCODING,
                HeaderValue::from_static(value),
            )]))
        };
        for yes in ["gzip", "GZIP", "br, gzip;q=0.5", "*", "deflate, x-gzip", "gzip;q=1.0, *;q=0"] {
            assert!(accepts(yes), "{yes}");
        }
        for no in ["", "br", "gzip;q=0", "gzip; q=0.0, *", "identity", "*;q=0", "gzip;q=x"] {
            assert!(!accepts(no), "{no}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }
}
