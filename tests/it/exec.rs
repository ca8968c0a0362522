//! Commands in a live task, through the library: `dewar::exec`.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use dewar::cgroup::TaskCgroup;
use dewar::checkpoint::Root;
use dewar::exec::{Exec, ExecError, Request, Size, Streams, Target};
use dewar::observe::Observed;
use dewar::sys::pidfd::Exit;
use dewar::task::{ProcessName, TaskId};
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

use crate::support::{Following, Pid, Scene, Task, is_alive, p, task, wait_until};

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

    /// Leaves of commands in the task.
    fn exec_leaves(&self) -> Vec<PathBuf> {
        let Some(cgroup) = self.cgroup() else { return Vec::new() };
        let entries = fs::read_dir(cgroup).into_iter().flatten().map(|entry| entry.unwrap());
        let is_leaf = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".exec-"))
        };
        entries.map(|entry| entry.path()).filter(is_leaf).collect()
    }
}

fn request(argv: &[&str]) -> Request {
    Request { argv: argv.iter().map(|&text| text.to_owned()).collect(), ..Request::default() }
}

fn shell(script: &str) -> Request {
    request(&["sh", "-c", script])
}

const WINDOW: Size = Size { rows: 33, columns: 111 };

fn terminal(script: &str) -> Request {
    Request { terminal: Some(WINDOW), ..shell(script) }
}

/// What comes until `is` says that it is all, or to the end.
fn read_until(file: &mut File, is: impl Fn(&str) -> bool) -> String {
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
            Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => break,
            Err(error) => panic!("{error}"),
        }
        if is(&String::from_utf8_lossy(&all)) {
            break;
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

fn read_all(fd: OwnedFd) -> String {
    read_until(&mut File::from(fd), |_| false)
}

/// How a command ended, and what it said.
fn finish(mut exec: Exec) -> (Exit, String, String) {
    let streams = exec.take_streams().unwrap();
    let exit = exec.wait().unwrap();
    match streams {
        Streams::Pipes { stdin, stdout, stderr } => {
            drop(stdin);
            (exit, read_all(stdout), read_all(stderr))
        }
        Streams::Terminal(master) => (exit, read_all(master), String::new()),
    }
}

/// What a script printed that said nothing on standard error.
#[track_caller]
fn printed(scene: &Scene, request: &Request) -> String {
    let (exit, stdout, stderr) = finish(scene.exec(request).unwrap());
    assert_eq!((exit, stderr.as_str()), (Exit::Code(0), ""), "{stdout}");
    stdout
}

fn running(scene: &Scene, task: &Task) -> Following {
    running_with(scene, task, &[])
}

fn running_with(scene: &Scene, task: &Task, how: &[&str]) -> Following {
    let mut following = scene.spawn_with(task, how);
    following.wait_for(|event| event["run"]["state"] == "PROCESS_STATE_RUNNING");
    following
}

fn sleeper() -> Task {
    task([p("a", "exec sleep 600")])
}

#[track_caller]
fn end(scene: &Scene, following: Following) {
    scene.kill(&["--wait", "0s"]);
    following.finish().assert("KILLED", &[("a", "K")]);
}

/// An ordinary user that is in the host's database, if this is root.
fn nobody() -> Option<&'static str> {
    nix::unistd::geteuid().is_root().then_some("nobody")
}

#[test]
fn a_command_runs_in_the_task_and_tells_how_it_ended() {
    let scene = Scene::new();
    let following = running(&scene, &sleeper());

    let exec = scene.exec(&shell("pwd; cat /proc/self/cgroup; echo oops >&2; exit 7")).unwrap();
    assert!(!scene.exec_leaves().is_empty());
    let (exit, stdout, stderr) = finish(exec);

    assert_eq!((exit, stderr.as_str()), (Exit::Code(7), "oops\n"));
    let sandbox = scene.sandbox().display().to_string();
    assert_eq!(stdout.lines().next(), Some(sandbox.as_str()));
    let leaf = format!("/tasks/{}/.exec-", scene.id());
    assert!(stdout.contains(&leaf), "{stdout}");
    wait_until("its leaf is gone", || scene.exec_leaves().is_empty());
    end(&scene, following);
}

/// What docs/run-environment.md promises of a run, of a command.
#[test]
fn a_command_finds_what_a_run_finds_and_what_was_asked_for() {
    let scene = Scene::new();
    let following = running(&scene, &sleeper());
    let mut asked = shell(
        "env | grep -v ^SHLVL= | sort; ls /proc/$$/fd; umask; ulimit -Sc; \
         grep -E '^Sig(Blk|Ign)' /proc/self/status; cut -d' ' -f5,6,7 /proc/$$/stat",
    );
    asked.env = [("B", "2"), ("USER", "else")].map(|(a, b)| (a.to_owned(), b.to_owned())).into();
    asked.run = Some((ProcessName::new("a").unwrap(), 0));

    let exec = scene.exec(&asked).unwrap();
    let pid = exec.pid();
    let (exit, stdout, stderr) = finish(exec);

    let (sandbox, user) = (scene.sandbox(), dewar::identity::current().unwrap().user);
    let path = std::env::var("PATH").unwrap();
    let mut expected = vec![
        "B=2".to_owned(),
        "DEWAR_PROCESS=a".to_owned(),
        "DEWAR_RUN=0".to_owned(),
        format!("DEWAR_TASK_ID={}", scene.id()),
        format!("HOME={}", sandbox.display()),
        format!("LOGNAME={user}"),
        format!("PATH={path}"),
        format!("PWD={}", sandbox.display()),
        "USER=else".to_owned(),
    ];
    let rest =
        ["0", "1", "2", "0022", "0", "SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"];
    expected.extend(rest.map(str::to_owned));
    // A session and group of its own, no terminal.
    expected.push(format!("{pid} {pid} 0"));
    assert_eq!((exit, stderr.as_str()), (Exit::Code(0), ""));
    assert_eq!(stdout.lines().collect::<Vec<_>>(), expected);
    end(&scene, following);
}

#[test]
fn what_is_typed_reaches_a_command_and_the_end_of_it_does_too() {
    let scene = Scene::new();
    let following = running(&scene, &sleeper());
    let mut exec = scene.exec(&request(&["sort"])).unwrap();
    let Some(Streams::Pipes { stdin, stdout, stderr: _ }) = exec.take_streams() else {
        panic!("no pipes");
    };

    File::from(stdin).write_all(b"b\na\n").unwrap();

    assert_eq!(read_all(stdout), "a\nb\n");
    assert_eq!(exec.wait().unwrap(), Exit::Code(0));
    assert_eq!(exec.wait().unwrap(), Exit::Code(0), "it is told again");
    end(&scene, following);
}

#[test]
fn a_command_with_a_terminal_is_controlled_by_it() {
    let scene = Scene::new();
    let following = running(&scene, &sleeper());
    let script = "stty size; echo TERM=$TERM; ls -1 /proc/$$/fd; : > /dev/tty && \
                  echo controlled; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.02; done";
    let mut exec = scene.exec(&terminal(script)).unwrap();
    let Some(Streams::Terminal(master)) = exec.take_streams() else { panic!("no terminal") };
    let mut master = File::from(master);

    let first = read_until(&mut master, |text| text.ends_with("ready\r\n"));
    exec.resize(Size { rows: 5, columns: 7 }).unwrap();
    let rest = read_until(&mut master, |_| false);

    assert_eq!(first, "33 111\r\nTERM=xterm\r\n0\r\n1\r\n2\r\ncontrolled\r\nready\r\n");
    assert_eq!((rest.as_str(), exec.wait().unwrap()), ("5 7\r\n", Exit::Code(3)));
    end(&scene, following);
}

#[test]
fn what_is_typed_at_a_terminal_interrupts() {
    let scene = Scene::new();
    let following = running(&scene, &sleeper());
    let mut asked = terminal("stty -echo; echo ready; exec sleep 600");
    asked.env.insert("TERM".to_owned(), "vt52".to_owned());
    let mut exec = scene.exec(&asked).unwrap();
    let Some(Streams::Terminal(master)) = exec.take_streams() else { panic!("no terminal") };
    let mut master = File::from(master);
    read_until(&mut master, |text| text.contains("ready"));

    master.write_all(b"\x03").unwrap();

    assert_eq!(exec.wait().unwrap(), Exit::Signal(nix::libc::SIGINT));
    end(&scene, following);
}

/// attacks 1, 3, 4, 9: the user of the task, exactly its groups, no capability, nothing of ours open.
#[test]
fn a_command_in_a_task_of_another_user_has_nothing_of_its_caller() {
    let Some(user) = nobody() else { return };
    let scene = Scene::new();
    let following = running_with(&scene, &sleeper(), &["--user", user]);
    let _decoys = ["/", "/etc/passwd"].map(|path| File::open(path).unwrap());
    let script = "id -u; id -g; id -G; grep ^Cap /proc/self/status | cut -f2 | head -n3; ls -1 /proc/$$/fd; tty";
    let who = dewar::identity::named(user).unwrap();

    let (_, plain, _) = finish(scene.exec(&shell(script)).unwrap());
    let with_terminal = printed(&scene, &terminal(&format!("{script}; stat -c %u $(tty)")));

    let id = |of: u32| of.to_string();
    let groups = who.groups.iter().map(|&group| id(group)).collect::<Vec<_>>().join(" ");
    let none = "0000000000000000";
    let [uid, gid] = [who.uid, who.gid].map(id);
    let expected = [&*uid, &*gid, &*groups, none, none, none, "0", "1", "2"];
    assert_eq!(plain.lines().take(9).collect::<Vec<_>>(), expected);
    assert_eq!(with_terminal.lines().take(9).collect::<Vec<_>>(), expected);
    assert_eq!(with_terminal.lines().last(), Some(&*uid), "its terminal is its own");
    end(&scene, following);
}

#[test]
fn the_working_directory_is_reached_as_the_user_and_never_through_a_descriptor() {
    let scene = Scene::new();
    let how = nobody().map_or(vec![], |user| vec!["--user", user]);
    let following = running_with(&scene, &sleeper(), &how);
    fs::create_dir(scene.sandbox().join("beneath")).unwrap();
    let closed = scene.path("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
    let held = File::open(&closed).unwrap();
    let at = |cwd: &str| Request { cwd: Some(cwd.to_owned()), ..request(&["pwd"]) };
    let fails = |cwd: &str| scene.exec(&at(cwd)).unwrap_err().to_string();

    assert_eq!(printed(&scene, &at("/tmp")), "/tmp\n");
    let beneath = scene.sandbox().join("beneath").display().to_string();
    assert_eq!(printed(&scene, &at("beneath")), format!("{beneath}\n"));
    let expected = "start \"pwd\": working directory: ENOENT: No such file or directory";
    assert_eq!(fails("nowhere"), expected);
    for link in ["/proc/self/cwd", &format!("/proc/self/fd/{}", held.as_raw_fd())] {
        let why = fails(link);
        assert!(why.contains("working directory: ELOOP") || why.contains("ENOENT"), "{why}");
    }
    if nobody().is_some() {
        let why = fails(closed.to_str().unwrap());
        assert!(why.contains("working directory: EACCES"), "{why}");
    }
    end(&scene, following);
}

#[test]
fn under_chroot_a_command_sees_the_sandbox_as_its_root() {
    if nobody().is_none() {
        return;
    }
    let scene = Scene::new();
    let sandbox = scene.sandbox();
    install_bash(&sandbox);
    nix::unistd::mkfifo(&sandbox.join("hold"), Mode::S_IRWXU).unwrap();
    let following = running_with(&scene, &task([p("a", "read -r _ <> hold")]), &["--chroot"]);
    let out =
        Request { cwd: Some("..".to_owned()), ..request(&["/bin/bash", "-c", "pwd; echo *"]) };

    let expected = "/\nbin hold lib lib64\n";
    assert_eq!(printed(&scene, &Request { cwd: None, ..out.clone() }), expected);
    assert_eq!(printed(&scene, &out), expected);
    // Which the host has, and the sandbox has not.
    let why = scene.exec(&request(&["/bin/sh"])).unwrap_err().to_string();
    assert_eq!(why, "start \"/bin/sh\": execve: ENOENT: No such file or directory");
    end(&scene, following);
}

/// Copies bash and the libraries that it names into `root`.
fn install_bash(root: &Path) {
    let ldd = std::process::Command::new("ldd").arg("/bin/bash").output().unwrap();
    let text = String::from_utf8(ldd.stdout).unwrap();
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.chain(["/bin/bash"]) {
        let to = root.join(file.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
}

#[test]
fn a_program_that_is_not_there_is_told_by_name_and_leaves_nothing() {
    let scene = Scene::new();
    let following = running(&scene, &sleeper());
    let file = scene.sandbox().join("not-a-program");
    fs::write(&file, "").unwrap();
    let fails = |program: &str| scene.exec(&request(&[program])).unwrap_err().to_string();

    let missing = "start \"no-such-program\": execve: ENOENT: No such file or directory";
    assert_eq!(fails("no-such-program"), missing);
    let forbidden = format!("start {file:?}: execve: EACCES: Permission denied");
    assert_eq!(fails(file.to_str().unwrap()), forbidden);
    assert!(scene.exec_leaves().is_empty());
    end(&scene, following);
}

#[test]
fn what_is_no_command_is_refused_by_field() {
    let long = "x".repeat(dewar::exec::STRINGS_MAX);
    let env = |name: &str| [(name.to_owned(), String::new())].into();
    for (asked, why) in [
        (request(&[]), "argv: names no program"),
        (request(&[""]), "argv: names no program"),
        (request(&["a", "b\0"]), "argv: contains a NUL"),
        (
            Request { env: env("A=B"), ..request(&["a"]) },
            "env: a name is empty, or contains `=` or a NUL",
        ),
        (
            Request { env: env(""), ..request(&["a"]) },
            "env: a name is empty, or contains `=` or a NUL",
        ),
        (
            Request { cwd: Some(String::new()), ..request(&["a"]) },
            "cwd: is empty, or contains a NUL",
        ),
        (request(&["a", &long]), "argv: arguments and environment take 1048579 bytes, of 1048576"),
    ] {
        assert_eq!(asked.check().unwrap_err().to_string(), why);
    }
}

#[test]
fn only_a_live_task_that_moves_and_has_a_cgroup_takes_a_command() {
    let scene = Scene::new();
    let following = running(&scene, &sleeper());
    assert_eq!(scene.dewar(&["pause", scene.id()]).status, Some(0));
    let paused = scene.target().unwrap_err().to_string();
    assert_eq!(paused, format!("task {} is paused", scene.id()));
    assert_eq!(scene.dewar(&["resume-paused", scene.id()]).status, Some(0));
    let target = scene.target().unwrap();
    end(&scene, following);
    let over = format!("task {} is over", scene.id());
    assert_eq!(scene.target().unwrap_err().to_string(), over);
    assert_eq!(target.place().unwrap_err().to_string(), over, "it was live a moment ago");

    let scene = Scene::new();
    let following = running_with(&scene, &sleeper(), &["--cgroup", "none"]);
    let why = scene.target().unwrap_err().to_string();
    assert!(why.ends_with("it runs with --cgroup none"), "{why}");
    end(&scene, following);
}

/// A place that was made while the task lived, and used when it is over.
#[test]
fn a_command_is_not_born_into_a_task_that_is_over() {
    let scene = Scene::new();
    let following = running(&scene, &sleeper());
    let place = scene.target().unwrap().place().unwrap();

    end(&scene, following);

    let why = place.start(&shell("echo ran > /dev/null")).unwrap_err();
    assert_eq!(why.to_string(), format!("task {} is over", scene.id()));
}

/// Invariant 3.
#[test]
fn a_command_keeps_no_task_alive_and_is_dead_before_it_is_over() {
    let scene = Scene::new();
    let gate = scene.gate("gate");
    let following = running(&scene, &task([p("a", gate.hold())]));
    let deaf =
        "trap '' TERM INT HUP; (setsid sh -c 'trap \"\" TERM; echo $$; sleep 600' &); sleep 600";
    let mut exec = scene.exec(&shell(deaf)).unwrap();
    let Some(Streams::Pipes { stdout, .. }) = exec.take_streams() else { panic!("no pipes") };
    let line = read_until(&mut File::from(stdout), |text| text.ends_with('\n'));

    gate.open();
    following.finish().assert("SUCCESS", &[("a", "S")]);

    assert!(!is_alive(line.trim().parse().unwrap()), "the task is over");
    assert_eq!(exec.wait().unwrap(), Exit::Signal(nix::libc::SIGKILL));
}

/// Invariant 3, attack 25: however many commands are begun while the task ends.
#[test]
fn commands_that_begin_while_their_task_ends_are_dead_before_it_is_over() {
    let scene = Scene::new();
    let following = running(&scene, &sleeper());
    dewar::sys::fds::raise_limit().unwrap();
    let begun = std::thread::scope(|scope| {
        let begin = || {
            let mut begun = Vec::new();
            while let Ok(place) = scene.target().and_then(Target::place) {
                let Ok(mut exec) = place.start(&request(&["sleep", "600"])) else { break };
                drop(exec.take_streams());
                begun.push(exec);
            }
            begun
        };
        let threads = [scope.spawn(begin), scope.spawn(begin)];
        wait_until("some have begun", || scene.exec_leaves().len() > 10);
        end(&scene, following);
        threads.map(|thread| thread.join().unwrap()).into_iter().flatten().collect::<Vec<_>>()
    });

    // Nobody but the end of the task has killed any of them.
    let alive = begun.iter().filter(|exec| is_alive(exec.pid())).count();
    assert!(begun.len() > 10);
    assert_eq!(alive, 0, "of {}", begun.len());
}

#[test]
fn what_a_command_leaves_behind_is_killed_with_it() {
    let scene = Scene::new();
    let following = running(&scene, &sleeper());

    let (exit, stdout, _) = finish(scene.exec(&shell("setsid sleep 600 & echo $!")).unwrap());

    assert_eq!(exit, Exit::Code(0), "and the output came to its end");
    wait_until("it is dead", || !is_alive(stdout.trim().parse().unwrap()));
    wait_until("its leaf is gone", || scene.exec_leaves().is_empty());
    end(&scene, following);
}

#[test]
fn a_command_that_is_dropped_is_killed_and_reaped() {
    let scene = Scene::new();
    let following = running(&scene, &sleeper());
    for asked in [shell("trap '' HUP; sleep 600 & wait"), terminal("trap '' HUP; sleep 600 & wait")]
    {
        let exec = scene.exec(&asked).unwrap();
        let pid = exec.pid();

        drop(exec);

        wait_until("it is reaped", || !fs::exists(format!("/proc/{pid}")).unwrap());
        wait_until("its leaf is gone", || scene.exec_leaves().is_empty());
    }
    end(&scene, following);
}

#[test]
fn a_signal_reaches_the_first_process() {
    let scene = Scene::new();
    let following = running(&scene, &sleeper());
    let mut exec = scene.exec(&request(&["sleep", "600"])).unwrap();

    exec.signal(nix::libc::SIGUSR1).unwrap();

    assert_eq!(exec.wait().unwrap(), Exit::Signal(nix::libc::SIGUSR1));
    exec.signal(nix::libc::SIGUSR1).unwrap();
    end(&scene, following);
}

#[test]
fn a_command_stands_still_with_its_task() {
    let scene = Scene::new();
    let following = running(&scene, &sleeper());
    let exec = scene.exec(&shell("while :; do echo >> steps; sleep 0.01; done")).unwrap();
    let steps = || fs::read(scene.sandbox().join("steps")).map_or(0, |text| text.len());
    wait_until("it runs", || steps() > 0);

    assert_eq!(scene.dewar(&["pause", scene.id()]).status, Some(0));
    let before = steps();
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(steps(), before);

    assert_eq!(scene.dewar(&["resume-paused", scene.id()]).status, Some(0));
    wait_until("it goes on", || steps() > before);
    drop(exec);
    end(&scene, following);
}

/// A start that is held up, here by a pause that came just before, can be given up.
#[test]
fn a_start_that_does_not_come_on_is_killed() {
    let scene = Scene::new();
    let following = running(&scene, &sleeper());
    let place = scene.target().unwrap().place().unwrap();
    let killer = place.killer();
    assert_eq!(scene.dewar(&["pause", scene.id()]).status, Some(0));
    let (sender, started) = mpsc::channel();
    let start = std::thread::spawn(move || {
        let result = place.start(&shell("echo > ran"));
        sender.send(()).unwrap();
        result.map(drop)
    });
    let leaf = scene.exec_leaves().remove(0);
    let born = || fs::read_to_string(leaf.join("cgroup.procs")).is_ok_and(|text| !text.is_empty());
    wait_until("the child is born", born);
    assert!(started.try_recv().is_err());

    killer.kill().unwrap();

    started.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(
        start.join().unwrap().unwrap_err().to_string(),
        "the command was killed before it began"
    );
    drop(killer);
    wait_until("its leaf is gone", || scene.exec_leaves().is_empty());
    assert!(!scene.sandbox().join("ran").exists());
    assert_eq!(scene.dewar(&["resume-paused", scene.id()]).status, Some(0));
    end(&scene, following);
}

/// What a program that was killed left behind is removed by the next that runs something in the task.
#[test]
fn a_leaf_whose_owner_is_gone_is_swept() {
    let scene = Scene::new();
    let following = running(&scene, &sleeper());
    let held = scene.target().unwrap().place().unwrap();
    let ours = scene.exec_leaves();
    let left = scene.cgroup().unwrap().join(".exec-left");
    fs::create_dir(&left).unwrap();
    let mut orphan = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    fs::write(left.join("cgroup.procs"), orphan.id().to_string()).unwrap();
    let id = TaskId::new(scene.id()).unwrap();
    let cgroup = TaskCgroup::open_existing(&scene.cgroup().unwrap(), &id).unwrap().unwrap();

    cgroup.sweep_exec().unwrap();
    assert_eq!(orphan.wait().unwrap().signal(), Some(nix::libc::SIGKILL));
    wait_until("it is swept", || {
        cgroup.sweep_exec().unwrap();
        !left.exists()
    });

    assert_eq!(scene.exec_leaves(), ours, "one that is held is not");
    drop(held);
    end(&scene, following);
}

/// attack 10: commands begin in many threads while others open what is not to be closed on exec.
#[test]
fn no_descriptor_of_another_thread_reaches_a_command() {
    let scene = Scene::new();
    let following = running(&scene, &sleeper());
    let until = Instant::now() + Duration::from_secs(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while Instant::now() < until {
                let open = || open("/etc/passwd", OFlag::O_RDONLY, Mode::empty());
                let _without_cloexec: Vec<_> = (0..20).filter_map(|_| open().ok()).collect();
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while Instant::now() < until {
                    let seen = printed(&scene, &shell("ls /proc/$$/fd; exit 0"));
                    assert_eq!(seen, "0\n1\n2\n");
                }
            });
        }
    });
    end(&scene, following);
}

/// Looks at every process that is younger than itself, all the time. What it gets to see of ours it writes down: the program or
/// memory of a process that is not its own yet. `$ARGV[0]` is `DEV:INODE` of our program, `$ARGV[1]` a variable of our environment.
const SPY: &str = r#"
sub got { open(my $got, '>>', 'got'); print $got "@_\n"; close($got) }
sub text { open(my $file, '<', $_[0]) or return ''; local $/; my $text = <$file>; close($file); $text // '' }
my ($ours, $marker) = @ARGV;
my $looks = 0;
until (-e 'stop') {
    opendir(my $proc, '/proc') or die;
    for my $pid (grep { /^\d+$/ && $_ > $$ } readdir($proc)) {
        for (1..200) {
            my @exe = stat("/proc/$pid/exe") or do { $looks++; -e "/proc/$pid" ? next : last };
            last unless "$exe[0]:$exe[1]" eq $ours;
            got("exe of $pid");
            got("exe of $pid for writing") if open(my $exe, '+<', "/proc/$pid/exe");
        }
        got("environ of $pid") if text("/proc/$pid/environ") =~ /^\Q$marker\E=/m;
        got("maps of $pid") if text("/proc/$pid/maps") =~ /\/it-[0-9a-f]+$/m;
    }
    open(my $told, '>', 'looks'); print $told $looks; close($told);
}
"#;

impl Scene {
    /// Runs `argv` in the task for some seconds, while a run of an ordinary user looks at us; what it got.
    fn spied_on(&self, user: &str, argv: &[&str]) -> String {
        // A spy sees whatever is its user's: what one test runs is not for the spy of another.
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let stat = fs::metadata("/proc/self/exe").unwrap();
        let script = self.file("spy.pl", SPY);
        let ours = format!("{}:{}", stat.dev(), stat.ino());
        let spy = format!("exec perl '{}' {ours} CARGO_MANIFEST_DIR", script.display());
        let following = running_with(self, &task([p("a", spy)]), &["--user", user]);
        wait_until("it looks", || self.sandbox().join("looks").exists());
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            let (exit, ..) = finish(self.exec(&request(argv)).unwrap());
            assert!(matches!(exit, Exit::Code(_)), "{exit:?}");
        }
        fs::write(self.sandbox().join("stop"), "").unwrap();
        following.finish().assert("SUCCESS", &[("a", "S")]);
        let looks: u32 = self.read("looks").parse().unwrap();
        assert!(looks > 0, "it was refused nothing, for it saw nobody");
        fs::read_to_string(self.sandbox().join("got")).unwrap_or_default()
    }
}

/// attacks 11, 12: the child of a start is us for a moment, and its user's.
#[test]
fn a_task_sees_nothing_of_the_program_that_runs_a_command_in_it() {
    let Some(user) = nobody() else { return };

    assert_eq!(Scene::new().spied_on(user, &["true"]), "");
}

/// attack 11: a command that is our program is a process of its user's, who may look at it and not write to it.
#[test]
fn a_task_that_runs_our_program_as_a_command_cannot_change_it() {
    let Some(user) = nobody() else { return };
    let read = || fs::read("/proc/self/exe").unwrap();
    let before = read();

    let got = Scene::new().spied_on(user, &["/proc/self/exe", "--list"]);

    assert!(!got.contains("for writing"), "{got}");
    assert!(before == read());
}

/// The user may stop the child before it is the command, and so hold up one start; the killer ends that.
#[test]
fn a_child_that_was_stopped_holds_up_nothing_for_good() {
    let scene = Scene::new();
    let following = running(&scene, &sleeper());
    for _ in 0..20 {
        let place = scene.target().unwrap().place().unwrap();
        let killer = place.killer();
        let procs = scene.exec_leaves().remove(0).join("cgroup.procs");
        let start = std::thread::spawn(move || place.start(&request(&["sleep", "600"])));
        let stop = || {
            let pids = fs::read_to_string(&procs).unwrap_or_default();
            let pids: Vec<i32> = pids.lines().filter_map(|line| line.parse().ok()).collect();
            pids.iter().for_each(|&pid| Pid::of(pid).signal(Signal::SIGSTOP));
            !pids.is_empty()
        };
        wait_until("it is stopped", stop);

        killer.kill().unwrap();

        if let Ok(mut began) = start.join().unwrap() {
            assert_eq!(began.wait().unwrap(), Exit::Signal(nix::libc::SIGKILL));
        }
        drop(killer);
        wait_until("its leaf is gone", || scene.exec_leaves().is_empty());
    }
    end(&scene, following);
}
