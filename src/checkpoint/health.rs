//! A stream for a view: its records, or why it is quarantined, so that one damaged task hides no other.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use super::identity::Identity;
use super::paths::Root;
use super::reader::{ReadError, Reader, Tail};
use crate::proto::Record;

/// Whether a stream can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Every record was read.
    Sound {
        /// How many they are.
        records: u64,
        /// Bytes of an append after them that a crash tore, or that is under way.
        torn_bytes: u64,
    },
    /// The task is quarantined: it is shown, and can be killed through its cgroup, but nothing of it is run.
    Corrupt(Corruption),
}

/// Where and why a stream cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corruption {
    /// The stream.
    pub file: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// Why, for people.
    pub why: String,
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: byte {}: {}", self.file.display(), self.offset, self.why)
    }
}

/// Replays a stream into `each`, and says whether it is sound.
///
/// A stream of a later format version is quarantined like a corrupt one: nothing that this dewar knows can be done
/// with it. A record of a later dewar in a stream of this version is handed on with its `kind` absent.
///
/// # Errors
///
/// [`ReadError`] other than corruption or version: the stream may be sound.
pub fn examine(
    root: &Root,
    identity: &Identity,
    each: impl FnMut(Record),
) -> Result<Health, ReadError> {
    match replay(root, identity, each) {
        Ok(health) => Ok(health),
        Err(ReadError::Corrupt { path, offset, flaw }) => {
            Ok(Health::Corrupt(Corruption { file: path, offset, why: chain(&flaw) }))
        }
        Err(ReadError::FutureVersion { path, version }) => {
            let why = format!("format version {version} is of a later dewar");
            Ok(Health::Corrupt(Corruption { file: path, offset: 0, why }))
        }
        Err(error) => Err(error),
    }
}

fn replay(root: &Root, identity: &Identity, each: impl FnMut(Record)) -> Result<Health, ReadError> {
    let mut reader = Reader::open(root, identity)?;
    let tail = reader.replay(each)?;
    let torn_bytes = match tail {
        Tail::Torn { bytes } => bytes,
        Tail::Clean | Tail::Unread => 0,
    };
    Ok(Health::Sound { records: reader.position().seq(), torn_bytes })
}

/// The whole of what `error` says, its causes included.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
