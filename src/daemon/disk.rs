//! What the sandboxes of live tasks take of their file systems, measured again and again.
//!
//! One sandbox after the other, in the order of their ids: where an operator has given one a project of its own, its quota is read; else it is walked,
//! some entries at a time. A round begins once in an interval, and not before the last has ended.
//!
//! **The work is bounded**, whatever is in the sandboxes: after each slice of a walk comes a pause [`REST`] times as long, so that all of it together takes no
//! more than a twentieth of one CPU, nor of the time of the disk. What that costs is time: a million files take some minutes, and
//! the figures say when they were measured.
//!
//! **Large ones are kept current** ([`Current`]) from one round to the next, as long as there is [room](Room): of one in which nothing
//! changes nothing is read. A task that is measured once, as most are, costs no watches, and a small sandbox is walked faster than
//! it is watched. Once in an [hour](RENEWAL) all of it is counted anew, for what makes no event.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Node;
use super::control::block;
use super::registry::is_terminal;
use super::status;
use super::usage::Key;
use crate::disk::{Current, DiskUsage, Measure, Method, Missed};
use crate::proto::{self, DiskMethod, TaskState, Timestamp};
use crate::sys::clock;

/// Entries that are looked at in one go.
const SLICE: usize = 1000;
/// How much longer than a slice the pause after it is.
const REST: u32 = 19;

/// Inodes of a sandbox that is kept current, at least: it takes more than one slice.
const LARGE: u64 = SLICE as u64;
/// How long figures are kept current without a count of all: as long as a chart shows, and a sixtieth of what walks once a minute cost.
const RENEWAL: Duration = Duration::from_secs(3600);
/// Directories that are watched in all, at most: 10 MB of memory here, and three times that in the kernel.
const MOST_WATCHES: usize = 1 << 15;

/// Measures the sandboxes of all live tasks until the daemon stops. Where that is not wanted, it returns at once.
pub(super) async fn run(node: Arc<Node>) {
    let Some(interval) = node.histories.disk_interval() else { return };
    let mut stopping = node.stopping.clone();
    let mut kept = Kept { room: Room::of_host(), of: HashMap::new() };
    let rounds = async {
        loop {
            let begun = Instant::now();
            let live = live(&node);
            kept.retain(&live);
            for key in live {
                measure(&node, &key, &mut kept).await;
            }
            tokio::time::sleep(interval.saturating_sub(begun.elapsed())).await;
        }
    };
    tokio::select! {
        () = rounds => {}
        _ = stopping.wait_for(|&stopping| stopping) => {}
    }
}

fn live(node: &Node) -> Vec<Key> {
    let mut live = Vec::new();
    node.registry.each(|(id, entry)| {
        let state = entry.summary.state();
        if !is_terminal(state) && state != TaskState::Corrupt {
            live.push((id.clone(), entry.summary.accept_time));
        }
    });
    live
}

/// Measures the sandbox of one task, and takes a rest.
async fn measure(node: &Arc<Node>, key: &Key, kept: &mut Kept) {
    let mut begun = Instant::now();
    let meter = node.meters.get(key);
    // Of a task that was never read nothing is known, and it is measured the next time.
    let Ok(Some(launch)) = block(move || Ok(meter.launch())).await else { return };
    let (current, mut until) = kept.take(key, begun);
    let opened = block(move || {
        Measure::sandbox(&launch, current).map_err(|error| status::unavailable(&error))
    });
    let mut measure = match opened.await {
        Ok(measure) => measure,
        Err(error) => {
            tracing::debug!(task = %key.0, error = error.message(), "the sandbox is not measured");
            return;
        }
    };
    loop {
        let gone_on = block(move || {
            let done = measure.go_on(SLICE).map_err(|error| status::unavailable(&error))?;
            Ok((measure, done))
        });
        let gone_on = gone_on.await;
        tokio::time::sleep(begun.elapsed() * REST).await;
        begun = Instant::now();
        match gone_on {
            Ok((done, Some(usage))) => {
                node.disk_entries.fetch_add(done.entries(), Ordering::Relaxed);
                if let Some(lost) = done.lost() {
                    tracing::debug!(task = %key.0, %lost, "the sandbox is not kept current");
                    until = if lost.is_passing() { begun } else { until };
                }
                let inodes = usage.inodes;
                let sandbox = Sandbox { inodes, current: done.into_current(), until };
                kept.of.insert(key.clone(), sandbox);
                let now = Timestamp::from_unix_nanos(clock::now().wall);
                return node.histories.measured(key, to_proto(&usage, now));
            }
            Ok((same, None)) => measure = same,
            Err(error) => {
                let error = error.message();
                tracing::debug!(task = %key.0, error, "the sandbox is not measured");
                return;
            }
        }
    }
}

/// How much of what inotify(7) may use the daemon takes.
#[derive(Debug, Clone, Copy)]
struct Room {
    instances: usize,
    watches: usize,
}

impl Room {
    /// A quarter of what a user has: others, such as systemd, have their share of root's.
    fn of_host() -> Self {
        let quarter = |limit: &str| {
            let text = fs::read_to_string(format!("/proc/sys/fs/inotify/{limit}"));
            text.ok().and_then(|text| text.trim().parse::<usize>().ok()).unwrap_or(0) / 4
        };
        let watches = quarter("max_user_watches").min(MOST_WATCHES);
        Self { instances: quarter("max_user_instances"), watches }
    }
}

/// What is kept of sandboxes from one round to the next.
#[derive(Debug)]
struct Kept {
    room: Room,
    of: HashMap<Key, Sandbox>,
}

#[derive(Debug)]
struct Sandbox {
    /// As it was measured last.
    inodes: u64,
    current: Option<Box<Current>>,
    /// Until when `current` is good; without one, until when there is to be none.
    until: Instant,
}

impl Kept {
    fn retain(&mut self, live: &[Key]) {
        let live: HashSet<_> = live.iter().collect();
        self.of.retain(|key, _| live.contains(key));
    }

    /// What is kept current of a sandbox, new where it is time for that, and until when that is so.
    fn take(&mut self, key: &Key, now: Instant) -> (Option<Box<Current>>, Instant) {
        let Some(Sandbox { inodes, current, until }) = self.of.remove(key) else {
            return (None, now);
        };
        if now < until {
            return (current, until);
        }
        drop(current);
        let others = || self.of.values().filter_map(|of| of.current.as_ref());
        if inodes < LARGE || others().count() >= self.room.instances {
            return (None, now);
        }
        let taken = others().map(|of| of.watches()).sum();
        // Half of it is left to the others.
        let most = self.room.watches.saturating_sub(taken).min(self.room.watches / 2);
        (Current::new(most).ok().map(Box::new), now + RENEWAL)
    }
}

fn to_proto(usage: &DiskUsage, now: Timestamp) -> proto::DiskUsage {
    let method = match usage.method {
        Method::Walk => DiskMethod::Walk,
        Method::Inotify => DiskMethod::Inotify,
        Method::Quota { .. } => DiskMethod::Quota,
    };
    proto::DiskUsage {
        time: Some(now),
        bytes: usage.bytes,
        inodes: Some(usage.inodes),
        method: method.into(),
        incomplete: (!usage.is_whole()).then(|| incomplete(&usage.missed)),
    }
}

/// What is missing, for people.
fn incomplete(missed: &Missed) -> String {
    let mut told = Vec::new();
    if let Some((path, errno)) = &missed.first {
        let more = match missed.unread.saturating_sub(1) {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        told.push(format!("{}: {}{more}", path.display(), errno.desc()));
    }
    if missed.moved > 0 {
        told.push(format!("{} directories were moved while they were read", missed.moved));
    }
    if missed.is_cut {
        told.push("there are more entries than are looked at".to_owned());
    }
    told.join("; ")
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;
    use crate::proto::Launch;
    use crate::testing::TempDir;

    fn key(number: u32) -> Key {
        (crate::task::TaskId::new(format!("t{number}")).unwrap(), None)
    }

    /// A round in which each of these sandboxes was found to have so many inodes. Says which are kept current.
    fn round(kept: &mut Kept, inodes: &[u64], now: Instant) -> Vec<bool> {
        let each = inodes.iter().zip(0..).map(|(&inodes, number)| {
            let (current, until) = kept.take(&key(number), now);
            let is_kept = current.is_some();
            kept.of.insert(key(number), Sandbox { inodes, current, until });
            is_kept
        });
        each.collect()
    }

    #[test]
    fn large_sandboxes_are_kept_current_as_long_as_there_is_room() {
        let room = Room { instances: 2, watches: 100 };
        let mut kept = Kept { room, of: HashMap::new() };
        let (now, inodes) = (Instant::now(), [5000, 999, 1000, 9999]);

        assert_eq!(round(&mut kept, &inodes, now), [false; 4]);
        assert_eq!(round(&mut kept, &inodes, now), [true, false, true, false]);
        assert_eq!(round(&mut kept, &inodes, now + RENEWAL / 2), [true, false, true, false]);

        // The first has ended, and has given back what it had.
        kept.retain(&[key(2), key(3)]);
        assert_eq!(round(&mut kept, &inodes, now + RENEWAL / 2), [false, false, true, true]);
    }

    #[test]
    fn what_is_kept_current_is_counted_anew_after_an_hour() {
        let temp = TempDir::new();
        let mut kept = Kept { room: Room { instances: 1, watches: 100 }, of: HashMap::new() };
        let launch = Launch { sandbox: temp.path().display().to_string(), ..Launch::default() };
        let begun = Instant::now();
        let mut method_at = |now| {
            let (current, until) = kept.take(&key(0), now);
            let mut measure = Measure::sandbox(&launch, current).unwrap();
            let usage = measure.go_on(SLICE).unwrap().unwrap();
            let current = measure.into_current();
            kept.of.insert(key(0), Sandbox { inodes: LARGE, current, until });
            usage.method
        };

        let methods =
            [0, 1, 2, 3599, 3601, 3602].map(|s| method_at(begun + Duration::from_secs(s)));

        use Method::{Inotify, Walk};
        assert_eq!(methods, [Walk, Walk, Inotify, Inotify, Walk, Inotify]);
    }

    #[test]
    fn what_could_not_be_measured_is_told_with_the_figures() {
        let usage = |missed| DiskUsage {
            bytes: 4096,
            inodes: 3,
            method: Method::Quota { project: 7 },
            mounts: 1,
            missed,
        };
        let now = Timestamp::from_unix_nanos(5);

        let whole = to_proto(&usage(Missed::default()), now);
        let missed = Missed {
            unread: 3,
            first: Some(("a/b".into(), Errno::EACCES)),
            moved: 1,
            is_cut: true,
        };
        let some = to_proto(&usage(missed), now);

        assert_eq!((whole.bytes, whole.inodes, whole.incomplete.as_deref()), (4096, Some(3), None));
        assert_eq!((whole.method(), whole.time), (DiskMethod::Quota, Some(now)));
        assert_eq!(
            some.incomplete.unwrap(),
            "a/b: Permission denied, and 2 more; 1 directories were moved while they were read; \
             there are more entries than are looked at"
        );
    }
}
