//! `dewar run` or `dewar resume` in the background, its events as they come.

use std::process::Command;
use std::sync::Arc;

use serde_json::Value;

use super::lines::Lines;
use super::process::Pid;
use super::scene::Place;

/// A command that prints one JSON object a line. It is killed if it is dropped before its end.
pub(crate) struct Following {
    lines: Lines,
    seen: Vec<Value>,
}

impl Following {
    #[track_caller]
    pub(super) fn start(command: Command, place: Arc<Place>) -> Self {
        Self { lines: Lines::start(command, place), seen: Vec::new() }
    }

    /// The process of the command itself.
    pub(crate) fn pid(&self) -> Pid {
        self.lines.pid()
    }

    /// Waits for the first line, of those that were printed already too, that is as wanted.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        if let Some(found) = self.seen.iter().find(|line| wanted(line)) {
            return found.clone();
        }
        while let Some(line) = self.next() {
            if wanted(&line) {
                return line;
            }
        }
        panic!("it ended without what was waited for\n{}", self.lines.told());
    }

    /// Waits until a run is in a state, such as `RUNNING`; gives the run.
    #[track_caller]
    pub(crate) fn wait_for_run(&mut self, process: &str, run: u32, state: &str) -> Value {
        let state = format!("PROCESS_STATE_{state}");
        let event = self.wait_for(|event| {
            event["process"] == process
                && event["run"]["run"] == run
                && event["run"]["state"] == state.as_str()
        });
        event["run"].clone()
    }

    /// Waits until a run is executed; gives its pid and its coordinator's.
    #[track_caller]
    pub(crate) fn wait_until_running(&mut self, process: &str, run: u32) -> (Pid, Pid) {
        let run = self.wait_for_run(process, run, "RUNNING");
        let pid = |field: &str| Pid::of(run[field].as_i64().unwrap().try_into().unwrap());
        (pid("pid"), pid("coordinatorPid"))
    }

    /// Waits until the task enters a state, such as `CLEANING`.
    #[track_caller]
    pub(crate) fn wait_for_state(&mut self, state: &str) -> Value {
        let state = format!("TASK_STATE_{state}");
        self.wait_for(|event| event["taskState"] == state.as_str())
    }

    /// The next line; `None` at the end.
    #[track_caller]
    pub(crate) fn next(&mut self) -> Option<Value> {
        let line = self.lines.next()?;
        let value = serde_json::from_str::<Value>(&line)
            .unwrap_or_else(|error| panic!("no JSON: {error}: {line}\n{}", self.lines.told()));
        self.seen.push(value.clone());
        Some(value)
    }

    /// Follows it to its end.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Finished {
        while self.next().is_some() {}
        let status = self.lines.finish();
        let task = match self.seen.last() {
            Some(last) if last.get("processes").is_some() => self.seen.pop().unwrap(),
            _ => Value::Null,
        };
        let (stdout, stderr) = (self.lines.stdout().to_owned(), self.lines.stderr());
        Finished { status, events: self.seen, task, stdout, stderr }
    }
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Exit status; `None` if it died by a signal.
    pub(crate) status: Option<i32>,
    /// What it printed, but for the last line.
    pub(crate) events: Vec<Value>,
    /// The last line, if that is a task.
    pub(crate) task: Value,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// Asserts how the task ended: its state, the exit status that goes with it, and the runs of each process that is
    /// named, a letter each: S, F, K or L.
    #[track_caller]
    pub(crate) fn assert(&self, state: &str, processes: &[(&str, &str)]) -> &Self {
        assert_eq!(self.state(), state, "{self}");
        let status = match state {
            "SUCCESS" => 0,
            "FAILED" => 1,
            "KILLED" => 3,
            "LOST" => 4,
            _ => panic!("{state} is no end"),
        };
        assert_eq!(self.status, Some(status), "{self}");
        for (process, runs) in processes {
            assert_eq!(self.runs(process), *runs, "runs of {process}\n{self}");
        }
        self
    }

    /// State of the task, such as `SUCCESS`.
    #[track_caller]
    pub(crate) fn state(&self) -> &str {
        let state = self.task["state"].as_str().unwrap_or_else(|| panic!("no task\n{self}"));
        state.strip_prefix("TASK_STATE_").unwrap()
    }

    #[track_caller]
    pub(crate) fn process(&self, name: &str) -> &Value {
        let processes = self.task["processes"].as_array().into_iter().flatten();
        let found = processes.into_iter().find(|process| process["name"] == name);
        found.unwrap_or_else(|| panic!("no process {name}\n{self}"))
    }

    /// State of a process, such as `FAILED`.
    #[track_caller]
    pub(crate) fn process_state(&self, name: &str) -> &str {
        self.process(name)["state"].as_str().unwrap().strip_prefix("PROCESS_STATE_").unwrap()
    }

    /// The runs of a process, a letter each.
    #[track_caller]
    pub(crate) fn runs(&self, process: &str) -> String {
        let runs = self.process(process)["runs"].as_array().unwrap();
        runs.iter().map(|run| letter(&run["state"])).collect()
    }

    #[track_caller]
    pub(crate) fn run(&self, process: &str, run: usize) -> &Value {
        let found = &self.process(process)["runs"][run];
        assert!(found.is_object(), "no run {run} of {process}\n{self}");
        found
    }

    /// When the task entered a state, such as `ACTIVE`.
    #[track_caller]
    pub(crate) fn entered(&self, state: &str) -> &Value {
        let state = format!("TASK_STATE_{state}");
        let history = self.task["stateHistory"].as_array().unwrap();
        let entry = history.iter().find(|entry| entry["state"] == state.as_str());
        &entry.unwrap_or_else(|| panic!("it was never {state}\n{self}"))["time"]
    }

    /// The events of runs: process, run, state.
    pub(crate) fn run_events(&self) -> impl Iterator<Item = (&str, &Value, &str)> {
        self.events.iter().filter_map(|event| {
            let state = event["run"]["state"].as_str()?.strip_prefix("PROCESS_STATE_")?;
            Some((event["process"].as_str()?, event, state))
        })
    }

    /// Names of the processes as their runs were executed.
    pub(crate) fn started(&self) -> Vec<&str> {
        self.run_events()
            .filter(|(.., state)| *state == "RUNNING")
            .map(|(process, ..)| process)
            .collect()
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit status {:?}\n{}\n{}", self.status, self.stdout, self.stderr)
    }
}

fn letter(state: &Value) -> char {
    match state.as_str().unwrap_or_default() {
        "PROCESS_STATE_SUCCESS" => 'S',
        "PROCESS_STATE_FAILED" => 'F',
        "PROCESS_STATE_KILLED" => 'K',
        "PROCESS_STATE_LOST" => 'L',
        "PROCESS_STATE_WAITING" => 'W',
        "PROCESS_STATE_FORKED" => 'f',
        "PROCESS_STATE_RUNNING" => 'r',
        other => panic!("no state of a run: {other:?}"),
    }
}
