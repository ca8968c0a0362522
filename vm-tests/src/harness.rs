//! Checks the harness itself: tests that must fail are run, and are to be found out, each as what it is.
//!
//! They are in `guest/harness.rs`. The last of them takes the machine with it.

use std::error::Error;
use std::time::{Duration, Instant};

use vm_tests::wire::Outcome;

use crate::boots::{HARNESS, Suite};
use crate::qemu::Lost;
use crate::report::Report;
use crate::session::{Session, Test, run};

/// A test that hangs is waited for no longer.
const DEADLINE: Duration = Duration::from_secs(5);

/// How a test of `guest/harness.rs` ended.
type Ended = Result<(Outcome, Duration, String), Lost>;

/// A test, and what is to be found out about it.
struct Check {
    test: &'static str,
    claim: &'static str,
    holds: fn(&Ended) -> bool,
}

const CHECKS: [Check; 7] = [
    Check {
        test: "fails",
        claim: "a_failure_is_told_with_its_output",
        holds: |ended| {
            let Ok((Outcome::Failed(why), _, output)) = ended else { return false };
            why == "exit status 101" && output.contains("on purpose")
        },
    },
    Check {
        test: "aborts",
        claim: "a_test_that_dies_by_a_signal_is_told",
        holds: |ended| matches!(ended, Ok((Outcome::Failed(why), ..)) if why.contains("SIGABRT")),
    },
    Check {
        test: "is_not_there",
        claim: "a_test_that_is_not_there_does_not_pass",
        holds: |ended| matches!(ended, Ok((Outcome::Failed(why), ..)) if why == "no such test was run"),
    },
    Check {
        test: "leaves_everything_behind",
        claim: "whatever_is_left_behind_is_named",
        holds: |ended| {
            let Ok((Outcome::Leaked(left), ..)) = ended else { return false };
            let has = |what: &str| left.iter().any(|line| line.contains(what));
            has("process ")
                && has("sleep 600")
                && has("zombie ")
                && has("mount tmpfs left on /mnt")
                && has("cgroup /sys/fs/cgroup/left")
                && has("file /tmp/left")
                && has("file /run/left")
        },
    },
    Check {
        test: "passes",
        claim: "what_was_left_behind_is_not_held_against_the_next",
        holds: |ended| matches!(ended, Ok((Outcome::Passed, ..))),
    },
    Check {
        test: "hangs",
        claim: "a_hang_is_told_with_where_it_hangs",
        holds: |ended| matches!(ended, Ok((Outcome::Hung(machine), ..)) if machine.contains("sleep 601") && machine.contains("hrtimer_nanosleep")),
    },
    Check {
        test: "panics_the_kernel",
        claim: "a_panic_of_the_kernel_is_told",
        holds: |ended| matches!(ended, Err(Lost::Ended { panic: Some(line) }) if line.contains("sysrq triggered crash")),
    },
];

/// Runs them all in one machine.
pub(crate) fn run_all(session: &Session<'_>) -> Result<Report, Box<dyn Error>> {
    let mut report = Report::default();
    let initrd = session.initrd(&HARNESS)?;
    let mut machine = session.machine(&HARNESS, &initrd, &[])?;
    for Check { test, claim, holds } in CHECKS {
        let begun = Instant::now();
        let name = format!("harness::{test}");
        let test = Test { suite: Suite::Guest, name, deadline: DEADLINE, slowly: None };
        let ended = run(&mut machine, &test);
        let outcome = if holds(&ended) {
            Outcome::Passed
        } else {
            Outcome::Failed(format!("it was taken for {ended:?}"))
        };
        report.test(&format!("{}::{claim}", HARNESS.name), &outcome, begun.elapsed(), "");
    }
    Ok(report)
}
