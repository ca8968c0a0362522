//! `dewar pause` and `dewar resume-paused`.

use super::args::{Pause, ResumePaused};
use super::each;
use super::failure::Failure;
use crate::control::Request;
use crate::proto::{PauseTask, ResumeTask};

/// Freezes every active task that matches, and prints the id of each of them.
///
/// # Errors
///
/// [`Failure`]; one task that cannot be asked keeps no other from being asked.
pub(super) fn pause(args: &Pause) -> Result<u8, Failure> {
    let request = Request::Pause(PauseTask {});
    each::active(&args.patterns, &args.node, |node, id| node.order(id, &request).map(drop))
}

/// Lets every active task that matches go on, and prints the id of each of them.
///
/// # Errors
///
/// [`Failure`]; one task that cannot be asked keeps no other from being asked.
pub(super) fn resume(args: &ResumePaused) -> Result<u8, Failure> {
    let request = Request::Resume(ResumeTask {});
    each::active(&args.patterns, &args.node, |node, id| node.order(id, &request).map(drop))
}
