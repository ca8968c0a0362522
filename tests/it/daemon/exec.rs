//! `Exec` and `Signal`.

use std::fs;
use std::path::PathBuf;

use dewar::proto::exec_ended::End;
use dewar::proto::exec_request::Message as Asked;
use dewar::proto::exec_response::Message as Told;
use dewar::proto::{
    ExecRequest, ExecResponse, ExecStart, ExecStdinEnd, PauseRequest, SignalRequest, SignalScope,
    TerminalSize,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use super::node::Node;
use crate::support::{is_alive, p, task, wait_until};

/// A command that was started, from the side of its caller.
struct Caller {
    to: mpsc::Sender<ExecRequest>,
    from: Streaming<ExecResponse>,
}

/// What a command said to its end.
#[derive(Debug, Default, PartialEq)]
struct Said {
    stdout: String,
    stderr: String,
    end: Option<End>,
}

fn asked(message: Asked) -> ExecRequest {
    ExecRequest { message: Some(message) }
}

impl Node {
    /// Begins a call with `first`.
    fn call(&mut self, first: Asked) -> Result<Caller, Status> {
        let mut runner = self.runner();
        let (to, requests) = mpsc::channel(16);
        to.try_send(asked(first)).unwrap();
        let call = runner.exec(ReceiverStream::new(requests));
        let from = self.runtime.block_on(call)?.into_inner();
        Ok(Caller { to, from })
    }

    fn start(&self, argv: &[&str]) -> ExecStart {
        ExecStart {
            task_id: self.scene.id().to_owned(),
            argv: argv.iter().map(|&text| text.to_owned()).collect(),
            ..ExecStart::default()
        }
    }

    fn exec(&mut self, argv: &[&str]) -> Result<Caller, Status> {
        let start = self.start(argv);
        self.call(Asked::Start(start))
    }

    #[track_caller]
    fn tell(&self, caller: &Caller, message: Asked) {
        self.runtime.block_on(caller.to.send(asked(message))).unwrap();
    }

    #[track_caller]
    fn next(&self, caller: &mut Caller) -> Told {
        self.runtime.block_on(caller.from.message()).unwrap().unwrap().message.unwrap()
    }

    /// Process id of the command, which is told first.
    #[track_caller]
    fn started(&self, caller: &mut Caller) -> i32 {
        let Told::Started(started) = self.next(caller) else { panic!("it is not started") };
        started.pid
    }

    /// Reads until `is` says that it is enough.
    #[track_caller]
    fn said_until(&self, caller: &mut Caller, is: impl Fn(&Said) -> bool) -> Said {
        let mut said = Said::default();
        while !is(&said) {
            match self.next(caller) {
                Told::Started(_) => {}
                Told::Stdout(bytes) => said.stdout += &String::from_utf8_lossy(&bytes),
                Told::Stderr(bytes) => said.stderr += &String::from_utf8_lossy(&bytes),
                Told::Ended(ended) => said.end = ended.end,
            }
        }
        said
    }

    #[track_caller]
    fn said(&self, caller: &mut Caller) -> Said {
        let said = self.said_until(caller, |said| said.end.is_some());
        assert!(self.runtime.block_on(caller.from.message()).unwrap().is_none());
        said
    }

    fn exec_leaves(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.scene.cgroup().unwrap()).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.to_string_lossy().contains("/.exec-")).collect()
    }

    fn end(&mut self) {
        self.scene.kill(&["--wait", "0s"]);
        self.wait();
    }
}

/// A node with a task that sleeps.
fn sleeping() -> Node {
    let mut node = Node::new();
    node.launch(&task([p("a", "exec sleep 600")]));
    wait_until("it runs", || node.get().processes[0].runs.iter().any(|run| run.pid.is_some()));
    node
}

#[test]
fn a_command_gets_its_input_and_tells_its_output_and_end() {
    let mut node = sleeping();
    let mut caller = node.exec(&["sh", "-c", "sort; echo oops >&2; exit 7"]).unwrap();

    node.tell(&caller, Asked::Stdin(b"b\n".to_vec()));
    node.tell(&caller, Asked::Stdin(b"a\n".to_vec()));
    node.tell(&caller, Asked::StdinEnd(ExecStdinEnd {}));
    let said = node.said(&mut caller);

    let (stdout, stderr) = ("a\nb\n".to_owned(), "oops\n".to_owned());
    assert_eq!(said, Said { stdout, stderr, end: Some(End::ExitCode(7)) });
    wait_until("its leaf is gone", || node.exec_leaves().is_empty());
    node.end();
}

/// The end of the requests is the end of the input; more than pipes and queues hold goes through.
#[test]
fn much_goes_through_both_ways() {
    let mut node = sleeping();
    let mut caller = node.exec(&["cat"]).unwrap();
    let to = caller.to.clone();
    let input: Vec<u8> = (0..8_000_000u32).flat_map(|n| n.to_le_bytes()).take(8 << 20).collect();
    let chunks: Vec<Vec<u8>> = input.chunks(64 << 10).map(<[u8]>::to_vec).collect();
    node.runtime.spawn(async move {
        for chunk in chunks {
            to.send(asked(Asked::Stdin(chunk))).await.unwrap();
        }
    });
    let (closed, _) = mpsc::channel(1);
    caller.to = closed;

    let mut output = Vec::new();
    let end = loop {
        match node.next(&mut caller) {
            Told::Stdout(bytes) => output.extend(bytes),
            Told::Ended(ended) => break ended.end,
            _ => {}
        }
    };

    assert_eq!(end, Some(End::ExitCode(0)));
    assert!(output == input, "{} bytes", output.len());
    node.end();
}

#[test]
fn a_terminal_has_a_size_and_is_resized_and_its_command_signalled() {
    let mut node = sleeping();
    let script = "trap 'stty size' WINCH; trap 'exit 9' USR1; stty size; echo ready; while :; do sleep 0.02; done";
    let tty = Some(TerminalSize { rows: 20, columns: 90 });
    let start = ExecStart { tty, ..node.start(&["sh", "-c", script]) };
    let mut caller = node.call(Asked::Start(start)).unwrap();

    let first = node.said_until(&mut caller, |said| said.stdout.ends_with("ready\r\n"));
    node.tell(&caller, Asked::Resize(TerminalSize { rows: 3, columns: 4 }));
    let second = node.said_until(&mut caller, |said| said.stdout.ends_with("3 4\r\n"));
    node.tell(&caller, Asked::Signal("USR1".to_owned()));
    let said = node.said(&mut caller);

    assert_eq!(first.stdout, "20 90\r\nready\r\n");
    assert_eq!(second.stdout, "3 4\r\n");
    assert_eq!(said.end, Some(End::ExitCode(9)));
    node.end();
}

#[test]
fn the_end_of_the_input_at_a_terminal_is_heard() {
    let mut node = sleeping();
    let tty = Some(TerminalSize { rows: 20, columns: 90 });
    let start =
        ExecStart { tty, ..node.start(&["sh", "-c", "stty -echo; echo ready; cat; echo over"]) };
    let mut caller = node.call(Asked::Start(start)).unwrap();
    node.said_until(&mut caller, |said| said.stdout.contains("ready\r\n"));

    node.tell(&caller, Asked::Stdin(b"line\n".to_vec()));
    node.tell(&caller, Asked::StdinEnd(ExecStdinEnd {}));

    let said = node.said(&mut caller);
    assert_eq!((&*said.stdout, said.end), ("line\r\nover\r\n", Some(End::ExitCode(0))));
    node.end();
}

#[test]
fn a_caller_that_leaves_takes_its_command_along() {
    let mut node = sleeping();
    let script = "trap '' TERM HUP; setsid sleep 600 & echo $!; wait";
    let mut caller = node.exec(&["sh", "-c", script]).unwrap();
    let pid = node.started(&mut caller);
    let said = node.said_until(&mut caller, |said| said.stdout.ends_with('\n'));
    let child: i32 = said.stdout.trim().parse().unwrap();
    assert!(is_alive(pid) && is_alive(child));

    drop(caller);

    wait_until("both are gone", || {
        // A client of one thread says what it has to say while it does something.
        node.get();
        !is_alive(pid) && !is_alive(child) && node.exec_leaves().is_empty()
    });
    node.end();
}

/// attack 48, of a command: who does not read keeps nobody waiting, and its command stops writing.
#[test]
fn a_caller_that_does_not_read_holds_up_nobody_else() {
    let mut node = sleeping();
    let mut caller = node.exec(&["yes"]).unwrap();
    node.started(&mut caller);

    let mut other = node.exec(&["echo", "here"]).unwrap();
    assert_eq!(node.said(&mut other).stdout, "here\n");

    node.tell(&caller, Asked::Signal("KILL".to_owned()));
    assert_eq!(node.said(&mut caller).end, Some(End::Signal("SIGKILL".to_owned())));
    node.end();
}

/// A command belongs to its call: what a daemon that was killed left is killed by the next one.
#[test]
fn a_command_of_a_daemon_that_was_killed_does_not_stay() {
    let mut node = sleeping();
    let mut caller = node.exec(&["sleep", "600"]).unwrap();
    let pid = node.started(&mut caller);

    node.kill();
    assert!(is_alive(pid));
    node.serve_again();

    wait_until("it is dead", || !is_alive(pid));
    let mut other = node.exec(&["echo", "here"]).unwrap();
    assert_eq!(node.said(&mut other).stdout, "here\n");
    node.end();
}

/// Each with a reason for programs.
#[test]
fn what_cannot_be_run_says_why() {
    let mut node = sleeping();
    let reason = |status: &Status| {
        let details = status.get_error_details();
        details.error_info().map(|info| info.reason.clone()).unwrap_or_default()
    };
    let fields = |status: &Status| {
        let details = status.get_error_details();
        let bad = details.bad_request().map(|bad| bad.field_violations.clone());
        bad.into_iter().flatten().map(|of| of.field).collect::<Vec<_>>()
    };
    let fails = |node: &mut Node, first: Asked| match node.call(first) {
        Err(status) => status,
        Ok(mut caller) => loop {
            match node.runtime.block_on(caller.from.message()) {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it went well"),
                Err(status) => break status,
            }
        },
    };

    let missing = node.start(&["no-such-program"]);
    let missing = fails(&mut node, Asked::Start(missing));
    assert_eq!((missing.code(), &*reason(&missing)), (Code::FailedPrecondition, "EXEC_FAILED"));
    let text = "start \"no-such-program\": execve: ENOENT: No such file or directory";
    assert_eq!(missing.message(), text);

    let nothing = node.start(&[]);
    assert_eq!(fields(&fails(&mut node, Asked::Start(nothing))), ["start.argv"]);
    let tty = Some(TerminalSize { rows: 0, columns: 65536 });
    let flat = ExecStart { tty, ..node.start(&["true"]) };
    assert_eq!(fields(&fails(&mut node, Asked::Start(flat))), ["start.tty.rows"]);
    assert_eq!(fields(&fails(&mut node, Asked::Stdin(vec![1]))), ["message"]);

    let start = node.start(&["cat"]);
    let mut caller = node.call(Asked::Start(start.clone())).unwrap();
    node.started(&mut caller);
    node.tell(&caller, Asked::Signal("FOO".to_owned()));
    let bad = node.runtime.block_on(caller.from.message()).unwrap_err();
    assert_eq!((bad.code(), fields(&bad)), (Code::InvalidArgument, vec!["signal".to_owned()]));

    let unknown = ExecStart { task_id: "nobody".to_owned(), ..start.clone() };
    let unknown = fails(&mut node, Asked::Start(unknown));
    assert_eq!((unknown.code(), &*reason(&unknown)), (Code::NotFound, "NO_TASK"));

    let mut runner = node.runner();
    let pause = PauseRequest { task_id: node.scene.id().to_owned() };
    node.runtime.block_on(runner.pause(pause)).unwrap();
    let paused = fails(&mut node, Asked::Start(start.clone()));
    assert_eq!((paused.code(), &*reason(&paused)), (Code::FailedPrecondition, "TASK_PAUSED"));

    node.end();
    let over = fails(&mut node, Asked::Start(start));
    assert_eq!((over.code(), &*reason(&over)), (Code::FailedPrecondition, "TASK_OVER"));
}

#[test]
fn a_signal_reaches_those_who_are_meant() {
    let mut node = Node::new();
    let script = "trap 'echo leader >> got' USR1; (trap 'echo child >> got' USR1; touch ready; \
                  while :; do sleep 0.02; done) & while :; do sleep 0.02; done";
    node.launch(&task([p("a", script)]));
    wait_until("it is ready", || node.scene.sandbox().join("ready").exists());
    node.scene.wait_until_known_to_run("a");
    let task_id = node.scene.id().to_owned();
    let got =
        |node: &Node| fs::read_to_string(node.scene.sandbox().join("got")).unwrap_or_default();
    let signal = |node: &mut Node, signal: &str, scope: SignalScope, process: Option<&str>| {
        let request = SignalRequest {
            task_id: task_id.clone(),
            signal: signal.to_owned(),
            scope: scope.into(),
            process: process.map(str::to_owned),
        };
        let mut runner = node.runner();
        node.runtime.block_on(runner.signal(request)).map(drop)
    };

    signal(&mut node, "SIGUSR1", SignalScope::Unspecified, Some("a")).unwrap();
    wait_until("it came", || got(&node) == "leader\n");
    signal(&mut node, "10", SignalScope::All, None).unwrap();
    wait_until("it came to both", || {
        got(&node).lines().count() == 3 && got(&node).contains("child")
    });

    let bad = signal(&mut node, "FOO", SignalScope::All, None).unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    let unknown = signal(&mut node, "HUP", SignalScope::Leaders, Some("b")).unwrap_err();
    assert_eq!(unknown.code(), Code::FailedPrecondition);
    assert_eq!(unknown.message(), "it has no process \"b\"");
    node.end();
    let over = signal(&mut node, "HUP", SignalScope::Leaders, None).unwrap_err();
    assert_eq!(over.get_error_details().error_info().unwrap().reason, "TASK_OVER");
}

/// A command that takes no input can be ended all the same, as long as its caller does not send too much of it.
#[test]
fn a_signal_overtakes_input_that_is_not_taken() {
    let mut node = sleeping();
    let mut caller = node.exec(&["sleep", "600"]).unwrap();
    node.started(&mut caller);

    // A pipe holds 64 KiB (pipe(7)).
    for _ in 0..4 {
        node.tell(&caller, Asked::Stdin(vec![b'x'; 60 << 10]));
    }
    node.tell(&caller, Asked::Signal("TERM".to_owned()));

    assert_eq!(node.said(&mut caller).end, Some(End::Signal("SIGTERM".to_owned())));
    node.end();
}
