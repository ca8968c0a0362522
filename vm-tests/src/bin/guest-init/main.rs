//! Process 1 of the guest: mounts what a machine has, then runs one test at a time for the driver on the host.
//!
//! It reaps whatever is orphaned, so that a zombie is always somebody's defect. When it dies the kernel panics, which the
//! driver takes for a failure of the test that ran.
//!
//! On the boot whose process 1 is systemd it only leads there, and is then one of its units, with `--agent`.
#![allow(clippy::disallowed_methods, reason = "has effects")]

mod agent;
mod child;
mod dump;
mod leak;
mod machine;
mod processes;

use std::env;
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    if env::args().any(|argument| argument == "--agent") {
        machine::settle()?;
    } else if machine::has_another_root() {
        return machine::enter();
    } else {
        machine::set_up()?;
    }
    agent::serve(&machine::port()?)?;
    machine::power_off()
}
