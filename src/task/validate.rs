//! The rules of the schema: a [`proto::Task`] becomes a [`TaskSpec`], or the list of what is wrong.
//!
//! All rules are checked in one go, in time linear in the size of the task (sorting its edges
//! apart), and whatever the message holds: it may come from a stranger.

use std::collections::HashMap;
use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use super::graph::Cycle;
use super::resources::{self, Resources};
use super::spec::{self, FileMode, Graph, Logger, ProcessSpec, Rotate, TaskSpec};
use super::{NameError, ProcessName, check, quoted};
use crate::proto;

/// Most processes of a task. Each costs a cgroup, a log directory and a stream while it runs, and
/// a few hundred bytes in every program that looks at the task.
pub const MAX_PROCESSES: usize = 10_000;
/// Most names in all `order` lists of a task together.
pub const MAX_ORDER_NAMES: usize = 150_000;
/// Longest command line in bytes: with its final NUL it must fit `MAX_ARG_STRLEN`, 32 pages of
/// 4 KiB, see execve(2).
pub const MAX_CMDLINE_BYTES: usize = 131_071;
/// Longest duration, about 31 years: the sum of any two fits every clock.
pub const MAX_DURATION: Duration = Duration::from_secs(1_000_000_000);
/// Most violations that are listed.
pub const MAX_VIOLATIONS: usize = 1000;

/// What may stand where a name is asked for.
const NAME: &str = "1 to 243 bytes with no `/`, no control character and no `.` in front";

/// A rule that a task breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, such as `processes[1].cmdline`.
    pub field: String,
    /// What was found.
    pub message: String,
    /// What would have been right.
    pub expected: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; expected {}", self.field, self.message, self.expected)
    }
}

impl TaskSpec {
    /// Takes `task` if it keeps every rule; what it leaves out gets its default.
    ///
    /// # Errors
    ///
    /// Every rule that it breaks and where, at most [`MAX_VIOLATIONS`] of them.
    pub fn from_proto(task: &proto::Task) -> Result<Self, Vec<Violation>> {
        validate(task, Names::Complete).map_err(|violations| violations.list)
    }

    /// The task as a message, every default spelled out; [`TaskSpec::from_proto`] gives `self` back.
    pub fn to_proto(&self) -> proto::Task {
        proto::Task {
            name: self.name.clone(),
            processes: self.processes.iter().map(process_to_proto).collect(),
            constraints: constraints(&self.processes, &self.graph),
            resources: self.resources.as_ref().map(Resources::to_proto),
            max_failures: Some(self.max_failures),
            max_concurrency: Some(self.max_concurrency),
            finalization_wait: Some(duration_to_proto(self.finalization_wait)),
            user: self.user.clone(),
        }
    }
}

/// Whether the names of all processes are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    /// They are.
    Complete,
    /// Some could not be read, and the user knows: a name that is missing may be one of those.
    Incomplete,
}

/// What is wrong with a task.
#[derive(Debug, Default)]
pub(super) struct Violations {
    /// The first [`MAX_VIOLATIONS`] of them.
    pub(super) list: Vec<Violation>,
    /// How many more there are.
    pub(super) more: usize,
}

impl Violations {
    pub(super) fn add(
        &mut self,
        field: fmt::Arguments<'_>,
        message: String,
        expected: impl Into<String>,
    ) {
        if self.list.len() == MAX_VIOLATIONS {
            self.more += 1;
            return;
        }
        self.list.push(Violation { field: field.to_string(), message, expected: expected.into() });
    }
}

/// [`TaskSpec::from_proto`], for a task some of whose names may be missing.
pub(super) fn validate(task: &proto::Task, names: Names) -> Result<TaskSpec, Violations> {
    let mut checker = Checker { violations: Violations::default() };
    if checker.too_large(task) {
        return Err(checker.violations);
    }
    let spec = checker.task(task, names);
    match spec {
        Some(spec) if checker.violations.list.is_empty() => Ok(spec),
        _ => Err(checker.violations),
    }
}

/// Reads a message; what it cannot use becomes a violation.
struct Checker {
    violations: Violations,
}

impl Checker {
    /// Refuses a task whose size alone is wrong, before anything is built from it.
    fn too_large(&mut self, task: &proto::Task) -> bool {
        let processes = task.processes.len();
        if processes > MAX_PROCESSES {
            self.violations.add(
                format_args!("processes"),
                format!("{processes} processes"),
                format!("at most {MAX_PROCESSES}"),
            );
        }
        let names: usize = task.constraints.iter().map(|constraint| constraint.order.len()).sum();
        if names > MAX_ORDER_NAMES {
            self.violations.add(
                format_args!("constraints"),
                format!("{names} names to order"),
                format!("at most {MAX_ORDER_NAMES}"),
            );
        }
        !self.violations.list.is_empty()
    }

    fn task(&mut self, task: &proto::Task, names: Names) -> Option<TaskSpec> {
        if let Err(error) = check(&task.name) {
            self.bad_name(format_args!("name"), &task.name, &error);
        }
        let processes: Vec<_> = (task.processes.iter().enumerate())
            .map(|(index, process)| self.process(index, process))
            .collect();
        let by_name = self.distinct_names(&task.processes);
        let graph = self.graph(task, &by_name, names);
        Some(TaskSpec {
            name: task.name.clone(),
            resources: self.resources(format_args!("resources"), task.resources.as_ref()),
            max_failures: task.max_failures.unwrap_or(spec::MAX_FAILURES),
            max_concurrency: task.max_concurrency.unwrap_or(spec::MAX_CONCURRENCY),
            finalization_wait: self.duration(
                format_args!("finalization_wait"),
                task.finalization_wait.as_ref(),
                spec::FINALIZATION_WAIT,
            ),
            user: self.user(task.user.as_deref()),
            processes: processes.into_iter().collect::<Option<_>>()?,
            graph: graph?,
        })
    }

    fn bad_name(&mut self, field: fmt::Arguments<'_>, name: &str, error: &NameError) {
        let message = match error {
            NameError::Empty => error.to_string(),
            _ => format!("{} {error}", quoted(name)),
        };
        self.violations.add(field, message, NAME);
    }

    fn user(&mut self, user: Option<&str>) -> Option<String> {
        let user = user?;
        if user.is_empty() || user.contains(char::is_control) {
            let message = format!("{} is no login name", quoted(user));
            self.violations.add(format_args!("user"), message, "a login name");
        }
        Some(user.to_owned())
    }

    fn process(&mut self, index: usize, process: &proto::Process) -> Option<ProcessSpec> {
        let name = ProcessName::new(process.name.as_str())
            .map_err(|error| {
                self.bad_name(format_args!("processes[{index}].name"), &process.name, &error);
            })
            .ok();
        self.cmdline(index, &process.cmdline);
        let min_duration = self.duration(
            format_args!("processes[{index}].min_duration"),
            process.min_duration.as_ref(),
            spec::MIN_DURATION,
        );
        let logger = process.logger.as_ref().map(|logger| self.logger(index, logger));
        let resources = self
            .resources(format_args!("processes[{index}].resources"), process.resources.as_ref());
        Some(ProcessSpec {
            name: name?,
            cmdline: process.cmdline.clone(),
            max_failures: process.max_failures.unwrap_or(spec::MAX_FAILURES),
            daemon: process.daemon(),
            ephemeral: process.ephemeral(),
            min_duration,
            is_final: process.r#final(),
            logger,
            resources: resources.map(Box::new),
        })
    }

    fn cmdline(&mut self, index: usize, cmdline: &str) {
        let field = format_args!("processes[{index}].cmdline");
        if cmdline.contains('\0') {
            let message = "contains a NUL character".to_owned();
            self.violations.add(field, message, "text that can be an argument of a program");
        }
        if cmdline.len() > MAX_CMDLINE_BYTES {
            let message = format!("has {} bytes", cmdline.len());
            let expected = format!("at most {MAX_CMDLINE_BYTES}, all that execve(2) takes");
            self.violations.add(field, message, expected);
        }
    }

    fn duration(
        &mut self,
        field: fmt::Arguments<'_>,
        duration: Option<&pbjson_types::Duration>,
        default: Duration,
    ) -> Duration {
        let Some(&pbjson_types::Duration { seconds, nanos }) = duration else { return default };
        let nanos = u32::try_from(nanos).ok().filter(|&nanos| nanos < 1_000_000_000);
        let checked = u64::try_from(seconds).ok().zip(nanos);
        match checked.map(|(seconds, nanos)| Duration::new(seconds, nanos)) {
            Some(duration) if duration <= MAX_DURATION => duration,
            Some(_) => {
                let message = format!("{seconds} s");
                let expected = format!("at most {} s", MAX_DURATION.as_secs());
                self.violations.add(field, message, expected);
                default
            }
            None => {
                let nanos = duration.map_or(0, |duration| duration.nanos);
                let message = format!("{seconds} s and {nanos} ns");
                let expected = "no negative part, and less than 1000000000 ns";
                self.violations.add(field, message, expected);
                default
            }
        }
    }

    fn resources(
        &mut self,
        field: fmt::Arguments<'_>,
        resources: Option<&proto::Resources>,
    ) -> Option<Resources> {
        resources.map(|resources| resources::check(resources, field, &mut self.violations))
    }

    fn logger(&mut self, index: usize, logger: &proto::Logger) -> Logger {
        use proto::LoggerDestination::{Both, Console, File, None as Nowhere, Unspecified};
        let destination = proto::LoggerDestination::try_from(logger.destination);
        if destination.is_err() {
            let message = format!("unknown value {}", logger.destination);
            let field = format_args!("processes[{index}].logger.destination");
            self.violations.add(field, message, "file, console, both or none");
        }
        let (to_file, console) = match destination.unwrap_or(Unspecified) {
            Unspecified | File => (true, false),
            Console => (false, true),
            Both => (true, true),
            Nowhere => (false, false),
        };
        let mode = self.mode(index, logger, to_file);
        Logger { file: to_file.then_some(mode), console }
    }

    /// How files grow. The bounds of rotation are looked at only where there is a file to rotate.
    fn mode(&mut self, index: usize, logger: &proto::Logger, to_file: bool) -> FileMode {
        match proto::LoggerMode::try_from(logger.mode) {
            Ok(proto::LoggerMode::Rotate) if to_file => {
                let rotate = logger.rotate.as_ref();
                FileMode::Rotate(rotate.map_or_else(Rotate::default, |r| self.rotate(index, r)))
            }
            Ok(_) => FileMode::Standard,
            Err(_) => {
                let message = format!("unknown value {}", logger.mode);
                let field = format_args!("processes[{index}].logger.mode");
                self.violations.add(field, message, "standard or rotate");
                FileMode::Standard
            }
        }
    }

    fn rotate(&mut self, index: usize, rotate: &proto::Rotate) -> Rotate {
        let log_size = NonZeroU64::new(rotate.log_size_bytes);
        if log_size.is_none() {
            let field = format_args!("processes[{index}].logger.rotate.log_size_bytes");
            self.violations.add(field, "0 bytes".into(), "at least 1");
        }
        let backups = NonZeroU32::new(rotate.backups);
        if backups.is_none() {
            let field = format_args!("processes[{index}].logger.rotate.backups");
            self.violations.add(field, "0".into(), "at least 1");
        }
        Rotate {
            log_size: log_size.unwrap_or(spec::LOG_SIZE),
            backups: backups.unwrap_or(spec::BACKUPS),
        }
    }

    /// The processes by name; of two with one name, the first.
    fn distinct_names<'t>(&mut self, processes: &'t [proto::Process]) -> HashMap<&'t str, u32> {
        let mut by_name = HashMap::with_capacity(processes.len());
        for (index, process) in (0u32..).zip(processes) {
            if process.name.is_empty() {
                continue;
            }
            let first = *by_name.entry(process.name.as_str()).or_insert(index);
            if first != index {
                let message = format!("{} also names processes[{first}]", quoted(&process.name));
                let field = format_args!("processes[{index}].name");
                self.violations.add(field, message, "a name that no other process has");
            }
        }
        by_name
    }

    fn graph(
        &mut self,
        task: &proto::Task,
        by_name: &HashMap<&str, u32>,
        names: Names,
    ) -> Option<Graph> {
        let mut edges = Vec::new();
        for (index, constraint) in task.constraints.iter().enumerate() {
            if constraint.order.is_empty() {
                let field = format_args!("constraints[{index}].order");
                self.violations.add(field, "names no process".into(), "at least one name");
            }
            let chain = self.chain(index, &constraint.order, by_name, names);
            self.one_plan(index, &chain, &task.processes);
            edges.extend(self::edges(index, &chain, &task.processes));
        }
        edges.sort_unstable();
        edges.dedup_by_key(|edge| (edge.before, edge.after));
        for edge in &edges {
            self.may_follow(edge, &task.processes);
        }
        Graph::new(task.processes.len(), edges.iter().map(|edge| (edge.before, edge.after)))
            .map_err(|cycles| {
                for cycle in &cycles {
                    self.cycle(cycle, &edges, &task.processes);
                }
            })
            .ok()
    }

    /// The processes that an `order` names; `None` for an unknown one.
    fn chain(
        &mut self,
        index: usize,
        order: &[String],
        by_name: &HashMap<&str, u32>,
        names: Names,
    ) -> Vec<Option<u32>> {
        let mut chain = Vec::with_capacity(order.len());
        for (place, name) in order.iter().enumerate() {
            let known = by_name.get(name.as_str()).copied();
            if known.is_none() && names == Names::Complete {
                let field = format_args!("constraints[{index}].order[{place}]");
                let message = format!("no process is named {}", quoted(name));
                self.violations.add(field, message, "the name of a process of this task");
            }
            chain.push(known);
        }
        chain
    }

    /// T9: a chain orders one plan, the regular or the finalizing one.
    fn one_plan(&mut self, index: usize, chain: &[Option<u32>], processes: &[proto::Process]) {
        let is_final = |process: u32| processes[process as usize].r#final();
        let mut known = (0..).zip(chain).filter_map(|(place, p)| p.map(|p: u32| (place, p)));
        let Some((_, first)) = known.next() else { return };
        let Some((place, other)) = known.find(|&(_, p)| is_final(p) != is_final(first)) else {
            return;
        };
        let place: usize = place;
        let [regular, finalizer] = if is_final(other) { [first, other] } else { [other, first] }
            .map(|process| quoted(&processes[process as usize].name));
        self.violations.add(
            format_args!("constraints[{index}].order[{place}]"),
            format!("mixes {regular}, which is regular, with {finalizer}, which is final"),
            "only regular or only final processes in one order",
        );
    }

    /// T11, T12: what may come after a process that is not waited for to the end.
    fn may_follow(&mut self, edge: &Edge, processes: &[proto::Process]) {
        if edge.before == edge.after {
            return;
        }
        let before = &processes[edge.before as usize];
        let after = &processes[edge.after as usize];
        let [first, second] = [quoted(&before.name), quoted(&after.name)];
        let field = format_args!("constraints[{}].order[{}]", edge.constraint, edge.place);
        if before.daemon() {
            let message = format!("{second} comes after {first}, a daemon, which never ends");
            self.violations.add(field, message, "nothing after a daemon");
        } else if before.ephemeral() && !after.ephemeral() {
            let message = format!("{second} comes after {first}, which is ephemeral");
            let expected = "only ephemeral processes after an ephemeral one";
            self.violations.add(field, message, expected);
        }
    }

    /// T10: names the cycle at the place that closed it.
    fn cycle(&mut self, Cycle(cycle): &Cycle, edges: &[Edge], processes: &[proto::Process]) {
        let next = cycle.iter().cycle().skip(1);
        let closing = (cycle.iter().zip(next))
            .filter_map(|(&before, &after)| {
                let found = edges.binary_search_by_key(&(before, after), |e| (e.before, e.after));
                found.ok().map(|place| (edges[place].constraint, edges[place].place))
            })
            .max();
        let (constraint, place) = closing.unwrap_or_default();
        self.violations.add(
            format_args!("constraints[{constraint}].order[{place}]"),
            format!("{} wait for each other", describe(cycle, processes)),
            "an order without a cycle",
        );
    }
}

/// One process after another, and where that was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Edge {
    before: u32,
    after: u32,
    constraint: usize,
    place: usize,
}

/// The edges of a chain between known processes of one plan.
fn edges(index: usize, chain: &[Option<u32>], processes: &[proto::Process]) -> Vec<Edge> {
    let is_final = |process: u32| processes[process as usize].r#final();
    (chain.windows(2).enumerate())
        .filter_map(|(place, pair)| match *pair {
            [Some(before), Some(after)] if is_final(before) == is_final(after) => {
                Some(Edge { before, after, constraint: index, place: place + 1 })
            }
            _ => None,
        })
        .collect()
}

/// The cycle as `a` -> `b` -> `a`; the middle of a long one is left out.
fn describe(cycle: &[u32], processes: &[proto::Process]) -> String {
    const SHOWN: usize = 8;
    let name = |&process: &u32| quoted(&processes[process as usize].name);
    let mut names: Vec<String> = cycle.iter().take(SHOWN).map(name).collect();
    if cycle.len() > SHOWN {
        names.push(format!("({} more)", cycle.len() - SHOWN));
    }
    names.extend(cycle.first().map(name));
    names.join(" -> ")
}

fn process_to_proto(process: &ProcessSpec) -> proto::Process {
    proto::Process {
        name: process.name.as_str().to_owned(),
        cmdline: process.cmdline.clone(),
        max_failures: Some(process.max_failures),
        daemon: Some(process.daemon),
        ephemeral: Some(process.ephemeral),
        min_duration: Some(duration_to_proto(process.min_duration)),
        r#final: Some(process.is_final),
        logger: process.logger.map(logger_to_proto),
        resources: process.resources.as_deref().map(Resources::to_proto),
    }
}

/// One order for each edge.
fn constraints(processes: &[ProcessSpec], graph: &Graph) -> Vec<proto::Constraint> {
    let name = |process: &ProcessSpec| process.name.as_str().to_owned();
    (processes.iter().zip(&graph.successors))
        .flat_map(|(before, list)| list.iter().map(move |&after| (before, after)))
        .map(|(before, after)| proto::Constraint {
            order: vec![name(before), name(&processes[after as usize])],
        })
        .collect()
}

/// A duration of at most [`MAX_DURATION`], as every duration of a spec is.
pub(super) fn duration_to_proto(duration: Duration) -> pbjson_types::Duration {
    pbjson_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos().cast_signed(),
    }
}

fn logger_to_proto(logger: Logger) -> proto::Logger {
    use proto::{LoggerDestination, LoggerMode};
    let destination = match (logger.file.is_some(), logger.console) {
        (true, false) => LoggerDestination::File,
        (false, true) => LoggerDestination::Console,
        (true, true) => LoggerDestination::Both,
        (false, false) => LoggerDestination::None,
    };
    let rotate = match logger.file {
        Some(FileMode::Rotate(rotate)) => Some(rotate),
        Some(FileMode::Standard) | None => None,
    };
    let mode = if rotate.is_some() { LoggerMode::Rotate } else { LoggerMode::Standard };
    proto::Logger {
        destination: destination.into(),
        mode: mode.into(),
        rotate: rotate.map(|rotate| proto::Rotate {
            log_size_bytes: rotate.log_size.get(),
            backups: rotate.backups.get(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn process(name: &str) -> proto::Process {
        proto::Process { name: name.into(), cmdline: "true".into(), ..Default::default() }
    }

    fn task(processes: &[&str], orders: &[&[&str]]) -> proto::Task {
        proto::Task {
            name: "t".into(),
            processes: processes.iter().map(|name| process(name)).collect(),
            constraints: (orders.iter())
                .map(|order| proto::Constraint {
                    order: order.iter().map(|name| (*name).to_owned()).collect(),
                })
                .collect(),
            ..Default::default()
        }
    }

    fn violations(task: &proto::Task) -> Vec<String> {
        let violations = TaskSpec::from_proto(task).expect_err("a refused task");
        violations.iter().map(ToString::to_string).collect()
    }

    /// T1, T2
    #[test]
    fn what_is_left_out_gets_its_default() {
        let spec = TaskSpec::from_proto(&task(&["a"], &[])).unwrap();

        assert_eq!(
            spec,
            TaskSpec {
                name: "t".into(),
                processes: vec![ProcessSpec {
                    name: ProcessName::new("a").unwrap(),
                    cmdline: "true".into(),
                    max_failures: 1,
                    daemon: false,
                    ephemeral: false,
                    min_duration: Duration::from_secs(5),
                    is_final: false,
                    logger: None,
                    resources: None,
                }],
                graph: Graph { predecessors: vec![0], successors: vec![vec![]] },
                resources: None,
                max_failures: 1,
                max_concurrency: 0,
                finalization_wait: Duration::from_secs(30),
                user: None,
            }
        );
    }

    /// T1: `processes: []` with a name is valid.
    #[test]
    fn a_task_without_processes_is_valid() {
        assert_eq!(TaskSpec::from_proto(&task(&[], &[])).unwrap().processes, []);
    }

    /// T2: a command line may be empty; T2 has no upper bound, the kernel has.
    #[test]
    fn a_command_line_is_what_can_be_an_argument() {
        let mut task = task(&["empty", "longest", "longer", "nul"], &[]);
        for (process, cmdline) in task.processes.iter_mut().zip([
            String::new(),
            "x".repeat(131_071),
            "x".repeat(131_072),
            "a\0b".into(),
        ]) {
            process.cmdline = cmdline;
        }

        assert_eq!(
            violations(&task),
            [
                "processes[2].cmdline: has 131072 bytes; \
                 expected at most 131071, all that execve(2) takes",
                "processes[3].cmdline: contains a NUL character; \
                 expected text that can be an argument of a program",
            ]
        );
    }

    /// T7
    #[test]
    fn names_that_cannot_be_file_names_are_refused_and_all_others_pass() {
        let longest = "n".repeat(243);
        let longer = "n".repeat(244);
        let good = [longest.as_str(), "a b", "50%", "é", "..a".trim_start_matches('.'), "-"];
        assert!(TaskSpec::from_proto(&task(&good, &[])).is_ok());

        let found = violations(&task(&["", ".a", "a/b", "a\nb", &longer], &[]));

        let expected = format!("; expected {NAME}");
        let clipped = format!("`{}…`", "n".repeat(60));
        assert_eq!(
            found,
            [
                format!("processes[0].name: is empty{expected}"),
                format!("processes[1].name: `.a` begins with `.`{expected}"),
                format!("processes[2].name: `a/b` contains `/`{expected}"),
                format!(
                    r"processes[3].name: `a\nb` contains the control character U+000A{expected}"
                ),
                format!(
                    "processes[4].name: {clipped} has 244 bytes; at most 243 fit a file \
                     name{expected}"
                ),
            ]
        );
    }

    /// T7: duplicates are refused.
    #[test]
    fn two_processes_with_one_name_are_refused() {
        assert_eq!(
            violations(&task(&["a", "b", "a"], &[])),
            ["processes[2].name: `a` also names processes[0]; \
                 expected a name that no other process has"]
        );
    }

    /// T3: ranges that the types leave open.
    #[test]
    fn durations_are_neither_negative_nor_malformed_nor_endless() {
        let mut task = task(&["a", "b", "c", "d"], &[]);
        let durations = [(-1, 0), (0, -1), (0, 1_000_000_000), (1_000_000_000, 1)];
        for (process, (seconds, nanos)) in task.processes.iter_mut().zip(durations) {
            process.min_duration = Some(pbjson_types::Duration { seconds, nanos });
        }
        task.finalization_wait =
            Some(pbjson_types::Duration { seconds: i64::MIN, nanos: i32::MIN });

        let parts = "expected no negative part, and less than 1000000000 ns";
        assert_eq!(
            violations(&task),
            [
                format!("processes[0].min_duration: -1 s and 0 ns; {parts}"),
                format!("processes[1].min_duration: 0 s and -1 ns; {parts}"),
                format!("processes[2].min_duration: 0 s and 1000000000 ns; {parts}"),
                "processes[3].min_duration: 1000000000 s; expected at most 1000000000 s".into(),
                format!("finalization_wait: {} s and {} ns; {parts}", i64::MIN, i32::MIN),
            ]
        );
    }

    /// T5
    #[test]
    fn resources_are_positive_and_no_gpu_is_no_limit() {
        let mut task = task(&["a"], &[]);
        task.resources = Some(proto::Resources { gpu: Some(0), ..Default::default() });
        let spec = TaskSpec::from_proto(&task).unwrap();
        assert_eq!(spec.resources, Some(Resources::default()));

        task.resources = Some(proto::Resources {
            cpu: Some(f64::NAN),
            ram_bytes: Some(0),
            disk_bytes: Some(0),
            gpu: Some(1),
            ..Default::default()
        });
        task.processes[0].resources =
            Some(proto::Resources { cpu: Some(-1.0), ..Default::default() });

        let absent = "or no such field for no limit";
        assert_eq!(
            violations(&task),
            [
                format!("processes[0].resources.cpu: -1 CPUs; expected at least 0.01, {absent}"),
                format!("resources.cpu: NaN CPUs; expected at least 0.01, {absent}"),
                format!("resources.ram_bytes: 0 bytes; expected at least 1, {absent}"),
                format!("resources.disk_bytes: 0 bytes; expected at least 1, {absent}"),
            ]
        );
    }

    fn logger(logger: proto::Logger) -> Result<Logger, Vec<String>> {
        let mut task = task(&["a"], &[]);
        task.processes[0].logger = Some(logger);
        TaskSpec::from_proto(&task)
            .map(|spec| spec.processes[0].logger.unwrap())
            .map_err(|violations| violations.iter().map(ToString::to_string).collect())
    }

    /// T4
    #[test]
    fn rotation_has_bounds_of_at_least_one_where_there_is_something_to_rotate() {
        use proto::{LoggerDestination, LoggerMode};
        let zero = Some(proto::Rotate { log_size_bytes: 0, backups: 0 });
        let rotated = |destination: LoggerDestination, rotate| proto::Logger {
            destination: destination.into(),
            mode: LoggerMode::Rotate.into(),
            rotate,
        };

        assert_eq!(
            logger(rotated(LoggerDestination::Both, zero)).unwrap_err(),
            [
                "processes[0].logger.rotate.log_size_bytes: 0 bytes; expected at least 1",
                "processes[0].logger.rotate.backups: 0; expected at least 1",
            ]
        );
        assert_eq!(
            logger(rotated(LoggerDestination::Console, zero)),
            Ok(Logger { file: None, console: true })
        );
        assert_eq!(
            logger(proto::Logger { rotate: zero, ..Default::default() }),
            Ok(Logger { file: Some(FileMode::Standard), console: false })
        );
        assert_eq!(
            logger(rotated(LoggerDestination::Unspecified, None)),
            Ok(Logger { file: Some(FileMode::Rotate(Rotate::default())), console: false })
        );
    }

    /// T4
    #[test]
    fn a_destination_and_a_mode_must_be_known() {
        let unknown = proto::Logger { destination: 9, mode: -1, rotate: None };

        assert_eq!(
            logger(unknown).unwrap_err(),
            [
                "processes[0].logger.destination: unknown value 9; \
                 expected file, console, both or none",
                "processes[0].logger.mode: unknown value -1; expected standard or rotate",
            ]
        );
    }

    /// T9
    #[test]
    fn chains_may_overlap_and_repeat() {
        let orders: &[&[&str]] = &[&["a", "b", "c"], &["a", "b"], &["a", "c"], &["d"]];

        let spec = TaskSpec::from_proto(&task(&["a", "b", "c", "d"], orders)).unwrap();

        assert_eq!(spec.graph.successors, [vec![1, 2], vec![2], vec![], vec![]]);
        assert_eq!(spec.graph.predecessors, [0, 1, 2, 0]);
    }

    /// T9: unknown names are refused, also in a chain of only unknown ones, and empty chains.
    #[test]
    fn a_chain_names_processes_of_the_task() {
        let orders: &[&[&str]] = &[&["a", "x"], &["y"], &[]];

        assert_eq!(
            violations(&task(&["a"], orders)),
            [
                "constraints[0].order[1]: no process is named `x`; \
                 expected the name of a process of this task",
                "constraints[1].order[0]: no process is named `y`; \
                 expected the name of a process of this task",
                "constraints[2].order: names no process; expected at least one name",
            ]
        );
    }

    /// T9
    #[test]
    fn a_chain_does_not_mix_regular_and_final() {
        let mut task = task(&["a", "b", "f"], &[&["f"], &["a", "b", "f"], &["f", "x", "a"]]);
        task.processes[2].r#final = Some(true);
        task.constraints[2].order.remove(1);

        let mixed = "mixes `a`, which is regular, with `f`, which is final; \
                     expected only regular or only final processes in one order";
        assert_eq!(
            violations(&task),
            [
                format!("constraints[1].order[2]: {mixed}"),
                format!("constraints[2].order[1]: {mixed}"),
            ]
        );
    }

    /// T10: the cycle is named, at the place that closes it.
    #[test]
    fn a_cycle_is_named() {
        let orders: &[&[&str]] = &[&["c", "d"], &["a", "b"], &["b", "c", "a"], &["d", "d"]];

        assert_eq!(
            violations(&task(&["a", "b", "c", "d"], orders)),
            [
                "constraints[2].order[2]: `a` -> `b` -> `c` -> `a` wait for each other; \
                 expected an order without a cycle",
                "constraints[3].order[1]: `d` -> `d` wait for each other; \
                 expected an order without a cycle",
            ]
        );
    }

    /// T11: not even a daemon after a daemon; a daemon after others is fine.
    #[test]
    fn nothing_comes_after_a_daemon() {
        let mut task = task(&["a", "d", "e"], &[&["a", "d"], &["d", "e"], &["d", "a"]]);
        task.processes[1].daemon = Some(true);
        task.processes[2].daemon = Some(true);
        task.constraints.pop();

        assert_eq!(
            violations(&task),
            ["constraints[1].order[1]: `e` comes after `d`, a daemon, which never ends; \
                 expected nothing after a daemon"]
        );
        task.constraints.pop();
        assert!(TaskSpec::from_proto(&task).is_ok());
    }

    /// T9, T11: what is said twice is wrong once, where it is said first.
    #[test]
    fn a_repeated_edge_is_one_violation() {
        let mut task = task(&["d", "a"], &[&["a"], &["d", "a"], &["d", "a"]]);
        task.processes[0].daemon = Some(true);

        assert_eq!(
            violations(&task),
            ["constraints[1].order[1]: `a` comes after `d`, a daemon, which never ends; \
                 expected nothing after a daemon"]
        );
    }

    /// T12
    #[test]
    fn only_an_ephemeral_comes_after_an_ephemeral() {
        let mut task = task(&["a", "e", "f"], &[&["a", "e", "f"], &["e", "a"]]);
        task.processes[1].ephemeral = Some(true);
        task.processes[2].ephemeral = Some(true);
        task.constraints[1].order = vec!["f".into(), "b".into()];
        task.processes.push(process("b"));

        assert_eq!(
            violations(&task),
            ["constraints[1].order[1]: `b` comes after `f`, which is ephemeral; \
                 expected only ephemeral processes after an ephemeral one"]
        );
    }

    /// O42 and the rest: everything that is wrong is said at once.
    #[test]
    fn all_violations_come_in_one_go() {
        let mut task = task(&["a/b", "ok", "ok"], &[&["ok", "ok"], &["x"]]);
        task.name = ".".into();
        task.user = Some(String::new());

        let found = violations(&task);

        let fields: Vec<_> =
            found.iter().map(|text| text.split_once(": ").unwrap().0.to_owned()).collect();
        assert_eq!(
            fields,
            [
                "name",
                "processes[0].name",
                "processes[2].name",
                "constraints[1].order[0]",
                "constraints[0].order[1]",
                "user",
            ]
        );
    }

    /// attack 52: sizes beyond the limits are refused by name, before anything is built.
    #[test]
    fn more_than_the_stated_limits_is_refused() {
        let mut task = task(&[], &[]);
        task.processes = vec![process("a"); MAX_PROCESSES + 1];
        task.constraints = vec![proto::Constraint { order: vec!["a".into(); MAX_ORDER_NAMES + 1] }];

        assert_eq!(
            violations(&task),
            [
                "processes: 10001 processes; expected at most 10000",
                "constraints: 150001 names to order; expected at most 150000",
            ]
        );
    }

    /// attack 52: the list of violations is bounded, and their number is known.
    #[test]
    fn the_list_of_violations_is_bounded() {
        let order = vec!["x".to_owned(); 5000];
        let task = proto::Task { constraints: vec![proto::Constraint { order }], ..task(&[], &[]) };

        let Violations { list, more } = validate(&task, Names::Complete).unwrap_err();

        assert_eq!((list.len(), more), (1000, 4000));
    }

    fn arbitrary_logger() -> impl Strategy<Value = Logger> {
        let rotate = (1u64..u64::MAX, 1u32..u32::MAX).prop_map(|(log_size, backups)| {
            FileMode::Rotate(Rotate {
                log_size: NonZeroU64::new(log_size).unwrap(),
                backups: NonZeroU32::new(backups).unwrap(),
            })
        });
        let mode = prop_oneof![Just(FileMode::Standard), rotate];
        (prop::option::of(mode), any::<bool>()).prop_map(|(file, console)| Logger { file, console })
    }

    fn arbitrary_duration() -> impl Strategy<Value = Duration> {
        (0u64..1_000_000_000, 0u32..1_000_000_000).prop_map(|(s, n)| Duration::new(s, n))
    }

    prop_compose! {
        /// A process; nothing may come after it if it is a daemon or ephemeral, so `order` does not.
        fn arbitrary_process()(
            name in "[a-z %é-][a-z./%é-]{0,8}",
            cmdline in ".{0,20}",
            max_failures in any::<u32>(),
            flags in any::<[bool; 3]>(),
            min_duration in arbitrary_duration(),
            logger in prop::option::of(arbitrary_logger()),
            resources in prop::option::of(resources::tests::arbitrary()),
        ) -> ProcessSpec {
            ProcessSpec {
                max_failures,
                daemon: flags[0],
                ephemeral: flags[1],
                is_final: flags[2],
                min_duration,
                logger,
                resources: resources.map(Box::new),
                ..ProcessSpec::new(
                    ProcessName::new(name.replace('/', "_")).unwrap(),
                    cmdline.replace('\0', ""),
                )
            }
        }
    }

    prop_compose! {
        fn arbitrary_task()(
            mut processes in prop::collection::vec(arbitrary_process(), 0..8),
            wishes in prop::collection::vec((0usize..8, 0usize..8), 0..20),
            resources in prop::option::of(resources::tests::arbitrary()),
            (max_failures, max_concurrency) in any::<(u32, u32)>(),
            finalization_wait in arbitrary_duration(),
            user in prop::option::of("[a-z]{1,8}"),
        ) -> TaskSpec {
            for (index, process) in processes.iter_mut().enumerate() {
                process.name = ProcessName::new(format!("{}{index}", process.name)).unwrap();
            }
            let edges: Vec<_> = wishes.into_iter()
                .filter(|&(a, b)| a < b && b < processes.len())
                .filter(|&(a, b)| {
                    let (before, after) = (&processes[a], &processes[b]);
                    !before.daemon
                        && (!before.ephemeral || after.ephemeral)
                        && before.is_final == after.is_final
                })
                .map(|(a, b)| (a as u32, b as u32))
                .collect();
            TaskSpec {
                name: "t".into(),
                graph: Graph::new(processes.len(), edges).unwrap(),
                processes,
                resources,
                max_failures,
                max_concurrency,
                finalization_wait,
                user,
            }
        }
    }

    proptest! {
        #[test]
        fn a_spec_survives_its_message(spec in arbitrary_task()) {
            prop_assert_eq!(TaskSpec::from_proto(&spec.to_proto()), Ok(spec));
        }

        /// A message from a stranger: any names and numbers give a spec or violations.
        #[test]
        fn any_message_gives_an_answer(
            names in prop::collection::vec(".{0,3}", 0..6),
            orders in prop::collection::vec(prop::collection::vec(".{0,3}", 0..4), 0..6),
            (seconds, nanos) in any::<(i64, i32)>(),
            (destination, mode) in any::<(i32, i32)>(),
            cpu in any::<f64>(),
        ) {
            let mut task = task(&names.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
            task.constraints =
                orders.into_iter().map(|order| proto::Constraint { order }).collect();
            task.finalization_wait = Some(pbjson_types::Duration { seconds, nanos });
            for process in &mut task.processes {
                process.logger = Some(proto::Logger { destination, mode, rotate: None });
                process.resources =
                    Some(proto::Resources { cpu: Some(cpu), ..Default::default() });
            }

            if let Err(violations) = TaskSpec::from_proto(&task) {
                prop_assert!(!violations.is_empty());
            }
        }
    }
}
