//! The logs of a process, run after run.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::{Chunk, Log, LogError, Source, Start, Watched, Watcher};
use crate::observe::Observed;
use crate::view::Replay;

/// How far a process has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Number of its runs so far.
    pub runs: u32,
    /// Whether the run that was asked for has ended, so that it writes nothing any more.
    pub ended: bool,
    /// Whether the task has, so that no run comes any more.
    pub over: bool,
}

impl Progress {
    /// Of process number `process` of a task with regard to its run `run`; of one that has not begun there is none.
    pub fn of(replay: Option<&Replay>, process: usize, run: u32) -> Self {
        let Some(state) = replay.map(Replay::state) else {
            return Self { runs: 0, ended: false, over: false };
        };
        let runs = &state.processes()[process].runs;
        Self {
            runs: runs.len() as u32,
            ended: runs.get(run as usize).is_some_and(|run| !run.state.is_live()),
            over: state.phase().is_some_and(|phase| phase.is_terminal()),
        }
    }
}

/// Knows which runs there are.
pub trait Runs {
    /// How far process number `process` has come by now, with regard to its run `run`.
    ///
    /// # Errors
    ///
    /// [`LogError::Runs`] if that cannot be told.
    fn progress(&mut self, process: usize, run: u32) -> Result<Progress, LogError>;
}

impl Runs for Observed {
    fn progress(&mut self, process: usize, run: u32) -> Result<Progress, LogError> {
        self.advance(|_, _| {})?;
        Ok(Progress::of(self.replay(), process, run))
    }
}

/// What following led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Bytes.
    Chunk(Chunk),
    /// All was read: the [`Watcher`] is woken once there may be more.
    Waiting,
    /// All was read, and no more can come.
    Over,
}

/// Which runs are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    Run,
    FromRun,
}

/// Reads the log of a run, and of those after it.
///
/// The [`Watcher`] is told of the log directory by this; of the task's stream, or whatever else `R` goes by, by the caller.
#[derive(Debug)]
pub struct Follow<R> {
    runs: R,
    source: Arc<Source>,
    extent: Extent,
    log: Log,
    watcher: Watcher,
    watched: Option<Watched>,
    /// As it was before the log was last read on.
    seen: Option<Progress>,
}

impl<R: Runs> Follow<R> {
    /// Reads the log of run `run` of `source` from `start`, and, unless `only` that, the logs of the runs after it.
    pub fn new(
        runs: R,
        source: Arc<Source>,
        run: u32,
        only: bool,
        start: Start,
        watcher: Watcher,
    ) -> Self {
        let extent = if only { Extent::Run } else { Extent::FromRun };
        let log = Log::new(Arc::clone(&source), run, start);
        Self { runs, source, extent, log, watcher, watched: None, seen: None }
    }

    /// The run whose log is read.
    pub fn run(&self) -> u32 {
        self.log.run()
    }

    /// Reads on, into `buffer`, which is not empty. Never sleeps.
    ///
    /// # Errors
    ///
    /// [`LogError`]; what was read before was all that there was up to it.
    pub fn next(&mut self, buffer: &mut [u8]) -> Result<Next, LogError> {
        loop {
            let run = self.log.run();
            // The state before the log: what had ended by then has written all that it ever will.
            let seen = match self.seen {
                Some(seen) => seen,
                None => self.look(run)?,
            };
            self.seen = Some(seen);
            if run < seen.runs
                && let Some(chunk) = self.log.read(buffer)?
            {
                return Ok(Next::Chunk(chunk));
            }
            self.seen = None;
            if seen.ended && self.extent == Extent::FromRun {
                self.log = Log::new(Arc::clone(&self.source), run + 1, Start::Oldest);
                self.forget();
            } else if seen.ended || seen.over {
                self.forget();
                return Ok(Next::Over);
            } else {
                return Ok(Next::Waiting);
            }
        }
    }

    /// How far things have come, with the log watched from before it is read on.
    fn look(&mut self, run: u32) -> Result<Progress, LogError> {
        let progress = self.runs.progress(self.source.index(), run)?;
        if run < progress.runs
            && let Some(dir) = self.source.open_dir(run)?
        {
            // Each time: the task may have removed it, and its coordinator made it again.
            let watched = self.watcher.watch_dir(dir.as_fd(), &self.source.path(run))?;
            if self.watched != Some(watched) {
                self.forget();
                self.watched = Some(watched);
            }
        }
        Ok(progress)
    }

    fn forget(&mut self) {
        if let Some(watched) = self.watched.take() {
            self.watcher.forget(watched);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;
    use std::rc::Rc;

    use super::*;
    use crate::logs::Watches;
    use crate::logs::testing::{Scene, lines};

    /// What the test says.
    #[derive(Clone)]
    struct Told(Rc<Cell<(u32, bool, bool)>>);

    impl Told {
        fn new(runs: u32, ended: bool, over: bool) -> Self {
            Self(Rc::new(Cell::new((runs, ended, over))))
        }

        fn tell(&self, runs: u32, ended: bool, over: bool) {
            self.0.set((runs, ended, over));
        }
    }

    impl Runs for Told {
        fn progress(&mut self, _: usize, run: u32) -> Result<Progress, LogError> {
            let (runs, ended, over) = self.0.get();
            Ok(Progress { runs, ended: run + 1 < runs || (ended && run < runs), over })
        }
    }

    fn follow(scene: &Scene, told: &Told, run: u32, only: bool, watches: &Watches) -> Follow<Told> {
        let source = Arc::clone(&scene.source);
        Follow::new(told.clone(), source, run, only, Start::Oldest, watches.watcher(|| {}))
    }

    /// All that comes without waiting, each chunk with its run.
    fn drain(follow: &mut Follow<Told>) -> (Vec<(u32, String)>, Next) {
        let mut read = Vec::new();
        let mut buffer = [0; 1 << 10];
        loop {
            match follow.next(&mut buffer).unwrap() {
                Next::Chunk(chunk) => {
                    let text = String::from_utf8(buffer[..chunk.len].to_vec()).unwrap();
                    read.push((chunk.run, text));
                }
                last => return (read, last),
            }
        }
    }

    #[test]
    fn runs_are_read_one_after_the_other_until_the_task_is_over() {
        let mut scene = Scene::new();
        let (told, watches) = (Told::new(0, false, false), Watches::new().unwrap());
        let mut follow = follow(&scene, &told, 0, false, &watches);
        assert_eq!(drain(&mut follow), (vec![], Next::Waiting));

        told.tell(1, false, false);
        scene.write(0..2);
        assert_eq!(drain(&mut follow), (vec![(0, lines(0..2))], Next::Waiting));

        scene.write(2..3);
        scene.run(1);
        told.tell(2, false, false);
        scene.write(3..4);
        assert_eq!(drain(&mut follow), (vec![(0, lines(2..3)), (1, lines(3..4))], Next::Waiting));

        scene.write(4..5);
        told.tell(2, true, true);
        assert_eq!(drain(&mut follow), (vec![(1, lines(4..5))], Next::Over));
    }

    #[test]
    fn one_run_is_read_to_its_end_if_no_other_was_asked_for() {
        let scene = Scene::new();
        let (told, watches) = (Told::new(1, false, false), Watches::new().unwrap());
        let mut follow = follow(&scene, &told, 0, true, &watches);
        scene.write(0..1);
        assert_eq!(drain(&mut follow), (vec![(0, lines(0..1))], Next::Waiting));

        told.tell(1, true, false);

        assert_eq!(drain(&mut follow), (vec![], Next::Over));
    }

    /// What a run writes between the look at its state and its end is read: the state is looked at before the log.
    #[test]
    fn what_is_written_before_the_end_is_read_before_the_end_is_told() {
        let scene = Scene::new();
        let (told, watches) = (Told::new(1, false, false), Watches::new().unwrap());
        let mut follow = follow(&scene, &told, 0, false, &watches);
        scene.write(0..100);
        let mut buffer = [0; 10];
        follow.next(&mut buffer).unwrap();

        told.tell(1, true, true);
        scene.write(100..101);

        let mut rest = String::new();
        while let Next::Chunk(chunk) = follow.next(&mut buffer).unwrap() {
            rest.push_str(std::str::from_utf8(&buffer[..chunk.len]).unwrap());
        }
        assert_eq!(rest, lines(0..101)[10..]);
    }

    #[test]
    fn a_follower_that_waits_is_woken_by_what_is_written() {
        let scene = Scene::new();
        let (told, watches) = (Told::new(1, false, false), Watches::new().unwrap());
        let woken = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let wake = Arc::clone(&woken);
        let watcher = watches.watcher(move || {
            wake.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        let source = Arc::clone(&scene.source);
        let mut follow = Follow::new(told, source, 0, false, Start::Oldest, watcher);
        let mut wakes = |change: &dyn Fn()| {
            while let Next::Chunk(_) = follow.next(&mut [0; 100]).unwrap() {}
            change();
            watches.dispatch().unwrap();
            woken.swap(0, std::sync::atomic::Ordering::Relaxed)
        };

        assert_eq!(wakes(&|| scene.write(0..1)), 1);
        assert_eq!(wakes(&|| scene.rotate(3)), 1);
        assert_eq!(wakes(&|| scene.write(1..2)), 1);
        assert_eq!(wakes(&|| {}), 0);
        // The directory, too, is the task's.
        let dir = scene.live().parent().unwrap().to_owned();
        assert_eq!(wakes(&|| fs::rename(&dir, dir.with_file_name("away")).unwrap()), 0);
        assert_eq!(wakes(&|| fs::create_dir(&dir).unwrap()), 0);
        assert_eq!(wakes(&|| fs::write(scene.live(), "again").unwrap()), 1);
    }
}
