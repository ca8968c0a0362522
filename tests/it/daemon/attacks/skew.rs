//! Attack 41: daemon and runner of two versions. What the other one does not know it passes over, or refuses in words; nothing of
//! the task is lost by it.
//!
//! The other version is played by the test: it holds the lock of a task that was accepted, writes its stream, listens on its control
//! socket.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant as Clock};

use dewar::checkpoint::frame::{decode_header, encode_header};
use dewar::checkpoint::{Identity, Instant, Recovery, Root, Writer};
use dewar::proto::control_request::Request;
use dewar::proto::record::Kind;
use dewar::proto::{
    self, Containment, ControlReply, ControlRequest, KillRequest, Launch, PauseRequest,
    SignalRequest, TaskState,
};
use dewar::sys::socket;
use dewar::task::TaskId;
use dewar::task::file::Bindings;
use dewar::{identity, launch};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prost::Message;
use tonic::Code;

use super::super::node::Node;
use super::reason;
use crate::support::{DEADLINE, p, task, wait_until};

/// A field that no message of this version has: number 1000, the bytes "new".
const NEW_FIELD: [u8; 6] = [0xc2, 0x3e, 3, b'n', b'e', b'w'];

/// A runner of another version.
struct Other {
    /// Holds the lock.
    _writer: Writer,
    control: OwnedFd,
    /// Whoever follows it.
    followers: Vec<UnixStream>,
    id: TaskId,
    root: Root,
}

impl Other {
    /// Accepts a task that does nothing, and takes its lead; the daemon is not there yet.
    fn lead(node: &Node) -> Self {
        let (root, id) =
            (Root::new(node.scene.root()).unwrap(), TaskId::new(node.scene.id()).unwrap());
        let bindings = Bindings { task_id: Some(id.clone()), ..Bindings::default() };
        let file = task([p("a", "true")]).text();
        let accepted = dewar::task::file::parse(file.as_bytes(), "task.json", &bindings);
        let accepted = accepted.unwrap_or_else(|report| panic!("{report}"));
        let launch = Launch {
            task_id: id.to_string(),
            task: Some(accepted.task),
            sandbox: node.scene.sandbox().display().to_string(),
            identity: Some(identity::current().unwrap()),
            containment: Containment::None.into(),
            path: "/usr/bin:/bin".to_owned(),
            loss_limit: 100,
            ..Launch::default()
        };
        assert_eq!(launch::accept(&root, &id, &launch).unwrap(), launch::Accepted::New);
        let recovery = Recovery::open_or_create(&root, Identity::runner(id.clone())).unwrap();
        let mut writer = recovery.finish().unwrap().writer;
        let leader = proto::Leader {
            runner: Some(proto::ProcessId {
                pid: std::process::id().cast_signed(),
                start_ticks: 1,
            }),
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .unwrap()
                .trim()
                .to_owned(),
            version: "9.9.9".to_owned(),
            ..proto::Leader::default()
        };
        let active = proto::TaskTransition { state: TaskState::Active.into() };
        for kind in [Kind::Leader(leader), Kind::Task(active)] {
            let now = dewar::sys::clock::now();
            let at = Instant { boot_nanos: now.boot, unix_nanos: now.wall };
            writer.append(kind, at).unwrap();
        }
        writer.flush().unwrap();
        let control = socket::bind_datagram(&root.control(&id)).unwrap();
        Self { _writer: writer, control, followers: Vec::new(), id, root }
    }

    /// Appends a record of a kind that is not known here. Another process does it: a descriptor that is closed here takes the lock
    /// along (fcntl(2)).
    fn record_something_new(&mut self) {
        let header = encode_header(&Identity::runner(self.id.clone()));
        let seed = decode_header(&header).unwrap().seed;
        // Field 1 is its place, after a Launch, a Leader and a TaskTransition.
        let record = [&[8, 3], &NEW_FIELD[..]].concat();
        let length = u32::try_from(record.len()).unwrap().to_le_bytes();
        let checksum = crc32c::crc32c_append(seed, &[&length[..], &record].concat());
        let frame = [&length[..], &checksum.to_le_bytes(), &record].concat();
        let mut tee = Command::new("tee");
        tee.arg("-a").arg(self.root.runner(&self.id)).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut tee = tee.spawn().unwrap();
        tee.stdin.take().unwrap().write_all(&frame).unwrap();
        assert!(tee.wait().unwrap().success());
        self.followers.iter_mut().for_each(|follower| follower.write_all(&[0]).unwrap());
    }

    /// The next request that is not to be followed, and where its answer goes.
    #[track_caller]
    fn next(&mut self) -> (Request, UnixStream) {
        let until = Clock::now() + DEADLINE;
        loop {
            if let Some((request, mut stream)) = self.look() {
                if !matches!(request, Request::Follow(_)) {
                    return (request, stream);
                }
                stream.write_all(&[0]).unwrap();
                self.followers.push(stream);
                continue;
            }
            assert!(Clock::now() < until, "nobody asks");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn look(&self) -> Option<(Request, UnixStream)> {
        let datagram = socket::receive(self.control.as_fd()).unwrap()?;
        let request = ControlRequest::decode(&datagram.bytes[..]).unwrap().request.unwrap();
        Some((request, UnixStream::from(datagram.fd.unwrap())))
    }

    /// Waits until the daemon follows.
    #[track_caller]
    fn wait_until_followed(&mut self) {
        wait_until("the daemon does not follow", || match self.look() {
            Some((Request::Follow(_), mut stream)) => {
                stream.write_all(&[0]).unwrap();
                self.followers.push(stream);
                true
            }
            Some((request, _)) => panic!("{request:?}"),
            None => false,
        });
    }

    /// Answers a call that is made meanwhile.
    fn while_answering<T>(
        &mut self,
        node: &Node,
        call: impl Future<Output = T> + Send + 'static,
        answer: &[u8],
    ) -> (Request, T)
    where
        T: Send + 'static,
    {
        let call = node.runtime.spawn(call);
        std::thread::scope(|scope| {
            let hears = scope.spawn(|| {
                let (request, mut stream) = self.next();
                stream.write_all(answer).unwrap();
                request
            });
            let answer = node.runtime.block_on(call).unwrap();
            (hears.join().unwrap(), answer)
        })
    }
}

/// A daemon that finds a task which a runner of another version leads. Dropped in that order: once the other is gone, the daemon is
/// about to start a runner.
fn skewed() -> (Other, Node) {
    let mut node = Node::new();
    node.kill();
    let mut other = Other::lead(&node);
    node.serve_again();
    other.wait_until_followed();
    (other, node)
}

/// What a file holds, read by another process.
fn bytes_of(path: &Path) -> Vec<u8> {
    Command::new("cat").arg(path).output().unwrap().stdout
}

/// With a field more than is known.
fn newer_reply(reply: &ControlReply) -> Vec<u8> {
    let bytes = [reply.encode_to_vec(), NEW_FIELD.to_vec()].concat();
    let mut framed = Vec::new();
    prost::encode_length_delimiter(bytes.len(), &mut framed).unwrap();
    framed.extend_from_slice(&bytes);
    framed
}

/// attack 41: the daemon watches and controls what a newer runner leads; once that is gone it changes nothing that it does not
/// understand.
#[test]
fn a_newer_runner_is_observed_and_asked_and_its_stream_not_written_on() {
    let (mut other, mut node) = skewed();
    other.record_something_new();
    let task_id = node.scene.id().to_owned();

    assert_eq!(node.get().state(), TaskState::Active);
    let mut runner = node.runner();
    let kill = KillRequest { task_id: task_id.clone(), grace: None, reason: Some("why".into()) };
    let reply = newer_reply(&ControlReply::default());
    let (request, answer) =
        other.while_answering(&node, async move { runner.kill(kill).await }, &reply);
    let Request::Kill(kill) = request else { panic!("{request:?}") };
    assert_eq!(kill.reason.as_deref(), Some("why"));
    assert_eq!(answer.unwrap().into_inner().state(), TaskState::Active);

    let before = bytes_of(&node.scene.stream());
    drop(other);
    let log = node.scene.path("daemon.log");
    let logged = |text: &str| fs::read_to_string(&log).unwrap().matches(text).count();
    wait_until("the daemon has tried", || logged("written by a later version") > 0);
    let task = node.get();
    assert_eq!(task.state(), TaskState::Active);
    let why = "is of a kind that this version of dewar does not know";
    assert!(task.detail.is_some_and(|detail| detail.contains(why)));
    assert!(!node.scene.sandbox().join(".logs").exists(), "something was started");
    // Nor is anything recorded for whoever asks.
    let mut runner = node.runner();
    let kill = KillRequest { task_id, ..KillRequest::default() };
    let refused = node.runtime.block_on(runner.kill(kill)).unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(bytes_of(&node.scene.stream()) == before, "it was written on");
}

/// attack 41: after a downgrade. A runner is started once, and again only by another daemon, while those of other tasks are replaced by
/// the same rule as ever.
#[test]
fn a_task_that_runners_refuse_is_told_once_and_left_alone() {
    let (mut other, mut node) = skewed();
    other.record_something_new();
    let id = node.scene.id().to_owned();
    let before = bytes_of(&node.scene.stream());
    let log = node.scene.path("daemon.log");
    let logged = |text: &str, id: &str| {
        let of_it = format!(" task={id} ");
        let log = fs::read_to_string(&log).unwrap();
        let mut lines: Vec<_> = log.lines().map(|line| format!("{line} ")).collect();
        lines.retain(|line| line.contains(text) && line.contains(&of_it));
        lines.len()
    };
    let refused = || logged("written by a later version", &id);
    let started = |id: &str| logged("a runner was started", id);
    drop(other);
    wait_until("it is told", || refused() == 1);
    let mut observer = node.observer();
    let listed = observer.list_tasks(proto::ListTasksRequest::default());
    let listed = node.runtime.block_on(listed).unwrap().into_inner().tasks;
    assert!(listed[0].detail.as_ref().unwrap().starts_with("written by a later"), "{listed:?}");

    // Another task, whose runner is killed twice: the second time another one is started a while later, as it would be for that task.
    let gate = node.scene.gate("gate");
    let mut request = node.request(&task([p("a", gate.hold())]));
    let killed = format!("{id}.killed");
    (request.task_id, request.sandbox) = (Some(killed.clone()), None);
    let mut runner = node.runner();
    let launched = node.runtime.block_on(runner.launch(request)).unwrap();
    let mut pid = launched.into_inner().task.unwrap().runner_pid.unwrap();
    for times in 1..=2 {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        wait_until("another is started", || started(&killed) == times);
        let get = proto::GetTaskRequest { task_id: killed.clone() };
        wait_until("it leads", || {
            let task = node.runtime.block_on(observer.get_task(get.clone())).unwrap();
            let now = task.into_inner().task.unwrap().runner_pid;
            now.filter(|&now| now != pid).inspect(|&now| pid = now).is_some()
        });
    }
    gate.open();
    wait_until("it ends", || {
        let get = proto::GetTaskRequest { task_id: killed.clone() };
        let task = node.runtime.block_on(observer.get_task(get)).unwrap().into_inner().task;
        task.unwrap().state() == proto::TaskState::Success
    });
    assert_eq!((refused(), started(&id)), (1, 1));

    node.kill();
    node.serve_again();
    wait_until("the next daemon tells it", || refused() == 2);
    assert_eq!(started(&id), 2);
    assert!(bytes_of(&node.scene.stream()) == before, "it was written on");
}

/// attack 41: an older runner does not know all requests, and says so.
#[test]
fn what_an_older_runner_does_not_know_is_refused_in_its_words() {
    let (mut other, mut node) = skewed();
    let request = SignalRequest {
        task_id: node.scene.id().to_owned(),
        signal: "HUP".to_owned(),
        ..SignalRequest::default()
    };
    let reply = ControlReply {
        error: "the runner does not know this request".to_owned(),
        ..ControlReply::default()
    };
    let mut runner = node.runner();

    let (_, answer) = other.while_answering(
        &node,
        async move { runner.signal(request).await },
        &reply.encode_length_delimited_to_vec(),
    );

    let refused = answer.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "REFUSED"));
    assert_eq!(refused.message(), "the runner does not know this request");
    // It goes on to be asked for what it knows.
    let (mut runner, task_id) = (node.runner(), node.scene.id().to_owned());
    let pause = PauseRequest { task_id };
    let reply = ControlReply::default().encode_length_delimited_to_vec();
    let (_, answer) =
        other.while_answering(&node, async move { runner.pause(pause).await }, &reply);
    assert!(answer.is_ok(), "{answer:?}");
}

/// attack 41: a runner is asked by a newer daemon for what it does not know, and for what it knows with more said.
#[test]
fn a_runner_refuses_what_only_a_newer_daemon_knows_and_goes_on() {
    let mut node = Node::new();
    let gate = node.scene.gate("gate");
    let before = node.launch(&task([p("a", gate.hold())]));
    let root = Root::new(node.scene.root()).unwrap();
    let control = root.control(&TaskId::new(node.scene.id()).unwrap());
    let ask = |bytes: &[u8]| {
        let (ours, theirs) = socket::pair().unwrap();
        socket::send_to(&control, bytes, theirs.as_fd(), None, DEADLINE).unwrap();
        drop(theirs);
        let mut answer = Vec::new();
        UnixStream::from(ours).read_to_end(&mut answer).unwrap();
        ControlReply::decode_length_delimited(&answer[..]).unwrap()
    };

    assert_eq!(ask(&NEW_FIELD).error, "the runner does not know this request");
    let pause = ControlRequest { request: Some(Request::Pause(proto::PauseTask {})) };
    let resume = ControlRequest { request: Some(Request::Resume(proto::ResumeTask {})) };
    for known in [pause, resume] {
        let with_more = [known.encode_to_vec(), NEW_FIELD.to_vec()].concat();
        assert_eq!(ask(&with_more), ControlReply::default());
    }

    assert_eq!(node.get().runner_pid, before.runner_pid);
    gate.open();
    assert_eq!(node.wait().state(), TaskState::Success);
}

/// attacks 38, 41: a stream of a later format hides no other task, and is told as what it is.
#[test]
fn a_task_of_a_later_format_is_shown_and_the_others_are_served() {
    let mut node = Node::new();
    node.launch(&task([p("a", "true")]));
    node.wait();
    node.scene.wait_until_led_by_nobody();
    node.kill();
    let later = format!("{}.later", node.scene.id());
    let root = node.scene.root();
    let stream = root.join("checkpoints").join(&later).join("runner");
    fs::create_dir(stream.parent().unwrap()).unwrap();
    fs::write(root.join("tasks/active").join(&later), "{}").unwrap();
    // Magic, version 2, and the length of a header that says nothing more.
    let mut header = b"\x89dewar\r\n\x02\0\0\0\x14\0\0\0".to_vec();
    header.extend_from_slice(&crc32c::crc32c(&header).to_le_bytes());
    fs::write(&stream, &header).unwrap();

    node.serve_again();

    assert_eq!(node.get().state(), TaskState::Success);
    let mut observer = node.observer();
    let listed = observer.list_tasks(proto::ListTasksRequest::default());
    let listed = node.runtime.block_on(listed).unwrap().into_inner().tasks;
    let told: Vec<_> = listed.iter().map(|task| (task.task_id.as_str(), task.state())).collect();
    let own = node.scene.id().to_owned();
    assert_eq!(told, [(own.as_str(), TaskState::Success), (&later, TaskState::Corrupt)]);
    assert!(listed[1].detail.as_ref().unwrap().contains("format version 2"), "{listed:?}");
    assert_eq!(fs::read(&stream).unwrap(), header);
}
