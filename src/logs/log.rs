//! The log of one run, which is one file or several.
//!
//! A log may be rotated at any moment: `stdout` becomes `stdout.1`, and so on. So a log is followed by its files, not by their
//! names: the file that is read is held open, and once it is not the live one any more, the one after it is the one whose name
//! has the number before. What makes that sound: files keep their order, their numbers only go up, and one number at a time
//! is missing. Every byte is read once, as long as it is not dropped before it could be read.

use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::str::FromStr;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use super::{CHUNK, LogError, Source};

/// Tries to see a log that is being rotated in a state that makes sense.
const ATTEMPTS: usize = 100;

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the oldest byte that is there.
    Oldest,
    /// That many bytes after the oldest one that is there, or at the end if there are fewer.
    Offset(u64),
    /// With the last so many bytes.
    LastBytes(u64),
    /// With the last so many lines; the last one counts, ended or not.
    LastLines(u64),
    /// Where somebody else left off, or with the oldest byte if that is gone.
    At(Position),
}

/// A place in a log that stays true when the log is rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    run: u32,
    file: FileId,
    /// In the file.
    byte: u64,
    /// In the log: see [`Chunk::offset`].
    offset: u64,
}

impl Position {
    /// The run whose log it is in.
    pub fn run(self) -> u32 {
        self.run
    }
}

/// Something that is not the text of a [`Position`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a position in a log, as it is told with each chunk of one")]
pub struct PositionError;

/// A text that means something to [`Position::from_str`] alone.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run, file: FileId { inode, born }, byte, offset } = self;
        write!(f, "{run:x}-{inode:x}-{born:x}-{byte:x}-{offset:x}")
    }
}

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let mut numbers = text.split('-').map(|number| u64::from_str_radix(number, 16));
        let mut next = || numbers.next().and_then(Result::ok).ok_or(PositionError);
        let position = Self {
            run: next()?.try_into().map_err(|_| PositionError)?,
            file: FileId { inode: next()?, born: next()? },
            byte: next()?,
            offset: next()?,
        };
        // One spelling for one position.
        if position.to_string() == text { Ok(position) } else { Err(PositionError) }
    }
}

/// Which file it is, under whatever name. A number that is used again belongs to a file that was made later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    inode: u64,
    /// When it was made, nanoseconds since 1970; 0 on a file system that does not know.
    born: u64,
}

impl FileId {
    fn of(metadata: &Metadata) -> Self {
        let born = metadata.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let born = born.map_or(0, |age| u64::try_from(age.as_nanos()).unwrap_or(0));
        Self { inode: metadata.ino(), born }
    }
}

/// Bytes that were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// The run that wrote them.
    pub run: u32,
    /// Place of the first one in the log of the run, counted from 0 with the oldest byte that was there when reading began,
    /// or as it was counted before, by [`Start::At`]. Bytes that are missing are not counted.
    pub offset: u64,
    /// How many there are, at least 1.
    pub len: usize,
    /// Whether bytes may be missing before them: files were dropped by rotation, or cut short by somebody, before they were
    /// read. How many cannot be known.
    pub gap: bool,
    /// Where they end: what to go on from with [`Start::At`].
    pub end: Position,
}

/// Reads the log of one run.
#[derive(Debug)]
pub struct Log {
    files: Files,
    /// Where to begin, once there is something.
    start: Start,
    current: Option<Opened>,
    /// What comes after `current`, once nothing more can be written to that; and whether anything may be missing between.
    upcoming: Option<(Opened, bool)>,
    /// Of the next byte: see [`Chunk::offset`].
    offset: u64,
    gap: bool,
}

/// What comes after a file that was read to its end.
#[derive(Debug)]
enum After {
    /// It is the live one: more may come.
    Live,
    /// It was rotated, and this one came after it; and whether anything may be missing between the two.
    File(Opened, bool),
    /// The files are being renamed.
    Moving,
}

impl Log {
    /// Reads the log of run `run` of `source` from `start`. Nothing is opened yet.
    pub fn new(source: Arc<Source>, run: u32, start: Start) -> Self {
        let files = Files { source, run };
        Self { files, start, current: None, upcoming: None, offset: 0, gap: false }
    }

    /// The run whose log it is.
    pub fn run(&self) -> u32 {
        self.files.run
    }

    /// Whether there was no file to read so far.
    pub fn is_missing(&self) -> bool {
        self.current.is_none()
    }

    /// Reads on, into `buffer`, which is not empty; `None` if there is no more just now.
    ///
    /// # Errors
    ///
    /// [`LogError`].
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<Option<Chunk>, LogError> {
        let mut moving = 0;
        loop {
            let Some(current) = &mut self.current else {
                if self.begin()? {
                    continue;
                }
                return Ok(None);
            };
            match self.files.read(current, buffer)? {
                Read::Bytes(len) => {
                    let (file, byte) = (current.id, current.read);
                    return Ok(Some(self.chunk(len, file, byte)));
                }
                Read::Shrunk => self.gap = true,
                Read::End => {
                    if let Some((next, gap)) = self.upcoming.take() {
                        self.current = Some(next);
                        self.gap |= gap;
                        continue;
                    }
                    match self.files.after(current)? {
                        After::Live => return Ok(None),
                        After::Moving if moving == ATTEMPTS => return Ok(None),
                        After::Moving => {
                            moving += 1;
                            std::thread::yield_now();
                        }
                        // First what was written to `current` between the last read and its rotation.
                        After::File(next, gap) => self.upcoming = Some((next, gap)),
                    }
                }
            }
        }
    }

    /// `len` bytes that end at `byte` of `file`.
    fn chunk(&mut self, len: usize, file: FileId, byte: u64) -> Chunk {
        let (run, offset, gap) = (self.files.run, self.offset, std::mem::take(&mut self.gap));
        self.offset += len as u64;
        Chunk { run, offset, len, gap, end: Position { run, file, byte, offset: self.offset } }
    }

    /// Finds the place to begin; false if there is no file yet. What comes to be after that is all new.
    fn begin(&mut self) -> Result<bool, LogError> {
        let begun = match self.start {
            Start::Oldest => self.files.oldest()?.map(|file| Begun { file, offset: 0, gap: false }),
            Start::Offset(offset) => self.files.at_offset(offset)?,
            Start::LastBytes(count) => self.files.at_last(LastBytes { left: count })?,
            Start::LastLines(count) => {
                self.files.at_last(LastLines { left: count, chunk: None })?
            }
            Start::At(position) => self.files.at(position)?,
        };
        if !matches!(self.start, Start::At(_)) {
            self.start = Start::Oldest;
        }
        let Some(Begun { file, offset, gap }) = begun else { return Ok(false) };
        (self.current, self.offset, self.gap) = (Some(file), offset, gap);
        Ok(true)
    }
}

/// A file of the log, held open.
#[derive(Debug)]
struct Opened {
    file: File,
    id: FileId,
    /// Its number when it was last looked for; it has that or a higher one.
    backup: u32,
    /// Bytes of it that were read.
    read: u64,
}

/// A place to begin.
#[derive(Debug)]
struct Begun {
    file: Opened,
    offset: u64,
    gap: bool,
}

/// What a read led to.
#[derive(Debug)]
enum Read {
    Bytes(usize),
    End,
    /// Somebody has cut the file short; it is read from its beginning.
    Shrunk,
}

/// The files of the log of one run.
#[derive(Debug)]
struct Files {
    source: Arc<Source>,
    run: u32,
}

impl Files {
    fn open(&self, backup: u32) -> Result<Option<Opened>, LogError> {
        let Some(fd) = self.source.open(self.run, backup)? else { return Ok(None) };
        let file = File::from(fd);
        let id = FileId::of(&self.metadata(&file)?);
        Ok(Some(Opened { file, id, backup, read: 0 }))
    }

    fn metadata(&self, file: &File) -> Result<Metadata, LogError> {
        file.metadata().map_err(|error| self.failed(error))
    }

    fn len(&self, opened: &Opened) -> Result<u64, LogError> {
        Ok(self.metadata(&opened.file)?.len())
    }

    fn failed(&self, error: io::Error) -> LogError {
        LogError::Read { path: self.source.path(self.run), error }
    }

    /// Reads `file` on.
    fn read(&self, opened: &mut Opened, buffer: &mut [u8]) -> Result<Read, LogError> {
        match self.read_at(opened, buffer, opened.read)? {
            0 if self.len(opened)? < opened.read => {
                opened.read = 0;
                Ok(Read::Shrunk)
            }
            0 => Ok(Read::End),
            len => {
                opened.read += len as u64;
                Ok(Read::Bytes(len))
            }
        }
    }

    fn read_at(&self, opened: &Opened, buffer: &mut [u8], at: u64) -> Result<usize, LogError> {
        loop {
            match opened.file.read_at(buffer, at) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read.map_err(|error| self.failed(error)),
            }
        }
    }

    /// The file that the log begins with. One that two looks agree on: a look may meet files on the move.
    fn oldest(&self) -> Result<Option<Opened>, LogError> {
        let mut oldest = self.last()?;
        for _ in 0..ATTEMPTS {
            let again = self.last()?;
            let [one, other] = [&oldest, &again].map(|file| file.as_ref().map(|file| file.id));
            oldest = again;
            if one == other {
                break;
            }
        }
        Ok(oldest)
    }

    /// The file with the highest number. A rotation renames from there down, so one number at a time is missing.
    fn last(&self) -> Result<Option<Opened>, LogError> {
        let mut last = None;
        let mut missing = 0;
        for backup in 0.. {
            match self.open(backup)? {
                Some(file) => (last, missing) = (Some(file), 0),
                None if missing == 1 => break,
                None => missing += 1,
            }
        }
        Ok(last)
    }

    /// The file with the lowest number.
    fn newest(&self) -> Result<Option<Opened>, LogError> {
        match self.open(0)? {
            // It was just rotated.
            None => self.open(1),
            live => Ok(live),
        }
    }

    /// The number of `file` by now, and the file with the number before.
    ///
    /// At each step `file` has at least the number that is looked at, since it has no lower one. So the two were neighbours
    /// when the second one was seen.
    fn find(&self, file: &Opened) -> Result<Option<(u32, Option<Opened>)>, LogError> {
        let mut newer = None;
        for backup in file.backup.saturating_sub(1).. {
            match self.open(backup)? {
                Some(found) if found.id == file.id => return Ok(Some((backup, newer))),
                None if backup > file.backup => break,
                other => newer = other,
            }
        }
        Ok(None)
    }

    /// What was written after `file`.
    fn after(&self, file: &mut Opened) -> Result<After, LogError> {
        if self.metadata(&file.file)?.nlink() == 0 {
            // Removed. If nothing has come in its place, it may still be written to.
            let oldest = self.oldest()?.filter(|oldest| oldest.id != file.id);
            return Ok(oldest.map_or(After::Live, |oldest| After::File(oldest, true)));
        }
        let Some((backup, newer)) = self.find(file)? else { return Ok(After::Moving) };
        file.backup = backup;
        Ok(match newer {
            Some(newer) => After::File(newer, false),
            None if backup == 0 => After::Live,
            None => After::Moving,
        })
    }

    /// What was written before `file`; `None` if that is gone.
    fn before(&self, file: &mut Opened) -> Result<Option<Opened>, LogError> {
        for _ in 0..ATTEMPTS {
            let Some((backup, _)) = self.find(file)? else { return Ok(None) };
            file.backup = backup;
            let next = backup.saturating_add(1);
            let older = self.open(next)?;
            // Else it has moved, and what was opened may be anything.
            if self.open(backup)?.is_some_and(|again| again.id == file.id) {
                match older {
                    Some(older) => return Ok(Some(older)),
                    None if self.open(next.saturating_add(1))?.is_none() => return Ok(None),
                    // The one number that is missing while files are renamed.
                    None => {}
                }
            }
            std::thread::yield_now();
        }
        Ok(None)
    }

    fn at_offset(&self, offset: u64) -> Result<Option<Begun>, LogError> {
        let Some(mut file) = self.oldest()? else { return Ok(None) };
        let (mut before, mut gap, mut moving) = (0, false, 0);
        loop {
            // The length after that: what is not live grows no more.
            let after = self.after(&mut file)?;
            let len = self.len(&file)?;
            let within = offset - before;
            match after {
                After::File(next, missing) if within >= len => {
                    (before, gap, moving) = (before + len, gap | missing, 0);
                    file = next;
                }
                After::Moving if within >= len && moving < ATTEMPTS => {
                    moving += 1;
                    std::thread::yield_now();
                }
                _ => {
                    file.read = within.min(len);
                    return Ok(Some(Begun { offset: before + file.read, file, gap }));
                }
            }
        }
    }

    fn at_last(&self, mut back: impl Back) -> Result<Option<Begun>, LogError> {
        let Some(mut file) = self.newest()? else { return Ok(None) };
        let mut last = true;
        loop {
            let len = self.len(&file)?;
            if let Some(byte) = back.look(self, &file, len, last)? {
                file.read = byte;
                break;
            }
            last &= len == 0;
            match self.before(&mut file)? {
                Some(older) => file = older,
                None => break,
            }
        }
        let mut offset = file.read;
        let mut older = self.before(&mut file)?;
        while let Some(mut file) = older {
            offset += self.len(&file)?;
            older = self.before(&mut file)?;
        }
        Ok(Some(Begun { file, offset, gap: false }))
    }

    fn at(&self, position: Position) -> Result<Option<Begun>, LogError> {
        let mut next = self.newest()?;
        while let Some(mut file) = next {
            if file.id == position.file {
                file.read = position.byte;
                return Ok(Some(Begun { file, offset: position.offset, gap: false }));
            }
            next = self.before(&mut file)?;
        }
        let oldest = self.oldest()?;
        Ok(oldest.map(|file| Begun { file, offset: position.offset, gap: true }))
    }
}

/// Looks for a place, from the end of a log backwards.
trait Back {
    /// The place in `file`, which has `len` bytes; `None` if it is in a file before. `last`: nothing comes after these bytes.
    fn look(
        &mut self,
        files: &Files,
        file: &Opened,
        len: u64,
        last: bool,
    ) -> Result<Option<u64>, LogError>;
}

struct LastBytes {
    left: u64,
}

impl Back for LastBytes {
    fn look(&mut self, _: &Files, _: &Opened, len: u64, _: bool) -> Result<Option<u64>, LogError> {
        let place = len.checked_sub(self.left);
        self.left = self.left.saturating_sub(len);
        Ok(place)
    }
}

struct LastLines {
    left: u64,
    /// Only while it is looked.
    chunk: Option<Box<[u8]>>,
}

impl Back for LastLines {
    fn look(
        &mut self,
        files: &Files,
        file: &Opened,
        len: u64,
        last: bool,
    ) -> Result<Option<u64>, LogError> {
        if self.left == 0 {
            return Ok(Some(len));
        }
        let chunk = self.chunk.get_or_insert_with(|| vec![0; CHUNK].into());
        let mut end = len;
        while end > 0 {
            let begin = end.saturating_sub(CHUNK as u64);
            let bytes = &mut chunk[..(end - begin) as usize];
            let read = files.read_at(file, bytes, begin)?;
            if read < bytes.len() {
                // Somebody has cut it short: what is left of it is what there is.
                return Ok(Some(0));
            }
            for (at, _) in bytes.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
                let place = begin + at as u64 + 1;
                // The end of the last line is the end of no line before it.
                if last && place == len {
                    continue;
                }
                self.left -= 1;
                if self.left == 0 {
                    return Ok(Some(place));
                }
            }
            end = begin;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::logs::testing::{Scene, lines};
    use crate::sandbox::PathError;
    use crate::sandbox::logs::Stream;

    /// All that `log` has now, and whether a gap was told.
    fn drain(log: &mut Log) -> (String, bool) {
        let (mut text, mut gap) = (Vec::new(), false);
        let mut buffer = [0; 1000];
        while let Some(chunk) = log.read(&mut buffer).unwrap() {
            text.extend(&buffer[..chunk.len]);
            gap |= chunk.gap;
        }
        (String::from_utf8(text).unwrap(), gap)
    }

    #[test]
    fn a_log_is_read_from_its_oldest_file_to_the_live_one() {
        let scene = Scene::new();
        for number in 0..12 {
            scene.write(number * 10..number * 10 + 10);
            scene.rotate(20);
        }
        scene.write(120..125);

        assert_eq!(drain(&mut scene.log(Start::Oldest)), (lines(0..125), false));
    }

    /// S49.
    #[test]
    fn every_byte_is_read_once_while_the_log_is_rotated() {
        let scene = Scene::new();
        let done = AtomicBool::new(false);
        let mut log = scene.log(Start::Oldest);
        let mut text = String::new();

        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..150 {
                    scene.write(number * 7..number * 7 + 7);
                    scene.rotate(1000);
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                text.push_str(&drain(&mut log).0);
            }
        });
        scene.write(1050..1051);
        text.push_str(&drain(&mut log).0);

        assert!(text == lines(0..1051), "{} lines: {:.40?}…", text.lines().count(), text);
    }

    #[test]
    fn after_a_file_was_dropped_unread_the_oldest_that_is_left_comes_next_and_a_gap_is_told() {
        let scene = Scene::new();
        let mut log = scene.log(Start::Oldest);
        scene.write(0..3);
        assert_eq!(drain(&mut log), (lines(0..3), false));
        for number in 1..4 {
            scene.rotate(1);
            scene.write(number * 3..number * 3 + 3);
        }

        assert_eq!(drain(&mut log), (lines(6..12), true));
        scene.write(12..13);
        assert_eq!(drain(&mut log), (lines(12..13), false), "a gap is told once");
    }

    /// Attack 15: the task has put a link in the place of its log.
    #[test]
    fn a_log_that_is_a_link_is_not_followed() {
        let scene = Scene::new();
        std::os::unix::fs::symlink("/etc/passwd", scene.live()).unwrap();

        let error = scene.log(Start::Oldest).read(&mut [0; 100]).unwrap_err();

        assert!(matches!(error, LogError::Path(PathError::Kind { .. })), "{error}");
    }

    /// Attack 46: somebody else rotates it, by copying it and cutting it short.
    #[test]
    fn a_log_that_was_cut_short_is_read_from_its_beginning_and_a_gap_is_told() {
        let scene = Scene::new();
        let mut log = scene.log(Start::Oldest);
        scene.write(0..10);
        assert_eq!(drain(&mut log), (lines(0..10), false));

        fs::File::options().write(true).open(scene.live()).unwrap().set_len(0).unwrap();
        scene.write(10..12);

        assert_eq!(drain(&mut log), (lines(10..12), true));
    }

    /// What a coordinator that holds it writes to it is still read.
    #[test]
    fn a_log_that_the_task_has_removed_is_read_on() {
        let scene = Scene::new();
        let held = scene.append();
        let mut log = scene.log(Start::Oldest);
        scene.write(0..1);
        drain(&mut log);

        fs::remove_file(scene.live()).unwrap();
        io::Write::write_all(&mut &held, b"held\n").unwrap();

        assert_eq!(drain(&mut log), ("held\n".to_owned(), false));
        scene.write(1..2);
        assert_eq!(drain(&mut log), (lines(1..2), true));
    }

    /// A log of 3 files, the last one `live` and the others with 10 lines each, so 20..30 in the live one.
    fn three(live: &str) -> Scene {
        let scene = Scene::new();
        for number in 0..2 {
            scene.write(number * 10..number * 10 + 10);
            scene.rotate(9);
        }
        fs::write(scene.live(), live).unwrap();
        scene
    }

    #[test]
    fn the_last_lines_are_those_that_tail_prints() {
        let all = |live: &str| lines(0..20) + live;
        for live in ["", "a\n", "a", "\n", "\n\n", "a\n\nb", "a\nb\n", "no end\nof it"] {
            let scene = three(live);
            let all = all(live);
            for count in [0, 1, 2, 3, 4, 12, 13, 21, 22, 23, 24, 100] {
                let mut log = scene.log(Start::LastLines(count));
                let lines: Vec<_> = all.split_inclusive('\n').collect();
                let last = lines[lines.len().saturating_sub(count as usize)..].concat();

                let mut buffer = [0; 4096];
                let first = log.read(&mut buffer).unwrap();

                let offset = all.len() - last.len();
                if let Some(first) = first {
                    assert_eq!(first.offset, offset as u64, "{count} of {live:?}");
                }
                let begun = first.map_or(0, |chunk| chunk.len);
                let text = String::from_utf8(buffer[..begun].to_vec()).unwrap();
                assert_eq!(text + &drain(&mut log).0, last, "{count} of {live:?}");
            }
        }
    }

    #[test]
    fn a_line_longer_than_a_chunk_is_one_line() {
        let scene = Scene::new();
        let long = "x".repeat(3 * CHUNK + 7);
        fs::write(scene.live(), format!("first\n{long}\nlast\n")).unwrap();

        assert_eq!(drain(&mut scene.log(Start::LastLines(2))).0, format!("{long}\nlast\n"));
    }

    #[test]
    fn the_last_bytes_and_an_offset_are_counted_across_files() {
        let live = lines(20..25);
        let scene = three(&live);
        let all = lines(0..25);
        for byte in [0, 1, 69, 70, 71, 100, 150, 151, all.len() - 1, all.len()] {
            let rest = &all[byte..];
            for start in [Start::Offset(byte as u64), Start::LastBytes((all.len() - byte) as u64)] {
                let mut log = scene.log(start);
                let mut buffer = [0; 10];
                let chunk = log.read(&mut buffer).unwrap();
                assert_eq!(chunk.is_none(), rest.is_empty(), "{start:?}");
                let Some(chunk) = chunk else { continue };
                assert_eq!(chunk.offset, byte as u64, "{start:?}");
                let text = String::from_utf8(buffer[..chunk.len].to_vec()).unwrap();
                assert_eq!(text + &drain(&mut log).0, rest, "{start:?}");
            }
        }
        assert_eq!(drain(&mut scene.log(Start::LastBytes(u64::MAX))).0, all);
        assert_eq!(drain(&mut scene.log(Start::Offset(u64::MAX))).0, "");
    }

    #[test]
    fn what_comes_after_the_end_that_was_asked_for_is_read() {
        let scene = three("a\n");
        for start in [Start::LastLines(0), Start::LastBytes(0), Start::Offset(u64::MAX)] {
            let mut log = scene.log(start);
            assert_eq!(drain(&mut log).0, "", "{start:?}");
            scene.write(30..31);
            assert_eq!(drain(&mut log).0, lines(30..31), "{start:?}");
        }
        let none = Scene::new();
        let mut log = none.log(Start::LastLines(0));
        assert_eq!(drain(&mut log).0, "");
        none.write(0..1);
        assert_eq!(drain(&mut log).0, lines(0..1), "all of it is new");
    }

    /// Attack 48: who comes back gets each byte once, whatever was rotated in between, or is told of a gap.
    #[test]
    fn a_reader_that_comes_back_goes_on_where_it_was() {
        let scene = Scene::new();
        scene.write(0..10);
        let mut buffer = [0; 21];
        let chunk = scene.log(Start::Oldest).read(&mut buffer).unwrap().unwrap();
        let end: Position = chunk.end.to_string().parse().unwrap();
        assert_eq!(end, chunk.end);
        scene.rotate(3);
        scene.write(10..20);
        scene.rotate(3);
        scene.write(20..21);

        let mut log = scene.log(Start::At(end));
        let next = log.read(&mut buffer).unwrap().unwrap();

        assert_eq!((next.offset, next.gap), (21, false));
        let text = String::from_utf8(buffer[..next.len].to_vec()).unwrap();
        assert_eq!(text + &drain(&mut log).0, lines(3..21));
        for number in 2..4 {
            scene.rotate(2);
            scene.write(number * 10..number * 10 + 10);
        }
        let lost = scene.log(Start::At(end)).read(&mut buffer).unwrap().unwrap();
        assert_eq!((lost.offset, lost.gap), (21, true));
    }

    /// The number of a dropped file is at once that of the next one, on some file systems.
    #[test]
    fn another_file_with_the_same_inode_is_not_the_one_that_was_read() {
        let scene = Scene::new();
        scene.write(0..10);
        let end = scene.log(Start::Oldest).read(&mut [0; 21]).unwrap().unwrap().end;
        for _ in 0..50 {
            fs::remove_file(scene.live()).unwrap();
            scene.write(0..10);
        }

        let lost = scene.log(Start::At(end)).read(&mut [0; 21]).unwrap().unwrap();

        assert!(lost.gap, "{lost:?}");
    }

    #[test]
    fn only_the_text_of_a_position_is_one() {
        for text in ["", "1", "0-0-0-0", "0-0-0-0-0-0", "00-0-0-0-0", "+0-0-0-0-0", "0-0-0-0-g"] {
            assert_eq!(text.parse::<Position>(), Err(PositionError), "{text}");
        }
        assert_eq!("100000000-0-0-0-0".parse::<Position>(), Err(PositionError));
        assert_eq!("2-a-0-3-f".parse::<Position>().unwrap().run(), 2);
    }

    #[test]
    fn streams_are_read_apart() {
        let scene = Scene::new();
        scene.write(0..3);
        fs::write(scene.live().with_file_name(Stream::Stderr.as_str()), "err").unwrap();

        assert_eq!(drain(&mut scene.log(Start::Oldest)).0, lines(0..3));
    }
}
