//! Garbage collection: what is kept of tasks that are over is removed, oldest first, as limits say.
//!
//! - [`policy`]: which tasks go, and why; pure
//! - [`collect`]: what is known of the tasks, and their removal by [`crate::remove`]
//!
//! Never touched: a task that is not over, or whose stream somebody holds; one that ended less than
//! [`Limits::keep_at_least`](policy::Limits::keep_at_least) ago, so that whoever launched it can learn how it ended; one in whose cgroup
//! something lives; one whose checkpoint is damaged, unless that is asked for.

pub mod collect;
pub mod policy;
#[cfg(test)]
pub(crate) mod testing;

pub use collect::{Collector, GcError, Told};
pub use policy::{Amount, Limits, Why};
