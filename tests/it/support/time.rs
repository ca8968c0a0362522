//! Times and durations of the JSON.

use std::time::{Duration, Instant};

use serde_json::Value;

/// Waits for what nothing tells of but a look.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + super::DEADLINE;
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Seconds since 1970 of an RFC 3339 time in UTC, such as `2026-08-01T09:30:00.123456789Z`.
#[track_caller]
pub(crate) fn seconds(time: &Value) -> f64 {
    let text = time.as_str().unwrap_or_else(|| panic!("no time: {time}"));
    parse(text).unwrap_or_else(|| panic!("no RFC 3339 time: {text}"))
}

/// From one time to another.
#[track_caller]
pub(crate) fn seconds_between(earlier: &Value, later: &Value) -> f64 {
    seconds(later) - seconds(earlier)
}

fn parse(text: &str) -> Option<f64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    // Days from civil: years begin in March, eras have 400 years.
    let (year, month) = if month > 2.0 { (year, month - 3.0) } else { (year - 1.0, month + 9.0) };
    let days = (365.25 * year).floor() - (year / 100.0).floor()
        + (year / 400.0).floor()
        + ((153.0 * month + 2.0) / 5.0).floor()
        + day
        - 719_469.0;
    Some(((days * 24.0 + hour) * 60.0 + minute) * 60.0 + second)
}

fn numbers(text: &str, separator: char) -> Option<[f64; 3]> {
    let numbers: Vec<f64> = text.split(separator).map_while(|part| part.parse().ok()).collect();
    numbers.try_into().ok()
}

#[test]
fn a_time_is_read_as_it_is_written() {
    for (text, is) in [
        ("1970-01-01T00:00:00Z", 0.0),
        ("2000-02-29T12:00:00.5Z", 951_825_600.5),
        ("2026-08-01T16:10:00.25Z", 1_785_600_600.25),
    ] {
        assert_eq!(parse(text), Some(is), "{text}");
    }
    assert_eq!(parse("2026-08-01 16:10:00Z"), None);
}
