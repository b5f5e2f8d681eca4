//! Times in the file of tokens, which serde writes and reads as RFC 3339 texts.

use std::time::SystemTime;

use serde::{Deserialize, Deserializer, Serializer, de::Error};

pub(super) fn serialize<S: Serializer>(at: &SystemTime, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(&humantime::format_rfc3339_seconds(*at))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<SystemTime, D::Error> {
    let text = String::deserialize(d)?;
    humantime::parse_rfc3339_weak(&text).map_err(|_| {
        D::Error::custom(format!(
            "{text:?} is not a time in RFC 3339; expected one such as \"2027-01-31T12:00:00Z\""
        ))
    })
}

pub(super) fn serialize_optional<S: Serializer>(
    at: &Option<SystemTime>,
    s: S,
) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => serialize(at, s),
        None => s.serialize_none(),
    }
}

pub(super) fn deserialize_optional<'de, D: Deserializer<'de>>(
    d: D,
) -> Result<Option<SystemTime>, D::Error> {
    deserialize(d).map(Some)
}
