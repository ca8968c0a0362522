//! A root with tasks that are over, for tests: their streams are written by hand.
#![allow(clippy::disallowed_methods, reason = "tests on real files")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};

use super::{Collector, Limits, Told};
use crate::checkpoint::paths::Place;
use crate::checkpoint::{Identity, Instant, Root, Writer, tasks};
use crate::proto::record::Kind;
use crate::proto::{Launch, Leader};
use crate::remove::{Erased, Parts, RemoveError, Used};
use crate::state::{Event, Phase};
use crate::sys::clock;
use crate::task::TaskId;
use crate::testing::TempDir;
use crate::view::tests::{launch, process, task};

/// A root, and what else a test makes.
pub(crate) struct Scene {
    pub(crate) temp: TempDir,
    pub(crate) root: Root,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::in_dir(TempDir::new())
    }

    /// One for very many files.
    pub(crate) fn of_many_files() -> Self {
        Self::in_dir(TempDir::of_many_files())
    }

    /// One in a directory that was made before.
    pub(crate) fn in_dir(temp: TempDir) -> Self {
        let root = Root::new(temp.path().join("root")).unwrap();
        root.create().unwrap();
        Self { temp, root }
    }

    /// A path outside of the root.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    pub(crate) fn sandbox(&self, id: &str) -> PathBuf {
        self.root.sandbox(&id_of(id))
    }

    /// A file in the sandbox of a task, with what leads to it.
    pub(crate) fn file(&self, id: &str, name: &str, bytes: usize) -> PathBuf {
        let path = self.sandbox(id).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, vec![1; bytes]).unwrap();
        path
    }

    /// A task that is active, which `change` may change before; so old, without a file in its sandbox.
    pub(crate) fn active(
        &self,
        id: &str,
        age: Duration,
        change: impl FnOnce(&mut Launch),
        more: impl IntoIterator<Item = Kind>,
    ) -> TaskId {
        let id = id_of(id);
        let mut accepted = Launch {
            task_id: id.to_string(),
            sandbox: self.root.sandbox(&id).display().to_string(),
            ..launch(task(vec![process("a")], &[]))
        };
        change(&mut accepted);
        self.root.create_checkpoint(&id).unwrap();
        let mut writer = Writer::create(&self.root, Identity::runner(id.clone())).unwrap();
        let now = clock::now();
        let age = u64::try_from(age.as_nanos()).unwrap();
        let at = Instant {
            boot_nanos: now.boot.saturating_sub(age),
            unix_nanos: now.wall - i64::try_from(age).unwrap(),
        };
        let active = Event::Entered(Phase::Active).to_kind();
        for kind in [Kind::Launch(accepted.clone())].into_iter().chain(more).chain([active]) {
            writer.append(kind, at).unwrap();
        }
        writer.flush().unwrap();
        tasks::accept(&self.root, &id, &serde_json::to_vec(&accepted).unwrap()).unwrap();
        tasks::make_durable(&self.root, &id, || writer.sync_written()).unwrap();
        id
    }

    /// A task that is over.
    pub(crate) fn over(&self, id: &str, age: Duration) -> TaskId {
        self.over_with(id, age, |_| {}, [])
    }

    /// A task that is over, which `change` may change before, and with `more` records.
    pub(crate) fn over_with(
        &self,
        id: &str,
        age: Duration,
        change: impl FnOnce(&mut Launch),
        more: impl IntoIterator<Item = Kind>,
    ) -> TaskId {
        let ends = [Phase::Cleaning, Phase::Finalizing, Phase::Success];
        let id = self.active(id, age, change, more);
        let mut recovery =
            crate::checkpoint::Recovery::open(&self.root, Identity::runner(id.clone())).unwrap();
        let mut last = None;
        while let Some(record) = recovery.next_record().unwrap() {
            last = Some(record);
        }
        let last = last.unwrap();
        let mut writer = recovery.finish().unwrap().writer;
        let at = Instant { boot_nanos: last.boot_nanos, unix_nanos: last.unix_nanos };
        for phase in ends {
            writer.append(Event::Entered(phase).to_kind(), at).unwrap();
        }
        writer.flush().unwrap();
        drop(writer);
        tasks::finish(&self.root, &id).unwrap();
        id
    }

    /// Ids of the tasks that are over.
    pub(crate) fn ids(&self) -> Vec<String> {
        let ids = self.root.list(Place::Finished).unwrap();
        ids.iter().map(ToString::to_string).collect()
    }

    /// Whether nothing at all is there of a task.
    pub(crate) fn is_gone(&self, id: &str) -> bool {
        let id = id_of(id);
        let root = &self.root;
        let paths = [
            root.task(Place::Active, &id),
            root.task(Place::Finished, &id),
            root.checkpoint(&id),
            root.sandbox(&id),
        ];
        paths.iter().all(|path| fs::symlink_metadata(path).is_err())
    }

    /// Collects garbage once; tells each task, why it went or what hinders.
    pub(crate) fn collect(&self, limits: Limits) -> Vec<String> {
        self.collect_parts(limits, Parts::ALL)
    }

    pub(crate) fn collect_parts(&self, limits: Limits, parts: Parts) -> Vec<String> {
        let mut collector = Collector::new(self.root.clone(), limits, parts).unwrap();
        round(&mut collector)
    }

    /// Erases the sandbox of a task that is over.
    pub(crate) fn erase(&self, id: &str) -> Result<Erased, RemoveError> {
        let removal = crate::remove::Removal::begin(&self.root, &id_of(id))?.expect("it is there");
        removal.erase(Parts::ALL, &Used::read(&self.root)?, &mut || true)
    }
}

/// One round of a collector, and what it tells.
pub(crate) fn round(collector: &mut Collector) -> Vec<String> {
    let mut told = Vec::new();
    collector.collect(&|_| true, &mut || true, &mut |each| told.push(words(&each))).unwrap();
    told
}

/// What is told, in words.
pub(crate) fn words(told: &Told<'_>) -> String {
    match told {
        Told::Erased { victim, .. } => format!("{} {}", victim.task.id, victim.why.as_str()),
        Told::Chosen { victim, .. } => format!("{} would {}", victim.task.id, victim.why.as_str()),
        Told::Left { victim, error } => format!("{} left: {error}", victim.task.id),
        Told::Unread { id, error } => format!("{id} unread: {error}"),
    }
}

pub(crate) fn id_of(id: &str) -> TaskId {
    TaskId::new(id).unwrap()
}

/// A record of the lead of this boot, with a cgroup.
pub(crate) fn led(boot_id: &str, cgroup: Option<&Path>) -> Kind {
    Kind::Leader(Leader {
        runner: Some(crate::proto::ProcessId { pid: 1, start_ticks: 1 }),
        boot_id: boot_id.to_owned(),
        cgroup: cgroup.map(|path| path.display().to_string()),
        ..Leader::default()
    })
}

/// Makes `depth` directories in `top`, one in the other, each with a file, whatever the length of their path.
pub(crate) fn deepen(top: &Path, depth: usize) {
    let mut dir = open(top, OFlag::O_RDONLY, Mode::empty()).unwrap();
    for _ in 0..depth {
        mkdirat(&dir, c"d", Mode::S_IRWXU).unwrap();
        drop(openat(&dir, c"f", OFlag::O_WRONLY | OFlag::O_CREAT, Mode::S_IRWXU).unwrap());
        dir = openat(&dir, c"d", OFlag::O_RDONLY, Mode::empty()).unwrap();
    }
}
