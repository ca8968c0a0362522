//! What dewar told its callers before the power was cut, kept beside the file system on the very disk that dewar writes to,
//! each in a sector of its own.
//!
//! So the log of that disk's writes has in one order what was written, what was flushed and what was told: whatever
//! stands before a cut had been told by then, and must be found after it.

use serde::{Deserialize, Serialize};

/// Bytes of the disk that the file system takes. What was told begins behind it.
pub const FILE_SYSTEM: u64 = 96 << 20;

/// Bytes of the disk.
pub const DISK: u64 = 128 << 20;

/// Bytes of a sector: the disk writes each whole or not at all.
pub const SECTOR: usize = 512;

/// Directory of the tasks, in the file system.
pub const ROOT: &str = "dewar";

/// Something that was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// The task is accepted.
    Accepted {
        /// Its id.
        task: String,
    },
    /// A run has ended.
    Ran {
        /// Id of its task.
        task: String,
        /// Name of its process.
        process: String,
        /// Its number.
        run: u64,
        /// The state that it ended in, as in the JSON of `dewar`.
        state: String,
    },
    /// Somebody's request for the end of the task is accepted.
    Killed {
        /// Its id.
        task: String,
    },
    /// The task has ended.
    Ended {
        /// Its id.
        task: String,
        /// The state that it ended in, as in the JSON of `dewar`.
        state: String,
    },
}

impl Told {
    /// Id of the task that it is about.
    pub fn task(&self) -> &str {
        match self {
            Self::Accepted { task }
            | Self::Ran { task, .. }
            | Self::Killed { task }
            | Self::Ended { task, .. } => task,
        }
    }

    /// A sector that says so.
    ///
    /// # Panics
    ///
    /// If the names in it are longer than the load's own.
    pub fn to_sector(&self) -> [u8; SECTOR] {
        let text = serde_json::to_vec(self).expect("strings and numbers");
        let mut sector = [0; SECTOR];
        sector[..text.len()].copy_from_slice(&text);
        sector
    }

    /// What a sector says; `None` if nothing was written to it.
    ///
    /// # Errors
    ///
    /// If it says something else.
    pub fn from_sector(sector: &[u8]) -> serde_json::Result<Option<Self>> {
        let length = sector.iter().position(|byte| *byte == 0).unwrap_or(sector.len());
        if length == 0 { Ok(None) } else { serde_json::from_slice(&sector[..length]).map(Some) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_says_what_was_written_to_it() {
        let state = "PROCESS_STATE_SUCCESS".to_owned();
        let told = Told::Ran { task: "t".into(), process: "p".into(), run: 7, state };

        assert_eq!(Told::from_sector(&told.to_sector()).unwrap(), Some(told));
        assert_eq!(Told::from_sector(&[0; SECTOR]).unwrap(), None);
        assert!(Told::from_sector(b"{\"Ran\":").is_err());
    }
}
