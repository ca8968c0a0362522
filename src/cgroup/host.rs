//! What a host mounts and where on it we are, out of `/proc/self/mountinfo` and `/proc/self/cgroup`.
//! Pure.
//!
//! Read by our own few lines: procfs fails on the whole file for one mount of somebody else that is
//! not UTF-8, and leaves the kernel's `\040` in paths. It is the oracle of a test instead.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// A mounted cgroup hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    /// Cgroup that is seen at the mount point, as our cgroup namespace names it.
    root: PathBuf,
    /// Where it is mounted.
    point: PathBuf,
    /// Whether nothing may be written there.
    read_only: bool,
}

/// The cgroup hierarchies of a host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Mounts {
    v1: Vec<Mount>,
    v2: Vec<Mount>,
}

/// Where we are in the v2 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seat {
    /// Where the hierarchy is mounted.
    pub(super) mount: PathBuf,
    /// Absolute path of our own cgroup.
    pub(super) own: PathBuf,
}

/// Why we are nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unseated {
    /// No v2 hierarchy is mounted. What there is instead, for people.
    NoCgroup2(String),
    /// One is mounted, but our own cgroup is not in what is seen of it.
    OutOfSight {
        /// Our own cgroup, as the kernel names it.
        own: PathBuf,
        /// Where the hierarchy is mounted.
        mount: PathBuf,
    },
}

impl Mounts {
    /// Reads mountinfo; see proc_pid_mountinfo(5). Lines that are not understood are not ours.
    pub(super) fn parse(mountinfo: &[u8]) -> Self {
        let mut mounts = Self::default();
        for line in mountinfo.split(|&byte| byte == b'\n') {
            let Some((kind, mount)) = parse_mount(line) else { continue };
            // What is mounted later at the same place hides what was there.
            mounts.v1.retain(|other| other.point != mount.point);
            mounts.v2.retain(|other| other.point != mount.point);
            match kind {
                b"cgroup2" => mounts.v2.push(mount),
                b"cgroup" => mounts.v1.push(mount),
                _ => {}
            }
        }
        mounts
    }

    /// Finds our own cgroup, `own_cgroup` being the text of `/proc/self/cgroup`.
    pub(super) fn seat(&self, own_cgroup: &[u8]) -> Result<Seat, Unseated> {
        let (Some(first), Some(own)) = (self.v2.first(), parse_own(own_cgroup)) else {
            return Err(Unseated::NoCgroup2(self.describe()));
        };
        // A container may see the hierarchy twice, once to read: prefer what can be written.
        let (writable, read_only): (Vec<_>, Vec<_>) =
            self.v2.iter().partition(|mount| !mount.read_only);
        writable
            .into_iter()
            .chain(read_only)
            .find_map(|mount| {
                let below = beneath(&mount.root, &own)?;
                Some(Seat {
                    mount: mount.point.clone(),
                    own: mount.point.join(below).components().collect(),
                })
            })
            .ok_or_else(|| Unseated::OutOfSight { own, mount: first.point.clone() })
    }

    /// What is mounted, for people.
    fn describe(&self) -> String {
        if !self.v2.is_empty() {
            return "cgroup2 mounted, but /proc/self/cgroup has no line for it".to_owned();
        }
        if self.v1.is_empty() {
            return "no cgroup file system at all".to_owned();
        }
        let points: Vec<_> =
            self.v1.iter().map(|mount| mount.point.display().to_string()).collect();
        format!("only cgroup v1: {}", points.join(", "))
    }
}

/// `own` relative to `root`, if it is in there. A path of another namespace's begins with `/..`;
/// where that is cannot be known.
fn beneath<'p>(root: &Path, own: &'p Path) -> Option<&'p Path> {
    let foreign = |path: &Path| path.components().any(|part| part == Component::ParentDir);
    if foreign(root) || foreign(own) {
        return None;
    }
    own.strip_prefix(root).ok()
}

/// One line of mountinfo: the type of the file system, and the mount.
fn parse_mount(line: &[u8]) -> Option<(&[u8], Mount)> {
    let mut fields = line.split(|&byte| byte == b' ');
    let root = fields.nth(3)?;
    let point = fields.next()?;
    let options = fields.next()?;
    let kind = fields.by_ref().skip_while(|&field| field != b"-").nth(1)?;
    let super_options = fields.nth(1)?;
    let read_only = [options, super_options]
        .iter()
        .any(|list| list.split(|&byte| byte == b',').any(|option| option == b"ro"));
    Some((kind, Mount { root: unescape(root), point: unescape(point), read_only }))
}

/// The `0::` line of `/proc/self/cgroup`. A removed cgroup is marked by a suffix that cannot be
/// told from a name, and is of no use to us either way.
fn parse_own(own_cgroup: &[u8]) -> Option<PathBuf> {
    let path =
        own_cgroup.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"0::"))?;
    path.starts_with(b"/").then(|| PathBuf::from(OsStr::from_bytes(path)))
}

/// Undoes the octal escapes (`\040`) of mountinfo.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        bytes.push(match (byte, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                rest = after;
                (a - b'0') * 64 + (b - b'0') * 8 + (c - b'0')
            }
            _ => byte,
        });
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const V1_ONLY: &str = "\
31 23 0:28 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:10 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,nosuid shared:11 - cgroup cgroup rw,memory
";
    const PURE: &str = "\
26 29 0:23 / /sys rw,nosuid shared:7 - sysfs sysfs rw
30 26 0:26 / /sys/fs/cgroup rw,nosuid,nodev shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
";
    const CONTAINER: &str = "\
1203 1201 0:26 / /sys/fs/cgroup ro,nosuid,nodev - cgroup2 cgroup rw,nsdelegate
";
    const BOUND: &str = "\
1203 1201 0:26 /docker/f00 /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw
";

    fn seat(mountinfo: &str, own: &str) -> Result<Seat, Unseated> {
        Mounts::parse(mountinfo.as_bytes()).seat(own.as_bytes())
    }

    fn at(mount: &str, own: &str) -> Seat {
        Seat { mount: mount.into(), own: own.into() }
    }

    /// attack 56: v2 is mounted elsewhere, beside v1.
    #[test]
    fn on_a_hybrid_host_the_unified_mount_is_taken() {
        let own = "4:memory:/other\n1:cpu:/\n0::/\n";

        let seat = seat(HYBRID, own);

        assert_eq!(seat, Ok(at("/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified")));
    }

    #[test]
    fn on_a_v2_host_our_cgroup_is_beneath_the_mount() {
        let seat = seat(PURE, "0::/user.slice/user-1000.slice/session-2.scope\n");

        let own = "/sys/fs/cgroup/user.slice/user-1000.slice/session-2.scope";
        assert_eq!(seat, Ok(at("/sys/fs/cgroup", own)));
    }

    /// attack 56: v1 only.
    #[test]
    fn a_host_with_only_v1_is_described() {
        let seat = seat(V1_ONLY, "2:cpu,cpuacct:/\n1:memory:/\n");

        let found = "only cgroup v1: /sys/fs/cgroup/cpu,cpuacct, /sys/fs/cgroup/memory";
        assert_eq!(seat, Err(Unseated::NoCgroup2(found.to_owned())));
    }

    #[test]
    fn a_host_without_any_cgroup_is_described() {
        let nothing = "22 27 0:21 / /proc rw - proc proc rw\n";

        let found = "no cgroup file system at all".to_owned();
        assert_eq!(seat(nothing, ""), Err(Unseated::NoCgroup2(found)));
    }

    #[test]
    fn a_mount_without_a_v2_line_of_our_own_is_described() {
        let found = "cgroup2 mounted, but /proc/self/cgroup has no line for it".to_owned();
        assert_eq!(seat(PURE, "1:cpu:/\n"), Err(Unseated::NoCgroup2(found)));
    }

    #[test]
    fn a_private_namespace_has_us_at_the_top_of_the_mount() {
        assert_eq!(seat(CONTAINER, "0::/\n"), Ok(at("/sys/fs/cgroup", "/sys/fs/cgroup")));
    }

    #[test]
    fn a_mount_of_a_part_is_taken_off_our_path() {
        let seat = seat(BOUND, "0::/docker/f00/app\n");

        assert_eq!(seat, Ok(at("/sys/fs/cgroup", "/sys/fs/cgroup/app")));
    }

    #[test]
    fn a_name_that_only_begins_alike_is_not_beneath() {
        let own = "/docker/f00d";

        let mount = "/sys/fs/cgroup".into();
        assert_eq!(
            seat(BOUND, "0::/docker/f00d\n"),
            Err(Unseated::OutOfSight { own: own.into(), mount })
        );
    }

    /// cgroup_namespaces(7): what is above the namespace's root is shown as `/..`.
    #[test]
    fn what_another_namespace_mounted_or_holds_is_out_of_sight() {
        let outer = "30 26 0:26 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";

        for (mountinfo, own) in [(outer, "0::/\n"), (PURE, "0::/../sibling\n")] {
            assert!(matches!(seat(mountinfo, own), Err(Unseated::OutOfSight { .. })), "{own}");
        }
    }

    #[test]
    fn a_mount_that_can_be_written_is_preferred() {
        let both = format!("{CONTAINER}1300 1201 0:26 / /cg rw - cgroup2 cgroup rw\n");

        assert_eq!(seat(&both, "0::/\n"), Ok(at("/cg", "/cg")));
    }

    #[test]
    fn a_hidden_mount_is_not_taken() {
        let hidden = format!("{PURE}99 30 0:99 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n");

        assert!(matches!(seat(&hidden, "0::/\n"), Err(Unseated::NoCgroup2(_))));
    }

    #[test]
    fn foreign_lines_and_odd_bytes_do_not_hide_the_mount() {
        let odd = [
            b"77 27 0:50 / /mnt/\xff\xfe rw - ext4 /dev/x rw\nnot a mount\n\n".as_slice(),
            b"30 26 0:26 / /mnt/my\\040cg\\134x rw shared:9 master:1 - cgroup2 none rw\n",
        ]
        .concat();

        let seat = Mounts::parse(&odd).seat(b"0::/a b\n");

        assert_eq!(seat, Ok(at("/mnt/my cg\\x", "/mnt/my cg\\x/a b")));
    }

    #[test]
    fn lines_that_are_cut_short_are_passed_over() {
        let line = "30 26 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw";

        for end in 0..line.len() - 3 {
            assert_eq!(Mounts::parse(&line.as_bytes()[..end]).v2, [], "{}", &line[..end]);
        }
    }

    #[test]
    fn this_host_is_seen_as_procfs_sees_it() {
        let ours = Mounts::parse(&std::fs::read("/proc/self/mountinfo").unwrap());

        let theirs = procfs::process::Process::myself().and_then(|me| me.mountinfo()).unwrap();
        let theirs: Vec<_> = theirs
            .into_iter()
            .filter(|mount| mount.fs_type == "cgroup2")
            .map(|mount| (PathBuf::from(mount.root), mount.mount_point))
            .collect();
        let ours: Vec<_> = ours.v2.into_iter().map(|mount| (mount.root, mount.point)).collect();
        assert_eq!(ours, theirs);
    }
}
