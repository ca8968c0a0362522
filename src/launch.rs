//! From a task that was accepted to a runner that drives it: for the command line and the daemon.
#![allow(clippy::disallowed_methods, reason = "writes the acceptance, starts runners")]

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::getuid;
use prost::Message;

use crate::cgroup::Base;
use crate::checkpoint::tasks::{self, AcceptError};
use crate::checkpoint::{
    Identity, Instant, IoError, OpenError, ReadError, Reader, Recovery, Root, Writer, paths::Place,
    paths::RootError,
};
use crate::failpoint::{Failpoint, hit};
use crate::proto::record::Kind;
use crate::proto::{ControlRequest, Launch};
use crate::runner;
use crate::sys::exec::{Image, exit_now};
use crate::sys::socket::{Datagram, Peer};
use crate::sys::start::ignore_broken_pipes;
use crate::sys::{self, clock, clone, fds, fs, limit, signal, socket, title};
use crate::task::TaskId;

/// Times that the stream of a new task is tried to be made.
const STREAM_TRIES: u32 = 8;

/// Why a task was not launched. Nothing was started, but for [`LaunchError::Uncertain`].
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The id was used before.
    #[error("task {0} is finished; a task id is used once")]
    Finished(TaskId),
    /// The id is in use for another task.
    #[error("task {task} is active with another {field}: {active} there, {asked} asked for")]
    Differs {
        /// The task.
        task: TaskId,
        /// Path of the first field that differs.
        field: String,
        /// Its value in the active task.
        active: String,
        /// Its value as asked for.
        asked: String,
    },
    /// A runner has the lead.
    #[error("task {task} is held by {holder}")]
    Held {
        /// The task.
        task: TaskId,
        /// Who has the lead.
        holder: String,
    },
    /// There is no such task.
    #[error("there is no task {0}")]
    Unknown(TaskId),
    /// The root cannot be used.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The stream cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The stream cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The task file could not be written.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The header could not be written.
    #[error(transparent)]
    Write(#[from] crate::checkpoint::WriteError),
    /// The task is active and may have begun, but a power cut may take it: its entry cannot be synced. Nobody is to be told that it
    /// was accepted.
    #[error("task {task} is active, and may not outlast a power cut")]
    Uncertain {
        /// The task.
        task: TaskId,
        /// What failed.
        #[source]
        error: IoError,
    },
    /// The runner could not be started.
    #[error("start {}", path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
}

impl From<AcceptError> for LaunchError {
    fn from(error: AcceptError) -> Self {
        match error {
            AcceptError::Io(error) => error.into(),
            AcceptError::Finished(task) => Self::Finished(task),
            AcceptError::Active(task) | AcceptError::Busy(task) => held(&task, "another launch"),
        }
    }
}

/// What became of a task that was handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// It is new, and durably accepted.
    New,
    /// The same task was accepted before, and is not over.
    Active,
}

/// Accepts a task: it is on disk when this returns.
///
/// The file in `tasks/active` is the acceptance. A crash before leaves a stream that belongs to no task; the next try for
/// the same id replaces it. Whoever accepts holds the lock of the stream until the file is there.
///
/// # Errors
///
/// [`LaunchError`]; but for [`LaunchError::Uncertain`] the task is not accepted then.
pub fn accept(root: &Root, task: &TaskId, launch: &Launch) -> Result<Accepted, LaunchError> {
    let accepted = accept_while(root, task, launch, Ok);
    if let Err(LaunchError::Uncertain { error, .. }) = accepted {
        let _turn = Turn::wait(root.runner(task));
        // Unless somebody else has let it begin, it is as if it had never been.
        return Err(match take_back(root, task, LAUNCHED) {
            Ok(true) => error.into(),
            _ => LaunchError::Uncertain { task: task.clone(), error },
        });
    }
    accepted
}

/// Accepts a task, and lets its runner begin while that goes to the disk.
///
/// `begin` is called once the task is active, with what became of it. Nobody is to be told before this returns; the
/// runner for its part records nothing that must last before it knows that the acceptance does ([`Started::confirm`]).
///
/// # Errors
///
/// That of `begin`, and [`LaunchError`]. With all but [`LaunchError::Uncertain`] the task is not accepted, or was not
/// before, or could not begin.
pub fn accept_and_begin(
    root: &Root,
    task: &TaskId,
    launch: &Launch,
    begin: impl FnOnce(Accepted) -> Result<Started, LaunchError>,
) -> Result<Started, LaunchError> {
    let started = accept_while(root, task, launch, begin)?;
    started.confirm();
    Ok(started)
}

/// Accepts a task; it is active when `begin` is called, and on disk when this returns.
fn accept_while<T>(
    root: &Root,
    task: &TaskId,
    launch: &Launch,
    begin: impl FnOnce(Accepted) -> Result<T, LaunchError>,
) -> Result<T, LaunchError> {
    let turn = Turn::wait(root.runner(task));
    let accepted = accept_undurably(root, task, launch)?;
    // A runner is about to lock the stream, and others may look at it: this process is done with it.
    drop(turn);
    if accepted == Accepted::Active {
        return begin(accepted);
    }
    // It is accepted, whatever fails from here on.
    let _ = hit(Failpoint::AcceptAccepted);
    let begun = begin(accepted);
    let path = root.tasks(Place::Active);
    hit(Failpoint::AcceptBegun)
        .map_err(|source| IoError { call: "fsync", path, source })
        .and_then(|()| tasks::make_durable(root, task, || sync_stream(root, task)))
        .map_err(|error| LaunchError::Uncertain { task: task.clone(), error })?;
    let _ = hit(Failpoint::AcceptDurable);
    begun
}

fn sync_stream(root: &Root, task: &TaskId) -> Result<(), IoError> {
    match Reader::open(root, &Identity::runner(task.clone())) {
        Ok(reader) => reader.sync(),
        Err(ReadError::Io(error)) => Err(error),
        Err(error) => {
            Err(IoError { call: "open", path: root.runner(task), source: io::Error::other(error) })
        }
    }
}

/// Records of a task that nobody has let begin: its launch.
const LAUNCHED: usize = 1;

/// Takes back a task of which a power cut has left no more than that it is active, and says whether that was so: nobody was
/// told of it.
///
/// # Errors
///
/// [`LaunchError`].
pub fn take_back_hollow(root: &Root, task: &TaskId) -> Result<bool, LaunchError> {
    let _turn = Turn::wait(root.runner(task));
    take_back(root, task, 0)
}

/// Takes back a task that nobody was told of, unless it has more than `most` records, or somebody leads it.
fn take_back(root: &Root, task: &TaskId, most: usize) -> Result<bool, LaunchError> {
    let may_go = || match tasks::is_sealed(root, task) {
        Err(error) if error.is_missing() => Ok(false),
        sealed => sealed.map(|sealed| !sealed),
    };
    if !may_go()? {
        return Ok(false);
    }
    root.create_checkpoint(task)?;
    let mut stream = match Recovery::open_or_create(root, Identity::runner(task.clone())) {
        Err(OpenError::Held { .. } | OpenError::Removed { .. }) => return Ok(false),
        stream => stream?,
    };
    for _ in 0..most {
        stream.next_record()?;
    }
    // Before it was locked, somebody may have gone on with it.
    if stream.next_record()?.is_some() || !may_go()? {
        return Ok(false);
    }
    tasks::take_back(root, task)?;
    forget(root, task);
    Ok(true)
}

/// Makes a task active, or finds it so: one that is new is not on disk then, and one that was active is.
fn accept_undurably(root: &Root, task: &TaskId, launch: &Launch) -> Result<Accepted, LaunchError> {
    root.create()?;
    if let Some(accepted) = known(root, task, launch)? {
        return Ok(accepted);
    }
    let Some(mut writer) = make_stream(root, task)? else {
        return known(root, task, launch)?.ok_or_else(|| held(task, "another launch"));
    };
    match write(root, task, launch, &mut writer) {
        Ok(()) => Ok(Accepted::New),
        Err(error) => {
            if !tasks::is_known(root, task) {
                forget(root, task);
            }
            Err(error)
        }
    }
}

/// Removes what is left of a task that is none. It is in nobody's way, but takes space.
fn forget(root: &Root, task: &TaskId) {
    let _ = std::fs::remove_file(root.runner(task));
    let _ = std::fs::remove_dir(root.checkpoint(task));
}

/// Makes the stream of a task in a directory of its own, as [`create_stream`] does. Whoever removes the last task of this id, or sweeps what is
/// left of it, may remove the empty directory meanwhile.
fn make_stream(root: &Root, task: &TaskId) -> Result<Option<Writer>, LaunchError> {
    let mut tries = 1;
    loop {
        let directory = root.create_checkpoint(task).map_err(LaunchError::from);
        match directory.and_then(|()| create_stream(root, task)) {
            Err(error) if tries < STREAM_TRIES && is_missing(&error) => tries += 1,
            Err(error) => {
                // That of a task has its stream, and stays.
                let _ = std::fs::remove_dir(root.checkpoint(task));
                return Err(error);
            }
            made => return made,
        }
    }
}

fn is_missing(error: &LaunchError) -> bool {
    match error {
        LaunchError::Root(RootError::Io(error)) | LaunchError::Io(error) => error.is_missing(),
        LaunchError::Open(OpenError::Read(ReadError::Missing { .. })) => true,
        _ => false,
    }
}

/// The streams of tasks that this process accepts right now.
static ACCEPTING: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Notified when one of them is done.
static ACCEPTED: Condvar = Condvar::new();

/// The turn of one thread to accept a task of an id. The lock of a stream is the process': it does not keep our threads
/// apart, and one that merely opens and closes the stream drops the lock of another (fcntl(2)).
pub(crate) struct Turn(PathBuf);

impl Turn {
    /// Waits for it.
    pub(crate) fn wait(stream: PathBuf) -> Self {
        // A thread that panicked has left the set as whole as any other.
        let accepting = ACCEPTING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut accepting = ACCEPTED
            .wait_while(accepting, |accepting| accepting.contains(&stream))
            .unwrap_or_else(PoisonError::into_inner);
        accepting.insert(stream.clone());
        Self(stream)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        ACCEPTING.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
        ACCEPTED.notify_all();
    }
}

/// Writes the header, and then the file that is the acceptance.
fn write(
    root: &Root,
    task: &TaskId,
    launch: &Launch,
    writer: &mut Writer,
) -> Result<(), LaunchError> {
    pass(root, task, Failpoint::AcceptHeader)?;
    let now = clock::now();
    let at = Instant { boot_nanos: now.boot, unix_nanos: now.wall };
    writer.append(Kind::Launch(launch.clone()), at)?;
    // A full disk is found here, before any of it is waited for.
    writer.flush()?;
    pass(root, task, Failpoint::AcceptWritten)?;
    let content = serde_json::to_vec(launch).expect("a message without maps of odd keys");
    Ok(tasks::accept(root, task, &content)?)
}

/// The stream of a task that is not accepted yet, locked; `None` if the id is somebody else's by now.
///
/// A stream that a crash left is replaced. It is told from that of an accepted task under its lock, where nobody
/// can accept one meanwhile.
fn create_stream(root: &Root, task: &TaskId) -> Result<Option<Writer>, LaunchError> {
    pass(root, task, Failpoint::AcceptStream)?;
    if let Some(writer) = try_create(root, task)? {
        return Ok(Some(writer));
    }
    let left = match Recovery::open(root, Identity::runner(task.clone())) {
        Ok(left) => left,
        Err(OpenError::Held { .. } | OpenError::Removed { .. })
        | Err(OpenError::Read(ReadError::Missing { .. })) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if tasks::is_known(root, task) {
        return Ok(None);
    }
    let path = root.runner(task);
    std::fs::remove_file(&path).map_err(|source| IoError { call: "unlink", path, source })?;
    let created = try_create(root, task);
    // Until here its inode has its number: the lock of the new one is not taken for that of the old.
    drop(left);
    created
}

/// `None` where there is a stream already.
fn try_create(root: &Root, task: &TaskId) -> Result<Option<Writer>, LaunchError> {
    match Writer::create(root, Identity::runner(task.clone())) {
        Ok(writer) => Ok(Some(writer)),
        Err(OpenError::Exists { .. } | OpenError::Held { .. } | OpenError::Removed { .. }) => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn pass(root: &Root, task: &TaskId, point: Failpoint) -> Result<(), LaunchError> {
    let call = "pass a failpoint at";
    Ok(hit(point).map_err(|source| IoError { call, path: root.runner(task), source })?)
}

fn held(task: &TaskId, holder: &str) -> LaunchError {
    LaunchError::Held { task: task.clone(), holder: holder.to_owned() }
}

/// Whether the id is taken: by the same task, which is active, or by another, which is refused.
fn known(root: &Root, task: &TaskId, launch: &Launch) -> Result<Option<Accepted>, LaunchError> {
    if root.task(Place::Finished, task).exists() {
        return Err(LaunchError::Finished(task.clone()));
    }
    if !root.task(Place::Active, task).exists() {
        return Ok(None);
    }
    let read = Reader::open(root, &Identity::runner(task.clone())).map_err(LaunchError::from);
    let read = read.and_then(|mut reader| Ok((header_of(&mut reader, task)?, reader)));
    let (active, reader) = match read {
        Err(LaunchError::Read(ReadError::Missing { .. }) | LaunchError::Unknown(_))
            if take_back(root, task, 0)? =>
        {
            return Ok(None);
        }
        read => read?,
    };
    match difference(&active, launch) {
        None => {
            // Who accepted it may have been stopped before the sync, and nobody is told what is not on disk.
            tasks::make_durable(root, task, || reader.sync())?;
            Ok(Some(Accepted::Active))
        }
        Some((field, active, asked)) => {
            Err(LaunchError::Differs { task: task.clone(), field, active, asked })
        }
    }
}

/// The launch that a task was accepted with.
///
/// # Errors
///
/// [`LaunchError::Unknown`], [`LaunchError::Read`].
pub fn header(root: &Root, task: &TaskId) -> Result<Launch, LaunchError> {
    header_of(&mut Reader::open(root, &Identity::runner(task.clone()))?, task)
}

fn header_of(reader: &mut Reader, task: &TaskId) -> Result<Launch, LaunchError> {
    match reader.next_record()?.and_then(|record| record.kind) {
        Some(Kind::Launch(launch)) => Ok(launch),
        _ => Err(LaunchError::Unknown(task.clone())),
    }
}

/// The first field in which two launches ask for different things, and both values.
fn difference(active: &Launch, asked: &Launch) -> Option<(String, String, String)> {
    let essence = |launch: &Launch| {
        serde_json::to_value(Launch {
            accepted_unix_nanos: 0,
            hostname: String::new(),
            path: String::new(),
            unenforced: Vec::new(),
            rounded: Vec::new(),
            ..launch.clone()
        })
        .unwrap_or_default()
    };
    first_difference("", &essence(active), &essence(asked))
}

fn first_difference(
    path: &str,
    a: &serde_json::Value,
    b: &serde_json::Value,
) -> Option<(String, String, String)> {
    use serde_json::Value::{Array, Null, Object};
    match (a, b) {
        (a, b) if a == b => None,
        (Object(a), Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
            keys.into_iter().find_map(|key| {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                first_difference(&path, a.get(key).unwrap_or(&Null), b.get(key).unwrap_or(&Null))
            })
        }
        (Array(a), Array(b)) if a.len() == b.len() => {
            let mut pairs = a.iter().zip(b).enumerate();
            pairs.find_map(|(i, (a, b))| first_difference(&format!("{path}[{i}]"), a, b))
        }
        _ => Some((path.to_owned(), a.to_string(), b.to_string())),
    }
}

/// Where output of a runner goes that is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// To our own standard output and error.
    Inherit,
    /// All to our own standard error: our standard output is for a program.
    Stderr,
    /// Nowhere; what the runner itself has to say goes to `runner.log` in the checkpoint directory, where that can be made.
    Log,
}

/// A runner that was started, and waits for the word to go. Without it, it leaves.
#[derive(Debug)]
pub struct Waiting(Started);

impl Waiting {
    /// Lets the runner go: its task is accepted.
    ///
    /// # Errors
    ///
    /// [`LaunchError::Start`]: it is gone.
    pub fn go(self) -> Result<Started, LaunchError> {
        self.send(GO)
    }

    /// Lets the runner go: its task was accepted just now, by this process.
    ///
    /// # Errors
    ///
    /// [`LaunchError::Start`]: it is gone.
    pub fn go_afresh(self) -> Result<Started, LaunchError> {
        self.send(GO_AFRESH)
    }

    fn send(self, word: u8) -> Result<Started, LaunchError> {
        match nix::unistd::write(&self.0.nudges, &[word]) {
            Ok(_) => Ok(self.0),
            Err(errno) => Err(start_error("dewar-runner".into(), errno.into())),
        }
    }

    /// Lets the runner go, with a request that it hears before it decides anything: it starts no run first that a kill would
    /// forbid. Answered on the other end of `reply`.
    ///
    /// # Errors
    ///
    /// [`LaunchError::Start`]: it is gone.
    pub fn go_with(
        self,
        request: &ControlRequest,
        reply: BorrowedFd<'_>,
        by: Option<u32>,
    ) -> Result<Started, LaunchError> {
        let request = request.encode_to_vec();
        let length = u32::try_from(request.len()).unwrap_or(u32::MAX).to_ne_bytes();
        let by = by.unwrap_or_else(|| getuid().as_raw()).to_ne_bytes();
        let bytes = [&[GO_WITH], &length[..], &by, &request].concat();
        let Started { pid, pidfd, nudges } = self.0;
        let stream = UnixStream::from(nudges);
        match socket::send(&stream, &bytes, reply) {
            Ok(()) => Ok(Started { pid, pidfd, nudges: stream.into() }),
            Err(error) => Err(start_error("dewar-runner".into(), error)),
        }
    }
}

/// First byte to a runner: it may begin.
const GO: u8 = 0;

/// First byte to a runner: it may begin, and hears a request first. The length of that follows, and the user on whose behalf it is
/// made, 4 bytes each, and the request; with the byte comes the descriptor for the answer.
///
/// 1 was the same without the user; a daemon of that time asks anew when it gets no answer.
const GO_WITH: u8 = 3;

/// First byte to a runner: it may begin, and whoever says so has just accepted its task, and would end it if that could not be synced. A
/// runner of before takes it for [`GO`].
const GO_AFRESH: u8 = 4;

/// Second byte to a runner, after the word to go and whatever came with it: the acceptance of its task is on disk.
const DURABLE: u8 = 2;

/// What a runner is told before it begins.
#[derive(Debug)]
pub enum Word {
    /// Its task is accepted.
    Go,
    /// The same, by whoever says so, just now.
    GoAfresh,
    /// The same, and there is a request.
    GoWith(Datagram),
}

/// Waits for the word to go; `None` if none will come. The runner's end of [`Waiting`].
///
/// # Errors
///
/// That of recvmsg(2), read(2) or getsockopt(2).
pub fn hear(follower: OwnedFd) -> io::Result<(OwnedFd, Option<Word>)> {
    let stream = UnixStream::from(follower);
    let mut first = [GO; 1];
    let (count, fd) = socket::receive_some(&stream, &mut first)?;
    let word = match (count, first) {
        (0, _) => None,
        (_, [GO_WITH]) => {
            let (mut length, mut by) = ([0; 4], [0; 4]);
            (&stream).read_exact(&mut length)?;
            (&stream).read_exact(&mut by)?;
            let mut bytes = Vec::new();
            (&stream).take(u32::from_ne_bytes(length).into()).read_to_end(&mut bytes)?;
            let maker = socket::maker(&stream)?;
            // Root may speak for others, as it may on the control socket.
            let uid = if maker.uid == 0 { u32::from_ne_bytes(by) } else { maker.uid };
            let peer = Peer { uid, ..maker };
            Some(Word::GoWith(Datagram { bytes, peer, fd }))
        }
        (_, [GO_AFRESH]) => Some(Word::GoAfresh),
        _ => Some(Word::Go),
    };
    Ok((stream.into(), word))
}

/// A runner that was started.
#[derive(Debug)]
pub struct Started {
    /// Its pid.
    pub pid: i32,
    /// Readable once it is dead.
    pub pidfd: OwnedFd,
    /// One byte comes for each turn that recorded something; at its end the runner is gone.
    pub nudges: OwnedFd,
}

/// Waits until a runner has recorded that it leads, so that who asks next finds it; or until it is gone, which is told by
/// whoever looks.
pub fn wait_for_lead(nudges: &OwnedFd) {
    while nix::unistd::read(nudges, &mut [0]) == Err(nix::errno::Errno::EINTR) {}
}

impl Started {
    /// Tells the runner that the acceptance of its task is on disk. One that is not told, or was told of too late, syncs it
    /// itself.
    pub fn confirm(&self) {
        // It may be gone by now.
        let _ = nix::unistd::write(&self.nudges, &[DURABLE]);
    }
}

/// Whether whoever started a runner says that the acceptance of its task is on disk; waits that long for it, or for the end of that one.
/// `word` is the runner's end, that does not block, and was heard to the end ([`hear`]).
pub fn is_confirmed(word: BorrowedFd<'_>, wait: Duration) -> bool {
    let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
    // Whatever it says, the read tells.
    let _ = poll(&mut [PollFd::new(word, PollFlags::POLLIN)], wait);
    let mut byte = [0];
    matches!(nix::unistd::read(word, &mut byte), Ok(1)) && byte == [DURABLE]
}

/// Starts a runner for `task`, in its own session and, where there are cgroups, born in the supervisor's. The program is
/// loaded while the caller goes on, as with accepting the task; [`Waiting::go`] lets it begin.
///
/// # Errors
///
/// [`LaunchError::Start`].
pub fn prepare_runner(
    root: &Root,
    task: &TaskId,
    base: Option<&Base>,
    console: Console,
) -> Result<Waiting, LaunchError> {
    let program = runner_program().map_err(|error| start_error("dewar-runner".into(), error))?;
    let start = || -> io::Result<Waiting> {
        let (nudges, descriptors) = Descriptors::new(root, task, console)?;
        let image = Image::new(path_string(&program), words(root, task, base), environment());
        let (pid, pidfd) = clone::clone_into(base.map(Base::supervisor), || {
            let laid = descriptors.lay().and_then(|()| fds::close_on_exec_from(FOLLOWER + 1));
            let errno = laid.err().unwrap_or_else(|| image.execve());
            // The reason can be told by the status alone.
            exit_now(errno as i32)
        })?;
        Ok(Waiting(Started { pid: pid.as_raw(), pidfd, nudges }))
    };
    start().map_err(|error| start_error(program.clone(), error))
}

/// As [`prepare_runner`], with a fork of this process: no program is loaded. For one that has a single thread, nothing mapped that a
/// runner does not need, and a task to follow to its end.
///
/// # Errors
///
/// [`LaunchError::Start`].
pub fn fork_runner(
    root: &Root,
    task: &TaskId,
    base: Option<&Base>,
    console: Console,
) -> Result<Waiting, LaunchError> {
    let start = || -> io::Result<Option<Waiting>> {
        let (nudges, descriptors) = Descriptors::new(root, task, console)?;
        let (words, environment) = (words(root, task, base), environment());
        let forked = clone::fork_into(base.map(Base::supervisor), || {
            let begun = descriptors.lay().map_err(io::Error::from);
            if let Err(error) = begun.and_then(|()| fds::close_all_but(&mut [FOLLOWER])) {
                exit_now(error.raw_os_error().unwrap_or_default())
            }
            title::set(c"dewar-runner", &words, &environment);
            // What `begin` does for a program, and `default_all` has undone.
            ignore_broken_pipes();
            // That of a command speaks for it.
            drop(std::panic::take_hook());
            let run = || runner::program::run(root.path(), task, base.map(Base::path));
            // As a program that panics.
            let status = catch_unwind(run).unwrap_or_else(|_| std::process::abort());
            exit_now(status.into())
        });
        match forked {
            Ok((pid, pidfd)) => Ok(Some(Waiting(Started { pid: pid.as_raw(), pidfd, nudges }))),
            Err(Errno::ENOSYS) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    };
    match start().map_err(|error| start_error("dewar-runner".into(), error))? {
        Some(waiting) => Ok(waiting),
        None => prepare_runner(root, task, base, console),
    }
}

/// What a runner has open from its start.
struct Descriptors {
    /// Its standard input, output and error.
    standard: [OwnedFd; 3],
    /// Where it hears that it may go, and nudges.
    follower: OwnedFd,
}

impl Descriptors {
    /// Makes them, and the other end of the last.
    fn new(root: &Root, task: &TaskId, console: Console) -> io::Result<(OwnedFd, Self)> {
        let (ours, theirs) = socket::pair()?;
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let log = match console {
            Console::Log => runner_log(root, task)?,
            _ => fs::duplicate_above_standard(io::stderr())?,
        };
        let out = match console {
            Console::Inherit => fs::duplicate_above_standard(io::stdout())?,
            Console::Stderr => fs::duplicate_above_standard(io::stderr())?,
            Console::Log => fs::duplicate_above_standard(&null)?,
        };
        let null = fs::duplicate_above_standard(&null)?;
        let log: OwnedFd = fs::duplicate_above_standard(&log)?;
        let follower = fs::duplicate_above_standard(&theirs)?;
        Ok((ours, Self { standard: [null, out, log], follower }))
    }

    /// In the child, which leaves the session of its parent: lays them out. System calls only.
    fn lay(&self) -> Result<(), Errno> {
        nix::unistd::setsid()?;
        // What a terminal sent to the session before, such as ^C, was for whoever follows the task.
        signal::discard_pending()?;
        signal::default_all()?;
        signal::unblock_all()?;
        limit::restore_open_files()?;
        fs::lay_standard(&self.standard)?;
        fds::lay(self.follower.as_fd(), FOLLOWER)
    }
}

/// `runner.log`, or `/dev/null` where there is no space for it: a task without a runner could not even be killed.
fn runner_log(root: &Root, task: &TaskId) -> io::Result<OwnedFd> {
    let open = |path: &Path| std::fs::OpenOptions::new().append(true).create(true).open(path);
    let log = open(&root.checkpoint(task).join("runner.log")).or_else(|error| {
        let errno = error.raw_os_error().map(Errno::from_raw);
        if errno.is_some_and(sys::is_no_space) { open("/dev/null".as_ref()) } else { Err(error) }
    });
    Ok(log?.into())
}

fn start_error(path: PathBuf, error: io::Error) -> LaunchError {
    LaunchError::Start { path, error }
}

/// `dewar-runner` beside this program.
fn runner_program() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("dewar-runner");
    if !path.exists() {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    Ok(path)
}

/// A file of a program, told from any that is put in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramFile {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl ProgramFile {
    /// What is at `path`; `None` if nothing is.
    fn at(path: &Path) -> Option<Self> {
        let file = std::fs::metadata(path).ok()?;
        let changed = (file.ctime(), file.ctime_nsec());
        Some(Self { device: file.dev(), inode: file.ino(), changed })
    }
}

/// The program that is started as a runner; `None` if it is not there.
pub fn runner_file() -> Option<ProgramFile> {
    ProgramFile::at(&runner_program().ok()?)
}

/// Number of the descriptor that a runner nudges from its start.
pub const FOLLOWER: i32 = 3;

/// How a runner is called.
fn words(root: &Root, task: &TaskId, base: Option<&Base>) -> Vec<CString> {
    let words = [c_string("dewar-runner"), path_string(root.path()), c_string(task.as_str())];
    words.into_iter().chain(base.map(|base| path_string(base.path()))).collect()
}

/// The environment of a runner. It needs nothing of ours, which its runs may see (proc_pid_environ(5)); DEWAR_ ones are for us.
fn environment() -> Vec<CString> {
    let env = std::env::vars_os().filter(|(name, _)| name.as_bytes().starts_with(b"DEWAR_"));
    let env = env.filter_map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        CString::new(name.into_vec()).ok()
    });
    env.collect()
}

fn c_string(text: &str) -> CString {
    CString::new(text).expect("names hold no control character")
}

fn path_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path that exists holds no NUL")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TempDir, alone, become_ordinary, is_root};

    /// Whom a runner hears to have asked, of a request for user 4711 that it is started with.
    fn heard() -> u32 {
        let (ours, theirs) = socket::pair().unwrap();
        let (reply, _) = socket::pair().unwrap();
        let pidfd = reply.try_clone().unwrap();
        let waiting = Waiting(Started { pid: 0, pidfd, nudges: ours });
        let request = ControlRequest::default();

        let _started = waiting.go_with(&request, reply.as_fd(), Some(4711)).unwrap();

        let (_, word) = hear(theirs).unwrap();
        let Some(Word::GoWith(Datagram { bytes, peer, fd })) = word else { panic!("no request") };
        assert_eq!((bytes, fd.is_some()), (request.encode_to_vec(), true));
        peer.uid
    }

    #[test]
    fn a_program_in_whose_place_another_is_put_is_not_the_same() {
        let dir = TempDir::new();
        let [program, other] = ["program", "other"].map(|name| dir.path().join(name));
        assert_eq!(ProgramFile::at(&program), None);
        std::fs::write(&program, "v1").unwrap();
        std::fs::write(&other, "v1").unwrap();
        let before = ProgramFile::at(&program);

        assert_eq!(ProgramFile::at(&program), before);
        std::fs::rename(&other, &program).unwrap();
        assert!(before.is_some() && ProgramFile::at(&program) != before);
    }

    #[test]
    fn a_runner_hears_whether_its_task_was_accepted_just_now() {
        let heard = |go: fn(Waiting) -> Result<Started, LaunchError>| {
            let (ours, theirs) = socket::pair().unwrap();
            let pidfd = theirs.try_clone().unwrap();
            let _started = go(Waiting(Started { pid: 0, pidfd, nudges: ours })).unwrap();
            hear(theirs).unwrap().1
        };

        assert!(matches!(heard(Waiting::go), Some(Word::Go)));
        assert!(matches!(heard(Waiting::go_afresh), Some(Word::GoAfresh)));
    }

    #[test]
    fn a_runner_that_is_started_for_a_request_hears_whom_it_is_for() {
        if is_root() {
            assert_eq!(heard(), 4711);
        }
        alone(|| {
            become_ordinary();
            assert_eq!(heard(), getuid().as_raw(), "only root may speak for others");
        });
    }
}
