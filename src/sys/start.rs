//! How the programs begin and end, in place of what the standard library does around `main`.
//!
//! Before `main`, the standard library asks where the stack ends, for which glibc reads `/proc/self/maps`, and makes a second stack for a
//! signal handler that would say that the first has overflowed. That takes about a tenth of a millisecond, in each of the two programs that run a
//! task; here a stack that overflows is a plain SIGSEGV. What else the standard library does there is done by [`begin`].
#![allow(unsafe_code)]

use std::io::{self, Write};

/// Makes `$main`, a `fn() -> u8`, the program; it returns the exit status. The file of the program also says
/// `#![cfg_attr(target_env = "gnu", no_main)]`.
///
/// On glibc the arguments of the process are known without `main` (`.init_array`, which [`std::env::args_os`] relies on); elsewhere this is
/// an ordinary `main`.
#[macro_export]
macro_rules! program {
    ($main:path) => {
        #[cfg(target_env = "gnu")]
        #[allow(unsafe_code, reason = "SAFETY: the C library calls the one `main` that there is")]
        #[unsafe(no_mangle)]
        extern "C" fn main() -> i32 {
            $crate::sys::start::begin($main)
        }

        #[cfg(not(target_env = "gnu"))]
        fn main() -> std::process::ExitCode {
            std::process::ExitCode::from($main())
        }
    };
}

/// Runs `main`, with the descriptors 0 to 2 open, so that no file of ours is taken for one of them; with SIGPIPE ignored; and writes at its end what waits for standard output.
pub fn begin(main: fn() -> u8) -> i32 {
    hold_standard_descriptors();
    ignore_broken_pipes();
    let status = main();
    // Who does not listen any more misses it.
    let _ = io::stdout().flush();
    status.into()
}

/// Whoever writes to nobody hears EPIPE from now on, and gets no SIGPIPE.
pub fn ignore_broken_pipes() {
    // SAFETY: to ignore a signal runs nothing of ours when it comes.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Opens `/dev/null` in place of each of the descriptors 0 to 2 that is closed. Where that cannot be done there is no program.
fn hold_standard_descriptors() {
    let standard = [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO];
    let mut fds = standard.map(|fd| libc::pollfd { fd, events: 0, revents: 0 });
    // SAFETY: the kernel reads and writes three entries, and there are three.
    unsafe { libc::poll(fds.as_mut_ptr(), 3, 0) };
    for fd in fds.iter().filter(|fd| fd.revents & libc::POLLNVAL != 0) {
        // SAFETY: the path ends with its NUL. The lowest number is given that is free, which is this one.
        if unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) } != fd.fd {
            std::process::abort();
        }
    }
}
