//! `dewar serve`, by a client over its socket.

mod attacks;
mod client;
mod clients;
mod exec;
mod gc;
mod health;
mod history;
mod node;
mod reading;
mod tcp;
mod top;
mod traces;
mod web;

use dewar::proto::watch_tasks_response::Message;
use dewar::proto::{
    GetNodeRequest, KillRequest, LaunchRequest, ListTasksRequest, RemoveRequest, TaskFilter,
    TaskState, WaitRequest, WatchTasksRequest,
};
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::{DEADLINE, Pid, Scene, p, task, wait_until};
use node::Node;

#[test]
fn a_task_is_launched_and_told_of_to_its_end() {
    let mut node = Node::new();

    let launched = node.launch(&task([p("a", "echo here; exit 3")]));
    let ended = node.wait();

    assert_eq!(launched.task_id, node.scene.id());
    assert_eq!(ended.state(), TaskState::Failed);
    assert_eq!(ended.processes[0].runs[0].exit_code, Some(3));
    assert_eq!(node.scene.stdout("a", 0), "here\n");
    assert_eq!(node.get(), ended);
}

/// The same task is accepted once, another one under its id is refused by the field that differs.
#[test]
fn a_launch_can_be_repeated_and_not_be_changed() {
    let mut node = Node::new();
    let gate = node.scene.gate("gate");
    let same = task([p("a", gate.hold())]);
    let request = node.request(&same);
    let other = node.request(&task([p("a", "true")]));
    let mut runner = node.runner();

    let first = node.runtime.block_on(runner.launch(request.clone())).unwrap().into_inner();
    let again = node.runtime.block_on(runner.launch(request)).unwrap().into_inner();
    let refused = node.runtime.block_on(runner.launch(other)).unwrap_err();

    assert!(first.is_new && !again.is_new);
    assert_eq!(refused.code(), Code::AlreadyExists);
    let info = refused.get_error_details();
    let info = info.error_info().unwrap();
    assert_eq!(info.reason, "TASK_DIFFERS");
    assert_eq!(info.metadata["field"], "task.processes[0].cmdline");
    gate.open();
    assert_eq!(node.wait().state(), TaskState::Success);
}

#[test]
fn a_bad_task_file_is_refused_field_by_field() {
    let mut node = Node::new();
    let text =
        "name: x\nprocesses: [{name: a, cmdline: b, max_failures: -1}, {name: a/b, cmdline: c}]";
    let source = Some(dewar::proto::launch_request::Source::TaskFile(text.to_owned()));
    let request = LaunchRequest { source, ..LaunchRequest::default() };
    let mut runner = node.runner();

    let refused = node.runtime.block_on(runner.launch(request)).unwrap_err();

    assert_eq!(refused.code(), Code::InvalidArgument);
    let details = refused.get_error_details();
    let fields: Vec<_> =
        details.bad_request().unwrap().field_violations.iter().map(|of| &of.field).collect();
    assert_eq!(fields, ["task_file.processes[0].max_failures", "task_file.processes[1].name"]);
}

/// No `kill -9` of the daemon is noticed by a task; the next one finds it.
#[test]
fn a_task_goes_on_without_the_daemon_and_is_found_by_the_next() {
    let mut node = Node::new();
    let gate = node.scene.gate("gate");
    let before = node.launch(&task([p("a", gate.hold())]));

    node.kill();
    node.serve_again();

    assert_eq!(node.get().runner_pid, before.runner_pid);
    gate.open();
    assert_eq!(node.wait().state(), TaskState::Success);
    node.kill();
    node.serve_again();
    assert_eq!(node.get().state(), TaskState::Success);
}

#[test]
fn a_runner_that_dies_is_replaced() {
    let mut node = Node::new();
    let gate = node.scene.gate("gate");
    let before = node.launch(&task([p("a", gate.hold())])).runner_pid.unwrap();

    nix::sys::signal::kill(nix::unistd::Pid::from_raw(before), nix::sys::signal::SIGKILL).unwrap();

    wait_until("another runner", || node.get().runner_pid.is_some_and(|pid| pid != before));
    gate.open();
    assert_eq!(node.wait().state(), TaskState::Success);
}

/// V30: its runner goes on, as nobody has told it to end, and is not replaced.
#[test]
fn a_task_that_is_taken_from_the_root_is_not_told_any_more() {
    let mut node = Node::new();
    let gate = node.scene.gate("gate");
    let pid = node.launch(&task([p("a", gate.hold())])).runner_pid.unwrap();
    let runner = Pid::of(pid);
    let mut observer = node.observer();
    let watch = observer.watch_tasks(WatchTasksRequest::default());
    let mut told = node.runtime.block_on(watch).unwrap().into_inner();
    let first = node.runtime.block_on(told.message()).unwrap().unwrap();
    assert!(matches!(first.message, Some(Message::Task(_))), "{first:?}");

    std::fs::remove_file(node.scene.root().join("tasks/active").join(node.scene.id())).unwrap();

    let removal = async {
        loop {
            let message = told.message().await.unwrap().unwrap().message;
            if let Some(Message::RemovedTaskId(id)) = message {
                return id;
            }
        }
    };
    let removed = node.runtime.block_on(async { tokio::time::timeout(DEADLINE, removal).await });
    assert_eq!(removed.as_deref(), Ok(node.scene.id()));
    let listed = observer.list_tasks(ListTasksRequest::default());
    let listed = node.runtime.block_on(listed).unwrap().into_inner();
    assert_eq!(listed.tasks, []);
    gate.open();
    runner.wait();
    wait_until("the daemon has waited for it", || Pid::find(pid).is_none());
    // What follows this one has by then done with that.
    let mut request = node.request(&task([p("a", "true")]));
    request.task_id = Some(format!("{}.next", node.scene.id()));
    let next = request.task_id.clone().unwrap();
    let mut runner = node.runner();
    node.runtime.block_on(runner.launch(request)).unwrap();
    let wait = WaitRequest { task_id: next, ..WaitRequest::default() };
    node.runtime.block_on(runner.wait(wait)).unwrap();
    let log = || std::fs::read_to_string(node.scene.path("daemon.log")).unwrap();
    assert!(log().contains("was taken from among the active ones"), "{}", log());
    assert!(!log().contains("another is started"), "{}", log());
}

/// Exactly once, whatever became of the daemon meanwhile.
#[test]
fn a_watcher_of_a_task_goes_on_where_it_was() {
    let mut node = Node::new();
    let gate = node.scene.gate("gate");
    node.launch(&task([p("a", gate.hold())]));
    let task_id = Some(node.scene.id().to_owned());
    let watch = |cursor| WatchTasksRequest { task_id: task_id.clone(), cursor, filter: None };
    let mut told = Vec::new();
    let mut cursor = None;
    for last in [false, true] {
        let mut observer = node.observer();
        let request = watch(cursor.clone());
        node.runtime.block_on(async {
            let mut events = observer.watch_tasks(request).await.unwrap().into_inner();
            while let Some(told_now) = events.message().await.unwrap() {
                let Some(Message::Event(event)) = told_now.message else { panic!("{told_now:?}") };
                cursor = Some(told_now.cursor);
                let runs = event.run.as_ref().is_some_and(|run| run.pid.is_some());
                told.push(event.cursor);
                if runs && !last {
                    break;
                }
            }
        });
        node.kill();
        node.serve_again();
        gate.open();
    }
    let mut whole = Vec::new();
    let mut observer = node.observer();
    node.runtime.block_on(async {
        let mut events = observer.watch_tasks(watch(None)).await.unwrap().into_inner();
        while let Some(told) = events.message().await.unwrap() {
            let Some(Message::Event(event)) = told.message else { panic!("{told:?}") };
            whole.push(event.cursor);
        }
    });
    assert_eq!(told, whole);
    assert!(whole.len() > 6, "{whole:?}");
}

#[test]
fn a_watcher_of_all_gets_a_snapshot_and_what_comes_then() {
    let mut node = Node::new();
    let mut observer = node.observer();
    let watch = observer.watch_tasks(WatchTasksRequest::default());
    let mut told = node.runtime.block_on(watch).unwrap().into_inner();
    let first = node.runtime.block_on(told.message()).unwrap().unwrap();
    assert!(matches!(first.message, Some(Message::SnapshotEnd(_))));

    node.launch(&task([p("a", "true")]));

    let mut states = Vec::new();
    node.runtime.block_on(async {
        while states.last() != Some(&TaskState::Success) {
            if let Some(Message::Event(event)) = told.message().await.unwrap().unwrap().message {
                states.extend(event.task_state.map(|_| event.task_state()));
            }
        }
    });
    use TaskState as S;
    assert_eq!(states, [S::Active, S::Cleaning, S::Finalizing, S::Success]);
    node.kill();
    node.serve_again();
    let cursor = Some(first.cursor);
    let mut observer = node.observer();
    let again = observer.watch_tasks(WatchTasksRequest { cursor, ..Default::default() });
    let refused = node.runtime.block_on(again).unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
    assert_eq!(refused.get_error_details().error_info().unwrap().reason, "HISTORY_LOST");
}

#[test]
fn tasks_are_listed_by_label_and_state_page_by_page_and_removed() {
    let mut node = Node::new();
    let gate = node.scene.gate("gate");
    let mut runner = node.runner();
    for (name, cmdline) in [("1", "true".to_owned()), ("2", gate.hold()), ("3", gate.hold())] {
        let mut request = node.request(&task([p("a", cmdline)]));
        request.task_id = Some(format!("{}.{name}", node.scene.id()));
        request.sandbox = None;
        request.labels =
            [("n".to_owned(), name.to_owned()), ("all".to_owned(), String::new())].into();
        node.runtime.block_on(runner.launch(request)).unwrap();
    }
    let mut observer = node.observer();
    let list = |filter: TaskFilter, page_token: String, page_size| ListTasksRequest {
        filter: Some(filter),
        page_size,
        page_token,
    };
    let active = TaskFilter { states: vec![TaskState::Active.into()], ..TaskFilter::default() };
    wait_until("the end of the first", || {
        let listed = observer.list_tasks(list(active.clone(), String::new(), 0));
        node.runtime.block_on(listed).unwrap().into_inner().tasks.len() == 2
    });
    let labelled = TaskFilter {
        labels: [("all".to_owned(), String::new())].into(),
        pattern: Some(".*[.][123]".to_owned()),
        ..TaskFilter::default()
    };
    let mut pages = Vec::new();
    let mut token = String::new();
    loop {
        let page = observer.list_tasks(list(labelled.clone(), token, 2));
        let page = node.runtime.block_on(page).unwrap().into_inner();
        pages.push(page.tasks.len());
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(pages, [2, 1]);

    let id = |name: &str| format!("{}.{name}", node.scene.id());
    let remove = |task_id: String| RemoveRequest { task_id, sandbox: true };
    let live = node.runtime.block_on(runner.remove(remove(id("2")))).unwrap_err();
    assert_eq!(live.code(), Code::FailedPrecondition);
    for _ in 0..2 {
        node.runtime.block_on(runner.remove(remove(id("1")))).unwrap();
    }
    let root = node.scene.root();
    for left in ["checkpoints", "sandboxes", "tasks/finished"] {
        assert!(!root.join(left).join(id("1")).exists(), "{left}");
    }
    for name in ["2", "3"] {
        let kill = KillRequest {
            task_id: id(name),
            grace: Some(pbjson_types::Duration { seconds: 0, nanos: 0 }),
            reason: None,
        };
        node.runtime.block_on(runner.kill(kill.clone())).unwrap();
        let wait = dewar::proto::WaitRequest { task_id: id(name), ..Default::default() };
        let ended = node.runtime.block_on(runner.wait(wait)).unwrap().into_inner().task.unwrap();
        assert_eq!(ended.state(), TaskState::Killed);
        node.runtime.block_on(runner.kill(kill)).unwrap();
    }
}

/// However far the daemon's list of tasks is behind: by its stream a task is over before.
#[test]
fn what_is_over_can_be_removed_at_once() {
    let mut node = Node::of_environment(Scene::new(), &[], &[("DEWAR_FAILPOINT_DELAY", "40")]);
    let mut runner = node.runner();
    for number in 0..4 {
        let mut request = node.request(&task([p("a", "true")]));
        let id = format!("{}.{number}", node.scene.id());
        (request.task_id, request.sandbox) = (Some(id.clone()), None);
        node.runtime.block_on(runner.launch(request)).unwrap();
        let finished = node.scene.root().join("tasks/finished").join(&id);
        wait_until("it is not filed away", || finished.exists());

        let request = RemoveRequest { task_id: id, sandbox: true };
        node.runtime.block_on(runner.remove(request)).unwrap();

        assert!(!finished.exists());
    }
}

/// A pattern of a few characters may take long at each id, and there may be many. More of them are looked for here than the daemon has
/// threads that serve.
#[test]
fn whoever_looks_for_what_takes_long_holds_up_nobody() {
    const TASKS: usize = 10;
    let mut node = Node::new();
    let finished = node.scene.root().join("tasks/finished");
    // Of what cannot be read there is an id.
    for number in 0..TASKS {
        std::fs::write(finished.join(format!("{}-{number}", "a".repeat(230))), "").unwrap();
    }
    node.kill();
    node.serve_again();
    let filter =
        Some(TaskFilter { pattern: Some("(?:a?){800}b".to_owned()), ..TaskFilter::default() });
    let (mut observer, runtime) = (node.observer(), &node.runtime);
    let counted = runtime.block_on(observer.get_node(GetNodeRequest {})).unwrap().into_inner();
    assert_eq!(counted.task_counts["TASK_STATE_CORRUPT"], TASKS as u64);

    let mut slow = Vec::new();
    for _ in 0..2 {
        let (mut lists, mut watches, filter) = (observer.clone(), observer.clone(), filter.clone());
        let list = ListTasksRequest { filter: filter.clone(), ..ListTasksRequest::default() };
        let watch = WatchTasksRequest { filter, ..WatchTasksRequest::default() };
        slow.push(runtime.spawn(async move { lists.list_tasks(list).await.map(drop) }));
        slow.push(runtime.spawn(async move {
            let mut told = watches.watch_tasks(watch).await?.into_inner();
            told.message().await.map(drop)
        }));
    }
    // Each is asked once the one before is answered: by then all of those are under way.
    for _ in 0..5 {
        runtime.block_on(observer.get_node(GetNodeRequest {})).unwrap();
    }

    assert!(slow.iter().all(|call| !call.is_finished()), "others had to wait for it");
    for call in slow {
        runtime.block_on(call).unwrap().unwrap();
    }
}

/// Whoever runs them starts their runners, however short they are and however late the daemon looks.
#[test]
fn the_short_tasks_of_others_get_no_runner_from_the_daemon() {
    const TASKS: usize = 30;
    let mut node = Node::new();
    let file = node.scene.file("true.json", task([p("a", "true")]).text());
    for number in 0..TASKS {
        let id = format!("{}-{number}", node.scene.id());
        let run = ["run", "--task-id", &id, file.to_str().unwrap()];
        let told = node.scene.dewar(&run);
        assert_eq!(told.status, Some(0), "{told:?}");
    }
    let filter = TaskFilter { states: vec![TaskState::Success.into()], ..TaskFilter::default() };
    let all = ListTasksRequest { filter: Some(filter), ..ListTasksRequest::default() };
    let mut observer = node.observer();
    wait_until("all are known to be over", || {
        let listed = node.runtime.block_on(observer.list_tasks(all.clone())).unwrap();
        listed.into_inner().tasks.len() == TASKS
    });

    let log = std::fs::read_to_string(node.scene.path("daemon.log")).unwrap();

    assert!(!log.contains("a runner was started"), "{log}");
}
