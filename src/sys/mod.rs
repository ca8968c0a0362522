//! System calls that no safe crate wraps well: the only place for `unsafe`.

pub mod lock;
pub mod pidfd;
pub mod xattr;
