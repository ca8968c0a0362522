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

use crc::{CRC_32_ISCSI, Crc, Table};
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
    bytes.extend_from_slice(&crc32c(&bytes).to_le_bytes());
    bytes
}

/// The seed of the stream that begins with `header`, which is whole.
pub(super) fn header_seed(header: &[u8]) -> u32 {
    crc32c(&header[..header.len().saturating_sub(CRC)])
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
    let seed = crc32c(covered);
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

/// The checksum of the format, by tables: a program that asks the processor for better instructions waits for a hypervisor to answer
/// (11 µs each time, 80 µs in all, which is a hundredth of what `dewar run` takes).
static CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

fn crc32c(bytes: &[u8]) -> u32 {
    CRC32C.checksum(bytes)
}

/// The checksum of what `crc` is the checksum of, and then `bytes`.
fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    // What the register holds then, in the order of bits in which this crate takes it.
    let mut digest = CRC32C.digest_with_initial((crc ^ CRC_32_ISCSI.xorout).reverse_bits());
    digest.update(bytes);
    digest.finalize()
}

fn checksum(seed: u32, length: [u8; 4], payload: &[u8]) -> u32 {
    crc32c_append(crc32c_append(seed, &length), payload)
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

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;
    use crate::checkpoint::testing::{
        Bytes, any_kind, coordinator, entered, launch, life, runner, sequence, stream, task,
    };
    use crate::proto::TaskState;

    /// What a stream in memory is to who expects it to be `identity`.
    #[derive(Debug, PartialEq)]
    enum End {
        Clean,
        Torn { bytes: usize },
        Corrupt { offset: usize, flaw: Flaw },
        Version(u32),
    }

    fn read(identity: &Identity, bytes: &[u8]) -> (Vec<Record>, End) {
        let (start, beyond) = bytes.split_at(bytes.len().min(HEADER_MAX));
        let header = match begin(start, trimmed(beyond) > 0) {
            Ok(Some(header)) => header,
            Ok(None) if bytes.is_empty() => return (vec![], End::Clean),
            Ok(None) => return (vec![], End::Torn { bytes: bytes.len() }),
            Err(HeaderError::Version(version)) => return (vec![], End::Version(version)),
            Err(HeaderError::Flaw(flaw)) => return (vec![], End::Corrupt { offset: 0, flaw }),
            Err(HeaderError::Incomplete) => panic!("begin does not say this"),
        };
        if header.identity != *identity {
            let flaw = Flaw::Identity(Box::new(header.identity));
            return (vec![], End::Corrupt { offset: 0, flaw });
        }
        let mut scan = Scan::new(&header, bytes);
        let records = scan.by_ref().collect();
        let offset = scan.offset();
        let end = match scan.rest() {
            Rest::Empty => End::Clean,
            Rest::Torn => End::Torn { bytes: bytes.len() - offset },
            Rest::Corrupt(flaw) => End::Corrupt { offset, flaw },
            Rest::Record => panic!("a scan leaves no record"),
        };
        (records, end)
    }

    #[test]
    fn a_header_is_laid_out_as_promised() {
        let bytes = encode_header(&coordinator());

        let mut expected =
            b"\x89dewar\r\n\x01\0\0\0\x28\0\0\0\x01\0\x0f\0tcoordinator.web".to_vec();
        expected.extend_from_slice(&::crc32c::crc32c(&expected).to_le_bytes());
        assert_eq!(bytes, expected);
        assert_eq!(decode_header(&bytes).unwrap().identity, coordinator());
    }

    #[test]
    fn a_frame_is_laid_out_as_promised() {
        let record = &life()[1];
        let mut bytes = Vec::new();
        encode(7, record, &mut bytes).unwrap();

        let payload = record.encode_to_vec();
        let length = (payload.len() as u32).to_le_bytes();
        let crc = ::crc32c::crc32c_append(7, &[&length[..], &payload].concat());
        assert_eq!(bytes, [&length[..], &crc.to_le_bytes(), &payload].concat());
        // The search for a record behind a bad frame relies on it.
        assert_eq!(payload[0], SEQ_KEY);
    }

    #[test]
    fn the_longest_names_fit_a_header() {
        let longest = "x".repeat(crate::task::NAME_MAX);
        let process = crate::task::ProcessName::new(longest.clone()).unwrap();
        let identity = Identity::coordinator(task(&longest), process);

        let bytes = encode_header(&identity);

        assert!(bytes.len() <= HEADER_MAX);
        assert_eq!(decode_header(&bytes).unwrap().identity, identity);
    }

    #[test]
    fn a_record_must_fit_a_frame() {
        let longest = |length| sequence([launch(length)]).remove(0);
        let around = longest(RECORD_MAX).encoded_len() - RECORD_MAX;
        let mut bytes = vec![1, 2, 3];

        let error = encode(0, &longest(RECORD_MAX), &mut bytes).unwrap_err();
        assert_eq!(error.length, RECORD_MAX + around);
        assert_eq!(bytes, [1, 2, 3]);
        assert_eq!(encode(0, &Record::default(), &mut bytes), Err(LengthError { length: 0 }));

        let mut bytes = Vec::new();
        encode(0, &longest(RECORD_MAX - around), &mut bytes).unwrap();
        assert_eq!(decode(0, 0, &bytes).unwrap().length, FRAME_MAX);
    }

    /// Attack 37.
    #[test]
    fn a_stream_cut_at_any_byte_replays_to_a_prefix_and_tells_the_dropped_bytes() {
        let records = life();
        let Bytes { bytes, bounds } = stream(&runner(), &records);
        for cut in 0..=bytes.len() {
            let whole = bounds.iter().filter(|bound| **bound <= cut).count().saturating_sub(1);
            let end = bounds.iter().copied().filter(|bound| *bound <= cut).max().unwrap_or(0);

            let (replayed, found) = read(&runner(), &bytes[..cut]);

            assert_eq!(replayed, records[..whole], "cut at {cut}");
            let expected = if end == cut { End::Clean } else { End::Torn { bytes: cut - end } };
            assert_eq!(found, expected, "cut at {cut}");
        }
    }

    /// Attack 38: the length of the file reached the disk, its bytes did not.
    #[test]
    fn zeros_after_a_cut_at_any_byte_are_torn_too() {
        let records = life();
        let Bytes { bytes, bounds } = stream(&runner(), &records);
        for cut in 0..bytes.len() {
            for zeros in [1, 7, 8, 9, 4096] {
                let mut torn = bytes[..cut].to_vec();
                torn.resize(cut + zeros, 0);

                let (replayed, found) = read(&runner(), &torn);

                // A frame may end in zeros itself.
                assert!(records.starts_with(&replayed));
                let end = if cut < bounds[0] { 0 } else { bounds[replayed.len()] };
                let expected = match torn.len() - end {
                    0 => End::Clean,
                    bytes => End::Torn { bytes },
                };
                assert_eq!(found, expected, "cut at {cut}, {zeros} zeros");
            }
        }
    }

    /// Attack 38.
    #[test]
    fn every_flipped_bit_is_seen_and_none_changes_a_record() {
        let records = life();
        let Bytes { bytes, bounds } = stream(&runner(), &records);
        let last = bounds[records.len() - 1];
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let hit = bounds.iter().rposition(|bound| *bound <= bit / 8).unwrap_or(0);

            let (replayed, end) = read(&runner(), &flipped);

            if bit / 8 < bounds[0] {
                assert_eq!(replayed, [], "bit {bit}");
                assert!(matches!(end, End::Corrupt { offset: 0, .. }), "bit {bit}: {end:?}");
                continue;
            }
            assert_eq!(replayed, records[..hit], "bit {bit}");
            match end {
                End::Corrupt { offset, .. } => assert_eq!(offset, bounds[hit], "bit {bit}"),
                // Only what may be the last append of a crash.
                End::Torn { bytes } => assert_eq!(bytes, flipped.len() - last, "bit {bit}"),
                other => panic!("bit {bit}: {other:?}"),
            }
        }
    }

    fn corrupt(offset: usize, flaw: Flaw) -> End {
        End::Corrupt { offset, flaw }
    }

    /// Attack 38: a length in the middle that claims more than is left looks like a last frame that is not whole.
    #[test]
    fn a_length_that_claims_the_rest_of_the_stream_is_corruption() {
        let Bytes { mut bytes, bounds } = stream(&runner(), &life());
        bytes[bounds[2] + 2] = 0x10;

        let (replayed, end) = read(&runner(), &bytes);

        assert_eq!(replayed, life()[..2]);
        let left = (bytes.len() - bounds[2]) as u64;
        let needed = u64::from(u32_at(&bytes, bounds[2]).unwrap()) + 8;
        assert_eq!(end, corrupt(bounds[2], Flaw::Overrun { needed, left }));
    }

    /// Attack 38.
    #[test]
    fn a_length_of_four_gibibytes_is_corruption_wherever_it_is() {
        for frame in 0..life().len() {
            let Bytes { mut bytes, bounds } = stream(&runner(), &life());
            bytes[bounds[frame]..][..4].copy_from_slice(&u32::MAX.to_le_bytes());

            let (_, end) = read(&runner(), &bytes);

            assert_eq!(end, corrupt(bounds[frame], Flaw::Length(u32::MAX)));
        }
    }

    /// Attack 38.
    #[test]
    fn swapped_frames_are_corruption() {
        let Bytes { bytes, bounds } = stream(&runner(), &life());
        let frame = |n: usize| &bytes[bounds[n]..bounds[n + 1]];
        let swapped = [&bytes[..bounds[4]], frame(5), frame(4)].concat();

        let (replayed, end) = read(&runner(), &swapped);

        assert_eq!(replayed, life()[..4]);
        assert_eq!(end, corrupt(bounds[4], Flaw::Sequence { expected: 4, found: 5 }));
    }

    /// Attack 38.
    #[test]
    fn a_frame_that_is_there_twice_is_corruption() {
        let Bytes { bytes, bounds } = stream(&runner(), &life());
        let twice = [&bytes[..], &bytes[bounds[5]..]].concat();

        let (replayed, end) = read(&runner(), &twice);

        assert_eq!(replayed, life());
        assert_eq!(end, corrupt(bytes.len(), Flaw::Sequence { expected: 6, found: 5 }));
    }

    /// Attack 38.
    #[test]
    fn a_missing_frame_is_corruption() {
        let Bytes { bytes, bounds } = stream(&runner(), &life());
        let missing = [&bytes[..bounds[1]], &bytes[bounds[2]..]].concat();

        let (replayed, end) = read(&runner(), &missing);

        assert_eq!(replayed, life()[..1]);
        assert_eq!(end, corrupt(bounds[1], Flaw::Sequence { expected: 1, found: 2 }));
    }

    /// Attack 38.
    #[test]
    fn a_repeated_stream_is_corruption() {
        let Bytes { bytes, .. } = stream(&runner(), &life());
        let header = u32::from_le_bytes(*b"\x89dew");

        let (_, end) = read(&runner(), &[&bytes[..], &bytes[..]].concat());

        assert_eq!(end, corrupt(bytes.len(), Flaw::Length(header)));
    }

    /// Attack 38: the frames fit in length and position, and still they are another task's.
    #[test]
    fn a_frame_of_another_task_is_corruption() {
        let Bytes { bytes, bounds } = stream(&runner(), &life());
        let other = stream(&Identity::runner(task("u")), &life());
        assert_eq!(other.bounds, bounds);
        let mut spliced = bytes.clone();
        spliced[bounds[3]..bounds[4]].copy_from_slice(&other.bytes[bounds[3]..bounds[4]]);

        let (replayed, end) = read(&runner(), &spliced);

        assert_eq!(replayed, life()[..3]);
        assert_eq!(end, corrupt(bounds[3], Flaw::Checksum));
    }

    /// Attacks 38, 40: a whole stream in the place of another.
    #[test]
    fn a_stream_of_another_task_is_corruption() {
        let other = Identity::runner(task("u"));
        let Bytes { bytes, .. } = stream(&other, &life());

        let (replayed, end) = read(&runner(), &bytes);

        assert_eq!(replayed, []);
        let flaw = Flaw::Identity(Box::new(other));
        assert_eq!(flaw.to_string(), r#"this is stream "runner" of task "u""#);
        assert_eq!(end, corrupt(0, flaw));
    }

    /// Attacks 38, 41.
    #[test]
    fn a_later_format_is_told_from_a_damaged_header() {
        let Bytes { mut bytes, bounds } = stream(&runner(), &life());
        bytes[8] = 2;
        assert_eq!(read(&runner(), &bytes).1, corrupt(0, Flaw::HeaderChecksum));

        let crc = ::crc32c::crc32c(&bytes[..bounds[0] - 4]);
        bytes[bounds[0] - 4..bounds[0]].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(read(&runner(), &bytes), (vec![], End::Version(2)));
    }

    /// Attack 38.
    #[test]
    fn a_block_of_zeros_in_the_middle_is_corruption_and_at_the_end_is_torn() {
        let Bytes { bytes, bounds } = stream(&runner(), &life());
        let mut middle = bytes.clone();
        middle[bounds[1]..bounds[3]].fill(0);
        let mut end = bytes.clone();
        end[bounds[4]..].fill(0);

        assert_eq!(
            read(&runner(), &middle),
            (life()[..1].to_vec(), corrupt(bounds[1], Flaw::Length(0)))
        );
        let torn = End::Torn { bytes: bytes.len() - bounds[4] };
        assert_eq!(read(&runner(), &end), (life()[..4].to_vec(), torn));
    }

    #[test]
    fn damage_that_no_torn_append_leaves_is_corruption_even_at_the_end() {
        let Bytes { bytes, bounds } = stream(&runner(), &life());
        let mut two = bytes.clone();
        two[bounds[4] + 20] ^= 1;
        two[bounds[5] + 10] ^= 1;

        assert_eq!(read(&runner(), &two).1, corrupt(bounds[4], Flaw::Checksum));
    }

    #[test]
    fn a_whole_frame_that_holds_no_record_is_corruption_even_at_the_end() {
        let Bytes { mut bytes, bounds } = stream(&runner(), &life());
        let seed = header_seed(&bytes[..bounds[0]]);
        // Field 1, length-delimited, 255 bytes: not a record.
        let (length, payload) = (3u32.to_le_bytes(), [0x0a, 0xff, 0x01]);
        let end = bytes.len();
        bytes.extend_from_slice(&length);
        bytes.extend_from_slice(&checksum(seed, length, &payload).to_le_bytes());
        bytes.extend_from_slice(&payload);

        let (replayed, found) = read(&runner(), &bytes);

        assert_eq!(replayed, life());
        assert!(
            matches!(found, End::Corrupt { offset, flaw: Flaw::Undecodable(_) } if offset == end)
        );
    }

    /// Attack 41: an observer goes on; that a runner does not is the writer's business.
    #[test]
    fn a_record_of_a_later_dewar_is_read_without_its_kind() {
        let Bytes { mut bytes, bounds } = stream(&runner(), &life());
        let seed = header_seed(&bytes[..bounds[0]]);
        // seq 6; field 1000, a message of one byte.
        let (length, payload) = (6u32.to_le_bytes(), [0x08, 6, 0xc2, 0x3e, 1, 0]);
        bytes.extend_from_slice(&length);
        bytes.extend_from_slice(&checksum(seed, length, &payload).to_le_bytes());
        bytes.extend_from_slice(&payload);

        let (replayed, end) = read(&runner(), &bytes);

        assert_eq!(replayed[6], Record { seq: 6, ..Record::default() });
        assert_eq!(end, End::Clean);
    }

    /// A torn record may hold what its user chose: bytes that look like frames, each of which must be summed up.
    #[test]
    fn the_search_for_records_behind_a_torn_frame_is_bounded() {
        const HALF: usize = 8 << 20;
        let mut rest = vec![SEQ_KEY; FRAME_HEADER + RECORD_MAX];
        for start in (0..HALF).step_by(2 * FRAME_HEADER) {
            rest[start..start + 4].copy_from_slice(&((HALF - 64) as u32).to_le_bytes());
        }
        rest[..4].copy_from_slice(&(RECORD_MAX as u32).to_le_bytes());

        let doubt = classify(0, 1, &rest, false);
        let plain = classify(0, 1, &[&rest[..4], &[1; HALF]].concat(), false);

        assert_eq!(doubt, Rest::Corrupt(Flaw::Checksum));
        assert_eq!(plain, Rest::Torn);
    }

    proptest! {
        /// Attack 37.
        #[test]
        fn any_stream_cut_anywhere_and_padded_replays_to_a_prefix(
            kinds in vec(any_kind(), 0..8), cut in any::<proptest::sample::Index>(), zeros in 0..64usize,
        ) {
            let records = sequence(kinds);
            let Bytes { mut bytes, bounds } = stream(&coordinator(), &records);
            bytes.truncate(bounds[0] + cut.index(bytes.len() - bounds[0] + 1));
            bytes.resize(bytes.len() + zeros, 0);

            let (replayed, end) = read(&coordinator(), &bytes);

            prop_assert!(records.starts_with(&replayed));
            let left = bytes.len() - bounds[replayed.len()];
            let expected = if left == 0 { End::Clean } else { End::Torn { bytes: left } };
            prop_assert_eq!(end, expected);
        }

        /// Attack 38.
        #[test]
        fn any_change_of_any_stream_leaves_a_prefix_of_its_records(
            kinds in vec(any_kind(), 1..8), at in any::<proptest::sample::Index>(), change in vec(any::<u8>(), 1..40),
        ) {
            let records = sequence(kinds);
            let Bytes { bytes, .. } = stream(&coordinator(), &records);
            let at = at.index(bytes.len());
            let length = change.len().min(bytes.len() - at);
            let mut changed = bytes.clone();
            changed[at..at + length].copy_from_slice(&change[..length]);

            let (replayed, end) = read(&coordinator(), &changed);

            prop_assert!(records.starts_with(&replayed));
            prop_assert_eq!(end == End::Clean, changed == bytes);
        }

        /// Attack 38: no bytes make it panic, and what it believes it can prove.
        #[test]
        fn any_bytes_are_judged(bytes in vec(any::<u8>(), 0..600)) {
            let (records, end) = read(&runner(), &bytes);
            prop_assert!(records.is_empty());
            prop_assert_eq!(end == End::Clean, bytes.is_empty());
        }

        #[test]
        fn no_header_is_taken_for_another(
            first in "[a-z]{1,20}", second in "[a-z]{1,20}",
        ) {
            let [a, b] = [&first, &second].map(|id| encode_header(&Identity::runner(task(id))));
            prop_assert_eq!(decode_header(&a).unwrap().identity.task, task(&first));
            prop_assert_eq!(a == b, first == second);
        }
    }

    #[test]
    fn a_stream_of_nothing_but_zeros_was_never_begun() {
        assert_eq!(read(&runner(), &[0; 5000]), (vec![], End::Torn { bytes: 5000 }));
    }

    #[test]
    fn a_state_that_is_not_known_is_still_a_record() {
        let mut record = sequence([entered(TaskState::Active)]).remove(0);
        record.kind =
            Some(crate::proto::record::Kind::Task(crate::proto::TaskTransition { state: 99 }));
        let mut bytes = Vec::new();
        encode(1, &record, &mut bytes).unwrap();

        assert_eq!(decode(1, 0, &bytes).unwrap().record, record);
    }
}
