//! Debian's kernels, fetched by apt and unpacked beside what cargo builds; nothing is installed.
//!
//! This is the only step that needs a network, and only while the newest kernel that apt knows of is not here yet.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::build::Place;
use crate::tool::{self, ToolError};

/// A series of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Series {
    /// Debian 12's own. It still has the v1 controllers of memory and cpusets.
    V6_1,
    /// The newer one in Debian 12's security archive.
    V6_12,
}

impl Series {
    /// The package that depends on the newest of the series.
    fn meta_package(self) -> &'static str {
        match self {
            Self::V6_1 => "linux-image-cloud-amd64",
            Self::V6_12 => "linux-image-6.12-cloud-amd64",
        }
    }

    /// What the names of its packages begin with.
    fn prefix(self) -> &'static str {
        match self {
            Self::V6_1 => "linux-image-6.1.",
            Self::V6_12 => "linux-image-6.12.",
        }
    }
}

/// A kernel that can be booted.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) series: Series,
    /// `vmlinuz`.
    pub(crate) image: PathBuf,
    /// Holds its modules, in directories.
    pub(crate) modules: PathBuf,
}

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    #[error("apt knows no {0}: run `apt-get update` on Debian 12 with its security archive")]
    Unknown(&'static str),
    #[error("fetch {package}")]
    Fetch {
        package: String,
        #[source]
        error: ToolError,
    },
    #[error("{}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("{} has no vmlinuz and modules of one kernel", .0.display())]
    Incomplete(PathBuf),
}

/// All kernels that are booted, fetched where they are missing.
pub(crate) fn fetch(place: &Place) -> Result<Vec<Kernel>, KernelError> {
    let cache = place.cache.join("kernels");
    create(&cache)?;
    [Series::V6_1, Series::V6_12].map(|series| find(series, &cache)).into_iter().collect()
}

fn create(directory: &Path) -> Result<(), KernelError> {
    fs::create_dir_all(directory).map_err(|error| at(directory, error))
}

fn at(path: &Path, error: io::Error) -> KernelError {
    KernelError::Io { path: path.to_owned(), error }
}

/// The newest that apt knows of; without apt's lists one that is here already.
fn find(series: Series, cache: &Path) -> Result<Kernel, KernelError> {
    let directory = match newest(series) {
        Some(package) => {
            let directory = cache.join(&package);
            if !directory.exists() {
                unpack(&package, &directory)?;
            }
            directory
        }
        None => cached(series, cache).ok_or(KernelError::Unknown(series.meta_package()))?,
    };
    open(series, &directory)
}

fn newest(series: Series) -> Option<String> {
    let mut command = Command::new("apt-cache");
    let told = tool::text(command.args(["depends", series.meta_package()])).ok()?;
    let depends = told.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    depends.into_iter().find(|package| package.starts_with(series.prefix())).map(str::to_owned)
}

fn cached(series: Series, cache: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(cache).ok()?.flatten().map(|entry| entry.path());
    let name = |path: &PathBuf| path.file_name()?.to_str().map(str::to_owned);
    let of_series = |path: &PathBuf| {
        path.extension().is_none_or(|extension| extension != PART)
            && name(path).is_some_and(|name| name.starts_with(series.prefix()))
    };
    entries.into_iter().filter(of_series).max()
}

/// Extension of a directory that is not complete.
const PART: &str = "part";

/// Fetches a package and unpacks it to `directory`, which is complete once it is there.
fn unpack(package: &str, directory: &Path) -> Result<(), KernelError> {
    eprintln!("fetching {package}");
    let part = directory.with_file_name(format!("{package}.{PART}"));
    let _ = fs::remove_dir_all(&part);
    create(&part)?;
    let fetch = |error| KernelError::Fetch { package: package.to_owned(), error };
    // As root apt would give up its rights, and then cannot write here.
    let mut apt = Command::new("apt-get");
    apt.args(["-q", "-o", "APT::Sandbox::User=root", "download", package]).current_dir(&part);
    tool::output(&mut apt).map_err(fetch)?;
    for entry in fs::read_dir(&part).map_err(|error| at(&part, error))?.flatten() {
        let archive = entry.path();
        tool::output(Command::new("dpkg").arg("-x").arg(&archive).arg(&part)).map_err(fetch)?;
        fs::remove_file(&archive).map_err(|error| at(&archive, error))?;
    }
    fs::rename(&part, directory).map_err(|error| at(directory, error))
}

fn open(series: Series, directory: &Path) -> Result<Kernel, KernelError> {
    let incomplete = || KernelError::Incomplete(directory.to_owned());
    let entries = |part: &str| {
        let entries = fs::read_dir(directory.join(part)).map_err(|_| incomplete())?;
        Ok(entries.flatten().map(|entry| entry.path()).collect::<Vec<_>>())
    };
    let is_image = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"vmlinuz-"))
    };
    let image = entries("boot")?.into_iter().find(is_image).ok_or_else(incomplete)?;
    let [modules] = <[PathBuf; 1]>::try_from(entries("lib/modules")?).map_err(|_| incomplete())?;
    Ok(Kernel { series, image, modules })
}
