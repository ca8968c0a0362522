//! `dewar status`.

use std::time::{SystemTime, UNIX_EPOCH};

use super::args::{Only, Status, StatusOutput};
use super::failure::{Failure, status};
use super::node::{Depth, Told, Which};
use super::nodes::{Nodes, told};
use super::out::Out;
use super::pattern::Patterns;
use super::printer::stdout_style;
use super::table::{self, Align};
use super::term::{Style, escape};
use super::{json, report, words};
use crate::causes::tell;
use crate::explain::WAITS_FOR_DISK;
use crate::proto::{ProcessView, Resources, TaskState, TaskView, Timestamp};
use crate::task;
use crate::task::written::assignments;
use crate::view::done_count;

/// Tells of the tasks that were asked for.
///
/// # Errors
///
/// [`Failure`]; a task that cannot be read is none: it is told as CORRUPT, or with the others told nevertheless.
pub(super) fn run(args: &Status) -> Result<u8, Failure> {
    let patterns = Patterns::new(&args.patterns)?;
    let nodes = Nodes::find(&args.node)?;
    let which = match args.only {
        None => Which::All,
        Some(Only::Active) => Which::Active,
        Some(Only::Finished) => Which::Finished,
    };
    let depth = match (args.output, args.verbose) {
        (StatusOutput::Table, 0) => Depth::Line,
        _ => Depth::All,
    };
    let mut tasks = Vec::new();
    let mut exit = status::SUCCESS;
    let looked = nodes.gather(|node| node.look(&patterns, which, depth), told(&mut exit))?;
    for (number, (id, task)) in looked {
        match task {
            Ok(task) if wanted(args.only, task.state()) => {
                tasks.push(Seen { task, root: nodes.root(number) });
            }
            Ok(_) => {}
            Err(failure) => {
                tell!("dewar: {}: {failure}", nodes.name(number, &id));
                exit = status::UNAVAILABLE;
            }
        }
    }
    if tasks.is_empty() && exit == status::SUCCESS && is_choosy(args) {
        return Err(Failure::NothingMatched(format!("no such task {nodes}")));
    }
    tasks.sort_by(|Seen { task: a, .. }, Seen { task: b, .. }| a.place().cmp(&b.place()));
    Out::default().write(match args.output {
        StatusOutput::Json => lines_of_json(&tasks)?,
        StatusOutput::Table => table(&tasks, args.verbose, now(), stdout_style()),
    })?;
    Ok(exit)
}

/// A task that is told of.
struct Seen {
    task: Told,
    /// Its root, where several were named.
    root: Option<String>,
}

impl Told {
    fn state(&self) -> TaskState {
        match self {
            Self::All(sight) => sight.view.state(),
            Self::Listed(task) => task.state(),
        }
    }

    /// Where it comes among others: by its acceptance, and then by its id.
    fn place(&self) -> (i64, &str) {
        match self {
            Self::All(sight) => (sight.accepted, &sight.view.task_id),
            Self::Listed(task) => {
                (task.accept_time.map_or(0, |time| time.unix_nanos()), &task.task_id)
            }
        }
    }

    fn row(&self, now: Timestamp) -> [String; 5] {
        match self {
            Self::All(sight) => row(&sight.view, now),
            Self::Listed(task) => [
                words::name(&task.task_id),
                words::task_state(task.state()).to_owned(),
                since(task.end_time, now),
                format!("{}/{}", task.done_count(), task.process_count()),
                "-".to_owned(),
            ],
        }
    }
}

/// Whether a part of the tasks was asked for, so that there might have been nothing.
fn is_choosy(args: &Status) -> bool {
    !args.patterns.is_empty() || args.only.is_some()
}

fn wanted(only: Option<Only>, state: TaskState) -> bool {
    let ended = matches!(
        state,
        TaskState::Success | TaskState::Failed | TaskState::Killed | TaskState::Lost
    );
    match only {
        None => true,
        Some(Only::Active) => !ended,
        Some(Only::Finished) => ended,
    }
}

fn lines_of_json(tasks: &[Seen]) -> Result<String, Failure> {
    let line = |Seen { task, root }: &Seen| match task {
        Told::All(sight) => json::task(&sight.view, root.as_deref()),
        Told::Listed(task) => json::rooted(task, root.as_deref()),
    };
    tasks.iter().map(line).collect()
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_nanos(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// A line for each task, and beneath it what `verbose` asks for.
fn table(tasks: &[Seen], verbose: u8, now: Timestamp, style: Style) -> String {
    let heading = ["TASK", "STATE", "SINCE", "DONE", "RUNNER"].map(str::to_owned);
    let rows = tasks.iter().map(|seen| seen.task.row(now));
    let rows: Vec<_> = std::iter::once(heading).chain(rows).collect();
    let aligns = [Align::Left, Align::Left, Align::Right, Align::Right, Align::Right];
    let lines = table::lines(&rows, aligns, |row, column, text| match (row, column) {
        (0, _) => style.dim(text),
        (row, 1) => style.task(tasks[row - 1].task.state(), text),
        _ => text.into(),
    });
    let roots = tasks.iter().map(|seen| seen.root.as_deref());
    let mut lines = table::rooted(lines, roots, style).into_iter();
    let mut text = lines.next().unwrap_or_default() + "\n";
    for (line, Seen { task, .. }) in lines.zip(tasks) {
        text = text + &line + "\n";
        if let Told::All(sight) = task {
            push_details(&mut text, &sight.view, verbose, style);
        }
    }
    text
}

fn row(view: &TaskView, now: Timestamp) -> [String; 5] {
    let entered = view.state_history.last().and_then(|entry| entry.time);
    [
        words::name(&view.task_id),
        state(view),
        since(entered, now),
        format!("{}/{}", done_count(view), view.processes.len()),
        match view.runner_pid {
            Some(pid) => pid.to_string(),
            None if is_left_alone(view) => "none".to_owned(),
            None => "-".to_owned(),
        },
    ]
}

fn since(time: Option<Timestamp>, now: Timestamp) -> String {
    time.map(|time| words::span(words::between(time, now))).unwrap_or_default()
}

/// Whether a runner should drive the task, and none does: what is told of its runs may have changed since.
fn is_left_alone(view: &TaskView) -> bool {
    use TaskState::{Active, Cleaning, Finalizing};
    view.runner_pid.is_none() && matches!(view.state(), Active | Cleaning | Finalizing)
}

/// The state, and whether the task stands still in it.
fn state(view: &TaskView) -> String {
    let state = words::task_state(view.state());
    if view.paused_since.is_some() { format!("{state} paused") } else { state.to_owned() }
}

fn push_details(text: &mut String, view: &TaskView, verbose: u8, style: Style) {
    let mut line = |line: &str| *text = std::mem::take(text) + line + "\n";
    if let Some(detail) = view.detail.as_deref()
        && (verbose > 0 || view.state() == TaskState::Corrupt)
    {
        line(&format!("  {}", escape(detail)));
    }
    if is_left_alone(view) {
        let id = words::name(&view.task_id);
        line(&format!(
            "  it has no runner, so nothing new is started: `dewar resume {id}` goes on with it"
        ));
    }
    for limit in &view.lost_limits {
        line(&format!("  limit lost: {}", escape(limit)));
    }
    if view.waits_for_disk() {
        line(&format!("  {WAITS_FOR_DISK}"));
    }
    if verbose == 0 {
        return;
    }
    for (what, value) in facts(view) {
        line(&format!("  {what}: {}", escape(&value)));
    }
    let processes: Vec<&ProcessView> = view.processes.iter().collect();
    let mut lines = report::process_lines(&processes, style).into_iter();
    if let Some(heading) = lines.next() {
        line(&heading);
    }
    for (process, told) in processes.iter().zip(lines) {
        line(&told);
        let limits = limits(process.resources.as_deref());
        if verbose > 1 && !limits.is_empty() {
            line(&format!("    limits: {}", escape(&limits)));
        }
        if verbose > 1 {
            report::run_lines(process, verbose > 2, style).iter().for_each(|told| line(told));
        }
    }
}

/// Limits as `dewar update` takes them.
fn limits(resources: Option<&Resources>) -> String {
    let limits =
        resources.and_then(|resources| task::Resources::from_proto(resources, "resources").ok());
    limits.map(|limits| assignments(&limits).join(" ")).unwrap_or_default()
}

/// What else is known of a task, for people.
fn facts(view: &TaskView) -> Vec<(&'static str, String)> {
    let ports: Vec<_> = view.ports.iter().map(|(name, port)| format!("{name}:{port}")).collect();
    let since = |entry: &crate::proto::TaskStateEntry| {
        let time = entry.time.map(words::clock).unwrap_or_default();
        format!("{} {time}", words::task_state(entry.state()))
    };
    let history: Vec<_> = view.state_history.iter().map(since).collect();
    let dropped = view.dropped_bytes.map(|bytes| format!("{bytes} bytes of torn records"));
    let facts = [
        ("user", view.user.clone()),
        ("sandbox", view.sandbox.clone()),
        ("logs", view.log_dir.clone()),
        ("ports", ports.join(", ")),
        ("states", history.join(", ")),
        ("paused since", view.paused_since.map(words::clock).unwrap_or_default()),
        ("limits", limits(view.resources.as_ref())),
        ("not enforced on this host", view.unenforced.join(", ")),
        ("used", view.usage.as_ref().map(words::usage).unwrap_or_default()),
        ("rounded by the kernel", view.rounded.join(", ")),
        ("cut off its stream", dropped.unwrap_or_default()),
    ];
    facts.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Sight;
    use crate::state::Phase;
    use crate::view::corrupt_view;
    use crate::view::tests::{Script, exited, launch, process, task};

    fn sights() -> Vec<Seen> {
        let mut script = Script::new(launch(task(vec![process("a"), process("b")], &[])));
        script.enter(Phase::Active).run(0, 0, exited(0)).start(1, 0);
        let corrupt =
            corrupt_view("bad-1", None, "/r/runner is corrupt at byte 40: bad sum".to_owned());
        vec![seen(script.replay.view(Some(4711))), seen(corrupt)]
    }

    fn seen(view: TaskView) -> Seen {
        Seen { task: Told::All(Box::new(Sight { view, accepted: 0 })), root: None }
    }

    fn told(verbose: u8) -> String {
        let now = Timestamp::from_unix_nanos(1_785_576_600_001_000_000 + 187_000_000_000);
        table(&sights(), verbose, now, Style::Plain)
    }

    #[test]
    fn a_task_without_a_runner_says_so_and_what_to_do() {
        let mut script = Script::new(launch(task(vec![process("a")], &[])));
        script.enter(Phase::Active).start(0, 0);
        let told = |script: &Script| {
            let seen = seen(script.replay.view(None));
            table(&[seen], 0, Timestamp::default(), Style::Plain)
        };

        assert_eq!(
            told(&script),
            "\
TASK   STATE   SINCE  DONE  RUNNER
web-1  ACTIVE  0.00s   0/1    none
  it has no runner, so nothing new is started: `dewar resume web-1` goes on with it
"
        );
        script.step(0, 0, exited(0)).enter(Phase::Cleaning).enter(Phase::Success);
        assert!(!told(&script).contains("resume"), "a task that is over needs none");
    }

    /// attack 58.
    #[test]
    fn a_limit_that_is_lost_is_told_without_being_asked() {
        let mut sights = sights();
        let Told::All(sight) = &mut sights[0].task else { panic!("it was looked at") };
        sight.view.lost_limits = vec!["resources.ram: \x1b gone".to_owned()];

        let told = table(&sights, 0, Timestamp::default(), Style::Plain);

        assert!(told.contains("\n  limit lost: resources.ram: \\x1b gone\n"), "{told}");
    }

    /// S30: a corrupt task says where, and disturbs no other.
    #[test]
    fn each_task_has_a_line_and_a_corrupt_one_says_where() {
        assert_eq!(
            told(0),
            "\
TASK   STATE    SINCE  DONE  RUNNER
web-1  ACTIVE   3m07s   1/2    4711
bad-1  CORRUPT          0/0       -
  /r/runner is corrupt at byte 40: bad sum
"
        );
    }

    #[test]
    fn more_is_told_of_each_task_the_more_is_asked() {
        assert_eq!(
            told(3),
            "\
TASK   STATE    SINCE  DONE  RUNNER
web-1  ACTIVE   3m07s   1/2    4711
  user: nobody
  sandbox: /sandbox
  logs: /sandbox/.logs
  states: ACTIVE 2026-08-01T09:30:00.001Z
  PROCESS  STATE    RUNS   TIME  CPU
  a        SUCCESS     1  0.00s
    run 0  SUCCESS  2026-08-01T09:30:00.004Z  0.00s  pid 4713
  b        RUNNING     1
    run 0  RUNNING  2026-08-01T09:30:00.008Z    pid 4713
bad-1  CORRUPT          0/0       -
  /r/runner is corrupt at byte 40: bad sum
"
        );
        assert!(!told(1).contains("run 0"));
    }

    #[test]
    fn a_corrupt_task_is_not_over() {
        for (state, active) in [
            (TaskState::Active, true),
            (TaskState::Finalizing, true),
            (TaskState::Corrupt, true),
            (TaskState::Success, false),
            (TaskState::Lost, false),
        ] {
            assert_eq!(wanted(Some(Only::Active), state), active, "{state:?}");
            assert_eq!(wanted(Some(Only::Finished), state), !active, "{state:?}");
            assert!(wanted(None, state));
        }
    }
}
