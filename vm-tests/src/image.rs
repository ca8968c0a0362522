//! The files of the guest.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use vm_tests::place::{ENTER, HOST, MODULES, SUITES};

use crate::boots::Suite;
use crate::build::{BuildError, Built, Place};
use crate::cpio::{self, Entry};
use crate::kernel::Kernel;
use crate::modules::{self, ModuleError};
use crate::tool::{self, ToolError};

/// Directories that are there from the beginning.
const DIRECTORIES: [&str; 13] = [
    "dev",
    "etc",
    "home",
    "mnt",
    "proc",
    "root",
    "run",
    "suites",
    "sys",
    "tmp",
    "usr",
    "usr/lib64",
    "var/lib/dewar",
];

/// Directories that moved to `/usr`: where, and to what.
const MERGED: [(&str, &str); 4] =
    [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")];

/// Packages of the host whose programs are taken instead of busybox's: what a command line finds on any Debian.
const PACKAGES: [&str; 5] = ["bash", "coreutils", "grep", "procps", "sed"];

/// Programs of the host that are taken beyond those.
const PROGRAMS: [&str; 8] = [
    "/usr/bin/chattr",
    "/usr/bin/flock",
    "/usr/bin/ldd",
    "/usr/bin/prlimit",
    "/usr/bin/setpriv",
    "/usr/bin/setsid",
    "/usr/bin/taskset",
    "/usr/sbin/mke2fs",
];

/// Modules that a guest needs beyond what is built in; on a host the last two are loaded for whoever asks for them.
const WANTED: [&str; 6] =
    ["virtio_pci", "virtio_blk", "virtio_console", "loop", "tcp_diag", "quota_v2"];

/// Files of `/etc`, as on any host.
const ETC: [(&str, &str); 5] = [
    (
        "passwd",
        "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/:/bin/false\ntester:x:1000:1000::/home/tester:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    ),
    (
        "group",
        "root:x:0:\ndaemon:x:1:\ntty:x:5:\ntester:x:1000:\nshared:x:2000:tester\nnogroup:x:65534:\n",
    ),
    ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
    ("hosts", "127.0.0.1 localhost\n"),
    ("hostname", "guest\n"),
];

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("{}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Module(#[from] ModuleError),
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// The files of a guest, by name without `/` before it.
#[derive(Debug, Default, Clone)]
pub(crate) struct Image(BTreeMap<String, Entry>);

impl Image {
    /// What any guest has: programs, libraries, `dewar`, the tests.
    pub(crate) fn base(place: &Place, built: &Built) -> Result<Self, ImageError> {
        let mut image = Self::default();
        for directory in DIRECTORIES {
            image.directory(directory, 0o755);
        }
        for (from, to) in MERGED {
            image.0.insert(from.to_owned(), Entry::Link { to: to.to_owned() });
        }
        // The kernel opens it before anything is mounted.
        image
            .0
            .insert("dev/console".to_owned(), Entry::Character { mode: 0o600, major: 5, minor: 1 });
        for (name, content) in ETC {
            image.file(&format!("/etc/{name}"), 0o644, content.as_bytes().to_vec());
        }
        image.busybox()?;
        let mut packages = Command::new("dpkg");
        let listed = tool::text(packages.arg("--listfiles").args(PACKAGES))?;
        let listed = listed.lines().filter(|path| path.contains("bin/"));
        for program in listed.chain(PROGRAMS).filter(|path| Path::new(path).is_file()) {
            image.program(Path::new(program), program)?;
        }
        image.built(place, built)?;
        Ok(image)
    }

    /// Our programs, and, where they are on the host, links to them and the examples: the tests have these paths built in.
    fn built(&mut self, place: &Place, built: &Built) -> Result<(), ImageError> {
        for name in ["dewar", "dewar-full", "dewar-runner"] {
            let (host, guest) = (built.program(name)?, format!("/usr/bin/{name}"));
            self.stripped(place, host, &guest)?;
            self.link(&format!("{HOST}{}", host.display()), &guest);
        }
        for suite in [Suite::Guest, Suite::It] {
            let program = built.program(suite.name())?;
            self.stripped(place, program, &format!("{SUITES}/{}", suite.name()))?;
        }
        self.stripped(place, built.program("guest-init")?, "/init")?;
        self.tree(&place.repository.join("examples"))
    }

    /// Busybox, with all that it can be.
    fn busybox(&mut self) -> Result<(), ImageError> {
        let busybox = "/usr/bin/busybox";
        let host = Path::new("/bin/busybox");
        self.program(host, busybox)?;
        for applet in tool::text(Command::new(host).arg("--list"))?.lines() {
            self.0
                .entry(format!("usr/bin/{applet}"))
                .or_insert(Entry::Link { to: busybox.to_owned() });
        }
        Ok(())
    }

    /// Adds the modules that `kernel` needs here.
    pub(crate) fn with_modules(mut self, kernel: &Kernel) -> Result<Self, ImageError> {
        self.directory(MODULES, 0o755);
        for (number, module) in
            modules::load_order(&kernel.modules, &WANTED)?.into_iter().enumerate()
        {
            self.file(&format!("{MODULES}/{number:02}-{}.ko", module.name), 0o644, module.content);
        }
        Ok(self)
    }

    /// Has the guest enter the Debian on its disk once its modules are loaded.
    pub(crate) fn entering_debian(mut self) -> Self {
        self.file(ENTER, 0o755, include_bytes!("enter-debian.sh").to_vec());
        self
    }

    /// The archive that the kernel unpacks. Not compressed: QEMU hands it over as it is, and the guest is slow.
    pub(crate) fn archive(&self) -> Vec<u8> {
        cpio::archive(self.0.iter().map(|(name, entry)| (name.as_str(), entry)))
    }

    /// A directory, and those above it.
    fn directory(&mut self, path: &str, mode: u32) {
        let path = path.trim_start_matches('/');
        if let Some((parent, _)) = path.rsplit_once('/')
            && !self.0.contains_key(parent)
        {
            self.directory(parent, mode);
        }
        self.0.entry(path.to_owned()).or_insert(Entry::Directory { mode });
    }

    fn file(&mut self, path: &str, mode: u32, content: Vec<u8>) {
        self.insert(path, Entry::File { mode, content });
    }

    fn link(&mut self, path: &str, to: &str) {
        self.insert(path, Entry::Link { to: to.to_owned() });
    }

    fn insert(&mut self, path: &str, entry: Entry) {
        let path = merged(path);
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent, 0o755);
        }
        self.0.insert(path, entry);
    }

    /// A program of the host, and the libraries that it loads.
    fn program(&mut self, host: &Path, guest: &str) -> Result<(), ImageError> {
        self.file(guest, 0o755, read(host)?);
        self.libraries(host)
    }

    /// The same without what only a debugger needs, which is most of it.
    fn stripped(&mut self, place: &Place, host: &Path, guest: &str) -> Result<(), ImageError> {
        let small = place.cache.join("stripped");
        tool::output(Command::new("strip").arg("--strip-debug").arg("-o").arg(&small).arg(host))?;
        self.program(&small, guest)
    }

    /// The libraries of a program, as the loader of the host finds them: it is asked, so as not to be second-guessed.
    fn libraries(&mut self, program: &Path) -> Result<(), ImageError> {
        // Of a static program and of a script it says that it is none of its own.
        let told = tool::text(Command::new("ldd").arg(program)).unwrap_or_default();
        for line in told.lines() {
            // `\tlibc.so.6 => /lib/…/libc.so.6 (0x…)`, or `\t/lib64/ld-linux-x86-64.so.2 (0x…)`
            let path = line.split(' ').map(str::trim).find(|word| word.starts_with('/'));
            if let Some(path) = path.filter(|path| !self.0.contains_key(&merged(path))) {
                self.file(path, 0o755, read(Path::new(path))?);
            }
        }
        Ok(())
    }

    /// A directory of the host with its files, to be laid out at its own path.
    fn tree(&mut self, directory: &Path) -> Result<(), ImageError> {
        let at = |error| ImageError::Io { path: directory.to_owned(), error };
        for entry in fs::read_dir(directory).map_err(at)? {
            let path = entry.map_err(at)?.path();
            if path.is_dir() {
                self.tree(&path)?;
            } else {
                let mode = fs::metadata(&path).map_err(at)?.permissions().mode() & 0o777;
                self.file(&format!("{HOST}{}", path.display()), mode, read(&path)?);
            }
        }
        Ok(())
    }
}

/// The name in the image of a path of the host: without links from before `/usr` had everything.
fn merged(path: &str) -> String {
    let path = path.trim_start_matches('/');
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    match MERGED.iter().find(|(from, _)| *from == first) {
        Some((_, to)) if !rest.is_empty() => format!("{to}/{rest}"),
        _ => path.to_owned(),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    fs::read(path).map_err(|error| ImageError::Io { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_where_the_loader_finds_it() {
        assert_eq!(merged("/lib64/ld-linux-x86-64.so.2"), "usr/lib64/ld-linux-x86-64.so.2");
        assert_eq!(merged("/lib/x86_64-linux-gnu/libc.so.6"), "usr/lib/x86_64-linux-gnu/libc.so.6");
        assert_eq!(merged("/library/a"), "library/a");
        assert_eq!(merged("/bin"), "bin");
    }

    #[test]
    fn a_directory_stands_before_what_is_in_it() {
        let mut image = Image::default();

        image.file("/a/b-/c", 0o644, Vec::new());
        image.file("/a/b/c", 0o644, Vec::new());

        let names: Vec<_> = image.0.keys().map(String::as_str).collect();
        assert_eq!(names, ["a", "a/b", "a/b-", "a/b-/c", "a/b/c"]);
    }
}
