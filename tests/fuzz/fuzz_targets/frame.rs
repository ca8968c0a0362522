//! Any bytes as a stream: nothing panics, and what is said of them is consistent.
#![no_main]

use dewar::checkpoint::Identity;
use dewar::checkpoint::frame::{self, HEADER_MAX, Rest, Scan};
use dewar::task::TaskId;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    judge(bytes);
    judge_frames(bytes);
});

/// The bytes as a whole file.
fn judge(bytes: &[u8]) {
    let (start, beyond) = bytes.split_at(bytes.len().min(HEADER_MAX));
    let more = beyond.iter().any(|byte| *byte != 0);
    let Ok(Some(header)) = frame::begin(start, more) else { return };
    assert_eq!(frame::encode_header(&header.identity), bytes[..header.length]);
}

/// The bytes as what follows a good header, which the fuzzer would not find.
fn judge_frames(bytes: &[u8]) {
    let task = TaskId::new("t").expect("it is a task id");
    let mut file = frame::encode_header(&Identity::runner(task));
    let header = frame::decode_header(&file).expect("it was just encoded");
    file.extend_from_slice(bytes);

    let mut scan = Scan::new(&header, &file);
    let count = scan.by_ref().count();
    assert!(scan.offset() <= file.len());
    match scan.rest() {
        Rest::Empty => assert_eq!(scan.offset(), file.len()),
        Rest::Record => panic!("a scan leaves no record"),
        Rest::Torn => {
            file.truncate(scan.offset());
            let mut cut = Scan::new(&header, &file);
            assert_eq!((cut.by_ref().count(), cut.rest()), (count, Rest::Empty));
        }
        Rest::Corrupt(_) => {}
    }
}
