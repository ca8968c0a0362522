//! Messages as JSON, one a line.

use serde::Serialize;
use serde_json::Value;

use super::failure::Failure;
use crate::proto::TaskView;

/// `message` as one line.
///
/// # Errors
///
/// [`Failure::Unavailable`] if a value has no JSON, such as a time beyond all calendars.
pub(super) fn line(message: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string(message).map_err(|error| Failure::unavailable(&error))?;
    Ok(text + "\n")
}

/// A message, and the root of its task.
#[derive(Serialize)]
struct Rooted<'a, T> {
    #[serde(flatten)]
    message: &'a T,
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<&'a str>,
}

/// `message` as one line, with the `root` of its task if there is one to be told.
///
/// # Errors
///
/// As [`line`].
pub(super) fn rooted(message: &impl Serialize, root: Option<&str>) -> Result<String, Failure> {
    line(&Rooted { message, root })
}

/// A task as one line, as [`rooted`]. Of a task whose checkpoint could not be read at all, what is not known is absent.
///
/// # Errors
///
/// As [`line`].
pub(super) fn task(view: &TaskView, root: Option<&str>) -> Result<String, Failure> {
    if !view.name.is_empty() {
        return rooted(view, root);
    }
    let mut value = serde_json::to_value(view).map_err(|error| Failure::unavailable(&error))?;
    if let Value::Object(fields) = &mut value {
        fields.retain(|_, value| value.as_str() != Some(""));
    }
    rooted(&value, root)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::corrupt_view;

    #[test]
    fn of_a_task_that_cannot_be_read_nothing_is_made_up() {
        let line = task(&corrupt_view("web-1", None, "bad magic".to_owned()), None).unwrap();

        assert_eq!(
            serde_json::from_str::<Value>(&line).unwrap(),
            serde_json::json!({
                "taskId": "web-1", "state": "TASK_STATE_CORRUPT", "detail": "bad magic",
                "ports": {}, "stateHistory": [], "unenforced": [], "processes": [], "rounded": [], "lostLimits": [], "labels": {}
            })
        );
        assert!(line.ends_with("}\n"));
    }
}
