//! `google.protobuf.Timestamp`, whose JSON always has the same width.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

const NANOS: i64 = 1_000_000_000;

/// A time on the wall clock, UTC.
///
/// The type that comes with pbjson writes as many digits as the nanoseconds happen to need, and `+00:00`; this
/// one always writes nine digits and `Z`, so that times line up and sort as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Message)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds of the second: 0 to 999,999,999.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Timestamp {
    /// The time that is `nanos` nanoseconds after 1970-01-01T00:00:00Z.
    pub fn from_unix_nanos(nanos: i64) -> Self {
        Self { seconds: nanos.div_euclid(NANOS), nanos: nanos.rem_euclid(NANOS) as i32 }
    }

    /// Nanoseconds since 1970-01-01T00:00:00Z, as far as 64 bits reach (the years 1677 to 2262).
    pub fn unix_nanos(self) -> i64 {
        self.seconds.saturating_mul(NANOS).saturating_add(self.nanos.into())
    }

    fn civil(self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp(self.seconds, u32::try_from(self.nanos).ok()?)
    }
}

/// RFC 3339 with nine digits; a time that no calendar has is written as seconds.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.civil() {
            Some(time) => f.write_str(&time.to_rfc3339_opts(SecondsFormat::Nanos, true)),
            None => write!(f, "@{}", self.seconds),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let time = self.civil().ok_or_else(|| ser::Error::custom("time out of range"))?;
        serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Nanos, true))
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = DateTime::parse_from_rfc3339(&text).map_err(de::Error::custom)?;
        Ok(Self { seconds: time.timestamp(), nanos: time.timestamp_subsec_nanos() as i32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_always_has_nine_digits_and_a_z() {
        for (nanos, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (1_792_000_000_120_000_000, "2026-10-14T17:46:40.120000000Z"),
            (-1, "1969-12-31T23:59:59.999999999Z"),
        ] {
            let time = Timestamp::from_unix_nanos(nanos);

            assert_eq!(time.to_string(), text);
            assert_eq!(serde_json::to_string(&time).unwrap(), format!("{text:?}"));
            assert_eq!(serde_json::from_str::<Timestamp>(&format!("{text:?}")).unwrap(), time);
            assert_eq!(time.unix_nanos(), nanos);
        }
    }

    #[test]
    fn an_offset_is_understood() {
        let time: Timestamp = serde_json::from_str("\"1970-01-01T02:00:01.5+02:00\"").unwrap();

        assert_eq!(time, Timestamp { seconds: 1, nanos: 500_000_000 });
    }
}
