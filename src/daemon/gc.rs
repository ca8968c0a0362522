//! Collects garbage: one thread, which takes CPU and disk that nobody else wants.
//!
//! It sleeps until the next task is due, or until a task ends (inotify(7)), and between two rounds for twenty times as long as the first of them
//! took, a second at least: while tasks end all the time it takes a twentieth of a CPU. With a limit of what is to be free it looks at
//! that every half a minute besides: files grow without an event. Without any limit there is no thread.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::causes::chain;
use crate::checkpoint::Root;
use crate::checkpoint::paths::Place;
use crate::gc::{Collector, GcError, Limits, Told};
use crate::remove::Parts;
use crate::sys::process::yield_to_others;

/// Least time between two rounds.
const PAUSE: Duration = Duration::from_secs(1);
/// The same, as a multiple of the time that the first of them took.
const SHARE: u32 = 20;
/// Time between two looks at what is free.
const LOOK: Duration = Duration::from_secs(30);
/// Time until the next round after one that failed.
const RETRY: Duration = Duration::from_secs(60);

/// The thread; dropped, it ends, between two slices of its work.
pub(super) struct Keeper {
    door: Arc<Door>,
    thread: Option<JoinHandle<()>>,
}

/// How it is told to end.
struct Door {
    is_stopped: AtomicBool,
    wake: EventFd,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.door.is_stopped.store(true, Ordering::Relaxed);
        let _ = self.door.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Starts the thread; `None` if there is no limit.
///
/// # Errors
///
/// Those of eventfd(2), inotify_init1(2) and inotify_add_watch(2), and if no thread can be had.
pub(super) fn start(root: &Root, limits: Limits) -> io::Result<Option<Keeper>> {
    if !limits.any() {
        return Ok(None);
    }
    let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let door = Arc::new(Door { is_stopped: AtomicBool::new(false), wake });
    let ends = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    ends.add_watch(&root.tasks(Place::Finished), AddWatchFlags::IN_MOVED_TO)?;
    let looks = limits.needs_free();
    let collector = Collector::new(root.clone(), limits, Parts::ALL).map_err(io::Error::other)?;
    let mut rounds = Rounds { collector, ends, looks, door: door.clone() };
    let thread = std::thread::Builder::new().name("gc".to_owned()).spawn(move || {
        if let Err(error) = yield_to_others() {
            tracing::warn!(%error, "garbage is collected with the priority of all else");
        }
        rounds.run();
    })?;
    Ok(Some(Keeper { door, thread: Some(thread) }))
}

/// What the thread does.
struct Rounds {
    collector: Collector,
    ends: Inotify,
    /// Whether what is free counts.
    looks: bool,
    door: Arc<Door>,
}

impl Rounds {
    fn run(&mut self) {
        while !self.is_stopped() {
            let began = Instant::now();
            let next = self.round().unwrap_or_else(|error| {
                tracing::error!(error = chain(&error), "garbage is not collected");
                Some(RETRY)
            });
            let pause = PAUSE.max(began.elapsed().saturating_mul(SHARE));
            if let Err(errno) = self.sleep(pause, next) {
                tracing::error!(%errno, "poll: garbage is not collected any more");
                return;
            }
        }
    }

    fn is_stopped(&self) -> bool {
        self.door.is_stopped.load(Ordering::Relaxed)
    }

    /// Collects what there is, and says when there may be more.
    fn round(&mut self) -> Result<Option<Duration>, GcError> {
        let door = self.door.clone();
        let mut go = || !door.is_stopped.load(Ordering::Relaxed);
        let round = self.collector.collect(&|_| true, &mut go, &mut tell)?;
        if round.removed > 0 {
            tracing::info!(tasks = round.removed, bytes = round.erased.bytes, "collected garbage");
        }
        Ok(round.next)
    }

    /// Sleeps until there may be something to do, and for `pause` at least.
    fn sleep(&self, pause: Duration, next: Option<Duration>) -> Result<(), Errno> {
        let until = Instant::now() + pause;
        let due = next.and_then(|next| Instant::now().checked_add(next));
        loop {
            let look = self.looks.then(|| Instant::now() + LOOK);
            self.wait([due, look].into_iter().flatten().min(), true)?;
            let is_due = due.is_some_and(|due| due <= Instant::now());
            if self.is_stopped() || self.has_ended()? || is_due {
                break;
            }
            // What cannot be told now is told by the round.
            if self.collector.is_lacking().unwrap_or(true) {
                break;
            }
        }
        while !self.is_stopped() && Instant::now() < until {
            self.wait(Some(until), false)?;
        }
        Ok(())
    }

    /// Waits until a time, until the thread is to end, or, if so asked, until a task has ended.
    fn wait(&self, until: Option<Instant>, for_ends: bool) -> Result<(), Errno> {
        let timeout = match until {
            None => PollTimeout::NONE,
            Some(until) => {
                // Rounded up: a wake-up too early would only come again.
                let left = until.saturating_duration_since(Instant::now());
                let left = left + Duration::from_micros(999);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut waited = [
            PollFd::new(self.door.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.ends.as_fd(), PollFlags::POLLIN),
        ];
        let waited = if for_ends { &mut waited[..] } else { &mut waited[..1] };
        match poll(waited, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Whether a task has ended since this was asked last.
    fn has_ended(&self) -> Result<bool, Errno> {
        let mut has = false;
        loop {
            match self.ends.read_events() {
                Ok(_) => has = true,
                Err(Errno::EAGAIN) => return Ok(has),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

fn tell(told: Told<'_>) {
    match told {
        Told::Erased { victim, erased } => {
            let (task, reason) = (&victim.task.id, victim.why.as_str());
            let (age_s, bytes) = (victim.task.age.as_secs(), erased.bytes);
            tracing::info!(%task, reason, age_s, bytes, "removed");
        }
        Told::Left { victim, error } => {
            let (task, reason) = (&victim.task.id, victim.why.as_str());
            tracing::warn!(%task, reason, error = chain(error), "something of the task is left");
        }
        Told::Unread { id, error } => {
            tracing::warn!(task = %id, error, "the task cannot be read, and stays");
        }
        Told::Chosen { .. } => {}
    }
}
