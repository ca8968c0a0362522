//! Reads a task file from disk, within its size limit. The only I/O of this module.
#![allow(clippy::disallowed_methods, reason = "reads the task file")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Largest task file in bytes.
pub const MAX_FILE_BYTES: usize = 4 << 20;

/// Why a task file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A system call failed.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// It is a directory, pipe, device or socket.
    #[error("{} is not a regular file", path.display())]
    NotRegular {
        /// The file.
        path: PathBuf,
    },
    /// It has more than [`MAX_FILE_BYTES`].
    #[error("{} has more than {MAX_FILE_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

/// The bytes of the task file at `path`.
///
/// Never blocks on a FIFO or device, and never reads more than the limit, even if the file grows.
///
/// # Errors
///
/// [`SourceError`], which names the file.
pub fn read(path: &Path) -> Result<Vec<u8>, SourceError> {
    let failed = |source| SourceError::Io { path: path.to_owned(), source };
    // Without O_NONBLOCK, opening a FIFO waits for its writer: fifo(7).
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(SourceError::NotRegular { path: path.to_owned() });
    }
    let limit = MAX_FILE_BYTES as u64;
    if metadata.len() > limit {
        return Err(SourceError::TooLarge { path: path.to_owned() });
    }
    let bytes = read_up_to(&file, metadata.len(), limit + 1).map_err(failed)?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(SourceError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

fn read_up_to(file: &File, expected: u64, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0) + 1);
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("dewar-source-{}-{name}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn file(&self) -> PathBuf {
            self.0.join("task.yaml")
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_file_of_the_limit_is_read_whole() {
        let dir = Dir::new("limit");
        fs::write(dir.file(), vec![b'#'; MAX_FILE_BYTES]).unwrap();

        assert_eq!(read(&dir.file()).unwrap().len(), MAX_FILE_BYTES);
    }

    /// attack 52: 100 MB cost nothing; the file is sparse, its bytes are never read.
    #[test]
    fn a_larger_file_is_refused_unread() {
        let dir = Dir::new("large");
        File::create(dir.file()).unwrap().set_len(1 << 40).unwrap();

        let error = read(&dir.file()).unwrap_err();

        let expected = format!("{} has more than 4194304 bytes", dir.file().display());
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_fifo_is_refused_without_waiting_for_a_writer() {
        let dir = Dir::new("fifo");
        nix::unistd::mkfifo(&dir.file(), nix::sys::stat::Mode::S_IRWXU).unwrap();

        assert!(matches!(read(&dir.file()), Err(SourceError::NotRegular { .. })));
        assert!(matches!(read(&dir.0), Err(SourceError::NotRegular { .. })));
        assert!(matches!(read(Path::new("/dev/zero")), Err(SourceError::NotRegular { .. })));
    }

    #[test]
    fn a_missing_file_is_named() {
        let dir = Dir::new("missing");

        let error = read(&dir.file()).unwrap_err();

        assert_eq!(error.to_string(), dir.file().display().to_string());
        assert!(matches!(error, SourceError::Io { source, .. }
            if source.kind() == io::ErrorKind::NotFound));
    }
}
