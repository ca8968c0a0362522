//! Boots one machine after another and has the tests run in it.

use std::collections::VecDeque;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use vm_tests::wire::{Event, Order, Outcome};

use crate::arguments::Arguments;
use crate::boots::{BENCH, BOOTS, Boot, HARNESS, POWER_CUT, Root, Suite};
use crate::build::{Built, Place};
use crate::harness;
use crate::image::Image;
use crate::kernel::Kernel;
use crate::kvm::Kvm;
use crate::power;
use crate::qemu::{Accelerator, Drive, Hardware, Lost, Machine};
use crate::report::Report;
use crate::tool;

/// A machine that has not booted by then never will.
const BOOTS_WITHIN: Duration = Duration::from_secs(300);

/// The same where the host's processor runs it: then it takes a second, or for ever.
const PROBE_BOOTS_WITHIN: Duration = Duration::from_secs(5);

/// What the guest needs beyond the deadline of a test to tell about it.
const TELLS_WITHIN: Duration = Duration::from_secs(30);

/// Parts that are done at the same time, however many CPUs there are: a guest waits as much as it works.
const SIDE_BY_SIDE: usize = 3;

/// So many times as long as otherwise may a test take whose failpoints take time.
const SLOWLY: u32 = 4;

/// A machine that dies is booted again for the tests that are left; not more often than this.
const BOOTS_AGAIN: usize = 3;

/// A test that is to be run.
#[derive(Debug, Clone)]
pub(crate) struct Test {
    pub(crate) suite: Suite,
    pub(crate) name: String,
    pub(crate) deadline: Duration,
    /// See [`Order::Run`].
    pub(crate) slowly: Option<u32>,
}

/// A part of what is asked for, which has machines for itself, one at a time.
enum Part {
    /// Cuts of the power: see [`power`].
    PowerCut { seed: u64 },
    /// A boot and its tests.
    Tests(&'static Boot, VecDeque<Test>),
    /// Tests that must not pass: see [`harness`].
    Harness,
}

impl Part {
    fn boot(&self) -> &'static Boot {
        match self {
            Self::PowerCut { .. } => &POWER_CUT,
            Self::Tests(boot, _) => boot,
            Self::Harness => &HARNESS,
        }
    }
}

/// A boot, and what runs on it.
type Planned = (&'static Boot, VecDeque<Test>);

/// Prints the names of the tests that are asked for.
pub(crate) fn list(arguments: &Arguments, built: &Built) -> Result<(), Box<dyn Error>> {
    for (boot, tests) in plan(arguments, built)? {
        tests.iter().for_each(|test| println!("{}", test.full_name(boot)));
    }
    Ok(())
}

/// Runs whatever is asked for.
pub(crate) fn run_all(
    arguments: &Arguments,
    place: &Place,
    kernels: &[Kernel],
    debian: &Path,
    built: &Built,
) -> Result<Report, Box<dyn Error>> {
    let parts = Mutex::new(parts(arguments, built)?);
    fs::create_dir_all(place.cache.join("logs"))?;
    let image = Image::base(place, built)?;
    let (kvm, accelerator) = (Kvm::new(&place.cache), Mutex::new(None));
    let session = Session { place, kernels, debian, built, image, kvm, accelerator };
    let report = Mutex::new(Report::default());
    let next = || parts.lock().ok()?.pop_front();
    let work = || {
        while let Some(part) = next() {
            let found = session.run(part);
            if let Ok(mut report) = report.lock() {
                report.add(found);
            }
        }
    };
    thread::scope(|scope| (0..SIDE_BY_SIDE).for_each(|_| drop(scope.spawn(work))));
    report.into_inner().map_err(|_| "a thread has panicked".into())
}

/// Everything that is asked for, what takes longest first.
fn parts(arguments: &Arguments, built: &Built) -> Result<VecDeque<Part>, Box<dyn Error>> {
    let mut parts = VecDeque::new();
    if arguments.wants_all_of(POWER_CUT.name) {
        parts.push_back(Part::PowerCut { seed: arguments.seed.unwrap_or_else(clock) });
    }
    parts.extend(plan(arguments, built)?.into_iter().map(|(boot, tests)| Part::Tests(boot, tests)));
    if arguments.wants_all_of(HARNESS.name) {
        parts.push_back(Part::Harness);
    }
    if parts.is_empty() {
        return Err(format!("no test has {:?} in its name", arguments.filter).into());
    }
    Ok(parts)
}

/// A seed that differs from run to run.
fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

/// Which tests run on which boot.
fn plan(arguments: &Arguments, built: &Built) -> Result<Vec<Planned>, Box<dyn Error>> {
    let mut plan = Vec::new();
    let bench = Some(&BENCH).filter(|boot| arguments.names(boot.name));
    let tested = BOOTS.iter().filter(|boot| arguments.wants(boot.name));
    for boot in tested.chain(bench) {
        let mut tests = VecDeque::new();
        for selection in boot.selections {
            let names =
                built.tests(selection.suite)?.into_iter().filter(|name| selection.has(name));
            let (suite, slowly) = (selection.suite, arguments.slowly);
            let deadline = selection.deadline * if slowly.is_some() { SLOWLY } else { 1 };
            tests.extend(names.map(|name| Test { suite, name, deadline, slowly }));
        }
        if tests.is_empty() {
            return Err(format!("no test is for {}", boot.name).into());
        }
        tests.retain(|test| test.full_name(boot).contains(&arguments.filter));
        if !tests.is_empty() {
            plan.push((boot, tests));
        }
    }
    Ok(plan)
}

impl Test {
    pub(crate) fn order(&self) -> Order {
        let (suite, test) = (self.suite.name().to_owned(), self.name.clone());
        Order::Run { suite, test, deadline: self.deadline, slowly: self.slowly }
    }

    fn full_name(&self, boot: &Boot) -> String {
        format!("{}::{}::{}", boot.name, self.suite.name(), self.name)
    }
}

pub(crate) struct Session<'a> {
    place: &'a Place,
    kernels: &'a [Kernel],
    debian: &'a Path,
    built: &'a Built,
    image: Image,
    kvm: Kvm,
    /// Known once it was tried.
    accelerator: Mutex<Option<Accelerator>>,
}

impl Session<'_> {
    /// Runs a part, and closes it with a line. What cannot be done at all is a failure of its boot.
    fn run(&self, part: Part) -> Report {
        let (start, boot) = (Instant::now(), part.boot());
        let done = match part {
            Part::PowerCut { seed } => power::run_all(self, seed),
            Part::Tests(boot, tests) => self.boot(boot, tests),
            Part::Harness => harness::run_all(self),
        };
        let report = done.unwrap_or_else(|error| {
            let mut report = Report::default();
            let why = Outcome::Failed(crate::causes::chain(error.as_ref()));
            report.test(&format!("{}::boots", boot.name), &why, start.elapsed(), "");
            report
        });
        let log = self.log(boot);
        let console = if report.is_success() {
            String::new()
        } else {
            format!("; console: {}", log.display())
        };
        println!("\n== {}{console}\n{}\n", boot.name, report.boot(start.elapsed()));
        report
    }

    /// Boots a machine, and runs tests in it until there are none left.
    fn boot(&self, boot: &Boot, mut tests: VecDeque<Test>) -> Result<Report, Box<dyn Error>> {
        let mut report = Report::default();
        let initrd = self.initrd(boot)?;
        for _ in 0..BOOTS_AGAIN {
            if tests.is_empty() {
                break;
            }
            let mut machine = self.machine(boot, &initrd, &self.drives(boot))?;
            drain(&mut machine, boot, &mut tests, &mut report);
        }
        for test in tests {
            let why = Outcome::Failed("not run: the machine died too often".to_owned());
            report.test(&test.full_name(boot), &why, Duration::ZERO, "");
        }
        Ok(report)
    }

    /// What `dewar status` tells of the tasks in `root`, here on the host.
    pub(crate) fn status(&self, root: &Path) -> Result<Vec<Value>, Box<dyn Error>> {
        let mut status = Command::new(self.built.program("dewar")?);
        let told = tool::text(status.args(["status", "--output", "json", "--root"]).arg(root))?;
        Ok(told.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }

    /// Where things are kept.
    pub(crate) fn cache(&self) -> &Path {
        &self.place.cache
    }

    fn kernel(&self, boot: &Boot) -> Result<&Kernel, Box<dyn Error>> {
        let kernel = self.kernels.iter().find(|kernel| kernel.series == boot.kernel);
        Ok(kernel.ok_or("a boot has a kernel that is not fetched")?)
    }

    /// The first root of a boot.
    pub(crate) fn initrd(&self, boot: &Boot) -> Result<PathBuf, Box<dyn Error>> {
        let initrd = self.place.cache.join(format!("{}.cpio", boot.name));
        let mut image = self.image.clone().with_modules(self.kernel(boot)?)?;
        if boot.root == Root::Debian {
            image = image.entering_debian();
        }
        fs::write(&initrd, image.archive())?;
        Ok(initrd)
    }

    fn drives(&self, boot: &Boot) -> Vec<Drive> {
        let disk =
            |path: &Path| Drive { disk: path.to_owned(), serial: "debian".to_owned(), log: None };
        match boot.root {
            Root::Bare => Vec::new(),
            Root::Debian => vec![disk(self.debian)],
        }
    }

    /// A machine that is ready.
    pub(crate) fn machine(
        &self,
        boot: &Boot,
        initrd: &Path,
        drives: &[Drive],
    ) -> Result<Machine, Box<dyn Error>> {
        let image = self.kernel(boot)?.image.clone();
        let start = |accelerator, patience| {
            let hardware = Hardware {
                accelerator,
                kernel: &image,
                initrd,
                command_line: boot.command_line,
                drives,
                log: self.log(boot),
            };
            let begun = Instant::now();
            let mut machine = Machine::start(&hardware)?;
            let release = machine.ready(patience)?;
            let took = begun.elapsed().as_secs_f64();
            println!("== {}: Linux {release}, {accelerator:?}, booted in {took:.1} s", boot.name);
            Ok::<_, Lost>(machine)
        };
        if let Some(machine) = self.probe(|| start(Accelerator::Kvm, PROBE_BOOTS_WITHIN)) {
            return Ok(machine);
        }
        let accelerator = self.accelerator();
        // Translated code loses races on a busy host that no processor loses: a kernel that patches itself, or that waits for
        // its timer, then gives up. That says nothing about dewar, which has not run yet.
        let mut tries = (1..BOOTS_AGAIN).map(|_| start(accelerator, BOOTS_WITHIN));
        let tried = tries.find(|tried| !matches!(tried, Err(Lost::Ended { .. })));
        Ok(tried.unwrap_or_else(|| start(accelerator, BOOTS_WITHIN))?)
    }

    /// Finds out with the first machine, while others wait, whether KVM is of use: gives that machine if it is.
    fn probe(&self, boot: impl FnOnce() -> Result<Machine, Lost>) -> Option<Machine> {
        let mut known = self.accelerator.lock().ok()?;
        if known.is_some() {
            return None;
        }
        let machine = self.kvm.probe(boot);
        *known = Some(if machine.is_some() { Accelerator::Kvm } else { Accelerator::Tcg });
        machine
    }

    /// What was found out.
    fn accelerator(&self) -> Accelerator {
        self.accelerator.lock().ok().and_then(|known| *known).unwrap_or(Accelerator::Tcg)
    }

    /// Where the console of a boot goes.
    fn log(&self, boot: &Boot) -> PathBuf {
        self.place.cache.join("logs").join(format!("{}.log", boot.name))
    }
}

/// Runs tests until there are none left, or until the machine is lost, which the test is blamed for that ran then.
fn drain(machine: &mut Machine, boot: &Boot, tests: &mut VecDeque<Test>, report: &mut Report) {
    while let Some(test) = tests.pop_front() {
        let name = test.full_name(boot);
        let begun = Instant::now();
        match run(machine, &test) {
            Ok((outcome, took, output)) => report.test(&name, &outcome, took, &output),
            Err(lost) => {
                let why = Outcome::Failed(crate::causes::chain(&lost));
                report.test(&name, &why, begun.elapsed(), "");
                return;
            }
        }
    }
    // It has nothing to lose: no answer is waited for.
    let _ = machine.order(&Order::PowerOff);
}

/// Runs one test to its end.
pub(crate) fn run(machine: &mut Machine, test: &Test) -> Result<(Outcome, Duration, String), Lost> {
    machine.order(&test.order())?;
    match machine.event("the guest", test.deadline + TELLS_WITHIN)? {
        Event::Ended { outcome, took, output } => Ok((outcome, took, output)),
        Event::Ready { .. } => Err(Lost::Talk(std::io::ErrorKind::InvalidData.into())),
    }
}
