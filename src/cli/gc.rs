//! `dewar gc`.

use serde_json::json;

use super::args::{Gc, Output, Part};
use super::failure::{Failure, status};
use super::out::Out;
use super::pattern::Patterns;
use super::{json, place, words};
use crate::causes::{chain, tell};
use crate::checkpoint::Root;
use crate::gc::policy::{Sizes, Victim};
use crate::gc::{Collector, GcError, Told};
use crate::remove::{Erased, Parts};
use crate::task::TaskId;

/// Removes what is kept of tasks that have ended, as the limits say, and prints which.
///
/// # Errors
///
/// [`Failure`]; one task that cannot be removed keeps no other from it, and makes the exit status.
pub(super) fn run(args: &Gc) -> Result<u8, Failure> {
    let parts = parts(&args.delete)?;
    let patterns = Patterns::new(&args.patterns)?;
    let roots = place::roots(&args.roots)?;
    let mut exit = status::SUCCESS;
    for root in &roots {
        let told = (roots.len() > 1).then(|| root.path().display().to_string());
        let mut teller = Teller { output: args.output, parts, root: told, ..Teller::default() };
        match of_root(root, args, &patterns, &mut teller) {
            Ok(()) => {}
            Err(failure) if roots.len() == 1 => return Err(failure),
            Err(failure) => {
                tell!("dewar: {}: {failure}", words::name(&root.path().display().to_string()));
                exit = failure.status();
            }
        }
        if teller.kept > 0 {
            exit = status::UNAVAILABLE;
        }
    }
    Ok(exit)
}

fn of_root(
    root: &Root,
    args: &Gc,
    patterns: &Patterns,
    teller: &mut Teller,
) -> Result<(), Failure> {
    let mut collector = Collector::new(root.clone(), args.limits(), teller.parts)?;
    let wanted = |id: &TaskId| patterns.matches(id);
    let mut tell = |told: Told<'_>| teller.tell(&told);
    let round = match args.dry_run {
        true => collector.rehearse(&wanted, &mut || true, &mut tell)?,
        false => collector.collect(&wanted, &mut || true, &mut tell)?,
    };
    teller.failure.take().map_or(Ok(()), Err)?;
    let verb = if args.dry_run { "would be removed" } else { "removed" };
    let count = if round.removed == 1 { "1 task" } else { &format!("{} tasks", round.removed) };
    let place = teller.place();
    tell!("dewar: {count}{place} {verb}, {}", words::bytes(round.erased.bytes));
    Ok(())
}

/// What is deleted: to forget a task and leave its files is not for a collector to do.
fn parts(delete: &[Part]) -> Result<Parts, Failure> {
    let has = |part| delete.contains(&part);
    let parts =
        Parts { data: has(Part::Data), logs: has(Part::Logs), metadata: has(Part::Metadata) };
    if parts.metadata && parts != Parts::ALL {
        let why = "metadata goes with data and logs, which would belong to no task";
        return Err(Failure::Usage(format!("--delete: {why}: see `dewar remove`")));
    }
    Ok(parts)
}

/// Prints what becomes of tasks.
struct Teller {
    output: Output,
    parts: Parts,
    /// The root of the tasks, where several were named.
    root: Option<String>,
    out: Out,
    /// Tasks that should have gone.
    kept: u64,
    failure: Option<Failure>,
}

impl Default for Teller {
    fn default() -> Self {
        let out = Out::default();
        Self { output: Output::Text, parts: Parts::ALL, root: None, out, kept: 0, failure: None }
    }
}

impl Teller {
    fn tell(&mut self, told: &Told<'_>) {
        let line = match told {
            Told::Erased { victim, erased } => self.line(victim, *erased, None),
            Told::Chosen { victim, sizes } => {
                let size = sizes.of(self.parts);
                let erased = Erased { bytes: size.bytes, inodes: size.inodes };
                self.line(victim, erased, Some(*sizes))
            }
            Told::Left { victim, error } => return self.kept(&victim.task.id, &chain(*error)),
            Told::Unread { id, error } => return self.kept(id, error),
        };
        let written = line.and_then(|line| Ok(self.out.write(line)?));
        self.failure = self.failure.take().or(written.err());
    }

    fn kept(&mut self, id: &TaskId, why: &str) {
        self.kept += 1;
        let (name, place) = (words::name(id.as_str()), self.place());
        tell!("dewar: {name}{place}: {}", super::term::escape(why));
    }

    /// ` in ROOT`, where several were named.
    fn place(&self) -> String {
        self.root.as_ref().map(|root| format!(" in {}", words::name(root))).unwrap_or_default()
    }

    fn line(
        &self,
        victim: &Victim,
        erased: Erased,
        sizes: Option<Sizes>,
    ) -> Result<String, Failure> {
        let Victim { task, why } = victim;
        let Erased { bytes, inodes } = erased;
        if self.output == Output::Text {
            let (why, age, bytes) = (why.as_str(), words::span(task.age), words::bytes(bytes));
            let root = self.root.as_ref().map(|root| format!("  {}", words::name(root)));
            let root = root.unwrap_or_default();
            return Ok(format!("{}  {why} {age}  {bytes}{root}\n", task.id));
        }
        let mut told = json!({
            "taskId": task.id.as_str(), "reason": why.as_str(), "ageSeconds": task.age.as_secs(),
            "bytes": bytes, "inodes": inodes, "dryRun": sizes.is_some(),
        });
        if let Some(Sizes { data, logs, metadata }) = sizes {
            told["dataBytes"] = data.bytes.into();
            told["logBytes"] = logs.bytes.into();
            told["metadataBytes"] = metadata.bytes.into();
        }
        json::rooted(&told, self.root.as_deref())
    }
}

impl From<GcError> for Failure {
    fn from(error: GcError) -> Self {
        Self::unavailable(&error)
    }
}
