//! Why a run ended: from what waitid(2) says of its first process, and from the kernel's own counts. Pure.
//!
//! Never from an exit status that looks like something: 137 is what bash says when a child of it was killed, by whomever, and what any
//! program may say.
//!
//! What cannot be known is not told. waitid(2) has the signal that ended a process, not who sent it: only what dewar sent itself, which
//! its records tell, and what the kernel counted as an OOM kill are set apart from all other signals.

use nix::errno::Errno;

use super::start::LaunchFailed;
use crate::proto::{OomKill, PidsLimit, Usage, Verdict, VerdictReason};
use crate::state::{Outcome, RunEnd};
use crate::sys::pidfd::Exit;

/// Memory in which bash may be killed before it has come to the command line, bytes. It needs 330 to 620 KB for that, by what of it
/// is in memory already (measured on Linux 6.1 and 6.12).
const SHELL_BYTES: u64 = 1 << 20;

/// What limits did to a run.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Limits {
    /// Processes of it were killed for want of memory.
    pub(super) oom: Option<OomKill>,
    /// Forks of it were refused.
    pub(super) pids: Option<PidsLimit>,
}

/// The end of a run whose first process has ended.
///
/// An OOM kill is the reason if the first process was killed, or did not succeed without the processes that were. A run
/// that succeeds, or dies by another signal, went on without them: that is told beside the reason.
pub(super) fn ended(exit: Result<Exit, Errno>, usage: Option<Usage>, limits: Limits) -> RunEnd {
    let (outcome, reason) = match exit {
        Ok(Exit::Code(code)) => (Outcome::Exited(code), VerdictReason::Exited),
        Ok(Exit::Signal(signal)) => (Outcome::Signalled(signal as u8), VerdictReason::Signalled),
        Err(_) => (Outcome::Lost, VerdictReason::CoordinatorLost),
    };
    let is_victim = match outcome {
        Outcome::Exited(code) => code != 0,
        Outcome::Signalled(signal) => i32::from(signal) == libc::SIGKILL,
        _ => false,
    };
    let reason = if limits.oom.is_some() && is_victim { VerdictReason::Oom } else { reason };
    let verdict = Verdict {
        reason: reason.into(),
        detail: limits.oom.as_ref().filter(|_| reason == VerdictReason::Oom).and_then(too_small),
        oom: limits.oom,
        pids_limit: limits.pids,
        ..Verdict::default()
    };
    RunEnd { outcome, verdict, usage }
}

/// attack 33: what is wrong with a limit that leaves no room for the shell alone.
fn too_small(oom: &OomKill) -> Option<String> {
    let limit = oom.limit_bytes.filter(|&limit| limit < SHELL_BYTES)?;
    Some(format!("{limit} bytes of memory are too small to start a shell in"))
}

/// The end of a run that could not be started.
pub(super) fn not_started(failure: &LaunchFailed) -> RunEnd {
    RunEnd { outcome: Outcome::NotStarted, verdict: failure.verdict(), usage: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(exit: Exit, limits: &Limits) -> VerdictReason {
        ended(Ok(exit), None, limits.clone()).verdict.reason()
    }

    fn oom() -> Limits {
        Limits { oom: Some(OomKill { killed: 1, ..OomKill::default() }), pids: None }
    }

    /// Attack 31.
    #[test]
    fn without_a_counted_victim_nothing_is_an_oom_kill() {
        let none = Limits::default();

        assert_eq!(reason(Exit::Code(137), &none), VerdictReason::Exited);
        assert_eq!(reason(Exit::Signal(libc::SIGKILL), &none), VerdictReason::Signalled);
    }

    /// Attack 29.
    #[test]
    fn a_run_that_fails_with_a_counted_victim_is_out_of_memory() {
        for exit in [Exit::Signal(libc::SIGKILL), Exit::Code(137), Exit::Code(1)] {
            assert_eq!(reason(exit, &oom()), VerdictReason::Oom, "{exit:?}");
        }
    }

    #[test]
    fn a_run_that_goes_on_without_its_victims_ends_for_its_own_reason_and_tells_of_them() {
        for (exit, own) in [
            (Exit::Code(0), VerdictReason::Exited),
            (Exit::Signal(libc::SIGTERM), VerdictReason::Signalled),
            (Exit::Signal(libc::SIGSEGV), VerdictReason::Signalled),
        ] {
            let end = ended(Ok(exit), None, oom());
            assert_eq!((end.verdict.reason(), end.verdict.oom), (own, oom().oom), "{exit:?}");
        }
    }

    /// attack 33.
    #[test]
    fn a_limit_too_small_for_a_shell_is_named_where_it_was_the_reason() {
        let killed = |limit, exit| {
            let oom = OomKill { killed: 1, limit_bytes: Some(limit), ..OomKill::default() };
            ended(Ok(exit), None, Limits { oom: Some(oom), pids: None }).verdict.detail
        };

        let text = "262144 bytes of memory are too small to start a shell in";
        assert_eq!(killed(256 << 10, Exit::Signal(libc::SIGKILL)).as_deref(), Some(text));
        assert_eq!(killed(1 << 20, Exit::Signal(libc::SIGKILL)), None);
        assert_eq!(killed(256 << 10, Exit::Code(0)), None);
    }

    #[test]
    fn refused_forks_are_a_note_and_never_the_reason() {
        let pids = PidsLimit { refused: 3, ..PidsLimit::default() };
        let limits = Limits { oom: None, pids: Some(pids.clone()) };

        let end = ended(Ok(Exit::Code(1)), None, limits);

        assert_eq!(end.verdict.reason(), VerdictReason::Exited);
        assert_eq!(end.verdict.pids_limit, Some(pids));
    }

    #[test]
    fn an_end_that_nobody_can_tell_is_lost() {
        let end = ended(Err(Errno::ECHILD), None, oom());

        assert_eq!(end.outcome, Outcome::Lost);
        assert_eq!(end.verdict.reason(), VerdictReason::CoordinatorLost);
    }
}
