//! What happened to a task, in lines for people.

use super::table::{self, Align};
use super::term::{Style, escape};
use super::words;
use crate::proto::{
    Event, KillView, LimitsView, ProcessState, ProcessView, RunView, TaskView, Unkillable, Usage,
};
use crate::task::Resources;
use crate::task::written::assignments;

/// Most processes that a summary tells of one by one, whatever their state.
const SUMMARY_MAX: usize = 100;

/// An event as one line; `None` for steps that say nothing to people.
pub(super) fn event(event: &Event, style: Style) -> Option<String> {
    let is_of_task = event.run.is_none() && event.task_state.is_some();
    if is_of_task {
        return event_of_task(event, style);
    }
    Some(format!("{} {}\n", time(event, style), what(event, style)?))
}

/// The same where several tasks are told of: each line names its task.
pub(super) fn event_of_task(event: &Event, style: Style) -> Option<String> {
    let (time, task) = (time(event, style), words::name(&event.task_id));
    Some(format!("{time} {task} {}\n", what(event, style)?))
}

fn time(event: &Event, style: Style) -> String {
    let time = event.time.map(words::clock).unwrap_or_default();
    style.dim(&time).into_owned()
}

fn what(event: &Event, style: Style) -> Option<String> {
    if let Some(run) = &event.run {
        return run_event(event.process.as_deref().unwrap_or_default(), run, style);
    }
    Some(if let Some(kill) = &event.kill {
        kill_event(kill)
    } else if let Some(limits) = &event.limits {
        limits_event(limits)
    } else if let Some(pause) = &event.pause {
        let what = if pause.paused { "paused" } else { "resumed" };
        format!("{what} by uid {}", pause.by_uid)
    } else {
        let state = event.task_state();
        style.task(state, words::task_state(state)).into_owned()
    })
}

fn run_event(process: &str, run: &RunView, style: Style) -> Option<String> {
    let state = run.state();
    if matches!(state, ProcessState::Waiting | ProcessState::Forked) {
        return None;
    }
    let word = style.process(state, run_state(run)).into_owned();
    let mut line = format!("{} run {} {word}", words::name(process), run.run);
    if let Some(stuck) = stuck(run) {
        return Some(line + ": " + &words::unkillable(stuck));
    }
    if state == ProcessState::Running {
        let pid = run.pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
        return Some(line + &pid);
    }
    if let Some(ending) = words::ending(run) {
        line = line + ": " + &ending;
    }
    if let (Some(start), Some(end)) = (run.start_time, run.end_time) {
        line = line + ", after " + &words::span(words::between(start, end));
    }
    let used = run.usage.as_ref().map(words::usage).filter(|used| !used.is_empty());
    Some(used.map_or(line.clone(), |used| line + ", " + &used))
}

/// What of a run that has not ended was killed and does not die.
fn stuck(run: &RunView) -> Option<&Unkillable> {
    run.unkillable.as_ref().filter(|_| run.end_time.is_none())
}

/// State of a run in a word.
fn run_state(run: &RunView) -> &'static str {
    if stuck(run).is_some() { "UNKILLABLE" } else { words::process_state(run.state()) }
}

fn kill_event(kill: &KillView) -> String {
    let what = if kill.lost { "declared lost" } else { "killed" };
    let wait = kill.wait.and_then(|wait| wait.try_into().ok()).map(words::span);
    let reason = kill.reason.as_deref().map(|reason| format!(": {}", escape(reason)));
    let wait = wait.unwrap_or_else(|| "0s".to_owned());
    format!("{what} by uid {}, {wait} left{}", kill.by_uid, reason.unwrap_or_default())
}

fn limits_event(limits: &LimitsView) -> String {
    let whose = limits.process.as_deref().map(|name| format!(" of {}", words::name(name)));
    let resources = limits.resources.clone().unwrap_or_default();
    let told = Resources::from_proto(&resources, "resources")
        .map(|of| assignments(&of))
        .unwrap_or_default();
    let by = match limits.put_back {
        true => "put back".to_owned(),
        false => format!("changed by uid {}", limits.by_uid),
    };
    format!("limits{} {by}: {}", whose.unwrap_or_default(), escape(&told.join(" ")))
}

/// How a task ended, and what each of its processes did.
pub(super) fn summary(view: &TaskView, style: Style) -> String {
    let state = view.state();
    let word = style.task(state, words::task_state(state)).into_owned();
    let mut text = format!("{} {word}", words::name(&view.task_id));
    if let Some(took) = took(view) {
        text = text + " after " + &words::span(took);
    }
    if let Some(detail) = &view.detail {
        text = text + ": " + &escape(detail);
    }
    text.push('\n');
    if !view.unenforced.is_empty() {
        let fields = view.unenforced.join(", ");
        text = text + "  not enforced on this host: " + &escape(&fields) + "\n";
    }
    text + &processes(view, style)
}

/// What a task used and how long it took, for people; `None` where nothing of it is known.
pub(super) fn used(view: &TaskView) -> Option<String> {
    let used = words::usage(view.usage.as_ref()?);
    if used.is_empty() {
        return None;
    }
    let took = took(view).map(|time| format!("{} elapsed, ", words::span(time)));
    Some(format!("{} used: {}{used}", words::name(&view.task_id), took.unwrap_or_default()))
}

/// Time from the first state of a task to its last, if it had more than one.
fn took(view: &TaskView) -> Option<std::time::Duration> {
    let [first, .., last] = view.state_history.as_slice() else { return None };
    Some(words::between(first.time?, last.time?))
}

fn processes(view: &TaskView, style: Style) -> String {
    let all = view.processes.len() <= SUMMARY_MAX;
    let told: Vec<&ProcessView> = view
        .processes
        .iter()
        .filter(|process| all || process.state() != ProcessState::Success)
        .collect();
    let hidden = view.processes.len() - told.len();
    let mut text = process_lines(&told, style).join("\n");
    if hidden > 0 {
        text += &format!("\n  and {hidden} more: SUCCESS");
    }
    if text.is_empty() { text } else { text + "\n" }
}

/// A heading, and a line for each process: its state, its runs, their time and CPU time together, and why it is
/// what it is.
pub(super) fn process_lines(processes: &[&ProcessView], style: Style) -> Vec<String> {
    if processes.is_empty() {
        return Vec::new();
    }
    let heading = ["  PROCESS", "STATE", "RUNS", "TIME", "CPU", ""].map(str::to_owned);
    let rows: Vec<_> =
        std::iter::once(heading).chain(processes.iter().map(|of| process_row(of))).collect();
    let aligns = [Align::Left, Align::Left, Align::Right, Align::Right, Align::Right, Align::Left];
    table::lines(&rows, aligns, |row, column, text| match (row, column) {
        (0, _) => style.dim(text),
        (row, 1) => style.process(processes[row - 1].state(), text),
        _ => text.into(),
    })
}

fn process_row(process: &ProcessView) -> [String; 6] {
    let last = process.runs.last();
    let stuck = last.and_then(stuck);
    let state = process.state.map(|_| match stuck {
        Some(_) => "UNKILLABLE",
        None => words::process_state(process.state()),
    });
    let why = [
        process.detail.as_deref().map(|text| escape(text).into_owned()),
        last.and_then(words::ending),
        stuck.map(words::unkillable),
    ];
    [
        format!("  {}", words::name(&process.name)),
        state.unwrap_or("not run").to_owned(),
        process.runs.len().to_string(),
        run_time(process).map(words::span).unwrap_or_default(),
        cpu(process).map(words::span).unwrap_or_default(),
        why.into_iter().flatten().collect::<Vec<_>>().join("; "),
    ]
}

/// Time of all runs that have ended; `None` if no run has.
fn run_time(process: &ProcessView) -> Option<std::time::Duration> {
    let times = process.runs.iter().filter_map(|run| Some((run.start_time?, run.end_time?)));
    times.map(|(start, end)| words::between(start, end)).reduce(std::ops::Add::add)
}

/// CPU time of all runs of which it is known; `None` if it is of no run.
fn cpu(process: &ProcessView) -> Option<std::time::Duration> {
    let usages = process.runs.iter().filter_map(|run| run.usage.as_ref());
    usages.filter_map(|usage: &Usage| words::cpu(usage)).reduce(std::ops::Add::add)
}

/// A line for each run of a process: its state, times and pid, and if `why` the reason of its end and its usage.
pub(super) fn run_lines(process: &ProcessView, why: bool, style: Style) -> Vec<String> {
    let rows: Vec<_> = process.runs.iter().map(|run| run_row(run, why)).collect();
    let aligns = [Align::Left, Align::Left, Align::Left, Align::Right, Align::Left, Align::Left];
    table::lines(&rows, aligns, |row, column, text| match column {
        1 => style.process(process.runs[row].state(), text),
        _ => text.into(),
    })
}

fn run_row(run: &RunView, why: bool) -> [String; 6] {
    let time = match (run.start_time, run.end_time) {
        (Some(start), Some(end)) => words::span(words::between(start, end)),
        _ => String::new(),
    };
    let pid = run.pid.map(|pid| format!("pid {pid}")).unwrap_or_default();
    let used = run.usage.as_ref().map(words::usage).filter(|used| !used.is_empty());
    let stuck = stuck(run).map(words::unkillable);
    let more = [words::ending(run), stuck, used].into_iter().flatten().filter(|_| why);
    [
        format!("    run {}", run.run),
        run_state(run).to_owned(),
        run.start_time.map(words::clock).unwrap_or_default(),
        time,
        pid,
        more.collect::<Vec<_>>().join(", "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto;
    use crate::state::{Event as Happened, Phase, RunStep};
    use crate::view::tests::{Script, exited, launch, process, task};

    fn told(script: &mut Script, happened: &Happened) -> Option<String> {
        let applied = script.push(happened);
        event(&script.replay.event(&applied).unwrap(), Style::Plain)
    }

    #[test]
    fn an_event_is_one_line() {
        let mut script = Script::new(launch(task(vec![process("a b")], &[])));

        let active = told(&mut script, &Happened::Entered(Phase::Active));
        let opened = Happened::Run { process: 0, run: 0, step: RunStep::Opened };
        assert_eq!(active.unwrap(), "2026-08-01T09:30:00.001Z web-1 ACTIVE\n");
        assert_eq!(told(&mut script, &opened), None);

        let mut script = Script::new(launch(task(vec![process("a b")], &[])));
        script.enter(Phase::Active).start(0, 0);
        let ended = told(&mut script, &Happened::Run { process: 0, run: 0, step: exited(3) });
        assert_eq!(
            ended.unwrap(),
            "2026-08-01T09:30:00.005Z \"a b\" run 0 FAILED: exit status 3, after 0.00s\n"
        );
    }

    #[test]
    fn a_kill_says_who_asked_and_what_time_is_left() {
        let mut script = Script::new(launch(task(vec![process("a")], &[])));
        let deadline = 10_001_000_000;
        let kill = |deadline, reason: Option<&str>| Happened::KillRequested {
            deadline,
            lost: false,
            by_uid: 1000,
            by_pid: 1,
            reason: reason.map(str::to_owned),
        };
        assert_eq!(
            told(&mut script, &kill(deadline, None)).unwrap(),
            "2026-08-01T09:30:00.001Z killed by uid 1000, 10.0s left\n"
        );
        // attack 47: a reason breaks no line and acts on no terminal.
        assert_eq!(
            told(&mut script, &kill(deadline, Some("full\n\x1b[2J\u{202e}"))).unwrap(),
            "2026-08-01T09:30:00.002Z killed by uid 1000, 9.99s left: full\\n\\x1b[2J\\u{202e}\n"
        );
    }

    #[test]
    fn a_pause_and_a_change_of_limits_say_who_asked() {
        let mut script = Script::new(launch(task(vec![process("a b")], &[])));
        let limited = |process, put_back| Happened::Limited {
            process,
            resources: Box::new(Resources { ram: Some(7), ..Resources::default() }),
            rounded: Vec::new(),
            by_uid: 1000,
            by_pid: 1,
            put_back,
        };
        let events = [
            Happened::Paused { by_uid: 1000, by_pid: 1 },
            Happened::Resumed { by_uid: 0, by_pid: 1 },
            limited(None, false),
            limited(Some(0), true),
        ];

        let told: String = events.iter().filter_map(|of| told(&mut script, of)).collect();

        assert_eq!(
            told,
            "\
2026-08-01T09:30:00.001Z paused by uid 1000
2026-08-01T09:30:00.002Z resumed by uid 0
2026-08-01T09:30:00.003Z limits changed by uid 1000: ram=7
2026-08-01T09:30:00.004Z limits of \"a b\" put back: ram=7
"
        );
    }

    #[test]
    fn a_summary_tells_state_runs_and_reason_of_each_process() {
        let retried = proto::Process { max_failures: Some(2), ..process("flaky") };
        let mut script = Script::new(launch(task(
            vec![process("ok"), retried, process("idle")],
            &[&["flaky", "idle"]],
        )));
        script.enter(Phase::Active).run(0, 0, exited(0)).run(1, 0, exited(3)).run(1, 1, exited(4));
        script.enter(Phase::Cleaning).enter(Phase::Finalizing).enter(Phase::Failed);

        assert_eq!(
            summary(&script.replay.view(None), Style::Plain),
            "\
web-1 FAILED after 0.01s: deadlock: idle waits for flaky, which failed
  PROCESS  STATE    RUNS   TIME  CPU
  ok       SUCCESS     1  0.00s
  flaky    FAILED      2  0.00s       failed 2 of 2 runs; exit status 4
  idle     not run     0
"
        );
    }

    /// Attack 28: it is told while it lasts, and over once the run has ended.
    #[test]
    fn a_run_that_does_not_die_is_unkillable_until_it_does() {
        let mut script = Script::new(launch(task(vec![process("a")], &[])));
        script.enter(Phase::Active).start(0, 0);
        let stuck = proto::StuckProcess {
            pid: 12,
            name: "dd".to_owned(),
            state: "D".to_owned(),
            ..Default::default()
        };
        let stuck = Unkillable { count: 1, processes: vec![stuck], time: None };
        let step = RunStep::Unkillable(Box::new(stuck.clone()));

        let line = told(&mut script, &Happened::Run { process: 0, run: 0, step }).unwrap();
        let row = summary(&script.replay.view(None), Style::Plain);
        script.push(&Happened::Run { process: 0, run: 0, step: exited(1) });
        let view = script.replay.view(None);

        let said = "cannot be killed: pid 12 (dd), D";
        assert!(line.ends_with(&format!(" a run 0 UNKILLABLE: {said}\n")), "{line}");
        assert!(row.contains("UNKILLABLE") && row.contains(said), "{row}");
        assert_eq!(view.processes[0].runs[0].unkillable, Some(stuck));
        assert!(!summary(&view, Style::Plain).contains("UNKILLABLE"));
    }

    #[test]
    fn the_usage_of_a_task_is_one_line_of_what_is_known() {
        let mut script = Script::new(launch(task(vec![process("a")], &[])));
        script.enter(Phase::Active).run(0, 0, exited(0));
        assert_eq!(used(&script.replay.view(None)), None);
        script.enter(Phase::Cleaning).enter(Phase::Finalizing);
        let usage = Usage {
            cpu_time: Some(std::time::Duration::from_millis(310).into()),
            memory_peak_bytes: Some(3 << 20),
            ..Usage::default()
        };
        script.push(&Happened::Used(Box::new(usage)));
        script.enter(Phase::Success);

        let line = used(&script.replay.view(None)).unwrap();

        assert_eq!(line, "web-1 used: 0.00s elapsed, 0.31s CPU, peak 3.0 MiB");
    }

    /// Attack 47.
    #[test]
    fn what_a_task_names_cannot_reach_the_terminal_as_it_is() {
        let mut launch = launch(task(vec![process("a\u{202e}b")], &[]));
        launch.unenforced = vec!["\x1b[2J".to_owned()];
        let mut script = Script::new(launch);
        script.enter(Phase::Active).run(0, 0, exited(1));

        let text = summary(&script.replay.view(None), Style::Plain);

        assert!(text.contains("a\\u{202e}b") && text.contains("\\x1b[2J"), "{text}");
        assert!(!text.contains(['\u{202e}', '\x1b']), "{text}");
    }

    #[test]
    fn a_summary_of_many_tells_of_those_that_did_not_succeed() {
        let names: Vec<String> = (0..150).map(|number| format!("p{number}")).collect();
        let mut script =
            Script::new(launch(task(names.iter().map(|name| process(name)).collect(), &[])));
        script.enter(Phase::Active);
        (0..149).for_each(|process| {
            script.run(process, 0, exited(0));
        });
        script.run(149, 0, exited(1));

        let text = summary(&script.replay.view(None), Style::Plain);

        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.contains("p149") && text.ends_with("  and 149 more: SUCCESS\n"), "{text}");
    }
}
