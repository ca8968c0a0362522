//! Output of runs: S34 to S37, S49; attacks 13 to 15.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};

use crate::support::{Scene, need_root, p, task};

/// S34
#[test]
fn a_profile_written_by_one_process_reaches_the_next() {
    let scene = Scene::new();
    let write = "echo 'export GREETING=\"a b\"; umask 027' > .thermos_profile";
    let processes = [p("a", write), p("b", "echo \"$GREETING\"; umask"), p("c", "true")];

    scene.run(&task(processes).order(["a", "b", "c"])).assert("SUCCESS", &[]);

    assert_eq!(scene.stdout("b", 0), "a b\n0027\n");
}

/// S35
#[test]
fn logs_are_exact() {
    let scene = Scene::new();
    let command = r"printf 'a\0b\xff\xfe\r\n\x1b[31m end'; printf 'no newline' >&2";

    scene.run(&task([p("a", command)])).assert("SUCCESS", &[]);

    let read = |name: &str| fs::read(scene.logs("a", 0).join(name)).unwrap();
    assert_eq!(read("stdout"), b"a\0b\xff\xfe\r\n\x1b[31m end");
    assert_eq!(read("stderr"), b"no newline");
}

/// S35, attack 45: 50 MB on both streams, through the coordinator's pipes.
#[test]
fn a_flood_arrives_byte_for_byte_and_costs_no_memory() {
    const BYTES: usize = 50_000_000;
    let scene = Scene::new();
    let (done, go) = (scene.gate("done"), scene.gate("go"));
    let flood = "yes 0123456789abcdef | head -c 50000000";
    let command = format!("{flood}; {flood} >&2; {}; {}", done.tell(), go.hold());
    // One file: it never comes to a rotation.
    let logger = json!({"mode": "rotate", "rotate": {"log_size": "1GB"}});
    let mut running = scene.spawn(&task([p("a", command).with("logger", logger)]));
    let (_, coordinator) = running.wait_until_running("a", 0);
    done.wait();

    let status = fs::read_to_string(format!("/proc/{}/status", coordinator.number())).unwrap();
    go.open();

    running.finish().assert("SUCCESS", &[("a", "S")]);
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let kilobytes: u64 = anonymous.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    assert!(kilobytes < 2048, "the coordinator holds {kilobytes} kB");
    for stream in ["stdout", "stderr"] {
        let bytes = fs::read(scene.logs("a", 0).join(stream)).unwrap();
        assert_eq!(bytes.len(), BYTES, "{stream}");
        let line = b"0123456789abcdef\n";
        let whole = bytes.chunks(line.len()).all(|chunk| line.starts_with(chunk));
        assert!(whole, "{stream} has other bytes");
    }
}

/// S36
#[test]
fn rotation_keeps_the_newest_lines_without_a_gap() {
    let scene = Scene::new();
    let logger = json!({"mode": "rotate", "rotate": {"log_size": 4096, "backups": 3}});
    let command = "seq -f 'line %05.0f' 1 5000";

    scene.run(&task([p("a", command).with("logger", logger)])).assert("SUCCESS", &[("a", "S")]);

    let dir = scene.logs("a", 0);
    let mut names: Vec<String> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("stdout"))
        .collect();
    names.sort();
    assert_eq!(names, ["stdout", "stdout.1", "stdout.2", "stdout.3"]);
    // From the oldest to the newest.
    names.reverse();
    let kept: String =
        names.iter().map(|name| fs::read_to_string(dir.join(name)).unwrap()).collect();
    let all: String = (1..=5000).map(|n| format!("line {n:05}\n")).collect();
    assert!(all.ends_with(&kept), "a line is missing, or torn, or the newest is not there");
    assert!(kept.len() > 3 * 4096, "only {} bytes were kept", kept.len());
}

/// S37
#[test]
fn output_goes_where_the_logger_says() {
    for (destination, files, console) in [
        ("none", false, false),
        ("console", false, true),
        ("both", true, true),
        ("file", true, false),
    ] {
        let scene = Scene::new();
        let process = p("a", "echo to-stdout; echo to-stderr >&2");
        let task = task([process.with("logger", json!({"destination": destination}))]);
        let file = scene.file("task.json", task.text());
        let mut command = scene.command(scene.run_arguments());
        command.arg(file);

        let told = scene.output(command);

        assert_eq!(told.status, Some(0), "{told:?}");
        assert_eq!(told.stdout.contains("to-stdout"), console, "{destination}: {told:?}");
        assert_eq!(told.stderr.contains("to-stderr"), console, "{destination}: {told:?}");
        assert!(!told.stdout.contains("to-stderr"), "{destination}: {told:?}");
        assert!(!told.stderr.contains("to-stdout"), "{destination}: {told:?}");
        let log = |name: &str| fs::read_to_string(scene.logs("a", 0).join(name)).ok();
        let expect = |text: &str| files.then(|| text.to_owned());
        assert_eq!(log("stdout"), expect("to-stdout\n"), "{destination}");
        assert_eq!(log("stderr"), expect("to-stderr\n"), "{destination}");
    }
}

/// Where JSON is on standard output, nothing else is: the console is standard error then.
#[test]
fn a_console_does_not_mix_with_json() {
    let process = p("a", "echo to-stdout").with("logger", json!({"destination": "console"}));

    let ended = Scene::new().run(&task([process]));

    ended.assert("SUCCESS", &[("a", "S")]);
    assert!(ended.stderr.contains("to-stdout"), "{ended}");
}

/// S49
#[test]
fn tail_follows_across_a_retry_and_rotations() {
    let scene = Scene::new();
    let (up, seen) = (scene.gate("up"), scene.gate("seen"));
    let logger = json!({"mode": "rotate", "rotate": {"log_size": 64, "backups": 50}});
    let command = format!(
        "for i in 1 2 3 4 5 6 7 8; do echo run $DEWAR_RUN line $i; sleep 0.1; done; \
         [ $DEWAR_RUN = 1 ] || {{ {}; {}; exit 1; }}",
        up.tell(),
        seen.hold()
    );
    let running = scene.spawn(&task([p("a", command).with("logger", logger).max_failures(2)]));
    // It is there before there is anything to be read.
    while scene.dewar(&["tail", scene.id(), "a"]).status != Some(0) {}
    let mut tail = scene.command(["tail", "-f", scene.id(), "a", "--root"]);
    tail.arg(scene.root());
    let mut tail = scene.lines(tail);
    while tail.next().unwrap() != "run 0 line 8" {}
    up.wait();

    seen.open();

    assert_eq!(tail.finish(), Some(0), "{}", tail.stderr());
    let all: String = [0, 1]
        .iter()
        .flat_map(|run| (1..=8).map(move |n| format!("run {run} line {n}\n")))
        .collect();
    assert_eq!(tail.stdout(), all);
    running.finish().assert("SUCCESS", &[("a", "FS")]);
}

/// Any log can be read later, by run and stream.
#[test]
fn tail_prints_the_log_that_was_asked_for() {
    let scene = Scene::new();
    let command = "echo out of run $DEWAR_RUN; echo err of run $DEWAR_RUN >&2; exit 1";
    scene.run(&task([p("a", command).max_failures(2), p("b", "true")]));

    for (arguments, log) in [
        (&["a"][..], "out of run 1\n"),
        (&["a", "--run", "0"], "out of run 0\n"),
        (&["a", "--run", "0", "--stderr"], "err of run 0\n"),
        (&["-f", "a"], "out of run 1\n"),
        (&["a", "--tail", "1"], "out of run 1\n"),
        (&["a", "--tail", "0"], ""),
        (&["-f", "a", "--run", "0", "--tail", "1"], "out of run 0\n"),
    ] {
        let told = scene.dewar(&[&["tail", scene.id()], arguments].concat());

        assert_eq!((told.status, told.stdout.as_str()), (Some(0), log), "{arguments:?} {told:?}");
    }
    for arguments in [&["a", "--run", "2"][..], &["c"]] {
        let told = scene.dewar(&[&["tail", scene.id()], arguments].concat());

        assert_eq!((told.status, told.stdout.as_str()), (Some(1), ""), "{arguments:?} {told:?}");
    }
}

/// A file of root in a directory that only root may change, and its content.
const SECRET: &str = "what root wrote\n";

fn secret(scene: &Scene) -> std::path::PathBuf {
    let path = scene.file("secret", SECRET);
    fs::set_permissions(&path, Mode::S_IRUSR.bits().perms()).unwrap();
    path
}

trait Perms {
    fn perms(self) -> fs::Permissions;
}

impl Perms for u32 {
    fn perms(self) -> fs::Permissions {
        fs::Permissions::from_mode(self)
    }
}

#[track_caller]
fn assert_untouched(secret: &Path) {
    assert_eq!(fs::read_to_string(secret).unwrap(), SECRET);
    let metadata = fs::metadata(secret).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o400, 0));
}

/// Attack 13: the next run's log is a link before that run starts.
#[test]
fn a_log_is_no_way_to_a_file_of_root() {
    need_root!();
    let scene = Scene::new();
    let secret = secret(&scene);
    let plant = format!(
        "mkdir -p .logs/a/1 && ln -s {} .logs/a/1/stdout; echo planted; exit 1",
        secret.display()
    );
    let command = format!("[ $DEWAR_RUN = 0 ] || {{ echo stolen; exit 0; }}; {plant}");
    let task = task([p("a", command).max_failures(2)]);

    let ended = scene.run_with(&task, &["--user", "nobody"]);

    ended.assert("FAILED", &[("a", "FF")]);
    let verdict = &ended.run("a", 1)["verdict"];
    assert_eq!(verdict["reason"], "VERDICT_REASON_LAUNCH_FAILED", "{ended}");
    assert!(verdict["detail"].as_str().unwrap().contains("symbolic link"), "{verdict}");
    assert_untouched(&secret);
    let tail = scene.dewar(&["tail", scene.id(), "a", "--run", "1"]);
    assert!(!tail.stdout.contains("root wrote") && tail.status != Some(0), "{tail:?}");
}

/// Attack 13: the live log becomes a link, and then it is rotated.
#[test]
fn a_rotation_follows_no_link() {
    need_root!();
    let scene = Scene::new();
    let secret = secret(&scene);
    let logger = json!({"mode": "rotate", "rotate": {"log_size": 100, "backups": 2}});
    let command = format!(
        "cd .logs/a/0; for i in $(seq 50); do ln -sf {} stdout; ln -sf {} stdout.1; \
         seq 1000 1040; done",
        secret.display(),
        secret.display(),
    );
    let task = task([p("a", command).with("logger", logger)]);

    let ended = scene.run_with(&task, &["--user", "nobody"]);

    ended.assert("SUCCESS", &[("a", "S")]);
    assert_untouched(&secret);
}

/// Attack 14: directories and links change places all the time, while runs start, logs are rotated and tails are shown.
#[test]
fn a_directory_that_is_swapped_for_a_link_is_no_way_out() {
    need_root!();
    // As long as the attack asks for where there is time for it.
    let time = Duration::from_secs(if std::env::var_os("CI").is_some() { 60 } else { 3 });
    let scene = Scene::new();
    let victim = scene.path("victim");
    let hidden = victim.join("a/0");
    fs::create_dir_all(&hidden).unwrap();
    fs::write(hidden.join("stdout"), "of root alone").unwrap();
    let before = listing(&victim);
    fs::create_dir(scene.sandbox()).unwrap();
    fs::set_permissions(scene.sandbox(), 0o777.perms()).unwrap();
    let (logs, evil) = (scene.sandbox().join(".logs"), scene.sandbox().join("evil"));
    fs::create_dir(&logs).unwrap();
    symlink(&victim, &evil).unwrap();
    let rotate = json!({"mode": "rotate", "rotate": {"log_size": 1000, "backups": 2}});
    let process = p("a", "seq 1000; [ -e stop ]").max_failures(0).with("min_duration", 0.02);
    let task = task([process.with("logger", rotate)]);

    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    let ended = std::thread::scope(|threads| {
        let _stop = Stop(&over);
        threads.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let flags = RenameFlags::RENAME_EXCHANGE;
                renameat2(AT_FDCWD, &logs, AT_FDCWD, &evil, flags).unwrap();
                // Each place is there for long enough to be looked up by whoever comes.
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        let mut running = scene.spawn_with(&task, &["--user", "nobody"]);
        running.wait_for_run("a", 0, "FAILED");
        let end = Instant::now() + time;
        while Instant::now() < end {
            let tail = scene.dewar(&["tail", scene.id(), "a", "--run", "0"]);
            assert!(!format!("{tail:?}").contains("of root alone"), "{tail:?}");
        }
        fs::write(scene.sandbox().join("stop"), "").unwrap();
        running.finish()
    });

    ended.assert("SUCCESS", &[]);
    let runs = ended.process("a")["runs"].as_array().unwrap().iter();
    let refused = runs.filter(|run| run["verdict"]["reason"] == "VERDICT_REASON_LAUNCH_FAILED");
    assert!(refused.count() > 0, "no link was met");
    assert_eq!(listing(&victim), before);
}

/// All that is in a directory: paths, owners, modes, times of change.
fn listing(dir: &Path) -> Vec<(PathBuf, u32, u32, i64, i64)> {
    let mut found = Vec::new();
    for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        let stat = fs::symlink_metadata(&path).unwrap();
        found.push((path.clone(), stat.uid(), stat.mode(), stat.ctime(), stat.ctime_nsec()));
        if stat.is_dir() {
            found.extend(listing(&path));
        }
    }
    found.sort();
    found
}

/// Attack 15
#[test]
fn a_log_is_a_regular_file_with_one_name() {
    need_root!();
    let scene = Scene::new();
    let secret = secret(&scene);
    let log = |process: &str| {
        let dir = scene.logs(process, 0);
        fs::create_dir_all(&dir).unwrap();
        dir.join("stdout")
    };
    nix::unistd::mkfifo(&log("fifo"), Mode::S_IRWXU).unwrap();
    fs::create_dir(log("directory")).unwrap();
    fs::hard_link(&secret, log("hard-link")).unwrap();
    symlink(&secret, log("link")).unwrap();
    mknod(&log("device"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 3)).unwrap();
    let _socket = UnixListener::bind(log("socket")).unwrap();
    File::create(log("file")).unwrap();
    let kinds = ["fifo", "directory", "hard-link", "link", "device", "socket"];
    let processes = kinds.iter().chain(&["file"]).map(|kind| p(kind, "echo written"));

    let ended = scene.run(&task(processes).with("max_failures", 0));

    ended.assert("SUCCESS", &[("file", "S")]);
    assert_eq!(scene.stdout("file", 0), "written\n");
    for kind in kinds {
        assert_eq!(ended.runs(kind), "F", "{kind}\n{ended}");
        let verdict = &ended.run(kind, 0)["verdict"];
        assert_eq!(verdict["reason"], "VERDICT_REASON_LAUNCH_FAILED", "{kind}: {verdict}");
        let path = scene.logs(kind, 0).join("stdout");
        let why = verdict["detail"].as_str().unwrap_or_default();
        assert!(why.contains(path.to_str().unwrap()), "{kind}: {verdict}");
        assert_eq!(ended.run(kind, 0).get("pid").unwrap_or(&Value::Null), &Value::Null);
    }
    assert_untouched(&secret);
}
