//! Looks at tasks from outside: their streams, replayed and followed, become views.
//!
//! Takes no lock, asks no runner, and changes nothing. One damaged task hides no other: [`look`] turns whatever is
//! wrong with a stream into a view that says so.

use crate::checkpoint::paths::Place;
use crate::checkpoint::{Identity, IoError, ReadError, Reader, Root, Tail, lock};
use crate::proto::{self, TaskView};
use crate::task::TaskId;
use crate::view::{Applied, Replay, ReplayError, corrupt_view};

/// Why a task cannot be told of, or no further.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// Its stream cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Its records make no sense.
    #[error("{path} is corrupt at byte {offset}")]
    Replay {
        /// The stream.
        path: String,
        /// Where the record begins.
        offset: u64,
        /// What is wrong with the record.
        #[source]
        error: ReplayError,
    },
    /// Who runs it cannot be found out, or what was read cannot be made durable.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl ObserveError {
    /// Whether the checkpoint is at fault, so that nothing of the task is to be run; else it may be sound.
    pub fn is_corruption(&self) -> bool {
        match self {
            Self::Replay { .. } => true,
            Self::Read(error) => {
                use ReadError as E;
                matches!(error, E::Corrupt { .. } | E::FutureVersion { .. } | E::Shrunk { .. })
            }
            Self::Io(_) => false,
        }
    }
}

/// A task whose stream is read as it grows.
#[derive(Debug)]
pub struct Observed {
    path: String,
    reader: Reader,
    replay: Option<Replay>,
}

impl Observed {
    /// Opens the stream of a task's runner; nothing is read yet.
    ///
    /// # Errors
    ///
    /// [`ObserveError`].
    pub fn open(root: &Root, id: &TaskId) -> Result<Self, ObserveError> {
        let path = root.runner(id).display().to_string();
        let reader = Reader::open(root, &Identity::runner(id.clone()))?;
        Ok(Self { path, reader, replay: None })
    }

    /// Takes in the records that are there and were not read yet, and hands each to `each` with the task after it.
    ///
    /// # Errors
    ///
    /// [`ObserveError`]; the records before were taken in.
    pub fn advance(&mut self, mut each: impl FnMut(&Replay, &Applied)) -> Result<(), ObserveError> {
        loop {
            let offset = self.reader.position().offset();
            let Some(record) = self.reader.next_record()? else { return Ok(()) };
            let taken = match &mut self.replay {
                Some(replay) => replay.apply(record).map(|applied| each(replay, &applied)),
                none => Replay::new(record).map(|replay| *none = Some(replay)),
            };
            taken.map_err(|error| ObserveError::Replay {
                path: self.path.clone(),
                offset,
                error,
            })?;
        }
    }

    /// The task as far as it was read; `None` before its first record.
    pub fn replay(&self) -> Option<&Replay> {
        self.replay.as_ref()
    }

    /// Makes durable what was read. Whoever tells of the end of a task asks for this before.
    ///
    /// # Errors
    ///
    /// [`IoError`]: what was read is then not to be told.
    pub fn sync(&mut self) -> Result<(), IoError> {
        self.reader.sync()
    }

    /// What follows the last record that was read, if nobody is writing.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub fn tail(&mut self) -> Result<Tail, ReadError> {
        self.reader.tail()
    }
}

/// The ids of the tasks in `root`, each with where it is kept.
///
/// # Errors
///
/// [`IoError`] if a directory is there and cannot be read.
pub fn list(root: &Root) -> Result<Vec<(TaskId, Place)>, IoError> {
    // Finished ones last: a task that is moved in between is then listed twice rather than never.
    let active = root.list(Place::Active)?;
    let finished = root.list(Place::Finished)?;
    let mut tasks: Vec<_> = finished.into_iter().map(|id| (id, Place::Finished)).collect();
    let moved = |id: &TaskId| tasks.binary_search_by(|(of, _)| of.cmp(id)).is_ok();
    let active: Vec<_> = active.into_iter().filter(|id| !moved(id)).collect();
    tasks.extend(active.into_iter().map(|id| (id, Place::Active)));
    Ok(tasks)
}

/// A task that was looked at, and when it was accepted.
#[derive(Debug)]
pub struct Sight {
    /// All that is told about it.
    pub view: TaskView,
    /// Wall clock of its acceptance, nanoseconds since 1970; 0 if that cannot be read.
    pub accepted: i64,
}

/// Looks at a task once, wherever it is kept.
///
/// A task that was accepted and whose runner has not written anything yet is told as it was accepted.
///
/// # Errors
///
/// [`ObserveError`], but never for a damaged stream: that is a view, in state CORRUPT.
pub fn look(root: &Root, id: &TaskId, place: Place) -> Result<Sight, ObserveError> {
    let mut observed = match Observed::open(root, id) {
        Ok(observed) => observed,
        Err(ObserveError::Read(ReadError::Missing { .. })) => return Ok(unbegun(root, id, place)),
        Err(error) => return damaged(id, None, error),
    };
    if let Err(error) = observed.advance(|_, _| {}) {
        return damaged(id, observed.replay.as_ref(), error);
    }
    if let Err(error) = observed.tail() {
        return damaged(id, observed.replay.as_ref(), error.into());
    }
    let Some(replay) = &observed.replay else { return Ok(unbegun(root, id, place)) };
    let ended = replay.state().phase().is_some_and(|phase| phase.is_terminal());
    let runner = if ended { None } else { runner_pid(root, id)? };
    let sight = Sight { view: replay.view(runner), accepted: replay.launch().accepted_unix_nanos };
    // What is among the finished ones was synced before it was moved there.
    if place == Place::Active && (ended || replay.state().kill().is_some()) {
        observed.sync()?;
    }
    Ok(sight)
}

/// Process id of the runner that holds a task; `None` if none lives.
///
/// # Errors
///
/// [`IoError`].
pub fn runner_pid(root: &Root, id: &TaskId) -> Result<Option<i32>, IoError> {
    let holder = lock::holder(root, &Identity::runner(id.clone()))?;
    Ok(holder.and_then(|holder| holder.pid))
}

fn unbegun(root: &Root, id: &TaskId, place: Place) -> Sight {
    let accepted = std::fs::read(root.task(place, id)).ok();
    let launch = accepted.and_then(|bytes| serde_json::from_slice::<proto::Launch>(&bytes).ok());
    let accepted = launch.as_ref().map_or(0, |launch| launch.accepted_unix_nanos);
    let known = launch.and_then(|launch| Replay::accepted(launch).ok());
    let view = TaskView {
        task_id: id.to_string(),
        state: proto::TaskState::Active.into(),
        detail: Some("accepted, and not begun".to_owned()),
        ..known.map(|replay| replay.view(None)).unwrap_or_default()
    };
    Sight { view, accepted }
}

fn damaged(id: &TaskId, read: Option<&Replay>, error: ObserveError) -> Result<Sight, ObserveError> {
    if !error.is_corruption() {
        return Err(error);
    }
    let accepted = read.map_or(0, |replay| replay.launch().accepted_unix_nanos);
    let view = corrupt_view(id.as_str(), read, chain(&error));
    Ok(Sight { view, accepted })
}

/// The whole of what `error` says, its causes included.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
