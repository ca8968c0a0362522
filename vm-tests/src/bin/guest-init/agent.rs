//! Does what the driver orders, one thing at a time.

use std::fs::{self, OpenOptions};
use std::io::{self, BufReader};
use std::path::Path;
use std::time::Duration;

use vm_tests::wire::{self, Event, Order, Outcome};

use crate::child::{self, Deaths};
use crate::leak;

/// Serves the driver at the other end of `port` until it says that this machine is to be switched off.
pub(crate) fn serve(port: &Path) -> io::Result<()> {
    let port = OpenOptions::new().read(true).write(true).open(port)?;
    let mut orders = BufReader::new(&port);
    let deaths = Deaths::watch()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim_end().to_owned();
    wire::send(&port, &Event::Ready { kernel })?;
    while let Some(order) = wire::receive(&mut orders)? {
        match order {
            Order::Run { suite, test, deadline, slowly } => {
                wire::send(&port, &run(&deaths, &suite, &test, deadline, slowly)?)?;
            }
            Order::PowerOff => break,
        }
    }
    Ok(())
}

/// Runs a test, and sees to it that the machine is as it was before.
fn run(
    deaths: &Deaths,
    suite: &str,
    test: &str,
    deadline: Duration,
    slowly: Option<u32>,
) -> io::Result<Event> {
    let before = leak::snapshot();
    let ended = child::run(deaths, suite, test, deadline, slowly)?;
    let mut outcome = ended.outcome;
    // A test that failed has said why; what it leaves behind is no news.
    if outcome == Outcome::Passed {
        let left = before.differences();
        if !left.is_empty() {
            outcome = Outcome::Leaked(left);
        }
    }
    if outcome != Outcome::Passed {
        leak::clean(&before);
    }
    Ok(Event::Ended { outcome, took: ended.took, output: ended.output })
}
