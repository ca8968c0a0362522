//! The page: by plain HTTP, as a browser or a program would ask.

mod attacks;
mod disk;
mod http;
pub(super) mod metrics;

use std::fs;
use std::time::Instant;

use dewar::proto::record::Kind;
use dewar::proto::{GetUsageRequest, Launch, LaunchRequest, TaskState, TaskView};
use dewar::state::{Event, Phase};
use serde_json::Value;

use super::node::Node;
use crate::support::{p, task, wait_until};
use http::{Answer, Events};

/// A node with the page on a port of its own.
fn web(arguments: &[&str]) -> Node {
    Node::with(&[&["--web", "127.0.0.1:0"], arguments].concat())
}

impl Node {
    /// The port of the page.
    fn port(&self) -> u16 {
        let log = fs::read_to_string(self.scene.path("daemon.log")).unwrap();
        let address = log.rsplit_once(" web=").unwrap().1;
        let address = address.split_whitespace().next().unwrap();
        address.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    /// The answer to GET.
    #[track_caller]
    fn page(&self, target: &str) -> Answer {
        http::get(self.port(), target)
    }

    /// The answer to GET, which is no error.
    #[track_caller]
    fn found(&self, target: &str) -> Answer {
        let answer = self.page(target);
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
        answer
    }

    #[track_caller]
    fn json(&self, target: &str) -> Value {
        let answer = self.found(target);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// What a page tells as it changes.
    #[track_caller]
    fn events(&self, target: &str) -> Events {
        Events::open(self.port(), target)
    }
}

/// A task that has run to its end: two processes and a finalizer, one of which was tried twice.
fn ended(node: &mut Node) -> TaskView {
    let b = "echo out; echo err >&2; printf 'hello ä\\n' > note; mkdir -p dir; test -e again || { touch again; exit 3; }";
    let task = task([p("a", "true"), p("b", b).max_failures(3), p("tidy", "true").finalizer()]);
    let task =
        task.order(["a", "b"]).with("resources", serde_json::json!({"cpu": 1, "ram": 134217728}));
    let mut request = node.request(&task);
    request.labels = [("job".to_owned(), "web".to_owned())].into();
    request.ports = [("http".to_owned(), 8080)].into();
    request.allow_unenforced = true;
    let mut runner = node.runner();
    node.runtime.block_on(runner.launch(request)).unwrap();
    node.wait()
}

/// V40: every address of Thermos' observer has an answer, and what it is of.
#[test]
fn every_page_is_whole_without_a_script() {
    let mut node = web(&[]);
    let view = ended(&mut node);
    assert_eq!(view.state(), TaskState::Success);
    let id = node.scene.id().to_owned();
    let html = |target: &str, parts: &[&str]| {
        let answer = node.found(&target.replace("ID", &id));
        assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"), "{target}");
        let text = answer.text();
        for part in parts {
            let part = part.replace("ID", &id);
            assert!(text.contains(&part), "{target}: no {part:?} in {text}");
        }
        assert_eq!(text.matches("<main").count(), 1);
        text
    };

    html("/", &["ID", "SUCCESS", "job=web", "Finished", "role=\"search\""]);
    let page = html(
        "/task/ID",
        &[
            "SUCCESS",
            "<svg",
            "finalizer",
            "http=8080",
            "job=web",
            "ram=134217728",
            "CLEANING",
            "/process/ID/b",
            "/browse/ID",
            "/logs/ID/b/1/stderr",
        ],
    );
    assert!(!page.contains("data-live"), "what is over does not change");
    let runs = html("/process/ID/b", &["exit status 3", "test -e again", "FAILED", "SUCCESS"]);
    assert!(runs.find("/b/1/stdout") < runs.find("/b/0/stdout"), "the newest run comes first");
    html("/rawtask/ID", &["max_failures", "finalization_wait"]);
    html("/logs/ID/b/0/stdout", &["out\n", "exit status 3", "Run 1"]);
    html("/logs/ID/b/0/stderr", &["err\n"]);
    html("/logs/ID/a/0/stdout", &["Nothing was written."]);
    html("/browse/ID", &["note", "dir/", ".logs/", "-rw-r--r--"]);
    html("/browse/ID/", &["note"]);
    html("/browse/ID/.logs/b", &["0/", "1/"]);
    html("/file/ID/note", &["hello ä"]);
    let download = node.found(&format!("/download/{id}/note"));
    assert_eq!(download.text(), "hello ä\n");
    assert_eq!(download.header("content-type"), Some("application/octet-stream"));
    assert!(download.header("content-disposition").unwrap().starts_with("attachment;"));
    let log = node.found(&format!("/logs/{id}/b/0/stdout?download"));
    assert_eq!(
        (log.text().as_str(), log.header("content-type")),
        ("out\n", Some("application/octet-stream"))
    );
    assert_eq!(node.found("/health").text(), "ok\n");
    for (asset, kind) in [
        ("dewar.css", "text/css; charset=utf-8"),
        ("dewar.js", "text/javascript; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ] {
        assert_eq!(node.found(&format!("/assets/{asset}")).header("content-type"), Some(kind));
    }
    assert_eq!(node.page("/favicon.ico").status, 308);
    for nothing in [
        "/nothing",
        "/task",
        "/task/ID/more",
        "/process/ID/none",
        "/logs/ID/b/9/stdout",
        "/logs/ID/b/x/stdout",
        "/logs/ID/b/-1/stdout",
        "/logs/ID/b/0/log",
        "/file/ID/none",
        "/j/process/ID/b/7",
        "/j/process/ID/b/-1",
        "/j/task_ids/odd",
    ] {
        assert_eq!(node.page(&nothing.replace("ID", &id)).status, 404, "{nothing}");
    }
}

/// V33, V34, V36: the same for programs.
#[test]
fn every_message_is_told_as_json() {
    let mut node = web(&[]);
    ended(&mut node);
    let id = node.scene.id().to_owned();
    let json = |target: &str| node.json(&target.replace("ID", &id));

    assert_eq!(json("/j/task_ids")["task_ids"], serde_json::json!([id]));
    let finished = json("/j/task_ids/finished");
    assert_eq!((&finished["task_count"], &finished["type"]), (&1.into(), &"finished".into()));
    assert_eq!(json("/j/task_ids/active")["task_ids"], serde_json::json!([]));
    assert_eq!(json("/j/task_id_count"), serde_json::json!({"active": 0, "finished": 1, "all": 1}));
    assert_eq!(json("/j/task/ID")["state"], "TASK_STATE_SUCCESS");
    let tasks = json("/j/task?task_id=ID,unknown");
    assert_eq!(tasks.as_object().unwrap().keys().collect::<Vec<_>>(), [&id]);
    assert_eq!(json("/j/process/ID")["b"]["runs"].as_array().unwrap().len(), 2);
    assert_eq!(json("/j/process/ID/b")["state"], "PROCESS_STATE_SUCCESS");
    assert_eq!(json("/j/process/ID/b/0")["exitCode"], 3);
    assert_eq!(json("/j/processes?task_id=ID")[&id]["a"]["name"], "a");
    assert_eq!(json("/j/usage/ID")["taskId"], id.as_str());
    assert_eq!(json("/j/explain/ID")["processes"][1]["process"], "b");
    let host = nix::unistd::gethostname().unwrap();
    assert_eq!(json("/j/node")["hostname"], host.to_str().unwrap());
    assert_eq!(json("/j/node")["taskCounts"]["TASK_STATE_SUCCESS"], "1");
    let raw = http::ask(
        node.port(),
        &format!(
            "GET /rawtask/{id} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\n\r\n"
        ),
    );
    let raw: Value = serde_json::from_slice(&raw.body).unwrap();
    assert_eq!(raw["processes"][0]["name"], "a");
    let refused = node.page("/j/task/unknown");
    let told: Value = serde_json::from_slice(&refused.body).unwrap();
    assert_eq!((refused.status, &told["error"]), (404, &"there is no task \"unknown\"".into()));
}

/// V41: the size, from a place, to the end, beyond it; W3: capped, and no character is cut.
#[test]
fn logs_and_files_are_read_piece_by_piece() {
    let mut node = web(&[]);
    let write = "printf 'abc\\nä\\n'; printf '0123456789' > digits; : > empty; truncate -s 8E huge 2>/dev/null || truncate -s 1T huge; exit 0";
    node.launch(&task([p("a", write)]));
    node.wait();
    let id = node.scene.id().to_owned();
    let data = |target: &str| {
        let told = node.json(&target.replace("ID", &id));
        let number = |name: &str| told[name].as_u64().unwrap();
        (
            number("offset"),
            number("length"),
            told["data"].as_str().unwrap().to_owned(),
            number("next"),
        )
    };
    let text = |offset, length, data: &str, next| (offset, length, data.to_owned(), next);

    for (query, expected) in [
        ("", text(7, 0, "", 7)),
        ("?offset=-1", text(7, 0, "", 7)),
        ("?offset=0&length=-1", text(0, 7, "abc\nä\n", 7)),
        ("?offset=2&length=2", text(2, 2, "c\n", 4)),
        ("?offset=3&length=2", text(3, 1, "\n", 4)),
        ("?offset=4&length=999999999999", text(4, 3, "ä\n", 7)),
        ("?offset=99", text(99, 0, "", 99)),
    ] {
        assert_eq!(data(&format!("/logdata/ID/a/0/stdout{query}")), expected, "{query}");
    }
    assert_eq!(data("/filedata/ID/digits"), text(10, 0, "", 10));
    assert_eq!(data("/filedata/ID/digits?offset=8&length=9"), text(8, 2, "89", 10));
    assert_eq!(data("/filedata/ID/empty?offset=0"), text(0, 0, "", 0));
    for bad in ["offset=-2", "offset=x", "offset=0&length=-7", "offset=18446744073709551616"] {
        assert_eq!(node.page(&format!("/logdata/{id}/a/0/stdout?{bad}")).status, 400, "{bad}");
    }

    // Attack 18: nothing is made of a length but what is read.
    let before = node.memory();
    let (_, length, ..) =
        data("/filedata/ID/huge?offset=4611686018427387904&length=9223372036854775807");
    assert_eq!(
        length,
        if fs::metadata(node.scene.sandbox().join("huge")).unwrap().len() > 1 << 62 {
            16 << 20
        } else {
            0
        }
    );
    assert_eq!(data("/filedata/ID/huge?offset=0&length=100").1, 100);
    node.found(&format!("/file/{id}/huge?offset=1099511627000"));
    assert!(node.memory() < before + (200 << 10), "{} kB, before {before}", node.memory());

    let range = |range: &str| {
        let ask = format!(
            "GET /download/{id}/digits HTTP/1.0\r\nHost: localhost\r\nRange: {range}\r\n\r\n"
        );
        let answer = http::ask(node.port(), &ask);
        (
            answer.status,
            answer.header("content-range").unwrap_or_default().to_owned(),
            answer.text(),
        )
    };
    let part = |status, range: &str, text: &str| (status, range.to_owned(), text.to_owned());
    assert_eq!(range("bytes=2-4"), part(206, "bytes 2-4/10", "234"));
    assert_eq!(range("bytes=-2"), part(206, "bytes 8-9/10", "89"));
    assert_eq!(range("bytes=0-1,4-5"), part(200, "", "0123456789"));
    assert_eq!(range("bytes=10-").0, 416);
}

/// What is looked at tells itself what happens: no page is asked for again.
#[test]
fn pages_change_as_things_happen() {
    let mut node = web(&[]);
    let mut list = node.events("/");
    assert!(list.next("page").contains("No tasks."));
    let gate = node.scene.gate("gate");
    let cmdline = format!("echo first; {}; echo last", gate.hold());
    node.launch(&task([p("a", cmdline)]));
    let id = node.scene.id().to_owned();

    list.until("page", |page| page.contains("1 ACTIVE"));
    let page = node.found(&format!("/task/{id}")).text();
    assert!(page.contains("data-live"));
    let mut one = node.events(&format!("/task/{id}"));
    one.until("page", |page| page.contains("RUNNING"));
    let mut process = node.events(&format!("/process/{id}/a"));
    process.until("page", |page| page.contains("RUNNING"));
    wait_until("output", || {
        node.found(&format!("/logs/{id}/a/0/stdout")).text().contains("first\n")
    });
    let shown = node.found(&format!("/logs/{id}/a/0/stdout")).text();
    let cursor = shown.split("data-follow=\"").nth(1).unwrap().split('"').next().unwrap();
    let mut log = node.events(&format!("/logs/{id}/a/0/stdout?cursor={cursor}"));

    gate.open();

    assert_eq!(log.next("log"), "last\n");
    log.next("end");
    one.until("page", |page| page.contains("SUCCESS"));
    one.next("end");
    process.next("end");
    list.until("page", |page| page.contains("1 SUCCESS"));

    let mut whole = node.events(&format!("/logs/{id}/a/0/stdout"));
    assert_eq!(whole.until("log", |_| true), "first\nlast\n");
    whole.next("end");
    assert!(!node.found(&format!("/logs/{id}/a/0/stdout")).text().contains("data-follow"));
}

/// A task of which something is known by now is drawn, each figure that this host accounts for and no other.
#[test]
fn charts_show_what_this_host_accounts_for() {
    let mut node = web(&["--sample-interval", "100ms", "--sample-history", "10m"]);
    let (told, gate) = (node.scene.gate("told"), node.scene.gate("gate"));
    let works = "dd if=/dev/zero of=zeros bs=64k count=16 conv=fsync 2> /dev/null";
    node.launch(&task([p("a", format!("{works}; {}; {}", told.tell(), gate.hold()))]));
    told.wait();
    let id = node.scene.id().to_owned();
    let request = GetUsageRequest { task_id: id.clone(), ..GetUsageRequest::default() };
    let mut observer = node.observer();
    let usage = node.runtime.block_on(observer.get_usage(request)).unwrap().into_inner();
    let sample = usage.usage.unwrap().sample.unwrap();
    let known = [
        ("CPU", true),
        ("Memory", sample.memory.is_some()),
        ("Disk I/O", sample.io.is_some()),
        ("Pressure", sample.pressure.is_some()),
    ];

    let page = || node.found(&format!("/task/{id}")).text();
    let has = |page: &str, title: &str| page.contains(&format!("<h3>{title}</h3>"));
    wait_until("all that is known is drawn", || {
        let page = page();
        known.iter().all(|&(title, is_known)| !is_known || has(&page, title))
    });
    let page = page();

    for (title, is_known) in known {
        assert_eq!(has(&page, title), is_known, "{title}");
    }
    gate.open();
    node.wait();
}

/// What is looked for is found by a part of its id, by a pattern, by a label and by its state.
#[test]
fn tasks_are_searched_and_told_by_state() {
    let mut node = web(&[]);
    let gate = node.scene.gate("gate");
    let mut runner = node.runner();
    for (name, cmdline) in
        [("one", "true".to_owned()), ("two", "exit 1".to_owned()), ("three", gate.hold())]
    {
        let request = LaunchRequest {
            task_id: Some(format!("{}.{name}", node.scene.id())),
            sandbox: None,
            labels: [("name".to_owned(), name.to_owned())].into(),
            ..node.request(&task([p("a", cmdline)]))
        };
        node.runtime.block_on(runner.launch(request)).unwrap();
    }
    wait_until("two have ended", || node.json("/j/task_id_count")["finished"] == 2);
    let scene = node.scene.id().to_owned();
    let shown = |query: &str| {
        let text = node.found(&format!("/{query}")).text();
        let rows = text.match_indices("<tr id=\"task-").map(|(at, _)| &text[at..]);
        let ids =
            rows.map(|row| row.split('"').nth(1).unwrap().rsplit('.').next().unwrap().to_owned());
        ids.collect::<Vec<_>>().join(" ")
    };

    assert_eq!(shown("").split(' ').next(), Some("three"), "what lives comes first");
    assert_eq!(shown("?state=active"), "three");
    assert_eq!(shown("?state=failed"), "two");
    assert_eq!(shown("?state=corrupt"), "");
    assert_eq!(shown("?q=.thr"), "three");
    assert_eq!(shown(&format!("?q=%5E{scene}.t.%2Be%24")), "three", "{scene}");
    assert_eq!(shown("?label=name%3Dtwo"), "two");
    assert_eq!(shown("?label=name"), "");
    let first = node.found("/?state=finished&page_size=1").text();
    let next = first.split("rel=\"next\" href=\"").nth(1).unwrap().split('"').next().unwrap();
    let pages = [shown("?state=finished&page_size=1"), shown(&next.replace("&amp;", "&")[1..])];
    assert!(pages == ["one", "two"] || pages == ["two", "one"], "{pages:?}");
    assert_eq!(node.page("/?q=%28").status, 400);
    assert_eq!(
        node.page("/?q=(.%7B1000%7D)%7B1000%7D").status,
        400,
        "a short pattern of a million states"
    );
    assert_eq!(shown(&format!("?q={}", "x%3F".repeat(300))), shown(""), "a long one of a few");
    assert_eq!(node.page("/?page_token=x").status, 400);
    assert_eq!(node.page("/?page_size=501").status, 400);
    assert_eq!(node.page("/?state=odd").status, 400);
    gate.open();
    wait_until("all have ended", || node.json("/j/task_id_count")["active"] == 0);
}

/// Attack 55: a page shows some of them, and is cheap.
#[test]
fn of_ten_thousand_tasks_a_page_shows_some_at_once() {
    const TASKS: usize = 10_000;
    let mut node = Node::of(crate::support::Scene::of_many_files(), &["--web", "127.0.0.1:0"]);
    node.launch(&task([p("a", "true")]));
    node.wait();
    node.kill();
    let root = dewar::checkpoint::Root::new(node.scene.root()).unwrap();
    let id = dewar::task::TaskId::new(node.scene.id()).unwrap();
    let launch = dewar::launch::header(&root, &id).unwrap();
    for number in 1..TASKS {
        finished(&root, &launch, &format!("{}.{number:05}", node.scene.id()));
    }
    node.serve_again();

    let first = node.found("/");
    let begun = Instant::now();
    let again = node.found("/");
    let took = begun.elapsed();

    assert!(first.text().contains("10000 SUCCESS"), "{:.4000}", first.text());
    assert_eq!(again.text().matches("<tr id=\"task-").count(), 50);
    assert!(again.body.len() < 100 << 10, "{} bytes", again.body.len());
    eprintln!("page of {TASKS} tasks: {took:?}, {} bytes", again.body.len());
    // Ten times of what it takes a program that was not optimized, on a machine that does other things as well.
    assert!(took.as_secs() < 2, "{took:?}");
    let all = node.json("/j/task_ids/finished?page_size=1000");
    assert_eq!(all["task_ids"].as_array().unwrap().len(), 1000);
    assert_eq!(all["task_count"], TASKS);
}

/// A task that has ended, as its files would be.
fn finished(root: &dewar::checkpoint::Root, like: &Launch, id: &str) {
    let launch = Launch { task_id: id.to_owned(), ..like.clone() };
    let task = dewar::task::TaskId::new(id).unwrap();
    root.create_checkpoint(&task).unwrap();
    let stream = dewar::checkpoint::Identity::runner(task.clone());
    let mut writer = dewar::checkpoint::Writer::create(root, stream).unwrap();
    let now = dewar::checkpoint::Instant { boot_nanos: 1, unix_nanos: launch.accepted_unix_nanos };
    use Phase as P;
    let events = [P::Active, P::Cleaning, P::Finalizing, P::Success]
        .map(|phase| Event::Entered(phase).to_kind());
    for kind in std::iter::once(Kind::Launch(launch.clone())).chain(events) {
        writer.append(kind, now).unwrap();
    }
    writer.sync().unwrap();
    let place = root.task(dewar::checkpoint::paths::Place::Finished, &task);
    fs::write(place, serde_json::to_vec(&launch).unwrap()).unwrap();
}

/// The page is off if it is said so, and a port that is taken keeps no daemon from serving unless it was named.
#[test]
fn the_page_can_be_off_and_is_refused_where_it_cannot_be() {
    let node = Node::with(&["--web", "off"]);
    let log = fs::read_to_string(node.scene.path("daemon.log")).unwrap();
    assert!(!log.contains(" web="), "{log}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (web, status, why) in [
        (address.as_str(), 5, format!("--web {address}: listen: Address already in use")),
        ("0.0.0.0:1338", 2, "0.0.0.0:1338 is no loopback address".to_owned()),
        ("localhost", 2, "or `off`".to_owned()),
    ] {
        let mut command = node.scene.command(["serve", "--web", web, "--root"]);
        command.arg(node.scene.path("other")).arg("--address").arg(node.scene.path("other.sock"));
        let told = node.scene.output(command);
        assert_eq!(told.status, Some(status), "{told:?}");
        assert!(told.stderr.contains(&why), "{told:?}");
    }
}
