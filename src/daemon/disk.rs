//! What the sandboxes of live tasks take of their file systems, measured again and again.
//!
//! One sandbox after the other, in the order of their ids: where an operator has given one a project of its own, its quota is read; else it is walked,
//! some entries at a time. A round begins once in an interval, and not before the last has ended.
//!
//! **The work is bounded**, whatever is in the sandboxes: after each slice of a walk comes a pause [`REST`] times as long, so that all of it together takes no
//! more than a twentieth of one CPU, nor of the time of the disk. What that costs is time: a million files take some minutes, and
//! the figures say when they were measured.

use std::sync::Arc;
use std::time::Instant;

use super::Node;
use super::control::block;
use super::registry::is_terminal;
use super::status;
use super::usage::Key;
use crate::disk::{DiskUsage, Measure, Method, Missed};
use crate::proto::{self, DiskMethod, TaskState, Timestamp};
use crate::sys::clock;

/// Entries that are looked at in one go.
const SLICE: usize = 1000;
/// How much longer than a slice the pause after it is.
const REST: u32 = 19;

/// Measures the sandboxes of all live tasks until the daemon stops. Where that is not wanted, it returns at once.
pub(super) async fn run(node: Arc<Node>) {
    let Some(interval) = node.histories.disk_interval() else { return };
    let mut stopping = node.stopping.clone();
    let rounds = async {
        loop {
            let begun = Instant::now();
            for key in live(&node) {
                measure(&node, &key).await;
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
    node.registry.each(None, |id, entry| {
        let state = entry.summary.state();
        if !is_terminal(state) && state != TaskState::Corrupt {
            live.push((id.clone(), entry.summary.accept_time));
        }
        true
    });
    live
}

/// Measures the sandbox of one task, and takes a rest.
async fn measure(node: &Arc<Node>, key: &Key) {
    let mut begun = Instant::now();
    let meter = node.meters.get(key);
    // Of a task that was never read nothing is known, and it is measured the next time.
    let Ok(Some(launch)) = block(move || Ok(meter.launch())).await else { return };
    let opened =
        block(move || Measure::sandbox(&launch).map_err(|error| status::unavailable(&error)));
    let mut walk = match opened.await {
        Ok(walk) => walk,
        Err(error) => {
            tracing::debug!(task = %key.0, error = error.message(), "the sandbox is not measured");
            return;
        }
    };
    loop {
        let gone_on = block(move || {
            let done = walk.go_on(SLICE).map_err(|error| status::unavailable(&error))?;
            Ok((walk, done))
        });
        let gone_on = gone_on.await;
        tokio::time::sleep(begun.elapsed() * REST).await;
        begun = Instant::now();
        match gone_on {
            Ok((_, Some(usage))) => {
                let now = Timestamp::from_unix_nanos(clock::now().wall);
                return node.histories.measured(key, to_proto(&usage, now));
            }
            Ok((same, None)) => walk = same,
            Err(error) => {
                let error = error.message();
                tracing::debug!(task = %key.0, error, "the sandbox is not measured");
                return;
            }
        }
    }
}

fn to_proto(usage: &DiskUsage, now: Timestamp) -> proto::DiskUsage {
    let method = match usage.method {
        Method::Walk => DiskMethod::Walk,
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
