//! The command line: `dewar`.
//!
//! Each command has a file of its own; what they share is in the others:
//!
//! | file | question |
//! |---|---|
//! | `args.rs` | what may be asked for, and what does `--help` say? |
//! | `failure.rs` | which exit status means what? |
//! | `file.rs`, `pattern.rs`, `each.rs` | which task? |
//! | `node.rs`, `nodes.rs`, `place.rs` | by way of which daemon, or in which root or roots? |
//! | `patience.rs` | what if the daemon goes away meanwhile? |
//! | `runner.rs`, `follow.rs` | how is a runner started, asked, and followed? |
//! | `printer.rs`, `progress.rs` | what is printed while a task runs? |
//! | `report.rs`, `crate::words`, `table.rs`, `json.rs` | how are states, ends, usages and tasks said? |
//! | `metered.rs`, `rates.rs` | what do tasks use, and how much of it per second? |
//! | `term.rs`, `fullscreen.rs`, `out.rs` | what may reach a terminal, and what if nobody reads? |
//!
//! Results go to standard output, messages for people to standard error; with `--output json` standard output
//! carries JSON and nothing else.
#![allow(clippy::disallowed_methods, reason = "talks to people, files and runners")]
#![deny(
    clippy::print_stderr,
    reason = "panics where standard error is a file on a disk that is full: causes::say"
)]

mod args;
mod completion;
mod each;
#[cfg(feature = "net")]
mod exec;
mod explain;
mod failure;
mod file;
mod follow;
mod fullscreen;
mod gc;
#[cfg(feature = "net")]
mod health;
mod inspect;
mod json;
mod kill;
#[cfg(feature = "net")]
mod launch;
mod logs;
mod metered;
mod node;
mod nodes;
mod out;
#[cfg(feature = "net")]
mod patience;
mod pattern;
mod pause;
mod place;
mod printer;
mod progress;
mod rates;
mod read;
mod remove;
mod report;
mod run;
mod runner;
#[cfg(feature = "net")]
mod serve;
mod signal;
mod signals;
mod stats;
mod status;
mod table;
mod term;
mod top;
mod update;
mod wait;
#[cfg(feature = "net")]
mod watch;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process;

use clap::{Args, FromArgMatches, Parser};
use nix::sys::prctl;

use crate::causes::tell;
use crate::words;
use args::{Cli, Command, Run};
use failure::Failure;

/// The program `dewar`. It is small, so that a runner can be a fork of it, and begins at once: a right `dewar run …` it does itself. For
/// all else it becomes `dewar-full`, which is beside it. Returns the exit status.
pub fn front() -> u8 {
    std::panic::set_hook(Box::new(defect));
    let words: Vec<_> = std::env::args_os().collect();
    match run_alone(&words).filter(|_| !completion::is_asked()) {
        Some(run) => status(run::run(&run, crate::launch::fork_runner)),
        None => become_full(&words),
    }
}

/// The program `dewar-full`, which knows all commands: does what the command line asks for, and says how it went: the exit status.
pub fn main() -> u8 {
    // Whoever looks for `dewar`, as with pidof(1), need not know of two programs.
    let _ = prctl::set_name(c"dewar");
    completion::answer();
    std::panic::set_hook(Box::new(defect));
    match Cli::try_parse() {
        Ok(cli) => status(dispatch(&cli.command)),
        Err(error) => {
            // Help that nobody reads to its end is still given.
            let _ = error.print();
            u8::try_from(error.exit_code()).unwrap_or(failure::status::USAGE)
        }
    }
}

/// Becomes the program that knows all commands, called as this one was. Returns the exit status if that cannot be.
fn become_full(words: &[OsString]) -> u8 {
    let why = match std::env::current_exe() {
        Ok(this) => {
            let program = this.with_file_name("dewar-full");
            let mut full = process::Command::new(&program);
            full.arg0(words.first().map_or("dewar".as_ref(), OsString::as_os_str));
            let error = full.args(words.iter().skip(1)).exec();
            format!("{}: {error}", program.display())
        }
        Err(error) => format!("/proc/self/exe: {error}"),
    };
    status(Err(Failure::Unavailable(format!("start the program of all other commands: {why}"))))
}

/// The exit status of a command; why it failed is told.
fn status(done: Result<u8, Failure>) -> u8 {
    done.unwrap_or_else(|failure| {
        tell!("dewar: {failure}");
        failure.status()
    })
}

/// A right `dewar run …`, taken apart without the definitions of all other commands: to make those is a good part of all that it executes.
/// What is not one is looked at again with all of them, which say what is wrong.
fn run_alone(words: &[OsString]) -> Option<Run> {
    let words = words.get(1..)?;
    words.first().filter(|word| *word == "run")?;
    let command = Run::augment_args(clap::Command::new("run"));
    let matches = command.try_get_matches_from(words).ok()?;
    Run::from_arg_matches(&matches).ok()
}

fn dispatch(command: &Command) -> Result<u8, Failure> {
    match command {
        Command::Run(args) => run::run(args, crate::launch::prepare_runner),
        Command::Resume(args) => run::resume(args),
        #[cfg(feature = "net")]
        Command::Launch(args) => launch::run(args),
        Command::Wait(args) => wait::run(args),
        Command::Kill(args) => kill::run(args),
        Command::Signal(args) => signal::run(args),
        Command::Pause(args) => pause::pause(args),
        Command::ResumePaused(args) => pause::resume(args),
        Command::Update(args) => update::run(args),
        Command::Status(args) => status::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Stats(args) => stats::run(args),
        Command::Top(args) => top::run(args),
        #[cfg(feature = "net")]
        Command::Watch(args) => watch::run(args),
        Command::Logs(args) => logs::run(args),
        #[cfg(feature = "net")]
        Command::Exec(args) => exec::run(args),
        Command::Remove(args) => remove::run(args),
        Command::Gc(args) => gc::run(args),
        Command::Read(args) => read::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Completion(args) => completion::run(args),
        #[cfg(feature = "net")]
        Command::Serve(args) => serve::run(args),
        #[cfg(feature = "net")]
        Command::Health(args) => health::run(args),
    }
}

/// A broken invariant has an exit status of its own, however the program was built to panic.
fn defect(panic: &std::panic::PanicHookInfo<'_>) {
    fullscreen::restore();
    tell!("dewar: a defect of dewar: {panic}");
    std::process::exit(failure::status::DEFECT.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(Into::into).collect()
    }

    #[test]
    fn a_right_run_is_the_same_with_and_without_the_other_commands() {
        for line in [
            "dewar run a.yaml",
            "dewar run a.yaml --task-id t -P http:80 -E a=b --cgroup none --output json --detach",
            "dewar run --root /r --sandbox s --user u --chroot --allow-unenforced -- sleep 1 --help",
            "/usr/bin/dewar run -",
        ] {
            let alone = run_alone(&words(line)).unwrap_or_else(|| panic!("{line}"));
            let Command::Run(among) = Cli::try_parse_from(words(line)).unwrap().command else {
                panic!("{line}");
            };
            assert_eq!(format!("{alone:?}"), format!("{among:?}"));
        }
    }

    /// Then all commands are asked, which name the command in what they say.
    #[test]
    fn what_is_no_right_run_is_left_to_all_commands() {
        for line in [
            "dewar",
            "dewar status",
            "dewar run",
            "dewar run --help",
            "dewar run --version",
            "dewar run a.yaml --nonsense",
            "dewar --help run",
            "run a.yaml",
        ] {
            assert!(run_alone(&words(line)).is_none(), "{line}");
        }
    }
}
