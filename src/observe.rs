//! Looks at tasks from outside: their streams, replayed and followed, become views.
//!
//! Takes no lock, asks no runner, and changes nothing. One damaged task hides no other: [`look`] turns whatever is
//! wrong with a stream into a view that says so.
#![allow(clippy::disallowed_methods, reason = "reads streams")]

use std::path::{Path, PathBuf};

use crate::causes::chain;
use crate::cgroup::{Cgroup, TaskCgroup};
use crate::checkpoint::paths::Place;
use crate::checkpoint::{Identity, IoError, ReadError, Reader, Root, Tail, lock, tasks};
use crate::proto::{self, Launch, Record, TaskView};
use crate::state::{RecordError, must_last};
use crate::task::TaskId;
use crate::task::change::path;
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

/// Records that are held at most while they are synced.
const BATCH: usize = 4096;

/// A task whose stream is read as it grows.
#[derive(Debug)]
pub struct Observed {
    path: String,
    /// Where the task is once it is over.
    finished: PathBuf,
    reader: Reader,
    replay: Option<Replay>,
    /// Where the first record of a later dewar is.
    later: Option<u64>,
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
        let finished = root.task(Place::Finished, id);
        Ok(Self { path, finished, reader, replay: None, later: None })
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
            self.take(offset, record, &mut each)?;
        }
    }

    /// As [`Observed::advance`], for whoever tells what happened: an end, and a request for one, is on disk before `each` gets
    /// it. One sync serves all that is there.
    ///
    /// # Errors
    ///
    /// [`ObserveError`]; the records before were taken in.
    pub fn advance_durably(
        &mut self,
        mut each: impl FnMut(&Replay, &Applied),
    ) -> Result<(), ObserveError> {
        loop {
            let mut batch = Vec::new();
            while batch.len() < BATCH {
                let offset = self.reader.position().offset();
                let Some(record) = self.reader.next_record()? else { break };
                batch.push((offset, record));
            }
            if batch.is_empty() {
                return Ok(());
            }
            // What is among the finished ones was synced before it was moved there.
            if batch.iter().any(|(_, record)| record.kind.as_ref().is_some_and(must_last))
                && !self.finished.exists()
            {
                self.reader.sync()?;
            }
            for (offset, record) in batch {
                self.take(offset, record, &mut each)?;
            }
        }
    }

    fn take(
        &mut self,
        offset: u64,
        record: Record,
        each: &mut impl FnMut(&Replay, &Applied),
    ) -> Result<(), ObserveError> {
        let taken = match &mut self.replay {
            Some(replay) => match replay.apply(record) {
                // Of a later dewar: who only observes passes over it (docs/checkpoint.md). A runner refuses the stream.
                Err(ReplayError::Record { error: RecordError::UnknownKind, .. }) => {
                    self.later.get_or_insert(offset);
                    Ok(())
                }
                applied => applied.map(|applied| each(replay, &applied)),
            },
            none => Replay::new(record).map(|replay| *none = Some(replay)),
        };
        taken.map_err(|error| ObserveError::Replay { path: self.path.clone(), offset, error })
    }

    /// The task as far as it was read; `None` before its first record.
    pub fn replay(&self) -> Option<&Replay> {
        self.replay.as_ref()
    }

    /// How many bytes were read.
    pub fn offset(&self) -> u64 {
        self.reader.position().offset()
    }

    /// Why no runner of this version would go on with the task, for people, if it was a later one that recorded what was read.
    pub fn by_later(&self) -> Option<String> {
        let offset = self.later?;
        let what = "is of a kind that this version of dewar does not know";
        Some(format!(
            "written by a later version: the record at byte {offset} of {} {what}",
            self.path
        ))
    }

    /// Makes durable what was read. Whoever tells of the end of a task asks for this before.
    ///
    /// # Errors
    ///
    /// [`IoError`]: what was read is then not to be told.
    pub fn sync(&self) -> Result<(), IoError> {
        self.reader.sync()
    }

    /// Whether the stream is where it was opened, neither removed nor replaced. Where that cannot be known, it is taken for so.
    pub fn is_in_place(&self) -> bool {
        self.reader.is_in_place().unwrap_or(true)
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
    let observed = match find(root, id, place)? {
        Found::Begun(observed) => observed,
        Found::Unbegun(launch) => return Ok(unbegun(root, id, launch)),
        Found::Damaged(read, error) => return Ok(damaged(id, read.as_deref(), &error)),
    };
    let Some(replay) = observed.replay() else { return Ok(unbegun(root, id, None)) };
    let ended = replay.state().phase().is_some_and(|phase| phase.is_terminal());
    let runner = if ended { None } else { runner_pid(root, id)? };
    let lost_limits = if ended { Vec::new() } else { lost_limits(id, replay) };
    let mut view = TaskView { lost_limits, ..replay.view(runner) };
    // While a runner lives it is one that knows them.
    if !ended && runner.is_none() {
        view.detail = observed.by_later().or(view.detail);
    }
    let sight = Sight { view, accepted: replay.launch().accepted_unix_nanos };
    // What is among the finished ones was synced before it was moved there.
    if place == Place::Active && (ended || replay.state().kill().is_some()) {
        observed.sync()?;
    }
    Ok(sight)
}

/// A task as it was found.
pub(crate) enum Found {
    /// Its stream holds its first record at least, and was read to its end.
    Begun(Box<Observed>),
    /// It was accepted, as far as that can be read, and its runner has not written anything yet.
    Unbegun(Option<Box<Launch>>),
    /// Its stream was read as far as it could be.
    Damaged(Option<Box<Replay>>, ObserveError),
}

/// Reads the stream of a task to its end, wherever the task is kept.
///
/// # Errors
///
/// [`ObserveError`], but never for a damaged stream.
pub(crate) fn find(root: &Root, id: &TaskId, place: Place) -> Result<Found, ObserveError> {
    let (read, result) = match Observed::open(root, id) {
        Ok(mut observed) => {
            let read = observed.advance(|_, _| {});
            let read = read.and_then(|()| Ok(observed.tail().map(|_| ())?));
            (Some(observed), read)
        }
        Err(ObserveError::Read(ReadError::Missing { .. })) => (None, Ok(())),
        Err(error) => (None, Err(error)),
    };
    match (read, result) {
        (read, Err(error)) if error.is_corruption() => {
            Ok(Found::Damaged(read.and_then(|read| read.replay).map(Box::new), error))
        }
        (_, Err(error)) => Err(error),
        (Some(observed), Ok(())) if observed.replay.is_some() => {
            Ok(Found::Begun(Box::new(observed)))
        }
        _ => Ok(Found::Unbegun(accepted(root, id, place).map(Box::new))),
    }
}

/// The task as it was accepted; `None` if that cannot be read.
fn accepted(root: &Root, id: &TaskId, place: Place) -> Option<Launch> {
    let bytes = std::fs::read(root.task(place, id)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Limits of a live task that are not in force any more. What cannot be read, or was removed meanwhile, has lost none.
fn lost_limits(id: &TaskId, replay: &Replay) -> Vec<String> {
    let state = replay.state();
    let cgroup = state.leader().and_then(|leader| leader.cgroup.as_deref());
    let cgroup = cgroup.and_then(|path| TaskCgroup::open_existing(Path::new(path), id).ok()?);
    let Some(task) = cgroup else { return Vec::new() };
    let mut lost = Vec::new();
    let mut look = |cgroup: &Cgroup, resources, path: &str| {
        lost.extend(cgroup.lost(resources, path).unwrap_or_default());
    };
    if let Some(resources) = &state.spec().resources {
        look(&task, resources, &path(None));
    }
    for (index, spec) in (0..).zip(&state.spec().processes) {
        let run = state.processes()[index as usize].live_run();
        if let (Some(resources), Some((run, _))) = (&spec.resources, run)
            && let Ok(Some(leaf)) = task.open_leaf(&spec.name, run)
        {
            look(&leaf, resources, &path(Some(index)));
        }
    }
    lost.retain(|limit| !replay.launch().unenforced.contains(&limit.field));
    lost.iter().map(ToString::to_string).collect()
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

fn unbegun(root: &Root, id: &TaskId, launch: Option<Box<Launch>>) -> Sight {
    let accepted = launch.as_ref().map_or(0, |launch| launch.accepted_unix_nanos);
    let known = launch.and_then(|launch| Replay::accepted(*launch).ok());
    let detail = match tasks::is_sealed(root, id) {
        // The next runner or launch takes it back.
        Ok(false) => "a power cut came before anybody was told that it was accepted",
        _ => "accepted, and not begun",
    };
    let view = TaskView {
        task_id: id.to_string(),
        state: proto::TaskState::Active.into(),
        detail: Some(detail.to_owned()),
        ..known.map(|replay| replay.view(None)).unwrap_or_default()
    };
    Sight { view, accepted }
}

fn damaged(id: &TaskId, read: Option<&Replay>, error: &ObserveError) -> Sight {
    let accepted = read.map_or(0, |replay| replay.launch().accepted_unix_nanos);
    let view = corrupt_view(id.as_str(), read, chain(error));
    Sight { view, accepted }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;
    use crate::checkpoint::tasks::{self, accept};
    use crate::checkpoint::{Instant, Writer};
    use crate::proto::TaskState;
    use crate::proto::record::Kind;
    use crate::state::{Event, Phase};
    use crate::view::tests::{launch, process, task};

    /// A root with tasks whose streams are written by hand.
    pub(crate) struct Node {
        pub(crate) root: Root,
        path: PathBuf,
    }

    impl Node {
        pub(crate) fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("dewar-observe-{}-{name}", std::process::id()));
            let root = Root::new(&path).unwrap();
            root.create().unwrap();
            Self { root, path }
        }

        fn launch(id: &str) -> Launch {
            let launch = launch(task(vec![process("a")], &[]));
            Launch { task_id: id.to_owned(), accepted_unix_nanos: 7, ..launch }
        }

        /// A task whose stream holds its header and `phases`.
        pub(crate) fn task(&self, id: &str, phases: &[Phase]) -> TaskId {
            let task = TaskId::new(id).unwrap();
            let launch = Self::launch(id);
            self.root.create_checkpoint(&task).unwrap();
            let mut writer = Writer::create(&self.root, Identity::runner(task.clone())).unwrap();
            let events = phases.iter().map(|&phase| Event::Entered(phase).to_kind());
            for kind in std::iter::once(Kind::Launch(launch.clone())).chain(events) {
                writer.append(kind, Instant { boot_nanos: 1, unix_nanos: 1 }).unwrap();
            }
            writer.sync().unwrap();
            accept(&self.root, &task, &serde_json::to_vec(&launch).unwrap()).unwrap();
            task
        }

        fn finished(&self, id: &str) -> TaskId {
            use Phase as P;
            let task = self.task(id, &[P::Active, P::Cleaning, P::Finalizing, P::Success]);
            tasks::finish(&self.root, &task).unwrap();
            task
        }

        /// Changes the bytes of a task's stream.
        fn damage(&self, task: &TaskId, how: impl FnOnce(&mut Vec<u8>)) {
            let path = self.root.runner(task);
            let mut bytes = fs::read(&path).unwrap();
            how(&mut bytes);
            fs::write(path, bytes).unwrap();
        }

        fn look(&self, task: &TaskId, place: Place) -> TaskView {
            look(&self.root, task, place).unwrap().view
        }
    }

    impl Drop for Node {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.path);
        }
    }

    #[test]
    fn a_task_is_listed_once_and_where_it_is() {
        let node = Node::new("list");
        let active = node.task("b", &[Phase::Active]);
        let finished = node.finished("a");

        let listed = list(&node.root).unwrap();

        assert_eq!(listed, [(finished, Place::Finished), (active, Place::Active)]);
    }

    /// V1: a crash of a file system, or somebody's copy.
    #[test]
    fn a_task_that_is_in_both_places_is_listed_once_and_as_finished() {
        let node = Node::new("both");
        let task = node.finished("a");
        let at = |place| node.root.task(place, &task);
        fs::copy(at(Place::Finished), at(Place::Active)).unwrap();

        assert_eq!(list(&node.root).unwrap(), [(task, Place::Finished)]);
    }

    /// W7: whatever is moved between the readings of the two directories, or while one of them is read.
    #[test]
    fn a_listing_that_meets_renames_has_each_task_once() {
        const TASKS: usize = 1000;
        let node = Node::new("renames");
        let ids: Vec<_> = (0..TASKS).map(|n| TaskId::new(format!("{n:04}")).unwrap()).collect();
        for id in &ids {
            fs::write(node.root.task(Place::Active, id), "{}").unwrap();
        }
        let mut met = false;
        let (listed_once, half) = std::sync::mpsc::sync_channel(0);
        let (all, root) = (&ids, &node.root);
        let move_all = move || {
            for (n, id) in all.iter().enumerate() {
                // The second of these has begun meanwhile.
                if n == TASKS / 2 {
                    (0..2).for_each(|_| half.recv().unwrap());
                }
                tasks::finish(root, id).unwrap();
            }
        };

        std::thread::scope(|scope| {
            let listed_once = listed_once;
            let moving = scope.spawn(move_all);
            loop {
                let is_last = moving.is_finished();
                let listed = list(&node.root).unwrap();
                let finished = listed.iter().filter(|(_, place)| *place == Place::Finished);
                met |= (1..TASKS).contains(&finished.count());
                let mut listed: Vec<_> = listed.into_iter().map(|(id, _)| id).collect();
                listed.sort_unstable();
                assert_eq!(listed, ids);
                let _ = listed_once.try_send(());
                if is_last {
                    break;
                }
            }
        });
        assert!(met, "no listing met a rename");
    }

    #[test]
    fn a_root_that_is_not_there_has_no_task() {
        let root = Root::new(std::env::temp_dir().join("dewar-observe-nowhere")).unwrap();

        assert_eq!(list(&root).unwrap(), []);
    }

    #[test]
    fn a_task_is_told_from_its_stream() {
        let node = Node::new("sound");
        let task = node.finished("a");

        let sight = look(&node.root, &task, Place::Finished).unwrap();

        assert_eq!(sight.accepted, 7);
        assert_eq!(sight.view.state(), TaskState::Success);
        assert_eq!(sight.view.state_history.len(), 4);
    }

    #[test]
    fn a_task_that_has_not_begun_is_told_as_it_was_accepted() {
        let node = Node::new("unbegun");
        let task = TaskId::new("a").unwrap();
        let accepted = serde_json::to_vec(&Node::launch("a")).unwrap();
        accept(&node.root, &task, &accepted).unwrap();

        let sight = look(&node.root, &task, Place::Active).unwrap();

        assert_eq!((sight.view.state(), sight.accepted), (TaskState::Active, 7));
        assert_eq!((sight.view.name.as_str(), sight.view.processes.len()), ("web", 1));
        let cut = "a power cut came before anybody was told that it was accepted";
        assert_eq!(sight.view.detail.as_deref(), Some(cut));

        node.root.create_checkpoint(&task).unwrap();
        tasks::make_durable(&node.root, &task, || Ok(())).unwrap();
        let view = node.look(&task, Place::Active);
        assert_eq!(view.detail.as_deref(), Some("accepted, and not begun"));
    }

    /// S29: whether or not its writer lives, a torn record is not there yet.
    #[test]
    fn a_torn_tail_is_not_told() {
        let node = Node::new("torn");
        let task = node.task("a", &[Phase::Active, Phase::Cleaning]);
        node.damage(&task, |bytes| {
            let end = bytes.iter().rposition(|&byte| byte != 0).unwrap();
            bytes.truncate(end);
        });

        let view = node.look(&task, Place::Active);

        assert_eq!(view.state(), TaskState::Active);
        assert_eq!(view.state_history.len(), 1);
    }

    /// S30.
    #[test]
    fn a_corrupt_task_says_in_which_file_and_where() {
        let node = Node::new("corrupt");
        let task = node.task("a", &[Phase::Active, Phase::Cleaning]);
        let mut offset = 0;
        node.damage(&task, |bytes| {
            let name = bytes.windows(8).position(|bytes| bytes == b"/sandbox").unwrap();
            bytes[name] ^= 1;
            offset = name;
        });

        let view = node.look(&task, Place::Active);

        let detail = view.detail.clone().unwrap();
        let file = node.root.runner(&task).display().to_string();
        assert_eq!(view.state(), TaskState::Corrupt);
        assert!(detail.starts_with(&format!("{file} is corrupt at byte ")), "{detail}");
        let at: usize =
            detail.split_whitespace().nth(5).unwrap().trim_end_matches(':').parse().unwrap();
        assert!(at < offset, "the record that holds byte {offset} begins before: {detail}");
        assert_eq!(view.processes, []);
    }

    #[test]
    fn a_stream_whose_records_make_no_sense_is_corrupt_and_told_as_far_as_they_do() {
        let node = Node::new("senseless");
        let task = node.task("a", &[Phase::Active, Phase::Success]);

        let view = node.look(&task, Place::Active);

        assert_eq!((view.state(), view.state_history.len()), (TaskState::Corrupt, 1));
        let detail = view.detail.unwrap();
        assert!(detail.ends_with("record 2 enters Success from Some(Active)"), "{detail}");
    }

    #[test]
    fn a_stream_is_read_on_from_where_it_was() {
        let node = Node::new("follow");
        let task = node.task("a", &[Phase::Active]);
        let mut whole = Vec::new();
        node.damage(&task, |bytes| {
            whole.clone_from(bytes);
            let end = bytes.iter().rposition(|&byte| byte != 0).unwrap();
            bytes.truncate(end);
        });
        let mut observed = Observed::open(&node.root, &task).unwrap();
        let mut seen = Vec::new();

        observed.advance(|_, applied| seen.push(applied.seq)).unwrap();
        assert_eq!(observed.replay().unwrap().state().phase(), None);
        fs::write(node.root.runner(&task), &whole).unwrap();
        observed.advance(|_, applied| seen.push(applied.seq)).unwrap();
        observed.advance(|_, applied| seen.push(applied.seq)).unwrap();

        assert_eq!(seen, [1]);
        assert_eq!(observed.replay().unwrap().state().phase(), Some(Phase::Active));
    }
}
