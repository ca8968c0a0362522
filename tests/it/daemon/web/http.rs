//! HTTP, so plain that nothing is seen to before a request is sent.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use crate::support::DEADLINE;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// What a connection has sent until it was closed.
    #[track_caller]
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let told = || String::from_utf8_lossy(bytes).into_owned();
        let end = bytes
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap_or_else(|| panic!("no answer: {:?}", told()));
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head, body: bytes[end + 4..].to_vec() }
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The value of a header, which is there once at the most.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let mut values =
            lines.filter(|(of, _)| of.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        let value = values.next();
        assert_eq!(values.next(), None, "{name} is there twice");
        value
    }
}

/// Sends these bytes, and gives what comes until the connection is closed.
#[track_caller]
pub(super) fn ask(port: u16, request: &str) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    Answer::parse(&bytes)
}

/// HTTP/1.0 ends an answer with its connection, and does not cut it into pieces.
#[track_caller]
pub(super) fn get(port: u16, target: &str) -> Answer {
    ask(port, &format!("GET {target} HTTP/1.0\r\nHost: localhost:{port}\r\n\r\n"))
}

/// Events that a page tells.
pub(super) struct Events {
    lines: BufReader<TcpStream>,
}

impl Events {
    #[track_caller]
    pub(super) fn open(port: u16, target: &str) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let request = format!(
            "GET {target} HTTP/1.0\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut events = Self { lines: BufReader::new(stream) };
        let mut head = String::new();
        loop {
            let line = events.line();
            if line.is_empty() {
                break;
            }
            head.push_str(&line);
            head.push('\n');
        }
        assert!(head.contains(" 200 ") && head.contains("text/event-stream"), "{head}");
        events
    }

    #[track_caller]
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "the events have ended: {line:?}");
        line.trim_end_matches(['\r', '\n']).to_owned()
    }

    /// The next event: its name and its data. It must come by `deadline`, however long the connection is kept alive.
    #[track_caller]
    fn event(&mut self, deadline: Instant) -> (String, String) {
        let (mut name, mut data) = (String::new(), Vec::new());
        loop {
            assert!(Instant::now() < deadline, "what was waited for does not come");
            let line = self.line();
            match line.split_once(':') {
                None if name.is_empty() => {}
                None => return (name, data.join("\n")),
                Some(("event", value)) => value.trim_start().clone_into(&mut name),
                Some(("data", value)) => {
                    data.push(value.strip_prefix(' ').unwrap_or(value).to_owned())
                }
                Some(_) => {}
            }
        }
    }

    /// The data of the next event that is called so.
    #[track_caller]
    pub(super) fn next(&mut self, name: &str) -> String {
        self.until(name, |_| true)
    }

    /// The data of the next event that is called so, and is as it should be.
    #[track_caller]
    pub(super) fn until(&mut self, name: &str, is_it: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let (of, data) = self.event(deadline);
            if of == name && is_it(&data) {
                return data;
            }
            assert_ne!(of, "end", "it has ended before: {data}");
        }
    }
}
