//! Any bytes as a task file: a task that survives its own message, or errors that can be shown.
#![no_main]

use dewar::task::TaskSpec;
use dewar::task::file::{Bindings, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let bindings = Bindings {
        id_suffix: "20260102-030405.000006".into(),
        user: "user".into(),
        ports: [("http".to_owned(), 80)].into(),
        variables: [("x".to_owned(), "{{y}}".to_owned()), ("y".to_owned(), "z".to_owned())].into(),
        ..Bindings::default()
    };
    match parse(bytes, "task.yaml", &bindings) {
        Ok(accepted) => {
            assert_eq!(TaskSpec::from_proto(&accepted.task).as_ref(), Ok(&accepted.spec));
            assert_eq!(TaskSpec::from_proto(&accepted.spec.to_proto()), Ok(accepted.spec));
        }
        Err(report) => {
            assert!(!report.diagnostics().is_empty());
            let shown = report.to_string();
            assert!(!shown.contains(|c: char| c.is_control() && c != '\n'));
        }
    }
});
