//! What the driver on the host and `guest-init` in the guest have in common: the lines that they exchange, and the
//! names of places in the guest.
//!
//! The rest of this crate, in the order in which to read it:
//!
//! - `src/main.rs`, the driver: builds the guest, boots it, has its tests run one by one, tells how they ended
//! - `src/bin/guest-init`, process 1 of the guest: runs a test when told to, and looks for what it leaves behind
//! - `guest/`, the tests themselves: ordinary `#[test]` functions
//!
//! docs/vm-tests.md says how to add one.

pub mod told;
pub mod wire;

/// Places in the guest that both sides know.
pub mod place {
    /// Directory of the test binaries, each under the name of its suite.
    pub const SUITES: &str = "/suites";

    /// Kernel modules in the order in which they are loaded: `00-name.ko` and so on.
    pub const MODULES: &str = "/modules";

    /// Beneath it lies what is to be where the host has it. It is laid out after everything is mounted: the host may have it in
    /// `/tmp`.
    pub const HOST: &str = "/host";

    /// A script that leads to another root, from which to go on; most images have none.
    pub const ENTER: &str = "/enter.sh";

    /// Name of the virtio port over which the lines go.
    pub const PORT: &str = "dewar.results";
}
