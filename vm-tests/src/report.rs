//! What was found, as it is found.

use std::time::Duration;

use vm_tests::wire::Outcome;

/// The tests that have ended.
#[derive(Debug, Default)]
pub(crate) struct Report {
    passed: usize,
    failed: Vec<String>,
}

impl Report {
    /// Tells of one test.
    pub(crate) fn test(&mut self, name: &str, outcome: &Outcome, took: Duration, output: &str) {
        let seconds = took.as_secs_f64();
        if *outcome == Outcome::Passed {
            self.passed += 1;
            // One that measures has something to tell.
            print!("{name} ... ok ({seconds:.1} s)\n{output}");
            return;
        }
        self.failed.push(name.to_owned());
        let why = why(outcome);
        let output = if output.is_empty() {
            String::new()
        } else {
            format!("{}\n----\n", output.trim_end())
        };
        // At once: others have something to tell too.
        print!("{name} ... FAILED ({seconds:.1} s)\n---- {name}: {why}\n{output}");
    }

    /// Adds another report.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
    }

    /// Whether all is well: nothing failed, and something passed.
    pub(crate) fn is_success(&self) -> bool {
        self.failed.is_empty() && self.passed > 0
    }

    /// The line that closes a boot, as libtest closes a binary.
    pub(crate) fn boot(&self, took: Duration) -> String {
        let word = if self.is_success() { "ok" } else { "FAILED" };
        let (passed, failed) = (self.passed, self.failed.len());
        let seconds = took.as_secs_f64();
        format!("test result: {word}. {passed} passed; {failed} failed; finished in {seconds:.2}s")
    }

    /// The names of what failed, and the numbers: `3 passed, 1 failed`.
    pub(crate) fn total(&self) -> String {
        let failures: String = self.failed.iter().map(|name| format!("FAILED {name}\n")).collect();
        format!("{failures}{} passed, {} failed", self.passed, self.failed.len())
    }
}

fn why(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Passed => "passed".to_owned(),
        Outcome::Failed(why) => why.clone(),
        Outcome::Hung(machine) => format!("hung at its deadline; the machine:\n{machine}"),
        Outcome::Leaked(left) => format!("left behind:\n  {}", left.join("\n  ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_test_at_all_is_no_success() {
        assert!(!Report::default().is_success());
        assert_eq!(Report::default().total(), "0 passed, 0 failed");
    }

    #[test]
    fn a_failure_is_named_at_the_end() {
        let mut report = Report::default();
        report.test("boot::a", &Outcome::Passed, Duration::ZERO, "");
        let mut other = Report::default();
        other.test("boot::b", &Outcome::Leaked(vec!["mount x".to_owned()]), Duration::ZERO, "");

        report.add(other);

        assert!(!report.is_success());
        assert_eq!(
            report.boot(Duration::from_secs(1)),
            "test result: FAILED. 1 passed; 1 failed; finished in 1.00s"
        );
        assert_eq!(report.total(), "FAILED boot::b\n1 passed, 1 failed");
    }
}
