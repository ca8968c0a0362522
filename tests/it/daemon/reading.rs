//! Logs, files and usage, by a client of the daemon.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Instant;

use dewar::proto::read_logs_request::Start;
use dewar::proto::{
    FileType, GetUsageRequest, ListFilesRequest, ReadFileRequest, ReadLogsRequest, TaskState,
    WatchUsageRequest,
};
use nix::sys::stat::Mode;
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::node::Node;
use crate::support::{p, task, wait_until};

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// A request for the log of process `a`.
fn logs(node: &Node) -> ReadLogsRequest {
    ReadLogsRequest {
        task_id: node.scene.id().to_owned(),
        process: "a".to_owned(),
        ..ReadLogsRequest::default()
    }
}

/// All that is told, as (run, text), one for each run; the last cursor; and whether a gap was told.
fn read(node: &mut Node, request: ReadLogsRequest) -> Result<(Vec<(u32, String)>, String), Status> {
    let mut observer = node.observer();
    node.runtime.block_on(async {
        let mut stream = observer.read_logs(request).await?.into_inner();
        let (mut told, mut cursor) = (Vec::<(u32, String)>::new(), String::new());
        while let Some(chunk) = stream.message().await? {
            assert!(!chunk.is_after_gap && !chunk.data.is_empty() && chunk.data.len() <= 64 << 10);
            let text = String::from_utf8(chunk.data).unwrap();
            match told.last_mut() {
                Some((run, all)) if *run == chunk.run => {
                    assert_eq!(chunk.offset, all.len() as u64);
                    all.push_str(&text);
                }
                _ => told.push((chunk.run, text)),
            }
            cursor = chunk.cursor;
        }
        Ok((told, cursor))
    })
}

#[test]
fn logs_are_read_by_run_stream_and_start() {
    let mut node = Node::new();
    let command = "printf '1\\n2\\n3\\n'; echo run $DEWAR_RUN >&2; exit 1";
    let none = p("none", "true").with("logger", json!({"destination": "none"}));
    node.launch(&task([p("a", command).max_failures(2), none]));
    node.wait();
    let logs = logs(&node);
    let stderr = dewar::proto::LogStream::Stderr.into();
    for (request, told) in [
        (ReadLogsRequest { ..logs.clone() }, (1, "1\n2\n3\n")),
        (ReadLogsRequest { run: Some(0), stream: stderr, ..logs.clone() }, (0, "run 0\n")),
        (ReadLogsRequest { stream: stderr, ..logs.clone() }, (1, "run 1\n")),
        (ReadLogsRequest { follow: true, stream: stderr, ..logs.clone() }, (1, "run 1\n")),
    ] {
        let (all, _) = read(&mut node, request).unwrap();
        assert_eq!(all, [(told.0, told.1.to_owned())]);
    }
    for (start, text, offset) in [
        (Start::TailLines(1), "3\n", 4),
        (Start::TailBytes(3), "\n3\n", 3),
        (Start::Offset(2), "2\n3\n", 2),
    ] {
        let mut observer = node.observer();
        let request = ReadLogsRequest { start: Some(start), ..logs.clone() };
        let chunk = node.runtime.block_on(async {
            observer.read_logs(request).await.unwrap().into_inner().message().await.unwrap()
        });
        let chunk = chunk.unwrap();
        assert_eq!((chunk.data.as_slice(), chunk.offset), (text.as_bytes(), offset));
    }
    let of = |process: &str| ReadLogsRequest { process: process.to_owned(), ..logs.clone() };
    for (request, code, why) in [
        (of("b"), Code::NotFound, "NO_PROCESS"),
        (of("none"), Code::FailedPrecondition, "NOT_LOGGED"),
        (ReadLogsRequest { run: Some(2), ..logs.clone() }, Code::NotFound, "NO_RUN"),
        (ReadLogsRequest { stream: 7, ..logs.clone() }, Code::InvalidArgument, ""),
        (
            ReadLogsRequest { start: Some(Start::Cursor("x".to_owned())), ..logs.clone() },
            Code::InvalidArgument,
            "",
        ),
        (
            ReadLogsRequest { task_id: "no-such".to_owned(), ..logs.clone() },
            Code::NotFound,
            "NO_TASK",
        ),
    ] {
        let refused = read(&mut node, request).unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (code, why), "{refused}");
    }
}

/// S49: across rotations and runs, each line once; and again from a cursor in the middle.
#[test]
fn logs_are_followed_to_the_end_of_the_task() {
    let mut node = Node::new();
    let gate = node.scene.gate("gate");
    let logger = json!({"mode": "rotate", "rotate": {"log_size": 64, "backups": 100}});
    let command = format!(
        "for i in 1 2 3 4 5 6 7 8 9; do echo run $DEWAR_RUN line $i; sleep 0.02; done; {}; exit 1",
        gate.hold()
    );
    node.launch(&task([p("a", command).with("logger", logger).max_failures(2)]));
    let whole = |run: u32| -> String { (1..=9).map(|n| format!("run {run} line {n}\n")).collect() };
    let request = ReadLogsRequest { follow: true, run: None, ..logs(&node) };
    let mut observer = node.observer();

    let (first, cursor) = node.runtime.block_on(async {
        let mut stream = observer.read_logs(request.clone()).await.unwrap().into_inner();
        let (mut text, mut cursor) = (String::new(), String::new());
        while text.lines().count() < 9 {
            let chunk = stream.message().await.unwrap().unwrap();
            text.push_str(std::str::from_utf8(&chunk.data).unwrap());
            cursor = chunk.cursor;
        }
        (text, cursor)
    });
    assert_eq!(first, whole(0));
    // The second run waits, too.
    gate.open();
    gate.open();
    let rest = ReadLogsRequest { start: Some(Start::Cursor(cursor)), ..request };
    let (told, _) = read(&mut node, rest).unwrap();

    assert_eq!(told, [(1, whole(1))]);
    assert_eq!(node.wait().state(), TaskState::Failed);
}

/// Attack 48: followers that never read cost a bounded queue, and share what the kernel has few of.
#[test]
fn five_hundred_followers_that_do_not_read_hold_up_nobody() {
    let mut node = Node::new();
    let gate = node.scene.gate("gate");
    let command = format!("head -c 400000 /dev/zero | tr '\\0' x; {}; echo end", gate.hold());
    node.launch(&task([p("a", command)]));
    let log = node.scene.logs("a", 0).join("stdout");
    wait_until("output", || fs::metadata(&log).is_ok_and(|log| log.len() == 400_000));
    let request = ReadLogsRequest { follow: true, ..logs(&node) };
    let before = node.memory();
    let mut streams = Vec::new();
    for _ in 0..5 {
        let mut observer =
            dewar::proto::observer_service_client::ObserverServiceClient::new(node.channel());
        for _ in 0..100 {
            let stream = node.runtime.block_on(observer.read_logs(request.clone())).unwrap();
            streams.push(stream.into_inner());
        }
    }
    let grown = node.memory().saturating_sub(before);
    assert!(grown < 250_000, "the daemon grew by {grown} kB");
    let instances = fs::read_dir(format!("/proc/{}/fd", node.daemon.id()))
        .unwrap()
        .filter_map(|fd| fs::read_link(fd.unwrap().path()).ok())
        .filter(|target| target.as_os_str() == "anon_inode:inotify")
        .count();
    assert!(instances < 5, "{instances} inotify instances");

    // Within the deadline of any call.
    node.get();
    gate.open();
    let (told, _) = read(&mut node, request).unwrap();
    assert_eq!(told[0].1.len(), 400_004);
    assert!(told[0].1.ends_with("xend\n"));
    assert_eq!(node.wait().state(), TaskState::Success);
    // One of them reads after all. The others of its connection would have filled that.
    let mut stream = streams.pop().unwrap();
    drop(streams);
    let late = node.runtime.block_on(async {
        let mut bytes = 0;
        while let Some(chunk) = stream.message().await.unwrap() {
            bytes += chunk.data.len();
        }
        bytes
    });
    assert_eq!(late, 400_004);
}

/// Attack 13, 16 to 18, at the API.
#[test]
fn files_are_listed_and_read_within_the_sandbox_and_nowhere_else() {
    let mut node = Node::new();
    let (made, gate) = (node.scene.gate("made"), node.scene.gate("gate"));
    let files = "mkdir d; seq 1 40000 > d/long; ln -s /etc/passwd link; ln -s / root; mkfifo fifo; printf x > '%2e%2e'";
    node.launch(&task([p("a", format!("{files}; {}; {}", made.tell(), gate.hold()))]));
    made.wait();
    let task_id = node.scene.id().to_owned();
    let mut observer = node.observer();
    let mut list = |path: &str, page_size, page_token: String| {
        let (task_id, path) = (task_id.clone(), path.to_owned());
        let request = ListFilesRequest { task_id, path, page_size, page_token };
        node.runtime.block_on(observer.list_files(request)).map(|listed| listed.into_inner())
    };
    let mut names = Vec::new();
    let mut token = String::new();
    loop {
        let page = list("", 2, token).unwrap();
        assert!(page.entries.len() <= 2);
        names.extend(page.entries.into_iter().map(|entry| {
            let kind = entry.r#type();
            (entry.name, kind, entry.link_target)
        }));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let entry =
        |name: &str, kind, target: Option<&str>| (name.to_owned(), kind, target.map(str::to_owned));
    use FileType as T;
    assert_eq!(
        names,
        [
            entry("%2e%2e", T::Regular, None),
            entry(".logs", T::Directory, None),
            entry("d", T::Directory, None),
            entry("fifo", T::Unspecified, None),
            entry("link", T::Symlink, Some("/etc/passwd")),
            entry("root", T::Symlink, Some("/")),
        ]
    );
    for (path, code, why) in [
        ("..", Code::InvalidArgument, ""),
        ("/etc", Code::InvalidArgument, ""),
        ("d//x", Code::InvalidArgument, ""),
        ("root", Code::FailedPrecondition, "LINK"),
        ("root/etc", Code::FailedPrecondition, "LINK"),
        ("fifo", Code::FailedPrecondition, "NOT_DIRECTORY"),
        ("none", Code::NotFound, "NO_FILE"),
    ] {
        let refused = list(path, 0, String::new()).unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (code, why), "{path}");
    }
    let refused = list("", 1001, String::new()).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    let content: String = (1..=40_000).map(|n| format!("{n}\n")).collect();
    let mut read = |path: &str, offset, length| {
        let (task_id, path) = (task_id.clone(), path.to_owned());
        let request = ReadFileRequest { task_id, path, offset, length };
        node.runtime.block_on(async {
            let mut stream = observer.read_file(request).await?.into_inner();
            let mut told = Vec::new();
            while let Some(piece) = stream.message().await? {
                assert_eq!(piece.offset, offset + told.len() as u64);
                told.extend(piece.data);
            }
            Ok::<_, Status>(String::from_utf8(told).unwrap())
        })
    };
    assert!(read("d/long", 0, None).unwrap() == content);
    assert!(read("d/long", 100_000, Some(70_000)).unwrap() == content[100_000..170_000]);
    assert_eq!(read("d/long", 0, Some(0)).unwrap(), "");
    assert_eq!(read("d/long", u64::MAX, Some(u64::MAX)).unwrap(), "");
    assert_eq!(read("%2e%2e", 0, None).unwrap(), "x");
    for (path, code, why) in [
        ("", Code::FailedPrecondition, "NOT_FILE"),
        ("d", Code::FailedPrecondition, "NOT_FILE"),
        ("fifo", Code::FailedPrecondition, "NOT_FILE"),
        ("link", Code::FailedPrecondition, "LINK"),
        ("root/etc/passwd", Code::FailedPrecondition, "LINK"),
        ("../x", Code::InvalidArgument, ""),
        ("d/none", Code::NotFound, "NO_FILE"),
    ] {
        let refused = read(path, 0, None).unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (code, why), "{path}");
    }
    gate.open();
    assert_eq!(node.wait().state(), TaskState::Success);
}

/// Invariant 6: a sandbox may be any directory; who runs a task in it sees there what its user sees.
#[test]
fn a_sandbox_shows_no_more_than_its_user_may_see() {
    crate::support::need_root!();
    let mut node = Node::new();
    let sandbox = node.scene.sandbox();
    fs::create_dir(&sandbox).unwrap();
    fs::set_permissions(&sandbox, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(sandbox.join("secret"), "of root").unwrap();
    fs::set_permissions(sandbox.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let mut request = node.request(&task([p("a", "echo own > own; chmod 600 own")]));
    request.user = Some("nobody".to_owned());
    let mut runner = node.runner();
    node.runtime.block_on(runner.launch(request)).unwrap();
    assert_eq!(node.wait().state(), TaskState::Success);
    let mut observer = node.observer();
    let mut read = |path: &str| {
        let (task_id, path) = (node.scene.id().to_owned(), path.to_owned());
        let request = ReadFileRequest { task_id, path, ..ReadFileRequest::default() };
        node.runtime.block_on(async {
            let piece = observer.read_file(request).await?.into_inner().message().await?;
            Ok::<_, Status>(piece.unwrap_or_default().data)
        })
    };

    assert_eq!(read("own").unwrap(), b"own\n");
    assert_eq!(read("secret").unwrap_err().code(), Code::PermissionDenied);
    // Attack 13: what root put there is no log of the task.
    fs::remove_dir_all(node.scene.logs("a", 0)).unwrap();
    symlink("/etc", node.scene.logs("a", 0)).unwrap();
    let request = logs(&node);
    let refused = self::read(&mut node, request).unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::FailedPrecondition, "LOG_REFUSED")
    );
}

#[test]
fn usage_is_told_now_and_again_and_at_the_end() {
    let mut node = Node::new();
    let gate = node.scene.gate("gate");
    node.launch(&task([p("a", gate.hold()), p("b", "true")]));
    let task_id = node.scene.id().to_owned();
    let mut observer = node.observer();
    let get = GetUsageRequest { task_id: task_id.clone(), time: None, by_process: true };

    let now = node.runtime.block_on(observer.get_usage(get)).unwrap().into_inner().usage.unwrap();

    let names: Vec<_> = now.processes.iter().map(|process| process.name.as_str()).collect();
    assert_eq!((now.state(), names), (TaskState::Active, vec!["a", "b"]));

    let watch = |millis: i32| WatchUsageRequest {
        task_id: task_id.clone(),
        interval: Some(pbjson_types::Duration { seconds: 0, nanos: millis * 1_000_000 }),
        by_process: false,
    };
    let short = node.runtime.block_on(observer.watch_usage(watch(99))).unwrap_err();
    assert_eq!(short.code(), Code::InvalidArgument);
    node.runtime.block_on(async {
        let mut told = observer.watch_usage(watch(100)).await.unwrap().into_inner();
        for number in 0..3 {
            let usage = told.message().await.unwrap().unwrap().usage.unwrap();
            assert_eq!(usage.state(), TaskState::Active);
            // Of what was told before, whoever else has the task read.
            let rate = usage.sample.and_then(|sample| sample.cpu?.rate);
            assert_eq!(rate.is_some(), number > 0, "{rate:?}");
        }
        // The end is told as it comes, not an hour later.
        let hour = Some(pbjson_types::Duration { seconds: 3600, nanos: 0 });
        let rare = WatchUsageRequest { interval: hour, ..watch(100) };
        let mut rare = observer.watch_usage(rare).await.unwrap().into_inner();
        rare.message().await.unwrap().unwrap();
        gate.open();
        for stream in [&mut told, &mut rare] {
            let mut last = None;
            while let Some(usage) = stream.message().await.unwrap() {
                last = usage.usage;
            }
            let last = last.unwrap();
            assert_eq!((last.state(), last.sample), (TaskState::Success, None));
        }
    });
}

/// Attack 50: whoever else watches, a task is read once for each interval.
#[test]
fn watchers_of_one_interval_are_told_the_same_samples() {
    let mut node = Node::new();
    let gate = node.scene.gate("gate");
    node.launch(&task([p("a", gate.hold())]));
    let request = WatchUsageRequest {
        task_id: node.scene.id().to_owned(),
        interval: Some(pbjson_types::Duration { seconds: 0, nanos: 200_000_000 }),
        by_process: false,
    };
    let mut observer = node.observer();
    let start = Instant::now();
    let samples = node.runtime.block_on(async {
        let mut streams = Vec::new();
        for _ in 0..20 {
            streams.push(observer.watch_usage(request.clone()).await.unwrap().into_inner());
        }
        let (mut firsts, mut times) = (BTreeSet::new(), BTreeSet::new());
        for stream in &mut streams {
            // The first one comes at once, and may serve others as well.
            firsts.insert(stream.message().await.unwrap().unwrap().usage.unwrap().time);
        }
        for _ in 0..3 {
            for stream in &mut streams {
                times.insert(stream.message().await.unwrap().unwrap().usage.unwrap().time);
            }
        }
        times.difference(&firsts).count()
    });
    // At both ends there may be one more.
    let taken = start.elapsed();
    let most = taken.as_millis() / 200 + 2;
    assert!(samples as u128 <= most, "60 answers were of {samples} samples in {taken:?}");
    gate.open();
    node.wait();
}

/// A pipe in the place of a file does not block the call: it would wait for a writer for ever.
#[test]
fn a_pipe_in_the_sandbox_blocks_no_call() {
    let mut node = Node::new();
    fs::create_dir(node.scene.sandbox()).unwrap();
    nix::unistd::mkfifo(&node.scene.sandbox().join("fifo"), Mode::S_IRWXU).unwrap();
    node.launch(&task([p("a", "true")]));
    let request = ReadFileRequest {
        task_id: node.scene.id().to_owned(),
        path: "fifo".to_owned(),
        ..ReadFileRequest::default()
    };
    let mut observer = node.observer();

    let refused = node.runtime.block_on(observer.read_file(request)).unwrap_err();

    assert_eq!(reason(&refused), "NOT_FILE");
}
