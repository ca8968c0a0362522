//! System calls that the standard library and nix lack: the only place of `unsafe`.

pub mod lock;
pub mod pidfd;
pub mod xattr;
