//! Which tasks go, and why. Pure.
//!
//! All that go are chosen by these rules, in this order (V23):
//!
//! 1. Each task that is older than `max_age`.
//! 2. Of the rest the oldest ones, until what is left takes no more space than `max_space`.
//! 3. Of the rest the oldest ones, until no more than `max_tasks` are left.
//! 4. Of the rest the oldest ones, until as much of the file system is free as `min_free` and `min_free_inodes` say.
//!
//! Older is who ended earlier; of two that ended at the same moment the one with the lesser id goes first.
//!
//! A task that ended too recently to go counts in rules 2 and 3. One that cannot go, because its checkpoint is damaged or it was tried in
//! vain, does not: it would only make others go in its place.

use std::time::Duration;

use crate::remove::Parts;
use crate::task::TaskId;

/// Parts of the whole that a share is given in.
const WHOLE: u128 = 10_000;

/// Bytes and inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

impl std::ops::Add for Size {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            inodes: self.inodes.saturating_add(other.inodes),
        }
    }
}

/// What a task takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Its sandbox, but for the logs.
    pub data: Size,
    /// Its logs.
    pub logs: Size,
    /// Its checkpoint.
    pub metadata: Size,
}

impl Sizes {
    /// What these parts of it take.
    pub fn of(&self, parts: Parts) -> Size {
        let part = |counts: bool, size: Size| if counts { size } else { Size::default() };
        part(parts.data, self.data)
            + part(parts.logs, self.logs)
            + part(parts.metadata, self.metadata)
    }
}

/// A task that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Its id.
    pub id: TaskId,
    /// Time since it ended.
    pub age: Duration,
    /// What of it would be removed; zero where no limit needs to know.
    pub size: Size,
    /// Whether its checkpoint is damaged.
    pub is_corrupt: bool,
    /// Whether it was tried lately, and could not be removed.
    pub is_stuck: bool,
}

/// So much, or a share of all that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// A number: of bytes, or of inodes.
    Number(u64),
    /// Hundredths of a percent, at most 10,000.
    Share(u16),
}

impl Amount {
    /// How much it is of `total`.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Number(number) => number,
            Self::Share(share) => {
                let part = u128::from(total) * u128::from(share) / WHOLE;
                u64::try_from(part).unwrap_or(u64::MAX)
            }
        }
    }
}

/// What is to be kept within. `None` is no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Time since the end of a task after which it goes.
    pub max_age: Option<Duration>,
    /// Bytes that tasks may take which are over.
    pub max_space: Option<u64>,
    /// How many of them there may be.
    pub max_tasks: Option<u64>,
    /// Space that is to be free in the file system.
    pub min_free: Option<Amount>,
    /// Inodes that are to be free in the file system.
    pub min_free_inodes: Option<Amount>,
    /// Time since its end in which a task never goes.
    pub keep_at_least: Duration,
    /// Whether a task goes whose checkpoint is damaged.
    pub corrupt: bool,
}

/// How long a task is kept at least, if nothing else is said.
pub const KEEP_AT_LEAST: Duration = Duration::from_secs(600);

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_age: None,
            max_space: None,
            max_tasks: None,
            min_free: None,
            min_free_inodes: None,
            keep_at_least: KEEP_AT_LEAST,
            corrupt: false,
        }
    }
}

impl Limits {
    /// Whether there is any, so that a task may go at all.
    pub fn any(&self) -> bool {
        let Self { max_age, max_space, max_tasks, min_free, min_free_inodes, .. } = self;
        max_age.is_some()
            || max_space.is_some()
            || max_tasks.is_some()
            || min_free.is_some()
            || min_free_inodes.is_some()
    }

    /// Whether it counts how much of the file system is free.
    pub fn needs_free(&self) -> bool {
        self.min_free.is_some() || self.min_free_inodes.is_some()
    }

    /// Whether more of the file system is used than should be.
    pub fn lack(&self, free: &Free) -> Option<Why> {
        let lacks = |least: Option<Amount>, space: Space| {
            // A file system that has no fixed number of inodes tells none.
            least.is_some_and(|least| space.total > 0 && space.free < least.of(space.total))
        };
        if lacks(self.min_free, free.bytes) {
            return Some(Why::FreeSpace);
        }
        lacks(self.min_free_inodes, free.inodes).then_some(Why::FreeInodes)
    }

    fn may_ever_go(&self, task: &Finished) -> bool {
        !task.is_stuck && (!task.is_corrupt || self.corrupt)
    }
}

/// How much there is, and how much of it is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// All.
    pub total: u64,
    /// What is free.
    pub free: u64,
}

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Free {
    /// Bytes.
    pub bytes: Space,
    /// Inodes.
    pub inodes: Space,
}

impl Free {
    fn give_back(&mut self, size: Size) {
        self.bytes.free = self.bytes.free.saturating_add(size.bytes);
        self.inodes.free = self.inodes.free.saturating_add(size.inodes);
    }
}

/// Why a task goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// It is older than `max_age`.
    Age,
    /// All together take more than `max_space`.
    Space,
    /// They are more than `max_tasks`.
    Number,
    /// Less of the file system is free than `min_free`.
    FreeSpace,
    /// Fewer of its inodes are free than `min_free_inodes`.
    FreeInodes,
}

impl Why {
    /// The option that says so.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Age => "max-age",
            Self::Space => "max-space",
            Self::Number => "max-tasks",
            Self::FreeSpace => "min-free",
            Self::FreeInodes => "min-free-inodes",
        }
    }

    /// Whether it is the file system that lacks something: that depends on more than the tasks that are over.
    pub fn is_lack(self) -> bool {
        matches!(self, Self::FreeSpace | Self::FreeInodes)
    }
}

/// A task that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Victim {
    /// The task.
    pub task: Finished,
    /// Why.
    pub why: Why,
}

/// Chooses those of `tasks` that go, in the order in which they do.
pub fn choose(mut tasks: Vec<Finished>, limits: &Limits, mut free: Free) -> Vec<Victim> {
    tasks.retain(|task| limits.may_ever_go(task));
    // Oldest first.
    tasks.sort_unstable_by(|a, b| (b.age, &a.id).cmp(&(a.age, &b.id)));
    let mut size = tasks.iter().fold(Size::default(), |sum, task| sum + task.size);
    let mut count = tasks.len() as u64;
    let mut victims = Vec::new();
    let mut go = |task: Finished, why, size: &mut Size, count: &mut u64, free: &mut Free| {
        size.bytes -= task.size.bytes.min(size.bytes);
        *count -= 1;
        free.give_back(task.size);
        victims.push(Victim { task, why });
    };
    tasks.retain(|task| task.age >= limits.keep_at_least);
    let is_aged = |task: &Finished| limits.max_age.is_some_and(|most| task.age > most);
    let (aged, rest): (Vec<_>, Vec<_>) = tasks.into_iter().partition(is_aged);
    for task in aged {
        go(task, Why::Age, &mut size, &mut count, &mut free);
    }
    for task in rest {
        let why = if limits.max_space.is_some_and(|most| size.bytes > most) {
            Why::Space
        } else if limits.max_tasks.is_some_and(|most| count > most) {
            Why::Number
        } else if let Some(why) = limits.lack(&free) {
            why
        } else {
            break;
        };
        go(task, why, &mut size, &mut count, &mut free);
    }
    victims
}

/// The time after which another of `tasks` may have to go, because it is too old, or because it is spared no more; `None` if that takes more
/// than time.
pub fn next_due(tasks: &[Finished], limits: &Limits) -> Option<Duration> {
    let of_age = |task: &Finished| {
        let at = limits.max_age?.max(limits.keep_at_least);
        // A moment more, for only what is older goes.
        Some(at.saturating_sub(task.age) + Duration::from_millis(1))
    };
    let unspared = |task: &Finished| {
        (task.age < limits.keep_at_least).then(|| limits.keep_at_least - task.age)
    };
    let candidates = tasks.iter().filter(|task| limits.may_ever_go(task));
    candidates.flat_map(|task| [of_age(task), unspared(task)]).flatten().min()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn task(id: &str, age: u64, bytes: u64) -> Finished {
        Finished {
            id: TaskId::new(id).unwrap(),
            age: SECOND * u32::try_from(age).unwrap(),
            size: Size { bytes, inodes: 1 },
            is_corrupt: false,
            is_stuck: false,
        }
    }

    /// Four tasks of 10, 20, 30 and 40 bytes, `a` the oldest.
    fn four() -> Vec<Finished> {
        vec![task("d", 1, 40), task("b", 300, 20), task("a", 400, 10), task("c", 200, 30)]
    }

    fn none() -> Limits {
        Limits { keep_at_least: Duration::ZERO, ..Limits::default() }
    }

    fn chosen(tasks: Vec<Finished>, limits: &Limits, free: Free) -> String {
        let victims = choose(tasks, limits, free);
        let told: Vec<_> = victims
            .iter()
            .map(|victim| format!("{} {}", victim.task.id, victim.why.as_str()))
            .collect();
        told.join(", ")
    }

    fn of_four(limits: Limits) -> String {
        chosen(four(), &limits, Free::default())
    }

    #[test]
    fn without_a_limit_nothing_goes() {
        assert_eq!(of_four(none()), "");
        assert!(!none().any());
    }

    /// V23 (1): older, not as old.
    #[test]
    fn what_is_older_than_the_greatest_age_goes() {
        let limits = |age| Limits { max_age: Some(SECOND * age), ..none() };

        assert_eq!(of_four(limits(200)), "a max-age, b max-age");
        assert_eq!(of_four(limits(400)), "");
        assert_eq!(of_four(limits(0)), "a max-age, b max-age, c max-age, d max-age");
    }

    /// V23 (2), W12: the oldest go, not the newest.
    #[test]
    fn the_oldest_go_until_the_rest_takes_no_more_than_the_space() {
        let limits = |space| Limits { max_space: Some(space), ..none() };

        assert_eq!(of_four(limits(100)), "");
        assert_eq!(of_four(limits(99)), "a max-space");
        assert_eq!(of_four(limits(70)), "a max-space, b max-space");
        assert_eq!(of_four(limits(39)), "a max-space, b max-space, c max-space, d max-space");
    }

    /// V23 (3).
    #[test]
    fn the_oldest_go_until_no_more_than_the_number_are_left() {
        let limits = |tasks| Limits { max_tasks: Some(tasks), ..none() };

        assert_eq!(of_four(limits(4)), "");
        assert_eq!(of_four(limits(3)), "a max-tasks");
        assert_eq!(of_four(limits(0)), "a max-tasks, b max-tasks, c max-tasks, d max-tasks");
    }

    #[test]
    fn the_oldest_go_until_enough_of_the_file_system_is_free() {
        let space = |free| Space { total: 1000, free };
        let free = Free { bytes: space(75), inodes: space(8) };
        let bytes = Limits { min_free: Some(Amount::Share(1_000)), ..none() };
        let inodes = Limits { min_free_inodes: Some(Amount::Number(10)), ..none() };

        assert_eq!(chosen(four(), &bytes, free), "a min-free, b min-free");
        assert_eq!(chosen(four(), &inodes, free), "a min-free-inodes, b min-free-inodes");
        let enough = Free { bytes: space(100), inodes: space(10) };
        assert_eq!(chosen(four(), &bytes, enough), "");
        assert_eq!(chosen(four(), &inodes, enough), "");
        let untold = Free { inodes: Space::default(), ..free };
        assert_eq!(chosen(four(), &inodes, untold), "", "no fixed number of inodes");
    }

    #[test]
    fn what_goes_for_its_age_counts_for_the_other_limits() {
        let limits = Limits {
            max_age: Some(SECOND * 350),
            max_space: Some(90),
            max_tasks: Some(2),
            ..none()
        };

        assert_eq!(of_four(limits), "a max-age, b max-tasks");
    }

    /// Unacknowledged: whoever launched it may not have looked yet.
    #[test]
    fn what_ended_a_moment_ago_is_kept_whatever_the_limits_and_counts() {
        let limits = Limits {
            max_age: Some(Duration::ZERO),
            max_space: Some(0),
            max_tasks: Some(1),
            min_free: Some(Amount::Share(10_000)),
            keep_at_least: SECOND * 250,
            ..none()
        };
        let full = Free { bytes: Space { total: 1 << 40, free: 0 }, inodes: Space::default() };

        assert_eq!(chosen(four(), &limits, full), "a max-age, b max-age");
    }

    #[test]
    fn what_is_damaged_goes_if_that_is_asked_for() {
        let mut tasks = four();
        tasks[2].is_corrupt = true;
        let kept = Limits { max_tasks: Some(2), ..none() };
        let asked = Limits { corrupt: true, ..kept.clone() };

        assert_eq!(chosen(tasks.clone(), &kept, Free::default()), "b max-tasks");
        assert_eq!(chosen(tasks, &asked, Free::default()), "a max-tasks, b max-tasks");
    }

    #[test]
    fn what_could_not_be_removed_is_not_tried_again_at_once_and_no_other_goes_for_it() {
        let mut tasks = four();
        tasks[2].is_stuck = true;
        let limits = Limits { max_tasks: Some(2), max_age: Some(SECOND * 350), ..none() };

        assert_eq!(chosen(tasks.clone(), &limits, Free::default()), "b max-tasks");
        assert_eq!(next_due(&tasks[2..3], &limits), None);
    }

    /// A clock that was set back makes nobody old.
    #[test]
    fn tasks_of_the_same_age_go_by_their_ids() {
        let tasks = vec![task("y", 5, 1), task("x", 5, 1), task("z", 5, 1)];
        let limits = Limits { max_tasks: Some(1), ..none() };

        assert_eq!(chosen(tasks, &limits, Free::default()), "x max-tasks, y max-tasks");
    }

    #[test]
    fn a_share_is_of_all_that_there_is() {
        assert_eq!(Amount::Share(1_000).of(1000), 100);
        assert_eq!(Amount::Share(10_000).of(u64::MAX), u64::MAX);
        assert_eq!(Amount::Share(50).of(1000), 5);
        assert_eq!(Amount::Number(7).of(1), 7);
    }

    #[test]
    fn the_next_one_is_due_when_it_is_too_old_or_spared_no_more() {
        let tasks = [task("a", 100, 1), task("b", 40, 1)];
        let due = |limits: Limits| next_due(&tasks, &limits);
        let age = |age, least| Limits {
            max_age: Some(SECOND * age),
            keep_at_least: SECOND * least,
            ..none()
        };
        let moment = Duration::from_millis(1);

        assert_eq!(due(none()), None);
        assert_eq!(due(age(150, 0)), Some(SECOND * 50 + moment));
        assert_eq!(due(age(60, 0)), Some(moment), "one should have gone");
        assert_eq!(due(age(150, 60)), Some(SECOND * 20));
        assert_eq!(due(Limits { keep_at_least: SECOND * 150, ..none() }), Some(SECOND * 50));
    }

    fn tasks() -> impl Strategy<Value = Vec<Finished>> {
        let fate = (0u64..500, 0u64..100, any::<bool>());
        prop::collection::vec(fate, 0..20).prop_map(|tasks| {
            let named = tasks.into_iter().enumerate();
            let task = |(n, (age, bytes, is_corrupt))| Finished {
                is_corrupt,
                ..task(&format!("t{n}"), age, bytes)
            };
            named.map(task).collect()
        })
    }

    fn limits() -> impl Strategy<Value = Limits> {
        let option = |most: u64| prop::option::of(0..most);
        (option(500), option(1000), option(20), option(2000), 0u64..300, any::<bool>()).prop_map(
            |(age, max_space, max_tasks, free, least, corrupt)| Limits {
                max_age: age.map(Duration::from_secs),
                max_space,
                max_tasks,
                min_free: free.map(Amount::Number),
                min_free_inodes: None,
                keep_at_least: Duration::from_secs(least),
                corrupt,
            },
        )
    }

    proptest! {
        /// Whatever the limits: what may not go stays; who goes for another reason than its age is older than all that could have gone
        /// and stay; and afterwards either all limits are kept, or nothing that may go is left.
        #[test]
        fn no_more_and_no_fewer_go_than_the_limits_say(tasks in tasks(), limits in limits()) {
            let free = Free { bytes: Space { total: 4000, free: 500 }, inodes: Space::default() };
            let victims = choose(tasks.clone(), &limits, free);

            let spares =
                |task: &Finished| task.age < limits.keep_at_least || !limits.may_ever_go(task);
            let gone = |task: &Finished| victims.iter().any(|victim| victim.task.id == task.id);
            let counts = |task: &&Finished| !gone(task) && limits.may_ever_go(task);
            let left: Vec<_> = tasks.iter().filter(counts).collect();
            let could: Vec<_> = left.iter().filter(|task| !spares(task)).collect();
            for victim in &victims {
                prop_assert!(!spares(&victim.task));
                let is_oldest = could.iter().all(|task| task.age <= victim.task.age);
                prop_assert!(victim.why == Why::Age || is_oldest);
            }
            if could.is_empty() {
                return Ok(());
            }
            let bytes: u64 = left.iter().map(|task| task.size.bytes).sum();
            let back: u64 = victims.iter().map(|victim| victim.task.size.bytes).sum();
            prop_assert!(could.iter().all(|task| limits.max_age.is_none_or(|most| task.age <= most)));
            prop_assert!(limits.max_space.is_none_or(|most| bytes <= most));
            prop_assert!(limits.max_tasks.is_none_or(|most| left.len() as u64 <= most));
            let free = Free { bytes: Space { total: 4000, free: 500 + back }, inodes: Space::default() };
            prop_assert_eq!(limits.lack(&free), None);
            // The last one was needed.
            if let Some(last) = victims.last().filter(|victim| victim.why != Why::Age) {
                let size = last.task.size.bytes;
                let mut before = free;
                before.bytes.free -= size;
                let needed = limits.max_space.is_some_and(|most| bytes + size > most)
                    || limits.max_tasks.is_some_and(|most| left.len() as u64 + 1 > most)
                    || limits.lack(&before).is_some();
                prop_assert!(needed);
            }
        }
    }
}
