//! Patterns of task ids.

use regex_lite::Regex;

use super::failure::Failure;
use crate::task::TaskId;

/// Longest expression that a daemon takes, bytes.
#[cfg(feature = "net")]
const PATTERN_MAX: usize = 1024;

/// Patterns, any of which may match; none at all match everything.
#[derive(Debug, Default)]
pub(super) struct Patterns {
    patterns: Vec<(String, Regex)>,
}

impl Patterns {
    /// Compiles regular expressions, each of which is to match a whole id.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] names the one that is none.
    pub(super) fn new(texts: &[String]) -> Result<Self, Failure> {
        let compile = |text: &String| {
            // By itself first: `a)|(b` is an expression only within the group.
            let regex = Regex::new(text).and_then(|_| Regex::new(&format!(r"\A(?:{text})\z")));
            let regex =
                regex.map_err(|error| Failure::Usage(format!("pattern {text:?}: {error}")))?;
            Ok((text.clone(), regex))
        };
        Ok(Self { patterns: texts.iter().map(compile).collect::<Result<_, Failure>>()? })
    }

    /// One expression that matches whatever these match, for who is asked to choose; `None` where there is nothing to choose, or more
    /// than a daemon takes.
    #[cfg(feature = "net")]
    pub(super) fn together(&self) -> Option<String> {
        let each = self.patterns.iter().map(|(text, _)| format!("(?:{text})|{}", literal(text)));
        let together = each.collect::<Vec<_>>().join("|");
        (!together.is_empty() && together.len() <= PATTERN_MAX).then_some(together)
    }

    /// Whether `id` matches. An id matches itself, whatever it would mean as an expression.
    pub(super) fn matches(&self, id: &TaskId) -> bool {
        let id = id.as_str();
        self.patterns.is_empty()
            || self.patterns.iter().any(|(text, regex)| text == id || regex.is_match(id))
    }
}

/// An expression that matches `text` and nothing else.
#[cfg(feature = "net")]
fn literal(text: &str) -> String {
    let escape = |c: char| if c.is_ascii_punctuation() { vec!['\\', c] } else { vec![c] };
    text.chars().flat_map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(patterns: &[&str], id: &str) -> bool {
        let texts: Vec<String> = patterns.iter().map(ToString::to_string).collect();
        Patterns::new(&texts).unwrap().matches(&TaskId::new(id).unwrap())
    }

    #[test]
    fn a_pattern_matches_a_whole_id() {
        assert!(matches(&["web-.*"], "web-1"));
        assert!(!matches(&["web"], "web-1"));
        assert!(!matches(&["1"], "web-1"));
        assert!(matches(&["a|ab"], "ab"), "an alternative is not a beginning");
        assert!(!matches(&["a|b"], "ab"));
        assert!(matches(&["x", "web-1"], "web-1"));
        assert!(matches(&[], "web-1"));
    }

    #[test]
    fn an_id_matches_itself() {
        assert!(matches(&["c++-1"], "c++-1"));
    }

    #[cfg(feature = "net")]
    #[test]
    fn patterns_together_match_what_each_of_them_does() {
        let patterns = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
            Patterns::new(&texts).unwrap().together()
        };
        let together = patterns(&["web-.*", "c++-1", "a|ab"]).unwrap();
        let regex = Regex::new(&format!("^(?:{together})$")).unwrap();

        for id in ["web-1", "c++-1", "ccc-1", "ab", "a"] {
            assert!(regex.is_match(id), "{id} {together}");
        }
        assert!(!regex.is_match("xweb-1") && !regex.is_match("abc") && !regex.is_match("c"));
        assert_eq!((patterns(&[]), patterns(&["x".repeat(600).as_str()])), (None, None));
    }

    #[test]
    fn what_is_no_expression_is_bad_use_and_named() {
        let failure = Patterns::new(&["a(".to_owned()]).unwrap_err();

        assert_eq!(failure.status(), 2);
        assert!(failure.to_string().starts_with("pattern \"a(\": "), "{failure}");
        assert_eq!(Patterns::new(&["a)(b".to_owned()]).unwrap_err().status(), 2);
    }
}
