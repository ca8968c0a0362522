//! The tiny parent of one run: it starts the run inside its leaf, waits for it, and records how it
//! ended.
//!
//! - [`start`]: from the clone to `execve`, step by step
//! - [`output`]: where standard output and error of the run go

pub mod output;
pub mod start;
