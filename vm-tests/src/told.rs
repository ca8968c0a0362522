//! What dewar told its callers before the power was cut, kept beside the file system on the very disk that dewar writes to,
//! each in a sector of its own.
//!
//! So the log of that disk's writes has in one order what was written, what was flushed and what was told: whatever
//! stands before a cut had been told by then, and must be found after it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Bytes of the disk that the file system takes. What was told begins behind it.
pub const FILE_SYSTEM: u64 = 96 << 20;

/// Bytes of the disk.
pub const DISK: u64 = 128 << 20;

/// Bytes of a sector: the disk writes each whole or not at all.
pub const SECTOR: usize = 512;

/// Directory of the tasks, in the file system.
pub const ROOT: &str = "dewar";

/// What is said of a task that is active, of which nothing else got to the disk, and of which nobody was told. It is taken back.
pub const UNTOLD: &str = "a power cut came before anybody was told that it was accepted";

/// What is said of one of which nothing else is there, and of which somebody was told.
const UNBEGUN: &str = "accepted, and not begun";

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

    /// Whether tasks show it, given what `dewar status` tells of each.
    ///
    /// # Errors
    ///
    /// What is missing, or is another than was told.
    pub fn is_shown_by(&self, tasks: &[Value]) -> Result<(), String> {
        let of = tasks.iter().find(|view| view["taskId"] == *self.task());
        let view = of.ok_or_else(|| format!("{self:?}: there is no such task"))?;
        let shown = match self {
            // Whether it was obeyed is seen when the task has ended.
            Self::Accepted { .. } | Self::Killed { .. } => {
                let is_hollow = view["detail"] == UNTOLD || view["detail"] == UNBEGUN;
                view["state"] != "TASK_STATE_CORRUPT" && !is_hollow
            }
            Self::Ended { state, .. } => view["state"] == **state,
            Self::Ran { process, run, state, .. } => {
                let mut processes = view["processes"].as_array().into_iter().flatten();
                let runs = processes.find(|of| of["name"] == **process).map(|of| &of["runs"]);
                runs.is_some_and(|runs| runs[*run as usize]["state"] == **state)
            }
        };
        if shown { Ok(()) } else { Err(format!("{self:?}: {view:#}")) }
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
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_told_is_shown_by_the_same_task_in_the_same_state_or_it_is_not() {
        let view = |state: &str| {
            let runs = json!([{ "run": 0, "state": "PROCESS_STATE_FAILED" }]);
            vec![
                json!({ "taskId": "t", "state": state, "processes": [{ "name": "p", "runs": runs }] }),
            ]
        };
        let task = || "t".to_owned();
        let ran = |run, state: &str| Told::Ran {
            task: task(),
            process: "p".into(),
            run,
            state: state.into(),
        };
        let killed = view("TASK_STATE_KILLED");

        assert_eq!(ran(0, "PROCESS_STATE_FAILED").is_shown_by(&killed), Ok(()));
        assert!(ran(0, "PROCESS_STATE_SUCCESS").is_shown_by(&killed).is_err());
        assert!(ran(1, "PROCESS_STATE_FAILED").is_shown_by(&killed).is_err());
        assert!(
            Told::Ended { task: task(), state: "TASK_STATE_LOST".into() }
                .is_shown_by(&killed)
                .is_err()
        );
        assert_eq!(Told::Accepted { task: task() }.is_shown_by(&killed), Ok(()));
        assert!(Told::Accepted { task: task() }.is_shown_by(&view("TASK_STATE_CORRUPT")).is_err());
        assert!(Told::Accepted { task: "u".into() }.is_shown_by(&killed).is_err());
        for hollow in [UNTOLD, UNBEGUN] {
            let mut active = view("TASK_STATE_ACTIVE");
            active[0]["detail"] = hollow.into();
            assert!(Told::Accepted { task: task() }.is_shown_by(&active).is_err());
        }
    }

    #[test]
    fn a_sector_says_what_was_written_to_it() {
        let state = "PROCESS_STATE_SUCCESS".to_owned();
        let told = Told::Ran { task: "t".into(), process: "p".into(), run: 7, state };

        assert_eq!(Told::from_sector(&told.to_sector()).unwrap(), Some(told));
        assert_eq!(Told::from_sector(&[0; SECTOR]).unwrap(), None);
        assert!(Told::from_sector(b"{\"Ran\":").is_err());
    }
}
