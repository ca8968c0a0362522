//! The task that a command is about: from a task file, or from a command line.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read};
use std::path::Path;

use super::args::Bindings;
use super::failure::Failure;
use super::place;
use crate::identity::{self, IdentityError};
use crate::proto::Identity;
use crate::request;
use crate::task::file::{self, Accepted, MAX_FILE_BYTES};

/// What the errors of a command line call their file.
const COMMAND_LINE: &str = "command line";
/// What they call standard input.
const STDIN: &str = "standard input";

/// A task with the user that it is for.
#[derive(Debug)]
pub(super) struct Asked {
    /// The task.
    pub(super) accepted: Accepted,
    /// Who its runs are.
    pub(super) identity: Identity,
}

/// Reads the task file at `path`; `-` is standard input.
///
/// # Errors
///
/// [`Failure`].
pub(super) fn task_file(path: &Path, bindings: &Bindings) -> Result<Asked, Failure> {
    let (source, name) = source(path)?;
    task(&source, &name, bindings)
}

/// The bytes of the task file at `path`, and what errors call it.
///
/// # Errors
///
/// [`Failure::Usage`] if it cannot be read, or is too long.
pub(super) fn source(path: &Path) -> Result<(Vec<u8>, String), Failure> {
    if path.as_os_str() == "-" {
        let mut source = Vec::new();
        let limit = MAX_FILE_BYTES as u64 + 1;
        let read = io::stdin().lock().take(limit).read_to_end(&mut source);
        read.map_err(|error| Failure::Usage(format!("{STDIN}: {error}")))?;
        return Ok((source, STDIN.to_owned()));
    }
    let source = file::read(path).map_err(|error| Failure::Usage(crate::causes::chain(&error)))?;
    Ok((source, path.display().to_string()))
}

/// The task of one process, both called `name`, that runs `command`.
///
/// # Errors
///
/// [`Failure`].
pub(super) fn simple_task(
    command: &[OsString],
    name: &str,
    max_failures: u32,
    bindings: &Bindings,
) -> Result<Asked, Failure> {
    let words = command
        .iter()
        .map(|word| word.to_str().ok_or_else(|| Failure::Usage(format!("{word:?} is not UTF-8"))));
    let cmdline = cmdline(&words.collect::<Result<Vec<_>, _>>()?);
    // As a task file, so that templates and rules are those of task files.
    let source = serde_json::json!({
        "name": name,
        "processes": [{"name": name, "cmdline": cmdline, "max_failures": max_failures}],
    });
    task(source.to_string().as_bytes(), COMMAND_LINE, bindings)
}

fn task(source: &[u8], name: &str, bindings: &Bindings) -> Result<Asked, Failure> {
    let caller = identity::current().map_err(no_identity)?;
    let user = bindings.user.clone().unwrap_or_else(|| caller.user.clone());
    let accepted = file::parse(source, name, &known(bindings, user)?)
        .map_err(|report| Failure::Usage(report.to_string()))?;
    let identity = match bindings.user.as_deref().or(accepted.spec.user.as_deref()) {
        None => caller,
        user => identity::resolve(user).map_err(no_identity)?,
    };
    Ok(Asked { accepted, identity })
}

/// A user that is not there is bad use (S39); one that may not be taken cannot be had here.
fn no_identity(error: IdentityError) -> Failure {
    match error {
        IdentityError::Unknown { .. } => Failure::Usage(error.to_string()),
        error => Failure::unavailable(&error),
    }
}

fn known(bindings: &Bindings, user: String) -> Result<file::Bindings, Failure> {
    let task_id = bindings.task_id.as_deref().map(place::task_id).transpose()?;
    let ports = bindings.ports.iter().map(|(name, port)| (name.clone(), port.get()));
    Ok(file::Bindings {
        task_id,
        id_suffix: request::id_suffix(),
        user,
        ports: unique("-P", ports)?,
        variables: unique("-E", bindings.bindings.iter().cloned())?,
    })
}

/// `pairs` as a map.
///
/// # Errors
///
/// [`Failure::Usage`] names what is given twice.
pub(super) fn unique<T>(
    option: &str,
    pairs: impl Iterator<Item = (String, T)>,
) -> Result<BTreeMap<String, T>, Failure> {
    let mut map = BTreeMap::new();
    for (name, value) in pairs {
        if map.contains_key(&name) {
            return Err(Failure::Usage(format!("{option} {name:?} is given twice")));
        }
        map.insert(name, value);
    }
    Ok(map)
}

/// A command line for bash: a single word is one already; several arrive at the program as they are.
fn cmdline(words: &[&str]) -> String {
    match words {
        [line] => (*line).to_owned(),
        words => words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
    }
}

/// `word` for bash: within single quotes everything stands for itself but the quote.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+=./:,@%^".contains(c);
    // A first word with `=` would be an assignment, `~` and the like are not plain.
    if !word.is_empty() && word.chars().all(plain) && !word.contains('=') {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_single_word_is_a_command_line_and_several_arrive_as_they_are() {
        assert_eq!(cmdline(&["sleep 1; echo $x"]), "sleep 1; echo $x");
        assert_eq!(cmdline(&["exit", "3"]), "exit 3");

        let words = ["a b", "$HOME", "it's", "", "*", "x=1", "~", "\n", "{a,b}", "!", "#"];
        let line = cmdline(&[&["printf", "%s\\0"], &words[..]].concat());
        let output = Command::new("bash").args(["-c", &line]).output().unwrap();
        assert_eq!(output.stdout, words.map(|word| format!("{word}\0")).concat().into_bytes());
    }

    fn bindings() -> Bindings {
        Bindings { ports: Vec::new(), bindings: Vec::new(), task_id: None, user: None }
    }

    #[test]
    fn a_command_is_a_task_of_one_process_with_templates() {
        let port = ("http".to_owned(), 8080.try_into().unwrap());
        let bindings = Bindings { ports: vec![port], ..bindings() };

        let asked =
            simple_task(&["serve {{thermos.ports[http]}}".into()], "web", 3, &bindings).unwrap();

        let spec = &asked.accepted.spec;
        assert_eq!((spec.name.as_str(), spec.processes.len()), ("web", 1));
        assert_eq!(spec.processes[0].cmdline, "serve 8080");
        assert_eq!(spec.processes[0].max_failures, 3);
        assert!(asked.accepted.task_id.as_str().starts_with("web-20"));
    }

    /// S39.
    #[test]
    fn a_user_that_does_not_exist_is_bad_use() {
        let bindings = Bindings { user: Some("nobody-here".to_owned()), ..bindings() };

        let failure = simple_task(&["true".into()], "x", 1, &bindings).unwrap_err();

        assert_eq!(failure.status(), 2);
        assert!(failure.to_string().contains("nobody-here"), "{failure}");
    }

    #[test]
    fn what_is_given_twice_is_bad_use() {
        let pair = |value: &str| ("a".to_owned(), value.to_owned());
        let bindings = Bindings { bindings: vec![pair("1"), pair("2")], ..bindings() };

        let failure = simple_task(&["true".into()], "x", 1, &bindings).unwrap_err();

        assert_eq!(failure.to_string(), "-E \"a\" is given twice");
    }
}
