//! The lines between driver and guest: one JSON object each, so that no text of a test can look like a line.
//!
//! The driver orders, one at a time; the guest answers each order with one event. The first line is the guest's
//! [`Event::Ready`].

use std::io::{self, BufRead, Write};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What the driver wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Run one test in a process of its own.
    Run {
        /// Name of the binary in [`SUITES`](crate::place::SUITES).
        suite: String,
        /// Its whole name, as the binary lists it.
        test: String,
        /// After this time it has hung.
        deadline: Duration,
        /// Milliseconds that each pass of a failpoint takes at most: `DEWAR_FAILPOINT_DELAY`.
        slowly: Option<u32>,
    },
    /// Flush nothing, switch off.
    PowerOff,
}

/// What the guest tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The guest has booted.
    Ready {
        /// Release of its kernel.
        kernel: String,
    },
    /// The test that was ordered is over.
    Ended {
        /// How.
        outcome: Outcome,
        /// Time that it took, without the search for leaks.
        took: Duration,
        /// What it printed, shortened in the middle; empty if it passed.
        output: String,
    },
}

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It passed, and left nothing behind.
    Passed,
    /// It failed, as this says.
    Failed(String),
    /// It passed its deadline; this is what the guest looked like then.
    Hung(String),
    /// It passed, and left this behind.
    Leaked(Vec<String>),
}

/// Writes one line.
///
/// # Errors
///
/// As the writer's.
pub fn send<T: Serialize>(mut to: impl Write, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// Reads one line; `None` at the end.
///
/// # Errors
///
/// As the reader's; [`io::ErrorKind::InvalidData`] if it is no such message.
pub fn receive<T: DeserializeOwned>(mut from: impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    from.read_until(b'\n', &mut line)?;
    match line.strip_suffix(b"\n") {
        Some(line) => Ok(Some(serde_json::from_slice(line)?)),
        // The end, or a line that the other side had no time to end.
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_of_a_test_looks_like_a_line() {
        let output = "{\"Ready\":{\"kernel\":\"\"}}\n\u{1b}[0m\r\n\0".to_owned();
        let event =
            Event::Ended { outcome: Outcome::Passed, took: Duration::from_millis(7), output };
        let mut bytes = Vec::new();

        send(&mut bytes, &event).unwrap();

        assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(receive::<Event>(bytes.as_slice()).unwrap(), Some(event));
    }

    #[test]
    fn a_torn_line_is_the_end() {
        assert_eq!(receive::<Order>(&b"{\"Run\":"[..]).unwrap(), None);
        assert_eq!(receive::<Order>(&b""[..]).unwrap(), None);
        assert!(receive::<Order>(&b"PowerOn\n"[..]).is_err());
    }
}
