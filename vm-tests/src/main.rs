//! The driver: builds the guest, boots it under QEMU, has its tests run one by one, and tells how they ended.
//!
//! `cargo run -p vm-tests -- [--boot NAME] [FILTER]`; docs/vm-tests.md has the rest.
#![allow(clippy::disallowed_methods, reason = "has effects")]

mod arguments;
mod boots;
mod build;
mod causes;
mod cpio;
mod debian;
mod harness;
mod image;
mod kernel;
mod kvm;
mod modules;
mod power;
mod qemu;
mod report;
mod session;
mod tool;

use std::env;
use std::error::Error;
use std::process::ExitCode;
use std::thread;

use arguments::Arguments;

fn main() -> ExitCode {
    let arguments = match Arguments::parse(env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("vm-tests: {}", causes::chain(&error));
            return ExitCode::from(2);
        }
    };
    match run(&arguments) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("vm-tests: {}", causes::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let place = build::Place::find()?;
    let fetch = || (kernel::fetch(&place), debian::fetch(&place));
    if arguments.fetch {
        let (kernels, debian) = fetch();
        kernels?;
        debian?;
        return Ok(ExitCode::SUCCESS);
    }
    // The one waits for a network while the other works.
    let (fetched, built) = thread::scope(|scope| {
        let fetching = scope.spawn(fetch);
        let built = build::all(&place, arguments.names(boots::BENCH.name));
        (fetching.join(), built)
    });
    let (kernels, debian) = fetched.map_err(|_| "the thread that fetches has panicked")?;
    let (kernels, debian, built) = (kernels?, debian?, built?);
    if arguments.list {
        session::list(arguments, &built)?;
        return Ok(ExitCode::SUCCESS);
    }
    let report = session::run_all(arguments, &place, &kernels, &debian, &built)?;
    println!("\n{}", report.total());
    Ok(if report.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
