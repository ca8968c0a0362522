//! What is tested, and its tests, built by cargo.

use std::collections::HashMap;
use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::boots::Suite;
use crate::tool::{self, ToolError};

/// Where things are on this host.
#[derive(Debug)]
pub(crate) struct Place {
    /// The repository.
    pub(crate) repository: PathBuf,
    /// Holds whatever we keep: kernels, images, logs.
    pub(crate) cache: PathBuf,
}

impl Place {
    /// Beside what cargo builds, wherever that is.
    pub(crate) fn find() -> io::Result<Self> {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
        // `<target>/<profile>/vm-tests`
        let target = env::current_exe()?.ancestors().nth(2).map(Path::to_owned);
        let target =
            target.ok_or_else(|| io::Error::other("not in a target directory of cargo"))?;
        Ok(Self { repository, cache: target.join("vm") })
    }
}

/// What cargo has built: the programs by name.
#[derive(Debug)]
pub(crate) struct Built(HashMap<String, PathBuf>);

/// Why there is nothing to boot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    #[error("cargo {0:?} failed")]
    Cargo(Vec<String>),
    #[error("start cargo")]
    Start(#[source] io::Error),
    #[error("cargo did not say where {0} is")]
    NotBuilt(&'static str),
    #[error(transparent)]
    List(#[from] ToolError),
}

/// Builds everything, both packages at once: each by itself has dependencies with other features, and dewar would be built twice. What `cargo
/// test` has built is of use here too, as long as no feature is wanted here only. `shipped`: what is timed is as it is shipped, and not
/// as it is tested.
pub(crate) fn all(place: &Place, shipped: bool) -> Result<Built, BuildError> {
    let mut built = HashMap::new();
    let guest = ["build", "-p", "vm-tests", "--bin", "guest-init", "--test", "guest"];
    cargo(place, &[&guest[..], &["-p", "dewar", "--test", "it"]].concat(), &mut built)?;
    if shipped {
        // What of dewar the tests call is mostly the kernel's time: it is not worth minutes of the linker's.
        let quickly = ["--config", "profile.release.lto=false"];
        cargo(place, &[&guest[..], &["--release"], &quickly].concat(), &mut built)?;
        cargo(place, &["build", "--release"], &mut built)?;
    }
    Ok(Built(built))
}

fn cargo(
    place: &Place,
    arguments: &[&str],
    built: &mut HashMap<String, PathBuf>,
) -> Result<(), BuildError> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // Those that `cargo run` set for us are not for what is built now: ring is built anew where they differ, and all that needs it.
    for (name, _) in env::vars_os() {
        let ours = name.to_string_lossy();
        if ours.starts_with("CARGO_PKG_") || ours.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    let output = command
        .args(arguments)
        .args(["--locked", "--message-format=json-render-diagnostics"])
        .current_dir(&place.repository)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(BuildError::Start)?;
    if !output.status.success() {
        return Err(BuildError::Cargo(arguments.iter().copied().map(str::to_owned).collect()));
    }
    for line in output.stdout.split(|byte| *byte == b'\n') {
        let message: Value = serde_json::from_slice(line).unwrap_or_default();
        if let (Some(name), Some(executable)) =
            (message["target"]["name"].as_str(), message["executable"].as_str())
        {
            built.insert(name.to_owned(), PathBuf::from(executable));
        }
    }
    Ok(())
}

impl Built {
    /// Where a program is.
    pub(crate) fn program(&self, name: &'static str) -> Result<&Path, BuildError> {
        self.0.get(name).map(PathBuf::as_path).ok_or(BuildError::NotBuilt(name))
    }

    /// Names of the tests of a suite, without those that are ignored: they are parts of others.
    pub(crate) fn tests(&self, suite: Suite) -> Result<Vec<String>, BuildError> {
        let program = self.program(suite.name())?;
        let list = |more: &[&str]| {
            let mut command = Command::new(program);
            tool::text(command.args(["--list", "--format", "terse"]).args(more))
        };
        let names = |text: String| -> Vec<String> {
            text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
        };
        let ignored = names(list(&["--ignored"])?);
        let all = names(list(&[])?).into_iter();
        Ok(all.filter(|test| !ignored.contains(test)).collect())
    }
}
