//! Task files and the commands that tell of tasks: S43 to S48; attacks 16, 23 and 52.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use dewar::checkpoint::{Identity, Instant, Reader, Root, Writer};
use dewar::proto::record::Kind;
use dewar::task::TaskId;
use serde_json::{Value, json};

use crate::support::{Output, Scene, p, task};

/// `dewar inspect` of a file, with `more` arguments.
#[track_caller]
fn inspect(scene: &Scene, text: impl AsRef<[u8]>, more: &[&str]) -> Output {
    let file = scene.file("task.yaml", text);
    let mut command = scene.command(["inspect"]);
    command.arg(file).args(more);
    scene.output(command)
}

/// The same as JSON, of a file that is right.
#[track_caller]
fn inspected(scene: &Scene, text: impl AsRef<[u8]>, more: &[&str]) -> Value {
    let told = inspect(scene, text, &[&["--output", "json"], more].concat());
    assert_eq!(told.status, Some(0), "{told:?}");
    serde_json::from_str(&told.stdout).unwrap()
}

/// S43
#[test]
fn every_error_is_told_in_one_go_with_its_place() {
    let scene = Scene::new();
    let text = "\
name: web
processes:
  - name: bad/name
    cmdline: run
  - name: b
    cmdline: serve {{thermos.ports[http]}}
    max_failures: -1
  - name: c
    cmdline: x
    colour: red
constraints:
  - order: [b, c]
  - order: [c, b]
";
    let file = scene.file("bad.yaml", text);
    let mut command = scene.command(scene.run_arguments());
    command.arg(&file);

    let told = scene.output(command);

    assert_eq!(told.status, Some(2), "{told:?}");
    assert!(told.stderr.contains(&format!("5 errors in {}", file.display())), "{}", told.stderr);
    for (line, column, field, shown) in [
        (3, 11, "processes[0].name", "  - name: bad/name"),
        (6, 0, "processes[1].cmdline", "    cmdline: serve {{thermos.ports[http]}}"),
        (7, 19, "processes[1].max_failures", "    max_failures: -1"),
        (10, 5, "processes[2].colour", "    colour: red"),
        (13, 0, "constraints[1].order", "  - order: [c, b]"),
    ] {
        let place = format!("{}:{line}:", file.display());
        let at = told.stderr.split("error: ").find(|error| error.contains(&place));
        let error = at.unwrap_or_else(|| panic!("no error in line {line}\n{}", told.stderr));
        assert!(error.starts_with(field), "{error}");
        assert!(error.contains(&format!("{line} | {shown}\n")), "{error}");
        assert!(error.contains("^ expected "), "{error}");
        if column > 0 {
            assert!(error.contains(&format!("{place}{column}\n")), "{error}");
        }
    }
    assert!(told.stderr.contains("http"), "the port is named\n{}", told.stderr);
    assert!(!scene.root().exists() && !scene.sandbox().exists());
}

/// S44, attack 52: each is told what is wrong with it, in a second of CPU time and 64 MiB.
#[test]
fn bombs_are_cheap() {
    let mut aliases = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..12 {
        let list = vec![format!("*a{}", n - 1); 9].join(", ");
        writeln!(aliases, "a{n}: &a{n} [{list}]").unwrap();
    }
    aliases += "processes: *a11\n";
    let many: String = (0..100_000).map(|n| format!("- {{name: p{n}, cmdline: x}}\n")).collect();
    for (what, text, why) in [
        ("alias bomb", aliases, "alias"),
        ("brackets", "[".repeat(100_000), "nested"),
        ("braces", "{a: ".repeat(100_000), "nested"),
        ("scalar", format!("name: {}", "x".repeat(100_000_000)), "bytes"),
        ("processes", format!("name: many\nprocesses:\n{many}"), "at most"),
        ("duplicate keys", "name: a\nprocesses: []\nname: b\n".to_owned(), "name"),
    ] {
        let scene = Scene::new();
        let file = scene.file("bomb.yaml", text);
        let dewar = scene.command(["inspect"]);
        // A build that is not optimized takes several times as long.
        let seconds = if cfg!(debug_assertions) { 10 } else { 1 };
        let mut command = Command::new("prlimit");
        command.args([format!("--data={}", 64 << 20), format!("--cpu={seconds}")]);
        command.arg(dewar.get_program()).args(dewar.get_args()).arg(file);

        let told = scene.output(command);

        let shown = &told.stderr[..told.stderr.len().min(2000)];
        assert_eq!(told.status, Some(2), "{what}: {shown}");
        assert!(shown.contains(why), "{what}: {shown}");
    }
}

/// A task as Thermos itself stored it.
const THERMOS: &str = r#"{
    "name": "web", "max_failures": "2", "max_concurrency": 0, "finalization_wait": 5,
    "resources": {"cpu": "0.5", "ram": 134217728, "disk": 1073741824, "gpu": 0},
    "constraints": [{"order": ["fetch", "serve"]}],
    "processes": [
        {"name": "fetch", "cmdline": "echo fetched > page", "max_failures": 1, "daemon": 0,
         "ephemeral": 0, "min_duration": "1", "final": 0},
        {"name": "serve", "cmdline": "cat page", "max_failures": "3", "daemon": false,
         "ephemeral": "0", "min_duration": 1, "final": "false",
         "logger": {"destination": "file", "mode": "rotate",
                    "rotate": {"log_size": "1000", "backups": 2}}},
        {"name": "save", "cmdline": "cp page saved", "max_failures": 1, "daemon": 0,
         "ephemeral": 0, "min_duration": 1, "final": 1}
    ]
}"#;

/// The same, as somebody would write it.
const BY_HAND: &str = "
name: web
max_failures: 2
finalization_wait: 5s
resources: {cpu: 0.5, ram: 128MB, disk: 1GB}
constraints: [{order: [fetch, serve]}]
processes:
  - {name: fetch, cmdline: echo fetched > page, min_duration: 1}
  - name: serve
    cmdline: cat page
    max_failures: 3
    min_duration: 1000ms
    logger: {mode: rotate, rotate: {log_size: 1000, backups: 2}}
  - {name: save, cmdline: cp page saved, min_duration: 1, final: true}
";

/// S45
#[test]
fn the_json_of_thermos_means_what_it_says() {
    let scene = Scene::new();
    let id = ["--task-id", "web-1"];

    let stored = inspected(&scene, THERMOS, &id);

    assert_eq!(stored, inspected(&scene, BY_HAND, &id));
    let file = scene.file("stored.json", THERMOS);
    let mut command = scene.command(scene.run_arguments());
    command.args(["--output", "json", "--allow-unenforced"]).arg(file);
    let ended = scene.follow(command).finish();
    ended.assert("SUCCESS", &[("fetch", "S"), ("serve", "S"), ("save", "S")]);
    assert_eq!(scene.stdout("serve", 0), "fetched\n");
    assert_eq!(scene.read("saved"), "fetched\n");
}

/// S46
#[test]
fn templates_are_filled_in() {
    let scene = Scene::new();
    let lines = [
        "port {{thermos.ports[http]}}",
        "id {{thermos.task_id}}",
        "user {{thermos.user}}",
        "own {{name}} {{self.max_failures}}",
        "enclosing {{processes[0].name}}",
        "given {{greeting}}",
        "literal {{&x}}",
    ];
    let quoted = lines.iter().map(|line| format!("echo '{line}'")).collect::<Vec<_>>().join("; ");
    let named = p("web", quoted).max_failures(2);
    let arguments = ["-P", "http:8080", "-P", "spare:1", "-E", "greeting=a=b c"];

    let ended = scene.run_with(&task([named]), &arguments);

    ended.assert("SUCCESS", &[("web", "S")]);
    let user = ended.task["user"].as_str().unwrap();
    assert_eq!(
        scene.stdout("web", 0),
        format!(
            "port 8080\nid {}\nuser {user}\nown web 2\nenclosing web\ngiven a=b c\nliteral {{{{x}}}}\n",
            scene.id()
        )
    );
    assert_eq!(ended.task["ports"], json!({"http": 8080, "spare": 1}));
}

/// S46
#[test]
fn what_is_not_bound_is_named() {
    let scene = Scene::new();
    let text =
        "processes: [{name: a, cmdline: '{{thermos.ports[http]}} {{nobody}} {{mesos.instance}}'}]";

    let told = inspect(&scene, text, &[]);

    assert_eq!(told.status, Some(2), "{told:?}");
    for name in ["http", "nobody", "mesos.instance"] {
        assert!(told.stderr.contains(name), "{name}: {}", told.stderr);
    }
}

/// S47
#[test]
fn inspect_shows_the_plan() {
    let scene = Scene::new();
    let text = "
name: web
resources: {gpu: 1}
constraints: [{order: [fetch, build]}, {order: [fetch, test]}, {order: [f1, f2]}]
processes:
  - {name: test, cmdline: 'run {{thermos.task_id}}'}
  - {name: fetch, cmdline: get}
  - {name: build, cmdline: make}
  - {name: f2, cmdline: two, final: true}
  - {name: f1, cmdline: one, final: true}
";
    let json = inspected(&scene, text, &["--task-id", "web-1"]);
    let told = inspect(&scene, text, &["--task-id", "web-1"]);

    assert_eq!(
        json["plan"],
        json!({"regular": [["fetch"], ["test", "build"]], "finalizing": [["f1"], ["f2"]]})
    );
    assert_eq!(json["task"]["processes"][0]["cmdline"], "run web-1");
    assert_eq!(json["task"]["processes"][0]["minDuration"], "5s", "defaults are spelled out");
    assert!(json["unenforceable"][0].as_str().unwrap().contains("resources.gpu"), "{json}");
    assert_eq!(told.status, Some(0), "{told:?}");
    for part in ["fetch", "test, build", "f1", "f2", "resources.gpu", "run web-1"] {
        assert!(told.stdout.contains(part), "{part}: {}", told.stdout);
    }
    assert!(!scene.root().exists(), "inspect makes nothing");
}

/// S48
#[test]
fn status_tells_of_a_thousand_tasks() {
    const ALL: usize = 1000;
    let scene = Scene::of_many_files();
    scene.run(&task([p("a", "exit 3").max_failures(2)])).assert("FAILED", &[("a", "FF")]);
    scene.wait_until_led_by_nobody();
    multiply(&scene, ALL - 1);
    let status = |more: &[&str]| scene.dewar(&[&["status"], more].concat());

    let table = status(&[]);
    let json = status(&["--output", "json"]);

    assert_eq!(table.status, Some(0));
    assert_eq!(table.stdout.lines().count(), 1 + ALL);
    assert!(table.stdout.lines().skip(1).all(|line| line.contains("FAILED")), "{}", table.stdout);
    let tasks: Vec<Value> =
        json.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(tasks.len(), ALL);
    assert!(tasks.iter().all(|task| task["state"] == "TASK_STATE_FAILED"));

    let count = |more: &[&str]| status(more).stdout.lines().count().saturating_sub(1);
    assert_eq!(count(&["--only", "finished"]), ALL);
    assert_eq!(count(&[&format!(r"{}\.7..", scene.id())]), 100);
    assert_eq!(count(&[scene.id()]), 1, "a pattern matches a whole id");
    let none = status(&["--only", "active"]);
    assert_eq!((none.status, none.stdout.as_str()), (Some(1), ""), "{none:?}");
    assert_eq!(status(&["nothing-like-it"]).status, Some(1));
    assert_eq!(status(&["("]).status, Some(2));

    let one = format!("{}.7", scene.id());
    let verbose = status(&[&one, "-vvv"]);
    assert!(verbose.stdout.contains("exit status 3"), "{}", verbose.stdout);
    assert!(verbose.stdout.contains(scene.sandbox().to_str().unwrap()), "{}", verbose.stdout);
    let lines = |v: &str| status(&[&one, v]).stdout.lines().count();
    assert!(2 < lines("-v") && lines("-v") < lines("-vv"), "{}", verbose.stdout);
}

/// Makes more finished tasks of the one that there is.
fn multiply(scene: &Scene, more: usize) {
    let root = Root::new(scene.root()).unwrap();
    let task = TaskId::new(scene.id()).unwrap();
    let mut reader = Reader::open(&root, &Identity::runner(task)).unwrap();
    let mut records = Vec::new();
    reader.replay(|record| records.push(record)).unwrap();
    let finished = scene.root().join("tasks/finished");
    let accepted = fs::read(finished.join(scene.id())).unwrap();
    for number in 0..more {
        let task = TaskId::new(format!("{}.{number}", scene.id())).unwrap();
        root.create_checkpoint(&task).unwrap();
        let mut writer = Writer::create(&root, Identity::runner(task.clone())).unwrap();
        for record in &records {
            let mut kind = record.kind.clone().unwrap();
            if let Kind::Launch(launch) = &mut kind {
                launch.task_id = task.to_string();
            }
            let (boot_nanos, unix_nanos) = (record.boot_nanos, record.unix_nanos);
            writer.append(kind, Instant { boot_nanos, unix_nanos }).unwrap();
        }
        writer.flush().unwrap();
        fs::write(finished.join(task.as_str()), &accepted).unwrap();
    }
}

/// Attack 16: names make paths, and none leads out.
#[test]
fn a_name_is_never_a_path() {
    let scene = Scene::new();
    for name in ["..", "../x", "a/b", "/etc", ".hidden", "a\nb", "a\u{1}", "", &"n".repeat(244)] {
        let refused = scene.run(&task([p(name, "touch ran")]).with("name", "web"));

        assert_eq!(refused.status, Some(2), "{name:?} {refused}");
        assert!(refused.stderr.contains("processes[0].name"), "{name:?} {refused}");
    }
    for id in ["..", "../x", "a/b", "/etc", ".hidden", "a b", "a\nb", ""] {
        let option = format!("--task-id={id}");
        let refused = scene.run_with(&task([p("a", "touch ran")]), &[&option]);

        assert_eq!(refused.status, Some(2), "{id:?} {refused}");
    }
    assert!(!scene.sandbox().exists() && !scene.root().exists());

    scene.run(&task([p("a", "echo out")])).assert("SUCCESS", &[]);
    let traversal = format!("../{}", scene.id());
    for arguments in [
        &["tail", &traversal, "a"][..],
        &["tail", scene.id(), "../a"],
        &["tail", scene.id(), "a/0/../../a"],
        &["tail", scene.id(), ""],
        &["resume", &traversal],
        &["kill", &traversal],
        &["status", &traversal],
    ] {
        let told = scene.dewar(arguments);

        assert!(matches!(told.status, Some(1 | 2)), "{arguments:?} {told:?}");
        assert_eq!(told.stdout, "", "{arguments:?}");
    }
}

/// A task of one process from a command line: Thermos' simplerun.
#[test]
fn a_command_line_is_a_task() {
    let scene = Scene::new();
    let mut command = scene.command(scene.run_arguments());
    command.args([
        "--output", "json", "--name", "greet", "--", "printf", "%s|", "a b", "$HOME", "c'd",
    ]);

    let ended = scene.follow(command).finish();

    ended.assert("SUCCESS", &[("greet", "S")]);
    assert_eq!(scene.stdout("greet", 0), "a b|$HOME|c'd|", "arguments arrive as they were typed");
}

/// A task that is started in the background goes on by itself.
#[test]
fn a_detached_task_is_accepted_and_goes_on() {
    let scene = Scene::new();
    let gate = scene.gate("gate");
    let file = scene.file("task.json", task([p("a", gate.hold())]).text());
    let mut command = scene.command(scene.run_arguments());
    command.arg("--detach").arg(file);

    let told = scene.output(command);

    assert_eq!(told.status, Some(0), "{told:?}");
    assert_eq!(told.stdout, format!("{}\n", scene.id()));
    assert_eq!(scene.status()["state"], "TASK_STATE_ACTIVE");
    gate.open();
    scene.resume().finish().assert("SUCCESS", &[("a", "S")]);
}

/// Bad use is told, and nothing else happens.
#[test]
fn bad_use_is_told() {
    let scene = Scene::new();
    let missing = scene.path("missing.yaml");
    let missing = missing.to_str().unwrap();
    for arguments in [
        &["run"][..],
        &["run", missing],
        &["run", missing, "-P", "http"],
        &["inspect", missing],
        &["resume", "no-such-task"],
        &["kill"],
        &["nonsense"],
        &["kill", "x", "--wait", "soon"],
        &["read"],
    ] {
        let told = scene.output(scene.command(arguments));

        assert_eq!(told.status, Some(2), "{arguments:?} {told:?}");
        assert_eq!(told.stdout, "", "{arguments:?}");
        assert!(!told.stderr.is_empty(), "{arguments:?}");
    }
    for arguments in [&["kill", "no-such-task"][..], &["status", "no-such-task"], &["tail", "no"]] {
        let told = scene.dewar(arguments);

        assert_eq!((told.status, told.stdout.as_str()), (Some(1), ""), "{arguments:?} {told:?}");
    }
}

/// V42, V50: the exit statuses that the documents promise, beside those of tasks.
#[test]
fn each_command_exits_as_it_is_documented() {
    let scene = Scene::new();
    let file = scene.file("text", "no stream");
    let (file, nowhere) = (file.to_str().unwrap(), scene.path("nowhere"));
    let nowhere = nowhere.to_str().unwrap();

    for (status, arguments) in [
        (0, &["--help"][..]),
        (0, &["--version"]),
        (0, &["serve", "--help"]),
        (0, &["status", "--root", nowhere]),
        (1, &["status", "--root", nowhere, ".*"]),
        (1, &["read", nowhere]),
        (1, &["health", "--address", nowhere]),
        (2, &[]),
        (2, &["serve", "more"]),
        (2, &["status", "--only"]),
        (5, &["status", "--address", nowhere]),
        (5, &["read", file]),
        (5, &["stats", "--root", nowhere, "--at", "-1m"]),
        (5, &["status", "--root", file]),
    ] {
        let told = scene.output(scene.command(arguments));

        assert_eq!(told.status, Some(status), "{arguments:?} {told:?}");
        assert_eq!(told.stderr.is_empty(), status == 0, "{arguments:?} {told:?}");
    }
}

/// V56.
#[test]
fn a_stream_is_told_as_far_as_it_can_be_read_and_a_corrupt_one_is_a_failure() {
    let scene = Scene::new();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoints/v1");
    let read = |name: &str, more: &[&str]| {
        let mut command = scene.command(["read"]);
        command.arg(data.join(name)).args(more);
        scene.output(command)
    };
    let begun = ["t ACTIVE", "web", "FORKED", "\"save log\"  not run"];
    for (name, status, parts, said) in [
        ("runner", 0, &["t KILLED after 0.01s: killed on request", "1.25s"][..], "ends cleanly"),
        ("runner.torn", 0, &["t CLEANING", "RUNNING"], "a torn record of 11 bytes follows"),
        ("runner.unknown-kind", 5, &["t ACTIVE"], "up to byte 531; then record 3 opens run 0 of"),
        ("coordinator.web", 0, &["web\n", "run 0  SUCCESS", "run 1  FAILED"], "6 records in 409"),
        ("runner.flipped", 5, &begun, "5 records are good, up to byte 659; then "),
        ("runner.flipped", 5, &begun, "runner.flipped is corrupt at byte 659: the checksum"),
        ("runner.repeated", 5, &["RUNNING"], "701: record 5 is where record 6 should be"),
        ("runner.version-2", 5, &[], "has format version 2; this dewar knows 1"),
    ] {
        let told = read(name, &[]);

        assert_eq!(told.status, Some(status), "{told:?}");
        assert!(parts.iter().all(|part| told.stdout.contains(part)), "{name}: {told:?}");
        assert!(told.stderr.contains(said), "{name}: {told:?}");
        assert_eq!(parts.is_empty(), told.stdout.is_empty(), "{told:?}");
    }
    // A record of a later dewar is passed over; the golden stream goes on with one that needs what it replaced.
    let unknown = fs::read(data.join("runner.unknown-kind")).unwrap();
    let mut command = scene.command(["read"]);
    command.arg(scene.file("unknown", &unknown[..531]));
    let told = scene.output(command);
    assert_eq!(told.status, Some(0), "{told:?}");
    assert!(told.stderr.contains("3 records in 531 bytes; ends cleanly"), "{told:?}");
    let records = read("runner.flipped", &["--records"]);
    assert_eq!((records.status, records.stdout.lines().count()), (Some(5), 5), "{records:?}");
    let json = read("runner.flipped", &["--output", "json"]);
    let view: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((json.status, &view["state"]), (Some(5), &"TASK_STATE_ACTIVE".into()));
}

/// V56: each record is whole, and the second one cannot follow the first.
#[test]
fn a_stream_of_good_records_that_make_no_sense_says_where() {
    let scene = Scene::new();
    scene.run(&task([p("a", "true")])).assert("SUCCESS", &[("a", "S")]);
    let (root, id) = (Root::new(scene.path("made")).unwrap(), TaskId::new("t").unwrap());
    root.create().unwrap();
    root.create_checkpoint(&id).unwrap();
    let identity = Identity::runner(TaskId::new(scene.id()).unwrap());
    let mut reader = Reader::open(&Root::new(scene.root()).unwrap(), &identity).unwrap();
    let mut records = Vec::new();
    reader.replay(|record| records.push(record)).unwrap();
    let mut writer = Writer::create(&root, Identity::runner(id.clone())).unwrap();
    let last = records.len() - 1;
    for index in [0, last, last] {
        let at = Instant { boot_nanos: 1, unix_nanos: 1 };
        writer.append(records[index].kind.clone().unwrap(), at).unwrap();
    }
    writer.flush().unwrap();
    drop(writer);

    let mut command = scene.command(["read"]);
    command.arg(root.runner(&id));
    let told = scene.output(command);

    assert_eq!(told.status, Some(5), "{told:?}");
    assert!(
        told.stderr.starts_with("dewar: t/runner: 1 records are good, up to byte "),
        "{told:?}"
    );
    assert!(told.stderr.ends_with("; then record 1 enters Success from None\n"), "{told:?}");
}

/// T15.
#[test]
fn a_default_task_id_has_the_local_time() {
    let scene = Scene::new();
    let zone = ("TZ", "AHEAD-11:30");
    let hour = || {
        let date = Command::new("date").env(zone.0, zone.1).arg("+x-%Y%m%d-%H%M").output().unwrap();
        String::from_utf8(date.stdout).unwrap().trim().to_owned()
    };
    let mut command = scene.command(["run", "--name", "x", "--root"]);
    command.arg(scene.root()).args(["--", "true"]).env(zone.0, zone.1);

    let before = hour();
    let told = scene.output(command);
    let after = hour();

    assert_eq!(told.status, Some(0), "{told:?}");
    assert!(told.stdout.contains(&before) || told.stdout.contains(&after), "{before}: {told:?}");
}
