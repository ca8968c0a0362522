//! The kernel's own calls.

pub mod lock;
