//! Values in words, for people.

use std::fmt::Write as _;
use std::time::Duration;

use crate::escape::escape;
use crate::proto::{
    KillStage, LimitLevel, OomKill, PidsLimit, ProcessState, RunView, TaskState, Timestamp,
    Unkillable, Usage, Verdict, VerdictReason,
};

/// A state of a task, such as `ACTIVE`.
pub(crate) fn task_state(state: TaskState) -> &'static str {
    let name = state.as_str_name();
    name.strip_prefix("TASK_STATE_").unwrap_or(name)
}

/// A state of a process or run, such as `RUNNING`.
pub(crate) fn process_state(state: ProcessState) -> &'static str {
    let name = state.as_str_name();
    name.strip_prefix("PROCESS_STATE_").unwrap_or(name)
}

/// A name that stands among other words: what could be taken for one of them is quoted.
pub(crate) fn name(text: &str) -> String {
    let quoted = text.is_empty() || text.contains(|c: char| c.is_whitespace() || c == '"');
    if quoted { format!("\"{}\"", escape(text).replace('"', "\\\"")) } else { escape(text).into() }
}

/// A span of time in at most seven characters, such as `0.25s`, `12.3s`, `3m07s`, `5h03m`, `12d04h`.
pub(crate) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..10 => format!("{}.{:02}s", seconds, time.subsec_millis() / 10),
        10..60 => format!("{}.{}s", seconds, time.subsec_millis() / 100),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// A number of bytes, such as `512 B` or `3.4 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A time of day to the millisecond, UTC, such as `2026-08-01T09:30:00.123Z`.
pub(crate) fn clock(time: Timestamp) -> String {
    let text = time.to_string();
    match text.get(..23) {
        Some(millis) if text.ends_with('Z') => format!("{millis}Z"),
        _ => text,
    }
}

/// From `earlier` to `later`; zero if the clock was set back between the two.
pub(crate) fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    let nanos = later.unix_nanos().saturating_sub(earlier.unix_nanos());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

/// CPU time of a usage, where it is known.
pub(crate) fn cpu(usage: &Usage) -> Option<Duration> {
    Duration::try_from(usage.cpu_time?).ok()
}

/// How and why a run ended, such as `exit status 3`; `None` while it lives, and when there is nothing to say
/// about a success.
pub(crate) fn ending(run: &RunView) -> Option<String> {
    let verdict = run.verdict.as_ref()?;
    let is_reason = verdict.reason() == VerdictReason::Oom;
    let notes = [
        verdict.detail.as_deref().map(|detail| escape(detail).into_owned()),
        verdict.oom.as_ref().filter(|_| !is_reason).map(oom_note),
        verdict.pids_limit.as_ref().map(pids_note),
    ];
    let notes: Vec<_> = notes.into_iter().flatten().collect();
    let mut text = reason(run, verdict, !notes.is_empty())?;
    if !notes.is_empty() {
        write!(text, " ({})", notes.join("; ")).expect("a string takes any text");
    }
    Some(text)
}

/// Why a run ended; of a success only `if_noted`.
fn reason(run: &RunView, verdict: &Verdict, if_noted: bool) -> Option<String> {
    let signal = run.signal.as_deref().unwrap_or("a signal");
    let text = match verdict.reason() {
        VerdictReason::Exited => match run.exit_code {
            Some(0) | None => return if_noted.then(|| "exit status 0".to_owned()),
            Some(code) => format!("exit status {code}"),
        },
        VerdictReason::Signalled => format!("died by {signal}"),
        VerdictReason::Killed => format!("{}: {signal}", stage(verdict.stage())),
        VerdictReason::Oom => match &verdict.oom {
            Some(oom) => format!("out of memory: {}", oom_cause(oom)),
            None => "out of memory".to_owned(),
        },
        VerdictReason::LaunchFailed => {
            let step = verdict.step.as_deref().unwrap_or("a step");
            let errno = verdict.errno.as_deref().unwrap_or("failed");
            format!("could not be started: {}: {}", escape(step), escape(errno))
        }
        VerdictReason::CoordinatorLost => "its coordinator died".to_owned(),
        VerdictReason::Reboot => "the machine was booted anew".to_owned(),
        VerdictReason::Unspecified => return None,
    };
    Some(text)
}

fn oom_note(oom: &OomKill) -> String {
    format!("{} for want of memory: {}", killed(oom.killed), oom_cause(oom))
}

fn oom_cause(oom: &OomKill) -> String {
    let whose = whose(oom.level(), oom.cgroup.as_deref());
    match (oom.level(), oom.limit_bytes) {
        (LimitLevel::Host, _) => "the host had none left".to_owned(),
        (_, Some(limit)) => format!("the limit of {whose} is {}", bytes(limit)),
        (_, None) => format!("a limit of {whose}"),
    }
}

fn pids_note(limit: &PidsLimit) -> String {
    let many = if limit.refused == 1 { "1 fork" } else { &format!("{} forks", limit.refused) };
    let whose = whose(limit.level(), limit.cgroup.as_deref());
    match limit.limit {
        Some(most) => format!("{many} refused: {whose} may have {most} processes"),
        None => format!("{many} refused: a limit of {whose}"),
    }
}

fn killed(processes: u64) -> String {
    if processes == 1 {
        "1 process was killed".to_owned()
    } else {
        format!("{processes} processes were killed")
    }
}

/// Whose limit it is that was hit.
fn whose(level: LimitLevel, cgroup: Option<&str>) -> String {
    match level {
        LimitLevel::Run => "the run".to_owned(),
        LimitLevel::Task => "the task".to_owned(),
        LimitLevel::Ancestor => escape(cgroup.unwrap_or("a cgroup above")).into_owned(),
        LimitLevel::Host => "the host".to_owned(),
        LimitLevel::Unspecified => "a cgroup".to_owned(),
    }
}

/// What was killed and does not die, such as `cannot be killed: pid 12 (dd), D in jbd2_log_wait_commit`.
pub(crate) fn unkillable(unkillable: &Unkillable) -> String {
    let process = |of: &crate::proto::StuckProcess| {
        let at = of.wchan.as_deref().map(|wchan| format!(" in {}", escape(wchan)));
        format!(
            "pid {} ({}), {}{}",
            of.pid,
            escape(&of.name),
            escape(&of.state),
            at.unwrap_or_default()
        )
    };
    let told: Vec<_> = unkillable.processes.iter().map(process).collect();
    let more = (unkillable.count as usize).saturating_sub(told.len());
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("cannot be killed: {}{more}", told.join("; "))
}

fn stage(stage: KillStage) -> &'static str {
    match stage {
        KillStage::Terminate => "told to end",
        KillStage::Deadline => "its time was up",
        KillStage::Teardown => "the task was over",
        KillStage::Request => "a kill was asked for",
        KillStage::Unspecified => "ended by dewar",
    }
}

/// What a run used, such as `0.31s CPU, peak 3.4 MiB`; empty where nothing is known.
pub(crate) fn usage(usage: &Usage) -> String {
    let mut parts = Vec::new();
    if let Some(time) = cpu(usage) {
        parts.push(format!("{} CPU", span(time)));
    }
    if let Some(peak) = usage.memory_peak_bytes {
        parts.push(format!("peak {}", bytes(peak)));
    }
    if let Some(read) = usage.io_read_bytes {
        parts.push(format!("read {}", bytes(read)));
    }
    if let Some(written) = usage.io_write_bytes {
        parts.push(format!("wrote {}", bytes(written)));
    }
    parts.push(limits_hit(usage));
    parts.retain(|part| !part.is_empty());
    parts.join(", ")
}

/// What limits did to whoever used this, such as `throttled 3.21s, 1 OOM kill`; empty if nothing.
pub(crate) fn limits_hit(usage: &Usage) -> String {
    let throttled = usage.cpu_throttled_time.and_then(|time| Duration::try_from(time).ok());
    let throttled = throttled.filter(|time| !time.is_zero());
    let counted = |count: Option<u64>, one: &str, many: &str| {
        let count = count.filter(|&count| count > 0)?;
        Some(if count == 1 { format!("1 {one}") } else { format!("{count} {many}") })
    };
    let parts = [
        throttled.map(|time| format!("throttled {}", span(time))),
        counted(usage.pids_limit_hits, "fork refused", "forks refused"),
        counted(usage.oom_kills, "OOM kill", "OOM kills"),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_keeps_three_digits_at_most_four() {
        for (millis, text) in [
            (0, "0.00s"),
            (9_999, "9.99s"),
            (10_000, "10.0s"),
            (59_999, "59.9s"),
            (187_000, "3m07s"),
            (18_200_000, "5h03m"),
            (1_051_200_000, "12d04h"),
        ] {
            assert_eq!(span(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn bytes_have_binary_units() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(3 * 1024 * 1024 + 512 * 1024), "3.5 MiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
    }

    #[test]
    fn attack_47_a_name_cannot_be_taken_for_the_words_around_it() {
        assert_eq!(name("web"), "web");
        assert_eq!(name("web run 0 SUCCESS"), "\"web run 0 SUCCESS\"");
        assert_eq!(name("a \"b\x1b"), "\"a \\\"b\\x1b\"");
        assert_eq!(name(""), "\"\"");
    }

    #[test]
    fn an_ending_says_why() {
        let run = |reason: VerdictReason, with: fn(&mut RunView, &mut Verdict)| {
            let mut run = RunView::default();
            let mut verdict = Verdict { reason: reason.into(), ..Default::default() };
            with(&mut run, &mut verdict);
            ending(&RunView { verdict: Some(verdict), ..run })
        };
        let said = |text: &str| Some(text.to_owned());

        assert_eq!(run(VerdictReason::Exited, |run, _| run.exit_code = Some(0)), None);
        assert_eq!(
            run(VerdictReason::Exited, |run, _| run.exit_code = Some(3)),
            said("exit status 3")
        );
        assert_eq!(
            run(VerdictReason::Killed, |run, verdict| {
                run.signal = Some("SIGKILL".to_owned());
                verdict.stage = Some(KillStage::Deadline.into());
            }),
            said("its time was up: SIGKILL")
        );
        assert_eq!(
            run(VerdictReason::LaunchFailed, |_, verdict| {
                verdict.step = Some("execve /bin/bash".to_owned());
                verdict.errno = Some("ENOENT".to_owned());
            }),
            said("could not be started: execve /bin/bash: ENOENT")
        );
        assert_eq!(
            run(VerdictReason::CoordinatorLost, |_, verdict| {
                verdict.detail = Some("100 losses in a row: the process has failed".to_owned());
            }),
            said("its coordinator died (100 losses in a row: the process has failed)")
        );
    }

    #[test]
    fn an_oom_kill_says_whose_limit_was_hit() {
        let oom = |level: LimitLevel, limit| OomKill {
            level: level.into(),
            cgroup: Some("/sys/fs/cgroup/a b".to_owned()),
            limit_bytes: limit,
            killed: 2,
            ..OomKill::default()
        };
        let cause = |level, limit| oom_cause(&oom(level, limit));
        assert_eq!(cause(LimitLevel::Run, Some(64 << 20)), "the limit of the run is 64.0 MiB");
        assert_eq!(cause(LimitLevel::Task, None), "a limit of the task");
        assert_eq!(
            cause(LimitLevel::Ancestor, Some(1 << 30)),
            "the limit of /sys/fs/cgroup/a b is 1.0 GiB"
        );
        assert_eq!(cause(LimitLevel::Host, None), "the host had none left");

        let pids = PidsLimit {
            level: LimitLevel::Task.into(),
            limit: Some(64),
            refused: 3,
            ..PidsLimit::default()
        };
        let verdict = Verdict {
            reason: VerdictReason::Exited.into(),
            oom: Some(oom(LimitLevel::Run, Some(64 << 20))),
            pids_limit: Some(pids),
            ..Verdict::default()
        };
        let run = RunView { exit_code: Some(0), verdict: Some(verdict), ..RunView::default() };
        assert_eq!(
            ending(&run).unwrap(),
            "exit status 0 (2 processes were killed for want of memory: the limit of the run is 64.0 MiB; \
             3 forks refused: the task may have 64 processes)"
        );
    }

    /// Attack 28.
    #[test]
    fn what_does_not_die_is_told_with_where_it_waits() {
        let dd = crate::proto::StuckProcess {
            pid: 12,
            name: "dd\x1b".to_owned(),
            state: "D".to_owned(),
            wchan: Some("percpu_rwsem_wait".to_owned()),
            ..Default::default()
        };
        let one = Unkillable { count: 1, processes: vec![dd.clone()], time: None };
        let many = Unkillable { count: 5, ..one.clone() };

        let text = "cannot be killed: pid 12 (dd\\x1b), D in percpu_rwsem_wait";
        assert_eq!(unkillable(&one), text);
        assert_eq!(unkillable(&many), format!("{text}; and 4 more"));
    }

    #[test]
    fn a_usage_is_told_as_far_as_it_is_known() {
        let span = |millis| Some(Duration::from_millis(millis).into());
        let used = Usage {
            cpu_time: span(310),
            memory_peak_bytes: Some(3 << 20),
            io_read_bytes: Some(0),
            cpu_throttled_time: span(3_210),
            pids_limit_hits: Some(1),
            oom_kills: Some(2),
            ..Usage::default()
        };

        let text =
            "0.31s CPU, peak 3.0 MiB, read 0 B, throttled 3.21s, 1 fork refused, 2 OOM kills";
        assert_eq!(usage(&used), text);
        assert_eq!(usage(&Usage { oom_kills: Some(0), ..Usage::default() }), "");
    }

    #[test]
    fn a_clock_that_was_set_back_gives_no_negative_span() {
        let (early, late) = (Timestamp::from_unix_nanos(5), Timestamp::from_unix_nanos(8));
        assert_eq!(between(early, late), Duration::from_nanos(3));
        assert_eq!(between(late, early), Duration::ZERO);
    }
}
