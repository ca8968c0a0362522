//! `dewar completion`, and what shells ask when somebody presses TAB.
//!
//! The script that is printed calls `dewar` with the words of the line, and with [`VARIABLE`] in its environment: what may come next is
//! found in the definitions of the command line, and task ids where the command would look for its tasks.

use std::collections::BTreeSet;
use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::{Bash, CompleteEnv, EnvCompleter, Fish, Zsh};
use nix::unistd::alarm;

use super::args::{Cli, Completion, NodeArg, Shell};
use super::failure::{Failure, status};
use super::node::Which;
use super::nodes::Nodes;
use super::out::Out;
use super::pattern::Patterns;

/// Environment variable by which a shell asks.
const VARIABLE: &str = "_DEWAR_COMPLETE";
/// How long somebody who has pressed TAB is kept waiting, seconds.
const PATIENCE: u32 = 2;
/// The program, where it is not known how it was called.
const PROGRAM: &str = "dewar";

/// Prints what a shell has to be told.
///
/// # Errors
///
/// [`Failure`].
pub(super) fn run(args: &Completion) -> Result<u8, Failure> {
    let shell: &dyn EnvCompleter = match args.shell {
        Shell::Bash => &Bash,
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
    };
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, PROGRAM, PROGRAM, &program(), &mut script)?;
    Out::default().write(script)?;
    Ok(status::SUCCESS)
}

/// How this program was called, so that it can be from anywhere.
fn program() -> String {
    let called = env::args_os().next().map(PathBuf::from);
    let called = called.map(|path| match path.as_os_str().as_bytes().contains(&b'/') {
        true => std::path::absolute(&path).unwrap_or(path),
        false => path,
    });
    called.map_or_else(|| PROGRAM.to_owned(), |path| path.to_string_lossy().into_owned())
}

/// Whether it is a shell that asks.
pub(super) fn is_asked() -> bool {
    env::var_os(VARIABLE).is_some()
}

/// Answers a shell, if it is one that asks, and ends there.
pub(super) fn answer() {
    if is_asked() {
        // Whatever hangs, a daemon or a disk: no answer is better than none for long.
        alarm::set(PATIENCE);
        CompleteEnv::with_factory(Cli::command).var(VARIABLE).complete();
    }
}

/// Ids of tasks that have not ended.
pub(super) fn live(current: &OsStr) -> Vec<CompletionCandidate> {
    ids(current, Which::Active).unwrap_or_default()
}

/// Ids of tasks that have ended.
pub(super) fn finished(current: &OsStr) -> Vec<CompletionCandidate> {
    ids(current, Which::Finished).unwrap_or_default()
}

/// Ids of all tasks.
pub(super) fn all(current: &OsStr) -> Vec<CompletionCandidate> {
    ids(current, Which::All).unwrap_or_default()
}

/// Where they cannot be told, there are none.
fn ids(current: &OsStr, which: Which) -> Option<Vec<CompletionCandidate>> {
    let current = current.to_str()?;
    let nodes = Nodes::find(&named(&env::args_os().collect::<Vec<_>>())).ok()?;
    let lists = nodes.iter().filter_map(|node| node.list(&Patterns::default(), which).ok());
    let ids: BTreeSet<_> = lists.flatten().collect();
    let ids = ids.iter().map(|id| id.as_str()).filter(|id| id.starts_with(current));
    Some(ids.filter(|id| is_plain(id)).map(CompletionCandidate::new).collect())
}

/// Whether a shell takes `id` for nothing but a word. It puts what it is told on the line as it is, and ids are chosen by others.
fn is_plain(id: &str) -> bool {
    !id.starts_with('-') && id.chars().all(|c| c.is_ascii_alphanumeric() || "._-+@%,".contains(c))
}

/// The roots or the daemon that are named on the line.
fn named(words: &[OsString]) -> NodeArg {
    let values = |option: &'static str| {
        words.iter().zip(1..).filter_map(move |(word, next)| {
            match word.as_bytes().strip_prefix(option.as_bytes())? {
                [] => words.get(next).map(OsString::as_os_str),
                value => value.strip_prefix(b"=").map(OsStr::from_bytes),
            }
        })
    };
    let mut arg = NodeArg::default();
    arg.roots.roots = values("--root").map(PathBuf::from).collect();
    #[cfg(feature = "net")]
    {
        arg.address = values("--address").next().and_then(|text| text.to_str()?.parse().ok());
    }
    arg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_that_is_named_on_the_line_is_looked_in() {
        for (line, roots) in [
            ("dewar -- dewar kill --root /r x", &["/r"][..]),
            ("dewar -- dewar kill x --root=/r", &["/r"]),
            ("dewar -- dewar kill --root /r x --root=/s --rootless", &["/r", "/s"]),
            ("dewar", &[]),
        ] {
            let words: Vec<_> = line.split(' ').map(OsString::from).collect();
            let roots: Vec<_> = roots.iter().map(PathBuf::from).collect();
            assert_eq!(named(&words).roots.roots, roots, "{line}");
        }
    }

    /// attack 47: an id is no command.
    #[test]
    fn an_id_that_a_shell_would_act_on_is_not_offered() {
        assert!(is_plain("web-20260801-093000.123456"));
        for id in ["a;reboot", "$(reboot)", "`x`", "a|b", "a&", "*", "~", "-rf", "a'b", "ä"] {
            assert!(!is_plain(id), "{id}");
        }
    }
}
