//! Follows all tasks of the root: one thread, asleep in one epoll set until a runner nudges, a runner dies, or a directory of
//! tasks changes (inotify(7)). It never polls.
//!
//! A runner that dies before its task is over is replaced, at once the first time, and with growing pauses if that does not help. A task
//! that appeared is somebody's who starts a runner for it right now: it gets time to listen, before one is started from here.

use std::collections::{BinaryHeap, HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::socket::{MsgFlags, recv};

use super::registry::{Entry, News, Registry};
use crate::causes::chain;
use crate::cgroup::{self, TaskCgroup};
use crate::checkpoint::paths::Place;
use crate::checkpoint::{ReadError, tasks};
use crate::control::{self, ControlError};
use crate::failpoint::{Failpoint, hit};
use crate::launch::{self, Console, ProgramFile, runner_file};
use crate::observe::{self, ObserveError, Observed};
use crate::reach::{Followed, Reach};
use crate::sys::pidfd::{self, Exit};
use crate::task::TaskId;
use crate::view::{Replay, corrupt_view, event_view};

/// Pauses before the next try to follow a task that appeared, in milliseconds; then a runner is started.
const APPEARED: [u64; 6] = [2, 8, 30, 120, 500, 2000];
/// Pauses before another runner is started for a task whose runner died, in milliseconds; the last one again and again.
const RESTART: [u64; 6] = [0, 100, 1000, 5000, 20_000, 60_000];
/// Time between two looks at whether a runner would go on with a task that one has refused: none is started for it.
const REFUSED: Duration = Duration::from_secs(60);
/// A runner that lived so long has nothing to do with the one before.
const STABLE: Duration = Duration::from_secs(60);

/// What says that a name has left a directory.
const LEAVES: AddWatchFlags = AddWatchFlags::IN_DELETE.union(AddWatchFlags::IN_MOVED_FROM);

const WAKE: u64 = 0;
const DIRS: u64 = 1;
/// First token of a task.
const FIRST: u64 = 2;

/// The thread; dropped, it ends.
pub(crate) struct Follower {
    door: Arc<Door>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// How the thread is told.
    pub(super) fn door(&self) -> Arc<Door> {
        self.door.clone()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.door.say(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread is told.
enum Command {
    Stop,
    /// A task was launched from here, and this is its runner, if one could be started. At the end of the channel it is known.
    Adopt(TaskId, Option<Followed>, mpsc::Sender<()>),
}

/// How it is told.
pub(crate) struct Door {
    commands: Mutex<Vec<Command>>,
    wake: EventFd,
}

impl Door {
    /// Follows a task that was launched from here, by the runner that was started for it; blocks until it is known.
    pub(super) fn adopt(&self, id: TaskId, runner: Option<Followed>) {
        let (known, wait) = mpsc::channel();
        self.say(Command::Adopt(id, runner, known));
        let _ = wait.recv();
    }

    fn say(&self, command: Command) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).push(command);
        let _ = self.wake.write(1);
    }
}

/// Finds all tasks, and follows them from then on.
///
/// # Errors
///
/// Those of epoll_create1(2), eventfd(2), inotify_init1(2), inotify_add_watch(2), or of a directory that cannot be read.
pub(super) fn start(
    registry: &Arc<Registry>,
    cgroup_base: Option<PathBuf>,
) -> io::Result<Follower> {
    let door = Arc::new(Door {
        commands: Mutex::default(),
        wake: EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
    });
    let mut tasks = Tasks::new(registry.clone(), cgroup_base, &door)?;
    tasks.scan(true)?;
    let inside = door.clone();
    let thread = std::thread::Builder::new().name("follow".to_owned()).spawn(move || {
        tasks.run(&inside);
    })?;
    Ok(Follower { door, thread: Some(thread) })
}

/// A task that is not over.
struct Live {
    id: TaskId,
    observed: Observed,
    entry: Entry,
    runner: Option<Runner>,
    /// How often a runner was missed.
    missed: usize,
    /// Whether somebody else is about to start its runner.
    appeared: bool,
    /// What no runner goes on with.
    refused: Option<Refused>,
    /// Whether somebody has taken it from among the tasks. Nothing is told of it, and its runner, which goes on, is waited for.
    vanished: bool,
}

/// Its runner, which is followed.
struct Runner {
    followed: Followed,
    since: Instant,
    /// How many bytes of the stream were read by then.
    from: u64,
}

/// A stream of a later dewar, as far as it was read, and the runner that would not go on with it. Another one may.
#[derive(PartialEq, Eq)]
struct Refused {
    offset: u64,
    runner: Option<ProgramFile>,
}

impl Refused {
    /// What would be refused now.
    fn now(observed: &Observed) -> Self {
        Self { offset: observed.offset(), runner: runner_file() }
    }
}

impl Live {
    /// Whether a runner that were started now would refuse to go on, as one has done.
    fn is_refused(&self) -> bool {
        self.refused.as_ref().is_some_and(|refused| *refused == Refused::now(&self.observed))
    }

    /// Its entry as it was read, and what is wrong with it.
    fn entry(&self, detail: Option<String>) -> Option<Entry> {
        let replay = self.observed.replay()?;
        let mut view = replay.view(None);
        view.detail = detail.or(view.detail);
        let waits_for_disk = self.entry.waits_for_disk;
        Some(Entry { waits_for_disk, ..Entry::of(&view, Some(replay.launch())) })
    }
}

/// A time at which a runner is looked for.
#[derive(PartialEq, Eq)]
struct Due {
    at: Instant,
    token: u64,
}

impl Ord for Due {
    /// The earliest is the greatest, for the heap.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.token).cmp(&(self.at, self.token))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

struct Tasks {
    registry: Arc<Registry>,
    cgroup_base: Option<PathBuf>,
    epoll: Epoll,
    inotify: Inotify,
    active: WatchDescriptor,
    live: HashMap<u64, Live>,
    tokens: HashMap<TaskId, u64>,
    due: BinaryHeap<Due>,
    next_token: u64,
}

impl Tasks {
    fn new(registry: Arc<Registry>, cgroup_base: Option<PathBuf>, door: &Door) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let names = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | LEAVES;
        let root = registry.root();
        let active = inotify.add_watch(&root.tasks(Place::Active), names)?;
        inotify.add_watch(&root.tasks(Place::Finished), names)?;
        epoll.add(&door.wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        epoll.add(&inotify, EpollEvent::new(EpollFlags::EPOLLIN, DIRS))?;
        Ok(Self {
            registry,
            cgroup_base,
            epoll,
            inotify,
            active,
            live: HashMap::new(),
            tokens: HashMap::new(),
            due: BinaryHeap::new(),
            next_token: FIRST,
        })
    }

    /// Takes in all tasks that are on disk and not known. `first`: nobody is about to start a runner for any of them.
    fn scan(&mut self, first: bool) -> io::Result<()> {
        let tasks = observe::list(self.registry.root()).map_err(io::Error::other)?;
        for (id, place) in tasks {
            match place {
                Place::Active => self.appeared(&id, !first),
                Place::Finished => self.is_over(&id, !first),
            }
        }
        Ok(())
    }

    /// Forgets tasks that are not on disk any more, whose removal was not told.
    fn miss_removed(&mut self) -> io::Result<()> {
        let tasks = observe::list(self.registry.root()).map_err(io::Error::other)?;
        let there: HashSet<_> = tasks.into_iter().map(|(id, _)| id).collect();
        let mut gone = Vec::new();
        self.registry.each(|(id, _)| {
            if !there.contains(id) {
                gone.push(id.clone());
            }
        });
        gone.iter().for_each(|id| self.vanished(id));
        Ok(())
    }

    fn run(&mut self, door: &Door) {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let count = match self.epoll.wait(&mut events, self.timeout()) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(errno) => {
                    tracing::error!(%errno, "epoll_wait: tasks are not followed any more");
                    return;
                }
            };
            // There is nothing here to fail; who is told of tasks by this thread may have to wait.
            let _ = hit(Failpoint::DaemonFollow);
            for event in &events[..count] {
                match event.data() {
                    WAKE => {
                        let _ = door.wake.read();
                        let commands = std::mem::take(
                            &mut *door.commands.lock().unwrap_or_else(PoisonError::into_inner),
                        );
                        for command in commands {
                            match command {
                                Command::Stop => return,
                                Command::Adopt(id, runner, known) => {
                                    self.adopt(&id, runner);
                                    drop(known);
                                }
                            }
                        }
                    }
                    DIRS => self.directories(),
                    token => self.nudged(token),
                }
            }
            self.look_for_runners();
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let Some(due) = self.due.peek() else { return EpollTimeout::NONE };
        // Rounded up: a wake-up too early would only come again.
        let left = due.at.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
        EpollTimeout::try_from(left).unwrap_or(EpollTimeout::MAX)
    }

    /// Takes in what the directories of tasks say.
    ///
    /// A task that ends leaves the active ones with one event, and is among the finished ones with the next: those that have left
    /// are looked for once there is no other event. Nobody can have removed them from there in between without an event of that.
    fn directories(&mut self) {
        let mut left = HashSet::new();
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => break,
                Err(errno) => {
                    tracing::error!(%errno, "inotify: tasks that appear are not seen");
                    break;
                }
            };
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    if let Err(error) = self.scan(false).and_then(|()| self.miss_removed()) {
                        tracing::error!(%error, "read the tasks again");
                    }
                    continue;
                }
                // A file that is being written has a name that is no task id.
                let name = event.name.and_then(|name| name.into_string().ok());
                let Some(id) = name.and_then(|name| TaskId::new(name).ok()) else { continue };
                match (event.wd == self.active, event.mask.intersects(LEAVES)) {
                    (true, true) => {
                        left.insert(id);
                    }
                    (true, false) => {
                        if left.remove(&id) {
                            self.vanished(&id);
                        }
                        self.appeared(&id, true);
                    }
                    (false, true) => self.registry.removed(&id),
                    (false, false) => {
                        left.remove(&id);
                        self.is_over(&id, true);
                    }
                }
            }
        }
        for id in left {
            if !tasks::is_known(self.registry.root(), &id) {
                tracing::warn!(task = %id, "the task was taken from among the active ones, and is not followed any more");
                self.vanished(&id);
            }
        }
    }

    /// Forgets a task that is not on disk any more.
    fn vanished(&mut self, id: &TaskId) {
        if let Some(token) = self.tokens.remove(id) {
            match self.live.get_mut(&token) {
                Some(live) if live.runner.is_some() => live.vanished = true,
                _ => self.forget(token),
            }
        }
        self.registry.removed(id);
    }

    /// Takes in a task that is among the active ones. `new`: somebody is about to start its runner.
    fn appeared(&mut self, id: &TaskId, new: bool) {
        if self.tokens.contains_key(id) {
            return;
        }
        let Some((observed, entry)) = self.take_in(id, new) else { return };
        let token = self.next_token;
        self.next_token += 1;
        let live = Live {
            id: id.clone(),
            observed,
            entry,
            runner: None,
            missed: 0,
            appeared: new,
            refused: None,
            vanished: false,
        };
        self.live.insert(token, live);
        self.tokens.insert(id.clone(), token);
        self.due.push(Due { at: Instant::now(), token });
    }

    /// Reads a task that was not known. `new`: what happened to it is news.
    fn take_in(&self, id: &TaskId, new: bool) -> Option<(Observed, Entry)> {
        let mut news = vec![News::Accepted];
        let read = Observed::open(self.registry.root(), id).and_then(|mut observed| {
            observed.advance_durably(|replay, applied| {
                let event = event_view(replay.launch(), replay.state(), applied);
                news.extend(event.filter(|_| new).map(|event| News::Event(Arc::new(event))));
            })?;
            Ok(observed)
        });
        let observed = match read {
            Ok(observed) => observed,
            // It is being launched from here, and will be adopted.
            Err(ObserveError::Read(ReadError::HeldHere { .. })) => return None,
            Err(ObserveError::Read(ReadError::Missing { .. })) if self.take_back(id) => {
                return None;
            }
            Err(error) => {
                self.unreadable(id, &chain(&error));
                return None;
            }
        };
        let Some(replay) = observed.replay() else {
            if !self.take_back(id) {
                self.unreadable(id, "its stream holds no task");
            }
            return None;
        };
        let entry = Entry::of(&replay.view(None), Some(replay.launch()));
        // Whoever launches it tells nobody before that is so, and nor do we.
        let told = new
            && tasks::make_durable(self.registry.root(), id, || observed.sync())
                .inspect_err(|error| {
                    let error = chain(error);
                    tracing::error!(task = %id, error, "the task may not outlast a power cut");
                })
                .is_ok();
        if told {
            self.registry.happened(id, &entry, news);
        } else {
            self.registry.found(id, entry.clone());
        }
        Some((observed, entry))
    }

    /// Follows a task by the runner that was started for it from here.
    fn adopt(&mut self, id: &TaskId, followed: Option<Followed>) {
        self.appeared(id, true);
        // What cannot be read is told as that; its runner has said why, and leaves.
        if let (Some(&token), Some(followed)) = (self.tokens.get(id), followed) {
            self.be_followed(token, followed);
        }
    }

    /// From now on the nudges of this runner are those of the task.
    fn be_followed(&mut self, token: u64, followed: Followed) {
        let Some(live) = self.live.get_mut(&token) else { return };
        if let Some(before) = live.runner.take() {
            let _ = self.epoll.delete(&before.followed.nudges);
        }
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
        if let Err(errno) = self.epoll.add(&followed.nudges, event) {
            tracing::error!(task = %live.id, %errno, "epoll_ctl");
        }
        let from = live.observed.offset();
        live.runner = Some(Runner { followed, since: Instant::now(), from });
        // Looks for a runner that was to come do not count against one that has died.
        if std::mem::take(&mut live.appeared) {
            live.missed = 0;
        }
    }

    /// Takes back a task of which a power cut has left nothing but that it is active.
    fn take_back(&self, id: &TaskId) -> bool {
        let is_none = launch::take_back_hollow(self.registry.root(), id).unwrap_or(false);
        if is_none {
            tracing::warn!(task = %id, "a power cut came before anybody was told of the task: it is none");
        }
        is_none
    }

    fn unreadable(&self, id: &TaskId, why: &str) {
        tracing::warn!(task = %id, why, "the task cannot be read; nothing of it is run");
        let view = corrupt_view(id.as_str(), None, why.to_owned());
        self.registry.happened(id, &Entry::of(&view, None), [News::Accepted]);
    }

    /// Takes in a task that is among the finished ones. `new`: what happened to it is news.
    fn is_over(&mut self, id: &TaskId, new: bool) {
        if let Some(&token) = self.tokens.get(id) {
            self.advance(token);
            return;
        }
        if self.registry.knows(id) {
            return;
        }
        self.take_in(id, new);
    }

    /// A runner has recorded something, or is gone.
    fn nudged(&mut self, token: u64) {
        let nudge = match self.live.get(&token).and_then(|live| live.runner.as_ref()) {
            None => return,
            Some(runner) => take_nudges(&runner.followed.nudges),
        };
        let gone = nudge == Nudge::Gone;
        match nudge {
            Nudge::None => {}
            Nudge::Waits(waits) => self.waits(token, waits),
            // The next one tells anew.
            Nudge::Gone => self.waits(token, false),
        }
        let over = self.advance(token);
        if !gone {
            return;
        }
        let Some(live) = self.live.get_mut(&token) else { return };
        let mut has_refused = false;
        if let Some(runner) = live.runner.take() {
            let _ = self.epoll.delete(&runner.followed.nudges);
            // Ours is a zombie until it is waited for.
            if let Some(pidfd) = &runner.followed.pidfd {
                let exit = pidfd::wait(pidfd.as_fd());
                // One that was killed might have gone on.
                has_refused =
                    matches!(exit, Ok(Exit::Code(_))) && runner.from == live.observed.offset();
            }
            if runner.since.elapsed() > STABLE {
                live.missed = 0;
            }
        }
        if over {
            self.forget(token);
        } else if let Some(why) = live.observed.by_later().filter(|_| has_refused) {
            self.refused(token, why);
        } else {
            self.registry.runner_died();
            let pause = RESTART[live.missed.min(RESTART.len() - 1)];
            tracing::warn!(task = %live.id, pause_ms = pause, "the runner is gone; another is started");
            live.missed += 1;
            live.appeared = false;
            self.due.push(Due { at: Instant::now() + Duration::from_millis(pause), token });
        }
    }

    /// Leaves a task alone that a runner has refused to go on with, and says so once.
    fn refused(&mut self, token: u64, why: String) {
        let Some(live) = self.live.get_mut(&token) else { return };
        tracing::error!(task = %live.id, why, "no runner is started for the task until its stream, dewar-runner or the daemon is another");
        live.refused = Some(Refused::now(&live.observed));
        live.appeared = false;
        if let Some(entry) = live.entry(Some(why)) {
            live.entry = entry;
            self.registry.found(&live.id, live.entry.clone());
        }
        self.due.push(Due { at: Instant::now() + REFUSED, token });
    }

    /// The runner of a task waits until it can write, or does so no more.
    fn waits(&mut self, token: u64, waits: bool) {
        let Some(live) = self.live.get_mut(&token) else { return };
        if live.entry.waits_for_disk == waits {
            return;
        }
        match waits {
            true => {
                tracing::warn!(task = %live.id, "what happens cannot be recorded; the task waits for its disk")
            }
            false => tracing::info!(task = %live.id, "the task waits for its disk no more"),
        }
        live.entry.waits_for_disk = waits;
        self.registry.happened(&live.id, &live.entry, [News::Waits]);
    }

    /// Takes in what was recorded, and says whether the task is over.
    fn advance(&mut self, token: u64) -> bool {
        let Some(live) = self.live.get_mut(&token).filter(|live| !live.vanished) else {
            return true;
        };
        let mut events = Vec::new();
        let mut changed = false;
        let advanced = live.observed.advance_durably(|replay, applied| {
            if let Some(event) = event_view(replay.launch(), replay.state(), applied) {
                changed |=
                    event.task_state.is_some() || event.pause.is_some() || event.kill.is_some();
                events.push(News::Event(Arc::new(event)));
            }
        });
        if changed && let Some(entry) = live.entry(None) {
            live.entry = entry;
        }
        if !events.is_empty() {
            self.registry.happened(&live.id, &live.entry, events);
        }
        if let Err(error) = advanced {
            let id = live.id.clone();
            if error.is_corruption() {
                self.forget(token);
                self.unreadable(&id, &chain(&error));
                return true;
            }
            tracing::error!(task = %id, error = chain(&error), "read the task");
        }
        let live = self.live.get(&token).and_then(|live| live.observed.replay());
        live.is_some_and(is_over)
    }

    fn forget(&mut self, token: u64) {
        if let Some(live) = self.live.remove(&token) {
            if let Some(runner) = &live.runner {
                let _ = self.epoll.delete(&runner.followed.nudges);
            }
            // By now another task may have the id of one that vanished.
            if self.tokens.get(&live.id) == Some(&token) {
                self.tokens.remove(&live.id);
            }
        }
    }

    /// Follows, or starts, the runners that are due.
    fn look_for_runners(&mut self) {
        let now = Instant::now();
        while self.due.peek().is_some_and(|due| due.at <= now) {
            if let Some(Due { token, .. }) = self.due.pop() {
                self.look_for_runner(token);
            }
        }
    }

    fn look_for_runner(&mut self, token: u64) {
        let over = self.advance(token);
        let Some(live) = self.live.get_mut(&token) else { return };
        if live.runner.is_some() {
            return;
        }
        let root = self.registry.root();
        let followed = match control::follow(root, &live.id) {
            Ok(nudges) => Ok(Followed { nudges, pidfd: None }),
            // Its runner has filed it away, and left.
            Err(ControlError::Absent(_))
                if over && root.task(Place::Finished, &live.id).exists() =>
            {
                self.forget(token);
                return;
            }
            // A runner would not go on from what was read: somebody has removed the stream, or put another in its place.
            Err(ControlError::Absent(_)) if !live.observed.is_in_place() => {
                let id = live.id.clone();
                self.forget(token);
                if tasks::is_known(self.registry.root(), &id) {
                    self.appeared(&id, false);
                }
                return;
            }
            Err(ControlError::Absent(_)) if live.is_refused() => {
                self.due.push(Due { at: Instant::now() + REFUSED, token });
                return;
            }
            Err(ControlError::Absent(_)) if live.appeared => {
                if let Some(&pause) = APPEARED.get(live.missed) {
                    live.missed += 1;
                    let at = Instant::now() + Duration::from_millis(pause);
                    self.due.push(Due { at, token });
                    return;
                }
                start_runner(root, &live.id, self.cgroup_base.as_ref())
            }
            // Whoever leads a task that is over files it away.
            Err(ControlError::Absent(_)) => start_runner(root, &live.id, self.cgroup_base.as_ref()),
            Err(error) => Err(chain(&error)),
        };
        match followed {
            Ok(followed) => {
                sweep(live);
                if live.refused.take().is_some()
                    && let Some(entry) = live.entry(None)
                {
                    live.entry = entry;
                    self.registry.found(&live.id, live.entry.clone());
                }
                self.be_followed(token, followed);
            }
            Err(why) => {
                let pause = RESTART[(live.missed + 1).min(RESTART.len() - 1)];
                tracing::error!(task = %live.id, why, pause_ms = pause, "no runner can be reached or started");
                live.missed += 1;
                self.due.push(Due { at: Instant::now() + Duration::from_millis(pause), token });
            }
        }
    }
}

/// Kills the commands of Exec that a daemon before this one left in a task: each belongs to a call, and that is gone.
fn sweep(live: &Live) {
    let leader = live.observed.replay().and_then(|replay| replay.state().leader());
    let Some(cgroup) = leader.and_then(|leader| leader.cgroup.as_deref()) else { return };
    let swept = TaskCgroup::open_existing(Path::new(cgroup), &live.id)
        .and_then(|task| task.map_or(Ok(()), |task| task.sweep_exec()));
    if let Err(error) = swept {
        tracing::warn!(task = %live.id, error = chain(&error), "commands of an earlier daemon");
    }
}

fn is_over(replay: &Replay) -> bool {
    replay.state().phase().is_some_and(|phase| phase.is_terminal())
}

fn start_runner(
    root: &crate::checkpoint::Root,
    id: &TaskId,
    base: Option<&PathBuf>,
) -> Result<Followed, String> {
    let find = || cgroup::find(&cgroup::Options { explicit: base.cloned() });
    let reach = Reach { root, base: &find, by: None };
    let followed = reach.start(id, Console::Log).map_err(|error| chain(&error))?;
    tracing::info!(task = %id, "a runner was started");
    Ok(followed)
}

/// What a runner has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nudge {
    None,
    /// Whether it waits until it can write.
    Waits(bool),
    /// It says nothing any more.
    Gone,
}

/// Takes the nudges that are there; the last of them holds. Does not wait: an event may be that of the runner's descriptor which was
/// replaced just now, in the same turn.
fn take_nudges(nudges: &OwnedFd) -> Nudge {
    let mut buffer = [0; 4096];
    match recv(nudges.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
        Ok(read) => match buffer[..read].last() {
            Some(&byte) => Nudge::Waits(byte != 0),
            None => Nudge::Gone,
        },
        Err(Errno::EINTR | Errno::EAGAIN) => Nudge::None,
        Err(_) => Nudge::Gone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gc::testing::Scene;
    use crate::proto::TaskState;
    use crate::remove;

    /// All tasks once waited for the next nudge of one: an event of the descriptor before was taken for one of its own.
    #[test]
    fn a_runner_that_has_not_nudged_is_not_waited_for() {
        let (ours, theirs) = crate::sys::socket::pair().unwrap();

        assert_eq!(take_nudges(&ours), Nudge::None);
        nix::unistd::write(&theirs, &[1, 0]).unwrap();
        assert_eq!(take_nudges(&ours), Nudge::Waits(false));
        assert_eq!(take_nudges(&ours), Nudge::None);
        drop(theirs);
        assert_eq!(take_nudges(&ours), Nudge::Gone);
    }

    /// What follows the tasks of `scene`, which were there before.
    fn following(scene: &Scene) -> Tasks {
        let registry = Registry::new(scene.root.clone());
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
        let door = Door { commands: Mutex::default(), wake };
        let mut tasks = Tasks::new(registry, None, &door).unwrap();
        tasks.scan(true).unwrap();
        tasks
    }

    fn active(scene: &Scene, id: &str) -> TaskId {
        scene.active(id, Duration::from_secs(1), |_| {}, [])
    }

    /// What was told of tasks: their ids, with `-` before those that were removed.
    fn told(tasks: &Tasks) -> Vec<String> {
        let told = tasks.registry.history(0, usize::MAX).unwrap();
        let word = |item: super::super::registry::Item| match item.news {
            News::Removed => format!("-{}", item.entry.summary.task_id),
            _ => item.entry.summary.task_id.clone(),
        };
        let mut told: Vec<_> = told.into_iter().map(word).collect();
        told.dedup();
        told
    }

    fn state(tasks: &Tasks, id: &TaskId) -> Option<TaskState> {
        let mut state = None;
        tasks.registry.each(|(of, entry)| {
            state = state.or((of == id).then(|| entry.summary.state()));
        });
        state
    }

    /// Its launch may take long to get to the disk.
    #[test]
    fn a_runner_that_was_waited_for_is_replaced_at_once_when_it_dies() {
        let scene = Scene::new();
        let id = active(&scene, "t");
        let mut tasks = following(&scene);
        let token = tasks.tokens[&id];
        let live = tasks.live.get_mut(&token).unwrap();
        (live.appeared, live.missed) = (true, APPEARED.len() - 1);
        let (nudges, runner) = crate::sys::socket::pair().unwrap();

        tasks.be_followed(token, Followed { nudges, pidfd: None });
        drop(runner);
        tasks.nudged(token);

        assert_eq!(tasks.live[&token].missed, 1);
        assert!(tasks.due.iter().any(|due| due.token == token && due.at <= Instant::now()));
    }

    /// Attack 41: as somebody has gone on with it who knows all of it.
    #[test]
    fn what_was_refused_is_so_until_the_stream_has_grown() {
        let scene = Scene::new();
        let id = active(&scene, "later");
        let mut tasks = following(&scene);
        let token = tasks.tokens[&id];
        let live = tasks.live.get_mut(&token).unwrap();
        let now = || Refused::now(&live.observed);
        let before = Refused { offset: now().offset - 1, ..now() };

        assert!(now().offset > 0 && !live.is_refused());
        live.refused = Some(now());
        assert!(live.is_refused());
        live.refused = Some(before);
        assert!(!live.is_refused());
    }

    /// V30: by hand, as dewar does not.
    #[test]
    fn a_task_that_is_taken_from_among_the_active_ones_is_told_as_removed() {
        let scene = Scene::new();
        let [deleted, moved, again, stays] =
            ["deleted", "moved", "again", "stays"].map(|id| active(&scene, id));
        let mut tasks = following(&scene);
        let at = |id| scene.root.task(Place::Active, id);
        std::fs::remove_file(at(&deleted)).unwrap();
        std::fs::rename(at(&moved), scene.path("elsewhere")).unwrap();
        std::fs::rename(at(&again), scene.path("back")).unwrap();
        std::fs::rename(scene.path("back"), at(&again)).unwrap();

        tasks.directories();

        let mut followed: Vec<_> = tasks.tokens.keys().collect();
        followed.sort();
        assert_eq!(followed, [&again, &stays]);
        assert_eq!(tasks.live.len(), 2);
        let mut told = told(&tasks);
        told[2..].sort();
        assert_eq!(told, ["-again", "again", "-deleted", "-moved"]);
        assert!(!tasks.registry.knows(&deleted) && tasks.registry.knows(&again));
    }

    /// W7: it leaves one directory, and comes to the other. And it may be removed before anybody looks.
    #[test]
    fn a_task_that_is_filed_away_is_told_as_removed_once_it_is() {
        let scene = Scene::new();
        let ids = ["kept", "removed"].map(|id| active(&scene, id));
        let mut tasks = following(&scene);
        for id in &ids {
            crate::checkpoint::tasks::finish(&scene.root, id).unwrap();
        }

        tasks.directories();
        assert_eq!(told(&tasks), [""; 0]);
        std::fs::remove_file(scene.root.task(Place::Finished, &ids[1])).unwrap();
        tasks.directories();

        assert_eq!(told(&tasks), ["-removed"]);
        assert!(tasks.registry.knows(&ids[0]));
    }

    /// W6: without a runner, another one would go on from the file that is there now.
    #[test]
    fn what_is_followed_is_the_stream_that_is_there() {
        let scene = Scene::new();
        let [gone, replaced, shorter] =
            ["gone", "replaced", "shorter"].map(|id| active(&scene, id));
        let mut tasks = following(&scene);
        std::fs::remove_file(scene.root.runner(&gone)).unwrap();
        let old = scene.path("old");
        std::fs::rename(scene.root.runner(&replaced), &old).unwrap();
        std::fs::copy(&old, scene.root.runner(&replaced)).unwrap();
        let file = std::fs::File::options().write(true).open(scene.root.runner(&shorter)).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();

        for id in [&gone, &replaced, &shorter] {
            let token = tasks.tokens[id];
            tasks.look_for_runner(token);
        }

        assert_eq!(state(&tasks, &gone), Some(TaskState::Corrupt));
        assert_eq!(state(&tasks, &shorter), Some(TaskState::Corrupt));
        assert_eq!(state(&tasks, &replaced), Some(TaskState::Active));
        assert_eq!(tasks.tokens.keys().collect::<Vec<_>>(), [&replaced]);
        let live = &tasks.live[&tasks.tokens[&replaced]];
        assert!(live.observed.is_in_place());
    }

    /// Attack 44: its runner may have begun, and nobody was told of it.
    #[test]
    fn what_a_power_cut_left_of_a_task_is_neither_told_nor_run() {
        let scene = Scene::new();
        let [hollow, missing, told] = ["hollow", "missing", "told"].map(|id| active(&scene, id));
        for id in [&hollow, &missing] {
            std::fs::write(scene.root.task(Place::Active, id), "{}").unwrap();
        }
        for id in [&hollow, &told] {
            std::fs::write(scene.root.runner(id), "").unwrap();
        }
        std::fs::remove_dir_all(scene.root.checkpoint(&missing)).unwrap();

        let tasks = following(&scene);

        assert_eq!(scene.root.list(Place::Active).unwrap(), std::slice::from_ref(&told));
        assert!(!tasks.registry.knows(&hollow) && !tasks.registry.knows(&missing));
        assert_eq!(state(&tasks, &told), Some(TaskState::Corrupt));
    }

    /// What the queue of inotify has no room for: the removal of very many tasks.
    #[test]
    fn tasks_whose_removal_was_not_told_are_missed_by_looking() {
        let scene = Scene::new();
        let ids = ["a", "b"].map(|id| scene.over(id, Duration::from_secs(1)));
        let mut tasks = following(&scene);
        let registry = tasks.registry.clone();
        assert!(ids.iter().all(|id| registry.knows(id)));
        remove::remove(&scene.root, &ids[0], true).unwrap();

        tasks.scan(false).and_then(|()| tasks.miss_removed()).unwrap();

        assert!(!registry.knows(&ids[0]) && registry.knows(&ids[1]));
    }
}
