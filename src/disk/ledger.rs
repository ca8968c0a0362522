//! The books of a tree that is kept current: what each directory has, and what all of them come to. Pure.
//!
//! A directory is counted as a whole, with itself and the files in it ([`Ledger::counted`]), and again once it is *due*. What is beneath it is
//! counted apart, so that a change costs one directory. A directory that is found in another place than before is forgotten with all
//! beneath it, and counted there as a new one.
//!
//! A file with several names stands in a book of its own, once, however many directories have it. Whoever counts one name of a file cannot
//! see that another, in a directory that is not due, was counted when it was the only one: so a file that is new in the book and
//! has more names than were met is a [doubt](Ledger::has_doubts).

use std::collections::{HashMap, HashSet};
use std::ffi::CString;

use crate::sys::dir::{FileId, Stat};

use super::BLOCK;

/// What something takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sums {
    pub(super) bytes: u64,
    pub(super) inodes: u64,
    pub(super) mounts: u64,
}

impl Sums {
    fn add(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.inodes += other.inodes;
        self.mounts += other.mounts;
    }

    fn subtract(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_sub(other.bytes);
        self.inodes = self.inodes.saturating_sub(other.inodes);
        self.mounts = self.mounts.saturating_sub(other.mounts);
    }
}

/// What was found in one directory.
#[derive(Debug, Default)]
pub(super) struct Counted {
    sums: Sums,
    linked: Vec<Stat>,
    dirs: Vec<(CString, FileId)>,
}

impl Counted {
    /// The directory itself.
    pub(super) fn of(dir: &Stat) -> Self {
        Self { sums: taken(dir), ..Self::default() }
    }

    pub(super) fn dir(&mut self, name: CString, id: FileId) {
        self.dirs.push((name, id));
    }

    pub(super) fn mount(&mut self) {
        self.sums.mounts += 1;
    }
}

fn taken(stat: &Stat) -> Sums {
    Sums { bytes: stat.blocks.saturating_mul(BLOCK), inodes: 1, mounts: 0 }
}

#[derive(Debug)]
struct Dir {
    above: Option<FileId>,
    /// In the directory above.
    name: CString,
    sums: Sums,
    below: Vec<FileId>,
    /// A name each of files with several, and which entry of the book it counts for.
    linked: Vec<(FileId, u64)>,
}

/// A file with several names.
#[derive(Debug)]
struct Linked {
    /// Number of this entry: that of a file which is forgotten is not used again.
    entry: u64,
    /// Names that were met.
    met: u32,
    /// Names that it has.
    links: u32,
    sums: Sums,
}

/// The books.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    dirs: HashMap<FileId, Dir>,
    linked: HashMap<FileId, Linked>,
    /// Names in all entries of `linked`.
    names: usize,
    entries: u64,
    total: Sums,
    due: HashSet<FileId>,
    /// Files that are new in the book.
    new: HashSet<FileId>,
    gone: Vec<FileId>,
}

impl Ledger {
    /// Of a tree of which nothing is known but its top.
    pub(super) fn new(top: FileId) -> Self {
        let mut ledger = Self::default();
        ledger.enter(top, None, CString::default());
        ledger
    }

    pub(super) fn total(&self) -> Sums {
        self.total
    }

    /// Directories, and names of files with several.
    pub(super) fn size(&self) -> usize {
        self.dirs.len() + self.names
    }

    /// The directory has changed, and is to be counted again.
    pub(super) fn touch(&mut self, dir: FileId) {
        if self.dirs.contains_key(&dir) {
            self.due.insert(dir);
        }
    }

    /// A directory that is to be counted; it is due no more.
    pub(super) fn next(&mut self) -> Option<FileId> {
        let next = *self.due.iter().next()?;
        self.due.remove(&next);
        Some(next)
    }

    /// The directory above.
    pub(super) fn above(&self, dir: FileId) -> Option<FileId> {
        self.dirs.get(&dir)?.above
    }

    /// The names that lead to a directory, its own first; `None` if it is not known any more.
    pub(super) fn names_up(&self, dir: FileId) -> Option<Vec<&CString>> {
        let mut names = Vec::new();
        let mut at = self.dirs.get(&dir)?;
        while let Some(above) = at.above {
            names.push(&at.name);
            at = self.dirs.get(&above)?;
        }
        Some(names)
    }

    /// A file in a directory that is being counted.
    pub(super) fn file(&mut self, counted: &mut Counted, stat: &Stat) {
        if stat.links > 1 {
            return counted.linked.push(*stat);
        }
        // Whatever names it had, this is the only one.
        self.forget(stat.id);
        counted.sums.add(taken(stat));
    }

    /// All of a directory was counted. Directories in it that are new are due.
    pub(super) fn counted(&mut self, id: FileId, counted: Counted) {
        for (name, child) in &counted.dirs {
            let Some(known) = self.dirs.get(child) else { continue };
            if known.above != Some(id) || known.name != *name {
                self.due.extend(known.above);
                self.drop_all(*child);
            }
        }
        // It was in what was moved.
        let Some(dir) = self.dirs.get_mut(&id) else { return };
        let (before, linked) = (std::mem::take(&mut dir.below), std::mem::take(&mut dir.linked));
        self.total.subtract(std::mem::replace(&mut dir.sums, counted.sums));
        self.total.add(counted.sums);

        let linked_now = counted.linked.iter().map(|stat| (stat.id, self.link(stat))).collect();
        linked.into_iter().for_each(|(file, entry)| self.unlink(file, entry));
        let mut below = HashSet::new();
        for (name, child) in counted.dirs {
            if below.insert(child) && !self.dirs.contains_key(&child) {
                self.enter(child, Some(id), name);
            }
        }
        for child in before {
            if !below.contains(&child) && self.above(child) == Some(id) {
                self.drop_all(child);
            }
        }
        if let Some(dir) = self.dirs.get_mut(&id) {
            (dir.below, dir.linked) = (below.into_iter().collect(), linked_now);
        }
    }

    /// Whether a file may count more than once; asked at the end of a round, for those that it brought.
    pub(super) fn has_doubts(&mut self) -> bool {
        let new = std::mem::take(&mut self.new);
        new.iter().any(|id| self.linked.get(id).is_some_and(|file| file.met < file.links))
    }

    /// Directories that were forgotten since this was asked last.
    pub(super) fn gone(&mut self) -> Vec<FileId> {
        std::mem::take(&mut self.gone)
    }

    fn enter(&mut self, id: FileId, above: Option<FileId>, name: CString) {
        let (sums, below, linked) = (Sums::default(), Vec::new(), Vec::new());
        self.dirs.insert(id, Dir { above, name, sums, below, linked });
        self.due.insert(id);
    }

    /// Forgets a directory and all beneath it.
    fn drop_all(&mut self, id: FileId) {
        let mut rest = vec![id];
        while let Some(id) = rest.pop() {
            let Some(dir) = self.dirs.remove(&id) else { continue };
            self.due.remove(&id);
            self.gone.push(id);
            self.total.subtract(dir.sums);
            dir.linked.into_iter().for_each(|(file, entry)| self.unlink(file, entry));
            rest.extend(dir.below.into_iter().filter(|below| self.above(*below) == Some(id)));
        }
    }

    /// Counts one name of a file with several, and tells the entry.
    fn link(&mut self, stat: &Stat) -> u64 {
        let (entries, new) = (&mut self.entries, &mut self.new);
        let file = self.linked.entry(stat.id).or_insert_with(|| {
            *entries += 1;
            new.insert(stat.id);
            Linked { entry: *entries, met: 0, links: 0, sums: Sums::default() }
        });
        file.met += 1;
        file.links = stat.links;
        self.names += 1;
        self.total.subtract(std::mem::replace(&mut file.sums, taken(stat)));
        self.total.add(file.sums);
        file.entry
    }

    fn unlink(&mut self, id: FileId, entry: u64) {
        let Some(file) = self.linked.get_mut(&id).filter(|file| file.entry == entry) else {
            return;
        };
        if file.met > 1 {
            file.met -= 1;
            self.names -= 1;
        } else {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: FileId) {
        if let Some(file) = self.linked.remove(&id) {
            self.total.subtract(file.sums);
            self.names -= file.met as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(inode: u64) -> FileId {
        FileId { device: 1, inode }
    }

    fn stat(inode: u64, links: u32) -> Stat {
        let (mount, mode, uid, blocks, is_kept) = (1, libc::S_IFREG, 0, 1, false);
        Stat { id: id(inode), mount, mode, uid, links, blocks, is_kept }
    }

    /// Counts directory `dir`, with files, each with its number of names, and directories.
    fn count(ledger: &mut Ledger, dir: u64, files: &[(u64, u32)], dirs: &[(&str, u64)]) {
        ledger.due.remove(&id(dir));
        let mut counted = Counted::of(&stat(dir, 2));
        files.iter().for_each(|&(file, links)| ledger.file(&mut counted, &stat(file, links)));
        dirs.iter().for_each(|&(name, dir)| counted.dir(CString::new(name).unwrap(), id(dir)));
        ledger.counted(id(dir), counted);
    }

    fn due(ledger: &Ledger) -> Vec<u64> {
        let mut due: Vec<_> = ledger.due.iter().map(|id| id.inode).collect();
        due.sort_unstable();
        due
    }

    /// 1 has 2 ("a") and 3 ("b"); 2 has 4 ("c"), which has a file.
    fn tree() -> Ledger {
        let mut ledger = Ledger::new(id(1));
        count(&mut ledger, 1, &[], &[("a", 2), ("b", 3)]);
        count(&mut ledger, 2, &[], &[("c", 4)]);
        count(&mut ledger, 3, &[], &[]);
        count(&mut ledger, 4, &[(40, 1)], &[]);
        assert_eq!((due(&ledger), ledger.total().inodes), (vec![], 5));
        ledger
    }

    #[test]
    fn a_directory_that_is_counted_again_leaves_the_others_alone() {
        let mut ledger = tree();

        count(&mut ledger, 2, &[(20, 1), (21, 1)], &[("c", 4)]);

        assert_eq!((due(&ledger), ledger.total().inodes, ledger.gone()), (vec![], 7, vec![]));
    }

    #[test]
    fn what_is_not_there_any_more_goes_with_all_beneath_it() {
        let mut ledger = tree();

        count(&mut ledger, 1, &[], &[("b", 3)]);

        assert_eq!((ledger.total().inodes, ledger.size()), (2, 2));
        assert_eq!(ledger.gone(), [id(2), id(4)]);
        assert_eq!(ledger.names_up(id(4)), None);
    }

    /// Whichever of the two places is counted first.
    #[test]
    fn a_directory_that_is_moved_is_counted_where_it_is_and_only_there() {
        for new_place_first in [true, false] {
            let mut ledger = tree();
            let steps: [fn(&mut Ledger); 2] =
                [|ledger| count(ledger, 3, &[], &[("d", 4)]), |ledger| count(ledger, 2, &[], &[])];
            let [first, second] = if new_place_first { [0, 1] } else { [1, 0] };

            steps[first](&mut ledger);
            steps[second](&mut ledger);
            count(&mut ledger, 4, &[(40, 1)], &[]);

            assert_eq!((due(&ledger), ledger.total().inodes), (vec![], 5));
            let names = ledger.names_up(id(4)).unwrap();
            assert_eq!(names, [c"d", c"b"]);
        }
    }

    /// It was found in its new place before the old one was found to be gone.
    #[test]
    fn what_was_moved_out_of_a_directory_does_not_go_with_it() {
        let mut ledger = tree();
        count(&mut ledger, 3, &[], &[("d", 4)]);
        count(&mut ledger, 4, &[(40, 1)], &[]);

        count(&mut ledger, 1, &[], &[("b", 3)]);

        assert_eq!((ledger.total().inodes, ledger.size()), (4, 3));
    }

    /// A directory was moved out of the one above, which then was moved into it, while it was read.
    #[test]
    fn a_directory_that_seems_to_be_beneath_itself_is_forgotten() {
        let mut ledger = tree();

        count(&mut ledger, 4, &[], &[("a", 2)]);

        assert_eq!((due(&ledger), ledger.total().inodes), (vec![1], 2));
        assert_eq!(ledger.names_up(id(4)), None);
    }

    #[test]
    fn a_file_with_several_names_counts_once_until_the_last_goes() {
        let mut ledger = tree();
        count(&mut ledger, 2, &[(20, 2)], &[("c", 4)]);
        count(&mut ledger, 3, &[(20, 2)], &[]);
        assert_eq!((ledger.total().inodes, ledger.has_doubts()), (6, false));

        count(&mut ledger, 2, &[], &[("c", 4)]);
        let one_left = ledger.total().inodes;
        count(&mut ledger, 3, &[], &[]);

        assert_eq!((one_left, ledger.total().inodes, ledger.names), (6, 5, 0));
    }

    /// The name in 4 was counted as the only one, and 4 has not changed.
    #[test]
    fn a_name_that_was_counted_as_the_only_one_is_a_doubt() {
        let mut ledger = tree();

        count(&mut ledger, 3, &[(40, 2)], &[]);
        assert!(ledger.has_doubts());

        // One that is known to be elsewhere, and is told so once more, is none.
        count(&mut ledger, 3, &[(40, 2)], &[]);
        assert!(!ledger.has_doubts());
    }

    /// The directory of the name that went is counted later than that of the name that stayed, and got another one by then.
    #[test]
    fn what_is_counted_as_the_only_name_voids_what_is_known_of_others() {
        let mut ledger = tree();
        count(&mut ledger, 2, &[(20, 2)], &[("c", 4)]);
        count(&mut ledger, 3, &[(20, 2)], &[]);
        assert!(!ledger.has_doubts());

        count(&mut ledger, 2, &[(20, 1)], &[("c", 4)]);
        assert_eq!((ledger.total().inodes, ledger.names), (6, 0));
        count(&mut ledger, 3, &[(20, 2)], &[]);

        assert!(ledger.has_doubts());
    }
}
