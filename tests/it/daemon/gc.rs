//! The daemon collects garbage.

use dewar::proto::{
    GetTaskRequest, LaunchRequest, TaskState, WaitRequest, WatchTasksRequest,
    watch_tasks_response::Message,
};
use tonic::Code;

use super::node::Node;
use crate::support::{p, task, wait_until};

/// Launches a task in a sandbox of the root, and waits for its end.
fn run(node: &mut Node, id: &str) {
    let mut runner = node.runner();
    let request = LaunchRequest {
        task_id: Some(id.to_owned()),
        sandbox: None,
        ..node.request(&task([p("a", "echo > file")]))
    };
    let wait = WaitRequest { task_id: id.to_owned(), ..WaitRequest::default() };
    node.runtime.block_on(async {
        runner.launch(request).await.unwrap();
        let ended = runner.wait(wait).await.unwrap().into_inner().task.unwrap();
        assert_eq!(ended.state(), TaskState::Success);
    });
}

fn log(node: &Node) -> String {
    std::fs::read_to_string(node.scene.path("daemon.log")).unwrap()
}

/// A task that ends makes an older one go, which watchers are told, and its log says why.
#[test]
fn the_daemon_keeps_the_number_of_tasks_and_tells_its_watchers() {
    let mut node = Node::with(&["--gc-max-tasks", "1", "--gc-keep-at-least", "0s"]);
    let (first, second) = (format!("{}.1", node.scene.id()), format!("{}.2", node.scene.id()));
    let mut observer = node.observer();
    let watch = observer.watch_tasks(WatchTasksRequest::default());
    let mut told = node.runtime.block_on(watch).unwrap().into_inner();

    run(&mut node, &first);
    run(&mut node, &second);

    let removed = node.runtime.block_on(async {
        loop {
            let news = told.message().await.unwrap().unwrap();
            if let Some(Message::RemovedTaskId(id)) = news.message {
                return id;
            }
        }
    });
    assert_eq!(removed, first);
    let get = observer.get_task(GetTaskRequest { task_id: first.clone() });
    assert_eq!(node.runtime.block_on(get).unwrap_err().code(), Code::NotFound);
    let root = node.scene.root();
    for kept in ["checkpoints", "sandboxes", "tasks/finished"] {
        wait_until("all of it is gone", || !root.join(kept).join(&first).exists());
        assert!(root.join(kept).join(&second).exists(), "{kept}");
    }
    let is_told =
        |line: &str| ["removed", "max-tasks", &first].iter().all(|said| line.contains(said));
    wait_until("the log says so", || log(&node).lines().any(is_told));
}

/// By its timer alone: nothing else happens when the task is due. The next daemon goes on with those of the one before.
#[test]
fn the_daemon_removes_a_task_when_it_is_old_enough() {
    let mut node = Node::with(&["--gc-max-age", "3s", "--gc-keep-at-least", "0s"]);
    let (first, second) = (format!("{}.1", node.scene.id()), format!("{}.2", node.scene.id()));
    let checkpoint = |node: &Node, id: &str| node.scene.root().join("checkpoints").join(id);

    run(&mut node, &first);
    wait_until("the first is gone", || !checkpoint(&node, &first).exists());
    run(&mut node, &second);
    node.kill();
    node.serve_again();

    wait_until("the second is gone", || !checkpoint(&node, &second).exists());
}

#[test]
fn without_a_limit_nothing_is_collected() {
    let mut node = Node::new();
    let id = format!("{}.1", node.scene.id());
    run(&mut node, &id);
    let threads = format!("/proc/{}/task", node.daemon.id());
    let names = std::fs::read_dir(threads)
        .unwrap()
        .map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")).unwrap());

    assert!(names.into_iter().all(|name| name.trim() != "gc"));
    assert!(node.scene.root().join("checkpoints").join(&id).exists());
}
