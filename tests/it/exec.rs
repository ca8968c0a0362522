//! Commands in a live task, through the library: `dewar::exec`.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};

use dewar::checkpoint::Root;
use dewar::exec::{Exec, ExecError, Request, Streams, Target};
use dewar::observe::Observed;
use dewar::sys::pidfd::Exit;
use dewar::task::TaskId;
use nix::poll::{PollFd, PollFlags, poll};

use crate::support::{Following, Scene, Task, p, task};

impl Scene {
    /// The task, if a command may be run in it now.
    fn target(&self) -> Result<Target, ExecError> {
        let (root, id) = (Root::new(self.root()).unwrap(), TaskId::new(self.id()).unwrap());
        let mut observed = Observed::open(&root, &id).unwrap();
        observed.advance(|_, _| {}).unwrap();
        Target::of(&id, observed.replay().unwrap())
    }

    fn exec(&self, request: &Request) -> Result<Exec, ExecError> {
        self.target()?.place()?.start(request)
    }
}

fn request(argv: &[&str]) -> Request {
    Request { argv: argv.iter().map(|&text| text.to_owned()).collect(), ..Request::default() }
}

fn shell(script: &str) -> Request {
    request(&["sh", "-c", script])
}

/// All that comes until the end.
fn read_all(fd: OwnedFd) -> String {
    let mut file = File::from(fd);
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => all.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
                assert_eq!(poll(&mut fds, 20_000u16), Ok(1), "nothing comes");
            }
            // The end of a terminal.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => break,
            Err(error) => panic!("{error}"),
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// How a command ended, and what it said.
fn finish(mut exec: Exec) -> (Exit, String, String) {
    let streams = exec.take_streams().unwrap();
    match streams {
        Streams::Pipes { stdin, stdout, stderr } => {
            drop(stdin);
            let exit = exec.wait().unwrap();
            (exit, read_all(stdout), read_all(stderr))
        }
        Streams::Terminal(master) => {
            let exit = exec.wait().unwrap();
            (exit, read_all(master), String::new())
        }
    }
}

fn running(scene: &Scene, task: &Task) -> Following {
    let mut following = scene.spawn(task);
    following.wait_for(|event| event["run"]["state"] == "PROCESS_STATE_RUNNING");
    following
}

#[test]
fn a_command_runs_in_the_task_and_tells_how_it_ended() {
    let scene = Scene::new();
    let following = running(&scene, &task([p("a", "sleep 600")]));

    let exec = scene.exec(&shell("pwd; cat /proc/self/cgroup; echo oops >&2; exit 7")).unwrap();
    let (exit, stdout, stderr) = finish(exec);

    assert_eq!((exit, stderr.as_str()), (Exit::Code(7), "oops\n"));
    let sandbox = scene.sandbox().display().to_string();
    assert_eq!(stdout.lines().next(), Some(sandbox.as_str()));
    let leaf = format!("/tasks/{}/.exec-", scene.id());
    assert!(stdout.contains(&leaf), "{stdout}");
    scene.kill(&[]);
    following.finish().assert("KILLED", &[("a", "K")]);
}
