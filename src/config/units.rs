//! Durations, sizes, rates and networks, as they are written in the config file.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

// ipnet: the crate that most network code in Rust uses.
use ipnet::IpNet;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A duration: `"20ms"`, `"5s"`, `"10m"`, `"30d"`, or a sum, `"1h 30m"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Duration);

impl Time {
    /// The longest duration: a longer one is a mistake, and could not be added to a point in time.
    const MAX: Duration = Duration::from_secs(365 * 24 * 3600);
    const MIN: Duration = Duration::from_millis(1);

    /// Returns a duration in seconds.
    pub const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // humantime: the crate that most daemons in Rust use.
        match humantime::parse_duration(&text) {
            Ok(duration) if (Self::MIN..=Self::MAX).contains(&duration) => Ok(Self(duration)),
            _ => Err(de::Error::custom(format!(
                "{text:?} is not a duration between \"1ms\" and \"365d\"; expected one such as \
                 \"20ms\", \"5s\" or \"10m\""
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
    /// Returns a size in MiB.
    pub const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// Parses a size above zero with a unit. A number alone is refused, since it says bytes where
    /// people mean megabytes.
    fn parse(text: &str) -> Option<Self> {
        let size = text.parse::<bytesize::ByteSize>().ok()?.as_u64();
        (size > 0 && text.ends_with(|c: char| c.is_ascii_alphabetic())).then_some(Self(size))
    }

    /// Returns the size as the length of a buffer.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            de::Error::custom(format!(
                "{text:?} is not a size above zero with a unit; expected one such as \"8MiB\" or \
                 \"100MB\""
            ))
        })
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Size {
    /// Uses the largest unit that divides the size, so that nothing is rounded.
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
        let text = String::deserialize(deserializer)?;
        let limit = match text.strip_suffix('%') {
            Some(share) => {
                share.trim().parse().ok().filter(|p| (1..=100).contains(p)).map(Self::Percent)
            }
            None => Size::parse(&text).map(Self::Bytes),
        };
        limit.ok_or_else(|| {
            de::Error::custom(format!(
                "{text:?} is not a share of memory; expected \"1%\" to \"100%\", or a size with a \
                 unit, such as \"2GiB\""
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

/// A share of one processor core, `"25%"`, or of several, `"200%"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(u32);

impl Share {
    /// The period over which usage is averaged.
    pub const OVER: Duration = Duration::from_secs(10);
    const MAX: u32 = 100_000;

    /// Returns a share in percent.
    pub const fn percent(percent: u32) -> Self {
        Self(percent)
    }

    /// Returns the percentage.
    pub fn as_percent(self) -> u32 {
        self.0
    }

    /// Returns the share as a rate of nanoseconds of processor time.
    pub fn as_rate(self) -> Rate {
        let nanos = u64::try_from(Self::OVER.as_nanos()).unwrap_or(u64::MAX) / 100;
        Rate { count: nanos.saturating_mul(u64::from(self.0)), per: Self::OVER, is_bytes: false }
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let share = text.strip_suffix('%').and_then(|share| share.trim().parse().ok());
        share.filter(|share| (1..=Self::MAX).contains(share)).map(Self).ok_or_else(|| {
            de::Error::custom(format!(
                "{text:?} is not a share of a processor core; expected one such as \"25%\", or \
                 \"200%\" for two cores"
            ))
        })
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// A rate: `"20/s"`, `"600/m"`, `"1000/h"`, or with a size instead of a number, `"20MiB/s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The amount.
    pub count: u64,
    /// The period.
    pub per: Duration,
    is_bytes: bool,
}

const TIMES: [(&str, Duration); 3] = [
    ("s", Duration::from_secs(1)),
    ("m", Duration::from_secs(60)),
    ("h", Duration::from_secs(3600)),
];

impl Rate {
    /// Returns a rate per second.
    pub const fn per_second(count: u64) -> Self {
        Self { count, per: Duration::from_secs(1), is_bytes: false }
    }

    /// Returns a rate per minute.
    pub const fn per_minute(count: u64) -> Self {
        Self { count, per: Duration::from_secs(60), is_bytes: false }
    }

    /// Returns a rate per hour.
    pub const fn per_hour(count: u64) -> Self {
        Self { count, per: Duration::from_secs(3600), is_bytes: false }
    }

    /// Returns a rate of bytes.
    pub const fn bytes_per(size: Size, per: Duration) -> Self {
        Self { count: size.0, per, is_bytes: true }
    }

    fn parse(text: &str) -> Option<Self> {
        let (amount, time) = text.split_once('/')?;
        let (_, per) = TIMES.into_iter().find(|(name, _)| *name == time.trim())?;
        let amount = amount.trim();
        let (count, is_bytes) = match amount.replace('_', "").parse() {
            Ok(count) => (count, false),
            Err(_) => (Size::parse(amount)?.0, true),
        };
        (count > 0).then_some(Self { count, per, is_bytes })
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            de::Error::custom(format!(
                "{text:?} is not a rate above zero; expected one such as \"20/s\", \"600/m\", \
                 \"1000/h\" or \"20MiB/s\""
            ))
        })
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = TIMES.iter().find(|(_, per)| *per == self.per).map_or("s", |(name, _)| name);
        if self.is_bytes {
            write!(f, "{}/{time}", Size(self.count))
        } else {
            write!(f, "{}/{time}", self.count)
        }
    }
}

/// Deserializes addresses with ports.
pub(super) fn listen<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<SocketAddr>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let parse = |text: &String| {
        text.parse().map_err(|_| {
            de::Error::custom(format!(
                "{text:?} is not an IP address with a port; expected one such as \
                 \"127.0.0.1:8081\" or \"[::1]:8081\""
            ))
        })
    };
    texts.iter().map(parse).collect()
}

/// A network, `"10.0.0.0/8"`, or one address, `"::1"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpNet);

impl Network {
    /// Whether an address is in the network. An IPv4-mapped IPv6 address counts as the IPv4
    /// address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let network = text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        network.map(Self).ok_or_else(|| {
            de::Error::custom(format!(
                "{text:?} is not a network; expected one such as \"10.0.0.0/8\", or an address \
                 such as \"192.0.2.1\""
            ))
        })
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            self.0.addr().serialize(serializer)
        } else {
            serializer.collect_str(&self.0)
        }
    }
}

impl From<IpNet> for Network {
    fn from(network: IpNet) -> Self {
        Self(network)
    }
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
        fn a_size_is_parsed_from_its_text_form(bytes in 1..=u64::MAX >> 12) {
            prop_assert_eq!(read::<Size>(&Size(bytes).to_string()), Ok(Size(bytes)));
        }

        #[test]
        fn a_duration_is_parsed_from_its_text_form(ms in 1..=365 * 24 * 3_600_000u64) {
            let time = Time(Duration::from_millis(ms));
            prop_assert_eq!(read::<Time>(&time.to_string()), Ok(time));
        }
    }

    #[test]
    fn rates_shares_and_networks_are_parsed_from_their_text_forms() {
        for text in ["20/s", "600/m", "1000/h", "20MiB/s", "1500B/s"] {
            assert_eq!(read::<Rate>(text).expect(text).to_string(), text);
        }
        assert_eq!(read::<Share>("25%").map(Share::as_percent), Ok(25));
        assert!(["0%", "25", "-1%", "%"].iter().all(|text| read::<Share>(text).is_err()));
        assert_eq!(read("10_000/h"), Ok(Rate::per_hour(10_000)));
        for bad in ["", "20", "0/s", "20/d", "/s", "-1/s", "x/s", "20/s/s"] {
            assert!(read::<Rate>(bad).is_err(), "{bad}");
        }
        for text in ["10.0.0.0/8", "::1", "127.0.0.1", "2001:db8::/32"] {
            let network = read::<Network>(text).expect(text);
            assert_eq!(toml::Value::try_from(network).expect("writes").as_str(), Some(text));
        }
        let loopback = read::<Network>("127.0.0.0/8").expect("a network");
        assert!(
            loopback.contains([127, 9, 9, 9].into()) && !loopback.contains([10, 0, 0, 1].into())
        );
        assert!(loopback.contains("::ffff:127.0.0.1".parse().expect("an address")));
        assert!(read::<Network>("10.0.0.0/33").is_err());
    }

    #[test]
    fn values_of_the_shipped_file_are_parsed() {
        assert_eq!(read("8MiB"), Ok(Size::mib(8)));
        assert_eq!(read("100MB"), Ok(Size(100_000_000)));
        assert_eq!(read("20ms"), Ok(Time(Duration::from_millis(20))));
        assert_eq!(read("10m"), Ok(Time::secs(600)));
        assert!(read::<Size>("8 apples").is_err());
    }

    #[test]
    fn absurd_values_are_refused() {
        for text in ["0s", "1ns", "366d", "99999999999d", "99999999999999999999d", "5"] {
            assert!(read::<Time>(text).is_err(), "{text}");
        }
        for text in ["0B", "70", "-1MiB", "1.5", ""] {
            assert!(read::<Size>(text).is_err(), "{text}");
        }
        for text in ["70", "0%", "101%", "0B", "%"] {
            assert!(read::<MemoryLimit>(text).is_err(), "{text}");
        }
        assert_eq!(read("2GiB"), Ok(MemoryLimit::Bytes(Size::mib(2048))));
    }
}
