//! Signals by name and by number: signal(7).

use nix::sys::signal::Signal;

/// Highest number of a signal.
const LAST: i32 = 64;

/// First and last real-time signal that the C libraries leave to programs.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=LAST;

/// A text that names no signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no signal: expected a name such as HUP or SIGUSR1, RTMIN+1, or a number from 1 to 64"
)]
pub struct UnknownSignal(pub String);

/// The number of the signal `text`: a name, with or without `SIG`, in whatever case; `RTMIN`, `RTMIN+n`, `RTMAX-n`, `RTMAX`; or a
/// number from 1 to 64.
///
/// # Errors
///
/// [`UnknownSignal`].
pub fn parse(text: &str) -> Result<i32, UnknownSignal> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = || format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32);
    let found = known().or_else(|| real_time(name)).or_else(|| number(text));
    found.ok_or_else(|| UnknownSignal(text.to_owned()))
}

fn real_time(name: &str) -> Option<i32> {
    let above = |rest: &str| REAL_TIME.start().checked_add(offset(rest, '+')?);
    let below = |rest: &str| REAL_TIME.end().checked_sub(offset(rest, '-')?);
    let signal = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => above(rest),
        (_, Some(rest)) => below(rest),
        _ => None,
    };
    signal.filter(|signal| REAL_TIME.contains(signal))
}

/// What follows `sign`; nothing is 0.
fn offset(rest: &str, sign: char) -> Option<i32> {
    if rest.is_empty() { Some(0) } else { digits(rest.strip_prefix(sign)?) }
}

fn number(text: &str) -> Option<i32> {
    digits(text).filter(|signal| (1..=LAST).contains(signal))
}

/// Digits alone: no sign, no blank.
fn digits(text: &str) -> Option<i32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_goes_by_name_or_number() {
        for (text, signal) in [
            ("HUP", libc::SIGHUP),
            ("SIGHUP", libc::SIGHUP),
            ("sigusr1", libc::SIGUSR1),
            ("Term", libc::SIGTERM),
            ("9", libc::SIGKILL),
            ("64", 64),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("rtmax-1", 63),
            ("RTMAX", 64),
        ] {
            assert_eq!(parse(text), Ok(signal), "{text}");
        }
    }

    #[test]
    fn what_is_told_of_a_signal_names_it() {
        for signal in (1..=31).chain(REAL_TIME) {
            let name = crate::view::signal_name(signal as u8);
            assert_eq!(parse(&name), Ok(signal), "{name}");
        }
    }

    #[test]
    fn what_is_no_signal_is_refused_and_named() {
        for text in [
            "",
            "0",
            "65",
            "-9",
            "+9",
            " 9",
            "9.",
            "SIG",
            "SIGSIGHUP",
            "SIG9",
            "HUPP",
            "RTMIN+31",
            "RTMIN-1",
            "RTMAX+1",
            "RTMIN+",
            "RTMIN+-1",
            "99999999999999999999",
            "H\0UP",
        ] {
            assert_eq!(parse(text), Err(UnknownSignal(text.to_owned())), "{text:?}");
        }
        assert_eq!(
            parse("FOO").unwrap_err().to_string(),
            "\"FOO\" is no signal: expected a name such as HUP or SIGUSR1, RTMIN+1, or a number from 1 to 64"
        );
    }
}
