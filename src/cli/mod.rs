//! The command line: `dewar`.
//!
//! Each command has a file of its own; what they share is in the others:
//!
//! | file | question |
//! |---|---|
//! | `args.rs` | what may be asked for, and what does `--help` say? |
//! | `failure.rs` | which exit status means what? |
//! | `file.rs`, `pattern.rs`, `each.rs` | which task? |
//! | `node.rs`, `place.rs` | by way of which daemon, or in which root? |
//! | `patience.rs` | what if the daemon goes away meanwhile? |
//! | `runner.rs`, `follow.rs` | how is a runner started, asked, and followed? |
//! | `printer.rs`, `progress.rs` | what is printed while a task runs? |
//! | `report.rs`, `words.rs`, `table.rs`, `json.rs` | how are states, ends, usages and tasks said? |
//! | `term.rs`, `out.rs` | what may reach a terminal, and what if nobody reads? |
//!
//! Results go to standard output, messages for people to standard error; with `--output json` standard output
//! carries JSON and nothing else.
#![allow(clippy::disallowed_methods, reason = "talks to people, files and runners")]

mod args;
mod completion;
mod each;
#[cfg(feature = "net")]
mod exec;
mod explain;
mod failure;
mod file;
mod follow;
#[cfg(feature = "net")]
mod health;
mod inspect;
mod json;
mod kill;
#[cfg(feature = "net")]
mod launch;
mod logs;
mod node;
mod out;
#[cfg(feature = "net")]
mod patience;
mod pattern;
mod pause;
mod place;
mod printer;
mod progress;
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
mod update;
mod wait;
#[cfg(feature = "net")]
mod watch;
mod words;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use failure::Failure;

/// Does what the command line asks for, and says how it went.
pub fn main() -> ExitCode {
    completion::answer();
    std::panic::set_hook(Box::new(defect));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help that nobody reads to its end is still given.
            let _ = error.print();
            return ExitCode::from(
                u8::try_from(error.exit_code()).unwrap_or(failure::status::USAGE),
            );
        }
    };
    match dispatch(&cli.command) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            eprintln!("dewar: {failure}");
            failure.exit_code()
        }
    }
}

fn dispatch(command: &Command) -> Result<u8, Failure> {
    match command {
        Command::Run(args) => run::run(args),
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
        #[cfg(feature = "net")]
        Command::Watch(args) => watch::run(args),
        Command::Logs(args) => logs::run(args),
        #[cfg(feature = "net")]
        Command::Exec(args) => exec::run(args),
        Command::Remove(args) => remove::run(args),
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
    eprintln!("dewar: a defect of dewar: {panic}");
    std::process::exit(failure::status::DEFECT.into());
}
