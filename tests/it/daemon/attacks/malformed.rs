//! Attack 51: malformed gRPC. Each is answered, reset or turned away; the daemon goes on, does not grow, and answers others meanwhile.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dewar::proto::launch_request::Source;
use dewar::proto::{
    KillRequest, LaunchRequest, Process, Resources, Task, WaitRequest, WatchUsageRequest,
};
use http::Request;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::super::node::Node;
use crate::support::{DEADLINE, p, task};

/// Types of frames (RFC 9113, section 6).
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const CONTINUATION: u8 = 9;
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;
/// Most that a flood may cost the daemon, kB: a debug build keeps more than what is told of.
const ROOM: u64 = 64 << 10;

/// A connection that says whatever it likes. What the daemon says is read by a thread, so that neither waits for the other.
struct Wire {
    stream: UnixStream,
    told: JoinHandle<Told>,
    /// One item for each thing that it tells.
    words: Receiver<()>,
}

/// What the daemon has said, to the end of the connection.
#[derive(Debug, Default)]
struct Told {
    /// Heads of answers.
    answers: usize,
    /// Pieces of answers.
    messages: usize,
    /// Error code of its GOAWAY.
    goaway: Option<u32>,
    /// Error codes of its RST_STREAMs.
    resets: Vec<u32>,
}

impl Wire {
    fn new(node: &Node, settings: &[u8]) -> Self {
        let mut stream = UnixStream::connect(node.socket()).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(PREFACE).unwrap();
        let read = stream.try_clone().unwrap();
        read.set_read_timeout(Some(DEADLINE)).unwrap();
        let (tell, words) = mpsc::channel();
        let told = std::thread::spawn(move || listen(read, &tell));
        let mut wire = Self { stream, told, words };
        wire.frame(kind::SETTINGS, 0, 0, settings).unwrap();
        wire
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(9 + payload.len());
        frame(&mut bytes, kind, flags, stream, payload);
        self.stream.write_all(&bytes)
    }

    /// Waits until it has told something, or is gone.
    fn wait_for_a_word(&self) {
        let waited = self.words.recv_timeout(DEADLINE);
        assert_ne!(waited, Err(RecvTimeoutError::Timeout), "it tells nothing");
    }

    /// What it has told by the time that the connection is over; nothing more is said.
    fn end(self) -> Told {
        // Gone already, say.
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        self.told.join().unwrap()
    }
}

fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    bytes.extend_from_slice(&length[1..]);
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
}

fn listen(mut stream: UnixStream, tell: &Sender<()>) -> Told {
    let mut told = Told::default();
    let mut head = [0; 9];
    while stream.read_exact(&mut head).is_ok() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        if stream.read_exact(&mut payload).is_err() {
            break;
        }
        let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        match head[3] {
            kind::HEADERS => told.answers += 1,
            kind::DATA => told.messages += 1,
            kind::GOAWAY => told.goaway = Some(code(4)),
            kind::RST_STREAM => told.resets.push(code(0)),
            _ => continue,
        }
        // Nobody waits for it, say.
        let _ = tell.send(());
    }
    told
}

/// A literal header that no table keeps (RFC 7541, section 6.2.2).
fn literal(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        length(block, 0, text.len());
        block.extend_from_slice(text.as_bytes());
    }
}

/// An integer with a prefix of seven bits (RFC 7541, section 5.1).
fn length(block: &mut Vec<u8>, first: u8, mut number: usize) {
    if number < 127 {
        block.push(first | number as u8);
        return;
    }
    block.push(first | 127);
    number -= 127;
    while number >= 128 {
        block.push((number % 128 + 128) as u8);
        number /= 128;
    }
    block.push(number as u8);
}

/// Headers of a call.
fn headers(path: &str) -> Vec<u8> {
    // POST, http.
    let mut block = vec![0x83, 0x86];
    for (index, value) in [(4, path), (1, "localhost")] {
        block.push(index);
        length(&mut block, 0, value.len());
        block.extend_from_slice(value.as_bytes());
    }
    literal(&mut block, "content-type", "application/grpc");
    literal(&mut block, "te", "trailers");
    block
}

const GET_NODE: &str = "/dewar.v1.ObserverService/GetNode";
const WATCH: &str = "/dewar.v1.ObserverService/WatchTasks";

/// The daemon answers somebody else, at once, and has not grown.
#[track_caller]
fn goes_on(node: &mut Node, before: u64) {
    let start = Instant::now();
    let mut observer = node.observer();
    let told = observer.get_node(dewar::proto::GetNodeRequest {});
    node.runtime.block_on(told).unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let grown = node.memory().saturating_sub(before);
    assert!(grown < ROOM, "the daemon grew by {grown} kB");
}

/// A node that has answered once: what is made for the first call is there.
fn warm() -> (Node, u64) {
    let mut node = Node::new();
    goes_on(&mut node, u64::MAX);
    let memory = node.memory();
    (node, memory)
}

/// attack 51: calls that are made and taken back (CVE-2023-44487).
#[test]
fn a_rapid_reset_ends_its_connection() {
    let (mut node, before) = warm();
    let mut wire = Wire::new(&node, &[]);
    let block = headers(GET_NODE);

    let mut flood = Vec::new();
    for call in 0..20_000u32 {
        frame(&mut flood, kind::HEADERS, END_HEADERS, 2 * call + 1, &block);
        // CANCEL.
        frame(&mut flood, kind::RST_STREAM, 0, 2 * call + 1, &8u32.to_be_bytes());
    }
    let written = wire.stream.write_all(&flood);

    assert!(written.is_err(), "all of it was taken");
    assert_eq!(wire.end().goaway, Some(ENHANCE_YOUR_CALM));
    goes_on(&mut node, before);
}

/// attack 51: headers that do not end (RUSTSEC-2024-0332).
#[test]
fn a_flood_of_continuations_ends_its_connection() {
    let (mut node, before) = warm();
    let mut wire = Wire::new(&node, &[]);
    wire.frame(kind::HEADERS, 0, 1, &headers(GET_NODE)).unwrap();
    let mut block = Vec::new();
    literal(&mut block, "x", &"y".repeat(16_000));

    let taken = (0..10_000).take_while(|_| wire.frame(kind::CONTINUATION, 0, 1, &block).is_ok());
    let taken = taken.count();

    assert!(taken < 1000, "{taken} frames were taken");
    assert!(wire.end().goaway.is_some());
    goes_on(&mut node, before);
}

/// attack 51: headers of more than 16 KiB, as they are sent and as the table of HPACK multiplies them.
#[test]
fn a_call_with_too_many_headers_is_refused() {
    let (mut node, before) = warm();
    for is_packed in [false, true] {
        let mut wire = Wire::new(&node, &[]);
        let mut block = headers(GET_NODE);
        if is_packed {
            // A literal that the table keeps, and ten thousand times its index: 40 MB.
            block.push(0x40);
            length(&mut block, 0, 1);
            block.push(b'x');
            length(&mut block, 0, 4000);
            block.extend_from_slice(&[b'y'; 4000]);
            block.extend_from_slice(&[0x80 | 62; 10_000]);
        } else {
            (0..7).for_each(|_| literal(&mut block, "x", &"y".repeat(2300)));
        }
        wire.frame(kind::HEADERS, END_HEADERS, 1, &block).unwrap();
        // The connection may be over by then, for what was sent before.
        let _ = wire.frame(kind::DATA, END_STREAM, 1, &[0; 5]);

        wire.wait_for_a_word();
        let told = wire.end();

        // 431, a reset, or the end of the connection; it is not made.
        let is_told = told.answers > 0 || !told.resets.is_empty() || told.goaway.is_some();
        assert!(is_told && told.messages == 0, "{is_packed} {told:?}");
        goes_on(&mut node, before);
    }
}

/// attack 51: more calls at one time than a connection may have; those beyond are refused, and may be made again.
#[test]
fn calls_beyond_the_limit_of_a_connection_are_refused() {
    let (mut node, before) = warm();
    let mut wire = Wire::new(&node, &[]);
    let block = headers(GET_NODE);

    let mut flood = Vec::new();
    // Their messages do not come.
    (0..1100u32).for_each(|n| frame(&mut flood, kind::HEADERS, END_HEADERS, 2 * n + 1, &block));
    wire.stream.write_all(&flood).unwrap();
    goes_on(&mut node, before);

    let told = wire.end();
    let refused = told.resets.iter().filter(|&&code| code == REFUSED_STREAM).count();
    assert_eq!(refused, 1100 - 1024, "{told:?}");
}

/// attack 51: windows of nothing: what cannot be sent is not kept.
#[test]
fn watchers_without_a_window_cost_nothing() {
    let (mut node, _) = warm();
    let before = node.memory();
    // SETTINGS_INITIAL_WINDOW_SIZE.
    let mut wire = Wire::new(&node, &[0, 4, 0, 0, 0, 0]);
    let block = headers(WATCH);
    for call in 0..1000u32 {
        wire.frame(kind::HEADERS, END_HEADERS, 2 * call + 1, &block).unwrap();
        wire.frame(kind::DATA, END_STREAM, 2 * call + 1, &[0; 5]).unwrap();
    }
    node.launch(&task([p("a", "true")]));
    node.wait();

    goes_on(&mut node, before);
    drop(wire);
}

/// attack 51: answers that nobody reads are not piled up.
#[test]
fn a_flood_of_pings_that_reads_nothing_waits() {
    let (mut node, before) = warm();
    let mut stream = UnixStream::connect(node.socket()).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut flood = PREFACE.to_vec();
    frame(&mut flood, kind::SETTINGS, 0, 0, &[]);
    (0..2_000_000).for_each(|_| frame(&mut flood, kind::PING, 0, 0, &[0; 8]));

    let written = stream.write_all(&flood);

    assert!(written.is_err(), "34 MB of pings were taken, and none of their answers");
    goes_on(&mut node, before);
}

/// attack 51: what is no HTTP/2, and what does not come to be.
#[test]
fn who_does_not_speak_http_2_holds_up_nobody() {
    let (mut node, before) = warm();
    let mut slow: Vec<UnixStream> = Vec::new();
    for length in 0..PREFACE.len() {
        let mut stream = UnixStream::connect(node.socket()).unwrap();
        stream.write_all(&PREFACE[..length]).unwrap();
        slow.push(stream);
    }
    for text in
        ["GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "\0\x01\x02\n", "PRI * HTTP/2.0\r\n\r\nXX"]
    {
        let mut stream = UnixStream::connect(node.socket()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut said = Vec::new();
        // The end may come as a reset.
        if stream
            .read_to_end(&mut said)
            .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        {
            panic!("{text:?} is waited for");
        }
        assert!(!said.starts_with(b"HTTP/1"), "{text:?}");
    }
    goes_on(&mut node, before);
}

/// The status of a call with this body.
async fn call(path: &str, socket: &std::path::Path, body: Vec<u8>) -> (Code, String) {
    let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::post(format!("http://localhost{path}"));
    let request = request.header("content-type", "application/grpc").header("te", "trailers");
    let (response, mut to) = client.send_request(request.body(()).unwrap(), false).unwrap();
    // It may have been refused before all of it was sent.
    let _ = to.send_data(Bytes::from(body), true);
    let response = response.await.unwrap();
    let (head, mut body) = response.into_parts();
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data.unwrap().len()).unwrap();
    }
    let trailers = body.trailers().await.unwrap();
    let status = Status::from_header_map(&trailers.unwrap_or(head.headers)).unwrap();
    connection.abort();
    (status.code(), status.message().to_owned())
}

/// A message with its length before it.
fn message(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0], &length[..], bytes].concat()
}

/// attack 51: bodies that are no message of the call.
#[test]
fn what_is_no_message_is_refused_with_a_status() {
    let (mut node, before) = warm();
    let get = "/dewar.v1.ObserverService/GetTask";
    let huge = [&[0][..], &(1u32 << 30).to_be_bytes(), &[0; 100]].concat();
    let large = message(&[&[0x0a, 0x80, 0x80, 0x80, 3][..], &vec![b'x'; 6 << 20]].concat());
    for (what, path, body, code) in [
        ("no such call", "/dewar.v1.ObserverService/None", message(&[]), Code::Unimplemented),
        ("no such service", "/x.Y/Z", message(&[]), Code::Unimplemented),
        ("nothing", get, Vec::new(), Code::Internal),
        ("half a prefix", get, vec![0, 0], Code::Internal),
        ("half a message", get, message(&[10, 5, b'a'])[..7].to_vec(), Code::Internal),
        ("a field that is cut off", get, message(&[10, 200, 1, b'a']), Code::Internal),
        ("no protobuf", get, message(&[0xff; 32]), Code::Internal),
        ("no UTF-8", get, message(&[10, 2, 0xff, 0xfe]), Code::Internal),
        ("groups within groups", get, message(&[0x7b; 10_000]), Code::Internal),
        ("a packed message that is not", get, vec![1, 0, 0, 0, 1, 0], Code::Internal),
        ("a gigabyte that does not come", get, huge, Code::OutOfRange),
        ("six megabytes", get, large, Code::OutOfRange),
        ("no field that is known", get, message(&[0xf8, 7, 1]), Code::InvalidArgument),
    ] {
        let socket = node.socket();
        let answer = call(path, &socket, body);
        let answer = node.runtime.block_on(async {
            tokio::time::timeout(DEADLINE, answer).await.unwrap_or_else(|_| panic!("{what}"))
        });
        assert_eq!(answer.0, code, "{what}: {}", answer.1);
        goes_on(&mut node, before);
    }
}

/// Fields that a status names.
fn fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let bad = details.bad_request().map(|bad| bad.field_violations.clone());
    bad.into_iter().flatten().map(|of| of.field).collect()
}

/// attack 51: messages that are well formed and make no sense: each names its field.
#[test]
fn what_makes_no_sense_is_refused_by_its_field() {
    let mut node = Node::new();
    let gate = node.scene.gate("gate");
    node.launch(&task([p("a", gate.hold())]));
    let task_id = node.scene.id().to_owned();
    let time = |seconds, nanos| Some(pbjson_types::Duration { seconds, nanos });
    let (mut runner, mut observer) = (node.runner(), node.observer());
    let runtime = &node.runtime;

    let nothing = LaunchRequest::default();
    assert_eq!(fields(&runtime.block_on(runner.launch(nothing)).unwrap_err()), ["source"]);
    for cpu in [f64::NAN, f64::INFINITY, -1.0] {
        let resources = Some(Resources { cpu: Some(cpu), ..Resources::default() });
        let process = Process { name: "a".to_owned(), ..Process::default() };
        let task =
            Task { name: "a".to_owned(), processes: vec![process], resources, ..Task::default() };
        let request =
            LaunchRequest { source: Some(Source::Task(task)), ..LaunchRequest::default() };
        let refused = runtime.block_on(runner.launch(request)).unwrap_err();
        assert_eq!(fields(&refused), ["task.resources.cpu"], "{cpu}");
    }
    for grace in [time(-1, 0), time(0, -1), time(i64::MIN, 0)] {
        let request = KillRequest { task_id: task_id.clone(), grace, reason: None };
        let refused = runtime.block_on(runner.kill(request)).unwrap_err();
        assert_eq!(fields(&refused), ["grace"], "{grace:?}");
    }
    let long = Some("x".repeat(1025));
    let request = KillRequest { task_id: task_id.clone(), grace: None, reason: long };
    assert_eq!(fields(&runtime.block_on(runner.kill(request)).unwrap_err()), ["reason"]);
    for interval in [time(0, 0), time(-1, 0), time(i64::MAX, 999_999_999)] {
        let request = WatchUsageRequest { task_id: task_id.clone(), interval, by_process: false };
        let refused = runtime.block_on(observer.watch_usage(request)).unwrap_err();
        assert_eq!(fields(&refused), ["interval"], "{interval:?}");
    }
    for (states, timeout, field) in
        [(vec![99], None, "states"), (vec![], time(-1, 0), "timeout"), (vec![-1], None, "states")]
    {
        let request = WaitRequest { task_id: task_id.clone(), states, timeout };
        let refused = runtime.block_on(runner.wait(request)).unwrap_err();
        assert_eq!(fields(&refused), [field]);
    }
    // A time beyond all bounds is as long as it takes.
    let request = WaitRequest { task_id, states: vec![], timeout: time(i64::MAX, 999_999_999) };
    gate.open();
    assert!(runtime.block_on(runner.wait(request)).unwrap().into_inner().is_reached);
}
