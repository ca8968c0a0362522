//! The bytes of a stream: its header, its frames, and what a crash may leave behind them. Pure.
//!
//! ```text
//! header  magic 8 | version u32 | header length u32 | task length u16 | stream length u16 | task | stream | crc32c u32
//! frame   length u32 | crc32c u32 | record (protobuf, `length` bytes)
//! ```
//!
//! Integers are little-endian. docs/checkpoint.md is the promise; this file keeps it.
//!
//! - The checksum of the header covers all of it but itself. It is the *seed* of every frame's checksum, which covers
//!   the frame's length and record: a frame of another stream never fits, for equal frames under different seeds have
//!   different checksums.
//! - A record carries its position, so a frame that was dropped, repeated or moved never fits either.
//! - No length is believed before it was compared with the limit and with the bytes that are there.
//!
//! An append that a crash tore leaves a beginning of what was to be written, and after it nothing, or zeros where the
//! length of the file reached the disk and its bytes did not. Only that is [`Rest::Torn`]; [`classify`] has the rule.
//! Anything else that is not a record is corruption.

use prost::Message;

use super::identity::{Identity, Stream};
use crate::proto::Record;
use crate::task::{NameError, TaskId};

/// What every stream begins with; not text, and damaged by whatever rewrites the ends of lines.
pub const MAGIC: [u8; 8] = *b"\x89dewar\r\n";
/// The version of the format that is written, and the only one that is read.
pub const VERSION: u32 = 1;
/// Most bytes of one record.
pub const RECORD_MAX: usize = 16 << 20;
/// Most bytes of a header, in any version.
pub const HEADER_MAX: usize = 4096;
/// Most bytes of a frame: no torn append is longer.
pub const FRAME_MAX: usize = FRAME_HEADER + RECORD_MAX;

/// Bytes of a frame before its record: length and checksum.
const FRAME_HEADER: usize = 8;
/// Bytes of a header that every version has: magic, version, length.
const PREAMBLE: usize = 16;
/// Bytes of a header before the two names.
const NAMES: usize = PREAMBLE + 4;
/// Bytes of a checksum.
const CRC: usize = 4;
/// First byte of every record but the first: the key of `Record.seq`, a varint.
const SEQ_KEY: u8 = 0x08;
/// Bytes that the search for a record behind a bad frame may sum up, before it gives up in doubt.
const SEARCH_BUDGET: usize = 64 << 20;

/// What is wrong with bytes that should be a header or a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// The file is something else.
    #[error("not a stream: the magic number is missing")]
    Magic,
    /// A length in the header is impossible, or they disagree.
    #[error("the lengths in the header are wrong")]
    HeaderLength,
    /// The header was altered.
    #[error("the checksum of the header is wrong")]
    HeaderChecksum,
    /// The header names no possible task.
    #[error("the header names an impossible task")]
    Task(#[source] NameError),
    /// The header names no possible stream.
    #[error("the header names an impossible stream")]
    Stream,
    /// The stream was put in the place of another.
    #[error("this is {0}")]
    Identity(Box<Identity>),
    /// No frame has this length.
    #[error("a frame cannot have a record of {0} bytes")]
    Length(u32),
    /// The frame claims more bytes than are left, though records follow it.
    #[error("a frame claims {needed} bytes, but {left} are left, with records among them")]
    Overrun {
        /// Bytes that it claims.
        needed: u64,
        /// Bytes from its start to the end of the file.
        left: u64,
    },
    /// The frame was altered, or belongs to another stream.
    #[error("the checksum of a frame is wrong")]
    Checksum,
    /// The frame is whole, but its record is no record.
    #[error("a record cannot be decoded")]
    Undecodable(#[source] prost::DecodeError),
    /// Records are missing, repeated or out of place.
    #[error("record {found} is where record {expected} should be")]
    Sequence {
        /// Position of the record that was due.
        expected: u64,
        /// Position of the record that is there.
        found: u64,
    },
}

/// Why a header was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// All that is there can begin a header, but it is not whole.
    #[error("the header is not whole")]
    Incomplete,
    /// It was written by a later dewar.
    #[error("format version {0} is not known")]
    Version(u32),
    /// It is not a header.
    #[error(transparent)]
    Flaw(#[from] Flaw),
}

/// Why a frame was not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The frame has more bytes than there are.
    Incomplete {
        /// Bytes that are needed from the start of the frame, at most [`FRAME_MAX`].
        needed: usize,
    },
    /// It is not the frame that is due.
    Bad(Flaw),
}

/// A record is too long for a frame, or has no content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record of {length} bytes; 1 to {RECORD_MAX} are possible")]
pub struct LengthError {
    /// Bytes of the record.
    pub length: usize,
}

/// The header of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The stream that it begins.
    pub identity: Identity,
    /// Bytes of the header: where the first frame is.
    pub length: usize,
    /// Seed of every frame's checksum.
    pub seed: u32,
}

/// A frame that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// Its record.
    pub record: Record,
    /// Bytes of the whole frame: where the next one is.
    pub length: usize,
}

/// What follows the last record of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rest {
    /// Nothing.
    Empty,
    /// The next record, whole and good.
    Record,
    /// What an append that a crash tore leaves, and nothing else.
    Torn,
    /// Anything else. Nothing of the task is to be run.
    Corrupt(Flaw),
}

/// Encodes the header of a stream.
pub fn encode_header(identity: &Identity) -> Vec<u8> {
    let (task, stream) = (identity.task.as_str(), identity.stream.to_string());
    // A name has at most 255 bytes, so no length is cut short.
    let length = NAMES + task.len() + stream.len() + CRC;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(length as u32).to_le_bytes());
    bytes.extend_from_slice(&(task.len() as u16).to_le_bytes());
    bytes.extend_from_slice(&(stream.len() as u16).to_le_bytes());
    bytes.extend_from_slice(task.as_bytes());
    bytes.extend_from_slice(stream.as_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

/// The seed of the stream that begins with `header`, which is whole.
pub(super) fn header_seed(header: &[u8]) -> u32 {
    crc32c::crc32c(&header[..header.len().saturating_sub(CRC)])
}

/// Length of the frame at the start of `bytes`, which are good frames; `None` where there is none.
pub(super) fn length_at(bytes: &[u8]) -> Option<usize> {
    u32_at(bytes, 0).map(|length| FRAME_HEADER + length as usize)
}

/// Decodes the header at the start of `bytes`.
///
/// # Errors
///
/// [`HeaderError`]. A later version is told from a damaged header by its checksum, which every version has at the end
/// of its header.
pub fn decode_header(bytes: &[u8]) -> Result<Header, HeaderError> {
    let magic = &bytes[..bytes.len().min(MAGIC.len())];
    if !MAGIC.starts_with(magic) {
        return Err(Flaw::Magic.into());
    }
    let (Some(version), Some(length)) = (u32_at(bytes, 8), u32_at(bytes, 12)) else {
        return Err(HeaderError::Incomplete);
    };
    let length = length as usize;
    if !(PREAMBLE + CRC..=HEADER_MAX).contains(&length) {
        return Err(Flaw::HeaderLength.into());
    }
    // Said twice, so that a damaged length is not taken for a header that goes on where the file ends.
    if version == VERSION && names_at(bytes).is_some_and(|names| names.length() != length) {
        return Err(Flaw::HeaderLength.into());
    }
    let header = bytes.get(..length).ok_or(HeaderError::Incomplete)?;
    let (covered, crc) = header.split_at(length - CRC);
    let seed = crc32c::crc32c(covered);
    if crc != seed.to_le_bytes() {
        return Err(Flaw::HeaderChecksum.into());
    }
    if version != VERSION {
        return Err(HeaderError::Version(version));
    }
    let identity = names_at(covered).ok_or(Flaw::HeaderLength)?.identity(&covered[NAMES..])?;
    Ok(Header { identity, length, seed })
}

/// Reads the header of a file, or nothing where its writer did not get further than a part of it.
///
/// `bytes` is the whole file, or its first [`HEADER_MAX`] bytes; `more` says that a byte other than zero follows them.
///
/// # Errors
///
/// [`HeaderError`], but never [`HeaderError::Incomplete`].
pub fn begin(bytes: &[u8], more: bool) -> Result<Option<Header>, HeaderError> {
    match decode_header(bytes) {
        Ok(header) => Ok(Some(header)),
        Err(version @ HeaderError::Version(_)) => Err(version),
        Err(_) if !more && is_torn_header(bytes) => Ok(None),
        // Zeros up to the end, and then something: no append leaves that.
        Err(HeaderError::Incomplete) => Err(Flaw::HeaderLength.into()),
        Err(flaw) => Err(flaw),
    }
}

/// Appends the frame of `record` to `out`, which on error is left as it was.
///
/// # Errors
///
/// [`LengthError`]: no frame holds such a record.
pub fn encode(seed: u32, record: &Record, out: &mut Vec<u8>) -> Result<(), LengthError> {
    let length = record.encoded_len();
    if length == 0 || length > RECORD_MAX {
        return Err(LengthError { length });
    }
    let size = (length as u32).to_le_bytes();
    out.reserve(FRAME_HEADER + length);
    out.extend_from_slice(&size);
    let crc_at = out.len();
    out.extend_from_slice(&[0; CRC]);
    let record_at = out.len();
    record.encode(out).expect("a vector takes every record");
    let crc = checksum(seed, size, &out[record_at..]);
    out[crc_at..record_at].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// Decodes the frame at the start of `bytes`, which must hold record `seq`.
///
/// # Errors
///
/// [`Stop`]. A record of a later dewar is no error: its `kind` is absent.
pub fn decode(seed: u32, seq: u64, bytes: &[u8]) -> Result<Frame, Stop> {
    let payload = payload(seed, bytes)?;
    let record = Record::decode(payload).map_err(|error| Stop::Bad(Flaw::Undecodable(error)))?;
    if record.seq != seq {
        return Err(Stop::Bad(Flaw::Sequence { expected: seq, found: record.seq }));
    }
    Ok(Frame { record, length: FRAME_HEADER + payload.len() })
}

/// Says what follows the last good record.
///
/// `rest` is the file from the end of that record, all of it or its first [`FRAME_MAX`] bytes; `more` says that a byte
/// other than zero follows `rest`; `seq` is the position of the record that is due.
///
/// It is torn only if all of this holds:
///
/// 1. It is shorter than a length and a checksum; or it is all zeros; or it begins with a possible length, and every
///    byte beyond the frame of that length, if there is one, is zero.
/// 2. A frame that is whole has a wrong checksum (a right one makes it a record, good or misplaced).
/// 3. No frame of a record `seq` or later begins further on. Here a damaged length in the middle of a stream shows,
///    which otherwise looks like a last frame that is not whole.
///
/// The search of rule 3 is bounded; where its budget does not suffice the answer is corruption.
pub fn classify(seed: u32, seq: u64, rest: &[u8], more: bool) -> Rest {
    if rest.is_empty() && !more {
        return Rest::Empty;
    }
    let flaw = match decode(seed, seq, rest) {
        Ok(_) => return Rest::Record,
        Err(Stop::Incomplete { needed }) => {
            Flaw::Overrun { needed: needed as u64, left: rest.len() as u64 }
        }
        Err(Stop::Bad(flaw)) => flaw,
    };
    let placed = matches!(flaw, Flaw::Undecodable(_) | Flaw::Sequence { .. });
    if placed || more || !ends_torn(rest) || is_followed(seed, seq, rest) {
        Rest::Corrupt(flaw)
    } else {
        Rest::Torn
    }
}

/// Reads the records of a stream that is in memory, up to the first that is not good.
#[derive(Debug, Clone)]
pub struct Scan<'a> {
    bytes: &'a [u8],
    offset: usize,
    seed: u32,
    seq: u64,
}

impl<'a> Scan<'a> {
    /// Begins at the first frame after `header`, which is that of `bytes`.
    pub fn new(header: &Header, bytes: &'a [u8]) -> Self {
        Self { bytes, offset: header.length, seed: header.seed, seq: 0 }
    }

    /// Where the next frame is.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// What follows the records that were read.
    pub fn rest(&self) -> Rest {
        let rest = self.left();
        let (window, beyond) = rest.split_at(rest.len().min(FRAME_MAX));
        classify(self.seed, self.seq, window, trimmed(beyond) > 0)
    }

    fn left(&self) -> &'a [u8] {
        self.bytes.get(self.offset..).unwrap_or_default()
    }
}

impl Iterator for Scan<'_> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        let frame = decode(self.seed, self.seq, self.left()).ok()?;
        self.offset += frame.length;
        self.seq += 1;
        Some(frame.record)
    }
}

/// The record in the frame at the start of `bytes`, its checksum verified.
fn payload(seed: u32, bytes: &[u8]) -> Result<&[u8], Stop> {
    let (Some(length), Some(crc)) = (u32_at(bytes, 0), u32_at(bytes, 4)) else {
        return Err(Stop::Incomplete { needed: FRAME_HEADER });
    };
    if !is_possible(length) {
        return Err(Stop::Bad(Flaw::Length(length)));
    }
    let needed = FRAME_HEADER + length as usize;
    let payload = bytes.get(FRAME_HEADER..needed).ok_or(Stop::Incomplete { needed })?;
    if checksum(seed, length.to_le_bytes(), payload) != crc {
        return Err(Stop::Bad(Flaw::Checksum));
    }
    Ok(payload)
}

/// Rule 1 of [`classify`].
fn ends_torn(rest: &[u8]) -> bool {
    let used = trimmed(rest);
    if used == 0 || rest.len() < FRAME_HEADER {
        return true;
    }
    u32_at(rest, 0)
        .is_some_and(|length| is_possible(length) && used <= FRAME_HEADER + length as usize)
}

/// Rule 3 of [`classify`]: whether a good frame of record `seq` or later begins in `rest`, but not at its start.
fn is_followed(seed: u32, seq: u64, rest: &[u8]) -> bool {
    let mut budget = SEARCH_BUDGET;
    for start in 1..rest.len().saturating_sub(FRAME_HEADER) {
        let candidate = &rest[start..];
        let Some(length) = u32_at(candidate, 0).filter(|length| is_possible(*length)) else {
            continue;
        };
        let end = FRAME_HEADER + length as usize;
        if candidate.len() < end || candidate[FRAME_HEADER] != SEQ_KEY {
            continue;
        }
        let Some(left) = budget.checked_sub(end) else {
            return true;
        };
        budget = left;
        let record = payload(seed, candidate).ok().and_then(|bytes| Record::decode(bytes).ok());
        if record.is_some_and(|record| record.seq >= seq) {
            return true;
        }
    }
    false
}

/// Whether `bytes`, to the end of the file, are the beginning of a header, or of one that ends in zeros.
fn is_torn_header(bytes: &[u8]) -> bool {
    decode_header(&bytes[..trimmed(bytes)]) == Err(HeaderError::Incomplete)
}

/// Length of `bytes` without the zeros at its end.
pub(super) fn trimmed(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

fn is_possible(length: u32) -> bool {
    (1..=RECORD_MAX).contains(&(length as usize))
}

fn checksum(seed: u32, length: [u8; 4], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(seed, &length), payload)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*field))
}

/// Lengths of the two names of a header.
struct Names {
    task: usize,
    stream: usize,
}

fn names_at(bytes: &[u8]) -> Option<Names> {
    let [task_low, task_high, low, high] = u32_at(bytes, PREAMBLE)?.to_le_bytes();
    let task = u16::from_le_bytes([task_low, task_high]).into();
    let stream = u16::from_le_bytes([low, high]).into();
    Some(Names { task, stream })
}

impl Names {
    /// Length of the header that has these names.
    fn length(&self) -> usize {
        NAMES + self.task + self.stream + CRC
    }

    fn identity(&self, bytes: &[u8]) -> Result<Identity, Flaw> {
        let text = std::str::from_utf8(bytes).map_err(|_| Flaw::Stream)?;
        let (task, stream) = text.split_at_checked(self.task).ok_or(Flaw::Stream)?;
        let task = TaskId::new(task).map_err(Flaw::Task)?;
        let stream = Stream::parse(stream).map_err(|_| Flaw::Stream)?;
        Ok(Identity { task, stream })
    }
}
