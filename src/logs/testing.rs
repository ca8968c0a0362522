//! A log that tests write and rotate as a coordinator does.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Log, Source, Start};
use crate::identity;
use crate::sandbox::Sandbox;
use crate::sandbox::logs::{DEFAULT_DIR, LogDir, Stream};
use crate::task::ProcessName;
use crate::testing::TempDir;

/// The logs of process `w`, number 0 of its task.
pub(crate) struct Scene {
    sandbox: TempDir,
    pub(crate) source: Arc<Source>,
    dir: LogDir,
}

impl Scene {
    /// With the directory of run 0.
    pub(crate) fn new() -> Self {
        let sandbox = TempDir::new();
        let process = ProcessName::new("w").unwrap();
        let owner = identity::current().unwrap().uid;
        let logs = sandbox.path().join(DEFAULT_DIR);
        let dir = run_dir(&sandbox, 0);
        let source = Source { process, index: 0, stream: Stream::Stdout, dir: logs, owner };
        Self { sandbox, source: Arc::new(source), dir }
    }

    /// Reads the log of run 0.
    pub(crate) fn log(&self, start: Start) -> Log {
        Log::new(Arc::clone(&self.source), 0, start)
    }

    /// Makes the directory of another run, to which is written from now on.
    pub(crate) fn run(&mut self, run: u32) {
        self.dir = run_dir(&self.sandbox, run);
    }

    /// The live file.
    pub(crate) fn live(&self) -> PathBuf {
        self.dir.path().join(Stream::Stdout.as_str())
    }

    pub(crate) fn append(&self) -> File {
        self.dir.append(Stream::Stdout).unwrap().into()
    }

    pub(crate) fn write(&self, range: std::ops::Range<u32>) {
        self.append().write_all(lines(range).as_bytes()).unwrap();
    }

    pub(crate) fn rotate(&self, backups: u32) {
        self.dir.rotate(Stream::Stdout, backups).unwrap();
    }
}

fn run_dir(sandbox: &TempDir, run: u32) -> LogDir {
    let identity = identity::current().unwrap();
    let opened = Sandbox::open(sandbox.path(), &identity).unwrap();
    LogDir::open(&opened, None, &ProcessName::new("w").unwrap(), run, &identity).unwrap()
}

/// What [`Scene::write`] writes.
pub(crate) fn lines(range: std::ops::Range<u32>) -> String {
    range.map(|line| format!("line {line}\n")).collect()
}
