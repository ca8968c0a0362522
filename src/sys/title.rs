//! What ps(1) shows of this process.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs;

use nix::sys::prctl;

/// `PR_SET_MM` and `PR_SET_MM_MAP` of linux/prctl.h.
const SET_MM: libc::c_int = 35;
const SET_MM_MAP: libc::c_ulong = 14;

/// `struct prctl_mm_map` of linux/prctl.h: addresses in this process.
#[repr(C)]
struct Map {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// From now on this process is called `name`, of at most 15 bytes, and others see `words` as its arguments and `environment` as its
/// environment: what it was started with itself they see no more. What [`std::env`] tells stays as it was.
///
/// Where the kernel cannot do that (it needs CONFIG_CHECKPOINT_RESTORE), this process has a name only.
pub fn set(name: &CStr, words: &[CString], environment: &[CString]) {
    let _ = prctl::set_name(name);
    let block = |strings: &[CString]| -> Vec<u8> {
        strings.iter().flat_map(|string| string.to_bytes_with_nul()).copied().collect()
    };
    let (words, environment) = (block(words), block(environment));
    let length = words.len() as u64;
    // For as long as this process lives.
    let both: &'static [u8] = [words, environment].concat().leak();
    let start = both.as_ptr().expose_provenance() as u64;
    let end = start + both.len() as u64;
    let Some(map) = now() else { return };
    let map = Map {
        arg_start: start,
        arg_end: start + length,
        env_start: start + length,
        env_end: end,
        ..map
    };
    // SAFETY: the kernel reads `map`, which is as long as it says. It notes where the strings are, and checks the rest, which is as it was.
    unsafe { libc::prctl(SET_MM, SET_MM_MAP, &raw const map, size_of::<Map>(), 0usize) };
}

/// What the kernel knows of this process (proc_pid_stat(5)); `None` if it does not say so.
fn now() -> Option<Map> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is a name in parentheses, which may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse().ok();
    // SAFETY: to ask where the heap ends changes nothing.
    let brk = unsafe { libc::sbrk(0) }.expose_provenance() as u64;
    Some(Map {
        start_code: field(26)?,
        end_code: field(27)?,
        start_data: field(45)?,
        end_data: field(46)?,
        start_brk: field(47)?,
        brk,
        start_stack: field(28)?,
        arg_start: field(48)?,
        arg_end: field(49)?,
        env_start: field(50)?,
        env_end: field(51)?,
        auxv: 0,
        auxv_size: 0,
        // It stays.
        exe_fd: u32::MAX,
    })
}
