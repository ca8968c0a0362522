//! Which modules a kernel needs for what it does not have built in, and in which order.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tool::{self, ToolError};

/// Why a module cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModuleError {
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("this kernel has no module {0}, and does not have it built in")]
    Missing(String),
    #[error("unpack {}", path.display())]
    Unpack {
        path: PathBuf,
        #[source]
        error: ToolError,
    },
}

/// A module, unpacked.
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

/// The modules `wanted` of the kernel whose modules are in `directory`, each after those that it needs; without those
/// that are built in.
pub(crate) fn load_order(directory: &Path, wanted: &[&str]) -> Result<Vec<Module>, ModuleError> {
    let builtin = directory.join("modules.builtin");
    let builtin =
        fs::read_to_string(&builtin).map_err(|error| ModuleError::Read { path: builtin, error })?;
    let builtin = builtin.lines().map(|line| name(Path::new(line))).collect();
    let mut search = Search { builtin, files: HashMap::new(), found: Vec::new() };
    search.index(directory);
    for module in wanted {
        search.need(module)?;
    }
    Ok(search.found)
}

struct Search {
    builtin: Vec<String>,
    files: HashMap<String, PathBuf>,
    found: Vec<Module>,
}

impl Search {
    fn index(&mut self, directory: &Path) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                self.index(&path);
            } else {
                self.files.insert(name(&path), path);
            }
        }
    }

    fn need(&mut self, wanted: &str) -> Result<(), ModuleError> {
        let is_there = self.builtin.iter().any(|module| module == wanted)
            || self.found.iter().any(|module| module.name == wanted);
        if is_there {
            return Ok(());
        }
        let path = self.files.get(wanted).ok_or_else(|| ModuleError::Missing(wanted.to_owned()))?;
        let content = content(path)?;
        for needed in needs(&content) {
            self.need(&needed)?;
        }
        self.found.push(Module { name: wanted.to_owned(), content });
        Ok(())
    }
}

/// `virtio_console` of `…/virtio-console.ko.xz`: the kernel takes `-` for `_` in names of modules.
fn name(path: &Path) -> String {
    let file = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

fn content(path: &Path) -> Result<Vec<u8>, ModuleError> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        return tool::output(Command::new("busybox").arg("xzcat").arg(path))
            .map_err(|error| ModuleError::Unpack { path: path.to_owned(), error });
    }
    fs::read(path).map_err(|error| ModuleError::Read { path: path.to_owned(), error })
}

/// What a module says of itself in its `.modinfo`: `depends=a,b`, between NULs.
fn needs(content: &[u8]) -> Vec<String> {
    let mut fields = content.split(|byte| *byte == 0);
    let depends = fields.find_map(|field| field.strip_prefix(b"depends="));
    let depends = String::from_utf8_lossy(depends.unwrap_or_default());
    depends.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_what_it_needs() {
        assert_eq!(
            needs(b"\x7fELF\0license=GPL\0depends=virtio,virtio-ring\0x"),
            ["virtio", "virtio_ring"]
        );
        assert_eq!(needs(b"\x7fELF\0depends=\0x"), [""; 0]);
        assert_eq!(needs(b"\x7fELF"), [""; 0]);
    }

    #[test]
    fn a_module_has_the_name_that_the_kernel_gives_it() {
        assert_eq!(name(Path::new("kernel/drivers/char/hw_random/virtio-rng.ko.xz")), "virtio_rng");
    }
}
