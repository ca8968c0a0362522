//! The driver: builds the guest, boots it under QEMU, has its tests run one by one, and tells how they ended.
//!
//! `cargo run -p vm-tests -- [--boot NAME] [FILTER]`; docs/vm-tests.md has the rest.
#![allow(clippy::disallowed_methods, reason = "has effects")]

mod arguments;
mod boots;
mod build;
mod causes;
mod cpio;
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
use std::process::ExitCode;

use arguments::Arguments;
use report::Report;

fn main() -> ExitCode {
    let arguments = match Arguments::parse(env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("vm-tests: {}", causes::chain(&error));
            return ExitCode::from(2);
        }
    };
    match run(&arguments) {
        Ok(report) => {
            println!("\n{}", report.total());
            if report.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("vm-tests: {}", causes::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<Report, Box<dyn std::error::Error>> {
    let place = build::Place::find()?;
    let kernels = kernel::fetch(&place)?;
    let built = build::all(&place)?;
    let report = session::run_all(arguments, &place, &kernels, &built)?;
    Ok(report)
}
