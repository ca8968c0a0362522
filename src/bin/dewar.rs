//! temp
use dewar::*;
use std::io::Read;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    if a[2] == "kill" {
        let root = checkpoint::Root::new(&a[1]).unwrap();
        println!(
            "{:?}",
            control::kill(
                &root,
                &task::TaskId::new(a[3].clone()).unwrap(),
                std::time::Duration::from_secs_f64(a[4].parse().unwrap()),
                a.len() > 5
            )
        );
        return;
    }
    let src = std::fs::read(&a[2]).unwrap();
    let b = task::file::Bindings {
        task_id: Some(task::TaskId::new(a[3].clone()).unwrap()),
        id_suffix: "x".into(),
        user: "root".into(),
        ports: Default::default(),
        variables: Default::default(),
    };
    let acc = match task::file::parse(&src, &a[2], &b) {
        Ok(a) => a,
        Err(e) => {
            eprintln!("{e}");
            std::process::exit(2)
        }
    };
    let root = checkpoint::Root::new(&a[1]).unwrap();
    let none = a.get(4).is_some_and(|x| x == "none");
    let launch = proto::Launch {
        task_id: a[3].clone(),
        task: Some(acc.task),
        sandbox: root.sandbox(&acc.task_id).display().to_string(),
        identity: Some(identity::current().unwrap()),
        containment: if none { 2 } else { 1 },
        path: std::env::var("PATH").unwrap(),
        loss_limit: 100,
        ..Default::default()
    };
    println!("{:?}", launch::accept(&root, &acc.task_id, &launch));
    let base = (!none).then(|| cgroup::find(&cgroup::Options::default()).unwrap());
    let s =
        launch::start_runner(&root, &acc.task_id, base.as_ref(), launch::Console::Inherit).unwrap();
    let mut f = std::fs::File::from(s.nudges);
    let mut v = Vec::new();
    let _ = f.read_to_end(&mut v);
    println!(
        "{} nudges, pid {} exit {:?}",
        v.len(),
        s.pid,
        sys::pidfd::wait(std::os::fd::AsFd::as_fd(&s.pidfd))
    );
    let mut r =
        checkpoint::Reader::open(&root, &checkpoint::Identity::runner(acc.task_id)).unwrap();
    while let Some(rec) = r.next_record().unwrap() {
        println!("{}", serde_json::to_string(&rec).unwrap());
    }
}
