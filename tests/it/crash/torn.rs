//! S29, S30, attacks 37, 38, 44: a stream that was cut or damaged, by a power cut or by anything else.

use std::fs;
use std::path::{Path, PathBuf};

use dewar::checkpoint::paths::Place;
use dewar::checkpoint::{Identity, Reader};
use dewar::state::Phase;
use dewar::task::TaskId;

use super::bench::{Bench, History};
use super::tasks::retries;

/// A task that is over, and what its files hold.
struct Over {
    task: TaskId,
    runner: PathBuf,
    stream: Vec<u8>,
    coordinator: Vec<u8>,
    history: History,
    /// Where each record ends, the launch first.
    ends: Vec<usize>,
}

impl Over {
    fn new(bench: &Bench, id: &str) -> Self {
        let task = bench.accept(id, &retries().file);
        bench.resume(&task);
        let history = bench.history(&task);
        let runner = bench.root().runner(&task);
        let coordinator = bench.root().coordinator(&task, &history.name(0));
        let mut reader = Reader::open(bench.root(), &Identity::runner(task.clone())).unwrap();
        let mut ends = Vec::new();
        while reader.next_record().unwrap().is_some() {
            ends.push(reader.position().offset() as usize);
        }
        let read = |path: &Path| fs::read(path).unwrap();
        Self { stream: read(&runner), coordinator: read(&coordinator), task, runner, history, ends }
    }

    /// Puts the task back to where it was with `stream` in the place of its runner's.
    fn set_back(&self, bench: &Bench, stream: &[u8]) {
        let (active, finished) = (Place::Active, Place::Finished);
        let place = |place| bench.root().task(place, &self.task);
        if place(finished).exists() {
            fs::rename(place(finished), place(active)).unwrap();
        }
        fs::write(&self.runner, stream).unwrap();
        let coordinator = bench.root().coordinator(&self.task, &self.history.name(0));
        fs::write(coordinator, &self.coordinator).unwrap();
    }
}

/// S29, attacks 37, 44: wherever the runner's stream is cut. What the coordinators wrote is all there, as it may be after
/// a power cut, so nothing is run again: the marks of the runs stay as they are.
#[test]
fn s29_a_stream_that_is_cut_anywhere_is_taken_up() {
    let bench = Bench::new();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let bench = &bench;
            scope.spawn(move || {
                let over = Over::new(bench, &format!("cut-{thread}"));
                let cuts = over.ends[0]..over.stream.len();
                cuts.skip(thread).step_by(4).for_each(|cut| take_up(bench, &over, cut));
            });
        }
    });
}

fn take_up(bench: &Bench, over: &Over, cut: usize) {
    over.set_back(bench, &over.stream[..cut]);
    let torn = cut - over.ends.iter().rev().find(|&&end| end <= cut).unwrap();

    bench.resume(&over.task);

    let history = bench.history(&over.task);
    let what = format!("cut at {cut}");
    assert_eq!(history.states(), ["FFF"], "{}", bench.describe(&over.task, &what));
    assert_eq!(history.phase(), Some(Phase::Failed));
    assert_eq!(history.state.dropped_bytes(), torn as u64, "{what}");
}

/// S30, attack 38: a record with good ones behind it is damaged, in any of its bytes. Nothing is run or changed.
#[test]
fn s30_a_damaged_stream_is_left_alone() {
    let bench = Bench::new();
    let over = Over::new(&bench, "t");
    let middle = over.ends.len() / 2;
    for at in over.ends[middle]..over.ends[middle + 1] {
        let mut stream = over.stream.clone();
        stream[at] ^= 0x10;
        over.set_back(&bench, &stream);
        let before = bench.log_text(&over.task).len();

        let status = bench.start(&over.task).wait();

        assert_eq!(status.code(), Some(70));
        let said = bench.log_text(&over.task).split_off(before);
        let place = format!("{} is corrupt at byte {}", over.runner.display(), over.ends[middle]);
        assert!(said.contains(&place), "{said}");
        assert_eq!(fs::read(&over.runner).unwrap(), stream);
        assert!(bench.root().task(Place::Active, &over.task).exists());
        assert_eq!(bench.marks(&over.task).len(), 3, "something was run");
    }
}
