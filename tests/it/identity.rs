//! Who a run is, and what it finds: S33, S38 to S42; attacks 1 to 5, 8 to 10, 27.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use nix::unistd::User;
use serde_json::json;

use crate::support::{Finished, Scene, need_root, p, task};

/// The lines of a log as `key value`.
#[track_caller]
fn value<'a>(text: &'a str, key: &str) -> &'a str {
    let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(['=', ':', ' ']));
    found.unwrap_or_else(|| panic!("no {key} in\n{text}")).trim()
}

/// `dewar run` of a task as a caller would who has left everything in disorder.
fn from_a_mess(scene: &Scene, dewar: &Command) -> Command {
    let script = "umask 0777; trap '' HUP USR2; ulimit -c unlimited; exec 7< /dev/null 9> $DECOY 250<&7; \
                  [ $UID != 0 ] || echo -1000 > /proc/self/oom_score_adj; \
                  export LD_PRELOAD=/nowhere.so NOTIFY_SOCKET=/nowhere LISTEN_FDS=1 BASH_ENV=/nowhere; \
                  exec env --block-signal=USR1 --ignore-signal=PIPE \"$@\"";
    let mut command = Command::new("bash");
    command.args(["-c", script, "bash"]);
    if nix::unistd::geteuid().is_root() {
        command.args(["nice", "-n", "-5"]);
    }
    command.arg(dewar.get_program()).args(dewar.get_args()).env("DECOY", scene.path("decoy"));
    command
}

/// S33, attacks 8 and 9.
#[test]
fn the_environment_is_the_documented_one() {
    let scene = Scene::new();
    let environment = p("environment", "tr '\\0' '\\n' < /proc/$$/environ; true");
    let signals = p("signals", "exec grep -E '^Sig(Blk|Ign)|^ShdPnd' /proc/self/status");
    // No pipeline: the shell itself would hold its pipe for a moment.
    let found = "ls /proc/$$/fd > fds; echo fds $(< fds); echo stdin $(readlink /proc/$$/fd/0); echo umask $(umask); \
                 echo session $(cut -d' ' -f6 /proc/$$/stat); echo pid $$; \
                 echo nice $(cut -d' ' -f19 /proc/$$/stat); \
                 echo oom_score_adj $(cat /proc/$$/oom_score_adj); \
                 echo core $(ulimit -S -c); echo cwd $PWD";
    let task = task([environment, signals, p("found", found)]);
    let dewar = scene.run_command(&task, &[]);

    let ended = scene.follow(from_a_mess(&scene, &dewar)).finish();

    ended.assert("SUCCESS", &[("environment", "S"), ("signals", "S"), ("found", "S")]);
    let user = User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name;
    let mut environment: Vec<String> =
        scene.stdout("environment", 0).lines().map(str::to_owned).collect();
    environment.sort();
    let mut documented = [
        format!("HOME={}", scene.sandbox().display()),
        format!("LOGNAME={user}"),
        format!("USER={user}"),
        format!("PATH={}", std::env::var("PATH").unwrap()),
        format!("DEWAR_TASK_ID={}", scene.id()),
        "DEWAR_PROCESS=environment".to_owned(),
        "DEWAR_RUN=0".to_owned(),
    ];
    documented.sort();
    assert_eq!(environment, documented);
    let signals = scene.stdout("signals", 0);
    for set in ["SigBlk", "SigIgn"] {
        assert_eq!(value(&signals, set), "0000000000000000", "{signals}");
    }
    let found = scene.stdout("found", 0);
    assert_eq!(value(&found, "fds"), "0 1 2");
    assert_eq!(value(&found, "stdin"), "/dev/null");
    assert_eq!(value(&found, "umask"), "0022");
    assert_eq!(value(&found, "session"), value(&found, "pid"));
    assert_eq!(value(&found, "cwd"), scene.sandbox().to_str().unwrap());
    assert_eq!(value(&found, "core"), "0");
    assert_eq!(value(&found, "nice"), "0");
    assert_eq!(value(&found, "oom_score_adj"), "0");
}

/// Attack 10: many starts at once, each with pipes of its own.
#[test]
fn no_descriptor_of_one_run_is_in_another() {
    let scene = Scene::new();
    let logger = json!({"mode": "rotate"});
    let names: Vec<String> = (0..60).map(|n| format!("p{n}")).collect();
    let processes = names.iter().map(|name| {
        p(name, "ls /proc/$$/fd; readlink /proc/$$/fd/1 >&2").with("logger", logger.clone())
    });

    let ended = scene.run(&task(processes));

    ended.assert("SUCCESS", &[]);
    let mut pipes: Vec<String> = Vec::new();
    for name in &names {
        assert_eq!(scene.stdout(name, 0), "0\n1\n2\n", "{name}");
        pipes.push(fs::read_to_string(scene.logs(name, 0).join("stderr")).unwrap());
    }
    pipes.sort();
    pipes.dedup();
    assert_eq!(pipes.len(), names.len(), "two runs share a pipe");
}

/// Attack 27: whatever a run forks, and however early, is in its leaf.
#[test]
fn no_process_of_a_run_is_ever_outside_its_leaf() {
    let scene = Scene::new();
    let names: Vec<String> = (0..100).map(|n| format!("p{n}")).collect();
    let look =
        "grep ^0: /proc/self/cgroup & grep ^0: /proc/self/cgroup; wait; grep ^0: /proc/$$/cgroup";

    let ended = scene.run(&task(names.iter().map(|n| p(n, look))).with("max_concurrency", 10));

    ended.assert("SUCCESS", &[]);
    for name in &names {
        let leaf = format!("/tasks/{}/{name}.0", scene.id());
        let seen = scene.stdout(name, 0);
        assert_eq!(seen.lines().count(), 3, "{seen}");
        assert!(seen.lines().all(|line| line.ends_with(&leaf)), "{seen}");
    }
}

fn nobody() -> User {
    User::from_name("nobody").unwrap().unwrap()
}

/// S38, attacks 1 and 3: the caller has groups that the user has not.
#[test]
fn a_run_as_another_user_has_what_that_user_has_and_nothing_else() {
    need_root!();
    let scene = Scene::new();
    let secret = scene.file("secret", "secret");
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o640)).unwrap();
    let look = format!(
        "grep -E '^(Uid|Gid|Groups|Cap...):' /proc/self/status; touch mine; \
         cat {secret} && echo secret read; setpriv --reuid 0 true && echo became root; \
         setpriv --regid 0 --clear-groups true && echo became group root; exit 0",
        secret = secret.display()
    );
    let task = task([p("a", look), p("last", "id -u").finalizer()]).with("user", "nobody");
    let dewar = scene.run_command(&task, &[]);
    let mut command = Command::new("setpriv");
    command.args(["--groups", "0,4,6,42"]).arg(dewar.get_program()).args(dewar.get_args());

    let ended = scene.follow(command).finish();

    ended.assert("SUCCESS", &[("a", "S"), ("last", "S")]);
    let found = scene.stdout("a", 0);
    let nobody = nobody();
    let (uid, gid) = (nobody.uid.to_string(), nobody.gid.to_string());
    let four = |id: &str| [id; 4].join("\t");
    assert_eq!(value(&found, "Uid"), four(&uid), "real, effective, saved and of the filesystem");
    assert_eq!(value(&found, "Gid"), four(&gid));
    let name = std::ffi::CString::new(nobody.name.as_str()).unwrap();
    let mut groups = nix::unistd::getgrouplist(&name, nobody.gid).unwrap();
    groups.sort_unstable_by_key(|group| group.as_raw());
    let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
    assert_eq!(value(&found, "Groups"), groups.join(" "));
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(value(&found, set), "0000000000000000", "{set}");
    }
    assert!(!found.contains("secret read") && !found.contains("became"), "{found}");
    for path in [scene.sandbox().join("mine"), scene.logs("a", 0).join("stdout")] {
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.uid(), nobody.uid.as_raw(), "{}", path.display());
        assert_eq!(metadata.gid(), nobody.gid.as_raw(), "{}", path.display());
    }
    assert_eq!(scene.stdout("last", 0).trim(), uid, "a finalizer is the same user");
    assert_eq!(ended.task["user"], "nobody");
}

/// What is made for the user of a run is that user's, whatever mask the caller had.
#[test]
fn sandbox_and_logs_belong_to_the_user_whatever_the_umask() {
    need_root!();
    let scene = Scene::new();
    let task = task([p("a", "touch mine")]).with("user", "nobody");
    let dewar = scene.run_command(&task, &[]);

    let ended = scene.follow(from_a_mess(&scene, &dewar)).finish();

    ended.assert("SUCCESS", &[("a", "S")]);
    let logs = scene.logs("a", 0);
    for (path, mode) in [
        (scene.sandbox(), 0o40700),
        (scene.sandbox().join("mine"), 0o100644),
        (logs.clone(), 0o40750),
        (logs.join("stdout"), 0o100640),
    ] {
        let metadata = fs::metadata(&path).unwrap();
        let found = (metadata.uid(), format!("{:o}", metadata.mode()));
        assert_eq!(found, (nobody().uid.as_raw(), format!("{mode:o}")), "{}", path.display());
    }
}

/// A finalizer that a later runner starts is not the user of whoever resumed it (D19).
#[test]
fn a_runner_that_takes_over_keeps_the_user() {
    need_root!();
    let scene = Scene::new();
    let gate = scene.gate("gate");
    let processes = [p("a", gate.hold()), p("last", "id -u").finalizer()];
    let mut running = scene.spawn_with(&task(processes), &["--user", "nobody"]);
    running.wait_until_running("a", 0);
    scene.kill_runner(running);
    gate.open();

    scene.resume().finish().assert("SUCCESS", &[("a", "S"), ("last", "S")]);

    assert_eq!(scene.stdout("last", 0).trim(), nobody().uid.to_string());
}

/// Asserts that nothing was started and nothing made.
#[track_caller]
fn assert_nothing_begun(scene: &Scene, refused: &Finished) {
    assert!(refused.events.is_empty() && refused.task.is_null(), "{refused}");
    assert!(!scene.sandbox().exists(), "{refused}");
    for place in ["active", "finished"] {
        let tasks = scene.root().join("tasks").join(place);
        assert_eq!(fs::read_dir(tasks).map_or(0, Iterator::count), 0, "{refused}");
    }
}

/// S39, attacks 4 and 5: a user is named by login name, and by nothing else.
#[test]
fn a_user_that_does_not_exist_is_refused_before_anything_starts() {
    for user in
        ["nobody-here", "-1", "4294967295", "4294967296", "+0", "0x0", "0", " root", "root "]
    {
        for by_option in [true, false] {
            let scene = Scene::new();
            let a = task([p("a", "id")]);
            let option = format!("--user={user}");

            let refused = match by_option {
                true => scene.run_with(&a, &[&option]),
                false => scene.run(&a.with("user", user)),
            };

            assert_eq!(refused.status, Some(2), "{user:?} {refused}");
            assert!(refused.stderr.contains(user.trim()), "{user:?} {refused}");
            assert_nothing_begun(&scene, &refused);
        }
    }
    let scene = Scene::new();
    let refused = scene.run_with(&task([p("a", "id")]), &["--user="]);
    assert_eq!(refused.status, Some(2), "{refused}");
    assert_nothing_begun(&scene, &refused);
}

/// Copies a program and the libraries that it needs to a directory that is to be a root.
fn install(program: &str, root: &Path) {
    let mut command = Command::new("ldd");
    let libraries = String::from_utf8(command.arg(program).output().unwrap().stdout).unwrap();
    let paths = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    for path in paths.chain([program]) {
        let to = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(path, to).unwrap();
    }
}

/// S40, attack 4: the sandbox has a user database of its own, in which nobody is root.
#[test]
fn chroot_makes_the_sandbox_the_root_directory() {
    need_root!();
    let scene = Scene::new();
    install("/bin/bash", &scene.sandbox());
    fs::create_dir(scene.sandbox().join("etc")).unwrap();
    fs::write(scene.sandbox().join("etc/passwd"), "nobody:x:0:0::/evil:/bin/bash\n").unwrap();
    let look = "echo root /*; echo home $HOME; echo cwd $PWD; echo uid $UID; \
                echo above /..; [ ! -e /proc ] && echo no /proc; cd /../../..; echo /*";

    let ended = scene.run_with(&task([p("a", look)]), &["--chroot", "--user", "nobody"]);

    ended.assert("SUCCESS", &[("a", "S")]);
    let found = scene.stdout("a", 0);
    let mut entries: Vec<String> = fs::read_dir(scene.sandbox())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.'))
        .map(|name| format!("/{name}"))
        .collect();
    entries.sort();
    let nobody = nobody();
    assert_eq!(value(&found, "root"), entries.join(" "));
    assert_eq!(value(&found, "home"), nobody.dir.to_str().unwrap());
    assert_eq!(value(&found, "cwd"), "/");
    assert_eq!(value(&found, "uid"), nobody.uid.to_string());
    assert!(found.ends_with(&format!("{}\n", entries.join(" "))), "{found}");
}

/// S40, attack 2
#[test]
fn a_step_of_the_launch_that_fails_is_the_verdict() {
    need_root!();
    let scene = Scene::new();

    let ended = scene.run_with(&task([p("a", "touch ran")]), &["--chroot"]);

    ended.assert("FAILED", &[("a", "F")]);
    let run = ended.run("a", 0);
    assert_eq!(run["verdict"]["reason"], "VERDICT_REASON_LAUNCH_FAILED");
    assert_eq!(run["verdict"]["step"], "execve /bin/bash");
    assert_eq!(run["verdict"]["errno"], "ENOENT");
    assert_eq!((run.get("exitCode"), run.get("signal")), (None, None), "{run}");
}

/// Attack 9: the working directory is the sandbox itself, not what has taken its place.
#[test]
fn a_sandbox_that_is_swapped_for_a_link_is_refused() {
    let scene = Scene::new();
    let victim = scene.path("victim");
    fs::create_dir(&victim).unwrap();
    let swap = format!("mv $PWD $PWD.old && ln -s {} $HOME; exit 1", victim.display());
    let command = format!("[ $DEWAR_RUN = 0 ] || {{ touch here; exit 0; }}; {swap}");

    let ended = scene.run(&task([p("a", command).max_failures(2)]));

    ended.assert("FAILED", &[("a", "FF")]);
    let verdict = &ended.run("a", 1)["verdict"];
    assert_eq!(verdict["reason"], "VERDICT_REASON_LAUNCH_FAILED", "{verdict}");
    assert_eq!(verdict["step"], "sandbox", "{verdict}");
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
}

/// Attack 9: a sandbox that is named through a link is what the link led to when the task was accepted.
#[test]
fn a_sandbox_is_recorded_without_links() {
    let scene = Scene::new();
    let (real, link) = (scene.path("real"), scene.path("sandbox"));
    fs::create_dir(&real).unwrap();
    symlink(&real, &link).unwrap();

    let ended = scene.run(&task([p("a", "pwd -P > here")]));

    ended.assert("SUCCESS", &[("a", "S")]);
    assert_eq!(ended.task["sandbox"], real.to_str().unwrap());
    let here = fs::read_to_string(real.join("here")).unwrap();
    assert_eq!(here.trim(), real.to_str().unwrap());
}

/// `dewar run` in a scene that belongs to nobody, as nobody, who was given no cgroup.
fn as_nobody(scene: &Scene, task: &crate::support::Task, more: &[&str]) -> Command {
    let dewar = scene.run_command(task, more);
    let bin = scene.path("bin");
    fs::create_dir_all(&bin).unwrap();
    let built = Path::new(dewar.get_program()).parent().unwrap();
    for program in ["dewar", "dewar-full", "dewar-runner"] {
        // The target directory may be out of reach for nobody.
        fs::copy(built.join(program), bin.join(program)).unwrap();
    }
    let nobody = nobody();
    let (uid, gid) = (nobody.uid.as_raw(), nobody.gid.as_raw());
    chown(scene.path(""), Some(uid), Some(gid)).unwrap();
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into()]);
    command.arg(bin.join("dewar")).args(dewar.get_args()).env_remove("XDG_RUNTIME_DIR");
    command
}

/// S41, attack 57
#[test]
fn an_ordinary_user_without_a_cgroup_is_told_what_to_do() {
    need_root!();
    let scene = Scene::new();

    let refused = scene.follow(as_nobody(&scene, &task([p("a", "true")]), &[])).finish();

    assert_eq!(refused.status, Some(5), "{refused}");
    assert!(refused.stderr.contains("--cgroup none"), "{refused}");
    assert!(refused.stderr.contains("Delegate=yes"), "{refused}");
    assert_nothing_begun(&scene, &refused);
}

/// S41
#[test]
fn without_cgroups_a_task_runs_and_its_weakness_is_told() {
    need_root!();
    let scene = Scene::new();
    let a = p("a", "sleep 60 & echo $! > pid; id -u");
    let b =
        p("b", "read -r pid < pid; stat=$(cat /proc/$pid/stat) || exit 0; [[ $stat == *') Z '* ]]");
    let task = task([a, b, p("last", "true").finalizer()]).order(["a", "b"]);

    let ended = scene.follow(as_nobody(&scene, &task, &["--cgroup", "none"])).finish();

    ended.assert("SUCCESS", &[("a", "S"), ("b", "S"), ("last", "S")]);
    assert_eq!(scene.stdout("a", 0).trim(), nobody().uid.to_string());
    assert_eq!(ended.task["containment"], "none");
    assert!(ended.stderr.contains("weaker"), "{ended}");
}

/// An ordinary user cannot have runs of anybody else.
#[test]
fn only_root_may_name_another_user() {
    need_root!();
    let scene = Scene::new();
    let more = ["--cgroup", "none", "--user", "root"];

    let refused = scene.follow(as_nobody(&scene, &task([p("a", "id")]), &more)).finish();

    assert!(matches!(refused.status, Some(2 | 5)), "{refused}");
    assert!(refused.stderr.contains("only root"), "{refused}");
    assert_nothing_begun(&scene, &refused);
}

/// Attack 56: what was named is used, or refused; nothing else is tried.
#[test]
fn a_base_that_is_no_cgroup_is_refused() {
    for (base, named) in [("/tmp", "/tmp"), ("/nowhere/at/all", "/nowhere/at"), ("sub", "sub")] {
        let scene = Scene::new();

        let refused = scene.run_with(&task([p("a", "true")]), &["--cgroup-base", base]);

        assert_eq!(refused.status, Some(5), "{refused}");
        assert!(refused.stderr.contains(named), "{refused}");
        assert_nothing_begun(&scene, &refused);
    }
}

/// S42, attack 58: there is no third way.
#[test]
fn a_limit_is_enforced_or_refused_by_name() {
    let scene = Scene::new();
    let gate = scene.gate("gate");
    let limited = task([p("a", gate.hold())]).with("resources", json!({"ram": "64MB"}));
    let mut running = scene.spawn(&limited);

    if running.next().is_some() {
        running.wait_until_running("a", 0);
        let limit = fs::read_to_string(scene.cgroup().unwrap().join("memory.max")).unwrap();
        assert_eq!(limit.trim(), (64 << 20).to_string());
        gate.open();
        running.finish().assert("SUCCESS", &[("a", "S")]);
        return;
    }

    let refused = running.finish();
    assert_eq!(refused.status, Some(5), "{refused}");
    assert!(refused.stderr.contains("memory"), "{refused}");
    assert!(refused.stderr.contains("resources.ram"), "{refused}");
    assert!(refused.stderr.contains("--allow-unenforced"), "{refused}");
    assert_nothing_begun(&scene, &refused);
    gate.open();
    let ended = scene.run_with(&limited, &["--allow-unenforced"]);
    ended.assert("SUCCESS", &[("a", "S")]);
    assert_eq!(ended.task["unenforced"], json!(["resources.ram"]));
}

/// S42: no host can limit GPUs, neither of a task nor of a process.
#[test]
fn what_is_not_enforced_is_listed() {
    let scene = Scene::new();
    let gpu = json!({"gpu": 1});
    let limited = task([p("a", "true").with("resources", gpu.clone())]).with("resources", gpu);

    let refused = scene.run(&limited);
    let ended = scene.run_with(&limited, &["--allow-unenforced"]);

    assert_eq!(refused.status, Some(5), "{refused}");
    for field in ["resources.gpu", "processes[0].resources.gpu"] {
        assert!(refused.stderr.contains(field), "{field}: {refused}");
    }
    ended.assert("SUCCESS", &[("a", "S")]);
    assert_eq!(ended.task["unenforced"], json!(["resources.gpu", "processes[0].resources.gpu"]));
    assert_eq!(scene.status()["unenforced"], ended.task["unenforced"]);
}
