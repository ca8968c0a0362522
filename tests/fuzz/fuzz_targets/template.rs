//! Any text as a template: what comes out has no reference left, or says what is wrong with it.
#![no_main]

use dewar::task::template::{Budget, Reference, TemplateError, expand};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut lines = text.split('\n');
    let text = lines.next().unwrap_or_default();
    let bound: Vec<&str> = lines.collect();
    let find = |reference: &Reference<'_>, _: &mut Budget| match bound.first() {
        Some(first) => Ok(bound.get(reference.text().len()).unwrap_or(first).to_string()),
        None => Err(TemplateError::Unbound(reference.text().to_owned())),
    };
    match expand(text, &mut Budget::default(), find) {
        Ok(filled) if !text.contains("{{") => assert_eq!(filled, text),
        Ok(_) => {}
        Err(errors) => {
            assert!(!errors.is_empty());
            for error in errors {
                let _ = (error.to_string(), error.expected(), error.body().is_some());
            }
        }
    }
});
