//! Why a command was not done, and the exit status that says so.

use std::error::Error;
use std::fmt;
use std::io;

#[cfg(feature = "net")]
use tonic::{Code, Status};

use super::term::escape;
use crate::causes::chain;
use crate::checkpoint::IoError;
use crate::checkpoint::paths::RootError;
#[cfg(feature = "net")]
use crate::client::{self, ClientError};
use crate::logs::LogError;
use crate::observe::ObserveError;

/// Exit status of a task that was followed to its end, and of commands (docs: `dewar --help`).
pub(super) mod status {
    /// Done; the task ended as SUCCESS.
    pub(crate) const SUCCESS: u8 = 0;
    /// The task ended as FAILED; of other commands: nothing matched.
    pub(crate) const FAILED: u8 = 1;
    /// Bad command line or task file; nothing was started.
    pub(crate) const USAGE: u8 = 2;
    /// The task ended as KILLED.
    pub(crate) const KILLED: u8 = 3;
    /// The task ended as LOST.
    pub(crate) const LOST: u8 = 4;
    /// It cannot be done here or now.
    pub(crate) const UNAVAILABLE: u8 = 5;
    /// A defect of dewar.
    pub(crate) const DEFECT: u8 = 70;
}

/// Why a command was not done.
#[derive(Debug)]
pub(super) enum Failure {
    /// What was named is not there.
    NothingMatched(String),
    /// The command line or a file that it names is wrong. The text may have lines; whoever made it has escaped what
    /// it quotes.
    Usage(String),
    /// It cannot be done here or now.
    Unavailable(String),
    /// dewar contradicts itself.
    Defect(String),
}

impl Failure {
    /// It cannot be done here or now, as `error` and its causes say.
    pub(super) fn unavailable(error: &dyn Error) -> Self {
        Self::Unavailable(chain(error))
    }

    /// The exit status that says so.
    pub(super) fn status(&self) -> u8 {
        match self {
            Self::NothingMatched(_) => status::FAILED,
            Self::Usage(_) => status::USAGE,
            Self::Unavailable(_) => status::UNAVAILABLE,
            Self::Defect(_) => status::DEFECT,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingMatched(text) | Self::Unavailable(text) => f.write_str(&escape(text)),
            Self::Usage(text) => f.write_str(text),
            Self::Defect(text) => write!(f, "a defect of dewar: {text}"),
        }
    }
}

impl From<ObserveError> for Failure {
    fn from(error: ObserveError) -> Self {
        Self::unavailable(&error)
    }
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        Self::unavailable(&error)
    }
}

impl From<IoError> for Failure {
    fn from(error: IoError) -> Self {
        Self::unavailable(&error)
    }
}

impl From<RootError> for Failure {
    fn from(error: RootError) -> Self {
        Self::unavailable(&error)
    }
}

#[cfg(feature = "net")]
impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::unavailable(&error)
    }
}

/// What a daemon says ends a command as the same would that was found on the root.
#[cfg(feature = "net")]
impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let text = status.message().to_owned();
        match status.code() {
            _ if client::is_gone(&status) => {
                let why = status.source().map_or(text, chain);
                Self::Unavailable(format!("the connection to the daemon broke: {why}"))
            }
            Code::NotFound => Self::NothingMatched(text),
            Code::InvalidArgument => Self::Usage(escape(&text).into_owned()),
            Code::Internal => Self::Defect(escape(&format!("the daemon: {text}")).into_owned()),
            Code::Unimplemented => {
                Self::Unavailable("the daemon is older and does not know this call".to_owned())
            }
            _ => Self::Unavailable(text),
        }
    }
}

/// Of standard output, which is all that commands write to.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Unavailable(format!("standard output: {error}"))
    }
}
