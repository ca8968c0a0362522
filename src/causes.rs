//! An error with its causes, on one line: what each of our programs prints.

use std::error::Error;
use std::fmt::Display;
use std::io::{self, Write};

/// Writes a line to standard error if that can be: it may be a file on a disk that is full, for which `eprintln!` would panic, and
/// nobody who runs tasks dies of that.
pub fn say(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The same of what `eprintln!` takes.
macro_rules! tell {
    ($($of:tt)*) => { $crate::causes::say(format_args!($($of)*)) };
}
pub(crate) use tell;

/// The whole of what `error` says, its causes included.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
