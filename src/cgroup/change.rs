//! Limits of what lives are changed: what is in use, and how to take a change back.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;

use super::{Cgroup, CgroupError, limits};
use crate::task::Resources;

/// What the files of some limits held before they were changed.
#[derive(Debug)]
pub struct Held {
    cgroup: Cgroup,
    /// File and text.
    files: Vec<(String, String)>,
}

/// Paths of the fields that `resources`, found at `path`, ask something of.
pub fn fields(resources: &Resources, path: &str) -> Vec<String> {
    let all = limits::all_unenforceable(resources, path, "", "");
    all.into_iter().map(|named| named.field).collect()
}

impl Cgroup {
    /// Memory in use by all that is in this cgroup, bytes; `None` where the host does not account for it.
    ///
    /// All that `memory.max` bounds counts, page cache too.
    pub fn memory_in_use(&self) -> Option<u64> {
        self.dir().read_text("memory.current").ok()?.parse().ok()
    }

    /// Remembers what the files hold that `resources` would change.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Sys`]: descriptors ran out, say.
    pub fn hold(self, resources: &Resources) -> Result<Held, CgroupError> {
        let read = |file: String| Some((self.dir().read_text(&file).ok()?, file));
        let files = files(resources).into_iter().filter_map(read);
        let files = files.map(|(text, file)| (file, text)).collect();
        Ok(Held { cgroup: self, files })
    }
}

/// The files that limits are written to.
fn files(of: &Resources) -> Vec<String> {
    let fields: [(bool, &[&str]); 12] = [
        (of.cpu.is_some(), &["cpu.weight"]),
        (of.cpu_limit.is_some(), &["cpu.max", "cpu.max.burst"]),
        (of.memory_min.is_some(), &["memory.min"]),
        (of.memory_low.is_some(), &["memory.low"]),
        (of.memory_high.is_some(), &["memory.high"]),
        (of.ram.is_some(), &["memory.max"]),
        (of.swap.is_some(), &["memory.swap.max"]),
        (of.oom_group.is_some(), &["memory.oom.group"]),
        (of.pids.is_some(), &["pids.max"]),
        (of.io.weight.is_some(), &["io.weight", "io.bfq.weight"]),
        (!of.io.max.is_empty(), &["io.max"]),
        (of.cpuset.cpus.is_some() || of.cpuset.mems.is_some(), &["cpuset.cpus", "cpuset.mems"]),
    ];
    let named = fields.into_iter().filter(|(asked, _)| *asked).flat_map(|(_, files)| files);
    let huge = of.hugetlb.keys().map(|size| format!("hugetlb.{size}.max"));
    named.map(ToString::to_string).chain(huge).chain(of.cgroup.keys().cloned()).collect()
}

/// The cgroup: all that [`Held::put_back`] needs to be open.
impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.cgroup.as_fd()
    }
}

impl Held {
    /// Writes back what the files held.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Sys`] of one that does not take it; the others have been written.
    pub fn put_back(&self) -> Result<(), CgroupError> {
        // One value may be in the way of another, such as a burst that is more than the quota: once more for those.
        let again: Vec<_> = self.files.iter().filter(|held| self.write(held).is_err()).collect();
        let failed = again.into_iter().filter_map(|held| Some((held, self.write(held).err()?)));
        match failed.reduce(|_, last| last) {
            Some(((file, _), Errno::ENODEV | Errno::ENOENT)) if !self.is_there(file) => Ok(()),
            Some(((file, _), errno)) => Err(self.cgroup.dir().error("write", file, errno)),
            None => Ok(()),
        }
    }

    /// A cgroup that was removed has no limits.
    fn is_there(&self, file: &str) -> bool {
        self.cgroup.dir().has(file)
    }

    fn write(&self, (file, text): &(String, String)) -> Result<(), Errno> {
        let dir = self.cgroup.dir();
        if file == "io.max" {
            // Devices without a ceiling are not listed.
            let now = dir.read_text(file)?;
            for device in now.lines().filter_map(|line| line.split(' ').next()) {
                dir.write(file, &format!("{device} rbps=max wbps=max riops=max wiops=max"))?;
            }
            return text.lines().try_for_each(|line| dir.write(file, line));
        }
        if text.is_empty() {
            // A write of nothing is none.
            return dir.write(file, "\n");
        }
        text.lines().try_for_each(|line| dir.write(file, line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::scratch::Scratch;

    /// Of files that every cgroup has, whatever controllers there are.
    fn held(scratch: &Scratch, files: &[&str]) -> Held {
        let files = files
            .iter()
            .map(|file| ((*file).to_owned(), scratch.task("task").dir().read_text(file).unwrap()));
        Held { files: files.collect(), cgroup: scratch.task("task").reopen().unwrap() }
    }

    #[test]
    fn what_files_held_is_put_back() {
        let scratch = Scratch::new();
        let task = scratch.task("task");
        let held = held(&scratch, &["cgroup.max.descendants", "cgroup.max.depth"]);
        task.dir().write("cgroup.max.descendants", "7").unwrap();
        task.dir().write("cgroup.max.depth", "5").unwrap();

        held.put_back().unwrap();

        assert_eq!(task.dir().read_text("cgroup.max.descendants").unwrap(), "max");
        assert_ne!(task.dir().read_text("cgroup.max.depth").unwrap(), "5");
    }

    #[test]
    fn what_does_not_take_it_back_is_named_and_the_others_do() {
        let scratch = Scratch::new();
        let task = scratch.task("task");
        let mut held = held(&scratch, &["cgroup.events", "cgroup.max.descendants"]);
        task.dir().write("cgroup.max.descendants", "7").unwrap();

        let error = held.put_back().unwrap_err().to_string();
        assert!(error.contains("cgroup.events"), "{error}");
        assert_eq!(task.dir().read_text("cgroup.max.descendants").unwrap(), "max");

        held.files.truncate(1);
        task.remove().unwrap();
        held.put_back().unwrap();
    }

    #[test]
    fn every_limit_has_a_file_and_a_field() {
        let change = crate::task::change::parse(&[
            "cpu=1".to_owned(),
            "cpu_limit={cpus: 1, burst: 1ms}".to_owned(),
            "ram=1MB".to_owned(),
            "pids=5".to_owned(),
            "hugetlb[2MB]=2MB".to_owned(),
            "cgroup[memory.zswap.max]=0".to_owned(),
        ]);
        let change = Resources::from_proto(&change.unwrap(), "resources").unwrap();

        let expected = [
            "cpu",
            "cpu_limit",
            "cpu_limit.burst",
            "ram",
            "pids",
            "hugetlb[2MB]",
            "cgroup[memory.zswap.max]",
        ];
        assert_eq!(fields(&change, "r"), expected.map(|field| format!("r.{field}")));
        let expected = [
            "cpu.weight",
            "cpu.max",
            "cpu.max.burst",
            "memory.max",
            "pids.max",
            "hugetlb.2MB.max",
            "memory.zswap.max",
        ];
        assert_eq!(files(&change), expected);
    }
}
