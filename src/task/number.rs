//! Numbers, durations, sizes and flags as a task file writes them (T6).
//!
//! A number may come as a number or as a text that holds one; the caller passes the text of
//! either. Decimal fractions are exact: no value passes through a float but the one that is one.

use std::time::Duration;

use super::validate::MAX_DURATION;

/// Why a text is not the value that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Wrong {
    /// It is something else.
    #[error("is not {0}")]
    Not(&'static str),
    /// It is below zero.
    #[error("is negative")]
    Negative,
    /// It has a part behind the point.
    #[error("is not a whole number")]
    Fraction,
    /// It might be octal, and is not read as such.
    #[error("begins with a zero, which could mean octal: write that as `0o…`, else leave it out")]
    LeadingZero,
    /// It is beyond the range.
    #[error("is more than {0}")]
    TooLarge(u64),
    /// It is longer than any sensible number.
    #[error("has more than {DIGITS_MAX} digits")]
    TooLong,
}

/// Most significant digits of a number: with any unit it fits 128 bits.
const DIGITS_MAX: usize = 24;
/// Powers of ten beyond which a number is 0 or too large for everything here.
const EXPONENT_MAX: i32 = 60;

/// `digits` times ten to the power of `exponent`.
#[derive(Debug, Clone, Copy)]
struct Decimal {
    negative: bool,
    digits: u128,
    exponent: i32,
}

impl Decimal {
    /// Reads `1`, `-1.5`, `.5`, `1e3`; `None` if it is no number.
    fn parse(text: &str) -> Option<Result<Self, Wrong>> {
        let (negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, self::exponent(exponent)?),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.len() + fraction.len() == 0 || !all_digits(whole) || !all_digits(fraction) {
            return None;
        }
        if whole.len() > 1 && whole.starts_with('0') {
            return Some(Err(Wrong::LeadingZero));
        }
        let fraction = fraction.trim_end_matches('0');
        let digits = format!("{whole}{fraction}");
        let digits = digits.trim_start_matches('0');
        if digits.len() > DIGITS_MAX || fraction.len() > DIGITS_MAX {
            return Some(Err(Wrong::TooLong));
        }
        let shift = i32::try_from(fraction.len()).ok()?;
        let digits = if digits.is_empty() { 0 } else { digits.parse().ok()? };
        Some(Ok(Self { negative, digits, exponent: exponent - shift }))
    }

    /// The number of `unit`s as a whole number, cut off, and whether nothing was cut off.
    fn times(self, unit: u64, max: u64) -> Result<(u64, bool), Wrong> {
        if self.digits == 0 {
            return Ok((0, true));
        }
        if self.negative {
            return Err(Wrong::Negative);
        }
        let product = self.digits * u128::from(unit);
        let power = 10u128.checked_pow(self.exponent.unsigned_abs());
        let (value, exact) = match (self.exponent < 0, power) {
            (false, power) => (power.and_then(|power| product.checked_mul(power)), true),
            (true, Some(power)) => (Some(product / power), product.is_multiple_of(power)),
            (true, None) => (Some(0), false),
        };
        let value = value.and_then(|value| u64::try_from(value).ok());
        value
            .filter(|&value| value <= max)
            .map(|value| (value, exact))
            .ok_or(Wrong::TooLarge(max / unit))
    }
}

/// The power of ten behind an `e`.
fn exponent(text: &str) -> Option<i32> {
    let exponent: i32 = text.parse().ok()?;
    (-EXPONENT_MAX..=EXPONENT_MAX).contains(&exponent).then_some(exponent)
}

/// A whole number from 0 to `max`; also `0x1f`, `0o17` and numbers whose fraction is zero.
pub(super) fn whole(text: &str, max: u64) -> Result<u64, Wrong> {
    let based = text
        .strip_prefix("0x")
        .map(|digits| (digits, 16))
        .or_else(|| text.strip_prefix("0o").map(|digits| (digits, 8)));
    if let Some((digits, radix)) = based {
        if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
            return Err(Wrong::Not("a number"));
        }
        let value = u64::from_str_radix(digits, radix).ok();
        return value.filter(|&value| value <= max).ok_or(Wrong::TooLarge(max));
    }
    let decimal = Decimal::parse(text).ok_or(Wrong::Not("a number"))??;
    match decimal.times(1, max)? {
        (value, true) => Ok(value),
        (_, false) => Err(Wrong::Fraction),
    }
}

/// A flag: any number where the file has a number, or `true`, `false`, `1`, `0` in any case.
pub(super) fn flag(text: &str, plain: bool) -> Result<bool, Wrong> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        number if plain => match Decimal::parse(number) {
            Some(decimal) => Ok(decimal?.digits != 0),
            None => Err(Wrong::Not("a flag")),
        },
        _ => Err(Wrong::Not("a flag")),
    }
}

/// A number that may have a fraction.
pub(super) fn real(text: &str) -> Result<f64, Wrong> {
    let decimal = Decimal::parse(text).ok_or(Wrong::Not("a number"))??;
    if decimal.negative && decimal.digits != 0 {
        return Err(Wrong::Negative);
    }
    text.parse().map_err(|_| Wrong::Not("a number"))
}

/// Nanoseconds of the units of durations; longer suffixes first.
const TIME_UNITS: [(&str, u64); 4] =
    [("ms", 1_000_000), ("s", 1_000_000_000), ("m", 60_000_000_000), ("h", 3_600_000_000_000)];

/// Seconds, or a number with `ms`, `s`, `m` or `h`; what is below a nanosecond is cut off.
pub(super) fn duration(text: &str) -> Result<Duration, Wrong> {
    let (number, unit) = TIME_UNITS
        .iter()
        .find_map(|&(suffix, unit)| text.strip_suffix(suffix).map(|number| (number, unit)))
        .unwrap_or((text, 1_000_000_000));
    let decimal = Decimal::parse(number).ok_or(Wrong::Not("a duration"))??;
    let max = u64::try_from(MAX_DURATION.as_nanos()).unwrap_or(u64::MAX);
    decimal.times(unit, max).map(|(nanos, _)| Duration::from_nanos(nanos))
}

/// Bytes of the units of sizes: all are powers of 1024 (T5).
const SIZE_UNITS: [(&str, u64); 9] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1 << 10),
    ("mb", 1 << 20),
    ("gb", 1 << 30),
    ("tb", 1 << 40),
    ("b", 1),
];

/// Bytes, or a number with a unit, in any case; what is below a byte is cut off where there is a unit.
pub(super) fn size(text: &str) -> Result<u64, Wrong> {
    let lower = text.to_ascii_lowercase();
    let (number, unit) = SIZE_UNITS
        .iter()
        .find_map(|&(suffix, unit)| lower.strip_suffix(suffix).map(|number| (number, unit)))
        .unwrap_or((&lower, 1));
    let decimal = Decimal::parse(number).ok_or(Wrong::Not("a size"))??;
    match decimal.times(unit, u64::MAX)? {
        (_, false) if unit == 1 => Err(Wrong::Fraction),
        (bytes, _) => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const U32: u64 = u32::MAX as u64;

    /// T6: numeric strings; dewar: a whole number that is given a fraction is an error.
    #[test]
    fn whole_numbers() {
        for (text, value) in [
            ("0", 0),
            ("-0", 0),
            ("+7", 7),
            ("4294967295", U32),
            ("2.0", 2),
            ("1e3", 1000),
            ("0x1F", 31),
            ("0o755", 493),
        ] {
            assert_eq!(whole(text, U32), Ok(value), "{text}");
        }
        for (text, wrong) in [
            ("2.7", Wrong::Fraction),
            ("-1", Wrong::Negative),
            ("4294967296", Wrong::TooLarge(U32)),
            ("1e60", Wrong::TooLarge(U32)),
            ("1e-60", Wrong::Fraction),
            ("0755", Wrong::LeadingZero),
            ("0xFFFFFFFFFFFFFFFFF", Wrong::TooLarge(U32)),
            (&"9".repeat(25), Wrong::TooLong),
            ("", Wrong::Not("a number")),
            ("0x", Wrong::Not("a number")),
            ("0x+1", Wrong::Not("a number")),
            (".", Wrong::Not("a number")),
            ("1e99", Wrong::Not("a number")),
            ("inf", Wrong::Not("a number")),
            (" 1", Wrong::Not("a number")),
            ("1_000", Wrong::Not("a number")),
            ("١", Wrong::Not("a number")),
        ] {
            assert_eq!(whole(text, U32), Err(wrong), "{text}");
        }
    }

    /// T6: any number, and four texts; nothing else.
    #[test]
    fn flags() {
        for text in ["true", "TRUE", "True", "1"] {
            assert_eq!(flag(text, true), Ok(true), "{text}");
            assert_eq!(flag(text, false), Ok(true), "{text}");
        }
        for text in ["false", "fAlse", "0"] {
            assert_eq!(flag(text, true), Ok(false), "{text}");
            assert_eq!(flag(text, false), Ok(false), "{text}");
        }
        assert_eq!(flag("2", true), Ok(true));
        assert_eq!(flag("0.0", true), Ok(false));
        assert_eq!(flag("-1", true), Ok(true));
        for (text, plain) in [("2", false), ("yes", true), ("no", true), ("", true), ("on", false)]
        {
            assert_eq!(flag(text, plain), Err(Wrong::Not("a flag")), "{text}");
        }
    }

    /// T6: dewar reads durations.
    #[test]
    fn durations() {
        for (text, duration) in [
            ("5", Duration::from_secs(5)),
            ("0", Duration::ZERO),
            ("0.25", Duration::from_millis(250)),
            ("500ms", Duration::from_millis(500)),
            ("1.5s", Duration::from_millis(1500)),
            ("2m", Duration::from_secs(120)),
            ("1h", Duration::from_secs(3600)),
            ("0.0000000019", Duration::from_nanos(1)),
            ("1000000000", MAX_DURATION),
        ] {
            assert_eq!(super::duration(text), Ok(duration), "{text}");
        }
        for (text, wrong) in [
            ("-1", Wrong::Negative),
            ("-5ms", Wrong::Negative),
            ("1000000001", Wrong::TooLarge(1_000_000_000)),
            ("300000h", Wrong::TooLarge(277_777)),
            ("ms", Wrong::Not("a duration")),
            ("5 s", Wrong::Not("a duration")),
            ("1d", Wrong::Not("a duration")),
            ("1m30s", Wrong::Not("a duration")),
        ] {
            assert_eq!(super::duration(text), Err(wrong), "{text}");
        }
    }

    /// T5: KB, MB, GB, TB are powers of 1024.
    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("128", 128),
            ("128B", 128),
            ("1KB", 1024),
            ("128MB", 128 << 20),
            ("1GiB", 1 << 30),
            ("1.5gb", 3 << 29),
            ("2tib", 2 << 40),
            ("0.1KB", 102),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for (text, wrong) in [
            ("-1MB", Wrong::Negative),
            ("1.5", Wrong::Fraction),
            ("1.5B", Wrong::Fraction),
            ("18446744073709551616", Wrong::TooLarge(u64::MAX)),
            ("99999999999TB", Wrong::TooLarge(u64::MAX >> 40)),
            ("1PB", Wrong::Not("a size")),
            ("1 MB", Wrong::Not("a size")),
            ("MB", Wrong::Not("a size")),
        ] {
            assert_eq!(size(text), Err(wrong), "{text}");
        }
    }

    #[test]
    fn reals() {
        assert_eq!(real("1.5"), Ok(1.5));
        assert_eq!(real("2e-1"), Ok(0.2));
        assert_eq!(real("-0.5"), Err(Wrong::Negative));
        assert_eq!(real("nan"), Err(Wrong::Not("a number")));
        assert_eq!(real(".inf"), Err(Wrong::Not("a number")));
    }

    proptest! {
        #[test]
        fn any_text_gives_an_answer(text in "[-+0-9.eExmsKMGiBb]{0,60}|.{0,20}") {
            let _ = (whole(&text, U32), flag(&text, true), real(&text));
            let _ = (duration(&text), size(&text));
        }

        /// What a unit means does not depend on how the number is written.
        #[test]
        fn milliseconds_are_thousandths(millis in 0u64..1_000_000_000) {
            let expected = Ok(Duration::from_millis(millis));
            prop_assert_eq!(duration(&format!("{millis}ms")), expected.clone());
            let seconds = format!("{}.{:03}", millis / 1000, millis % 1000);
            prop_assert_eq!(duration(&seconds), expected);
        }
    }
}
