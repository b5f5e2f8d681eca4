//! Reads single fields of CBOR maps.

use minicbor::{Decoder, data::Type, decode::Error as DecodeError};

/// Finds a field of the map at the decoder. Returns a decoder at its value, or nothing if the map
/// does not have it.
///
/// # Errors
/// The decoder is not at a map, or the map cannot be read up to the field.
pub(super) fn field<'a>(map: &Decoder<'a>, name: &str) -> Result<Option<Decoder<'a>>, DecodeError> {
    let mut d = map.clone();
    let mut left = d.map()?;
    loop {
        match &mut left {
            Some(0) => return Ok(None),
            Some(n) => *n -= 1,
            None if d.datatype()? == Type::Break => return Ok(None),
            None => {}
        }
        if d.str()? == name {
            return Ok(Some(d));
        }
        d.skip()?;
    }
}

/// Like [`field`], for a text. Nothing if the value is not a text.
pub(super) fn text<'a>(map: &Decoder<'a>, name: &str) -> Option<&'a str> {
    field(map, name).ok().flatten()?.str().ok()
}
