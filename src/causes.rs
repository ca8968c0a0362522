//! An error with its causes, on one line: what each of our programs prints.

use std::error::Error;

/// The whole of what `error` says, its causes included.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
