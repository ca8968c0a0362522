//! The command line: `dewar`.

pub mod args;
pub mod failure;
pub mod follow;
pub mod json;
pub mod out;
pub mod pattern;
pub mod place;
pub mod printer;
pub mod progress;
pub mod read;
pub mod report;
pub mod signals;
pub mod status;
pub mod table;
pub mod term;
pub mod words;
