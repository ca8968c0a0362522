//! The machines: what each boots, and which tests run there.

use std::time::Duration;

use crate::kernel::Series;

/// A machine.
#[derive(Debug)]
pub(crate) struct Boot {
    /// Its name, by which tests are prefixed.
    pub(crate) name: &'static str,
    pub(crate) kernel: Series,
    /// What its kernel is told, beyond what all are told.
    pub(crate) command_line: &'static str,
    pub(crate) root: Root,
    /// What runs on it.
    pub(crate) selections: &'static [Selection],
}

/// What there is beyond the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Root {
    /// What the tests need, and `guest-init` as process 1.
    Bare,
    /// A Debian whose process 1 is systemd.
    Debian,
}

/// Tests of one binary.
#[derive(Debug)]
pub(crate) struct Selection {
    pub(crate) suite: Suite,
    /// Tests whose name begins with one of these.
    pub(crate) only: &'static [&'static str],
    /// But not those whose name begins with one of these.
    pub(crate) except: &'static [&'static str],
    /// A test that takes longer has hung.
    pub(crate) deadline: Duration,
}

/// A test binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suite {
    /// `vm-tests/guest`.
    Guest,
    /// `tests/it`, which runs on any host, in the guest.
    It,
}

impl Suite {
    /// Name of its binary.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::It => "it",
        }
    }
}

impl Selection {
    /// Tests in `vm-tests/guest` of these modules.
    const fn guest(only: &'static [&'static str]) -> Self {
        // The longest have hundreds of runs: half a minute on a quiet host.
        Self { suite: Suite::Guest, only, except: &[], deadline: Duration::from_secs(300) }
    }

    /// Tests in `tests/it`, which any host runs, of these modules.
    const fn it(only: &'static [&'static str], except: &'static [&'static str]) -> Self {
        Self { suite: Suite::It, only, except, deadline: Duration::from_secs(120) }
    }

    /// Whether it has a test.
    pub(crate) fn has(&self, test: &str) -> bool {
        let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| test.starts_with(prefix));
        begins(self.only) && !begins(self.except)
    }
}

/// Modules of `tests/it`, beside that of the daemon, in which controllers, or a kernel that is not the host's, can make a difference. The others
/// pass on the host, and take minutes where the CPU is translated.
const IN_A_GUEST: &[&str] = &[
    "ending::",
    "exec::",
    "gc::",
    "identity::",
    "outcomes::",
    "pause::",
    "signal::",
    "update::",
    "usage::",
];

/// But not these.
const NOT_IN_A_GUEST: &[&str] = &[
    // Hundreds of runs each.
    "ending::terminal_means_empty",
    "outcomes::o29_a_hundred_losses_in_a_row_are_a_failure",
    "outcomes::o35_losses_are_counted_in_a_row",
    "outcomes::o38_a_flood_leaves_the_live_log_and_five_backups",
    // `full::contained` has more of it.
    "identity::no_process_of_a_run_is_ever_outside_its_leaf",
    // Connections, clients that are not ours, certificates, terminals, logs, who is told what: nothing of a cgroup is in the answers.
    "daemon::a_bad_task_file_is_refused_field_by_field",
    "daemon::a_launch_can_be_repeated_and_not_be_changed",
    "daemon::a_task_that_is_taken_from_the_root_is_not_told_any_more",
    "daemon::a_watcher_of_",
    "daemon::attacks::",
    "daemon::client",
    "daemon::gc::",
    "daemon::health::",
    "daemon::history::a_daemon_that_measures_no_sandboxes_tells_of_none",
    "daemon::history::what_makes_no_sense_of_a_history_is_refused",
    "daemon::reading::five_hundred_followers_that_do_not_read_hold_up_nobody",
    "daemon::reading::logs_are_",
    "daemon::tasks_are_listed_by_label_and_state_page_by_page_and_removed",
    "daemon::tcp::",
    "daemon::top::keys_turn_top_to_processes_and_sort_it_and_a_daemon_may_be_replaced_meanwhile",
    "daemon::top::top_gives_the_terminal_back",
    "daemon::traces::",
    "daemon::web::attacks::",
    "daemon::web::every_page_is_whole_without_a_script",
    "daemon::web::logs_and_files_are_read_piece_by_piece",
    "daemon::web::metrics::",
    "daemon::web::of_ten_thousand_tasks_a_page_shows_some_at_once",
    "daemon::web::disk::",
    "daemon::web::pages_change_as_things_happen",
    "daemon::web::tasks_are_searched_and_told_by_state",
    "daemon::web::the_page_can_be_off_and_is_refused_where_it_cannot_be",
    // They wait, or move much, or look at no cgroup.
    "daemon::exec::much_goes_through_both_ways",
    "daemon::history::a_sandbox_that_cannot_be_measured_keeps_no_other_from_it",
    "daemon::the_short_tasks_of_others_get_no_runner_from_the_daemon",
    "daemon::whoever_looks_for_what_takes_long_holds_up_nobody",
    "pause::a_runner_that_is_stopped_is_told_of_after_a_while",
    // They need Perl.
    "exec::a_task_sees_nothing_of_the_program_that_runs_a_command_in_it",
    "exec::a_task_that_runs_our_program_as_a_command_cannot_change_it",
];

/// All machines, in the order in which they are booted: what takes longest first.
pub(crate) const BOOTS: &[Boot] = &[
    Boot {
        name: "full-6.12",
        kernel: Series::V6_12,
        command_line: "cgroup_no_v1=all",
        root: Root::Bare,
        selections: &[Selection::guest(&["full::"])],
    },
    Boot {
        name: "systemd-6.1",
        kernel: Series::V6_1,
        command_line: "systemd.show_status=false",
        root: Root::Debian,
        selections: &[Selection::guest(&["systemd::"])],
    },
    Boot {
        name: "full-6.1",
        kernel: Series::V6_1,
        command_line: "cgroup_no_v1=all",
        root: Root::Bare,
        selections: &[Selection::guest(&["full::"])],
    },
    Boot {
        name: "daemon-6.12",
        kernel: Series::V6_12,
        command_line: "cgroup_no_v1=all",
        root: Root::Bare,
        selections: &[Selection::it(&["daemon::"], NOT_IN_A_GUEST)],
    },
    Boot {
        name: "host-6.12",
        kernel: Series::V6_12,
        command_line: "cgroup_no_v1=all",
        root: Root::Bare,
        selections: &[Selection::it(IN_A_GUEST, NOT_IN_A_GUEST)],
    },
    Boot {
        name: "hybrid-6.1",
        kernel: Series::V6_1,
        command_line: "dewar.cgroups=hybrid",
        root: Root::Bare,
        selections: &[Selection::guest(&["hybrid::"])],
    },
    Boot {
        name: "no-memory-6.12",
        kernel: Series::V6_12,
        command_line: "cgroup_no_v1=all cgroup_disable=memory",
        root: Root::Bare,
        selections: &[Selection::guest(&["no_memory::"])],
    },
];

/// The machine whose power is cut, and the one that looks at its disks: see `power`.
pub(crate) const POWER_CUT: Boot = Boot {
    name: "power-cut-6.12",
    kernel: Series::V6_12,
    command_line: "cgroup_no_v1=all",
    root: Root::Bare,
    selections: &[],
};

/// The machine on which the harness is checked: see `harness`.
pub(crate) const HARNESS: Boot = Boot {
    name: "harness-6.12",
    kernel: Series::V6_12,
    command_line: "cgroup_no_v1=all",
    root: Root::Bare,
    selections: &[],
};

/// The machine on which dewar is timed beside others; booted only when it is named, with programs as they are shipped.
pub(crate) const BENCH: Boot = Boot {
    name: "bench-6.1",
    kernel: Series::V6_1,
    command_line: "systemd.show_status=false",
    root: Root::Debian,
    selections: &[Selection::guest(&["bench::"])],
};

/// Names of all of them.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    BOOTS.iter().chain([&POWER_CUT, &HARNESS, &BENCH]).map(|boot| boot.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_has_what_begins_right_and_is_not_excepted() {
        let except = &["full::oom"];
        let selection = Selection { except, ..Selection::guest(&["full::", "v1::"]) };

        assert!(selection.has("full::cpu"));
        assert!(selection.has("v1::cpu"));
        assert!(!selection.has("full::oom::kills"));
        assert!(!selection.has("hybrid::full::cpu"));
    }

    #[test]
    fn no_two_boots_have_one_name() {
        let mut names: Vec<_> = names().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();

        assert_eq!(names.len(), count);
    }
}
