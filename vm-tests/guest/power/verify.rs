//! A look at one disk after a power cut. Attack 44, invariant 1.

use serde_json::Value;
use vm_tests::told::{Told, UNTOLD};

use super::{Disk, dewar, is_over, status, text};

/// A test for each disk that a machine may have.
macro_rules! disks {
    ($($name:ident: $serial:literal)*) => {
        $(#[test] fn $name() { whatever_was_told_is_there_and_every_task_ends($serial) })*
    };
}

disks! {
    disk_00: "00" disk_01: "01" disk_02: "02" disk_03: "03" disk_04: "04" disk_05: "05"
    disk_06: "06" disk_07: "07" disk_08: "08" disk_09: "09" disk_10: "10" disk_11: "11"
    disk_12: "12" disk_13: "13" disk_14: "14" disk_15: "15" disk_16: "16" disk_17: "17"
    disk_18: "18" disk_19: "19" disk_20: "20" disk_21: "21" disk_22: "22" disk_23: "23"
}

fn whatever_was_told_is_there_and_every_task_ends(serial: &str) {
    let disk = Disk::mount(serial);
    let told = disk.told();
    let found = status(&disk.root(), None);
    println!("{} told, {} tasks", told.len(), found.len());
    told.iter().for_each(|told| told.is_shown_by(&found).unwrap());

    for view in &found {
        assert_ne!(view["state"], "TASK_STATE_CORRUPT", "{view:#}");
        if !is_over(&text(&view["state"])) {
            let task = text(&view["taskId"]);
            let resumed = dewar("resume", &disk.root()).arg(&task).output().unwrap();
            println!("{task} resumed: {}", String::from_utf8_lossy(&resumed.stderr));
        }
    }

    let after = status(&disk.root(), None);
    let was_told = |view: &&Value| view["detail"] != UNTOLD;
    assert_eq!(after.len(), found.iter().filter(was_told).count());
    for told in &told {
        told.is_shown_by(&after).unwrap();
        if let Told::Killed { task } = told {
            let state = "TASK_STATE_KILLED".to_owned();
            Told::Ended { task: task.clone(), state }.is_shown_by(&after).unwrap();
        }
    }
    for view in &after {
        assert!(is_over(&text(&view["state"])), "{view:#}");
        for process in view["processes"].as_array().unwrap() {
            for (number, run) in (0..).zip(process["runs"].as_array().unwrap()) {
                assert_eq!(run["run"], number, "a run of each number: {view:#}");
                assert!(is_over(&text(&run["state"])), "{view:#}");
            }
        }
    }
}
