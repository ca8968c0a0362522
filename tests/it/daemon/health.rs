//! `dewar health`, as a container or a service manager asks.

use std::os::unix::net::UnixListener;

use super::node::Node;

#[test]
fn the_exit_status_says_whether_the_daemon_serves() {
    let mut node = Node::new();
    let socket = node.socket();
    let ask = |node: &Node| {
        let mut health = node.scene.command(["health", "--timeout", "1s", "--address"]);
        health.arg(&socket);
        let told = node.scene.output(health);
        (told.status, told.stdout, told.stderr)
    };

    assert_eq!(ask(&node), (Some(0), String::new(), String::new()));

    node.kill();
    let (status, _, why) = ask(&node);
    assert_eq!(status, Some(1));
    assert!(
        why.contains("no daemon listens on") && why.contains(socket.to_str().unwrap()),
        "{why}"
    );

    // One that hangs: it is connected to, and does not answer.
    std::fs::remove_file(&socket).unwrap();
    let _hangs = UnixListener::bind(&socket).unwrap();
    let (status, _, why) = ask(&node);
    assert_eq!(status, Some(1));
    assert!(why.contains("no answer within 1s"), "{why}");
}
