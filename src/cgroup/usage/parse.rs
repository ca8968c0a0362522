//! The formats of the kernel's files (cgroup-v2.rst, "Format"; accounting/psi.rst). Pure.
//!
//! Kernels add keys: what is not known is passed over.

use pbjson_types::Duration;

use crate::proto::{IoDevice, Pressure, Stall};

/// The value of `key` in lines of `key value`.
pub(in crate::cgroup) fn keyed(text: &[u8], key: &str) -> Option<u64> {
    let [value] = all_keyed(text, [key]);
    value
}

/// The value of each of `keys` in lines of `key value`, in one pass: `memory.stat` has 60 lines, and is read once a second of
/// each task.
pub(super) fn all_keyed<const N: usize>(text: &[u8], keys: [&str; N]) -> [Option<u64>; N] {
    let mut values = [None; N];
    let mut left = N;
    for line in lines(text) {
        let Some(end) = line.iter().position(|&byte| byte == b' ') else { continue };
        let Some(found) = keys.iter().position(|key| key.as_bytes() == &line[..end]) else {
            continue;
        };
        values[found] = number(&line[end + 1..]);
        left -= 1;
        if left == 0 {
            break;
        }
    }
    values
}

/// A decimal number that fits.
pub(in crate::cgroup) fn number(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii_end();
    // `parse` would take a sign.
    if !text.first()?.is_ascii_digit() {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `io.stat`: lines of `MAJOR:MINOR key=value key=value`.
///
/// Kernels before 6.5 may put the number of a device that has no figures in front of the next one, in the same line.
pub(super) fn io_devices(text: &[u8]) -> Vec<IoDevice> {
    let mut devices: Vec<IoDevice> = Vec::new();
    for line in lines(text) {
        let mut device: Option<IoDevice> = None;
        for word in words(line) {
            match pair(word) {
                Some((key, value)) => {
                    if let Some(device) = &mut device {
                        set_figure(device, key, number(value));
                    }
                }
                None => device = device_number(word).or(device),
            }
        }
        devices.extend(device.filter(has_figures));
    }
    devices
}

/// `MAJOR:MINOR`.
fn device_number(word: &[u8]) -> Option<IoDevice> {
    let (major, minor) = std::str::from_utf8(word).ok()?.split_once(':')?;
    let is_number = |text: &str| text.parse::<u32>().is_ok();
    let device = format!("{major}:{minor}");
    (is_number(major) && is_number(minor)).then(|| IoDevice { device, ..IoDevice::default() })
}

fn set_figure(device: &mut IoDevice, key: &[u8], value: Option<u64>) {
    let figure = match key {
        b"rbytes" => &mut device.read_bytes,
        b"wbytes" => &mut device.write_bytes,
        b"rios" => &mut device.reads,
        b"wios" => &mut device.writes,
        b"dbytes" => &mut device.discard_bytes,
        b"dios" => &mut device.discards,
        _ => return,
    };
    *figure = value;
}

fn has_figures(device: &IoDevice) -> bool {
    let IoDevice { device: _, name: _, read_bytes, write_bytes, reads, writes, .. } = device;
    let more = [&device.discard_bytes, &device.discards];
    [read_bytes, write_bytes, reads, writes].into_iter().chain(more).any(Option::is_some)
}

/// `*.pressure`: lines of `some` and `full`, each with `avg10=PERCENT … total=MICROSECONDS`.
pub(super) fn pressure(text: &[u8]) -> Pressure {
    let stall = |kind: &[u8]| {
        let rest = lines(text).find_map(|line| line.strip_prefix(kind)?.strip_prefix(b" "))?;
        let value = |wanted: &[u8]| {
            words(rest).filter_map(pair).find_map(|(key, value)| (key == wanted).then_some(value))
        };
        Some(Stall {
            avg10: value(b"avg10").and_then(percentage),
            total: value(b"total").and_then(number).and_then(micros),
        })
    };
    Pressure { some: stall(b"some"), full: stall(b"full") }
}

fn percentage(text: &[u8]) -> Option<f64> {
    let value: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (0.0..=100.0).contains(&value).then_some(value)
}

/// Microseconds as a message; `None` beyond the 10,000 years that it allows.
pub(super) fn micros(micros: u64) -> Option<Duration> {
    const SECONDS_MAX: i64 = 315_576_000_000;
    let seconds =
        i64::try_from(micros / 1_000_000).ok().filter(|&seconds| seconds < SECONDS_MAX)?;
    let nanos = i32::try_from(micros % 1_000_000 * 1000).ok()?;
    Some(Duration { seconds, nanos })
}

/// The sum of `figures`; `None` if one is not known, or if it does not fit. No figures are a sum of 0.
pub(super) fn sum(mut figures: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    figures.try_fold(0u64, |sum, figure| sum.checked_add(figure?))
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b'\n')
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|&byte| byte == b' ').filter(|word| !word.is_empty())
}

fn pair(word: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = word.iter().position(|&byte| byte == b'=')?;
    Some((&word[..at], &word[at + 1..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_found_whole_among_unknown_ones() {
        let text = b"usage_usec 42\nuser_usec 40\nsystem_usec 2\nnice_usec 0\ncore_sched.force 7\n";

        assert_eq!(keyed(text, "usage_usec"), Some(42));
        assert_eq!(keyed(text, "system_usec"), Some(2));
        assert_eq!(keyed(text, "usage"), None);
        assert_eq!(keyed(text, "usec"), None);
    }

    #[test]
    fn keys_are_found_in_any_order_and_each_has_its_own_value() {
        let text = b"anon 4\nodd\nfile x\ninactive_file 9\nkernel 7\n";

        let values = all_keyed(text, ["kernel", "anon", "file", "nonesuch"]);

        assert_eq!(values, [Some(7), Some(4), None, None]);
    }

    #[test]
    fn an_oom_kill_is_not_mistaken_for_a_group_kill() {
        let text = b"low 0\nhigh 0\nmax 3\noom 1\noom_group_kill 1\noom_kill 5\n";

        assert_eq!(keyed(text, "oom_kill"), Some(5));
    }

    #[test]
    fn each_device_has_its_own_figures() {
        let text = b"254:0 rbytes=100 wbytes=7 rios=3 wios=1 dbytes=9 dios=2\n\
            8:16 cost.usage=3 rbytes=11 wbytes=1\n";

        let devices = io_devices(text);

        let first = IoDevice {
            device: "254:0".to_owned(),
            name: None,
            read_bytes: Some(100),
            write_bytes: Some(7),
            reads: Some(3),
            writes: Some(1),
            discard_bytes: Some(9),
            discards: Some(2),
        };
        let second = IoDevice {
            device: "8:16".to_owned(),
            read_bytes: Some(11),
            write_bytes: Some(1),
            ..IoDevice::default()
        };
        assert_eq!(devices, [first, second]);
    }

    /// What Linux 5.x and 6.1 print for devices that a cgroup has not used.
    #[test]
    fn figures_belong_to_the_last_device_that_was_named() {
        let text = b"7:1 7:0 254:0 rbytes=5 wbytes=6\n8:0 \n";

        let devices = io_devices(text);

        let told: Vec<_> = devices.iter().map(|of| (&*of.device, of.read_bytes)).collect();
        assert_eq!(told, [("254:0", Some(5))]);
    }

    #[test]
    fn pressure_is_some_and_full() {
        let text = b"some avg10=1.25 avg60=0.00 avg300=0.00 total=1500000\n\
            full avg10=0.50 avg60=0.00 avg300=0.00 total=20\n";

        let pressure = pressure(text);

        let total = |seconds, nanos| Some(Duration { seconds, nanos });
        let some = Stall { avg10: Some(1.25), total: total(1, 500_000_000) };
        let full = Stall { avg10: Some(0.5), total: total(0, 20_000) };
        assert_eq!((pressure.some, pressure.full), (Some(some), Some(full)));
    }

    /// `cpu.pressure` had no such line before Linux 5.13.
    #[test]
    fn pressure_that_is_not_told_is_absent() {
        let pressure = pressure(b"some avg10=0.00 total=0\n");

        assert!(pressure.some.is_some());
        assert_eq!(pressure.full, None);
    }

    /// attack 50: odd values lose one field, not the sample.
    #[test]
    fn a_value_that_does_not_fit_is_absent_and_the_others_are_there() {
        for value in ["18446744073709551616", "max", "-1", "+1", "", "1.5", "0x10", "1 2"] {
            let text = format!("usage_usec {value}\nuser_usec 3\n");
            assert_eq!(keyed(text.as_bytes(), "usage_usec"), None, "{value:?}");
            assert_eq!(keyed(text.as_bytes(), "user_usec"), Some(3), "{value:?}");
            let device = &io_devices(format!("1:0 rbytes={value} wbytes=1\n").as_bytes())[0];
            let read = if value == "1 2" { Some(1) } else { None };
            assert_eq!((device.read_bytes, device.write_bytes), (read, Some(1)), "{value:?}");
        }
        assert_eq!(keyed(b"usage_usec 18446744073709551615\n", "usage_usec"), Some(u64::MAX));
        for value in ["nan", "inf", "-0.01", "100.01", "", "1,5"] {
            let stall = pressure(format!("some avg10={value} total=7\n").as_bytes()).some.unwrap();
            assert_eq!(stall.avg10, None, "{value:?}");
            assert_eq!(stall.total, micros(7), "{value:?}");
        }
        assert_eq!(micros(u64::MAX), None);
        assert_eq!(sum([Some(u64::MAX), Some(1)].into_iter()), None);
        assert_eq!(sum([Some(2), None].into_iter()), None);
        assert_eq!(sum([Some(2), Some(1)].into_iter()), Some(3));
    }

    #[test]
    fn what_is_no_device_has_no_figures() {
        for text in ["rbytes=1 wbytes=2\n", "x:y rbytes=1\n", "1 rbytes=1\n", "1:2:3 rbytes=1\n"] {
            assert_eq!(io_devices(text.as_bytes()), [], "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(text: Vec<u8>) {
            keyed(&text, "usage_usec");
            io_devices(&text);
            pressure(&text);
            number(&text);
        }

        #[test]
        fn near_misses_do_not_either(text in "([0-9:]{0,4}[ =a-z]{0,3}|some |avg10=|rbytes=|\n){0,20}") {
            keyed(text.as_bytes(), "some");
            io_devices(text.as_bytes());
            pressure(text.as_bytes());
        }

        #[test]
        fn a_number_is_read_as_it_was_written(value: u64) {
            prop_assert_eq!(keyed(format!("x 1\noom_kill {value}\n").as_bytes(), "oom_kill"), Some(value));
        }
    }
}
