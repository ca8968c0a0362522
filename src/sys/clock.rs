//! Clocks and the identity of a boot.
#![allow(unsafe_code)]

use std::fs;
use std::io;

use nix::libc;
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

/// A time of day on the calendar of this place: the environment's TZ, else /etc/localtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalTime {
    /// Year, such as 2026.
    pub year: i32,
    /// Month, 1 to 12.
    pub month: i32,
    /// Day of the month, 1 to 31.
    pub day: i32,
    /// Hour, 0 to 23.
    pub hour: i32,
    /// Minute, 0 to 59.
    pub minute: i32,
    /// Second, 0 to 60.
    pub second: i32,
}

/// The local time at `unix_seconds` since 1970; `None` for a year that does not fit.
pub fn local(unix_seconds: i64) -> Option<LocalTime> {
    // SAFETY: `tm` is of integers and a pointer that may be null, so all zeros are a value of it.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: localtime_r(3) reads the first and writes the second, which both outlive the call. It reads TZ as well:
    // nothing here changes the environment.
    let filled = unsafe { libc::localtime_r(&unix_seconds, &mut tm) };
    (!filled.is_null()).then(|| LocalTime {
        year: tm.tm_year.saturating_add(1900),
        month: tm.tm_mon + 1,
        day: tm.tm_mday,
        hour: tm.tm_hour,
        minute: tm.tm_min,
        second: tm.tm_sec,
    })
}
