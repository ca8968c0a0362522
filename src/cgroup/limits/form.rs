//! When a file holds what was written to it. Pure.

use crate::task::list::NumberList;

/// How a file shows its value (cgroup-v2.rst, "Format").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As it was written.
    Word,
    /// A number of bytes, rounded down to a multiple of a number of at most `unit`, or `max`.
    Bytes {
        /// Most bytes of one step.
        unit: u64,
    },
    /// `default N`, then lines for devices; or `N`.
    Weight,
    /// A line of rates for each device, of which all four are shown.
    Rates,
    /// A list of numbers, in the kernel's own order.
    Numbers,
    /// Not known: as it was written, or as one line of several.
    Lines,
}

/// What a file says of what was written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    /// It holds it.
    Same,
    /// It holds the nearest that it can.
    Rounded,
    /// It holds something else.
    Other,
}

impl Form {
    /// What `found` says of `asked`.
    pub(super) fn judge(self, asked: &str, found: &str) -> Judgement {
        let same_or = |same, other| if same { Judgement::Same } else { other };
        match self {
            Self::Word => same_or(asked == found, Judgement::Other),
            Self::Bytes { unit } => bytes(asked, found, unit),
            Self::Weight => {
                let first = found.lines().next().unwrap_or_default();
                let held = first.strip_prefix("default ").unwrap_or(first);
                same_or(asked == held, Judgement::Other)
            }
            Self::Rates => rates(asked, found),
            Self::Numbers => {
                let parse = |text| NumberList::parse(text, u32::MAX - 1).ok();
                same_or(parse(asked) == parse(found), Judgement::Other)
            }
            Self::Lines => {
                let held = asked == found || found.lines().any(|line| line == asked);
                same_or(held, Judgement::Rounded)
            }
        }
    }
}

/// Bytes are rounded down. More than the kernel counts to (`PAGE_COUNTER_MAX`, LONG_MAX bytes) becomes `max`.
fn bytes(asked: &str, found: &str, unit: u64) -> Judgement {
    if asked == found {
        return Judgement::Same;
    }
    let Ok(asked) = asked.parse::<u64>() else { return Judgement::Other };
    let rounded = match found.parse::<u64>() {
        Ok(found) => found <= asked && asked - found < unit,
        Err(_) => found == "max" && asked >= i64::MAX as u64 - unit,
    };
    if rounded { Judgement::Rounded } else { Judgement::Other }
}

/// The device's line holds every rate that was written for it. A device without a limit has no line. Of operations the kernel
/// counts to 32 bits, and shows the rest as `max`.
fn rates(asked: &str, found: &str) -> Judgement {
    let mut asked = asked.split(' ');
    let device = asked.next().unwrap_or_default();
    let line = found.lines().find_map(|line| line.strip_prefix(device)?.strip_prefix(' '));
    let held = |key: &str| {
        let pairs = line.unwrap_or_default().split(' ');
        pairs.filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == key)
    };
    let mut judgement = Judgement::Same;
    for (key, rate) in asked.filter_map(|pair| pair.split_once('=')) {
        let held = held(key).map_or("max", |(_, rate)| rate);
        let counted_to = rate.parse::<u64>().is_ok_and(|rate| rate >= u64::from(u32::MAX));
        match held {
            held if held == rate => {}
            "max" if counted_to => judgement = Judgement::Rounded,
            _ => return Judgement::Other,
        }
    }
    judgement
}

#[cfg(test)]
mod tests {
    use super::Judgement::{Other, Rounded, Same};
    use super::*;

    #[test]
    fn bytes_are_rounded_down_to_pages_and_nothing_else() {
        let form = Form::Bytes { unit: 64 << 10 };
        for (asked, found, expected) in [
            ("4096", "4096", Same),
            ("0", "0", Same),
            ("max", "max", Same),
            ("5000", "4096", Rounded),
            ("9223372036854775807", "9223372036854771712", Rounded),
            ("18446744073709551614", "max", Rounded),
            ("5000", "8192", Other),
            ("1048576", "0", Other),
            ("1048576", "max", Other),
            ("max", "4096", Other),
            ("4096", "", Other),
        ] {
            assert_eq!(form.judge(asked, found), expected, "{asked} as {found}");
        }
    }

    #[test]
    fn a_weight_is_shown_with_or_without_its_word() {
        for (found, expected) in [
            ("default 50", Same),
            ("50", Same),
            ("default 50\n8:0 7", Same),
            ("default 100", Other),
            ("", Other),
        ] {
            assert_eq!(Form::Weight.judge("50", found), expected, "{found}");
        }
    }

    #[test]
    fn rates_are_looked_up_in_the_line_of_their_device() {
        let found =
            "8:0 rbps=1 wbps=max riops=max wiops=7\n8:16 rbps=2 wbps=max riops=max wiops=max";
        for (asked, expected) in [
            ("8:0 rbps=1", Same),
            ("8:0 rbps=1 wbps=max wiops=7", Same),
            ("8:16 rbps=2", Same),
            ("8:1 rbps=max", Same),
            ("8:16 riops=4294967295", Rounded),
            ("8:0 rbps=2", Other),
            ("8:1 rbps=1", Other),
            ("8:16 wiops=7", Other),
        ] {
            assert_eq!(Form::Rates.judge(asked, found), expected, "{asked}");
        }
    }

    #[test]
    fn lists_are_compared_as_sets() {
        assert_eq!(Form::Numbers.judge("0-2", "0,1-2"), Same);
        assert_eq!(Form::Numbers.judge("0-2", "0-1"), Other);
        assert_eq!(Form::Numbers.judge("0", ""), Other);
    }

    #[test]
    fn a_value_by_name_is_itself_or_one_of_the_lines_or_told() {
        assert_eq!(Form::Lines.judge("res_a 1", "res_a 1"), Same);
        assert_eq!(Form::Lines.judge("res_a 1", "res_b max\nres_a 1"), Same);
        assert_eq!(Form::Lines.judge("5000", "4096"), Rounded);
    }
}
