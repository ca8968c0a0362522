//! Clocks and the identity of a boot.

use std::fs;
use std::io;

use nix::time::{ClockId, clock_gettime};

use crate::state::Stamp;

/// Now, on both clocks.
///
/// CLOCK_BOOTTIME goes on while the machine sleeps and cannot be set (clock_gettime(2)).
pub fn now() -> Stamp {
    Stamp { boot: boot_nanos(), wall: read(ClockId::CLOCK_REALTIME) }
}

/// CLOCK_BOOTTIME, nanoseconds.
pub fn boot_nanos() -> u64 {
    read(ClockId::CLOCK_BOOTTIME) as u64
}

fn read(clock: ClockId) -> i64 {
    let time = clock_gettime(clock).expect("Linux has had both clocks since 2.6.39");
    time.tv_sec() * 1_000_000_000 + time.tv_nsec()
}

/// The identity of this boot, from random(4).
///
/// # Errors
///
/// The error of reading it: without /proc no process can be identified.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim_end().to_owned())
}
