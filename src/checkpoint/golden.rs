//! The streams under `tests/data/checkpoints`: what was written once is read for ever.
//!
//! They are added to, never edited. A sound stream has its records beside it, a line of JSON each.
#![allow(clippy::disallowed_methods, reason = "tests on real files")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::frame;
use super::testing::{coordinator, runner, stream};
use super::{Identity, Reader, Tail};
use crate::proto::Record;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoints/v1").join(name)
}

fn records(name: &str) -> Vec<Record> {
    let lines = fs::read_to_string(golden(&format!("{name}.jsonl"))).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What the stream `name` replays to, and how it ends.
fn replay(name: &str) -> (Vec<Record>, String) {
    let path = golden(name);
    let mut records = Vec::new();
    let end = match Reader::open_file(&path)
        .map(|mut reader| reader.replay(|record| records.push(record)))
    {
        Ok(Ok(Tail::Clean)) => "clean".to_owned(),
        Ok(Ok(Tail::Torn { bytes })) => format!("torn: {bytes}"),
        Ok(Ok(Tail::Unread)) => panic!("a replay reads all"),
        Ok(Err(error)) | Err(error) => error.to_string(),
    };
    let dir = format!("{}/", golden("").display().to_string().trim_end_matches('/'));
    (records, end.replace(&dir, ""))
}

#[test]
fn sound_golden_streams_are_read_as_they_were_written() {
    for name in ["runner", "runner.requests", "coordinator.web"] {
        let (read, end) = replay(name);

        assert_eq!(read, records(name));
        assert_eq!(end, "clean");
    }
}

#[test]
fn golden_streams_would_be_written_the_same_today() {
    let all =
        [("runner", runner()), ("runner.requests", runner()), ("coordinator.web", coordinator())];
    for (name, identity) in all {
        assert!(
            fs::read(golden(name)).unwrap() == stream(&identity, &records(name)).bytes,
            "{name}"
        );
    }
}

#[test]
fn every_kind_of_record_is_in_a_golden_stream() {
    let all: Vec<Record> = ["runner", "runner.requests", "coordinator.web"]
        .iter()
        .flat_map(|name| records(name))
        .collect();
    let kinds: std::collections::HashSet<_> =
        all.iter().map(|record| std::mem::discriminant(record.kind.as_ref().unwrap())).collect();

    // Fields 4 to 15 of Record.
    assert_eq!(kinds.len(), 12);
}

#[test]
fn damaged_golden_streams_are_told_as_they_always_were() {
    let sound = records("runner");
    for (name, whole, expected) in [
        ("runner.empty", 0, "clean"),
        ("runner.header-torn", 0, "torn: 20"),
        ("runner.torn", 9, "torn: 11"),
        ("runner.zeros", 10, "torn: 512"),
        ("runner.flipped", 5, "runner.flipped is corrupt at byte 659"),
        ("runner.length", 5, "runner.length is corrupt at byte 659"),
        ("runner.spliced", 5, "runner.spliced is corrupt at byte 659"),
        ("runner.repeated", 6, "runner.repeated is corrupt at byte 701"),
        ("runner.version-2", 0, "runner.version-2 has format version 2; this dewar knows 1"),
    ] {
        let (read, end) = replay(name);

        assert_eq!(end, expected, "{name}");
        assert_eq!(read, sound[..whole], "{name}");
    }
}

/// Attack 41.
#[test]
fn a_golden_stream_with_a_record_of_a_later_dewar_is_read_on() {
    let (read, end) = replay("runner.unknown-kind");

    let kinds: Vec<bool> = read.iter().map(|record| record.kind.is_some()).collect();
    assert_eq!(kinds, [true, true, false, true]);
    assert_eq!(end, "clean");
}

/// The reader of docs/checkpoint.md, as it is printed there.
#[test]
fn another_language_reads_a_stream_as_documented() {
    let doc = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/checkpoint.md"));
    let doc = doc.unwrap();
    let (_, script) = doc.split_once("```python\n").unwrap();
    let (script, _) = script.split_once("```").unwrap();
    let run = |name| Command::new("python3").arg("-c").arg(script).arg(golden(name)).output();
    let sound = match run("runner") {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("no python3");
            return;
        }
        sound => sound.unwrap(),
    };

    let expected: String = records("runner").iter().map(summary).collect();
    assert_eq!(String::from_utf8(sound.stdout).unwrap(), expected);
    assert_eq!(String::from_utf8(sound.stderr).unwrap(), "");
    assert!(sound.status.success());
    for (name, message) in [
        ("runner.torn", "11 bytes after record 8 are torn\n"),
        ("runner.flipped", "corrupt at byte 659\n"),
        ("runner.version-2", "not a stream of version 1\n"),
    ] {
        let output = run(name).unwrap();
        assert_eq!(String::from_utf8(output.stderr).unwrap(), message, "{name}");
    }
}

/// A record as the documented reader prints it.
fn summary(record: &Record) -> String {
    let json = serde_json::to_value(record).unwrap();
    let plain = ["seq", "bootNanos", "unixNanos"];
    let kind = json.as_object().unwrap().keys().find(|key| !plain.contains(&key.as_str())).unwrap();
    format!("{} {} {kind}\n", record.seq, record.boot_nanos)
}

/// Writes what is not there yet of the golden streams of this version, from the lines of JSON and from each other.
#[test]
#[ignore = "writes golden streams, for a new version of the format"]
fn write_golden_streams() {
    let add = |name: &str, bytes: &[u8]| {
        if !golden(name).exists() {
            fs::write(golden(name), bytes).unwrap();
        }
    };
    let sound = stream(&runner(), &records("runner"));
    let (bytes, bounds) = (&sound.bytes, &sound.bounds);
    let other = Identity::runner(crate::task::TaskId::new("u").unwrap());
    let other = stream(&other, &records("runner"));
    let with = |at: usize, new: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    let later = {
        let mut header = bytes[..bounds[0] - 4].to_vec();
        header[8] = 2;
        let crc = crc32c::crc32c(&header);
        [&header[..], &crc.to_le_bytes(), &bytes[bounds[0]..]].concat()
    };
    let unknown = {
        let records = records("runner");
        let seed = frame::header_seed(&bytes[..bounds[0]]);
        let payload = [0x08, 2, 0x10, 1, 0xc2, 0x3e, 1, 0];
        let length = (payload.len() as u32).to_le_bytes();
        let crc = crc32c::crc32c_append(seed, &[&length[..], &payload].concat());
        let mut last = Vec::new();
        frame::encode(seed, &records[3], &mut last).unwrap();
        [&bytes[..bounds[2]], &length, &crc.to_le_bytes(), &payload, &last].concat()
    };

    add("runner", bytes);
    add("runner.requests", &stream(&runner(), &records("runner.requests")).bytes);
    add("coordinator.web", &stream(&coordinator(), &records("coordinator.web")).bytes);
    add("runner.empty", &[]);
    add("runner.header-torn", &bytes[..20]);
    add("runner.torn", &bytes[..bounds[9] + 11]);
    add("runner.zeros", &[&bytes[..bounds[10]], &[0; 512]].concat());
    add("runner.flipped", &with(bounds[5] + 9, &[bytes[bounds[5] + 9] ^ 0x20]));
    add("runner.length", &with(bounds[5] + 2, &[1]));
    add("runner.spliced", &with(bounds[5], &other.bytes[bounds[5]..bounds[6]]));
    add("runner.repeated", &[&bytes[..bounds[6]], &bytes[bounds[5]..]].concat());
    add("runner.version-2", &later);
    add("runner.unknown-kind", &unknown);
}
