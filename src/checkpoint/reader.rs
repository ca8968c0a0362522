//! Reads a stream, from its start or from a place in it, while it grows or after its writer has died.
//!
//! A reader takes no lock and asks its writer nothing. It holds its place as an offset and the position of the record
//! that is due there; a reader that has caught up holds no memory. Beyond the last whole record it distinguishes
//! nothing while the writer may live: what is there is not there yet ([`Reader::next_record`] returns `None`), be it
//! an append that is under way or one that is about to be taken back. Whoever knows that the writer is dead asks
//! [`Reader::tail`] what the end of the stream is.
//!
//! What is read may not be on disk yet. Before telling anybody of a terminal state or an accepted kill,
//! [`Reader::sync`]: whoever tells, syncs.
#![allow(clippy::disallowed_methods, reason = "files of a checkpoint")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::file::{self, IoError, Purpose, Refusal};
use super::frame::{
    self, FRAME_MAX, Flaw, Frame, HEADER_MAX, Header, HeaderError, Rest, Stop, VERSION,
};
use super::identity::Identity;
use super::paths::Root;
use crate::proto::Record;

/// Bytes that are read at first: one page holds what a live stream grows by between two looks.
const CHUNK_MIN: usize = 4 << 10;
/// Bytes that are read at once from a stream that has many.
const CHUNK_MAX: usize = 64 << 10;

/// Why a stream cannot be read, or not further.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no such stream.
    #[error("{} does not exist", path.display())]
    Missing {
        /// Its path.
        path: PathBuf,
    },
    /// It is damaged. Nothing of its task is to be run.
    #[error("{} is corrupt at byte {offset}", path.display())]
    Corrupt {
        /// Its path.
        path: PathBuf,
        /// Where the bytes begin that are neither a record nor torn.
        offset: u64,
        /// What is wrong with them.
        #[source]
        flaw: Flaw,
    },
    /// A later dewar wrote it.
    #[error("{} has format version {version}; this dewar knows {VERSION}", path.display())]
    FutureVersion {
        /// Its path.
        path: PathBuf,
        /// The version of its format.
        version: u32,
    },
    /// It became shorter than what was read of it: somebody who is not its writer changed it.
    #[error("{} has {size} bytes, after {offset} were read", path.display())]
    Shrunk {
        /// Its path.
        path: PathBuf,
        /// Bytes that were read.
        offset: u64,
        /// Bytes that are there.
        size: u64,
    },
    /// This process is its writer; reading it would drop the lock.
    #[error("{} is written by this process, which would lose its lock by reading it", path.display())]
    HeldHere {
        /// Its path.
        path: PathBuf,
    },
    /// A call failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// A place between two records of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub(super) offset: u64,
    pub(super) seq: u64,
}

impl Position {
    /// Bytes of the stream before this place.
    pub fn offset(self) -> u64 {
        self.offset
    }

    /// Number of records before this place: the `seq` of the next.
    pub fn seq(self) -> u64 {
        self.seq
    }
}

/// What a stream whose writer is dead ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// The last record.
    Clean,
    /// A record that a crash tore, which never was.
    Torn {
        /// Its bytes.
        bytes: u64,
    },
    /// Records that were not read yet.
    Unread,
}

/// Reads one stream.
#[derive(Debug)]
pub struct Reader {
    file: File,
    cursor: Cursor,
}

impl Reader {
    /// Opens the stream `identity` at its start. It may be empty as yet.
    ///
    /// # Errors
    ///
    /// [`ReadError`]; a file that is another stream is corrupt.
    pub fn open(root: &Root, identity: &Identity) -> Result<Self, ReadError> {
        Self::start(root.stream(identity), Some(identity.clone()))
    }

    /// Opens a file, whichever stream it is.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub fn open_file(path: impl Into<PathBuf>) -> Result<Self, ReadError> {
        Self::start(path.into(), None)
    }

    fn start(path: PathBuf, expected: Option<Identity>) -> Result<Self, ReadError> {
        let file = match file::open_stream(&path, Purpose::Read) {
            Ok(file) => file,
            Err(refusal) => return Err(refuse(path, refusal)),
        };
        let mut cursor = Cursor::new(path, expected);
        cursor.begin(&file)?;
        Ok(Self { file, cursor })
    }

    /// Which stream it is; `None` until its header is whole.
    pub fn identity(&self) -> Option<&Identity> {
        self.cursor.header.as_ref().map(|header| &header.identity)
    }

    /// The place after the last record that was returned.
    pub fn position(&self) -> Position {
        self.cursor.position
    }

    /// Goes to a place that another reader or writer of the same stream gave.
    ///
    /// A place that is not between two records shows as corruption in what is read next.
    pub fn seek(&mut self, position: Position) {
        self.cursor.seek(position);
    }

    /// Returns the next record, or `None` if no whole one is there yet.
    ///
    /// A record of a later dewar is returned with its `kind` absent: a view goes on, a runner must not.
    ///
    /// # Errors
    ///
    /// [`ReadError`]; the place stays the same.
    pub fn next_record(&mut self) -> Result<Option<Record>, ReadError> {
        self.cursor.next(&self.file)
    }

    /// Says what follows the last record, on the assumption that nobody writes.
    ///
    /// # Errors
    ///
    /// [`ReadError::Corrupt`] where it is neither a record nor torn.
    pub fn tail(&mut self) -> Result<Tail, ReadError> {
        self.cursor.tail(&self.file)
    }

    /// Hands every record that is left to `each`, and says what follows them.
    ///
    /// # Errors
    ///
    /// [`ReadError`]; `each` has then got the records before.
    pub fn replay(&mut self, mut each: impl FnMut(Record)) -> Result<Tail, ReadError> {
        loop {
            while let Some(record) = self.next_record()? {
                each(record);
            }
            let tail = self.tail()?;
            if tail != Tail::Unread {
                return Ok(tail);
            }
        }
    }

    /// Makes durable what was read; for fdatasync(2) a descriptor that only reads is as good as any.
    ///
    /// The stream's entry in its directory was made durable when the task was accepted.
    ///
    /// # Errors
    ///
    /// [`IoError`]; what was read must then not be told as durable, and asking again proves nothing.
    pub fn sync(&self) -> Result<(), IoError> {
        let path = &self.cursor.path;
        self.file.sync_data().map_err(|source| IoError::new("fdatasync", path, source))
    }

    /// Whether the stream is where it was opened, neither removed nor replaced.
    ///
    /// # Errors
    ///
    /// [`IoError`].
    pub fn is_in_place(&self) -> Result<bool, IoError> {
        let path = &self.cursor.path;
        file::is_at(&self.file, path).map_err(|source| IoError::new("stat", path, source))
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Says of `path` why it was not opened.
pub(super) fn refuse(path: PathBuf, refusal: Refusal) -> ReadError {
    match refusal {
        Refusal::HeldHere => ReadError::HeldHere { path },
        Refusal::Io(error) if error.is_missing() => ReadError::Missing { path },
        Refusal::Io(error) => error.into(),
    }
}

/// The place of a reader in a file that somebody else holds.
#[derive(Debug)]
pub(super) struct Cursor {
    path: PathBuf,
    /// The stream that the file must be.
    expected: Option<Identity>,
    header: Option<Header>,
    position: Position,
    chunk: Chunk,
}

impl Cursor {
    pub(super) fn new(path: PathBuf, expected: Option<Identity>) -> Self {
        let position = Position { offset: 0, seq: 0 };
        Self { path, expected, header: None, position, chunk: Chunk::default() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// Goes to where another reader has been. One that has been at the beginning has not seen a header: a power cut can leave
    /// a stream empty, and it gets its header later.
    pub(super) fn seek(&mut self, position: Position) {
        self.chunk.clear();
        self.position = position;
        if let (0, Some(header)) = (position.offset, &self.header) {
            self.position.offset = header.length as u64;
        }
    }

    /// Reads the header, if it is whole, and returns its seed.
    pub(super) fn begin(&mut self, file: &File) -> Result<Option<u32>, ReadError> {
        if let Some(header) = &self.header {
            return Ok(Some(header.seed));
        }
        let mut bytes = vec![0; HEADER_MAX];
        let read = self.read(file, &mut bytes, 0)?;
        bytes.truncate(read);
        let more = read == HEADER_MAX && self.is_used(file, HEADER_MAX as u64)?;
        let Some(header) = frame::begin(&bytes, more).map_err(|error| self.header_error(error))?
        else {
            return Ok(None);
        };
        if self.expected.as_ref().is_some_and(|expected| *expected != header.identity) {
            return Err(self.corrupt(0, Flaw::Identity(Box::new(header.identity))));
        }
        // A caller that has a place in the stream has said so before.
        if self.position.offset == 0 {
            self.position.offset = header.length as u64;
        }
        let seed = header.seed;
        self.header = Some(header);
        Ok(Some(seed))
    }

    pub(super) fn next(&mut self, file: &File) -> Result<Option<Record>, ReadError> {
        let Some(seed) = self.begin(file)? else {
            return Ok(None);
        };
        // What an earlier call has left of a frame may have been replaced since: see `fill`.
        let mut is_fresh = self.chunk.bytes().is_empty();
        loop {
            match frame::decode(seed, self.position.seq, self.chunk.bytes()) {
                Ok(frame) => return Ok(Some(self.pass(frame))),
                Err(_) if !is_fresh => {
                    self.chunk.forget();
                    is_fresh = true;
                }
                Err(Stop::Incomplete { needed }) => {
                    if !self.fill(file, needed)? {
                        self.chunk.clear();
                        return Ok(None);
                    }
                }
                Err(Stop::Bad(_)) => {
                    self.chunk.clear();
                    match self.rest(file, seed)? {
                        Rest::Record => {}
                        Rest::Empty | Rest::Torn => return Ok(None),
                        Rest::Corrupt(flaw) => {
                            return Err(self.corrupt(self.position.offset, flaw));
                        }
                    }
                }
            }
        }
    }

    /// Goes on behind a frame that was decoded.
    fn pass(&mut self, frame: Frame) -> Record {
        self.chunk.consume(frame.length);
        self.position.offset += frame.length as u64;
        self.position.seq += 1;
        frame.record
    }

    pub(super) fn tail(&mut self, file: &File) -> Result<Tail, ReadError> {
        let size = self.size(file)?;
        let Some(seed) = self.begin(file)? else {
            return Ok(if size == 0 { Tail::Clean } else { Tail::Torn { bytes: size } });
        };
        match self.rest(file, seed)? {
            Rest::Empty => Ok(Tail::Clean),
            Rest::Record => Ok(Tail::Unread),
            Rest::Torn => Ok(Tail::Torn { bytes: size.saturating_sub(self.position.offset) }),
            Rest::Corrupt(flaw) => Err(self.corrupt(self.position.offset, flaw)),
        }
    }

    /// Classifies what is in the file from this place on.
    fn rest(&self, file: &File, seed: u32) -> Result<Rest, ReadError> {
        let Position { offset, seq } = self.position;
        let size = self.size(file)?;
        if size < offset {
            return Err(self.shrunk(size));
        }
        let window = (size - offset).min(FRAME_MAX as u64);
        // At most FRAME_MAX, and no more than the file has.
        let mut bytes = vec![0; window as usize];
        let read = self.read(file, &mut bytes, offset)?;
        bytes.truncate(read);
        // Less is all that there was. What its writer has appended since is for the next look.
        let more = read == FRAME_MAX && self.is_used(file, offset + read as u64)?;
        Ok(frame::classify(seed, seq, &bytes, more))
    }

    /// Reads a frame of `needed` bytes, and what more a read brings. If the file does not have that much, says no.
    ///
    /// A part of a record may be taken back by a writer that ran out of space, or cut off by the runner that takes over,
    /// and another record written in its place. So what was read of a frame before does not count: a part of the old one
    /// and the end of the new one may even have the right checksum, where the two end alike.
    fn fill(&mut self, file: &File, needed: usize) -> Result<bool, ReadError> {
        let offset = self.position.offset;
        loop {
            let size = self.size(file)?;
            if size < offset {
                return Err(self.shrunk(size));
            }
            if size - offset < needed as u64 {
                return Ok(false);
            }
            let read = retry(|| file.read_at(self.chunk.anew(needed), offset))
                .map_err(|source| IoError::new("pread", &self.path, source))?;
            self.chunk.extend(read);
            if read >= needed {
                return Ok(true);
            }
        }
    }

    /// Whether a byte at or beyond `offset` is other than zero.
    fn is_used(&self, file: &File, mut offset: u64) -> Result<bool, ReadError> {
        let mut bytes = Vec::new();
        loop {
            // A file that ends here, as nearly all do, costs no buffer.
            if self.size(file)? <= offset {
                return Ok(false);
            }
            bytes.resize(CHUNK_MAX, 0);
            let read = self.read(file, &mut bytes, offset)?;
            if frame::trimmed(&bytes[..read]) > 0 {
                return Ok(true);
            }
            offset += read as u64;
        }
    }

    /// Reads until `bytes` is full or the file ends.
    fn read(&self, file: &File, bytes: &mut [u8], offset: u64) -> Result<usize, ReadError> {
        let mut filled = 0;
        while filled < bytes.len() {
            let read = retry(|| file.read_at(&mut bytes[filled..], offset + filled as u64))
                .map_err(|source| IoError::new("pread", &self.path, source))?;
            if read == 0 {
                break;
            }
            filled += read;
        }
        Ok(filled)
    }

    fn size(&self, file: &File) -> Result<u64, IoError> {
        let metadata =
            file.metadata().map_err(|source| IoError::new("fstat", &self.path, source))?;
        Ok(metadata.len())
    }

    fn corrupt(&self, offset: u64, flaw: Flaw) -> ReadError {
        ReadError::Corrupt { path: self.path.clone(), offset, flaw }
    }

    fn shrunk(&self, size: u64) -> ReadError {
        ReadError::Shrunk { path: self.path.clone(), offset: self.position.offset, size }
    }

    fn header_error(&self, error: HeaderError) -> ReadError {
        match error {
            HeaderError::Version(version) => {
                ReadError::FutureVersion { path: self.path.clone(), version }
            }
            HeaderError::Flaw(flaw) => self.corrupt(0, flaw),
            HeaderError::Incomplete => self.corrupt(0, Flaw::HeaderLength),
        }
    }
}

/// Bytes that were read and not yet decoded.
#[derive(Debug, Default)]
struct Chunk {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn consume(&mut self, length: usize) {
        self.start += length;
    }

    /// Forgets its bytes; where to read others to, so that `needed` of them have room.
    ///
    /// The buffer doubles while reads fill it, so that a long stream is read in few calls and a short one costs little.
    /// It is freed once the end is reached.
    fn anew(&mut self, needed: usize) -> &mut [u8] {
        let was_full = self.end == self.buffer.len();
        (self.start, self.end) = (0, 0);
        let mut size = self.buffer.len().clamp(CHUNK_MIN, CHUNK_MAX);
        if was_full && !self.buffer.is_empty() {
            size = CHUNK_MAX.min(size * 2);
        }
        self.buffer.resize(size.max(needed), 0);
        &mut self.buffer
    }

    fn extend(&mut self, length: usize) {
        self.end += length;
    }

    /// Has no bytes any more, but keeps the buffer for the next ones.
    fn forget(&mut self) {
        self.start = self.end;
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Repeats a call that a signal interrupted.
pub(super) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;
    use crate::checkpoint::testing::{
        Bytes, TempDir, at, coordinator, entered, launch, life, root, runner, sequence, stream,
    };
    use crate::checkpoint::{OpenError, Writer};
    use crate::proto::record::Kind;
    use crate::proto::{Leader, ProcessId, TaskState};

    /// A stream with these bytes, and a reader of it.
    fn reader(root: &Root, bytes: &[u8]) -> Reader {
        fs::write(root.stream(&runner()), bytes).unwrap();
        Reader::open(root, &runner()).unwrap()
    }

    fn all(reader: &mut Reader) -> Vec<Record> {
        std::iter::from_fn(|| reader.next_record().unwrap()).collect()
    }

    #[test]
    fn a_live_stream_is_followed_by_whole_records() {
        let (_dir, root) = root();
        let path = root.stream(&runner());
        fs::write(&path, []).unwrap();
        let mut reader = Reader::open(&root, &runner()).unwrap();
        let mut file = File::options().append(true).open(&path).unwrap();
        let Bytes { bytes, bounds } = stream(&runner(), &life());

        for (at, byte) in bytes.iter().enumerate() {
            file.write_all(&[*byte]).unwrap();
            let whole = bounds[1..].iter().position(|bound| *bound == at + 1);

            let record = reader.next_record().unwrap();

            assert_eq!(record, whole.map(|index| life()[index].clone()), "after byte {at}");
        }
        assert_eq!(reader.tail().unwrap(), Tail::Clean);
        assert_eq!(reader.position().offset(), bytes.len() as u64);
    }

    /// What follows the last record is looked at in pieces, between which its writer goes on.
    #[test]
    fn a_stream_that_grows_while_it_is_looked_at_is_sound() {
        let (_dir, root) = root();
        let mut writer = Writer::create(&root, coordinator()).unwrap();
        let path = root.stream(&coordinator());

        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut reader = Reader::open_file(&path).unwrap();
                let mut count = 0;
                while count < 20_000 {
                    while reader.next_record().unwrap().is_some() {
                        count += 1;
                    }
                    reader.tail().unwrap();
                }
            });
            for _ in 0..20_000 {
                writer.append(entered(TaskState::Active), at(1)).unwrap();
                writer.flush().unwrap();
            }
            reader.join().unwrap();
        });
    }

    #[test]
    fn what_is_not_flushed_is_not_there() {
        let (_dir, root) = root();
        let mut writer = Writer::create(&root, coordinator()).unwrap();
        let mut reader = Reader::open(&root, &coordinator()).unwrap();

        let appended = writer.append(entered(TaskState::Active), at(1)).unwrap();
        assert_eq!(reader.next_record().unwrap(), None);
        writer.flush().unwrap();

        assert_eq!(reader.next_record().unwrap(), Some(appended));
        assert_eq!(reader.position(), writer.position());
    }

    /// The first bytes that a reader saw belonged to a record that was taken back for want of space.
    #[test]
    fn half_a_record_that_is_replaced_is_read_anew() {
        for seen in 1..60 {
            let (_dir, root) = root();
            let path = root.stream(&runner());
            let [short, long] =
                [life(), sequence([launch(3000)])].map(|records| stream(&runner(), &records[..1]));
            let torn = &long.bytes[..long.bounds[0] + seen];
            let mut reader = reader(&root, torn);
            assert_eq!(reader.next_record().unwrap(), None);
            assert_eq!(reader.tail().unwrap(), Tail::Torn { bytes: seen as u64 });

            fs::write(&path, &short.bytes).unwrap();

            assert_eq!(all(&mut reader), life()[..1], "after {seen} bytes");
        }
    }

    /// As before, but the part was read together with a record before it.
    #[test]
    fn half_a_record_behind_another_that_is_replaced_is_read_anew() {
        let [old, new] = [3000, 1000].map(|length| {
            let mut records = life();
            records[1].kind = Some(launch(length));
            (stream(&runner(), &records), records)
        });
        for seen in (1..60).chain([500, 1500, 2500]) {
            let (_dir, root) = root();
            let end = old.0.bounds[1];
            let mut reader = reader(&root, &old.0.bytes[..end + seen]);
            reader.next_record().unwrap().unwrap();

            fs::write(root.stream(&runner()), &new.0.bytes[..new.0.bounds[2]]).unwrap();

            assert_eq!(reader.next_record().unwrap(), Some(new.1[1].clone()), "after {seen} bytes");
        }
    }

    /// As before, and both end alike: what was seen of the old one and the end of the new one are the old one.
    #[test]
    fn half_a_record_that_is_replaced_by_one_with_the_same_end_is_read_anew() {
        let [old, new] = [(4711, 0), (4712, 84)].map(|(pid, dropped_bytes)| {
            let leader = Leader {
                runner: Some(ProcessId { pid, start_ticks: 815_000 }),
                cgroup: Some("/sys/fs/cgroup/dewar/tasks/t".to_owned()),
                dropped_bytes,
                ..Leader::default()
            };
            let records = sequence([launch(40), Kind::Leader(leader)]);
            (stream(&runner(), &records), records)
        });
        let (begin, end) = (old.0.bounds[1], old.0.bounds[2]);
        for seen in begin + 1..end {
            let (_dir, root) = root();
            let mut reader = reader(&root, &old.0.bytes[..seen]);
            reader.next_record().unwrap().unwrap();

            fs::write(root.stream(&runner()), &new.0.bytes).unwrap();

            assert_eq!(reader.next_record().unwrap(), Some(new.1[1].clone()), "of {seen} bytes");
        }
    }

    #[test]
    fn records_of_any_length_are_read_in_order() {
        let (_dir, root) = root();
        let lengths = [10, 4000, 70_000, 1, 3_000_000, 65_528, 9];
        let records = sequence(lengths.map(launch));

        let mut reader = reader(&root, &stream(&runner(), &records).bytes);

        assert_eq!(all(&mut reader), records);
        assert_eq!(reader.tail().unwrap(), Tail::Clean);
    }

    #[test]
    fn a_long_stream_is_replayed_whole() {
        let (_dir, root) = root();
        let records = sequence((0..20_000).map(|_| entered(TaskState::Active)));
        let mut reader = reader(&root, &stream(&runner(), &records).bytes);
        let mut due = 0;

        let tail = reader.replay(|record| {
            assert_eq!(record.seq, due);
            due += 1;
        });

        assert_eq!((tail.unwrap(), due), (Tail::Clean, 20_000));
    }

    #[test]
    fn a_reader_that_has_caught_up_holds_no_memory() {
        let (_dir, root) = root();
        let mut reader = reader(&root, &stream(&runner(), &life()).bytes);

        all(&mut reader);

        assert_eq!(reader.cursor.chunk.buffer.capacity(), 0);
    }

    /// Attack 38: nothing is allocated from a length that nothing vouches for.
    #[test]
    fn a_length_beyond_the_file_costs_no_memory() {
        let (_dir, root) = root();
        let Bytes { mut bytes, bounds } = stream(&runner(), &life()[..1]);
        bytes.truncate(bounds[0]);
        bytes.extend_from_slice(&(frame::RECORD_MAX as u32).to_le_bytes());
        bytes.extend_from_slice(&[1; 100]);
        let mut reader = reader(&root, &bytes);

        assert!(reader.cursor.fill(&reader.file, 8).unwrap());
        assert!(!reader.cursor.fill(&reader.file, FRAME_MAX).unwrap());

        let capacity = reader.cursor.chunk.buffer.capacity();
        assert!(capacity <= CHUNK_MAX, "{capacity}");
        assert_eq!(reader.next_record().unwrap(), None);
        assert_eq!(reader.tail().unwrap(), Tail::Torn { bytes: 104 });
    }

    #[test]
    fn a_stream_that_became_shorter_is_an_error() {
        let (_dir, root) = root();
        let Bytes { bytes, bounds } = stream(&runner(), &life());
        let mut reader = reader(&root, &bytes);
        all(&mut reader);

        let file = File::options().write(true).open(root.stream(&runner())).unwrap();
        file.set_len(bounds[3] as u64).unwrap();

        let next = reader.next_record().unwrap_err().to_string();
        let path = root.stream(&runner());
        let expected =
            format!("{} has {} bytes, after {} were read", path.display(), bounds[3], bytes.len());
        assert_eq!(next, expected);
        assert!(matches!(reader.tail(), Err(ReadError::Shrunk { .. })));
    }

    #[test]
    fn a_stream_that_was_removed_or_replaced_is_not_in_place() {
        let (_dir, root) = root();
        let Bytes { bytes, .. } = stream(&runner(), &life());
        let reader = reader(&root, &bytes);
        let path = root.stream(&runner());
        assert!(reader.is_in_place().unwrap());

        fs::rename(&path, path.with_extension("old")).unwrap();
        assert!(!reader.is_in_place().unwrap());
        fs::write(&path, &bytes).unwrap();
        assert!(!reader.is_in_place().unwrap());
    }

    #[test]
    fn corruption_is_named_by_file_and_offset_and_stays() {
        let (_dir, root) = root();
        let Bytes { mut bytes, bounds } = stream(&runner(), &life());
        bytes[bounds[2] + 12] ^= 4;
        let mut reader = reader(&root, &bytes);
        reader.next_record().unwrap();
        reader.next_record().unwrap();

        for _ in 0..2 {
            let error = reader.next_record().unwrap_err();

            let path = root.stream(&runner());
            let expected = format!("{} is corrupt at byte {}", path.display(), bounds[2]);
            assert_eq!(error.to_string(), expected);
        }
    }

    /// A follower waits for a frame that is not whole; who knows that the writer is dead sees that it never will be.
    #[test]
    fn a_damaged_length_shows_in_the_tail_of_a_dead_stream() {
        let (_dir, root) = root();
        let Bytes { mut bytes, bounds } = stream(&runner(), &life());
        bytes[bounds[2] + 2] = 0x10;
        let mut reader = reader(&root, &bytes);

        assert_eq!(all(&mut reader), life()[..2]);

        let error = reader.tail().unwrap_err();
        assert!(
            matches!(error, ReadError::Corrupt { offset, .. } if offset == bounds[2] as u64),
            "{error}"
        );
    }

    #[test]
    fn unread_records_are_no_tail() {
        let (_dir, root) = root();
        let mut reader = reader(&root, &stream(&runner(), &life()).bytes);

        assert_eq!(reader.tail().unwrap(), Tail::Unread);
    }

    /// Attack 38: zeros and holes far longer than any frame.
    #[test]
    fn zeros_of_any_length_are_torn_unless_something_follows_them() {
        let (_dir, root) = root();
        let bytes = stream(&runner(), &life()).bytes;
        let mut reader = reader(&root, &bytes);
        let file = File::options().write(true).open(root.stream(&runner())).unwrap();
        let size = bytes.len() as u64 + 2 * FRAME_MAX as u64;
        file.set_len(size).unwrap();

        assert_eq!(all(&mut reader), life());
        assert_eq!(reader.tail().unwrap(), Tail::Torn { bytes: 2 * FRAME_MAX as u64 });

        file.write_at(&[1], size).unwrap();
        assert!(matches!(reader.tail(), Err(ReadError::Corrupt { .. })));
    }

    #[test]
    fn a_header_that_is_not_whole_is_torn() {
        let (_dir, root) = root();
        let Bytes { bytes, bounds } = stream(&runner(), &[]);
        for cut in 0..bounds[0] {
            let mut reader = reader(&root, &bytes[..cut]);

            assert_eq!(reader.next_record().unwrap(), None);
            assert_eq!(reader.identity(), None);
            let expected = if cut == 0 { Tail::Clean } else { Tail::Torn { bytes: cut as u64 } };
            assert_eq!(reader.tail().unwrap(), expected);
        }
    }

    #[test]
    fn a_reader_goes_on_where_another_has_been() {
        let (_dir, root) = root();
        let mut first = reader(&root, &stream(&runner(), &life()).bytes);
        first.next_record().unwrap();
        first.next_record().unwrap();

        let mut second = Reader::open_file(root.stream(&runner())).unwrap();
        second.seek(first.position());

        assert_eq!(second.identity(), Some(&runner()));
        assert_eq!(all(&mut second), life()[2..]);
    }

    /// Attack 44: streams of coordinators are not synced, and a power cut leaves their names without their bytes.
    #[test]
    fn a_reader_goes_on_where_another_has_been_before_there_was_a_header() {
        let (_dir, root) = root();
        let early = reader(&root, b"").position();
        fs::write(root.stream(&runner()), stream(&runner(), &life()).bytes).unwrap();

        let mut late = Reader::open(&root, &runner()).unwrap();
        late.seek(early);

        assert_eq!(all(&mut late), life());
    }

    /// Attacks 38, 40.
    #[test]
    fn a_stream_that_was_put_in_the_place_of_another_is_not_read() {
        let (_dir, root) = root();
        fs::write(root.stream(&runner()), stream(&coordinator(), &life()).bytes).unwrap();

        let error = Reader::open(&root, &runner()).unwrap_err();

        assert!(matches!(error, ReadError::Corrupt { offset: 0, flaw: Flaw::Identity(_), .. }));
        assert!(Reader::open_file(root.stream(&runner())).is_ok());
    }

    #[test]
    fn what_is_no_stream_is_refused_without_blocking() {
        let dir = TempDir::new();
        let path = |name| dir.path().join(name);
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::write(path("text"), "[2024-01-01] started\n").unwrap();
        std::os::unix::fs::symlink(path("text"), path("link")).unwrap();

        let open = |name| Reader::open_file(path(name)).unwrap_err();

        assert!(matches!(open("pipe"), ReadError::Io(_)));
        assert!(matches!(open("link"), ReadError::Io(_)));
        assert!(matches!(open("gone"), ReadError::Missing { .. }));
        assert!(matches!(open("text"), ReadError::Corrupt { offset: 0, flaw: Flaw::Magic, .. }));
    }

    #[test]
    fn what_was_read_can_be_made_durable_by_its_reader() {
        let (_dir, root) = root();
        let reader = reader(&root, &stream(&runner(), &life()).bytes);

        reader.sync().unwrap();
    }

    /// fcntl(2): closing it again would drop the lock of the writer, which is leadership.
    #[test]
    fn a_process_does_not_read_the_stream_that_it_leads_by() {
        let (_dir, root) = root();
        let writer = Writer::create(&root, runner()).unwrap();

        let error = Reader::open(&root, &runner()).unwrap_err();

        assert!(matches!(error, ReadError::HeldHere { .. }));
        assert!(matches!(
            Writer::create(&root, runner()),
            Err(OpenError::Exists { .. } | OpenError::Read(ReadError::HeldHere { .. }))
        ));
        drop(writer);
        assert!(Reader::open(&root, &runner()).is_ok());
    }
}
