//! What survives a crash: the accepted task, and the append-only streams of what happened to it.
//!
//! ```text
//! paths    where everything is under the root
//! tasks    the accepted task: written once, moved once
//! frame    the bytes of a stream, and the rules of its tail (pure)
//! writer   append, sync, recover: one writer, held by a lock
//! reader   replay, follow: any number, without a lock
//! lock     who holds a stream
//! health   a stream for a view: sound, corrupt, or of a later version
//! ```
//!
//! Invariants, with docs/checkpoint.md as the promise to others:
//!
//! - A stream has one writer at a time, the holder of its lock, which is the kernel's and ends with its holder.
//! - What is in the file is a sequence of whole records, in order, and at most one torn append after them, which
//!   is cut off, and the cut synced, before anything is written in its place.
//! - A record that a reader may have seen is never taken back, except by a power cut, and then only if it was not
//!   synced. Whoever tells of it syncs before.
//! - Anything else in the file is corruption: said with file and offset, and nothing is written.

mod file;
pub mod frame;
#[cfg(test)]
mod golden;
pub mod health;
pub mod identity;
pub mod lock;
pub mod paths;
pub mod reader;
pub mod tasks;
#[cfg(test)]
pub(crate) mod testing;
pub mod writer;

pub use file::{IoError, sync_dir};
pub use health::{Corruption, Health};
pub use identity::{Identity, Stream};
pub use paths::Root;
pub use reader::{Position, ReadError, Reader, Tail};
pub use writer::{Instant, OpenError, Recovered, Recovery, WriteError, Writer};
