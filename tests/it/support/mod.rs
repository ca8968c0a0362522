//! What the tests stand on.

mod disk;
mod follow;
mod gate;
mod leak;
mod lines;
mod process;
mod scene;
mod task;
mod time;

use std::time::Duration;

pub(crate) use disk::Disk;
pub(crate) use follow::{Finished, Following};
pub(crate) use gate::Gate;
pub(crate) use lines::Lines;
pub(crate) use process::{Pid, is_alive, is_stopped};
pub(crate) use scene::{DEWAR, Output, Scene};
pub(crate) use task::{Process, Task, p, task};
pub(crate) use time::{seconds, seconds_between, wait_until};

/// Nothing here takes this long: what does has hung. In a virtual machine, whose tests cargo does not tell where dewar is,
/// everything takes longer.
pub(crate) const DEADLINE: Duration =
    Duration::from_secs(if option_env!("CARGO_BIN_EXE_dewar").is_some() { 30 } else { 90 });

/// Leaves a test that this machine cannot hold. On CI, which must hold them all, that is a failure.
macro_rules! skip {
    ($($why:tt)*) => {{
        let why = format!($($why)*);
        assert!(std::env::var_os("CI").is_none(), "cannot be skipped on CI: {why}");
        eprintln!("skipped: {why}");
        return;
    }};
}

/// Leaves a test that needs root.
macro_rules! need_root {
    () => {
        if !nix::unistd::geteuid().is_root() {
            $crate::support::skip!("needs root");
        }
    };
}

pub(crate) use {need_root, skip};

/// The leak gate itself.
#[test]
fn what_is_left_behind_fails_its_test() {
    let scene = Scene::new();
    let mut command = std::process::Command::new("sleep");
    let mut left = command.arg("60").env("HOME", scene.sandbox()).spawn().unwrap();
    // exec has begun by now, and may not have come to the arguments.
    let arguments = format!("/proc/{}/cmdline", left.id());
    wait_until("it has its name", || std::fs::read(&arguments).is_ok_and(|line| !line.is_empty()));

    let dropped = std::panic::catch_unwind(|| drop(scene));

    let message = *dropped.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains(&format!("process {} (sleep 60 )", left.id())), "{message}");
    assert!(!left.wait().unwrap().success(), "it was not killed");
}
