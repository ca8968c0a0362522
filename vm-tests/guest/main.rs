//! Tests that run in a virtual machine, as process 1's child, as root, one at a time.
//!
//! The module of a test says on which boots it runs (`vm-tests/src/boots.rs` has the table); its doc comment gives the number
//! of the attack that it shows to be harmless. After each test the machine must be as it was before: docs/vm-tests.md.
#![allow(clippy::disallowed_methods, reason = "tests on the real kernel")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

/// Not tests: what takes how long.
mod bench;
/// A client of the daemon.
mod client;
/// Block devices and file systems of a test's own.
mod disk;
/// Full cgroup v2, on both kernels.
mod full;
/// To see what is found out.
mod harness;
/// cgroup v1 with its controllers, v2 beside it.
mod hybrid;
/// What only these tests stand on.
mod machine;
/// cgroup v2, booted without a controller.
mod no_memory;
/// Before a power cut, and after it.
mod power;
/// What the tests of any host stand on too: [`support::Scene`] and what is done in one.
#[path = "../../tests/it/support/mod.rs"]
#[allow(dead_code, unused_imports, unused_macros, reason = "not all of it is of use here")]
mod support;
/// systemd is process 1.
mod systemd;
