//! Clients that are not ours: `grpcurl`, which learns the API by reflection, and gRPC of Python and of Node.js, made from the protos.
//! `tests/clients/install` installs them.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use regex_lite::Regex;

use super::node::Node;
use crate::support::{Output, skip};

pub(super) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file that `tests/clients/install` makes.
pub(super) fn installed(path: &str) -> PathBuf {
    repository().join("target/clients").join(path)
}

/// Leaves a test whose client is not installed.
macro_rules! need {
    ($path:expr) => {
        if !$crate::daemon::clients::installed($path).exists() {
            skip!("target/clients/{} is not there: tests/clients/install", $path);
        }
    };
}

pub(super) use need;

impl Node {
    /// The address, as all of gRPC's own libraries write it.
    fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }
}

/// A line of docs/api.md that calls something.
#[derive(Debug)]
struct Example {
    /// As it stands there.
    text: String,
    /// `Service/Method`, if it is a call of ours.
    method: Option<String>,
}

impl Example {
    /// Whether it goes on for as long as its task does; such a call is ended once it has told something.
    fn goes_on(&self) -> bool {
        let method = self.method.as_deref().and_then(|name| name.strip_prefix("ObserverService/"));
        method.is_some_and(|name| matches!(name, "WatchTasks" | "WatchUsage" | "ReadLogs"))
    }

    fn is(&self, method: &str) -> bool {
        self.method.as_deref() == Some(method)
    }
}

fn api() -> String {
    std::fs::read_to_string(repository().join("docs/api.md")).unwrap()
}

/// The function `grpc` that docs/api.md defines.
fn definition() -> String {
    let api = api();
    let line = api.lines().find(|line| line.starts_with("grpc() {"));
    line.expect("docs/api.md defines grpc()").to_owned()
}

/// The section of the calls. What is elsewhere is of TCP, and has certificates that nobody has.
fn calls() -> String {
    let api = api();
    let (before, calls) = api.split_once("\n## Calls\n").expect("a section of the calls");
    let (calls, after) = calls.split_once("\n## ").unwrap_or((calls, ""));
    assert!(!before.contains("\ngrpc ") && !after.contains("\ngrpc "), "a call is elsewhere");
    calls.to_owned()
}

/// All examples, in their order. An example ends with the line that closes its quotes.
fn examples() -> Vec<Example> {
    let call = Regex::new(r"^grpc (\w+/\w+) ").unwrap();
    let (mut examples, mut text, mut is_shell) = (Vec::new(), String::new(), false);
    for line in calls().lines() {
        match line {
            "```sh" => is_shell = true,
            "```" => is_shell = false,
            line if is_shell && !line.starts_with("grpc() {") => {
                text = format!("{text}{line}\n");
                if text.matches('\'').count() % 2 == 0 {
                    let method = call.captures(&text).map(|found| found[1].to_owned());
                    assert!(method.is_some() || text.starts_with("grpcurl "), "{text:?}");
                    examples.push(Example { text: std::mem::take(&mut text), method });
                }
            }
            _ => {}
        }
    }
    examples
}

/// bash with `grpc` as docs/api.md defines it; socket and tasks are those of the test.
fn bash(node: &Node, script: &str) -> Command {
    let id = node.scene.id();
    let own = format!("{}\n{script}", definition())
        .replace("/run/dewar/dewar.sock", node.socket().to_str().unwrap())
        .replace("\"web-", &format!("\"{id}.web-"))
        .replace("\"typed-", &format!("\"{id}.typed-"));
    let path = std::env::var("PATH").unwrap();
    let mut command = Command::new("bash");
    command.args(["-ec", &own]);
    command.env("PATH", format!("{}:{path}", installed("bin").display()));
    command
}

/// Waits for the first message, and ends the call.
fn first_message(mut command: Command) -> Result<(), String> {
    let (out, err) = (Stdio::piped(), Stdio::piped());
    let mut child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().unwrap();
    let (mut stdout, mut text, mut byte) = (child.stdout.take().unwrap(), Vec::new(), [0]);
    let is_told = loop {
        match stdout.read(&mut byte).unwrap() {
            0 => break false,
            _ => text.push(byte[0]),
        }
        if text.ends_with(b"\n}\n") {
            break true;
        }
    };
    let _ = child.kill();
    let left = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&left.stderr).into_owned();
    if is_told { Ok(()) } else { Err(said) }
}

/// The limit that a host without the memory controller cannot enforce: the documented error, whole.
fn is_refused_as_documented(output: &Output) -> bool {
    let api = api();
    let text = "resources.ram cannot be enforced: it needs the memory controller";
    assert!(api.contains(&format!("`{text}`")), "docs/api.md does not say {text:?}");
    // grpcurl exits with 64 and the code of the status: FAILED_PRECONDITION is 9.
    output.status == Some(64 + 9)
        && output.stderr.contains("\n  Code: FailedPrecondition\n")
        && output.stderr.contains(&format!("\n  Message: {text}; "))
        && output.stderr.contains("\"reason\": \"REFUSED\"")
}

/// Whether the daemon can limit memory.
fn has_memory_controller(node: &mut Node) -> bool {
    let mut observer = node.observer();
    let told = observer.get_node(dewar::proto::GetNodeRequest {});
    let told = node.runtime.block_on(told).unwrap().into_inner();
    told.controllers.iter().any(|name| name == "memory")
}

#[test]
fn every_example_of_the_documentation_works_in_its_order() {
    need!("bin/grpcurl");
    let mut node = Node::new();
    let limits_memory = has_memory_controller(&mut node);

    for example in examples() {
        let script = example.text.replacen("grpc ", "exec_grpc ", 1);
        if example.goes_on() {
            // The shell becomes grpcurl, so that a kill reaches it.
            let exec =
                definition().replace("grpc() { grpcurl", "exec_grpc() { exec grpcurl -max-time 20");
            let told = first_message(bash(&node, &format!("{exec}\n{script}")));
            assert_eq!(told, Ok(()), "{}", example.text);
            continue;
        }
        let output = node.scene.output(bash(&node, &example.text));
        if example.is("RunnerService/Update") && !limits_memory {
            assert!(is_refused_as_documented(&output), "{}{output:?}", example.text);
            continue;
        }
        assert_eq!(output.status, Some(0), "{}{output:?}", example.text);
        let is_silent = output.stdout.trim().is_empty();
        assert!(!is_silent, "{} tells nothing", example.text);
    }
}

#[test]
fn every_call_of_both_services_has_an_example() {
    need!("bin/grpcurl");
    let node = Node::new();
    let mut served = BTreeSet::new();
    for service in ["RunnerService", "ObserverService"] {
        let list =
            format!("grpcurl -plaintext -unix /run/dewar/dewar.sock list dewar.v1.{service}");
        let listed = node.scene.output(bash(&node, &list));
        assert_eq!(listed.status, Some(0), "{listed:?}");
        let methods = listed.stdout.lines().map(|line| {
            let method = line.strip_prefix("dewar.v1.").expect("a name in full");
            method.replacen('.', "/", 1)
        });
        served.extend(methods);
    }

    let shown: BTreeSet<String> = examples().into_iter().filter_map(|of| of.method).collect();

    assert!(served.len() >= 20, "{served:?}");
    assert_eq!(shown, served);
}

/// What both programs tell.
fn told(id: &str) -> String {
    format!(
        "launched: new\n\
         launched: known\n\
         task: TASK_STATE_ACTIVE\n\
         run: greet 0 PROCESS_STATE_WAITING\n\
         run: greet 0 PROCESS_STATE_FORKED\n\
         run: greet 0 PROCESS_STATE_RUNNING\n\
         log: hello from {id}\n\
         kill: seen enough\n\
         task: TASK_STATE_CLEANING\n\
         run: greet 0 PROCESS_STATE_KILLED\n\
         task: TASK_STATE_FINALIZING\n\
         task: TASK_STATE_KILLED\n\
         get: NOT_FOUND there is no task \"{id}\"\n"
    )
}

#[test]
fn a_client_in_python_launches_watches_reads_and_kills() {
    need!("python/bin/python");
    let node = Node::new();
    let python = installed("python/bin/python");
    let generated = node.scene.path("gen");
    std::fs::create_dir(&generated).unwrap();
    let out = |kind: &str| format!("--{kind}={}", generated.display());
    let mut protoc = Command::new(&python);
    protoc.current_dir(repository().join("proto"));
    protoc.args(["-m", "grpc_tools.protoc", "-I.", &out("python_out"), &out("grpc_python_out")]);
    let protos = std::fs::read_dir(repository().join("proto/dewar/v1")).unwrap();
    let protos = protos.map(|entry| Path::new("dewar/v1").join(entry.unwrap().file_name()));
    protoc.args(protos);
    let made = node.scene.output(protoc);
    assert_eq!(made.status, Some(0), "{made:?}");

    let mut client = Command::new(python);
    client.arg(repository().join("tests/clients/python/client.py"));
    client.args([&node.address(), node.scene.id()]).env("PYTHONPATH", generated);
    client.env("PYTHONDONTWRITEBYTECODE", "1");
    let said = node.scene.output(client);

    assert_eq!(said.status, Some(0), "{said:?}");
    assert_eq!(said.stdout, told(node.scene.id()));
}

#[test]
fn a_client_in_node_launches_watches_reads_and_kills() {
    need!("node/node_modules/@grpc/grpc-js");
    let node = Node::new();

    let mut client = Command::new("node");
    client.arg(repository().join("tests/clients/node/client.js"));
    client.args([&node.address(), node.scene.id()]);
    client.env("NODE_PATH", installed("node/node_modules"));
    let said = node.scene.output(client);

    assert_eq!(said.status, Some(0), "{said:?}");
    assert_eq!(said.stdout, told(node.scene.id()));
}

/// Standard rules of buf, and a comment on everything (`proto/buf.yaml`).
#[test]
fn the_protos_keep_the_rules_of_buf() {
    need!("node/node_modules/.bin/buf");
    let node = crate::support::Scene::new();

    let mut lint = Command::new(installed("node/node_modules/.bin/buf"));
    lint.arg("lint").arg(repository().join("proto"));
    let said = node.output(lint);

    assert_eq!((said.status, said.stdout.as_str()), (Some(0), ""), "{said:?}");
}
