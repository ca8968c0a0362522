//! Reads a task file: YAML with the field names of Thermos (T1 to T16).
//!
//! The file becomes a [`proto::Task`] whose fields have the right types and whose templates are
//! filled in; the rules of [`super::validate`] then make a [`TaskSpec`] of it. All that is wrong,
//! in either step, comes in one [`Report`]. What follows from an error that is reported already
//! is not reported again.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::Duration;

pub use super::diagnostic::{Diagnostic, Place, Report};
use super::diagnostic::{Problem, Problems};
use super::node::{NodeId, Tree, Value};
use super::number::{self, Wrong};
use super::resources::{self, NO_LIMIT, shown};
use super::schema::{self, Schema};
pub use super::source::{MAX_FILE_BYTES, SourceError, read};
use super::spec::{self, TaskSpec};
use super::template::{self, Budget, Reference, Step, TemplateError};
use super::validate::{self, MAX_ORDER_NAMES, MAX_PROCESSES, Names, Violations};
use super::{TaskId, check, quoted};
use crate::proto;

/// What the templates of a file may refer to beside the file itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bindings {
    /// Id of the task; `None`: `<name of the task>-<id_suffix>` (T15).
    pub task_id: Option<TaskId>,
    /// Time of the launch as `<YYYYMMDD-HHMMSS>.<micros>`, read only where `task_id` is `None`.
    pub id_suffix: String,
    /// `thermos.user` where the task names no user of its own: who launches it.
    pub user: String,
    /// `thermos.ports[name]`; ports that no template asks for are fine (T14).
    pub ports: BTreeMap<String, u16>,
    /// Values by reference: `a.b` is what `{{a.b}}` stands for where nothing else has that name.
    pub variables: BTreeMap<String, String>,
}

/// A task file that was accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted {
    /// Id of the task.
    pub task_id: TaskId,
    /// The task, templates filled in and every default spelled out.
    pub task: proto::Task,
    /// The same, checked.
    pub spec: TaskSpec,
}

/// Reads the task file `source`; `file_name` is what its errors call it.
///
/// Costs at most a fraction of a second and some ten MiB, whatever `source` holds.
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn parse(source: &[u8], file_name: &str, bindings: &Bindings) -> Result<Accepted, Report> {
    let mut problems = Problems::default();
    let text = match text(source) {
        Ok(text) => text,
        Err((text, problem)) => {
            problems.add(problem);
            return Err(Report::new(file_name, text, problems));
        }
    };
    accept(text, bindings, &mut problems).ok_or_else(|| Report::new(file_name, text, problems))
}

/// The text of a file, or what of it is text and what is wrong with the rest.
fn text(source: &[u8]) -> Result<&str, (&str, Problem)> {
    if source.len() > MAX_FILE_BYTES {
        let message = format!("the file has {} bytes", source.len());
        return Err(("", whole(0, message, format!("at most {MAX_FILE_BYTES}"))));
    }
    std::str::from_utf8(source).map_err(|error| {
        let at = error.valid_up_to();
        let text = std::str::from_utf8(&source[..at]).unwrap_or_default();
        let message = format!("byte {at} of the file, 0x{:02x}, is not UTF-8", source[at]);
        (text, whole(at, message, "text in UTF-8"))
    })
}

/// A problem of the file rather than of a field.
fn whole(at: usize, message: String, expected: impl Into<String>) -> Problem {
    let expected = expected.into();
    Problem { start: at, end: at, field: String::new(), message, expected, first: None }
}

/// `None` if there is a problem.
fn accept(text: &str, bindings: &Bindings, problems: &mut Problems) -> Option<Accepted> {
    let tree = Tree::read(text, problems)?;
    let mut reader = Reader::new(&tree, bindings, problems);
    let draft = reader.task(tree.root())?;
    let spec = reader.validate(&draft)?;
    let task = proto::Task { constraints: draft.task.constraints, ..spec.to_proto() };
    Some(Accepted { task_id: draft.task_id?, task, spec })
}

/// Reads a `resources` field, which is all that `source` has; `name` is what its errors call it. There is nothing that templates
/// could refer to.
///
/// # Errors
///
/// Everything that is wrong with it, as of a task file.
pub fn parse_resources(source: &str, name: &str) -> Result<proto::Resources, Report> {
    let mut problems = Problems::default();
    let bindings = Bindings::default();
    let read = Tree::read(source, &mut problems).and_then(|tree| {
        let mut reader = Reader::new(&tree, &bindings, &mut problems);
        let scope = reader.open(tree.root(), &schema::LIMITS, String::new(), None)?;
        let resources = reader.resources(&scope)?;
        let mut violations = Violations::default();
        resources::check(&resources, format_args!("resources"), &mut violations);
        reader.report_violations(violations);
        Some(resources)
    });
    match read {
        Some(resources) if problems.list.is_empty() => Ok(resources),
        _ => Err(Report::new(name, source, problems)),
    }
}

/// A task as it was read.
struct Draft {
    task: proto::Task,
    task_id: Option<TaskId>,
    names: Names,
}

/// A mapping that is being read, and those around it: what its templates may name.
struct Scope<'o> {
    outer: Option<&'o Self>,
    schema: &'static Schema,
    node: NodeId,
    /// By field of the schema; null is absent.
    values: Vec<Option<NodeId>>,
    /// Where it is; empty for the task.
    path: String,
}

impl Scope<'_> {
    fn get(&self, field: &str) -> Option<NodeId> {
        self.values[self.schema.position(field)?]
    }

    fn path(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }
}

/// A scalar with its templates filled in.
struct Filled {
    text: String,
    plain: bool,
}

/// Reads values out of a tree; whatever it cannot read is a problem and counts as absent.
struct Reader<'t, 's, 'p> {
    tree: &'t Tree<'s>,
    bindings: &'t Bindings,
    user: String,
    /// `None` until the name is known that it is made from.
    task_id: Option<String>,
    budget: Budget,
    /// Whether it is said that the budget is used up: once is enough.
    is_spent: bool,
    problems: &'p mut Problems,
}

const WHOLE: &str = "a whole number from 0 to 4294967295";
const FLAG: &str = "true or false";
const DURATION: &str = "a number of seconds, or a number with ms, s, m or h";
const SIZE: &str = "a number of bytes, or a number with KB, MB, GB, TB, KiB, MiB, GiB or TiB";
const CPUS: &str = "a number of CPUs such as 1.5";
const CEILING: &str = "a number of CPUs such as 1.5, or max";
const COUNT: &str = "a whole number, or max";
const AMOUNT: &str =
    "a number of bytes, or a number with KB, MB, GB, TB, KiB, MiB, GiB or TiB, or max";

/// No limit, said aloud.
const MAX: &str = "max";

impl<'t, 's, 'p> Reader<'t, 's, 'p> {
    fn new(tree: &'t Tree<'s>, bindings: &'t Bindings, problems: &'p mut Problems) -> Self {
        Self {
            tree,
            bindings,
            user: bindings.user.clone(),
            task_id: bindings.task_id.as_ref().map(|id| id.as_str().to_owned()),
            budget: Budget::default(),
            is_spent: false,
            problems,
        }
    }

    fn task(&mut self, root: NodeId) -> Option<Draft> {
        let scope = self.open(root, &schema::TASK, String::new(), None)?;
        let user = self.string(&scope, "user");
        if let Some(user) = &user {
            self.user.clone_from(user);
        }
        let scopes = self.process_scopes(&scope);
        let own_name = self.string(&scope, "name");
        let first_name = match scope.get("name") {
            Some(_) => None,
            None => scopes.first().and_then(Option::as_ref).map(|first| self.name(first)),
        };
        let name = self.task_name(&scope, own_name, first_name.as_ref(), &scopes);
        let task_id = self.make_task_id(&scope, name.as_deref());
        let processes: Vec<_> = (scopes.iter().enumerate())
            .map(|(index, process)| {
                let process = process.as_ref()?;
                let known = if index == 0 { first_name.clone() } else { None };
                let name = known.unwrap_or_else(|| self.name(process));
                Some(self.process(process, name))
            })
            .collect();
        let constraints = self.constraints(&scope);
        let is_named = |process: &Option<proto::Process>| {
            process.as_ref().is_some_and(|process| !process.name.is_empty())
        };
        let complete = scope.get("processes").is_some() && processes.iter().all(is_named);
        let task = proto::Task {
            name: name.unwrap_or_default(),
            processes: processes.into_iter().map(Option::unwrap_or_default).collect(),
            constraints: constraints.unwrap_or_default(),
            resources: self.resources(&scope),
            max_failures: self.whole(&scope, "max_failures"),
            max_concurrency: self.whole(&scope, "max_concurrency"),
            finalization_wait: self.duration(&scope, "finalization_wait"),
            user,
        };
        let names = if complete { Names::Complete } else { Names::Incomplete };
        Some(Draft { task, task_id, names })
    }

    /// Opens every process before any is read: the name of the first may be the task's.
    fn process_scopes<'o>(&mut self, scope: &'o Scope<'_>) -> Vec<Option<Scope<'o>>> {
        let Some(node) = self.required(scope, "processes") else { return Vec::new() };
        let list = self.list(scope, "processes", node);
        if list.len() > MAX_PROCESSES {
            let message = format!("{} processes", list.len());
            let path = scope.path("processes");
            self.report(node, path, message, format!("at most {MAX_PROCESSES}"));
            return Vec::new();
        }
        (list.iter().enumerate())
            .map(|(index, &node)| {
                let path = format!("processes[{index}]");
                self.open(node, &schema::PROCESS, path, Some(scope))
            })
            .collect()
    }

    /// T1: the name of a task is by default that of its first process.
    fn task_name(
        &mut self,
        scope: &Scope<'_>,
        own: Option<String>,
        first: Option<&Option<String>>,
        processes: &[Option<Scope<'_>>],
    ) -> Option<String> {
        if scope.get("name").is_some() {
            return own;
        }
        let is_empty_list = scope.get("processes").is_some_and(
            |node| matches!(&self.tree.node(node).value, Value::List(l) if l.is_empty()),
        );
        if processes.is_empty() && is_empty_list {
            let message = "no name, and no process to take it from".to_owned();
            self.report(scope.node, scope.path("name"), message, "a name");
        }
        first.cloned().flatten()
    }

    /// T15: by default the id of a task is its name and the time.
    fn make_task_id(&mut self, scope: &Scope<'_>, name: Option<&str>) -> Option<TaskId> {
        if let Some(id) = &self.bindings.task_id {
            return Some(id.clone());
        }
        let suffix = &self.bindings.id_suffix;
        let id = name.filter(|name| check(name).is_ok()).map(|name| format!("{name}-{suffix}"));
        // Where there is none, the name is wrong and said to be; go on with a stand-in.
        self.task_id = Some(id.clone().unwrap_or_else(|| suffix.clone()));
        let id = id?;
        match TaskId::new(id.as_str()) {
            Ok(id) => Some(id),
            Err(error) => {
                let path = scope.path("name");
                let message = format!("makes the task id {}, which {error}", quoted(&id));
                let node = self.find("name").or_else(|| self.find("processes[0].name"));
                let expected = "a shorter name without blanks, or a task id given by `--task-id`";
                self.report(node.unwrap_or(scope.node), path, message, expected);
                None
            }
        }
    }

    fn name(&mut self, process: &Scope<'_>) -> Option<String> {
        self.required(process, "name").and_then(|_| self.string(process, "name"))
    }

    fn process(&mut self, scope: &Scope<'_>, name: Option<String>) -> proto::Process {
        self.required(scope, "cmdline");
        proto::Process {
            name: name.unwrap_or_default(),
            cmdline: self.string(scope, "cmdline").unwrap_or_default(),
            max_failures: self.whole(scope, "max_failures"),
            daemon: self.flag(scope, "daemon"),
            ephemeral: self.flag(scope, "ephemeral"),
            min_duration: self.duration(scope, "min_duration"),
            r#final: self.flag(scope, "final"),
            logger: self.logger(scope),
            resources: self.resources(scope),
        }
    }

    fn constraints(&mut self, scope: &Scope<'_>) -> Option<Vec<proto::Constraint>> {
        let node = scope.get("constraints")?;
        let list = self.list(scope, "constraints", node);
        let mut left = MAX_ORDER_NAMES;
        let mut constraints = Vec::new();
        for (index, &element) in list.iter().enumerate() {
            let path = format!("constraints[{index}]");
            let mut order = Vec::new();
            if let Some(constraint) = self.open(element, &schema::CONSTRAINT, path, Some(scope)) {
                let Some(rest) = self.order(&constraint, left, &mut order) else {
                    let expected = format!("at most {MAX_ORDER_NAMES} names to order");
                    let path = scope.path("constraints");
                    self.report(element, path, "more names".to_owned(), expected);
                    return None;
                };
                left = rest;
            }
            constraints.push(proto::Constraint { order });
        }
        Some(constraints)
    }

    /// Reads the names of a constraint; how many others may follow, `None` if it has too many.
    fn order(&mut self, scope: &Scope<'_>, left: usize, order: &mut Vec<String>) -> Option<usize> {
        let Some(node) = self.required(scope, "order") else { return Some(left) };
        let names = self.list(scope, "order", node);
        let left = left.checked_sub(names.len())?;
        for (index, &name) in names.iter().enumerate() {
            let path = || format!("{}.order[{index}]", scope.path);
            let name = self.fill(scope, name, path, "the name of a process");
            order.push(name.map(|name| name.text).unwrap_or_default());
        }
        Some(left)
    }

    fn resources(&mut self, outer: &Scope<'_>) -> Option<proto::Resources> {
        let scope = self.struct_field(outer, "resources", &schema::RESOURCES)?;
        Some(proto::Resources {
            cpu: self.cpus(&scope, "cpu"),
            cpu_limit: self.cpu_limit(&scope),
            ram_bytes: self.amount(&scope, "ram"),
            memory_high_bytes: self.amount(&scope, "memory_high"),
            memory_low_bytes: self.amount(&scope, "memory_low"),
            memory_min_bytes: self.amount(&scope, "memory_min"),
            swap_bytes: self.amount(&scope, "swap"),
            oom_group: self.flag(&scope, "oom_group"),
            pids: self.count(&scope, "pids"),
            io: self.io(&scope),
            cpuset: self.cpuset(&scope),
            hugetlb: self.entries(&scope, "hugetlb", AMOUNT, |size| amount(&size.text)),
            cgroup: self.entries(&scope, "cgroup", "a text", |value| Ok(value.text.clone())),
            disk_bytes: self.size(&scope, "disk"),
            gpu: self.whole(&scope, "gpu"),
        })
    }

    fn cpus(&mut self, scope: &Scope<'_>, field: &str) -> Option<f64> {
        self.convert(scope, field, CPUS, |cpus| number::real(&cpus.text))
    }

    /// A number of CPUs or `max`, alone or with period and burst.
    fn cpu_limit(&mut self, outer: &Scope<'_>) -> Option<proto::CpuLimit> {
        let node = outer.get("cpu_limit")?;
        if !matches!(self.tree.node(node).value, Value::Mapping(_)) {
            let cpus = self.ceiling(outer, "cpu_limit")?;
            return Some(proto::CpuLimit { cpus, ..Default::default() });
        }
        let scope = self.struct_field(outer, "cpu_limit", &schema::CPU_LIMIT)?;
        let period = self.duration(&scope, "period");
        let burst = self.duration(&scope, "burst");
        self.required(&scope, "cpus")?;
        Some(proto::CpuLimit { cpus: self.ceiling(&scope, "cpus")?, period, burst })
    }

    /// CPUs; `Some(None)` for `max`.
    fn ceiling(&mut self, scope: &Scope<'_>, field: &str) -> Option<Option<f64>> {
        self.convert(scope, field, CEILING, |cpus| match cpus.text.as_str() {
            MAX => Ok(None),
            cpus => number::real(cpus).map(Some),
        })
    }

    fn io(&mut self, outer: &Scope<'_>) -> Option<proto::Io> {
        let scope = self.struct_field(outer, "io", &schema::IO)?;
        let weight = self.whole(&scope, "weight");
        let Some(node) = scope.get("max") else {
            return Some(proto::Io { weight, max: Vec::new() });
        };
        let list = self.list(&scope, "max", node);
        let max = (list.iter().enumerate())
            .map(|(index, &element)| {
                let path = format!("{}[{index}]", scope.path("max"));
                let max = self.open(element, &schema::IO_MAX, path, Some(&scope));
                max.map(|max| self.io_max(&max)).unwrap_or_default()
            })
            .collect();
        Some(proto::Io { weight, max })
    }

    fn io_max(&mut self, scope: &Scope<'_>) -> proto::IoMax {
        use proto::io_max::Target;
        let path = self.string(scope, "path");
        let device = self.string(scope, "device");
        if let (Some(_), Some(_), Some(node)) = (&path, &device, scope.get("device")) {
            let message = "two names of a disk".to_owned();
            self.report(node, scope.path("device"), message, "one of path, device");
        }
        proto::IoMax {
            target: path.map(Target::Path).or(device.map(Target::Device)),
            rbps: self.amount(scope, "rbps"),
            wbps: self.amount(scope, "wbps"),
            riops: self.count(scope, "riops"),
            wiops: self.count(scope, "wiops"),
        }
    }

    fn cpuset(&mut self, outer: &Scope<'_>) -> Option<proto::Cpuset> {
        let scope = self.struct_field(outer, "cpuset", &schema::CPUSET)?;
        let cpus = self.string(&scope, "cpus");
        Some(proto::Cpuset { cpus, mems: self.string(&scope, "mems") })
    }

    /// A mapping whose keys are not fields. A key is taken as it is written.
    fn entries<T>(
        &mut self,
        outer: &Scope<'_>,
        field: &str,
        expected: &str,
        convert: impl Fn(&Filled) -> Result<T, Wrong>,
    ) -> BTreeMap<String, T> {
        let Some(node) = outer.get(field) else { return BTreeMap::new() };
        let tree = self.tree;
        if !matches!(tree.node(node).value, Value::Mapping(_)) {
            self.report(node, outer.path(field), tree.describe(node), "a mapping");
            return BTreeMap::new();
        }
        let mut entries = BTreeMap::new();
        for (key, value) in tree.entries(node) {
            let key = tree.text(key);
            let path = || outer.path(&format!("{field}[{}]", shown(key)));
            let Some(filled) = self.fill(outer, value, path, expected) else { continue };
            match convert(&filled) {
                // Of a key that is merged in as well, the own one comes first.
                Ok(converted) => drop(entries.entry(key.to_owned()).or_insert(converted)),
                Err(wrong) => {
                    let message = format!("{} {wrong}", quoted(&filled.text));
                    self.report(value, path(), message, expected);
                }
            }
        }
        entries
    }

    fn logger(&mut self, outer: &Scope<'_>) -> Option<proto::Logger> {
        use proto::LoggerDestination::{Both, Console, File, None as Nowhere};
        use proto::LoggerMode::{Rotate, Standard};
        let scope = self.struct_field(outer, "logger", &schema::LOGGER)?;
        let destinations =
            [("file", File), ("console", Console), ("both", Both), ("none", Nowhere)];
        let expected = "file, console, both or none";
        let destination = self.choice(&scope, "destination", &destinations, expected);
        let modes = [("standard", Standard), ("rotate", Rotate)];
        let mode = self.choice(&scope, "mode", &modes, "standard or rotate");
        Some(proto::Logger {
            destination: destination.unwrap_or(File).into(),
            mode: mode.unwrap_or(Standard).into(),
            rotate: self.rotate(&scope),
        })
    }

    fn rotate(&mut self, outer: &Scope<'_>) -> Option<proto::Rotate> {
        let scope = self.struct_field(outer, "rotate", &schema::ROTATE)?;
        let log_size = self.size(&scope, "log_size");
        let backups = self.whole(&scope, "backups");
        Some(proto::Rotate {
            log_size_bytes: log_size.unwrap_or(spec::LOG_SIZE.get()),
            backups: backups.unwrap_or(spec::BACKUPS.get()),
        })
    }

    /// Opens a mapping: finds the fields of its schema, and what is none.
    fn open<'o>(
        &mut self,
        node: NodeId,
        schema: &'static Schema,
        path: String,
        outer: Option<&'o Scope<'o>>,
    ) -> Option<Scope<'o>> {
        let tree = self.tree;
        if !matches!(tree.node(node).value, Value::Mapping(_)) {
            let expected = format!("{}: a mapping with {}", schema.what, fields(schema));
            self.report(node, path, tree.describe(node), expected);
            return None;
        }
        let mut values = vec![None; schema.fields.len()];
        let mut unknown = Vec::new();
        for (key, value) in tree.entries(node) {
            match schema.position(tree.text(key)) {
                Some(field) => {
                    values[field].get_or_insert(value);
                }
                None => unknown.push((key, value)),
            }
        }
        let mut scope = Scope { outer, schema, node, values, path };
        for (key, value) in unknown {
            self.unknown(&mut scope, key, value);
        }
        for value in &mut scope.values {
            *value = value.filter(|&value| !tree.is_null(value));
        }
        Some(scope)
    }

    /// Reports an unknown field. If it is a known one mistyped, its value counts as that one's, so
    /// that the known one is not reported to be missing.
    fn unknown(&mut self, scope: &mut Scope<'_>, key: NodeId, value: NodeId) {
        if self.problems.is_full() {
            self.problems.more += 1;
            return;
        }
        let name = self.tree.text(key);
        let nearest = scope.schema.nearest(name);
        let expected = match nearest {
            Some(field) => format!("`{}`", scope.schema.fields[field].name),
            None => format!("one of {}", fields(scope.schema)),
        };
        let path = scope.path(quoted(name).trim_matches('`'));
        self.report(key, path, format!("unknown field {}", quoted(name)), expected);
        if let Some(field) = nearest {
            scope.values[field].get_or_insert(value);
        }
    }

    /// Opens a field that is a mapping.
    fn struct_field<'o>(
        &mut self,
        outer: &'o Scope<'o>,
        field: &str,
        schema: &'static Schema,
    ) -> Option<Scope<'o>> {
        let node = outer.get(field)?;
        self.open(node, schema, outer.path(field), Some(outer))
    }

    /// The value of a field that must be there.
    fn required(&mut self, scope: &Scope<'_>, field: &str) -> Option<NodeId> {
        let value = scope.get(field);
        if value.is_none() {
            let message = format!("{} without `{field}`", scope.schema.what);
            let expected = format!("a field `{field}`");
            self.report(scope.node, scope.path(field), message, expected);
        }
        value
    }

    /// The elements of a field that is a list.
    fn list(&mut self, scope: &Scope<'_>, field: &str, node: NodeId) -> &'t [NodeId] {
        if let Value::List(list) = &self.tree.node(node).value {
            return list;
        }
        self.report(node, scope.path(field), self.tree.describe(node), "a list");
        &[]
    }

    fn string(&mut self, scope: &Scope<'_>, field: &str) -> Option<String> {
        let node = scope.get(field)?;
        self.fill(scope, node, || scope.path(field), "a text").map(|filled| filled.text)
    }

    fn whole(&mut self, scope: &Scope<'_>, field: &str) -> Option<u32> {
        self.convert(scope, field, WHOLE, |number| {
            let whole = number::whole(&number.text, u32::MAX.into())?;
            u32::try_from(whole).map_err(|_| Wrong::TooLarge(u32::MAX.into()))
        })
    }

    fn flag(&mut self, scope: &Scope<'_>, field: &str) -> Option<bool> {
        self.convert(scope, field, FLAG, |flag| number::flag(&flag.text, flag.plain))
    }

    /// A size, or `max`.
    fn amount(&mut self, scope: &Scope<'_>, field: &str) -> Option<u64> {
        self.convert(scope, field, AMOUNT, |size| amount(&size.text))
    }

    /// A whole number of 64 bits, or `max`.
    fn count(&mut self, scope: &Scope<'_>, field: &str) -> Option<u64> {
        self.convert(scope, field, COUNT, |count| match count.text.as_str() {
            MAX => Ok(NO_LIMIT),
            count => number::whole(count, NO_LIMIT - 1),
        })
    }

    fn size(&mut self, scope: &Scope<'_>, field: &str) -> Option<u64> {
        self.convert(scope, field, SIZE, |size| number::size(&size.text))
    }

    fn duration(&mut self, scope: &Scope<'_>, field: &str) -> Option<pbjson_types::Duration> {
        let duration: Duration =
            self.convert(scope, field, DURATION, |duration| number::duration(&duration.text))?;
        Some(validate::duration_to_proto(duration))
    }

    fn choice<T: Copy>(
        &mut self,
        scope: &Scope<'_>,
        field: &str,
        choices: &[(&str, T)],
        expected: &'static str,
    ) -> Option<T> {
        self.convert(scope, field, expected, |chosen| {
            let choice = choices.iter().find(|(name, _)| *name == chosen.text);
            choice.map(|&(_, choice)| choice).ok_or(Wrong::Not("known"))
        })
    }

    /// Makes a value of a scalar, or a problem of what is wrong with it.
    fn convert<T>(
        &mut self,
        scope: &Scope<'_>,
        field: &str,
        expected: &str,
        convert: impl FnOnce(&Filled) -> Result<T, Wrong>,
    ) -> Option<T> {
        let node = scope.get(field)?;
        let filled = self.fill(scope, node, || scope.path(field), expected)?;
        convert(&filled)
            .map_err(|wrong| {
                let message = format!("{} {wrong}", quoted(&filled.text));
                self.report(node, scope.path(field), message, expected);
            })
            .ok()
    }

    /// The text of a scalar, its templates filled in.
    fn fill(
        &mut self,
        scope: &Scope<'_>,
        node: NodeId,
        path: impl Fn() -> String,
        expected: &str,
    ) -> Option<Filled> {
        let tree = self.tree;
        let Value::Scalar { text, plain } = &tree.node(node).value else {
            self.report(node, path(), tree.describe(node), expected);
            return None;
        };
        if tree.is_null(node) {
            self.report(node, path(), tree.describe(node), expected);
            return None;
        }
        let mut budget = std::mem::take(&mut self.budget);
        let filled = template::expand(text, &mut budget, |reference, budget| {
            self.resolve(reference, scope, budget)
        });
        self.budget = budget;
        match filled {
            Ok(filled) => {
                let plain = *plain && !text.contains("{{");
                Some(Filled { text: filled.into_owned(), plain })
            }
            Err(errors) => {
                for error in errors {
                    self.report_template(node, path(), &error);
                }
                None
            }
        }
    }

    /// What a reference is bound to: a field of the mapping or of those around it, then what
    /// Thermos binds, then a variable.
    fn resolve(
        &self,
        reference: &Reference<'_>,
        scope: &Scope<'_>,
        budget: &mut Budget,
    ) -> Result<String, TemplateError> {
        let unbound = || TemplateError::Unbound(reference.text().to_owned());
        let steps = reference.steps();
        if let [Step::Name("self"), Step::Name(field), rest @ ..] = steps {
            if let Some(found) = self.field(reference, scope, field, rest, budget) {
                return found;
            }
        } else if let [Step::Name(field), rest @ ..] = steps {
            let scopes = std::iter::successors(Some(scope), |scope| scope.outer);
            for scope in scopes {
                if let Some(found) = self.field(reference, scope, field, rest, budget) {
                    return found;
                }
            }
        }
        match steps {
            [Step::Name("thermos"), Step::Name("task_id")] => {
                self.task_id.clone().ok_or(TemplateError::Circular)
            }
            [Step::Name("thermos"), Step::Name("user")] => Ok(self.user.clone()),
            [Step::Name("thermos"), Step::Name("ports"), Step::Index(port)] => self
                .bindings
                .ports
                .get(*port)
                .map(ToString::to_string)
                .ok_or_else(|| TemplateError::UnboundPort((*port).to_owned())),
            [Step::Name("thermos"), Step::Name("ports"), ..] => {
                Err(TemplateError::PortForm(reference.text().to_owned()))
            }
            _ => self.bindings.variables.get(reference.text()).cloned().ok_or_else(unbound),
        }
    }

    /// What a reference finds in a mapping, `None` if the mapping has no such field.
    fn field(
        &self,
        reference: &Reference<'_>,
        scope: &Scope<'_>,
        field: &str,
        rest: &[Step<'_>],
        budget: &mut Budget,
    ) -> Option<Result<String, TemplateError>> {
        let position = scope.schema.position(field)?;
        let Some(mut node) = scope.values[position] else {
            let default = scope.schema.fields[position].default?;
            return rest.is_empty().then(|| Ok(default.to_owned()));
        };
        for step in rest {
            node = match self.descend(node, step, budget) {
                Ok(Some(next)) => next,
                Ok(None) => {
                    return Some(Err(TemplateError::Unbound(reference.text().to_owned())));
                }
                Err(error) => return Some(Err(error)),
            };
        }
        Some(match &self.tree.node(node).value {
            Value::Scalar { text, .. } if !self.tree.is_null(node) => Ok(text.to_string()),
            _ => Err(TemplateError::NotText {
                reference: reference.text().to_owned(),
                found: self.tree.kind(node),
            }),
        })
    }

    /// One step down. A search through keys is paid for, so that many of them cannot add up.
    fn descend(
        &self,
        node: NodeId,
        step: &Step<'_>,
        budget: &mut Budget,
    ) -> Result<Option<NodeId>, TemplateError> {
        match (&self.tree.node(node).value, step) {
            (Value::List(list), Step::Index(index)) => {
                Ok(index.parse().ok().and_then(|index: usize| list.get(index).copied()))
            }
            (Value::Mapping(_), Step::Name(key) | Step::Index(key)) => {
                for (name, value) in self.tree.entries(node) {
                    budget.spend(1)?;
                    if self.tree.text(name) == *key {
                        return Ok(Some(value));
                    }
                }
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// The rules of the schema, and where they are broken. What is wrong with a field that could
    /// not even be read is said already.
    fn validate(&mut self, draft: &Draft) -> Option<TaskSpec> {
        let violations = match validate::validate(&draft.task, draft.names) {
            Ok(spec) if self.problems.list.is_empty() => return Some(spec),
            Ok(_) => return None,
            Err(violations) => violations,
        };
        self.report_violations(violations);
        None
    }

    fn report_violations(&mut self, violations: Violations) {
        if self.problems.more > 0 || self.is_spent {
            return;
        }
        let mut said: HashSet<String> =
            self.problems.list.iter().map(|problem| problem.field.clone()).collect();
        if self.find("name").is_none() {
            said.insert("name".to_owned());
        }
        for violation in violations.list {
            let field = violation.field.trim_end_matches("_bytes").to_owned();
            if within(&field).any(|outer| said.contains(outer)) {
                continue;
            }
            let node = self.find_nearest(&field);
            self.report(node, field, violation.message, violation.expected);
        }
        self.problems.more += violations.more;
    }

    /// The node at a path.
    fn find(&self, path: &str) -> Option<NodeId> {
        steps(path).try_fold(self.tree.root(), |node, step| self.child(node, step))
    }

    /// The node at a path, or the innermost one around it that there is.
    fn find_nearest(&self, path: &str) -> NodeId {
        within(path).find_map(|outer| self.find(outer)).unwrap_or(self.tree.root())
    }

    fn child(&self, node: NodeId, step: &str) -> Option<NodeId> {
        match &self.tree.node(node).value {
            Value::List(list) => list.get(step.parse::<usize>().ok()?).copied(),
            _ => self.tree.get(node, step),
        }
    }

    fn report(
        &mut self,
        node: NodeId,
        field: String,
        message: String,
        expected: impl fmt::Display,
    ) {
        if matches!(self.tree.node(node).value, Value::Refused) {
            return;
        }
        let (start, end) = self.tree.span(node);
        let expected = expected.to_string();
        self.problems.add(Problem { start, end, field, message, expected, first: None });
    }

    /// Points at the braces that are wrong where they stand in the file as such.
    fn report_template(&mut self, node: NodeId, field: String, error: &TemplateError) {
        if *error == TemplateError::TooLarge && std::mem::replace(&mut self.is_spent, true) {
            return;
        }
        let (mut start, mut end) = self.tree.span(node);
        if let Some(body) = error.body() {
            let braces = format!("{{{{{body}}}}}");
            if let Some(at) = self.tree.written(node).find(&braces) {
                start += at;
                end = start + braces.len();
            }
        }
        let expected = error.expected().into_owned();
        let message = error.to_string();
        self.problems.add(Problem { start, end, field, message, expected, first: None });
    }
}

/// A size, or `max`.
fn amount(text: &str) -> Result<u64, Wrong> {
    if text == MAX { Ok(NO_LIMIT) } else { number::size(text) }
}

/// The fields of a schema, for a message.
fn fields(schema: &Schema) -> String {
    let names: Vec<_> = schema.fields.iter().map(|field| field.name).collect();
    names.join(", ")
}

/// The steps of a path such as `processes[1].name`: names and indexes. Between brackets stands one step, whatever it holds.
fn steps(path: &str) -> impl Iterator<Item = &str> {
    path.split(['[', ']']).enumerate().flat_map(|(part, text)| {
        let inside = part % 2 == 1;
        text.split(move |c| c == '.' && !inside).filter(|step| !step.is_empty())
    })
}

/// A path and all paths that hold it, innermost first.
fn within(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| {
        let end = if path.ends_with(']') { path.rfind('[') } else { path.rfind(['.', '[']) };
        end.map(|end| &path[..end])
    })
}

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
