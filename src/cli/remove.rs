//! `dewar remove`.

use super::args::Remove;
use super::each;
use super::failure::Failure;

/// Removes what is kept of every task that matches and has ended, and prints the id of each of them.
///
/// # Errors
///
/// [`Failure`]; one task that cannot be removed keeps no other from it.
pub(super) fn run(args: &Remove) -> Result<u8, Failure> {
    each::finished(&args.patterns, &args.node, |node, id| node.remove(id, args.sandbox))
}
