//! What ps(1) shows of this process.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};
use std::ptr;
use std::sync::OnceLock;

use nix::sys::prctl;

/// Where the arguments of this process lie, one after the other: address and length in bytes, the last NUL included.
static ARGUMENTS: OnceLock<(usize, usize)> = OnceLock::new();

/// Notes where the arguments of this process are, as `main` is given them.
///
/// # Safety
///
/// `words` is an array of at least `count` pointers to strings that end with their NUL, and are ours to change.
pub unsafe fn note(count: i32, words: *const *mut c_char) {
    let mut region = None;
    for number in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: as the caller says.
        let (at, word) = unsafe {
            let word = *words.add(number);
            (word.expose_provenance(), CStr::from_ptr(word))
        };
        let length = word.count_bytes() + 1;
        region = match region {
            None => Some((at, length)),
            Some((from, so_far)) if from + so_far == at => Some((from, so_far + length)),
            // Whoever started us has laid them elsewhere; what is before is enough.
            apart => apart,
        };
    }
    if let Some(region) = region {
        let _ = ARGUMENTS.set(region);
    }
}

/// From now on this process is called `name`, of at most 15 bytes (PR_SET_NAME), and its arguments are `words`, as far as there is room for
/// them: no more than its own took.
///
/// For a process of one thread, which does not look at its own arguments any more: it would find these.
pub fn set(name: &CStr, words: &[&[u8]]) {
    let _ = prctl::set_name(name);
    let Some(&(at, length)) = ARGUMENTS.get() else { return };
    let mut title = words.join(&0);
    title.truncate(length - 1);
    title.resize(length, 0);
    // SAFETY: that many bytes lie there, in the memory that the kernel gave this process for its arguments; nobody reads them meanwhile.
    unsafe {
        ptr::copy_nonoverlapping(title.as_ptr(), ptr::with_exposed_provenance_mut(at), length);
    }
}
