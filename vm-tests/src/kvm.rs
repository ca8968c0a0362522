//! Whether the processor of this host can be used.
//!
//! `/dev/kvm` may be there, may be opened, and a guest may still never run its first instruction. So it is tried with a
//! machine that is needed anyway; a failure is remembered until the host boots anew, because each costs seconds.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

/// What is known of `/dev/kvm`.
pub(crate) struct Kvm {
    /// Holds the boot id of the host on which it was found to be of no use.
    useless: PathBuf,
}

impl Kvm {
    pub(crate) fn new(cache: &Path) -> Self {
        Self { useless: cache.join("kvm-useless") }
    }

    /// What `boot` gives, if there is any use in trying and it succeeds.
    pub(crate) fn probe<M, E>(&self, boot: impl FnOnce() -> Result<M, E>) -> Option<M> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        OpenOptions::new().read(true).write(true).open("/dev/kvm").ok()?;
        if fs::read_to_string(&self.useless).is_ok_and(|known| known == boot_id) {
            return None;
        }
        let machine = boot().ok();
        if machine.is_none() {
            eprintln!("/dev/kvm is there but runs no guest: translating instead, which is slower");
            // If this cannot be kept, the next run tries again.
            let _ = fs::write(&self.useless, boot_id);
        }
        machine
    }
}
