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
#![allow(clippy::disallowed_methods, reason = "files of a checkpoint")]

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
use crate::sys::{self, lock};

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
            // What somebody wrote before us may not be durable, nor the entry of a stream that is made now.
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
            // A directory that could not be opened can be tried again; one that could not be synced cannot.
            file::sync_entry(&self.path)
                .inspect_err(|error| self.state.poisoned = error.is_of_sync())?;
            self.state.unlisted = false;
        }
        self.refuse_removed()
    }

    /// Makes durable what is written, but not what is pending.
    ///
    /// # Errors
    ///
    /// [`IoError`] of the sync: the writer is poisoned.
    pub fn sync_written(&mut self) -> Result<(), IoError> {
        match self.state.dirty {
            true => self.sync_data(),
            false => Ok(()),
        }
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
        let needed = bytes.saturating_add(self.end + self.pending.bytes.len() as u64);
        if needed <= self.reserved {
            return Ok(());
        }
        let until = needed.checked_next_multiple_of(RESERVE_STEP).unwrap_or(needed);
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
        Ok(self.sync_data()?)
    }

    fn sync_data(&mut self) -> Result<(), IoError> {
        if let Err(source) = self.locked.file().sync_data() {
            self.state.poisoned = true;
            return Err(IoError::new("fdatasync", &self.path, source));
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
            Some(errno) if sys::is_no_space(errno) => {
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

    /// As [`Recovery::open`], of a stream of which no sync can have failed: its creator has only just written it, and lives.
    ///
    /// # Errors
    ///
    /// As [`Recovery::open`].
    pub fn open_fresh(root: &Root, identity: Identity) -> Result<Self, OpenError> {
        Self::locked(root, identity, Purpose::Write)?.begin()
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
        let recovery = Self::locked(root, identity, purpose)?;
        // Streams of coordinators are never synced, so no sync of theirs can have failed.
        if matches!(recovery.identity.stream, super::identity::Stream::Runner) {
            forget_cached(recovery.locked.file(), recovery.cursor.path())?;
        }
        recovery.begin()
    }

    /// Opens and locks it; nothing is read.
    fn locked(root: &Root, identity: Identity, purpose: Purpose) -> Result<Self, OpenError> {
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
        let cursor = Cursor::new(path, Some(identity.clone()));
        Ok(Self { locked, identity, cursor })
    }

    /// Reads the header.
    fn begin(mut self) -> Result<Self, OpenError> {
        self.cursor.begin(self.locked.file())?;
        Ok(self)
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
                // Whoever accepted the task made the entry of its stream durable; no other stream is ever synced.
                writer.state.unlisted = false;
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

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use nix::sys::signal::{SigSet, Signal};

    use super::*;
    use crate::checkpoint::frame::{Flaw, Rest, Scan, decode_header};
    use crate::checkpoint::lock::{Holder, holder};
    use crate::checkpoint::testing::{
        Bytes, Holding, TempDir, at, coordinator, entered, given_directory, hold, launch, life,
        other_half, root, root_in, runner, stream,
    };
    use crate::proto::TaskState;

    fn create(root: &Root) -> Writer {
        Writer::create(root, runner()).unwrap()
    }

    fn append(writer: &mut Writer) -> Record {
        writer.append(entered(TaskState::Active), at(5)).unwrap()
    }

    /// The records of a file that must hold nothing else.
    fn records(root: &Root, identity: &Identity) -> Vec<Record> {
        let bytes = fs::read(root.stream(identity)).unwrap();
        let mut scan = Scan::new(&decode_header(&bytes).unwrap(), &bytes);
        let records = scan.by_ref().collect();
        assert_eq!(scan.rest(), Rest::Empty);
        records
    }

    fn recover(root: &Root) -> Result<(Vec<Record>, Recovered), OpenError> {
        let mut recovery = Recovery::open(root, runner())?;
        let mut records = Vec::new();
        while let Some(record) = recovery.next_record()? {
            records.push(record);
        }
        Ok((records, recovery.finish()?))
    }

    #[test]
    fn records_are_numbered_written_and_recovered() {
        let (_dir, root) = root();
        let mut writer = create(&root);
        let appended: Vec<_> = (0..5).map(|_| append(&mut writer)).collect();
        assert!(writer.is_pending());
        writer.sync().unwrap();
        drop(writer);

        let (recovered, Recovered { mut writer, dropped_bytes }) = recover(&root).unwrap();

        assert_eq!(appended.iter().map(|record| record.seq).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(recovered, appended);
        assert_eq!(dropped_bytes, 0);
        assert_eq!(append(&mut writer).seq, 5);
        writer.flush().unwrap();
        assert_eq!(records(&root, &runner()).len(), 6);
    }

    #[test]
    fn a_writer_writes_what_a_stream_is() {
        let (_dir, root) = root();
        let mut writer = create(&root);
        for record in life() {
            let at = Instant { boot_nanos: record.boot_nanos, unix_nanos: record.unix_nanos };
            writer.append(record.kind.unwrap(), at).unwrap();
            writer.flush().unwrap();
        }

        let bytes = fs::read(root.stream(&runner())).unwrap();

        assert_eq!(bytes, stream(&runner(), &life()).bytes);
        let mode = fs::metadata(root.stream(&runner())).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn a_flush_is_one_write_and_an_empty_one_none() {
        let writes = || {
            let io = fs::read_to_string("/proc/thread-self/io").unwrap();
            let line = io.lines().find_map(|line| line.strip_prefix("syscw: ")).unwrap();
            line.parse::<u64>().unwrap()
        };
        let (_dir, root) = root();
        let mut writer = create(&root);
        (0..100).for_each(|_| drop(append(&mut writer)));

        let before = writes();
        writer.flush().unwrap();
        let after = writes();
        writer.flush().unwrap();

        assert_eq!((after - before, writes() - after), (1, 0));
    }

    #[test]
    fn what_is_rolled_back_never_was() {
        let (_dir, root) = root();
        let mut writer = create(&root);
        let first = append(&mut writer);
        writer.flush().unwrap();
        append(&mut writer);
        append(&mut writer);

        assert_eq!(writer.rollback(), 2);

        let second = writer.append(entered(TaskState::Failed), at(9)).unwrap();
        writer.flush().unwrap();
        assert_eq!(second.seq, 1);
        assert_eq!(records(&root, &runner()), [first, second]);
    }

    #[test]
    fn a_record_that_is_too_long_is_refused_and_costs_no_number() {
        let (_dir, root) = root();
        let mut writer = create(&root);

        let error = writer.append(launch(frame::RECORD_MAX), at(1)).unwrap_err();

        assert!(matches!(error, WriteError::Length(_)), "{error}");
        assert_eq!(append(&mut writer).seq, 0);
        writer.flush().unwrap();
        assert_eq!(records(&root, &runner()).len(), 1);
    }

    /// Scenario S29, attack 37.
    #[test]
    fn a_stream_cut_at_any_byte_is_recovered_and_written_on() {
        let Bytes { bytes, bounds } = stream(&runner(), &life()[..3]);
        let (_dir, root) = root();
        for cut in 0..=bytes.len() {
            fs::write(root.stream(&runner()), &bytes[..cut]).unwrap();
            let end = bounds.iter().copied().filter(|bound| *bound <= cut).max().unwrap_or(0);

            let (recovered, Recovered { mut writer, dropped_bytes }) = recover(&root).unwrap();

            assert!(life().starts_with(&recovered));
            assert_eq!(dropped_bytes, (cut - end) as u64, "cut at {cut}");
            let appended = append(&mut writer);
            writer.flush().unwrap();
            assert_eq!(appended.seq, recovered.len() as u64);
            assert_eq!(records(&root, &runner()), [recovered, vec![appended]].concat());
        }
    }

    /// Scenario S30.
    #[test]
    fn a_corrupt_stream_is_not_written_on() {
        let Bytes { mut bytes, bounds } = stream(&runner(), &life());
        bytes[bounds[3] + 30] ^= 1;
        let (_dir, root) = root();
        fs::write(root.stream(&runner()), &bytes).unwrap();

        let error = recover(&root).unwrap_err();
        let finished = Recovery::open(&root, runner()).unwrap().finish().unwrap_err();

        for error in [error, finished] {
            let OpenError::Read(ReadError::Corrupt { path, offset, flaw }) = error else {
                panic!("{error}");
            };
            assert_eq!((path, offset), (root.stream(&runner()), bounds[3] as u64));
            assert_eq!(flaw, Flaw::Checksum);
        }
        assert_eq!(fs::read(root.stream(&runner())).unwrap(), bytes);
    }

    /// Attack 41: unknown records stop changes.
    #[test]
    fn a_stream_with_a_record_of_a_later_dewar_is_not_written_on() {
        let (_dir, root) = root();
        let mut later = life();
        later[4].kind = None;
        let mut bytes = stream(&runner(), &later).bytes;
        bytes.extend_from_slice(&[1; 3]);
        fs::write(root.stream(&runner()), &bytes).unwrap();

        let error = Recovery::open(&root, runner()).unwrap().finish().unwrap_err();

        let path = root.stream(&runner());
        let expected =
            format!("{}: record 4 is of a kind that this dewar does not know", path.display());
        assert_eq!(error.to_string(), expected);
        assert_eq!(fs::read(path).unwrap(), bytes);
    }

    #[test]
    fn a_recovery_that_is_given_up_changes_nothing() {
        let (_dir, root) = root();
        let torn = &stream(&runner(), &life()).bytes[..200];
        fs::write(root.stream(&runner()), torn).unwrap();

        let mut recovery = Recovery::open(&root, runner()).unwrap();
        recovery.next_record().unwrap();
        drop(recovery);

        assert_eq!(fs::read(root.stream(&runner())).unwrap(), torn);
    }

    #[test]
    fn a_recovery_can_go_on_where_a_reader_has_been() {
        let (_dir, root) = root();
        let Bytes { bytes, bounds } = stream(&runner(), &life());
        fs::write(root.stream(&runner()), bytes).unwrap();
        let position = Position { offset: bounds[4] as u64, seq: 4 };

        let mut recovery = Recovery::open(&root, runner()).unwrap();
        recovery.seek(position);

        assert_eq!(recovery.next_record().unwrap(), Some(life().remove(4)));
        let Recovered { mut writer, .. } = recovery.finish().unwrap();
        assert_eq!(append(&mut writer).seq, 6);
        writer.flush().unwrap();
        assert_eq!(records(&root, &runner()).len(), 7);
    }

    #[test]
    fn a_stream_is_created_once() {
        let (_dir, root) = root();
        drop(create(&root));

        let error = Writer::create(&root, runner()).unwrap_err();

        assert!(matches!(error, OpenError::Exists { .. }), "{error}");
    }

    #[test]
    fn a_missing_stream_is_made_only_on_demand() {
        let (_dir, root) = root();

        let error = Recovery::open(&root, runner()).unwrap_err();
        assert!(matches!(error, OpenError::Read(ReadError::Missing { .. })), "{error}");

        let mut writer =
            Recovery::open_or_create(&root, runner()).unwrap().finish().unwrap().writer;
        assert_eq!(append(&mut writer).seq, 0);
        writer.flush().unwrap();
        assert_eq!(records(&root, &runner()).len(), 1);
    }

    #[test]
    #[ignore = "run by the tests of leadership"]
    fn lead() {
        let Some(dir) = given_directory() else { return };
        let mut writer = create(&root_in(&dir));
        append(&mut writer);
        writer.sync().unwrap();
        hold();
    }

    /// Scenario S26, attack 40; T66.
    #[test]
    fn of_two_runners_one_leads_and_the_other_is_told_who() {
        let dir = TempDir::new();
        let root = root_in(dir.path());
        let leader = Holding::start("checkpoint::writer::tests::lead", dir.path());

        let error = Recovery::open(&root, runner()).unwrap_err();

        let path = root.stream(&runner());
        let expected = format!("{} is locked by process {}", path.display(), leader.pid());
        assert_eq!(error.to_string(), expected);
        assert_eq!(holder(&root, &runner()).unwrap(), Some(Holder { pid: Some(leader.pid()) }));

        leader.end();
        assert_eq!(holder(&root, &runner()).unwrap(), None);
        assert_eq!(recover(&root).unwrap().0.len(), 1);
    }

    #[test]
    fn a_process_does_not_lead_twice_and_keeps_its_lead_by_asking() {
        let (_dir, root) = root();
        let writer = create(&root);
        let own = Some(std::process::id() as i32);

        let error = Recovery::open(&root, runner()).unwrap_err();

        assert!(matches!(error, OpenError::Held { pid, .. } if pid == own), "{error}");
        assert_eq!(holder(&root, &runner()).unwrap(), Some(Holder { pid: own }));
        // The kernel still has it.
        let seen = lock::holder(writer.locked.file()).unwrap();
        assert_eq!(seen, Some(Holder { pid: own }));
    }

    #[test]
    fn the_lock_of_a_coordinator_is_told_without_a_pid() {
        let (_dir, root) = root();
        assert_eq!(holder(&root, &coordinator()).unwrap(), None);
        let _writer = Writer::create(&root, coordinator()).unwrap();

        let error = Recovery::open(&root, coordinator()).unwrap_err();

        assert!(matches!(error, OpenError::Held { pid: None, .. }), "{error}");
        assert_eq!(holder(&root, &coordinator()).unwrap(), Some(Holder { pid: None }));
    }

    /// Attack 40: the file was removed, and another leader may have a file of the same name.
    #[test]
    fn a_stream_that_was_removed_is_not_durable() {
        let (_dir, root) = root();
        let mut writer = create(&root);
        append(&mut writer);
        fs::remove_file(root.stream(&runner())).unwrap();

        let error = writer.sync().unwrap_err();

        assert!(matches!(error, WriteError::Removed { .. }), "{error}");
    }

    /// Attack 35. A pipe refuses fdatasync(2) as a broken disk does.
    #[test]
    fn after_a_failed_sync_a_writer_does_nothing_more() {
        let (_dir, root) = root();
        let mut writer = create(&root);
        append(&mut writer);
        writer.flush().unwrap();
        let (_reader, pipe) = std::io::pipe().unwrap();
        let mut other = File::from(std::os::fd::OwnedFd::from(pipe));

        writer.locked.swap(&mut other);
        let failed = writer.sync().unwrap_err();
        writer.locked.swap(&mut other);

        assert!(matches!(failed, WriteError::Io(IoError { call: "fdatasync", .. })), "{failed}");
        let poisoned = |result| matches!(result, Err(WriteError::Poisoned { .. }));
        assert!(poisoned(writer.sync()));
        assert!(poisoned(writer.flush()));
        assert!(poisoned(writer.reserve(1)));
        assert!(poisoned(writer.append(entered(TaskState::Lost), at(1)).map(drop)));
        assert_eq!(records(&root, &runner()).len(), 1);
    }

    #[test]
    fn what_is_durable_is_not_synced_again() {
        let (_dir, root) = root();
        let mut writer = create(&root);
        append(&mut writer);
        writer.sync().unwrap();
        let (_reader, pipe) = std::io::pipe().unwrap();
        let mut other = File::from(std::os::fd::OwnedFd::from(pipe));

        writer.locked.swap(&mut other);

        writer.sync().unwrap();
    }

    /// What a recovery found may have been written by a runner that was killed before its sync.
    #[test]
    fn what_was_recovered_is_synced_once() {
        let (_dir, root) = root();
        drop(create(&root));

        let mut writer = recover(&root).unwrap().1.writer;

        assert!(writer.state.dirty && !writer.state.unlisted);
        writer.sync().unwrap();
        assert!(!writer.state.dirty);
    }

    /// Runs `test` in a file system of 64 KiB, which only its thread sees and which goes with it. Says whether it
    /// could: that takes CAP_SYS_ADMIN.
    fn on_a_small_disk(test: impl FnOnce(&Path) + Send + 'static) -> bool {
        use nix::mount::{MsFlags, mount};
        let none = None::<&str>;
        let run = move || {
            if let Err(errno) = unshare(CloneFlags::CLONE_NEWNS) {
                eprintln!("no small disk: unshare: {errno}");
                return false;
            }
            let dir = TempDir::new();
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=64k"))
                .unwrap();
            test(dir.path());
            nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
            true
        };
        match std::thread::spawn(run).join() {
            Ok(ran) => ran,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Takes all the space that is left, and returns the file that has it.
    fn fill(dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(name);
        let file = File::create(&path).unwrap();
        let mut size = 0;
        loop {
            match file.write_at(&[1; 512], size) {
                Ok(written) => size += written as u64,
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
                    return path;
                }
            }
        }
    }

    /// Attack 34: whatever part of a batch fits, the file holds whole records, and the rest follows them in order.
    fn space_runs_out(root: &Root, fill: impl FnOnce(&Writer), free: impl FnOnce()) {
        let mut writer = create(root);
        append(&mut writer);
        writer.sync().unwrap();
        fill(&writer);

        let appended = (0..300).map(|_| append(&mut writer)).last().unwrap();
        for _ in 0..2 {
            let error = writer.flush().unwrap_err();

            assert!(matches!(error, WriteError::NoSpace { .. }), "{error}");
            let written = records(root, &runner());
            assert!((2..300).contains(&written.len()), "{}", written.len());
            assert_eq!(writer.position().seq(), written.len() as u64);
        }
        assert!(!writer.state.ragged);

        free();
        writer.sync().unwrap();
        assert_eq!(records(root, &runner()).last(), Some(&appended));
        assert_eq!(appended.seq, 300);
    }

    #[test]
    fn a_full_disk_leaves_whole_records_and_loses_none() {
        let ran = on_a_small_disk(|dir| {
            let root = root_in(dir);
            let filler = dir.join("filler");
            space_runs_out(
                &root,
                |_| drop(fill(dir, "filler")),
                || fs::remove_file(filler).unwrap(),
            );
        });
        if !ran {
            a_limit_on_the_size_of_files_is_a_full_disk();
        }
    }

    /// Runs in a process of its own, for the limit is the process's.
    #[test]
    #[ignore = "run by a_limit_on_the_size_of_files_is_a_full_disk"]
    fn write_up_to_a_limit() {
        let Some(dir) = given_directory() else { return };
        let mut xfsz = SigSet::empty();
        xfsz.add(Signal::SIGXFSZ);
        xfsz.thread_block().unwrap();
        let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        let limit = |bytes| setrlimit(Resource::RLIMIT_FSIZE, bytes, hard).unwrap();

        space_runs_out(
            &root_in(&dir),
            |writer| limit(writer.position().offset() + 1001),
            || limit(hard),
        );
    }

    #[test]
    fn a_limit_on_the_size_of_files_is_a_full_disk() {
        let dir = TempDir::new();

        let name = "checkpoint::writer::tests::write_up_to_a_limit";
        let output = other_half(name, dir.path()).output().unwrap();

        assert!(output.status.success(), "{output:?}");
        assert!(dir.path().join("root/checkpoints/t/runner").exists());
    }

    /// Attack 34: a start is refused before there is a process, and an end finds its space.
    #[test]
    fn what_is_reserved_can_be_written_on_a_full_disk() {
        on_a_small_disk(|dir| {
            let root = root_in(dir);
            let mut writer = create(&root);
            writer.reserve(8000).unwrap();
            fill(dir, "filler");

            let refused = writer.reserve(20_000).unwrap_err();
            assert!(matches!(refused, WriteError::NoSpace { .. }), "{refused}");
            // More than is reserved: what is reserved is still there when it has failed.
            writer.append(launch(20_000), at(1)).unwrap();
            writer.flush().unwrap_err();
            assert_eq!(writer.rollback(), 1);
            fill(dir, "more filler");

            writer.append(launch(7000), at(1)).unwrap();
            writer.sync().unwrap();
            assert_eq!(records(&root, &runner()).len(), 1);
        });
    }

    /// Attack 34.
    #[test]
    fn a_stream_that_cannot_have_its_header_is_not_left_behind() {
        on_a_small_disk(|dir| {
            let root = root_in(dir);
            let filler = fill(dir, "filler");

            let error = Writer::create(&root, runner()).unwrap_err();

            assert!(matches!(error, OpenError::Write(WriteError::NoSpace { .. })), "{error}");
            assert!(!root.stream(&runner()).exists());
            fs::remove_file(filler).unwrap();
            create(&root);
        });
    }

    /// Attack 36: what can be repaired does not end the stream.
    #[test]
    fn a_directory_that_cannot_be_opened_can_be_synced_later() {
        let (_dir, root) = root();
        let mut writer = create(&root);
        append(&mut writer);
        let (dir, aside) = (root.checkpoint(&runner().task), root.path().join("aside"));
        fs::rename(&dir, &aside).unwrap();

        let error = writer.sync().unwrap_err();
        fs::rename(&aside, &dir).unwrap();

        assert!(matches!(error, WriteError::Io(IoError { call: "open", .. })), "{error}");
        writer.sync().unwrap();
    }

    #[test]
    fn more_space_than_there_can_be_is_refused() {
        let (_dir, root) = root();

        let error = create(&root).reserve(u64::MAX).unwrap_err();

        assert!(matches!(error, WriteError::NoSpace { .. }), "{error}");
    }

    #[test]
    fn reserved_space_does_not_show_in_the_length() {
        let (_dir, root) = root();
        let mut writer = create(&root);
        let before = writer.metadata().unwrap().len();

        writer.reserve(100_000).unwrap();

        assert_eq!(writer.metadata().unwrap().len(), before);
    }
}
