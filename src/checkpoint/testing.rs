//! What the tests of this module share.
#![allow(clippy::disallowed_methods, reason = "tests on real files")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::{Just, Strategy, any, prop_oneof};

use super::frame;
use super::{Identity, Instant, Root};
use crate::proto::record::Kind;
use crate::proto::run_transition::State;
use crate::proto::{
    KillOrder, Launch, Leader, ProcessId, Record, RunEnded, RunForked, RunTransition, RunWaiting,
    TaskState, TaskTransition, Verdict,
};
use crate::task::{ProcessName, TaskId};

/// A directory that goes with the test.
pub(super) struct TempDir(PathBuf);

impl TempDir {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dewar-checkpoint-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // Nothing to be done about it in a test that is over.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A root with the directory of task `t`.
pub(super) fn root() -> (TempDir, Root) {
    let dir = TempDir::new();
    let root = root_in(dir.path());
    (dir, root)
}

pub(super) fn root_in(dir: &Path) -> Root {
    let root = Root::new(dir.join("root")).unwrap();
    root.create().unwrap();
    root.create_checkpoint(&task("t")).unwrap();
    root
}

pub(super) fn task(id: &str) -> TaskId {
    TaskId::new(id).unwrap()
}

pub(super) fn runner() -> Identity {
    Identity::runner(task("t"))
}

pub(super) fn coordinator() -> Identity {
    Identity::coordinator(task("t"), ProcessName::new("web").unwrap())
}

pub(super) fn at(nanos: u64) -> Instant {
    Instant { boot_nanos: nanos, unix_nanos: nanos as i64 }
}

pub(super) fn entered(state: TaskState) -> Kind {
    Kind::Task(TaskTransition { state: state.into() })
}

/// A launch whose task has a name of `length` bytes.
pub(super) fn launch(length: usize) -> Kind {
    Kind::Launch(Launch { task_id: "t".into(), sandbox: "s".repeat(length), ..Launch::default() })
}

/// A small life of a task, as records 0, 1, 2…
pub(super) fn life() -> Vec<Record> {
    let run = |state| Kind::Run(RunTransition { process: 3, run: 1, state: Some(state) });
    let pid = ProcessId { pid: 4711, start_ticks: 815_000 };
    let forked = RunForked {
        coordinator: Some(pid),
        boot_id: "0d2e0b36-6d0f-4d5e-9e0d-3d5a2b5f1c11".into(),
    };
    let ended =
        RunEnded { exit_code: Some(0), verdict: Some(Verdict::default()), ..RunEnded::default() };
    sequence([
        launch(40),
        entered(TaskState::Active),
        run(State::Waiting(RunWaiting {})),
        run(State::Forked(forked)),
        run(State::Ended(ended)),
        entered(TaskState::Success),
    ])
}

/// Numbers records from 0.
pub(super) fn sequence(kinds: impl IntoIterator<Item = Kind>) -> Vec<Record> {
    let number = |(seq, kind)| Record {
        seq,
        boot_nanos: 1_000_000_000 + seq * 1000,
        unix_nanos: 1_700_000_000_000_000_000 + seq as i64,
        kind: Some(kind),
    };
    (0..).zip(kinds).map(number).collect()
}

/// The bytes of a stream, and where its frames begin and end.
pub(super) struct Bytes {
    pub(super) bytes: Vec<u8>,
    /// Offset of each frame, and of the end.
    pub(super) bounds: Vec<usize>,
}

pub(super) fn stream(identity: &Identity, records: &[Record]) -> Bytes {
    let mut bytes = frame::encode_header(identity);
    let seed = frame::header_seed(&bytes);
    let mut bounds = vec![bytes.len()];
    for record in records {
        frame::encode(seed, record, &mut bytes).unwrap();
        bounds.push(bytes.len());
    }
    Bytes { bytes, bounds }
}

/// Any kind of record that a stream of few bytes can hold.
pub(super) fn any_kind() -> impl Strategy<Value = Kind> {
    let pid =
        (any::<i32>(), any::<u64>()).prop_map(|(pid, start_ticks)| ProcessId { pid, start_ticks });
    let state = prop_oneof![
        Just(State::Waiting(RunWaiting {})),
        (proptest::option::of(pid), ".{0,40}")
            .prop_map(|(coordinator, boot_id)| State::Forked(RunForked { coordinator, boot_id })),
        (any::<i32>(), any::<Option<u32>>()).prop_map(|(state, exit_code)| State::Ended(
            RunEnded { state, exit_code, ..RunEnded::default() }
        )),
    ];
    prop_oneof![
        any::<i32>().prop_map(|state| Kind::Task(TaskTransition { state })),
        (any::<u32>(), any::<u32>(), proptest::option::of(state))
            .prop_map(|(process, run, state)| Kind::Run(RunTransition { process, run, state })),
        (any::<u64>(), any::<bool>(), any::<u32>(), any::<i32>()).prop_map(
            |(deadline_boot_nanos, lost, by_uid, by_pid)| {
                let reason = lost.then(|| by_uid.to_string());
                Kind::Kill(KillOrder { deadline_boot_nanos, lost, by_uid, by_pid, reason })
            }
        ),
        "\\PC{0,200}".prop_map(|version| Kind::Leader(Leader { version, ..Leader::default() })),
        "[\\x00-\\x7f]{0,200}"
            .prop_map(|sandbox| Kind::Launch(Launch { sandbox, ..Launch::default() })),
    ]
}

/// Where a test's other half finds the directory that it was given.
const DIRECTORY: &str = "DEWAR_TEST_DIRECTORY";

/// Directory of the half that runs in a process of its own; `None` where it runs as a test by itself.
pub(super) fn given_directory() -> Option<PathBuf> {
    std::env::var_os(DIRECTORY).map(PathBuf::from)
}

/// The test `name` of this binary, to be run by itself in `dir`.
pub(super) fn other_half(name: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture"]).env(DIRECTORY, dir);
    command
}

/// A process that does something until it is dropped.
pub(super) struct Holding {
    child: Child,
    _out: BufReader<ChildStdout>,
}

impl Holding {
    /// Runs the test `name` until it says `held`; it goes on until its input ends.
    pub(super) fn start(name: &str, dir: &Path) -> Self {
        let mut child =
            other_half(name, dir).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("held") {
            line.clear();
            assert_ne!(out.read_line(&mut line).unwrap(), 0, "it ended before it held anything");
        }
        Self { child, _out: out }
    }

    pub(super) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub(super) fn end(self) {}
}

impl Drop for Holding {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The other half of [`Holding::start`].
pub(super) fn hold() {
    println!("held");
    std::io::stdin().lines().for_each(drop);
}
