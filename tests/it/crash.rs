//! No kill -9, no full disk and no failed call loses anything: invariants 1 to 4, S21 to S32.
//!
//! Every test drives the real runner, started as itself and not through `dewar`, so that it can be killed, armed and
//! started again at an exact moment. What a task did is read from its streams and from what its runs wrote themselves.

#![allow(clippy::unwrap_used, reason = "what a test cannot go on without fails it")]

mod accept;
mod bench;
mod disk;
mod points;
mod remove;
mod storm;
mod takeover;
mod tasks;
mod torn;
