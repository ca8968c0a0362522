//! Integration tests: real binaries, real processes, real cgroups.

/// No kill -9, full disk or failed call loses anything.
mod crash;
