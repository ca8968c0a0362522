//! Any bytes as a record: it decodes or not, and what decodes survives a frame.
#![no_main]

use dewar::checkpoint::frame;
use dewar::proto::Record;
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    let Ok(record) = Record::decode(bytes) else { return };
    let mut framed = Vec::new();
    if frame::encode(7, &record, &mut framed).is_err() {
        assert_eq!(record, Record::default());
        return;
    }
    let decoded = frame::decode(7, record.seq, &framed).expect("it was just encoded");
    assert_eq!(decoded.length, framed.len());
    // Not the records: a NaN in one is not equal to itself.
    assert_eq!(decoded.record.encode_to_vec(), record.encode_to_vec());
});
