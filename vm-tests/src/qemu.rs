//! A virtual machine: started, talked to, ended.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use vm_tests::place::PORT;
use vm_tests::wire::{self, Event, Order};

/// How the guest's instructions are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    /// By the host's processor.
    Kvm,
    /// By translation: several times slower, and works everywhere.
    Tcg,
}

impl Accelerator {
    /// What QEMU is told.
    ///
    /// With `erms`, kernel and libc clear and copy memory by `rep stosb` and `rep movsb`, which is translated to a loop over bytes: a test of 500
    /// runs takes 60 s of the host's CPU time, without it 43 s.
    ///
    /// The kernel finds the TSCs of translated processors out of step and asks the HPET for the time. To tell it `tsc=reliable` saves 3 s more
    /// of those; of about six boots of one kernel that were told so one stood still, in the test of throttling.
    fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max,-erms,-fsrm"],
        }
    }
}

/// What every kernel is told.
///
/// A panic ends the machine (with QEMU's `-no-reboot`), and any bug of the kernel is one. The last two make translation several times faster: where each
/// process has its programs at other addresses, QEMU translates them anew (measured in a guest of two processors: `bash -c true`
/// 191 ms, with `norandmaps` 41 ms, with `mitigations=off` too 16 ms), and nothing here is about either.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 oops=panic norandmaps mitigations=off";

/// What a machine is made of.
pub(crate) struct Hardware<'a> {
    pub(crate) accelerator: Accelerator,
    pub(crate) kernel: &'a Path,
    pub(crate) initrd: &'a Path,
    pub(crate) command_line: &'a str,
    pub(crate) drives: &'a [Drive],
    /// Its console, and what QEMU has to say, go here.
    pub(crate) log: PathBuf,
}

/// A disk.
#[derive(Debug, Clone)]
pub(crate) struct Drive {
    /// The file that is its content.
    pub(crate) disk: PathBuf,
    /// By which the guest knows it.
    pub(crate) serial: String,
    /// Each write and flush is logged there, in order.
    pub(crate) log: Option<PathBuf>,
}

impl Drive {
    /// As QEMU takes it; `number` tells it from others.
    fn arguments(&self, number: usize) -> Vec<String> {
        let file = |node: &str, path: &Path| {
            format!("driver=file,filename={},node-name={node}{number}", path.display())
        };
        let top = match &self.log {
            None => format!("driver=raw,file=disk{number},node-name=top{number}"),
            Some(_) => format!(
                "driver=blklogwrites,file=disk{number},log=log{number},node-name=top{number},log-super-update-interval=64"
            ),
        };
        let mut blocks = vec![file("disk", &self.disk)];
        blocks.extend(self.log.iter().map(|log| file("log", log)));
        blocks.push(top);
        let device =
            format!("virtio-blk-pci,drive=top{number},serial={},write-cache=on", self.serial);
        let mut arguments: Vec<_> =
            blocks.into_iter().flat_map(|block| ["-blockdev".to_owned(), block]).collect();
        arguments.extend(["-device".to_owned(), device]);
        arguments
    }
}

/// Why a machine is of no more use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    #[error("{0} has not answered for {1:?}")]
    Silent(&'static str, Duration),
    #[error("the machine ended unexpectedly{}", panic.as_deref().map(|line| format!(": {line}")).unwrap_or_default())]
    Ended {
        /// What the kernel said of it.
        panic: Option<String>,
    },
    #[error("talk to the guest")]
    Talk(#[source] io::Error),
    #[error("start qemu-system-x86_64; tests/needs installs it")]
    Start(#[source] io::Error),
}

/// A running machine. It is killed when it is dropped.
pub(crate) struct Machine {
    qemu: Child,
    orders: ChildStdin,
    events: Receiver<io::Result<Event>>,
    log: PathBuf,
}

impl Machine {
    /// Starts it; it has yet to boot.
    pub(crate) fn start(hardware: &Hardware<'_>) -> Result<Self, Lost> {
        let said = File::create(&hardware.log).map_err(Lost::Start)?;
        // It dies with us, however we end.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(hardware.accelerator.arguments())
            .args(["-M", "q35", "-m", "1024", "-smp", "2", "-no-reboot", "-nodefaults"])
            .args(["-display", "none", "-nic", "none"])
            .arg("-chardev")
            .arg(format!("file,id=console,append=on,path={}", hardware.log.display()))
            .args(["-serial", "chardev:console"])
            .args(["-device", "virtio-serial-pci", "-chardev", "stdio,id=port,signal=off"])
            .args(["-device", &format!("virtserialport,chardev=port,name={PORT}")])
            .args(hardware.drives.iter().enumerate().flat_map(|(n, drive)| drive.arguments(n)))
            .arg("-kernel")
            .arg(hardware.kernel)
            .arg("-initrd")
            .arg(hardware.initrd)
            .args(["-append", &format!("{COMMAND_LINE} {}", hardware.command_line)]);
        let mut qemu = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(said)
            .spawn()
            .map_err(Lost::Start)?;
        let orders =
            qemu.stdin.take().ok_or_else(|| Lost::Start(io::ErrorKind::BrokenPipe.into()))?;
        let answers =
            qemu.stdout.take().ok_or_else(|| Lost::Start(io::ErrorKind::BrokenPipe.into()))?;
        let (to, events) = channel();
        thread::spawn(move || {
            let mut answers = BufReader::new(answers);
            // The receiver is gone if nobody is interested any more.
            while let Some(event) = wire::receive(&mut answers).transpose() {
                if to.send(event).is_err() {
                    break;
                }
            }
        });
        Ok(Self { qemu, orders, events, log: hardware.log.clone() })
    }

    /// Waits until it has booted; gives the release of its kernel.
    pub(crate) fn ready(&mut self, patience: Duration) -> Result<String, Lost> {
        match self.event("the booting machine", patience)? {
            Event::Ready { kernel } => Ok(kernel),
            Event::Ended { .. } => Err(Lost::Talk(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Tells the guest what to do.
    pub(crate) fn order(&mut self, order: &Order) -> Result<(), Lost> {
        wire::send(&mut self.orders, order).map_err(Lost::Talk)
    }

    /// What the guest tells next; `whose` silence it is if it takes longer than `patience`.
    pub(crate) fn event(&mut self, whose: &'static str, patience: Duration) -> Result<Event, Lost> {
        match self.events.recv_timeout(patience) {
            Ok(event) => event.map_err(Lost::Talk),
            Err(RecvTimeoutError::Timeout) => Err(Lost::Silent(whose, patience)),
            Err(RecvTimeoutError::Disconnected) => Err(Lost::Ended { panic: self.panic() }),
        }
    }

    /// Switches it off, and waits until its disks are closed.
    pub(crate) fn switch_off(mut self, patience: Duration) -> Result<(), Lost> {
        self.order(&Order::PowerOff)?;
        match self.event("the machine that was switched off", patience) {
            Err(Lost::Ended { .. }) => self.qemu.wait().map(drop).map_err(Lost::Talk),
            Err(lost) => Err(lost),
            Ok(_) => Err(Lost::Talk(io::ErrorKind::InvalidData.into())),
        }
    }

    /// The line in which the kernel says that it panics.
    fn panic(&self) -> Option<String> {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        log.lines().find(|line| line.contains("Kernel panic")).map(str::to_owned)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
