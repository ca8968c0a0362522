//! Commands that are given several roots: V3.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{Output, Scene, wait_until};

/// A scene with a second root.
struct Two {
    scene: Scene,
}

impl Two {
    fn new() -> Self {
        Self { scene: Scene::new() }
    }

    fn roots(&self) -> [PathBuf; 2] {
        [self.scene.root(), self.scene.path("other")]
    }

    /// An id of the scene.
    fn id(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.scene.id())
    }

    fn command(&self, arguments: &[&str], roots: &[&Path]) -> Command {
        let mut command = self.scene.command(arguments);
        command.args(roots.iter().flat_map(|root| [Path::new("--root"), root]));
        command
    }

    /// A command that is given both roots.
    #[track_caller]
    fn both(&self, arguments: &[&str]) -> Output {
        let [a, b] = self.roots();
        self.scene.output(self.command(arguments, &[&a, &b]))
    }

    /// Runs a command line as a task in a root, with more arguments for `dewar run`.
    #[track_caller]
    fn run(&self, root: &Path, suffix: &str, more: &[&str], line: &str) {
        let mut command = self.command(&["run", "--task-id", &self.id(suffix)], &[root]);
        command.args(more).args(["--", line]);
        let told = self.scene.output(command);
        assert_eq!(told.status, Some(0), "{told:?}");
        if more.is_empty() {
            let finished = root.join("tasks/finished").join(self.id(suffix));
            wait_until("it is filed away", || finished.exists());
        }
    }
}

/// The words of each line, without those of the heading.
fn rows(told: &Output) -> Vec<Vec<&str>> {
    told.stdout.lines().skip(1).map(|line| line.split_whitespace().collect()).collect()
}

fn json(told: &Output) -> Vec<Value> {
    told.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// V3, V30 ▲: tasks of the same id in two roots are two.
#[test]
fn tasks_of_several_roots_are_told_together_each_with_its_root() {
    let two = Two::new();
    let [a, b] = two.roots();
    two.run(&a, "1", &[], "true");
    two.run(&b, "2", &[], "true");
    two.run(&a, "same", &[], "true");
    two.run(&b, "same", &[], "false || true");

    let all = two.both(&["status"]);
    let lines = json(&two.both(&["status", "--output", "json"]));
    let used = json(&two.both(&["stats", &two.id("same"), "--output", "json"]));
    let table = two.both(&["stats", &two.id("same")]);

    assert_eq!((all.status, &*all.stderr), (Some(0), ""), "{all:?}");
    assert!(all.stdout.starts_with("ROOT ") && all.stdout.contains("  TASK "), "{all:?}");
    let expected: Vec<_> = [(&a, "1"), (&b, "2"), (&a, "same"), (&b, "same")]
        .map(|(root, suffix)| (text(root).to_owned(), two.id(suffix)))
        .into();
    let of_table: Vec<_> =
        rows(&all).iter().map(|row| (row[0].to_owned(), row[1].to_owned())).collect();
    let of =
        |line: &Value| [&line["root"], &line["taskId"]].map(|of| of.as_str().unwrap().to_owned());
    let of_json: Vec<_> = lines.iter().map(of).map(|[root, id]| (root, id)).collect();
    assert_eq!((&of_table, &of_json), (&expected, &expected));
    assert_eq!(used.iter().map(of).map(|[root, _]| root).collect::<Vec<_>>(), [text(&a), text(&b)]);
    let told: Vec<_> = rows(&table).iter().map(|row| row[0].to_owned()).collect();
    assert_eq!(told, [text(&a), text(&b)], "{table:?}");
}

/// What is told of one root is as if there could be no other.
#[test]
fn a_root_that_is_named_twice_counts_once() {
    let two = Two::new();
    let [a, b] = two.roots();
    two.run(&a, "1", &[], "true");
    symlink(&a, &b).unwrap();

    let once = two.scene.dewar(&["status"]);
    let twice = two.both(&["status"]);
    let json = json(&two.both(&["status", "--output", "json"]));

    let but_its_age = |told: &Output| {
        let words = rows(told).concat();
        [words[0], words[1], words[3]].map(str::to_owned)
    };
    assert_eq!(once.stdout.lines().next(), twice.stdout.lines().next());
    assert_eq!(but_its_age(&once), but_its_age(&twice));
    assert_eq!((json.len(), json[0].get("root")), (1, None), "{json:?}");
}

#[test]
fn a_root_that_cannot_be_read_hides_no_other() {
    let two = Two::new();
    let [a, b] = two.roots();
    two.run(&a, "1", &[], "echo told");
    let id = two.id("1");
    let nowhere = two.both(&["status", &id]);
    assert_eq!((nowhere.status, &*nowhere.stderr), (Some(0), ""), "one that is not there has none");
    fs::create_dir(&b).unwrap();
    fs::write(b.join("tasks"), "no directory").unwrap();

    for arguments in [
        &["status"][..],
        &["stats", &id],
        &["gc", "--max-tasks", "0", "--keep-at-least", "0s", "--dry-run"],
        &["remove", "--sandbox", &id],
    ] {
        let told = two.both(arguments);

        assert_eq!(told.status, Some(5), "{arguments:?} {told:?}");
        assert!(told.stdout.contains(&id), "{arguments:?} {told:?}");
        assert!(told.stderr.contains(text(&b)), "{arguments:?} {told:?}");
        if arguments[0] == "stats" {
            let log = two.both(&["logs", &id]);
            assert_eq!((log.status, &*log.stdout), (Some(0), "told\n"), "{log:?}");
            assert!(log.stderr.contains(text(&b)), "{log:?}");
        }
    }
    let told = two.both(&["kill", &id]);
    assert_eq!((told.status, &*told.stdout), (Some(5), ""), "it may be there: {told:?}");
}

/// Nothing is said twice of what stays as it is.
#[test]
fn a_root_that_cannot_be_read_is_told_once_while_that_lasts() {
    let two = Two::new();
    let [a, b] = two.roots();
    let (active, kept) = (b.join("tasks/active"), b.join("kept"));
    two.run(&a, "1", &["--detach"], "exec sleep 600");
    two.run(&b, "2", &[], "true");
    let break_it = || {
        fs::rename(&active, &kept).unwrap();
        fs::write(&active, "no directory").unwrap();
    };
    break_it();
    let all = two.id(".*");
    let arguments = ["stats", &all, "--watch", "10ms", "--output", "json"];
    let mut lines = two.scene.lines(two.command(&arguments, &[&a, &b]));
    let of_live = |line: &str| line.contains(&two.id("1"));

    // What is wrong is said before what is told: after each of these lines it would have been said once more.
    for _ in 0..5 {
        assert!(lines.next().is_some_and(|line| of_live(&line)));
    }
    let said = lines.stderr();
    assert_eq!((said.lines().count(), said.matches(text(&b)).count()), (1, 1), "{said}");

    fs::remove_file(&active).unwrap();
    fs::rename(&kept, &active).unwrap();
    while lines.next().is_some_and(|line| of_live(&line)) {}
    break_it();
    wait_until("it is told again", || lines.stderr() == said.repeat(2));
    two.both(&["kill", "--wait", "0s", &two.id("1")]);
    assert_eq!(lines.finish(), Some(5));
    assert_eq!(lines.stderr(), said.repeat(2));
}

/// A command that needs one task has it from the root that has it, and does not choose between two.
#[test]
fn a_task_that_is_in_two_roots_is_to_be_named_with_its_root() {
    let two = Two::new();
    let [a, b] = two.roots();
    for root in [&a, &b] {
        two.run(root, "same", &[], &format!("echo {}", text(root)));
    }
    two.run(&b, "1", &[], "echo one");
    let same = two.id("same");
    let why = format!(
        "dewar: task {same} is in {} and in {}: name one with --root\n",
        text(&a),
        text(&b)
    );

    for arguments in
        [&["explain", &same][..], &["logs", &same], &["wait", &same], &["update", &same]]
    {
        let told = two.both(arguments);
        assert_eq!((told.status, told.stderr.as_str()), (Some(2), &*why), "{arguments:?}");
        assert_eq!(told.stdout, "", "{arguments:?}");
    }
    for root in [&a, &b] {
        let log = two.scene.output(two.command(&["logs", &same], &[root]));
        assert_eq!(log.stdout, format!("{}\n", text(root)), "{log:?}");
    }
    let one = two.both(&["logs", &two.id("1")]);
    assert_eq!((one.status, &*one.stdout), (Some(0), "one\n"), "{one:?}");
    let waited = two.both(&["wait", &two.id("1")]);
    assert_eq!(waited.stdout, format!("{} SUCCESS\n", two.id("1")));
    for command in ["wait", "explain"] {
        let arguments = [command, &two.id("1"), "--output", "json"];
        let of = |told: Output| json(&told)[0].get("root").cloned();
        assert_eq!(of(two.both(&arguments)), Some(text(&b).into()), "{command}");
        let alone = two.scene.output(two.command(&arguments, &[&b]));
        assert_eq!(of(alone), None, "{command}: there is no other");
    }
    for (command, status) in [("logs", 1), ("explain", 2)] {
        let none = two.both(&[command, "none"]);
        let why = format!("there is no task none in {}, in {}", text(&a), text(&b));
        assert_eq!(none.status, Some(status), "{none:?}");
        assert!(none.stderr.contains(&why), "{none:?}");
    }
}

#[test]
fn a_pattern_is_of_tasks_in_all_roots() {
    let two = Two::new();
    let [a, b] = two.roots();
    two.run(&a, "1", &["--detach"], "exec sleep 600");
    two.run(&b, "2", &["--detach"], "exec sleep 600");
    let live = two.id(".*");
    let acted =
        [(&a, "1"), (&b, "2")].map(|(root, suffix)| (two.id(suffix), text(root).to_owned()));
    let told: Vec<_> = acted.iter().map(|(id, root)| format!("{id}  {root}\n")).collect();

    let top = two.both(&["top", "--once", "--interval", "10ms", "--sort", "name", &live]);
    let top_json = json(&two.both(&["top", "--interval", "10ms", "--output", "json", &live]));
    let killed = two.both(&["kill", "--wait", "0s", &live]);

    let names: Vec<_> =
        rows(&top).iter().map(|row| (row[1].to_owned(), row[0].to_owned())).collect();
    assert_eq!(names, acted, "{top:?}");
    let mut roots: Vec<_> = top_json.iter().map(|of| of["root"].as_str().unwrap()).collect();
    roots.sort_unstable();
    assert_eq!(roots, [text(&b), text(&a)], "{top_json:?}");
    assert_eq!((killed.status, killed.stdout), (Some(0), told.concat()));
    for ((id, _), root) in acted.iter().zip([&a, &b]) {
        let waited = two.both(&["wait", id]);
        assert_eq!(waited.status, Some(3), "{waited:?}");
        let finished = root.join("tasks/finished").join(id);
        wait_until("it is filed away", || finished.exists());
    }
    let again = two.both(&["kill", &live]);
    let why = format!(
        "no such task is active in {}, in {}; 2 of that name have ended",
        text(&a),
        text(&b)
    );
    assert_eq!(again.status, Some(1), "{again:?}");
    assert!(again.stderr.contains(&why), "{again:?}");
    let removed = two.both(&["remove", "--sandbox", &live]);
    assert_eq!((removed.status, removed.stdout), (Some(0), told.concat()));
    assert_eq!(rows(&two.both(&["status"])), [[""; 0]; 0]);
}

/// Each root is kept within the limits by itself.
#[test]
fn garbage_of_several_roots_is_collected_in_each() {
    let two = Two::new();
    let [a, b] = two.roots();
    for (root, suffix) in [(&a, "1"), (&a, "2"), (&b, "3"), (&b, "4")] {
        two.run(root, suffix, &[], "true");
    }
    let collect = ["gc", "--max-tasks", "1", "--keep-at-least", "0s"];

    let dry = two.both(&[&collect[..], &["--dry-run"]].concat());
    let json = json(&two.both(&[&collect[..], &["--dry-run", "--output", "json"]].concat()));
    let told = two.both(&collect);

    for output in [&dry, &told] {
        let lines: Vec<Vec<_>> =
            output.stdout.lines().map(|line| line.split("  ").collect()).collect();
        let gone: Vec<_> = lines.iter().map(|line| (line[0].to_owned(), line[3])).collect();
        assert_eq!(gone, [(two.id("1"), text(&a)), (two.id("3"), text(&b))], "{output:?}");
    }
    let roots: Vec<_> = json.iter().map(|of| of["root"].as_str().unwrap()).collect();
    assert_eq!(roots, [text(&a), text(&b)]);
    assert!(told.stderr.contains(&format!("1 task in {} removed, ", text(&b))), "{told:?}");
    let left = two.both(&["status"]);
    let left: Vec<_> = rows(&left).iter().map(|row| row[1].to_owned()).collect();
    assert_eq!(left, [two.id("2"), two.id("4")]);
}

/// A task is run in one root, and a daemon serves one.
#[test]
fn where_one_root_is_meant_a_second_one_is_refused() {
    let two = Two::new();

    for arguments in [&["run", "x.yaml"][..], &["resume", "x"], &["serve"]] {
        let told = two.both(arguments);

        assert_eq!((told.status, &*told.stdout), (Some(2), ""), "{arguments:?} {told:?}");
        let why = "'--root <DIR>' cannot be used multiple times";
        assert!(told.stderr.contains(why), "{arguments:?} {told:?}");
    }
}
