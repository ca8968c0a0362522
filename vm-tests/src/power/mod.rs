//! Cuts the power under load, and has another machine look at the disks.
//!
//! The load (`guest/power/load.rs`) has tasks accepted, run and killed by several callers at a time, all on one disk, and writes down beside
//! them what its callers were told ([`vm_tests::told`]). Its machine is lost in two ways:
//!
//! - QEMU is killed at a random moment. What the guest had not handed to its disk is gone.
//! - The disk's log of writes and flushes is replayed, on a copy of the disk as it was before: up to each flush, and up to some
//!   moments in between. What was written after the last flush then reached the disk or not, write by write, by chance: all that a
//!   disk with a cache may do.
//!
//! Then each file system is mended as on any boot after a power cut. Whatever was told is there (invariant 1): after each flush
//! that is seen on this host, without mounting anything; of the others `guest/power/verify.rs` sees it, and that every task can be brought
//! to its end.

mod disk;
mod log;
mod random;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use vm_tests::told::{FILE_SYSTEM, ROOT, Told};
use vm_tests::wire::{Order, Outcome};

use crate::boots::{POWER_CUT, Suite};
use crate::qemu::Drive;
use crate::report::Report;
use crate::session::{Session, Test, run};
use disk::Replay;
use log::{Log, What};
use random::Random;

/// Machines that are killed.
const KILLED: usize = 3;

/// Moments of the log at which the power is cut.
const CUTS: usize = 21;

/// Disks that one machine looks at: as many as there are tests in `guest/power/verify.rs`.
const DISKS: usize = 24;

/// When a machine is killed, from the start of its load.
const KILLED_AFTER: std::ops::Range<Duration> = Duration::from_secs(1)..Duration::from_secs(6);

/// The longest that load, or a look at one disk, may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// A disk after a power cut, and what happened to it.
struct Lost {
    name: String,
    disk: PathBuf,
}

/// Cuts and looks; `seed` decides by which chances.
pub(crate) fn run_all(session: &Session<'_>, seed: u64) -> Result<Report, Box<dyn Error>> {
    let mut report = Report::default();
    println!("== {}: seed {seed}", POWER_CUT.name);
    let dir = session.cache().join("power");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    let initrd = session.initrd(&POWER_CUT)?;
    let mut cuts = Cuts { session, initrd, random: Random::new(seed), dir };
    let mut lost = cuts.killed()?;
    lost.extend(cuts.logged(&mut report)?);
    for batch in lost.chunks(DISKS) {
        cuts.look(batch, &mut report)?;
    }
    if report.is_success() {
        fs::remove_dir_all(&cuts.dir)?;
    } else {
        println!("disks: {}", cuts.dir.display());
    }
    Ok(report)
}

struct Cuts<'a, 'b> {
    session: &'a Session<'b>,
    initrd: PathBuf,
    random: Random,
    dir: PathBuf,
}

impl Cuts<'_, '_> {
    fn blank(&self) -> Result<PathBuf, Box<dyn Error>> {
        let blank = self.dir.join("blank");
        if !blank.exists() {
            disk::make(&blank)?;
        }
        Ok(blank)
    }

    /// Machines whose QEMU was killed.
    fn killed(&mut self) -> Result<Vec<Lost>, Box<dyn Error>> {
        let blank = self.blank()?;
        let mut lost = Vec::new();
        for number in 1..=KILLED {
            let disk = self.dir.join(format!("killed-{number}"));
            disk::copy(&blank, &disk)?;
            let drive = Drive { disk: disk.clone(), serial: "load".to_owned(), log: None };
            let mut machine = self.session.machine(&POWER_CUT, &self.initrd, &[drive])?;
            let spread = (KILLED_AFTER.end - KILLED_AFTER.start).as_millis() as u64;
            let after = KILLED_AFTER.start + Duration::from_millis(self.random.below(spread));
            machine.order(&load().order())?;
            // The one thing that is waited for is a moment that nothing in the guest has a part in.
            thread::sleep(after);
            drop(machine);
            disk::check(&disk)?;
            lost.push(Lost { name: format!("qemu killed after {after:.1?}"), disk });
        }
        Ok(lost)
    }

    /// Disks as they may be after a power cut at some moment of one machine's life.
    fn logged(&mut self, report: &mut Report) -> Result<Vec<Lost>, Box<dyn Error>> {
        let blank = self.blank()?;
        let (disk, written) = (self.dir.join("logged"), self.dir.join("log"));
        disk::copy(&blank, &disk)?;
        fs::File::create(&written)?;
        let drive = Drive { disk, serial: "load".to_owned(), log: Some(written.clone()) };
        let mut machine = self.session.machine(&POWER_CUT, &self.initrd, &[drive])?;
        let (outcome, took, output) = run(&mut machine, &load())?;
        report.test(&format!("{}::load", POWER_CUT.name), &outcome, took, &output);
        machine.switch_off(DEADLINE)?;
        if outcome != Outcome::Passed {
            return Ok(Vec::new());
        }
        let log = Log::read(&written)?;
        let start = Instant::now();
        let (flushes, missing) = self.look_at_each_flush(&log, &blank)?;
        let outcome =
            if missing.is_empty() { Outcome::Passed } else { Outcome::Failed(missing.join("\n")) };
        let name = format!("{}::cut after each of {flushes} flushes", POWER_CUT.name);
        report.test(&name, &outcome, start.elapsed(), "");
        self.cut(&log, &blank)
    }

    /// Looks at the disk as it is after each flush from the first thing on that was told; gives their number, and what is missing.
    fn look_at_each_flush(
        &self,
        log: &Log,
        blank: &Path,
    ) -> Result<(usize, Vec<String>), Box<dyn Error>> {
        let (disk, copy) = (self.dir.join("flushed"), self.dir.join("read-out"));
        let mut replay = Replay::new(log, blank, self.dir.join("durable-at-flushes"))?;
        let (mut told, mut flushes, mut missing) = (Vec::new(), 0, Vec::new());
        for (number, entry) in log.entries.iter().enumerate() {
            match entry.what {
                What::Write { .. } if entry.at >= FILE_SYSTEM => {
                    told.extend(Told::from_sector(&log.bytes(entry)?)?);
                }
                What::Flush if !told.is_empty() => {
                    replay.flushed(number, &disk)?;
                    disk::check(&disk)?;
                    fs::create_dir(&copy)?;
                    // Sandboxes are most of it, and nothing that is told.
                    for part in ["tasks", "checkpoints"] {
                        disk::read_out(&disk, &format!("{ROOT}/{part}"), &copy)?;
                    }
                    let tasks = self.session.status(&copy)?;
                    let lacks = told.iter().filter_map(|told| told.is_shown_by(&tasks).err());
                    missing.extend(lacks.map(|lack| format!("after entry {number}: {lack}")));
                    fs::remove_dir_all(&copy)?;
                    flushes += 1;
                }
                _ => {}
            }
        }
        Ok((flushes, missing))
    }

    fn cut(&mut self, log: &Log, blank: &Path) -> Result<Vec<Lost>, Box<dyn Error>> {
        let count = log.entries.len();
        let flushes = log.entries.iter().filter(|entry| entry.what == What::Flush).count();
        let told = |entries: usize| {
            log.entries[..entries].iter().filter(|entry| entry.at >= FILE_SYSTEM).count()
        };
        println!("     {count} entries in the log, {flushes} flushes, {} told", told(count));
        let first = log.entries.iter().position(|entry| entry.at >= FILE_SYSTEM);
        let first = first.ok_or("the load was told nothing")?;
        let mut moments: Vec<_> = (0..CUTS)
            .map(|_| first + self.random.below((count - first) as u64) as usize + 1)
            .collect();
        moments.sort_unstable();
        let mut replay = Replay::new(log, blank, self.dir.join("durable"))?;
        let mut lost = Vec::new();
        for (number, entries) in moments.into_iter().enumerate() {
            let disk = self.dir.join(format!("cut-{number:02}"));
            let cut = replay.cut(entries, &mut self.random, &disk)?;
            disk::check(&disk)?;
            let told = told(entries);
            let name = format!(
                "cut after entry {} with {told} told, {} writes kept and {} lost",
                cut.entries, cut.kept, cut.lost
            );
            lost.push(Lost { name, disk });
        }
        Ok(lost)
    }

    /// Has a machine look at disks.
    fn look(&mut self, lost: &[Lost], report: &mut Report) -> Result<(), Box<dyn Error>> {
        let drive = |(number, lost): (usize, &Lost)| Drive {
            disk: lost.disk.clone(),
            serial: format!("{number:02}"),
            log: None,
        };
        let drives: Vec<_> = lost.iter().enumerate().map(drive).collect();
        let mut machine = self.session.machine(&POWER_CUT, &self.initrd, &drives)?;
        for (number, lost) in lost.iter().enumerate() {
            let test = test(format!("power::verify::disk_{number:02}"));
            let (outcome, took, output) = run(&mut machine, &test)?;
            let name = format!("{}::{}", POWER_CUT.name, lost.name);
            report.test(&name, &outcome, took, &output);
        }
        // It has nothing to lose: no answer is waited for.
        let _ = machine.order(&Order::PowerOff);
        Ok(())
    }
}

fn load() -> Test {
    test("power::load::tasks_are_accepted_run_and_killed".to_owned())
}

fn test(name: String) -> Test {
    Test { suite: Suite::Guest, name, deadline: DEADLINE, slowly: None }
}
