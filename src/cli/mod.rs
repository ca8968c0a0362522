//! The command line: `dewar`.

pub mod args;
pub mod progress;
pub mod term;
pub mod words;
