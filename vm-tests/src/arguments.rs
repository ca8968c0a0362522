//! The command line.

use std::ffi::OsString;

use crate::boots;

/// What to run.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Arguments {
    /// Only these boots; empty means all.
    pub(crate) boots: Vec<String>,
    /// Only tests whose `boot::suite::name` contains this.
    pub(crate) filter: String,
    /// Fetch what comes over the network, and no more.
    pub(crate) fetch: bool,
    /// Name the tests, boot nothing.
    pub(crate) list: bool,
    /// Chances of the power cuts are taken by this, and not by the clock.
    pub(crate) seed: Option<u64>,
    /// What passes a failpoint is held for up to so many milliseconds.
    pub(crate) slowly: Option<u32>,
}

/// Why the command line makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgumentsError {
    #[error("{0:?} is no text")]
    NoText(OsString),
    #[error("--boot needs a name: {names}", names = names())]
    NoName,
    #[error("there is no boot {0:?}, but {names}", names = names())]
    NoBoot(String),
    #[error("--seed needs a number below 2^64")]
    NoSeed,
    #[error("--slowly needs a number of milliseconds")]
    NoDelay,
    #[error(
        "unknown option {0}; there are --boot NAME, --fetch, --list, --seed NUMBER and --slowly MILLISECONDS"
    )]
    Unknown(String),
    #[error("one filter, not {0:?} and {1:?}")]
    Filters(String, String),
}

fn names() -> String {
    boots::names().collect::<Vec<_>>().join(", ")
}

impl Arguments {
    /// Parses what stands after the name of the program.
    pub(crate) fn parse(given: impl IntoIterator<Item = OsString>) -> Result<Self, ArgumentsError> {
        let mut arguments = Self::default();
        let mut given = given.into_iter().map(|text| text.into_string());
        while let Some(text) = given.next() {
            match text.map_err(ArgumentsError::NoText)?.as_str() {
                "--boot" => {
                    let name = given.next().ok_or(ArgumentsError::NoName)?;
                    let name = name.map_err(ArgumentsError::NoText)?;
                    if !boots::names().any(|boot| boot == name) {
                        return Err(ArgumentsError::NoBoot(name));
                    }
                    arguments.boots.push(name);
                }
                "--fetch" => arguments.fetch = true,
                "--list" => arguments.list = true,
                "--seed" => {
                    let seed = given.next().and_then(Result::ok).and_then(|seed| seed.parse().ok());
                    arguments.seed = Some(seed.ok_or(ArgumentsError::NoSeed)?);
                }
                "--slowly" => {
                    let most = given.next().and_then(Result::ok).and_then(|most| most.parse().ok());
                    arguments.slowly = Some(most.ok_or(ArgumentsError::NoDelay)?);
                }
                option if option.starts_with('-') => {
                    return Err(ArgumentsError::Unknown(option.to_owned()));
                }
                filter if arguments.filter.is_empty() => filter.clone_into(&mut arguments.filter),
                filter => {
                    return Err(ArgumentsError::Filters(arguments.filter, filter.to_owned()));
                }
            }
        }
        Ok(arguments)
    }

    /// Whether a boot is wanted.
    pub(crate) fn wants(&self, boot: &str) -> bool {
        self.boots.is_empty() || self.names(boot)
    }

    /// Whether a boot is asked for by its name.
    pub(crate) fn names(&self, boot: &str) -> bool {
        self.boots.iter().any(|name| name == boot)
    }

    /// Whether a boot is wanted whose tests hang together.
    pub(crate) fn wants_all_of(&self, boot: &str) -> bool {
        self.wants(boot) && boot.contains(&self.filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Arguments, ArgumentsError> {
        Arguments::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn boots_and_a_filter_are_taken_in_any_order() {
        let arguments =
            parse(&["oom", "--boot", "full-6.1", "--list", "--boot", "full-6.12"]).unwrap();

        assert_eq!(arguments.filter, "oom");
        assert!(arguments.wants("full-6.1") && arguments.wants("full-6.12"));
        assert!(!arguments.wants("hybrid-6.1"));
        assert!(parse(&[]).unwrap().wants("hybrid-6.1"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let refused = |words: &[&str]| parse(words).unwrap_err().to_string();

        let unknown = refused(&["--boot", "full"]);
        assert!(unknown.starts_with(r#"there is no boot "full", but "#), "{unknown}");
        assert!(refused(&["--boot"]).starts_with("--boot needs a name"));
        assert_eq!(
            refused(&["-v"]),
            "unknown option -v; there are --boot NAME, --fetch, --list, --seed NUMBER and --slowly MILLISECONDS"
        );
        assert_eq!(refused(&["a", "b"]), r#"one filter, not "a" and "b""#);
    }
}
