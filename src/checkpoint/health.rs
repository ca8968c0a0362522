//! A stream for a view: its records, or why it is quarantined, so that one damaged task hides no other.
#![allow(clippy::disallowed_methods, reason = "files of a checkpoint")]

use std::fmt;
use std::path::PathBuf;

use super::identity::Identity;
use super::paths::Root;
use super::reader::{ReadError, Reader, Tail};
use crate::causes::chain;
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::checkpoint::testing::{Bytes, life, root, runner, stream};

    fn examine_bytes(bytes: &[u8]) -> (Vec<Record>, Health, PathBuf) {
        let (_dir, root) = root();
        fs::write(root.stream(&runner()), bytes).unwrap();
        let mut records = Vec::new();
        let health = examine(&root, &runner(), |record| records.push(record)).unwrap();
        (records, health, root.stream(&runner()))
    }

    #[test]
    fn a_sound_stream_is_replayed() {
        let Bytes { bytes, bounds } = stream(&runner(), &life());

        let (records, health, _) = examine_bytes(&bytes[..bounds[4] + 5]);

        assert_eq!(records, life()[..4]);
        assert_eq!(health, Health::Sound { records: 4, torn_bytes: 5 });
    }

    /// Scenario S30.
    #[test]
    fn a_corrupt_stream_is_quarantined_with_file_offset_and_reason() {
        let Bytes { mut bytes, bounds } = stream(&runner(), &life());
        bytes[bounds[2] + 15] ^= 1;

        let (records, health, file) = examine_bytes(&bytes);

        let offset = bounds[2] as u64;
        let why = "the checksum of a frame is wrong".to_owned();
        assert_eq!(records, life()[..2]);
        assert_eq!(health, Health::Corrupt(Corruption { file, offset, why }));
    }

    /// Attack 41.
    #[test]
    fn a_stream_of_a_later_format_is_quarantined() {
        let Bytes { mut bytes, bounds } = stream(&runner(), &[]);
        bytes[8] = 9;
        let crc = crc32c::crc32c(&bytes[..bounds[0] - 4]);
        bytes[bounds[0] - 4..].copy_from_slice(&crc.to_le_bytes());

        let (_, health, file) = examine_bytes(&bytes);

        let Health::Corrupt(corruption) = health else { panic!("{health:?}") };
        let expected = format!("{}: byte 0: format version 9 is of a later dewar", file.display());
        assert_eq!(corruption.to_string(), expected);
    }

    #[test]
    fn a_missing_stream_is_not_corrupt() {
        let (_dir, root) = root();

        let error = examine(&root, &runner(), |_| {}).unwrap_err();

        assert!(matches!(error, ReadError::Missing { .. }));
    }
}
