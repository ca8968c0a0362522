//! A small Debian with systemd, for the boot on which systemd is process 1.
//!
//! mmdebstrap makes it once, as a tar archive, and needs a network and no root for it. The guest unpacks it in memory: then
//! its files belong to whom they should without anybody on the host having to be root.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::build::Place;
use crate::tool::{self, ToolError};

/// What is installed beyond the least: a service manager, its users' managers, two runtimes of containers, and podman, with the
/// smallest of what it takes for a network.
const PACKAGES: &str =
    "systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,crun,runc,podman,netavark,procps";

/// What no test reads.
const LEFT_OUT: [&str; 3] = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"];

/// The release, which is that of the kernels and of the host on which the programs are built.
const RELEASE: &str = "bookworm";

/// Why there is no such archive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DebianError {
    #[error("make a small Debian")]
    Make(#[source] ToolError),
    #[error("{}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
}

/// The archive; made if it is missing, or made otherwise than it would be now.
pub(crate) fn fetch(place: &Place) -> Result<PathBuf, DebianError> {
    let directory = place.cache.join("debian");
    let (archive, made_by) = (directory.join("root.tar"), directory.join("recipe"));
    let recipe = recipe();
    if archive.exists()
        && fs::read_to_string(&made_by).is_ok_and(|made_by| made_by == recipe.join("\n"))
    {
        return Ok(archive);
    }
    eprintln!("making a small Debian");
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| DebianError::Io { path, error }
    };
    fs::create_dir_all(&directory).map_err(at(&directory))?;
    let part = directory.join("part.tar");
    let mut mmdebstrap = Command::new("mmdebstrap");
    tool::output(mmdebstrap.args(&recipe).arg(RELEASE).arg(&part)).map_err(DebianError::Make)?;
    fs::rename(&part, &archive).map_err(at(&archive))?;
    fs::write(&made_by, recipe.join("\n")).map_err(at(&made_by))?;
    Ok(archive)
}

fn recipe() -> Vec<String> {
    let mut recipe = vec![
        "--quiet".to_owned(),
        "--variant=minbase".to_owned(),
        format!("--include={PACKAGES}"),
        "--aptopt=APT::Install-Recommends \"false\"".to_owned(),
    ];
    recipe.extend(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")));
    recipe
}
