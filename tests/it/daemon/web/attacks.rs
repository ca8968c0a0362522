//! What must not be told, done, or taken for something else.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::process::Command;

use dewar::proto::LaunchRequest;
use dewar::proto::launch_request::Source;

use super::super::node::Node;
use super::http::{self, Answer};
use super::web;
use crate::support::{need_root, p, task, wait_until};

const NOBODY: u32 = 65534;

/// Addresses of a task: of pages, of files, for programs.
const OF_TASK: [&str; 17] = [
    "/task/ID",
    "/rawtask/ID",
    "/process/ID/a",
    "/logs/ID/a/0/stdout",
    "/logs/ID/a/0/stdout?download",
    "/logdata/ID/a/0/stdout?offset=0",
    "/browse/ID",
    "/browse/ID/.logs",
    "/file/ID/secret",
    "/filedata/ID/secret?offset=0",
    "/download/ID/secret",
    "/j/task/ID",
    "/j/process/ID",
    "/j/process/ID/a",
    "/j/usage/ID",
    "/j/usage_history/ID",
    "/j/processes?task_id=ID",
];

/// The answer to GET as another user.
#[track_caller]
pub(super) fn as_nobody(port: u16, target: &str) -> Answer {
    let script = r#"exec 3<>"/dev/tcp/127.0.0.1/$0"; printf 'GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n' "$1" >&3; cat <&3"#;
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "/bin/bash", "-c", script]);
    let told = command.arg(port.to_string()).arg(target).output().unwrap();
    assert!(told.status.success(), "{told:?}");
    Answer::parse(&told.stdout)
}

fn secret(node: &mut Node) -> String {
    node.launch(&task([p("a", "echo secret; echo secret > secret")]));
    node.wait();
    node.scene.id().to_owned()
}

/// Attacks 53, 54: loopback is no login. What another user has is answered exactly like what is not there.
#[test]
fn each_user_sees_their_own_tasks_and_nothing_tells_of_others() {
    need_root!();
    let mut node = web(&["--socket-mode", "666"]);
    let id = secret(&mut node);
    let port = node.port();
    let unknown = "x".repeat(id.len());
    for target in OF_TASK {
        let [own, other] = [&id, &unknown].map(|id| as_nobody(port, &target.replace("ID", id)));
        assert!(!own.text().contains("secret"), "{target}: {own:?}");
        let hidden = |answer: &Answer, id: &str| {
            let head: Vec<_> =
                answer.head.lines().filter(|line| !line.starts_with("date:")).collect();
            (answer.status, head.join("\n"), answer.text().replace(id, "ID"))
        };
        assert_eq!(hidden(&own, &id), hidden(&other, &unknown), "{target}");
        if target != OF_TASK[16] {
            assert_eq!(own.status, 404, "{target}");
        }
        assert_eq!(node.page(&target.replace("ID", &id)).status, 200, "{target}");
    }
    for target in ["/", "/?q=.", "/j/task_ids", "/j/task_id_count", "/j/node"] {
        let told = as_nobody(port, target);
        assert_eq!(told.status, 200, "{target}");
        // The node tells its directory, which is called after the task here.
        let text = told.text().replace(node.scene.root().to_str().unwrap(), "ROOT");
        assert!(!text.contains(&id) && !text.contains("SUCCESS"), "{target}: {text}");
    }

    let own = format!("{id}.own");
    let request = LaunchRequest {
        task_id: Some(own.clone()),
        source: Some(Source::TaskFile(task([p("a", "echo mine")]).with("user", "nobody").text())),
        ..LaunchRequest::default()
    };
    let mut runner = node.runner();
    node.runtime.block_on(runner.launch(request)).unwrap();
    wait_until("its output", || {
        as_nobody(port, &format!("/logs/{own}/a/0/stdout")).text().contains("mine\n")
    });
    let told = as_nobody(port, "/").text();
    assert!(told.contains(&own) && told.matches("<tr id=\"task-").count() == 1, "{told}");
    wait_until("its end", || node.json("/j/task_id_count")["active"] == 0);
}

/// Members of a group may see everything, and do no more than before.
#[test]
fn an_observer_sees_all_and_ends_nothing() {
    need_root!();
    let group = nix::unistd::User::from_uid(NOBODY.into()).unwrap().unwrap().gid;
    let group = nix::unistd::Group::from_gid(group).unwrap().unwrap().name;
    let mut node = web(&["--socket-mode", "666", "--observer-group", &group]);
    let gate = node.scene.gate("gate");
    node.launch(&task([p("a", gate.hold())]));
    let id = node.scene.id().to_owned();

    let told = as_nobody(node.port(), &format!("/task/{id}"));
    assert!(told.status == 200 && told.text().contains("ACTIVE"), "{told:?}");
    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", crate::support::DEWAR]);
        command.args(arguments).arg("--address").arg(node.socket());
        node.scene.output(command)
    };
    let seen = as_nobody(&["status", &id]);
    assert!(seen.status == Some(0) && seen.stdout.contains(&id), "{seen:?}");
    for command in [&["kill", &id] as &[&str], &["pause", &id], &["signal", "TERM", &id]] {
        let refused = as_nobody(command);
        assert_ne!(refused.status, Some(0), "{command:?}: {refused:?}");
    }
    gate.open();
    assert_eq!(node.wait().state(), dewar::proto::TaskState::Success);
}

/// Whoever the kernel does not name is told nothing: here one whose socket is bound to a device, so that it is not found.
#[test]
fn who_is_not_known_sees_nothing_but_health() {
    need_root!();
    let mut node = web(&[]);
    let id = secret(&mut node);
    // SO_BINDTODEVICE is 25 (socket(7)).
    let script = r"
import socket, sys
to = socket.socket()
to.setsockopt(socket.SOL_SOCKET, 25, b'lo')
to.connect(('127.0.0.1', int(sys.argv[1])))
to.sendall(b'GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n' % sys.argv[2].encode())
while told := to.recv(65536):
    sys.stdout.buffer.write(told)
";
    let ask = |target: &str| {
        let mut command = Command::new("python3");
        let told = command.args(["-c", script, &node.port().to_string(), target]).output().unwrap();
        assert!(told.status.success(), "{told:?}");
        Answer::parse(&told.stdout)
    };

    for target in OF_TASK.iter().chain(&["/", "/j/task_ids", "/j/node"]) {
        let told = ask(&target.replace("ID", &id));
        assert_eq!(told.status, 403, "{target}");
        assert!(
            told.text().contains("not known who asks") && !told.text().contains("secret"),
            "{told:?}"
        );
        let is_json = told.header("content-type") == Some("application/json");
        assert_eq!(is_json, target.starts_with("/j/") || target.contains("data/"), "{target}");
    }
    assert_eq!(ask("/health").status, 200);
}

/// Attack 55: DNS rebinding, CSRF, other origins; each answer says what a browser may do with it.
#[test]
fn no_other_page_can_use_a_browser_to_read_or_to_change() {
    let mut node = web(&[]);
    let id = secret(&mut node);
    let port = node.port();
    let targets: Vec<String> = OF_TASK
        .iter()
        .chain(&["/", "/health", "/assets/dewar.js", "/nothing"])
        .map(|target| target.replace("ID", &id))
        .collect();
    let raw = |request: &str| http::ask(port, request);
    let safe = |answer: &Answer, of: &str| {
        let policy = answer.header("content-security-policy").unwrap();
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"),
            "{of}: {policy}"
        );
        assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{of}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{of}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{of}");
        assert_eq!(answer.header("x-frame-options"), Some("DENY"), "{of}");
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"), "{of}");
        assert!(!answer.head.to_lowercase().contains("access-control-"), "{of}");
        assert!(!answer.head.to_lowercase().contains("set-cookie"), "{of}");
    };

    for target in &targets {
        safe(&node.page(target), target);
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "ODD"] {
            let refused = raw(&format!(
                "{method} {target} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
            ));
            assert_eq!(
                (refused.status, refused.header("allow")),
                (405, Some("GET, HEAD")),
                "{method} {target}"
            );
            safe(&refused, target);
        }
        for host in
            ["evil.example", &format!("evil.example:{port}"), "localhost.evil.example", "10.0.0.1"]
        {
            let refused = raw(&format!("GET {target} HTTP/1.0\r\nHost: {host}\r\n\r\n"));
            assert_eq!(refused.status, 421, "{host} {target}");
            assert!(!refused.text().contains("secret"));
            safe(&refused, target);
        }
        assert_eq!(raw(&format!("GET {target} HTTP/1.0\r\n\r\n")).status, 421, "no host, {target}");
        assert_eq!(
            raw(&format!("GET http://evil.example{target} HTTP/1.0\r\nHost: localhost\r\n\r\n"))
                .status,
            421
        );
        for site in ["cross-site", "same-site"] {
            let ask = format!(
                "GET {target} HTTP/1.0\r\nHost: localhost\r\nSec-Fetch-Site: {site}\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: script\r\n\r\n"
            );
            assert_eq!(raw(&ask).status, 403, "{site} {target}");
        }
        let link = format!(
            "GET {target} HTTP/1.0\r\nHost: localhost\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n\r\n"
        );
        assert_eq!(raw(&link).status, node.page(target).status, "a link to {target}");
        let head = raw(&format!("HEAD {target} HTTP/1.0\r\nHost: [::1]:{port}\r\n\r\n"));
        assert_eq!((head.status, head.body.len()), (node.page(target).status, 0), "HEAD {target}");
    }
}

/// What a task may choose, at its worst.
const MARKUP: &str = "<script>alert(1)\"'>&amp;";

/// Attack 47: names, labels, output and files are text, whatever is in them.
#[test]
fn nothing_that_a_task_has_chosen_becomes_part_of_a_page() {
    let mut node = web(&[]);
    let name = "<img src=x onerror=alert(1)>\"'&%2e%2e;?#\u{202e} b";
    let write = "printf '</pre><script>alert(1)</script>\\033[31mred\\033]0;title\\007\\342\\200\\256\\377\\000\\r\\n'";
    let script = format!(
        "{write}; {write} > file; mkdir -p '<b>dir</b>'; {write} > '<b>dir<'$'\\n''\"x'; ln -s '<i>' link; echo '{}' >&2; exit 3",
        "</script>"
    );
    let file = task([p(name, script)]).with("name", MARKUP);
    let id = format!("{}.<b>'\"&id", node.scene.id());
    let mut request = node.request(&file);
    request.task_id = Some(id.clone());
    request.labels = [("note".to_owned(), MARKUP.to_owned())].into();
    let mut runner = node.runner();
    node.runtime.block_on(runner.launch(request)).unwrap();
    wait_until("its end", || node.json("/j/task_id_count")["finished"] == 1);
    let part = |text: &str| -> String {
        text.bytes()
            .map(|byte| {
                if byte.is_ascii_alphanumeric() {
                    char::from(byte).to_string()
                } else {
                    format!("%{byte:02x}")
                }
            })
            .collect()
    };
    let (of, name) = (part(&id), part(name));

    for target in [
        "/".to_owned(),
        "/?q=%3Cscript%3Ealert%281%29%3C%2Fscript%3E".to_owned(),
        "/?label=%22%3E%3Cscript%3Ealert%281%29%3C%2Fscript%3E%3D".to_owned(),
        format!("/task/{of}"),
        format!("/rawtask/{of}"),
        format!("/process/{of}/{name}"),
        format!("/logs/{of}/{name}/0/stdout"),
        format!("/logs/{of}/{name}/0/stderr"),
        format!("/browse/{of}"),
        format!("/browse/{of}/{}", part("<b>dir<\n\"x")),
        format!("/file/{of}/file"),
        format!("/task/{}", part(MARKUP)),
        format!("/process/{of}/{}", part(MARKUP)),
        format!("/logs/{of}/{}/0/stdout", part(MARKUP)),
        format!("/file/{of}/{}", part("<script>alert(1)")),
        format!("/logs/{of}/{name}/{}/stdout", part("<script>")),
        format!("/{}", part("<script>alert(1)")),
    ] {
        let told = node.page(&target);
        let text = told.text();
        assert!(text.starts_with("<!DOCTYPE html>"), "{target}: {told:?}");
        assert_eq!(text.matches("<script").count(), 1, "{target}: {text}");
        for part in [
            "<img",
            "<b>",
            "<i>",
            "onerror=alert(1)>",
            "<script>",
            "\x1b",
            "\x07",
            "\r",
            "\0",
            "\u{202e}",
        ] {
            assert!(!text.contains(part), "{target}: {part:?} in {text}");
        }
        assert!(!text.contains(" style=") && !text.contains("javascript:"), "{target}");
    }
    let page = node.found(&format!("/logs/{of}/{name}/0/stdout")).text();
    assert!(page.contains(r"&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;\x1b[31mred\x1b]0;title\x07\u{202e}\xff\x00\r"), "{page}");
    let mut events = node.events(&format!("/logs/{of}/{name}/0/stdout"));
    assert!(events.next("log").ends_with("\\x1b[31mred\\x1b]0;title\\x07\\u{202e}\\xff\\x00\\r\n"));
    assert_eq!(node.json(&format!("/j/task/{of}"))["name"], MARKUP);
}

/// Attacks 16, 17, 18, and W1, W2: what is not in the sandbox, or is no file, is not read, whatever path or link leads to it.
#[test]
fn nothing_outside_of_the_sandbox_is_read() {
    let mut node = web(&[]);
    let id = secret(&mut node);
    let sandbox = node.scene.sandbox();
    let outside = node.scene.path("sandbox2");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("key"), "root:x:0").unwrap();
    symlink("/etc/passwd", sandbox.join("passwd")).unwrap();
    symlink("/", sandbox.join("top")).unwrap();
    symlink("/proc/self/root", sandbox.join("magic")).unwrap();
    symlink("secret", sandbox.join("inside")).unwrap();
    nix::unistd::mkfifo(&sandbox.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let log = node.scene.logs("a", 0).join("stdout");
    fs::remove_file(&log).unwrap();
    symlink("/etc/passwd", &log).unwrap();
    let long = "x".repeat(5000);
    let many = "x/".repeat(2500);

    let mut paths: Vec<String> = [
        "../sandbox2/key",
        "..%2fsandbox2%2fkey",
        "%2e%2e/sandbox2/key",
        "%2e%2e%2fsandbox2%2fkey",
        "%252e%252e%252fsandbox2%252fkey",
        "x/../../sandbox2/key",
        ".",
        "./secret",
        "..",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "//etc/passwd",
        "secret/",
        "secret//",
        "secret%00",
        "secret%00.txt",
        "..%5csandbox2%5ckey",
        "..%c0%afetc",
        "%ff",
        "passwd",
        "top/etc/passwd",
        "magic/etc/passwd",
        "inside",
        "fifo",
        ".logs/a/0/stdout",
        "top",
    ]
    .map(str::to_owned)
    .to_vec();
    paths.extend([long, many]);
    for path in &paths {
        for kind in ["file", "filedata", "download", "browse"] {
            let query = if kind == "filedata" { "?offset=0" } else { "" };
            let told = node.page(&format!("/{kind}/{id}/{path}{query}"));
            let is_refused = matches!(told.status, 400 | 404 | 409 | 414 | 431);
            assert!(is_refused, "{kind} {path:.60}: {} {}", told.status, told.text());
            assert!(!told.text().contains("root:x:0"), "{kind} {path:.60}");
        }
    }
    for target in
        ["/logs/ID/a/0/stdout", "/logdata/ID/a/0/stdout?offset=0", "/logs/ID/a/0/stdout?download"]
    {
        let told = node.page(&target.replace("ID", &id));
        assert!(told.status != 200 || told.body.is_empty(), "{target}: {told:?}");
        assert!(!told.text().contains("root:x:0"), "{target}");
    }
    for id in [
        &id[..id.len() - 1],
        &format!("{id}0"),
        "..",
        ".",
        "%2e%2e",
        "%00",
        &format!("{id}%2f..%2f{id}"),
    ] {
        for kind in ["task", "browse", "rawtask", "j/task"] {
            let status = node.page(&format!("/{kind}/{id}")).status;
            assert!(matches!(status, 400 | 404), "{kind} {id}: {status}");
        }
    }
    assert_eq!(
        node.found(&format!("/browse/{id}")).text().matches("→").count(),
        4,
        "links are shown and not followed"
    );
    assert_eq!(node.found(&format!("/file/{id}/secret")).status, 200);
}

/// Attack 48: whoever says nothing, or not all of it, is not waited for.
#[test]
fn a_connection_that_says_nothing_is_closed() {
    let node = web(&[]);
    let begun = [b"".as_slice(), b"GET / HTTP/1.1\r\nHost: local"].map(|part| {
        let mut stream = TcpStream::connect(("127.0.0.1", node.port())).unwrap();
        stream.set_read_timeout(Some(crate::support::DEADLINE)).unwrap();
        stream.write_all(part).unwrap();
        stream
    });
    for mut stream in begun.into_iter().chain([served(node.port())]) {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains(" 200 "), "{bytes:?}");
    }
}

/// A connection that has been served once, and is kept.
fn served(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
    stream
}

/// Attack 48: connections have an end, and one user does not take them all.
#[test]
fn a_user_has_so_many_connections_and_a_head_has_an_end() {
    let node = web(&[]);
    let port = node.port();
    let held: Vec<_> = (0..128).map(|_| served(port)).collect();
    let is_turned_away = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let _ = stream.write_all(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).is_err() || bytes.is_empty()
    };
    assert!(is_turned_away(), "there is room for one more than 128");
    drop(held);
    wait_until("room again", || !is_turned_away());

    let head = format!("GET / HTTP/1.0\r\nHost: localhost\r\nx: {}\r\n\r\n", "x".repeat(64 << 10));
    let told = http::ask(port, &head[..40 << 10]);
    assert!(matches!(told.status, 400 | 431), "{told:?}");
    let many = "a: b\r\n".repeat(500);
    let told = http::ask(port, &format!("GET / HTTP/1.0\r\nHost: localhost\r\n{many}\r\n"));
    assert_eq!(told.status, 431, "{told:?}");
}
