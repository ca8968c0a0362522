//! What a runner sleeps on: one epoll set, one timer, no tick.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// Something that woke the runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// The time that was asked for has come.
    Timer,
    /// A signal waits.
    Signal,
    /// A request waits on the control socket.
    Control,
    /// A coordinator has appended.
    Nudge,
    /// A change of limits is made.
    Limits,
    /// The coordinator of this process has died.
    Coordinator(u32),
}

impl Wake {
    const COORDINATOR: u64 = 1 << 32;

    fn token(self) -> u64 {
        match self {
            Self::Timer => 0,
            Self::Signal => 1,
            Self::Control => 2,
            Self::Nudge => 3,
            Self::Limits => 4,
            Self::Coordinator(process) => Self::COORDINATOR | u64::from(process),
        }
    }

    fn from_token(token: u64) -> Self {
        match token {
            0 => Self::Timer,
            1 => Self::Signal,
            2 => Self::Control,
            3 => Self::Nudge,
            4 => Self::Limits,
            process => Self::Coordinator(process as u32),
        }
    }
}

/// Blocks the signals that a runner understands: they wait until it reads them. Done first of all, since one that came earlier
/// would end it, and what was meant by it would be forgotten.
///
/// # Errors
///
/// That of sigprocmask(2).
pub fn block_signals() -> io::Result<SigSet> {
    use Signal::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
    let mask: SigSet = [SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2].into_iter().collect();
    mask.thread_block()?;
    Ok(mask)
}

/// The epoll set of a runner.
pub(super) struct Sources {
    epoll: Epoll,
    timer: TimerFd,
    armed: Option<u64>,
    signals: SignalFd,
}

impl Sources {
    /// A set with the timer and the signals that a runner understands.
    pub(super) fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let timer = TimerFd::new(
            ClockId::CLOCK_BOOTTIME,
            TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
        )?;
        let mask = block_signals()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let sources = Self { epoll, timer, armed: None, signals };
        sources.add(&sources.timer, Wake::Timer)?;
        sources.add(&sources.signals, Wake::Signal)?;
        Ok(sources)
    }

    /// Wakes with `wake` while `fd` is readable.
    pub(super) fn add(&self, fd: &impl AsFd, wake: Wake) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, wake.token()))?)
    }

    /// Forgets `fd`.
    pub(super) fn remove(&self, fd: &impl AsFd) {
        // It is in the set, or a fork's copy kept it alive there: neither is an error for us.
        let _ = self.epoll.delete(fd);
    }

    /// Sleeps until something happens, `until` (CLOCK_BOOTTIME, nanoseconds) at the latest.
    pub(super) fn wait(&mut self, until: Option<u64>) -> io::Result<Vec<Wake>> {
        self.arm(until)?;
        let mut events = [EpollEvent::empty(); 64];
        let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let wakes = events[..count].iter().map(|event| Wake::from_token(event.data()));
        let wakes: Vec<_> = wakes.collect();
        if wakes.contains(&Wake::Timer) {
            self.armed = None;
            // Cleared by being set again; a one-shot timer that was read is disarmed.
            let _ = self.timer.wait();
        }
        Ok(wakes)
    }

    fn arm(&mut self, until: Option<u64>) -> io::Result<()> {
        if self.armed == until {
            return Ok(());
        }
        match until {
            Some(time) => {
                // Zero would disarm the timer (timerfd_settime(2)).
                let at = TimeSpec::from_duration(Duration::from_nanos(time.max(1)));
                let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME;
                self.timer.set(Expiration::OneShot(at), flags)?;
            }
            None => self.timer.unset()?,
        }
        self.armed = until;
        Ok(())
    }

    /// The next signal that waits, by number.
    pub(super) fn signal(&self) -> io::Result<Option<Signal>> {
        let info = self.signals.read_signal()?;
        Ok(info.and_then(|info| Signal::try_from(info.ssi_signo as i32).ok()))
    }
}
