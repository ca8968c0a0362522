//! Integration tests: real binaries, real processes, real cgroups.

mod docs;
