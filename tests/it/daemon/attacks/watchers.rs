//! Attack 48: watchers that never read.

use std::time::{Duration, Instant};

use dewar::proto::observer_service_client::ObserverServiceClient;
use dewar::proto::watch_tasks_response::Message;
use dewar::proto::{WatchTasksRequest, WatchTasksResponse};
use tonic::{Code, Streaming};

use super::super::node::Node;
use crate::support::{p, task, wait_until};

/// Connections of a hundred watchers each.
const CONNECTIONS: usize = 5;
/// Runs of the task: four events each, for every watcher.
const RUNS: u32 = 60;

impl Node {
    /// Everything that is told, until it has been told that the task is over.
    fn read_on(&self, watcher: &mut Streaming<WatchTasksResponse>) -> Vec<WatchTasksResponse> {
        let mut told = Vec::new();
        self.runtime.block_on(async {
            while let Some(message) = watcher.message().await.unwrap() {
                let is_over = is_end(&message);
                told.push(message);
                if is_over {
                    return;
                }
            }
        });
        told
    }
}

fn is_end(told: &WatchTasksResponse) -> bool {
    let Some(Message::Event(event)) = &told.message else { return false };
    event.task_state == Some(dewar::proto::TaskState::Failed.into())
}

/// attack 48: the daemon does not grow with what they do not read, others are told at once, and who reads after all is told each event
/// once.
#[test]
fn five_hundred_watchers_that_never_read_hold_up_nobody() {
    let mut node = Node::new();
    node.observer();
    let before = node.memory();
    let mut watchers = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut observer = ObserverServiceClient::new(node.channel());
        for _ in 0..100 {
            let watch = observer.watch_tasks(WatchTasksRequest::default());
            watchers.push(node.runtime.block_on(watch).unwrap().into_inner());
        }
    }

    let failing = p("a", "exit 1").max_failures(RUNS).with("min_duration", 0);
    node.launch(&task([failing]));
    wait_until("the half of it", || {
        let start = Instant::now();
        let runs = node.get().processes[0].runs.len();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        runs > RUNS as usize / 2
    });
    let mut reader = ObserverServiceClient::new(node.channel());
    let task_id = Some(node.scene.id().to_owned());
    let whole = WatchTasksRequest { task_id, ..WatchTasksRequest::default() };
    let mut whole = node.runtime.block_on(reader.watch_tasks(whole)).unwrap().into_inner();
    let whole = node.read_on(&mut whole);
    node.wait();
    let grown = node.memory().saturating_sub(before);
    assert!(grown < 128 << 10, "the daemon grew by {grown} kB");

    // One of them reads after all. The others of its connection would have filled that.
    let mut late = watchers.pop().unwrap();
    drop(watchers);
    let told = node.read_on(&mut late);
    let events = |told: &[WatchTasksResponse]| -> Vec<u64> {
        let event = |told: &WatchTasksResponse| match &told.message {
            Some(Message::Event(event)) => Some(event.cursor),
            _ => None,
        };
        told.iter().filter_map(event).collect()
    };
    assert_eq!(events(&told), events(&whole));
    assert!(events(&told).len() > 4 * RUNS as usize);
    // And anybody else from where it was.
    let half = &told[told.len() / 2];
    let cursor = Some(half.cursor.clone());
    let rest = WatchTasksRequest { cursor, ..WatchTasksRequest::default() };
    let mut rest = node.runtime.block_on(reader.watch_tasks(rest)).unwrap().into_inner();
    assert_eq!(node.read_on(&mut rest), told[told.len() / 2 + 1..]);
    // What nobody was told is nowhere to go on from.
    let (life, _) = half.cursor.split_once('-').unwrap();
    let cursor = Some(format!("{life}-18446744073709551615"));
    let beyond = WatchTasksRequest { cursor, ..WatchTasksRequest::default() };
    let beyond = node.runtime.block_on(reader.watch_tasks(beyond)).map(drop);
    assert_eq!(beyond.map_err(|status| status.code()), Err(Code::InvalidArgument));
}
