//! `dewar read`.

use serde::Serialize;

use super::args::{Output, Read};
use super::failure::{Failure, status};
use super::out::Out;
use super::printer::stdout_style;
use super::term::escape;
use super::{json, report, words};
use crate::causes::tell;
use crate::checkpoint::{Identity, ReadError, Reader, Stream, Tail};
use crate::proto::Record;
use crate::state::RecordError;
use crate::view::{CoordinatorReplay, Replay, ReplayError};

/// Bytes of records that are printed at once.
const BATCH: usize = 64 << 10;

/// A record as it is printed.
#[derive(Serialize)]
struct RecordLine<'a> {
    /// Where its frame begins: as text, as 64-bit integers are in the JSON of messages.
    offset: String,
    #[serde(flatten)]
    record: &'a Record,
}

/// How a stream ends.
enum End {
    /// As its writer left it, or as a crash did.
    Tail(Tail),
    /// Where it cannot be read any further: after so many records, of so many bytes.
    Corrupt { records: u64, offset: u64, why: String },
}

/// Prints a checkpoint stream.
///
/// # Errors
///
/// [`Failure`]. Of a corrupt stream, what could be read is printed before.
pub(super) fn run(args: &Read) -> Result<u8, Failure> {
    let mut reader = Reader::open_file(args.stream.as_path()).map_err(failed)?;
    let end =
        if args.records { records(&mut reader)? } else { replayed(&mut reader, args.output)? };
    let (seq, offset) = (reader.position().seq(), reader.position().offset());
    let stream = match reader.identity() {
        Some(Identity { task, stream }) => format!("{task}/{stream}"),
        None => args.stream.display().to_string(),
    };
    let what = match end {
        End::Tail(Tail::Clean | Tail::Unread) => "ends cleanly".to_owned(),
        End::Tail(Tail::Torn { bytes }) => format!("a torn record of {bytes} bytes follows"),
        End::Corrupt { records, offset, why } => {
            let good = format!("{stream}: {records} records are good, up to byte {offset}");
            let text = format!("{good}; then {why}");
            return Err(Failure::Unavailable(text));
        }
    };
    let told = format!("{stream}: {seq} records in {offset} bytes; {what}");
    tell!("dewar: {}", escape(&told));
    Ok(status::SUCCESS)
}

/// A stream that is not there matches nothing; one that is no stream is corrupt.
fn failed(error: ReadError) -> Failure {
    match error {
        ReadError::Missing { .. } => Failure::NothingMatched(error.to_string()),
        error => Failure::unavailable(&error),
    }
}

/// Hands every record to `each`, with where it begins; says how the stream ends.
fn each_record(
    reader: &mut Reader,
    mut each: impl FnMut(u64, Record) -> Result<(), Failure>,
) -> Result<End, Failure> {
    let tail = loop {
        let offset = reader.position().offset();
        match reader.next_record() {
            Ok(Some(record)) => each(offset, record)?,
            Ok(None) => match reader.tail() {
                Ok(Tail::Unread) => {}
                tail => break tail,
            },
            Err(error) => break Err(error),
        }
    };
    match tail {
        Ok(tail) => Ok(End::Tail(tail)),
        Err(error @ (ReadError::Corrupt { .. } | ReadError::Shrunk { .. })) => {
            let (records, offset) = (reader.position().seq(), reader.position().offset());
            Ok(End::Corrupt { records, offset, why: crate::causes::chain(&error) })
        }
        Err(error) => Err(failed(error)),
    }
}

fn records(reader: &mut Reader) -> Result<End, Failure> {
    let mut out = Out::default();
    let mut lines = String::new();
    let end = each_record(reader, |offset, record| {
        lines += &json::line(&RecordLine { offset: offset.to_string(), record: &record })?;
        if lines.len() > BATCH {
            out.write(std::mem::take(&mut lines))?;
        }
        Ok(())
    });
    out.write(lines)?;
    end
}

/// A stream as far as it was replayed.
enum Folded {
    Nothing,
    Task(Box<Replay>),
    Process(CoordinatorReplay),
}

impl Folded {
    fn text(&self, output: Output) -> Result<String, Failure> {
        let style = stdout_style();
        match (self, output) {
            (Self::Nothing, _) => Ok(String::new()),
            (Self::Task(replay), Output::Json) => json::task(&replay.view(None), None),
            (Self::Task(replay), Output::Text) => Ok(report::summary(&replay.view(None), style)),
            (Self::Process(replay), Output::Json) => json::line(replay.view()),
            (Self::Process(replay), Output::Text) => {
                let runs = report::run_lines(replay.view(), true, style);
                Ok(words::name(&replay.view().name) + "\n" + &runs.join("\n") + "\n")
            }
        }
    }
}

fn replayed(reader: &mut Reader, output: Output) -> Result<End, Failure> {
    let mut folded = match reader.identity() {
        Some(Identity { stream: Stream::Coordinator(process), .. }) => {
            Folded::Process(CoordinatorReplay::new(process))
        }
        _ => Folded::Nothing,
    };
    let mut wrong = None;
    let end = each_record(reader, |offset, record| {
        if wrong.is_some() {
            return Ok(());
        }
        let seq = record.seq;
        let taken = match folded {
            Folded::Nothing => {
                Replay::new(record).map(|replay| folded = Folded::Task(Box::new(replay)))
            }
            Folded::Task(ref mut replay) => replay.apply(record).map(|_| ()),
            Folded::Process(ref mut replay) => replay.apply(record),
        };
        wrong = match taken {
            // Of a later dewar: who only observes passes over it (docs/checkpoint.md).
            Ok(()) | Err(ReplayError::Record { error: RecordError::UnknownKind, .. }) => None,
            Err(error) => Some(End::Corrupt { records: seq, offset, why: error.to_string() }),
        };
        Ok(())
    })?;
    Out::default().write(folded.text(output)?)?;
    Ok(wrong.unwrap_or(end))
}
