//! Attacks 53 and 54: who somebody is the kernel says, of whoever made the connection.
//!
//! A process that has become another user connects, and hands its connection over to the test, which uses it as root: so whatever is
//! refused here is refused for the sake of who connected.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use dewar::proto::exec_request::Message as Asked;
use dewar::proto::launch_request::Source;
use dewar::proto::observer_service_client::ObserverServiceClient;
use dewar::proto::runner_service_client::RunnerServiceClient;
use dewar::proto::watch_tasks_response::Message;
use dewar::proto::{
    ExecRequest, ExecStart, GetNodeRequest, GetTaskRequest, GetUsageHistoryRequest,
    GetUsageRequest, KillRequest, LaunchRequest, ListFilesRequest, ListTasksRequest, LoseRequest,
    PauseRequest, ReadFileRequest, ReadLogsRequest, RemoveRequest, Resources, ResumeRequest,
    SignalRequest, TaskState, UpdateRequest, WaitRequest, WatchTasksRequest, WatchUsageRequest,
};
use dewar::sys::socket;
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::super::node::Node;
use super::reason;
use crate::support::{Output, need_root, p, skip, task, wait_until};

const NOBODY: u32 = 65534;

/// Connects, and sends the connection to its standard output, which is a socket.
const CONNECT: &str = "
import array, socket, sys
to = socket.socket(fileno=1)
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
fds = array.array('i', [connection.fileno()])
to.sendmsg([b'.'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
";

/// setpriv as nobody, with these groups beside its own.
fn as_nobody(groups: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", groups, "--"]);
    command
}

/// A connection that `become_` makes, which goes on with the words of a command.
fn connection(mut become_: Command, socket: &Path) -> Result<UnixStream, String> {
    let (ours, theirs) = socket::pair().unwrap();
    // Not one of a user's own, which nobody else could start.
    become_.args(["/usr/bin/python3", "-c", CONNECT]).arg(socket);
    let child = become_.stdin(Stdio::null()).stdout(theirs).stderr(Stdio::piped()).spawn();
    drop(become_);
    let told = child.unwrap().wait_with_output().unwrap();
    let (_, fd) = socket::receive_some(&UnixStream::from(ours), &mut [0; 8]).unwrap();
    fd.map(UnixStream::from).ok_or_else(|| String::from_utf8_lossy(&told.stderr).into_owned())
}

/// A node that every user may connect to.
fn open_node() -> Node {
    Node::with(&["--socket-mode", "666"])
}

impl Node {
    #[track_caller]
    fn channel_of(&self, become_: Command) -> Channel {
        let stream = connection(become_, &self.socket()).unwrap();
        self.channel_over(stream)
    }

    /// Ids of all tasks that a connection may know of.
    fn ids(&self, channel: &Channel) -> Vec<String> {
        let mut observer = ObserverServiceClient::new(channel.clone());
        let listed = self.runtime.block_on(observer.list_tasks(ListTasksRequest::default()));
        listed.unwrap().into_inner().tasks.into_iter().map(|task| task.task_id).collect()
    }
}

/// What a client may write into a call: every name by which servers have been told who calls.
#[derive(Clone)]
struct Claims;

impl Interceptor for Claims {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata: &mut MetadataMap = request.metadata_mut();
        for name in ["x-forwarded-user", "x-remote-user", "x-user", "user", "uid", "x-uid"] {
            metadata.insert(name, "0".parse().unwrap());
        }
        for (name, value) in [
            ("authorization", "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJyb290IiwidWlkIjowfQ."),
            ("x-forwarded-for", "127.0.0.1"),
            ("forwarded", "for=127.0.0.1;by=root"),
        ] {
            metadata.insert(name, value.parse().unwrap());
        }
        Ok(request)
    }
}

type Claiming = InterceptedService<Channel, Claims>;

/// What each call about the task `id` answers: its name, and the error, all of it, with another id in the place of `id`.
fn answers(node: &Node, channel: &Channel, id: &str) -> Vec<(&'static str, Result<(), String>)> {
    let mut runner: RunnerServiceClient<Claiming> =
        RunnerServiceClient::with_interceptor(channel.clone(), Claims);
    let mut observer: ObserverServiceClient<Claiming> =
        ObserverServiceClient::with_interceptor(channel.clone(), Claims);
    let task_id = id.to_owned();
    let told = |status: Status| {
        let details = String::from_utf8_lossy(status.details()).into_owned();
        let text = format!("{:?} {} {details}", status.code(), status.message());
        text.replace(id, "ID")
    };
    let mut all = Vec::new();
    node.runtime.block_on(async {
        macro_rules! ask {
            ($client:ident.$call:ident, $request:ident { $($field:tt)* }) => {{
                let request = $request { task_id: task_id.clone(), $($field)* };
                let answer = $client.$call(request).await.map(drop).map_err(told);
                all.push((stringify!($call), answer));
            }};
        }
        ask!(runner.kill, KillRequest { grace: None, reason: None });
        ask!(runner.lose, LoseRequest { reason: None });
        ask!(runner.signal, SignalRequest { signal: "KILL".to_owned(), ..Default::default() });
        ask!(runner.pause, PauseRequest {});
        ask!(runner.resume, ResumeRequest {});
        let change = Some(Resources::default());
        ask!(runner.update, UpdateRequest { change, ..Default::default() });
        ask!(runner.wait, WaitRequest { ..Default::default() });
        ask!(runner.remove, RemoveRequest { sandbox: true });
        ask!(observer.get_task, GetTaskRequest {});
        ask!(observer.get_usage, GetUsageRequest { ..Default::default() });
        ask!(observer.get_usage_history, GetUsageHistoryRequest { ..Default::default() });
        ask!(observer.watch_usage, WatchUsageRequest { ..Default::default() });
        let process = "a".to_owned();
        ask!(observer.read_logs, ReadLogsRequest { process, ..Default::default() });
        ask!(observer.list_files, ListFilesRequest { ..Default::default() });
        let path = ".logs/a/0/stdout".to_owned();
        ask!(observer.read_file, ReadFileRequest { path, ..Default::default() });
        let start = ExecStart {
            task_id: task_id.clone(),
            argv: vec!["true".to_owned()],
            ..ExecStart::default()
        };
        let exec = ExecRequest { message: Some(Asked::Start(start)) };
        let exec = runner.exec(tokio_stream::iter([exec])).await;
        let exec = match exec {
            Ok(answers) => answers.into_inner().message().await.map(drop),
            Err(status) => Err(status),
        };
        all.push(("exec", exec.map_err(told)));
        let watch = WatchTasksRequest { task_id: Some(task_id.clone()), ..Default::default() };
        let watch = observer.watch_tasks(watch).await.map(drop).map_err(told);
        all.push(("watch_tasks", watch));
    });
    all
}

/// attack 54: to see, or to kill, a task of somebody else gives the same answer as one that is not there, whatever the caller
/// says that it is.
#[test]
fn a_task_of_another_user_is_like_one_that_is_not_there() {
    need_root!();
    let mut node = open_node();
    let gate = node.scene.gate("gate");
    node.launch(&task([p("a", format!("echo secret; {}", gate.hold()))]));
    let nobody = node.channel_of(as_nobody("--clear-groups"));
    // Of the same length, so that both answers can be compared byte by byte.
    let missing = node.scene.id().replacen("it-", "no-", 1);

    let (foreign, unknown) =
        (answers(&node, &nobody, node.scene.id()), answers(&node, &nobody, &missing));

    assert_eq!(foreign.len(), 17);
    assert_eq!(foreign, unknown);
    for (call, answer) in &foreign {
        // What is not there need not be removed.
        assert_eq!(answer.is_ok(), *call == "remove", "{call}: {answer:?}");
        let is_unknown = answer.as_ref().err().is_none_or(|told| told.starts_with("NotFound"));
        assert!(is_unknown, "{call}: {answer:?}");
    }
    assert_eq!(node.ids(&nobody), [""; 0]);
    assert_eq!(node.get().state(), TaskState::Active);
    gate.open();
    assert_eq!(node.wait().state(), TaskState::Success);
}

/// attack 54: as whom a task runs is who launches it; "as another" needs the right to.
#[test]
fn a_user_launches_as_themselves_and_sees_their_own_tasks_only() {
    need_root!();
    let mut node = open_node();
    let gate = node.scene.gate("gate");
    node.launch(&task([p("a", gate.hold())]));
    let nobody = node.channel_of(as_nobody("--clear-groups"));
    let mut runner: RunnerServiceClient<Claiming> =
        RunnerServiceClient::with_interceptor(nobody.clone(), Claims);
    let mut observer = ObserverServiceClient::new(nobody.clone());
    let own = format!("{}.own", node.scene.id());
    let text = task([p("a", "id -u; id -G; sleep 600")]).text();
    let source = Some(Source::TaskFile(text));
    let request = LaunchRequest { task_id: Some(own.clone()), source, ..LaunchRequest::default() };
    let watch = observer.watch_tasks(WatchTasksRequest::default());
    let mut watch = node.runtime.block_on(watch).unwrap().into_inner();

    let sandbox = node.scene.sandbox().display().to_string();
    for (refused, what) in [
        (LaunchRequest { user: Some("root".to_owned()), ..request.clone() }, "user"),
        (LaunchRequest { chroot: true, ..request.clone() }, "chroot"),
        (LaunchRequest { sandbox: Some(sandbox.clone()), ..request.clone() }, "sandbox"),
        (LaunchRequest { log_dir: Some(sandbox), ..request.clone() }, "log_dir"),
    ] {
        let refused = node.runtime.block_on(runner.launch(refused)).unwrap_err();
        let told = (refused.code(), reason(&refused));
        assert_eq!(told, (Code::PermissionDenied, "NOT_PERMITTED".to_owned()), "{what}");
    }
    // An id that is taken is taken, and whose it is nobody is told.
    let taken = LaunchRequest { task_id: Some(node.scene.id().to_owned()), ..request.clone() };
    let taken = node.runtime.block_on(runner.launch(taken)).unwrap_err();
    let text = format!("task id {} is taken", node.scene.id());
    assert_eq!((taken.code(), taken.message()), (Code::AlreadyExists, text.as_str()));
    let view = node.runtime.block_on(runner.launch(request)).unwrap().into_inner().task.unwrap();

    assert_eq!(view.user, "nobody");
    assert_eq!(node.ids(&nobody), [own.as_str()]);
    let log = Path::new(&view.log_dir).join("a/0/stdout");
    let ids = format!("{NOBODY}\n{NOBODY}\n");
    wait_until("it tells who it is", || fs::read_to_string(&log).is_ok_and(|log| log == ids));
    let kill = KillRequest { task_id: own.clone(), grace: Some(Default::default()), reason: None };
    node.runtime.block_on(runner.kill(kill)).unwrap();
    gate.open();
    node.wait();
    // Of all that happened it is told its own.
    let mut told = Vec::new();
    node.runtime.block_on(async {
        while told.last() != Some(&(own.clone(), Some(TaskState::Killed.into()))) {
            match watch.message().await.unwrap().unwrap().message.unwrap() {
                Message::Event(event) => told.push((event.task_id, event.task_state)),
                Message::Task(task) => told.push((task.task_id, None)),
                Message::SnapshotEnd(_) => assert!(told.is_empty(), "{told:?}"),
                Message::RemovedTaskId(id) => panic!("{id} was removed"),
            }
        }
    });
    assert!(told.iter().all(|(id, _)| *id == own), "{told:?}");
}

/// attack 54: root of a user namespace is who made that.
#[test]
fn root_of_a_user_namespace_is_who_it_is_outside() {
    need_root!();
    let mut unshare = as_nobody("--clear-groups");
    unshare.args(["unshare", "--user", "--map-root-user", "--"]);
    let mut probe = as_nobody("--clear-groups");
    probe.args(["unshare", "--user", "--map-root-user", "--", "id", "-u"]);
    let probe = probe.output().unwrap();
    if probe.stdout != b"0\n" {
        skip!("nobody may make a user namespace: {}", String::from_utf8_lossy(&probe.stderr));
    }
    let mut node = open_node();
    let gate = node.scene.gate("gate");
    node.launch(&task([p("a", gate.hold())]));

    let mapped = node.channel_of(unshare);

    assert_eq!(node.ids(&mapped), [""; 0]);
    gate.open();
    node.wait();
}

/// Members of the group see all. It counts when they connect.
#[test]
fn a_member_of_the_group_sees_all() {
    need_root!();
    let mut node = Node::with(&["--socket-mode", "666", "--group", "games"]);
    node.launch(&task([p("a", "true")]));
    node.wait();

    let games = nix::unistd::Group::from_name("games").unwrap().expect("the group games").gid;
    let member = node.channel_of(as_nobody(&format!("--groups={games}")));
    let other = node.channel_of(as_nobody("--clear-groups"));

    assert_eq!(node.ids(&member), [node.scene.id()]);
    assert_eq!(node.ids(&other), [""; 0]);
}

/// attack 53: with the mode that it has by default, nobody else gets as far as a connection.
#[test]
fn nobody_else_connects_to_a_socket_of_the_default_mode() {
    need_root!();
    let node = Node::new();

    let refused = connection(as_nobody("--clear-groups"), &node.socket()).map(drop).unwrap_err();

    assert!(refused.contains("PermissionError"), "{refused}");
    let mode = fs::metadata(node.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o660);
}

/// attack 51: a user who is no admin has at most 256 connections; others connect all the same.
#[test]
fn a_user_has_so_many_connections_and_no_more() {
    need_root!();
    let mut node = open_node();
    let first = connection(as_nobody("--clear-groups"), &node.socket()).unwrap();
    let script = "
import socket, sys
held = []
for _ in range(300):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    connection.settimeout(30)
    connection.sendall(b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n' + bytes(3) + b'\\4' + bytes(5))
    held.append(connection)
def is_served(connection):
    try:
        return connection.recv(1) != b''
    except ConnectionError:
        return False
print(sum(map(is_served, held)))
";
    let mut many = as_nobody("--clear-groups");
    many.args(["/usr/bin/python3", "-c", script]).arg(node.socket());

    let told = node.scene.output(many);

    assert_eq!((told.status, told.stdout.as_str()), (Some(0), "255\n"), "{told:?}");
    drop(first);
    let mut observer = node.observer();
    let told = observer.get_node(GetNodeRequest {});
    node.runtime.block_on(told).unwrap();
}

/// `dewar serve` at `address`, which must refuse.
#[track_caller]
fn refuses(node: &Node, address: &Path) -> Output {
    let mut command = node.scene.command(["serve", "--root"]);
    command.arg(node.scene.path("other-root")).arg("--address").arg(address);
    let told = node.scene.output(command);
    assert_ne!(told.status, Some(0), "{told:?}");
    told
}

/// attack 53: where somebody else could put another socket, none is made; nor is what is there removed.
#[test]
fn a_socket_is_made_only_where_nobody_else_can_replace_it() {
    need_root!();
    let node = Node::new();
    let dir = node.scene.path("sockets");
    let socket = dir.join("dewar.sock");
    let set = |mode| fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
    let why = |what: &str| {
        let dir = dir.display();
        format!("{dir}: {what}; others could put a socket of theirs in its place")
    };
    fs::create_dir(&dir).unwrap();
    for mode in [0o777, 0o775, 0o757] {
        set(mode);
        let told = refuses(&node, &socket);
        assert!(told.stderr.contains(&why(&format!("its mode is {mode:04o}"))), "{told:?}");
    }
    set(0o755);
    std::os::unix::fs::chown(&dir, Some(NOBODY), None).unwrap();
    let told = refuses(&node, &socket);
    assert!(told.stderr.contains(&why("it belongs to uid 65534, not to 0 or root")), "{told:?}");
    std::os::unix::fs::chown(&dir, Some(0), None).unwrap();
    let link = node.scene.path("link");
    std::os::unix::fs::symlink(&dir, &link).unwrap();
    let told = refuses(&node, &link.join("dewar.sock"));
    assert!(told.stderr.contains("it is not a directory"), "{told:?}");

    fs::write(&socket, "a file").unwrap();
    let told = refuses(&node, &socket);
    assert!(told.stderr.contains("is there and is no socket"), "{told:?}");
    assert_eq!(fs::read_to_string(&socket).unwrap(), "a file");
    let told = refuses(&node, &node.socket());
    assert!(told.stderr.contains("another daemon listens on"), "{told:?}");
    assert!(node.socket().exists());
}
