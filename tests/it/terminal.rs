//! A terminal is a terminal: S50.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::libc::O_NOCTTY;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};

use crate::support::{DEADLINE, Pid, Scene, Task, p, task};

/// A pseudo-terminal with a command in its foreground.
pub(crate) struct Terminal {
    child: Child,
    keyboard: File,
    name: PathBuf,
    screen: Receiver<Vec<u8>>,
    /// All that was written to it.
    text: String,
}

impl Terminal {
    pub(crate) fn start(command: &Command, environment: &[(&str, &str)]) -> Self {
        // Not openpty(3): what other tests start meanwhile would inherit both ends.
        let keyboard = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let name = PathBuf::from(ptsname_r(&keyboard).unwrap());
        let slave = OpenOptions::new().read(true).write(true).custom_flags(O_NOCTTY).open(&name);
        let slave = OwnedFd::from(slave.unwrap());
        let size = ["rows", "24", "cols", "80"];
        let sized = Command::new("stty").arg("-F").arg(&name).args(size).status();
        assert!(sized.unwrap().success());
        let keyboard = File::from(OwnedFd::from(keyboard));
        let mut output = keyboard.try_clone().unwrap();
        let (sender, screen) = channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // EIO once nobody has the other side open.
            while let Ok(read @ 1..) = output.read(&mut bytes) {
                if sender.send(bytes[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        let standard = || Stdio::from(slave.try_clone().unwrap());
        // A session with this as its controlling terminal, so that ^C and a new size are signals.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .arg(command.get_program())
            .args(command.get_args())
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .envs(environment.iter().copied())
            .stdin(standard())
            .stdout(standard())
            .stderr(standard())
            .spawn()
            .unwrap();
        drop::<OwnedFd>(slave);
        Self { child, keyboard, name, screen, text: String::new() }
    }

    pub(crate) fn press(&mut self, key: &str) {
        self.keyboard.write_all(key.as_bytes()).unwrap();
    }

    /// Its settings, as stty(1) tells them.
    pub(crate) fn settings(&self) -> String {
        let told = Command::new("stty").arg("-F").arg(&self.name).arg("-g").output().unwrap();
        assert!(told.status.success(), "{told:?}");
        String::from_utf8(told.stdout).unwrap()
    }

    /// The command: setsid(1) becomes it, as it leads no group.
    pub(crate) fn foreground(&self) -> Pid {
        Pid::of(self.child.id().cast_signed())
    }

    pub(crate) fn resize(&self, columns: u32) {
        let mut command = Command::new("stty");
        command.arg("-F").arg(&self.name).args(["cols", &columns.to_string()]);
        assert!(command.status().unwrap().success());
    }

    /// Waits until a text is written, and forgets what was written before.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, wanted: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !self.text.contains(wanted) {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(bytes) = self.screen.recv_timeout(left) else {
                panic!("{wanted:?} does not come\n{:?}", self.text);
            };
            self.text.push_str(&String::from_utf8_lossy(&bytes));
        }
        let at = self.text.find(wanted).unwrap();
        self.text.drain(..at);
    }

    /// Waits for the end: exit status, and what was written after the last thing that was waited for.
    #[track_caller]
    pub(crate) fn finish(mut self) -> (Option<i32>, String) {
        let pid = Pid::of(self.child.id().cast_signed());
        assert!(pid.ends_within(DEADLINE), "it hangs\n{:?}", self.text);
        let status = self.child.wait().unwrap().code();
        while let Ok(bytes) = self.screen.recv_timeout(std::time::Duration::from_millis(200)) {
            self.text.push_str(&String::from_utf8_lossy(&bytes));
        }
        (status, std::mem::take(&mut self.text))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `dewar run` of a task, for people.
fn run(scene: &Scene, task: &Task) -> Command {
    let file = scene.file("task.json", task.text());
    let mut command = scene.command(scene.run_arguments());
    command.arg(file);
    command
}

/// What a text is without escape sequences.
fn visible(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\x1b' {
            out.push(c);
            continue;
        }
        if chars.next() == Some('[') {
            let _ = chars.find(|c| ('@'..='~').contains(c));
        }
    }
    out
}

/// S50
#[test]
fn a_terminal_shows_a_line_for_each_process() {
    let scene = Scene::new();
    let gate = scene.gate("gate");
    let processes = [p("first", gate.hold()), p("second", "true")];
    let mut terminal =
        Terminal::start(&run(&scene, &task(processes).order(["first", "second"])), &[]);

    terminal.wait_for("RUNNING");
    gate.open();

    let (status, text) = terminal.finish();
    assert_eq!(status, Some(0), "{text:?}");
    assert!(text.contains("\x1b["), "it is drawn over: {text:?}");
    let shown = visible(&text);
    assert!(shown.contains("second") && shown.contains("SUCCESS"), "{shown:?}");
    let after = text.rsplit("\x1b[").next().unwrap();
    assert!(after.ends_with("\n"), "the cursor is at the start of a line: {text:?}");
}

/// S50: without a terminal there are no escape codes, and a line is a line.
#[test]
fn no_escape_code_leaves_outside_of_a_terminal() {
    let scene = Scene::new();
    let told = scene.output(run(&scene, &task([p("a", "true"), p("b", "false")])));
    let status = scene.dewar(&["status", "-vvv"]);

    assert_eq!(told.status, Some(1));
    for text in [&told.stdout, &told.stderr, &status.stdout] {
        assert!(!text.contains('\x1b') && !text.contains('\r'), "{text:?}");
    }
    assert!(told.stdout.lines().any(|line| line.contains('a') && line.contains("RUNNING")));
    assert!(told.stdout.lines().any(|line| line.contains("exit status 1")), "{}", told.stdout);
}

/// S50: https://no-color.org
#[test]
fn no_color_is_no_colour() {
    for (environment, coloured) in [(&[][..], true), (&[("NO_COLOR", "1")], false)] {
        let scene = Scene::new();
        let terminal = Terminal::start(&run(&scene, &task([p("a", "sleep 0.1")])), environment);

        let (status, text) = terminal.finish();

        assert_eq!(status, Some(0), "{text:?}");
        let mut codes = text.split("\x1b[").skip(1);
        let colour = codes.any(|code| {
            code.split(|c| ('@'..='~').contains(&c))
                .next()
                .is_some_and(|parameters| code[parameters.len()..].starts_with('m'))
        });
        assert_eq!(colour, coloured, "{text:?}");
    }
}

/// S50: the first ^C is a kill with all its time, finalizers too.
#[test]
fn one_interrupt_ends_the_task_gracefully() {
    let scene = Scene::new();
    let last = p("last", "touch last").finalizer();
    let mut terminal = Terminal::start(&run(&scene, &task([p("a", "exec sleep 60"), last])), &[]);
    terminal.wait_for("RUNNING");

    terminal.press("\x03");

    let (status, text) = terminal.finish();
    assert_eq!(status, Some(3), "{text:?}");
    assert!(scene.sandbox().join("last").exists(), "{text:?}");
    assert_eq!(scene.status()["state"], "TASK_STATE_KILLED");
}

/// S50: the second ^C is a kill now.
#[test]
fn two_interrupts_end_the_task_now() {
    let scene = Scene::new();
    let up = scene.gate("up");
    let deaf = format!("trap '' TERM; {}; while :; do sleep 60; done", up.tell());
    let last = p("last", "touch last").finalizer();
    let mut terminal = Terminal::start(&run(&scene, &task([p("a", deaf), last])), &[]);
    up.wait();

    terminal.press("\x03");
    terminal.wait_for("once more");
    terminal.press("\x03");

    let (status, text) = terminal.finish();
    assert_eq!(status, Some(3), "{text:?}");
    assert!(!scene.sandbox().join("last").exists(), "{text:?}");
}

/// S50
#[test]
fn a_narrow_terminal_gets_narrow_lines() {
    let scene = Scene::new();
    let (up, gate) = (scene.gate("up"), scene.gate("gate"));
    let long = "a-name-that-is-longer-than-a-line";
    let processes = [p("first", format!("{}; {}", up.tell(), gate.hold())), p(long, "true")];
    let mut terminal = Terminal::start(&run(&scene, &task(processes).order(["first", long])), &[]);
    up.wait();
    terminal.wait_for("RUNNING");

    terminal.resize(30);
    // Nothing was cut before.
    terminal.wait_for("…");
    gate.open();

    let (status, text) = terminal.finish();
    assert_eq!(status, Some(0), "{text:?}");
    // The summary has whole lines again.
    let summary = text.rfind(" after ").unwrap();
    let pictures = &text[..text[..summary].rfind(&format!("{} ", scene.id())).unwrap()];
    assert!(pictures.matches("…").count() > 2, "{text:?}");
    for line in visible(pictures).lines() {
        assert!(line.trim_matches('\r').chars().count() <= 30, "{line:?} in\n{text:?}");
    }
}

/// S50: whoever closes the pipe wants to see no more; the task goes on.
#[test]
fn a_broken_pipe_ends_the_printing_and_not_the_task() {
    for form in ["text", "json"] {
        let scene = Scene::new();
        let (up, gate) = (scene.gate("up"), scene.gate("gate"));
        let command = format!("{}; {}; exit 7", up.tell(), gate.hold());
        let mut run = run(&scene, &task([p("a", command), p("last", "true").finalizer()]));
        let mut child = run.args(["--output", form]).stdout(Stdio::piped()).spawn().unwrap();
        up.wait();

        drop(child.stdout.take());
        gate.open();

        let pid = Pid::of(child.id().cast_signed());
        assert!(pid.ends_within(DEADLINE), "{}", scene.diagnosis());
        assert_eq!(child.wait().unwrap().code(), Some(1), "{form}");
        let status = scene.status();
        assert_eq!(status["state"], "TASK_STATE_FAILED", "{status}");
        assert_eq!(status["processes"][1]["runs"][0]["state"], "PROCESS_STATE_SUCCESS");
    }
}

/// Whoever closes even the descriptors 0 to 2: nothing that dewar opens has their numbers, and what it prints goes nowhere else.
#[test]
fn without_standard_descriptors_nothing_is_taken_for_them() {
    let scene = Scene::new();
    let (told, gate) = (scene.gate("told"), scene.gate("gate"));
    let says = format!("{}; {}; echo said", told.tell(), gate.hold());
    let file = scene.file("task.json", task([p("a", says)]).text());
    let dewar = scene.command(scene.run_arguments());
    let mut command = Command::new("/bin/bash");
    command.args(["-c", "exec <&- >&- 2>&-; exec \"$@\"", "bash"]);
    let mut child =
        command.arg(dewar.get_program()).args(dewar.get_args()).arg(file).spawn().unwrap();
    told.wait();

    let open = ["0", "1", "2"].map(|fd| {
        std::fs::read_link(format!("/proc/{}/fd/{fd}", child.id())).unwrap().display().to_string()
    });
    gate.open();

    assert_eq!(open, ["/dev/null"; 3]);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(scene.status()["state"], "TASK_STATE_SUCCESS");
    assert_eq!(scene.stdout("a", 0), "said\n");
}

/// Attack 34: what is said for people goes to a file on a disk that is full.
#[test]
fn what_cannot_be_said_ends_nothing() {
    let scene = Scene::new();
    let file = scene.file("task.json", task([p("a", "true")]).text());
    let mut command = scene.command(scene.run_arguments());
    command.arg(file).stdout(Stdio::null());
    command.stderr(File::options().write(true).open("/dev/full").unwrap());

    let status = command.status().unwrap();

    assert_eq!(status.code(), Some(0));
    assert_eq!(scene.status()["state"], "TASK_STATE_SUCCESS");
}
