//! Integration tests: real binaries, real processes, real cgroups.
//!
//! Each test is named after its claim; its doc comment gives the number of the scenario (S), outcome (O) or attack that it
//! shows. [`support`] is what they stand on: a [`support::Scene`] is a root of its own, and nothing may be left of it when
//! a test ends.
#![allow(clippy::disallowed_methods, reason = "tests on the real thing")]
#![allow(clippy::unwrap_used)]

/// No kill -9, full disk or failed call loses anything.
mod crash;
#[cfg(feature = "net")]
mod daemon;
mod docs;
mod ending;
mod examples;
mod exec;
mod files;
mod gc;
mod identity;
mod logs;
mod order;
mod outcomes;
mod pause;
mod programs;
mod recover;
mod roots;
mod signal;
mod support;
mod terminal;
mod update;
mod usage;
