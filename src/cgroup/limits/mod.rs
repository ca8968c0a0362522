//! Limits: written, read back, and named where they cannot be had.
//!
//! [`demands`] is the table: which file each field becomes. A demand is met, or rounded by the kernel, or cannot be enforced; there
//! is no fourth way. Whether a file is there, and takes the value, is found out by writing it: before a task is accepted to a cgroup
//! made for that ([`super::trial`]), then to the task's own, and to the leaf of each run.
//!
//! `form` says when a file holds what was asked for, `disk` which disk a path is on, `defaults` what is limited without being asked,
//! `protection` how what is around a cgroup must pass its protection on, `shortage` which limit kept a run from being started.

mod defaults;
mod disk;
mod form;
mod protection;
mod shortage;

use std::borrow::Cow;
use std::fmt;

use nix::errno::Errno;

pub(super) use defaults::{bound_cgroups, bound_depth, bound_pids, bounds_pids};
use form::{Form, Judgement};
pub(super) use protection::pass_on;
pub use shortage::Shortage;

use super::controllers::{Controller, Usable};
use super::dir::Dir;
use super::{Cgroup, CgroupError};
use crate::task::Resources;
use crate::task::list::NumberList;
use crate::task::resources::{
    CpuLimit, Device, IoMax, IoTarget, NO_LIMIT, WEIGHTS, huge_page_bytes,
};

/// Weight of one CPU: the kernel's default weight of a cgroup.
const WEIGHT_OF_ONE_CPU: f64 = 100.0;

/// Most bytes between a limit and the kernel's rounding of it: pages are of at most 64 KiB.
const PAGE_MAX: u64 = 64 * 1024;

/// A limit that was asked for and that this host cannot enforce.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} cannot be enforced: it needs {needs}; {why}")]
pub struct Unenforceable {
    /// Path of the field, such as `resources.ram`.
    pub field: String,
    /// What would have to be there, such as `the memory controller`.
    pub needs: String,
    /// Why it is not.
    pub why: String,
}

/// A limit that the kernel holds in a form of its own: memory in whole pages, say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rounded {
    /// Path of the field, such as `resources.ram`.
    pub field: String,
    /// What was asked for.
    pub asked: String,
    /// What is in force.
    pub found: String,
}

impl fmt::Display for Rounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, asked, found } = self;
        write!(f, "{field}: {found} is in force, {asked} was asked for")
    }
}

/// What became of limits that were asked for; all others are in force as they were asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// Those that cannot be enforced.
    pub unenforceable: Vec<Unenforceable>,
    /// Those that the kernel rounded.
    pub rounded: Vec<Rounded>,
}

impl Applied {
    /// Both together.
    pub(super) fn extend(&mut self, other: Self) {
        self.unenforceable.extend(other.unenforceable);
        self.rounded.extend(other.rounded);
    }

    fn add(&mut self, field: String, outcome: Outcome) {
        match outcome {
            Outcome::Held => {}
            Outcome::Rounded { asked, found } => self.rounded.push(Rounded { field, asked, found }),
            Outcome::Lacking { needs, why } => {
                self.unenforceable.push(Unenforceable { field, needs, why });
            }
        }
    }
}

/// Names each limit of `resources`, found at `path` in the task, as unenforceable because of `needs` and `why`.
pub fn all_unenforceable(
    resources: &Resources,
    path: &str,
    needs: &str,
    why: &str,
) -> Vec<Unenforceable> {
    let name = |demand: Demand<'_>| Unenforceable {
        field: format!("{path}.{}", demand.field),
        needs: needs.to_owned(),
        why: why.to_owned(),
    };
    demands(resources).into_iter().map(name).collect()
}

/// The controllers that `resources` need beyond those that every task gets.
pub(super) fn extra_controllers(resources: &Resources) -> Vec<Controller> {
    let cpuset = &resources.cpuset;
    let named = resources.cgroup.keys().filter_map(|file| Controller::of(file));
    let fields = [
        (Controller::Cpuset, cpuset.cpus.is_some() || cpuset.mems.is_some()),
        (Controller::Hugetlb, !resources.hugetlb.is_empty()),
    ];
    let asked = fields.into_iter().filter_map(|(controller, asked)| asked.then_some(controller));
    asked.chain(named).filter(|controller| !Controller::ALWAYS.contains(controller)).collect()
}

/// The controllers that any of `all` needs beyond those that every task gets, each once.
pub(super) fn extra_controllers_of<'r>(
    all: impl Iterator<Item = &'r Resources>,
) -> Vec<Controller> {
    let mut extra: Vec<_> = all.flat_map(extra_controllers).collect();
    extra.sort_unstable();
    extra.dedup();
    extra
}

/// Whether `resources` ask for memory that is kept: see [`pass_on`].
pub(super) fn protects(resources: &Resources) -> bool {
    resources.memory_min.is_some() || resources.memory_low.is_some()
}

/// A field that asks for something.
struct Demand<'r> {
    /// Its name within the resources.
    field: String,
    act: Act<'r>,
}

/// What meets a demand.
enum Act<'r> {
    /// One value in one file.
    Write { file: Cow<'r, str>, value: String, form: Form },
    /// CPUs as a weight.
    Share(f64),
    /// A ceiling of CPU time, without its burst.
    Ceiling(CpuLimit),
    /// A weight, for whichever scheduler of disks there is.
    Weight(u32),
    /// A ceiling of one disk.
    Disk(&'r IoMax),
    /// CPUs or memory nodes.
    Numbers { file: &'static str, list: &'r NumberList },
    /// Memory that is kept.
    Protection { file: &'static str, bytes: u64 },
    /// Nothing does: what would have to be there.
    Nothing(&'static str),
}

/// The table of fields and files, in the order in which they are written.
fn demands(of: &Resources) -> Vec<Demand<'_>> {
    let demand = |field: &str, act| Demand { field: field.to_owned(), act };
    let write = |file: &'static str, value, form| Act::Write { file: file.into(), value, form };
    let bytes = |file, bytes| write(file, amount(bytes), Form::Bytes { unit: PAGE_MAX });
    let word = |file, value| write(file, value, Form::Word);
    let mut all: Vec<Demand<'_>> = [
        of.cpu.map(|cpus| demand("cpu", Act::Share(cpus))),
        of.cpu_limit.map(|limit| demand("cpu_limit", Act::Ceiling(limit))),
        of.cpu_limit.filter(|limit| !limit.burst.is_zero()).map(|limit| {
            demand("cpu_limit.burst", word("cpu.max.burst", limit.burst.as_micros().to_string()))
        }),
        of.memory_min
            .map(|bytes| demand("memory_min", Act::Protection { file: "memory.min", bytes })),
        of.memory_low
            .map(|bytes| demand("memory_low", Act::Protection { file: "memory.low", bytes })),
        of.memory_high.map(|high| demand("memory_high", bytes("memory.high", high))),
        of.ram.map(|ram| demand("ram", bytes("memory.max", ram))),
        of.swap.map(|swap| demand("swap", bytes("memory.swap.max", swap))),
        of.oom_group.map(|whole| {
            demand("oom_group", word("memory.oom.group", u8::from(whole).to_string()))
        }),
        of.pids.map(|pids| demand("pids", word("pids.max", amount(pids)))),
        of.io.weight.map(|weight| demand("io.weight", Act::Weight(weight))),
    ]
    .into_iter()
    .flatten()
    .collect();
    all.extend(
        of.io
            .max
            .iter()
            .enumerate()
            .map(|(index, max)| Demand { field: format!("io.max[{index}]"), act: Act::Disk(max) }),
    );
    let numbers = [("cpuset.cpus", &of.cpuset.cpus), ("cpuset.mems", &of.cpuset.mems)];
    all.extend(numbers.into_iter().filter_map(|(file, list)| {
        Some(demand(file, Act::Numbers { file, list: list.as_ref()? }))
    }));
    all.extend(of.hugetlb.iter().map(|(size, &most)| {
        let form = Form::Bytes { unit: huge_page_bytes(size).unwrap_or(1) };
        let file = format!("hugetlb.{size}.max").into();
        let act = Act::Write { file, value: amount(most), form };
        Demand { field: format!("hugetlb[{size}]"), act }
    }));
    all.extend(of.cgroup.iter().map(|(file, value)| {
        let act = Act::Write { file: file.into(), value: value.clone(), form: Form::Lines };
        Demand { field: format!("cgroup[{file}]"), act }
    }));
    all.extend(of.disk.map(|_| demand("disk", Act::Nothing("disk quotas"))));
    let gpus = of.gpu.filter(|&gpus| gpus > 0);
    all.extend(gpus.map(|_| demand("gpu", Act::Nothing("device plugins"))));
    all
}

/// What became of a demand.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// It is in force as it was asked for.
    Held,
    /// It is in force in another form.
    Rounded { asked: String, found: String },
    /// It is not in force.
    Lacking { needs: String, why: String },
}

impl Cgroup {
    /// Enforces `resources`, found at `path` in the task, on all that is in this cgroup, and on what comes later. Fields that are
    /// absent stay as they are, so this also changes some limits of a live task or run.
    ///
    /// Controllers that only some tasks have must be enabled before: [`super::TaskCgroup::limit`] does.
    ///
    /// # Errors
    ///
    /// [`CgroupError::NotTaken`] if the kernel holds another value than it was given;
    /// [`CgroupError::Sys`].
    pub fn apply(&self, resources: &Resources, path: &str) -> Result<Applied, CgroupError> {
        self.apply_in(resources, path, &Usable::default())
    }

    /// [`Cgroup::apply`] where it is known why some controllers are missing.
    pub(super) fn apply_in(
        &self,
        resources: &Resources,
        path: &str,
        usable: &Usable,
    ) -> Result<Applied, CgroupError> {
        self.go_through(resources, path, usable, Mode::Enforce)
    }

    /// Those limits of `resources`, found at `path`, that were enforced and are not in force any more: another manager took their
    /// controller away, or wrote to their file. Nothing is written.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Sys`].
    pub fn lost(
        &self,
        resources: &Resources,
        path: &str,
    ) -> Result<Vec<Unenforceable>, CgroupError> {
        let found = self.go_through(resources, path, &Usable::default(), Mode::Check)?;
        Ok(found.unenforceable)
    }

    fn go_through(
        &self,
        resources: &Resources,
        path: &str,
        usable: &Usable,
        mode: Mode,
    ) -> Result<Applied, CgroupError> {
        let mut limiter = Limiter { dir: self.dir(), usable, mode, disks: Vec::new() };
        let mut applied = Applied::default();
        for Demand { field, act } in demands(resources) {
            let outcome = limiter.meet(&field, act)?;
            applied.add(format!("{path}.{field}"), outcome);
        }
        Ok(applied)
    }

    /// Makes the kernel kill all of this cgroup where it kills one process for want of memory: half
    /// of a run that goes on is worse than its end. Without the memory controller there is nothing
    /// to do.
    pub(super) fn die_whole(&self) -> Result<(), CgroupError> {
        write_if_there(self.dir(), "memory.oom.group", "1")
    }
}

/// Writes a default, which a kernel that has the file takes.
fn write_if_there(dir: &Dir, file: &str, value: &str) -> Result<(), CgroupError> {
    match dir.write(file, value) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(dir.error("write", file, errno)),
    }
}

/// What is done about a demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Its files are written, and read back.
    Enforce,
    /// They are only read.
    Check,
}

/// Meets demands in one cgroup, or tells which are not met.
struct Limiter<'l> {
    dir: &'l Dir,
    usable: &'l Usable,
    mode: Mode,
    /// Disks that have a ceiling by now, and the field that names each.
    disks: Vec<(Device, String)>,
}

impl Limiter<'_> {
    fn meet(&mut self, field: &str, act: Act<'_>) -> Result<Outcome, CgroupError> {
        match act {
            Act::Write { file, value, form } => self.hold(&file, &value, form),
            Act::Share(cpus) => self.share(cpus),
            Act::Ceiling(limit) => self.ceiling(limit),
            Act::Weight(weight) => self.weight(weight),
            Act::Disk(max) => self.disk(field, max),
            Act::Numbers { file, list } => self.numbers(file, list),
            Act::Protection { file, bytes } => self.protect(file, bytes),
            Act::Nothing(needs) => Ok(Outcome::Lacking {
                needs: needs.to_owned(),
                why: "cgroup v2 has no controller for it".to_owned(),
            }),
        }
    }

    /// Makes sure that the file holds `value`, which is written first if limits are to be enforced.
    fn hold(&self, file: &str, value: &str, form: Form) -> Result<Outcome, CgroupError> {
        let written = if self.mode == Mode::Enforce { self.dir.write(file, value) } else { Ok(()) };
        match written {
            Ok(()) => {}
            Err(Errno::ENOENT) => return Ok(self.lacks(file)),
            Err(errno) if is_about_the_value(errno) => {
                let needs = format!("{} to take {value:?}", self.dir.path().join(file).display());
                return Ok(Outcome::Lacking { needs, why: errno.desc().to_owned() });
            }
            Err(errno) => return Err(self.dir.error("write", file, errno)),
        }
        let found = match self.dir.read_text(file) {
            Err(Errno::ENOENT) => return Ok(self.lacks(file)),
            // Some files are only for writing; those that fields are there for are not.
            Err(Errno::EINVAL | Errno::EACCES | Errno::EOPNOTSUPP) if form == Form::Lines => {
                "nothing that can be read back".to_owned()
            }
            found => found.map_err(|errno| self.dir.error("read", file, errno))?,
        };
        match form.judge(value, &found) {
            Judgement::Same => Ok(Outcome::Held),
            Judgement::Rounded => Ok(Outcome::Rounded { asked: value.to_owned(), found }),
            Judgement::Other if self.mode == Mode::Check => Ok(Outcome::Lacking {
                needs: format!("{value} in {}", self.dir.path().join(file).display()),
                why: format!("{found} is there"),
            }),
            Judgement::Other => Err(CgroupError::NotTaken {
                path: self.dir.path().join(file),
                asked: value.to_owned(),
                found,
            }),
        }
    }

    /// Why `file` is not there: its controller is not, or it is not in this kernel.
    fn lacks(&self, file: &str) -> Outcome {
        let dir = self.dir.path().display();
        let Some(controller) = Controller::of(file) else {
            return Outcome::Lacking { needs: file.to_owned(), why: format!("{dir} has none") };
        };
        if let Some(why) = self.usable.why_not(controller) {
            return Outcome::Lacking {
                needs: format!("the {controller} controller"),
                why: why.to_owned(),
            };
        }
        if !self.dir.lists("cgroup.controllers", controller.name()) {
            let why = format!("{dir} does not have it");
            return Outcome::Lacking { needs: format!("the {controller} controller"), why };
        }
        let why =
            format!("{dir} has no such file: this kernel is too old for it, or built without");
        Outcome::Lacking { needs: file.to_owned(), why }
    }

    /// CPUs beyond the heaviest weight weigh as much as it.
    fn share(&self, cpus: f64) -> Result<Outcome, CgroupError> {
        let (weight, wish) = weight(cpus);
        let outcome = self.hold("cpu.weight", &weight.to_string(), Form::Word)?;
        let rounded = |asked: f64| Outcome::Rounded {
            asked: format!("weight {asked}"),
            found: format!("weight {weight}"),
        };
        Ok(match outcome {
            Outcome::Held if wish > f64::from(weight) => rounded(wish),
            outcome => outcome,
        })
    }

    /// A burst is at most the quota: the one that was in force before must not be in the way of a smaller quota.
    fn ceiling(&self, limit: CpuLimit) -> Result<Outcome, CgroupError> {
        if self.mode == Mode::Enforce {
            write_if_there(self.dir, "cpu.max.burst", "0")?;
        }
        let quota = limit.quota().map_or_else(|| "max".to_owned(), |quota| quota.to_string());
        self.hold("cpu.max", &format!("{quota} {}", limit.period.as_micros()), Form::Word)
    }

    /// `io.weight` is iocost's, `io.bfq.weight` that of BFQ: which of them schedules is chosen for each disk, so both are told where
    /// both are there.
    fn weight(&self, weight: u32) -> Result<Outcome, CgroupError> {
        let cost = self.hold("io.weight", &weight.to_string(), Form::Weight)?;
        let bfq = self.hold("io.bfq.weight", &bfq_weight(weight).to_string(), Form::Weight)?;
        Ok(match (cost, bfq) {
            (Outcome::Lacking { .. }, bfq @ (Outcome::Held | Outcome::Rounded { .. })) => bfq,
            (cost, _) => cost,
        })
    }

    fn disk(&mut self, field: &str, max: &IoMax) -> Result<Outcome, CgroupError> {
        let found = match &max.target {
            IoTarget::Path(path) => disk::of_path(path.as_ref()),
            IoTarget::Device(device) => disk::whole(*device),
        };
        let device = match found {
            Ok(device) => device,
            Err(why) => return Ok(Outcome::Lacking { needs: "a disk".to_owned(), why }),
        };
        if let Some((_, first)) = self.disks.iter().find(|(known, _)| *known == device) {
            let needs = "a disk of its own".to_owned();
            return Ok(Outcome::Lacking { needs, why: format!("{first} is about {device} too") });
        }
        self.disks.push((device, field.to_owned()));
        let rates =
            [("rbps", max.rbps), ("wbps", max.wbps), ("riops", max.riops), ("wiops", max.wiops)];
        let rates =
            rates.iter().filter_map(|&(key, rate)| Some(format!("{key}={}", amount(rate?))));
        let line = std::iter::once(device.to_string()).chain(rates).collect::<Vec<_>>().join(" ");
        self.hold("io.max", &line, Form::Rates)
    }

    /// What is asked for may be more than what those around may use: the rest is what counts.
    fn numbers(&self, file: &str, list: &NumberList) -> Result<Outcome, CgroupError> {
        let outcome = self.hold(file, &list.to_string(), Form::Numbers)?;
        if outcome != Outcome::Held {
            return Ok(outcome);
        }
        let effective = format!("{file}.effective");
        let read = self.dir.read_text(&effective);
        let found = read.map_err(|errno| self.dir.error("read", &effective, errno))?;
        let allowed = NumberList::parse(&found, u32::MAX - 1).unwrap_or_default();
        let usable = allowed.intersection(list);
        Ok(if usable == *list {
            Outcome::Held
        } else if usable.is_empty() {
            let dir = self.dir.path().display();
            let found = if found.is_empty() { "none" } else { &found };
            Outcome::Lacking {
                needs: format!("one of {list}"),
                why: format!("{dir} may use only {found}"),
            }
        } else {
            Outcome::Rounded { asked: list.to_string(), found: usable.to_string() }
        })
    }

    /// Memory is kept only as far as all that is around keeps it.
    fn protect(&self, file: &str, bytes: u64) -> Result<Outcome, CgroupError> {
        let outcome = self.hold(file, &amount(bytes), Form::Bytes { unit: PAGE_MAX })?;
        if matches!(outcome, Outcome::Lacking { .. }) {
            return Ok(outcome);
        }
        Ok(protection::hindered(self.dir, file, bytes).unwrap_or(outcome))
    }
}

/// Whether the kernel refused a value, and not us.
fn is_about_the_value(errno: Errno) -> bool {
    use Errno::{E2BIG, EBUSY, EINVAL, ENODEV, ENOSPC, EOPNOTSUPP, ERANGE};
    matches!(errno, EINVAL | ERANGE | ENODEV | EOPNOTSUPP | EBUSY | ENOSPC | E2BIG)
}

/// A number as the kernel writes it.
fn amount(number: u64) -> String {
    if number == NO_LIMIT { "max".to_owned() } else { number.to_string() }
}

/// Weight of `cpus` CPUs, and what it would be if there were no bounds. Whatever is not a positive number weighs least.
fn weight(cpus: f64) -> (u32, f64) {
    let [least, most] = WEIGHTS;
    let wish = (cpus * WEIGHT_OF_ONE_CPU).round();
    // In range by the clamp, and NaN becomes 0, which `max` lifts.
    let weight = (wish.clamp(f64::from(least), f64::from(most)) as u32).max(least);
    (weight, wish)
}

/// A weight of 1 to 10000 as one of BFQ's, 1 to 1000: both have 100 in the middle (as systemd does it).
fn bfq_weight(weight: u32) -> u32 {
    if weight <= 100 { weight } else { 100 + (weight - 100) * 900 / 9900 }
}

#[cfg(test)]
mod tests;
