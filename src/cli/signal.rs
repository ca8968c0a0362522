//! `dewar signal`.

use super::args::Signal;
use super::each;
use super::failure::Failure;
use crate::control::Request;
use crate::proto::SignalTask;

/// Sends a signal to processes of every active task that matches, and prints the id of each of these tasks.
///
/// # Errors
///
/// [`Failure`]; one task that cannot be asked keeps no other from being asked.
pub(super) fn run(args: &Signal) -> Result<u8, Failure> {
    let Signal { signal, process, all, .. } = args;
    let request =
        Request::Signal(SignalTask { process: process.clone(), signal: *signal, all: *all });
    each::active(&args.patterns, &args.node, |node, id| node.order(id, &request).map(drop))
}
