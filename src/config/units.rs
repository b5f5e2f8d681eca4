//! Durations and sizes as the config file writes them.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time: `"20ms"`, `"5s"`, `"10m"`, `"30d"`, or several together, `"1h 30m"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Duration);

impl Time {
    /// So many seconds.
    pub const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = text(deserializer, r#"a duration in quotes, such as "20ms", "5s" or "10m""#)?;
        // humantime: the crate that most Rust daemons read durations with.
        match humantime::parse_duration(&text) {
            Ok(duration) if !duration.is_zero() => Ok(Self(duration)),
            _ => Err(de::Error::custom(format!(
                r#"{text:?} is no duration above zero: expected one such as "20ms", "5s" or "10m""#
            ))),
        }
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// A number of bytes: `"8MiB"` (powers of 1,024), `"100MB"` (powers of 1,000), `"4096B"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// So many MiB.
    pub const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// As a length of something in memory.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = text(deserializer, r#"a size in quotes, such as "8MiB" or "100MB""#)?;
        match text.parse::<bytesize::ByteSize>() {
            Ok(size) if size.as_u64() > 0 => Ok(Self(size.as_u64())),
            _ => Err(de::Error::custom(format!(
                r#"{text:?} is no size above zero: expected one such as "8MiB" or "100MB""#
            ))),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Size {
    /// The largest unit that divides it, so that nothing is rounded.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 6] = [
            (1 << 30, "GiB"),
            (1_000_000_000, "GB"),
            (1 << 20, "MiB"),
            (1_000_000, "MB"),
            (1 << 10, "KiB"),
            (1_000, "kB"),
        ];
        match UNITS.iter().find(|(unit, _)| self.0 >= *unit && self.0.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// A share of the machine's memory, `"70%"`, or a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum MemoryLimit {
    Percent(u8),
    Bytes(Size),
}

impl<'de> Deserialize<'de> for MemoryLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text =
            text(deserializer, r#"a share in quotes, such as "70%", or a size, such as "2GiB""#)?;
        let limit = match text.strip_suffix('%') {
            Some(share) => {
                share.trim().parse().ok().filter(|p| (1..=100).contains(p)).map(Self::Percent)
            }
            None => {
                text.parse::<bytesize::ByteSize>().ok().map(|size| Self::Bytes(Size(size.as_u64())))
            }
        };
        limit.filter(|limit| *limit != Self::Bytes(Size(0))).ok_or_else(|| {
            de::Error::custom(format!(
                r#"{text:?} is no share of memory: expected "1%" to "100%", or a size above zero, such as "2GiB""#
            ))
        })
    }
}

impl Serialize for MemoryLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Percent(share) => serializer.collect_str(&format_args!("{share}%")),
            Self::Bytes(size) => size.serialize(serializer),
        }
    }
}

fn text<'de, D: Deserializer<'de>>(
    deserializer: D,
    expected: &'static str,
) -> Result<String, D::Error> {
    struct Text(&'static str);
    impl de::Visitor<'_> for Text {
        type Value = String;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
    }
    deserializer.deserialize_str(Text(expected))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, String> {
        T::deserialize(toml::Value::String(text.to_owned())).map_err(|e| e.to_string())
    }

    proptest! {
        #[test]
        fn a_size_is_read_as_it_is_written(bytes in 1..=u64::MAX >> 12) {
            prop_assert_eq!(read::<Size>(&Size(bytes).to_string()), Ok(Size(bytes)));
        }

        #[test]
        fn a_duration_is_read_as_it_is_written(ms in 1..=u64::MAX >> 24) {
            let time = Time(Duration::from_millis(ms));
            prop_assert_eq!(read::<Time>(&time.to_string()), Ok(time));
        }
    }

    #[test]
    fn units_of_the_shipped_file() {
        assert_eq!(read("8MiB"), Ok(Size::mib(8)));
        assert_eq!(read("100MB"), Ok(Size(100_000_000)));
        assert_eq!(read("20ms"), Ok(Time(Duration::from_millis(20))));
        assert_eq!(read("10m"), Ok(Time::secs(600)));
        assert!(read::<Time>("0s").is_err());
        assert!(read::<Size>("8 apples").is_err());
    }
}
