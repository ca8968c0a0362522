//! Writes a stream: one writer, which holds the stream's lock for as long as it lives.
//!
//! ```text
//! append ──▶ pending (memory) ──flush──▶ written (file) ──sync──▶ durable (disk)
//!               └─rollback─▶ gone
//! ```
//!
//! - A flush is one write(2) of all that is pending. Where the file system takes only a part of it, the whole frames
//!   of that part count as written, for a reader may have seen them; the part of a frame behind them is cut off again
//!   before anything else is written, and the cut is synced. What was not written stays pending: flush again when
//!   there is space, or [`Writer::rollback`].
//! - After a failed fdatasync(2) the kernel has forgotten what it could not write, and another call would say that all
//!   is well. So the writer is *poisoned*: every later call fails. Whoever recovers the stream reads it from the disk.
//! - Dropping a writer does not flush. A coordinator's writer is made before the fork and dropped in the runner after
//!   it; the coordinator's copy keeps the lock. A runner's writer must never have its descriptor duplicated: closing
//!   the duplicate would drop the lock.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};

use super::file::{self, IoError, Purpose, Refusal};
use super::frame::{self, LengthError};
use super::identity::Identity;
use super::lock::Locked;
use super::paths::Root;
use super::reader::{Cursor, Position, ReadError, Tail, refuse, retry};
use crate::proto::{Record, record::Kind};
use crate::sys::lock;

/// Space is reserved in steps of this many bytes: the usual block of a file system.
const RESERVE_STEP: u64 = 4 << 10;
/// A buffer that grew beyond this for a long record is given back.
const PENDING_KEPT: usize = 64 << 10;

/// A moment, on the two clocks that a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Instant {
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub boot_nanos: u64,
    /// Wall clock, nanoseconds since 1970-01-01T00:00:00Z.
    pub unix_nanos: i64,
}

/// Why a stream cannot be written on.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Somebody else writes it.
    #[error("{} is locked by {}", path.display(), describe(*pid))]
    Held {
        /// Its path.
        path: PathBuf,
        /// Process id of the holder; `None` where the kernel does not tell.
        pid: Option<i32>,
    },
    /// It was to be created and is there.
    #[error("{} exists", path.display())]
    Exists {
        /// Its path.
        path: PathBuf,
    },
    /// It was removed while it was being locked.
    #[error("{} was removed", path.display())]
    Removed {
        /// Its path.
        path: PathBuf,
    },
    /// It holds a record of a later dewar, which this one must not act beyond.
    #[error("{}: record {seq} is of a kind that this dewar does not know", path.display())]
    UnknownRecord {
        /// Its path.
        path: PathBuf,
        /// Position of the record.
        seq: u64,
    },
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A call failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// Why a record is not in the stream, or not durable.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// There is no space: disk, quota or file size limit. What is pending can be flushed once there is.
    #[error("no space for {}", path.display())]
    NoSpace {
        /// The stream.
        path: PathBuf,
        /// Which limit.
        #[source]
        source: io::Error,
    },
    /// The record does not fit a frame.
    #[error(transparent)]
    Length(#[from] LengthError),
    /// The stream has been removed from its directory: nobody will find what is written.
    #[error("{} was removed", path.display())]
    Removed {
        /// The stream.
        path: PathBuf,
    },
    /// A sync failed: nothing that was not durable before it is known to be there.
    #[error("{} could not be synced, and is given up", path.display())]
    Poisoned {
        /// The stream.
        path: PathBuf,
    },
    /// A call failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

fn describe(pid: Option<i32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// Appends to one stream.
#[derive(Debug)]
pub struct Writer {
    locked: Locked,
    path: PathBuf,
    identity: Identity,
    seed: u32,
    /// Position of the next record.
    seq: u64,
    /// End of the last whole frame in the file.
    end: u64,
    pending: Pending,
    /// End of the space that is reserved; meaningful beyond `end`.
    reserved: u64,
    state: State,
}

/// Frames that are not in the file yet.
#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    records: u64,
}

/// How the file stands.
#[derive(Debug, Default)]
struct State {
    /// A part of a frame may be beyond the end.
    ragged: bool,
    /// Something is not durable.
    dirty: bool,
    /// The entry in the directory may not be durable.
    unlisted: bool,
    /// A sync has failed.
    poisoned: bool,
}

impl Writer {
    /// Creates the stream `identity`, takes its lock and writes its header.
    ///
    /// The directory must exist ([`Root::create_checkpoint`]). Nothing is durable before [`Writer::sync`].
    ///
    /// # Errors
    ///
    /// [`OpenError::Exists`]; [`OpenError::Held`] if somebody was quicker to lock what was created.
    pub fn create(root: &Root, identity: Identity) -> Result<Self, OpenError> {
        let path = root.stream(&identity);
        let file = match file::open_stream(&path, Purpose::Create) {
            Ok(file) => file,
            Err(Refusal::Io(error)) if error.source.kind() == io::ErrorKind::AlreadyExists => {
                return Err(OpenError::Exists { path });
            }
            Err(refusal) => return Err(refuse(path, refusal).into()),
        };
        let locked = Locked::take(file, &path, &identity.stream)?;
        let mut writer = Self::new(locked, path, identity);
        // Somebody may have found it before it was locked, and have written on it.
        if writer.metadata()?.len() > 0 {
            return Err(OpenError::Exists { path: writer.path });
        }
        if let Err(error) = writer.write_header() {
            // An empty stream is in nobody's way, but need not stay.
            fs::remove_file(&writer.path)
                .map_err(|source| IoError::new("unlink", &writer.path, source))?;
            return Err(error.into());
        }
        Ok(writer)
    }

    fn new(locked: Locked, path: PathBuf, identity: Identity) -> Self {
        Self {
            locked,
            path,
            identity,
            seed: 0,
            seq: 0,
            end: 0,
            pending: Pending::default(),
            reserved: 0,
            // What somebody wrote before us, and the entry that he made, may not be durable.
            state: State { dirty: true, unlisted: true, ..State::default() },
        }
    }

    /// Writes the header of an empty file.
    fn write_header(&mut self) -> Result<(), WriteError> {
        let bytes = frame::encode_header(&self.identity);
        let (written, result) = write(self.locked.file(), &bytes, 0);
        if let Err(source) = result {
            self.state.ragged = written > 0;
            self.trim()?;
            return Err(self.write_error("pwrite", source));
        }
        self.seed = frame::header_seed(&bytes);
        self.end = bytes.len() as u64;
        Ok(())
    }

    /// Appends a record in memory, and returns it with its position.
    ///
    /// # Errors
    ///
    /// [`WriteError::Length`], [`WriteError::Poisoned`]; nothing is appended.
    pub fn append(&mut self, kind: Kind, at: Instant) -> Result<Record, WriteError> {
        self.refuse_poisoned()?;
        let Instant { boot_nanos, unix_nanos } = at;
        let record = Record { seq: self.seq, boot_nanos, unix_nanos, kind: Some(kind) };
        frame::encode(self.seed, &record, &mut self.pending.bytes)?;
        self.pending.records += 1;
        self.seq += 1;
        Ok(record)
    }

    /// Writes what is pending, by one write(2).
    ///
    /// # Errors
    ///
    /// [`WriteError`]. Frames that fitted are written, the others stay pending, and nothing is between them.
    pub fn flush(&mut self) -> Result<(), WriteError> {
        self.refuse_poisoned()?;
        self.trim()?;
        if self.pending.bytes.is_empty() {
            return Ok(());
        }
        self.state.dirty = true;
        let (written, result) = write(self.locked.file(), &self.pending.bytes, self.end);
        let whole = self.pending.take_whole(written);
        self.end += whole as u64;
        let Err(source) = result else {
            return Ok(());
        };
        self.state.ragged = written > whole;
        let error = self.write_error("pwrite", source);
        // A file system may give back what was reserved when a write fails, and does when a file is cut.
        let reserved = std::mem::take(&mut self.reserved);
        // If this fails too, the next flush begins with it.
        self.trim()?;
        if reserved > self.end && allocate(self.locked.file(), self.end, reserved).is_ok() {
            self.reserved = reserved;
        }
        Err(error)
    }

    /// Writes what is pending and makes durable all that is written. Calls nothing if all is.
    ///
    /// The first time it makes the stream's entry in its directory durable too.
    ///
    /// # Errors
    ///
    /// As [`Writer::flush`]; [`WriteError::Removed`]. If the sync itself fails, the writer is poisoned.
    pub fn sync(&mut self) -> Result<(), WriteError> {
        self.flush()?;
        if !self.state.dirty && !self.state.unlisted {
            return Ok(());
        }
        self.sync_data()?;
        if self.state.unlisted {
            file::sync_entry(&self.path).inspect_err(|_| self.state.poisoned = true)?;
            self.state.unlisted = false;
        }
        self.refuse_removed()
    }

    /// Takes back what is pending, and returns how many records that was. The next record has their first position.
    pub fn rollback(&mut self) -> u64 {
        let Pending { records, .. } = std::mem::take(&mut self.pending);
        self.seq -= records;
        records
    }

    /// Makes sure that `bytes` more than are pending can be written although the disk fills up.
    ///
    /// Ask before doing something whose record must not fail. A file system that cannot reserve is believed to have
    /// space.
    ///
    /// # Errors
    ///
    /// [`WriteError::NoSpace`]; nothing changed.
    pub fn reserve(&mut self, bytes: u64) -> Result<(), WriteError> {
        self.refuse_poisoned()?;
        let needed = self.end + self.pending.bytes.len() as u64 + bytes;
        if needed <= self.reserved {
            return Ok(());
        }
        let until = needed.next_multiple_of(RESERVE_STEP);
        match allocate(self.locked.file(), self.end, until) {
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                self.reserved = until;
                Ok(())
            }
            Err(errno) => Err(self.write_error("fallocate", errno.into())),
        }
    }

    /// Which stream this is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The place after the last record that is written, for a reader of this stream.
    pub fn position(&self) -> Position {
        Position { offset: self.end, seq: self.seq - self.pending.records }
    }

    /// Whether something was appended that is not written.
    pub fn is_pending(&self) -> bool {
        self.pending.records > 0
    }

    /// Cuts off the part of a frame that a failed write left, durably: were the cut lost by a power cut, and what is
    /// written next kept, the rest of that part would follow it.
    fn trim(&mut self) -> Result<(), WriteError> {
        if !self.state.ragged {
            return Ok(());
        }
        self.locked
            .file()
            .set_len(self.end)
            .map_err(|source| IoError::new("ftruncate", &self.path, source))?;
        self.state.ragged = false;
        self.sync_data()
    }

    fn sync_data(&mut self) -> Result<(), WriteError> {
        if let Err(source) = self.locked.file().sync_data() {
            self.state.poisoned = true;
            return Err(IoError::new("fdatasync", &self.path, source).into());
        }
        self.state.dirty = false;
        Ok(())
    }

    fn refuse_poisoned(&self) -> Result<(), WriteError> {
        if self.state.poisoned {
            return Err(WriteError::Poisoned { path: self.path.clone() });
        }
        Ok(())
    }

    fn refuse_removed(&self) -> Result<(), WriteError> {
        if self.metadata()?.nlink() == 0 {
            return Err(WriteError::Removed { path: self.path.clone() });
        }
        Ok(())
    }

    fn metadata(&self) -> Result<Metadata, IoError> {
        let metadata = self.locked.file().metadata();
        metadata.map_err(|source| IoError::new("fstat", &self.path, source))
    }

    fn write_error(&self, call: &'static str, source: io::Error) -> WriteError {
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) => {
                WriteError::NoSpace { path: self.path.clone(), source }
            }
            _ => IoError::new(call, &self.path, source).into(),
        }
    }
}

impl AsFd for Writer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.locked.file().as_fd()
    }
}

impl Pending {
    /// Drops the whole frames in the first `written` bytes, and returns how many bytes they have.
    fn take_whole(&mut self, written: usize) -> usize {
        let mut whole = 0;
        while let Some(length) = frame::length_at(&self.bytes[whole..]) {
            if whole + length > written {
                break;
            }
            whole += length;
            self.records -= 1;
        }
        self.bytes.drain(..whole);
        if self.bytes.is_empty() && self.bytes.capacity() > PENDING_KEPT {
            self.bytes = Vec::new();
        }
        whole
    }
}

/// What [`Recovery::finish`] has recovered.
#[derive(Debug)]
pub struct Recovered {
    /// Appends after the last good record.
    pub writer: Writer,
    /// Bytes of a torn append that were cut off.
    pub dropped_bytes: u64,
}

/// A stream that is being recovered: locked, and read to its end before it is written on.
///
/// Nothing is changed before [`Recovery::finish`]: who cannot make sense of a record just drops this.
#[derive(Debug)]
pub struct Recovery {
    locked: Locked,
    identity: Identity,
    cursor: Cursor,
}

impl Recovery {
    /// Opens the stream `identity` and takes its lock.
    ///
    /// # Errors
    ///
    /// [`OpenError::Held`] if somebody writes it; [`ReadError::Missing`]; [`ReadError::Corrupt`] if it is another
    /// stream.
    pub fn open(root: &Root, identity: Identity) -> Result<Self, OpenError> {
        Self::start(root, identity, Purpose::Write)
    }

    /// As [`Recovery::open`], but makes the stream, empty, where there is none.
    ///
    /// # Errors
    ///
    /// As [`Recovery::open`].
    pub fn open_or_create(root: &Root, identity: Identity) -> Result<Self, OpenError> {
        Self::start(root, identity, Purpose::WriteOrCreate)
    }

    fn start(root: &Root, identity: Identity, purpose: Purpose) -> Result<Self, OpenError> {
        let path = root.stream(&identity);
        let file = match file::open_stream(&path, purpose) {
            Ok(file) => file,
            // To be its writer twice is to meet another writer.
            Err(Refusal::HeldHere) => {
                return Err(OpenError::Held { path, pid: Some(lock::own_pid()) });
            }
            Err(refusal) => return Err(refuse(path, refusal).into()),
        };
        let locked = Locked::take(file, &path, &identity.stream)?;
        forget_cached(locked.file(), &path)?;
        let mut cursor = Cursor::new(path, Some(identity.clone()));
        cursor.begin(locked.file())?;
        Ok(Self { locked, identity, cursor })
    }

    /// Goes to a place that a reader of this stream has reached, so that what it has read is not read again.
    pub fn seek(&mut self, position: Position) {
        self.cursor.seek(position);
    }

    /// Returns the next record, or `None` after the last.
    ///
    /// # Errors
    ///
    /// [`OpenError::UnknownRecord`]; [`ReadError::Corrupt`].
    pub fn next_record(&mut self) -> Result<Option<Record>, OpenError> {
        let record = self.cursor.next(self.locked.file())?;
        match record {
            Some(Record { seq, kind: None, .. }) => {
                Err(OpenError::UnknownRecord { path: self.cursor.path().to_owned(), seq })
            }
            record => Ok(record),
        }
    }

    /// Reads what was not read yet, cuts off a torn append, durably, and goes on behind the last record.
    ///
    /// A stream that has no header, because a crash came between its creation and its header, gets one.
    ///
    /// # Errors
    ///
    /// As [`Recovery::next_record`]; [`OpenError::Write`].
    pub fn finish(mut self) -> Result<Recovered, OpenError> {
        while self.next_record()?.is_some() {}
        let dropped_bytes = match self.cursor.tail(self.locked.file())? {
            Tail::Torn { bytes } => bytes,
            Tail::Clean | Tail::Unread => 0,
        };
        let path = self.cursor.path().to_owned();
        let mut writer = Writer::new(self.locked, path, self.identity);
        writer.state.ragged = dropped_bytes > 0;
        match self.cursor.header() {
            Some(header) => {
                let Position { offset, seq } = self.cursor.position();
                (writer.seed, writer.end, writer.seq) = (header.seed, offset, seq);
                writer.trim()?;
            }
            None => {
                writer.trim()?;
                writer.write_header()?;
            }
        }
        Ok(Recovered { writer, dropped_bytes })
    }
}

/// Makes the kernel read from the disk what it is not about to write there.
///
/// Where a sync has failed, the kernel keeps pages that never reached the disk, and calls them clean.
fn forget_cached(file: &File, path: &Path) -> Result<(), IoError> {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .map_err(|errno| IoError::new("posix_fadvise", path, errno))
}

/// Writes `bytes` at `offset`, by one call unless it is cut short, and says how many were written in any case.
fn write(file: &File, bytes: &[u8], offset: u64) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match retry(|| file.write_at(&bytes[written..], offset + written as u64)) {
            Ok(0) => return (written, Err(Errno::EIO.into())),
            Ok(more) => written += more,
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

/// Reserves the space from `start` to `end` without making the file longer.
fn allocate(file: &File, start: u64, end: u64) -> Result<(), Errno> {
    let offset = libc::off_t::try_from(start).map_err(|_| Errno::EFBIG)?;
    let length = libc::off_t::try_from(end - start).map_err(|_| Errno::EFBIG)?;
    loop {
        match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, length) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}
