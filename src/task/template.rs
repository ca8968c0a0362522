//! Templates: `{{a.b[c].d}}` in a text is replaced by what it refers to (T13).
//!
//! Innermost braces first; what comes in is scanned again, round by round, until no reference is
//! left. `{{&x}}` is the literal `{{x}}`. Who binds what is the caller's business. The cost of all
//! texts of a file together is bounded by a [`Budget`], whatever refers to whatever.

use std::borrow::Cow;

use super::QUOTED_MAX;

/// Most rounds of replacement in one text.
pub const MAX_ROUNDS: usize = 100;
/// Bytes that all rounds over all texts of a file may read and write.
pub const MAX_BYTES: usize = 8 << 20;
/// Longest reference in bytes.
pub const MAX_REFERENCE: usize = 255;
/// Most wrong references of one text that are named.
const MAX_ERRORS: usize = 100;

/// Why a text cannot be filled in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Between the braces stands no reference.
    #[error("`{{{{{0}}}}}` is not a reference")]
    Malformed(String),
    /// A reference of more than [`MAX_REFERENCE`] bytes; how it begins.
    #[error("a reference that begins with `{{{{{0}` is too long")]
    TooLong(String),
    /// Nothing has that name.
    #[error("`{{{{{0}}}}}` is bound to nothing")]
    Unbound(String),
    /// No port has that name.
    #[error("port `{0}` is not bound")]
    UnboundPort(String),
    /// Ports are written with brackets.
    #[error("`{{{{{0}}}}}` names no port")]
    PortForm(String),
    /// What it refers to has no text.
    #[error("`{{{{{reference}}}}}` is {found}, which cannot stand in a text")]
    NotText {
        /// The reference.
        reference: String,
        /// What was found there.
        found: &'static str,
    },
    /// The task id is made from a text that refers to it, or that comes after this one.
    #[error("`{{{{thermos.task_id}}}}` is not known yet: it is made from the name of the task")]
    Circular,
    /// References lead to references, perhaps in a circle.
    #[error("still has references after {MAX_ROUNDS} rounds of filling in")]
    TooDeep,
    /// The budget is used up.
    #[error("fills in to more than {MAX_BYTES} bytes, all texts of the file together")]
    TooLarge,
}

impl TemplateError {
    /// What would have been right.
    pub fn expected(&self) -> Cow<'static, str> {
        match self {
            Self::Malformed(body) => format!(
                "a reference such as `{{{{thermos.ports[http]}}}}`, with no blanks inside; \
                 for the braces themselves write `{{{{&{body}}}}}`"
            )
            .into(),
            Self::TooLong(_) => format!("at most {MAX_REFERENCE} bytes").into(),
            Self::Unbound(reference) => format!(
                "a field of the process or of the task, thermos.task_id, thermos.user, \
                 thermos.ports[NAME], or a binding `-E {reference}=VALUE`"
            )
            .into(),
            Self::UnboundPort(port) => format!("a binding `-P {port}:PORT`").into(),
            Self::PortForm(_) => "the form `{{thermos.ports[NAME]}}`".into(),
            Self::NotText { .. } => "a reference to a text or a number".into(),
            Self::Circular => "a task id given by `--task-id`, or a text without it".into(),
            Self::TooDeep => "references that come to an end".into(),
            Self::TooLarge => "shorter texts".into(),
        }
    }

    /// What stands between the braces that are wrong, if it is one pair of braces.
    pub fn body(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Malformed(body) | Self::Unbound(body) | Self::PortForm(body) => {
                Some(body.as_str().into())
            }
            Self::NotText { reference, .. } => Some(reference.as_str().into()),
            Self::UnboundPort(port) => Some(format!("thermos.ports[{port}]").into()),
            Self::Circular => Some("thermos.task_id".into()),
            Self::TooLong(_) | Self::TooDeep | Self::TooLarge => None,
        }
    }
}

/// What filling in may still cost.
#[derive(Debug)]
pub struct Budget {
    left: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: MAX_BYTES }
    }
}

impl Budget {
    /// Takes `bytes` off.
    ///
    /// # Errors
    ///
    /// [`TemplateError::TooLarge`] if so much is not left.
    pub fn spend(&mut self, bytes: usize) -> Result<(), TemplateError> {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(TemplateError::TooLarge)
            }
        }
    }
}

/// One step of a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'t> {
    /// `.name`
    Name(&'t str),
    /// `[index]`
    Index(&'t str),
}

/// What stands between the braces of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference<'t> {
    text: &'t str,
    steps: Vec<Step<'t>>,
}

impl<'t> Reference<'t> {
    /// Reads `a.b[c].d`: names of `[A-Za-z0-9_]` that begin with no digit, indexes of
    /// `[A-Za-z0-9_./-]`. `None` if `text` is anything else.
    pub fn parse(text: &'t str) -> Option<Self> {
        let mut steps = Vec::new();
        let mut rest = text;
        while !rest.is_empty() || steps.is_empty() {
            let step;
            (step, rest) = match rest.strip_prefix('[') {
                Some(inner) if !steps.is_empty() => index(inner)?,
                _ if steps.is_empty() => name(rest)?,
                _ => name(rest.strip_prefix('.')?)?,
            };
            steps.push(step);
        }
        Some(Self { text, steps })
    }

    /// The reference as it was written.
    pub fn text(&self) -> &'t str {
        self.text
    }

    /// Its steps, at least one, the first of them a name.
    pub fn steps(&self) -> &[Step<'t>] {
        &self.steps
    }
}

/// The name at the start of `text`, and the rest.
fn name(text: &str) -> Option<(Step<'_>, &str)> {
    let end = text.find(|c: char| !is_word(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let first = name.chars().next()?;
    (!first.is_ascii_digit()).then_some((Step::Name(name), rest))
}

/// The index at the start of `text`, behind its opening bracket, and the rest.
fn index(text: &str) -> Option<(Step<'_>, &str)> {
    let (index, rest) = text.split_once(']')?;
    let valid = |c| is_word(c) || matches!(c, '.' | '/' | '-');
    (!index.is_empty() && index.chars().all(valid)).then_some((Step::Index(index), rest))
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Fills in `text`; `find` says what a reference is bound to.
///
/// # Errors
///
/// What is wrong with the references of the first round that has a wrong one; what `find` returns
/// is passed on. [`TemplateError::TooDeep`] and [`TemplateError::TooLarge`] come alone.
pub fn expand<'t>(
    text: &'t str,
    budget: &mut Budget,
    mut find: impl FnMut(&Reference<'_>, &mut Budget) -> Result<String, TemplateError>,
) -> Result<Cow<'t, str>, Vec<TemplateError>> {
    if !text.contains("{{") {
        return Ok(Cow::Borrowed(text));
    }
    let mut current = Cow::Borrowed(text);
    for _ in 0..=MAX_ROUNDS {
        budget.spend(current.len()).map_err(|error| vec![error])?;
        match round(&current, budget, &mut find)? {
            Some(next) => current = Cow::Owned(next),
            None => return Ok(unescape(current)),
        }
    }
    Err(vec![TemplateError::TooDeep])
}

/// Replaces every innermost reference of `text` once; `None` if it has none.
fn round(
    text: &str,
    budget: &mut Budget,
    find: &mut impl FnMut(&Reference<'_>, &mut Budget) -> Result<String, TemplateError>,
) -> Result<Option<String>, Vec<TemplateError>> {
    let mut next = String::new();
    let mut done = 0;
    let mut errors = Vec::new();
    for braces in Braces::new(text).filter(|braces| !braces.is_escape()) {
        next.push_str(&text[done..braces.start]);
        done = braces.end();
        let value = reference(braces.body).and_then(|reference| find(&reference, budget));
        match value.and_then(|value| budget.spend(value.len()).map(|()| value)) {
            Ok(value) => next.push_str(&value),
            Err(TemplateError::TooLarge) => return Err(vec![TemplateError::TooLarge]),
            Err(error) if errors.len() < MAX_ERRORS => errors.push(error),
            Err(_) => break,
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    if done == 0 {
        return Ok(None);
    }
    next.push_str(&text[done..]);
    Ok(Some(next))
}

/// The reference between braces.
fn reference(body: &str) -> Result<Reference<'_>, TemplateError> {
    if body.len() > MAX_REFERENCE {
        return Err(TemplateError::TooLong(body.chars().take(QUOTED_MAX).collect()));
    }
    Reference::parse(body).ok_or_else(|| TemplateError::Malformed(body.to_owned()))
}

/// `{{&x}}` becomes `{{x}}`.
fn unescape(text: Cow<'_, str>) -> Cow<'_, str> {
    let mut next = String::new();
    let mut done = 0;
    for braces in Braces::new(&text) {
        next.push_str(&text[done..braces.start]);
        next.push_str("{{");
        next.push_str(braces.body.strip_prefix('&').unwrap_or(braces.body));
        next.push_str("}}");
        done = braces.end();
    }
    if done == 0 {
        return text;
    }
    next.push_str(&text[done..]);
    Cow::Owned(next)
}

/// `{{body}}` in a text, the body not empty and without braces.
struct Match<'t> {
    start: usize,
    body: &'t str,
}

impl Match<'_> {
    fn end(&self) -> usize {
        self.start + self.body.len() + 4
    }

    fn is_escape(&self) -> bool {
        self.body.len() > 1 && self.body.starts_with('&')
    }
}

/// All innermost pairs of double braces, in linear time.
struct Braces<'t> {
    text: &'t str,
    from: usize,
}

impl<'t> Braces<'t> {
    fn new(text: &'t str) -> Self {
        Self { text, from: 0 }
    }
}

impl<'t> Iterator for Braces<'t> {
    type Item = Match<'t>;

    fn next(&mut self) -> Option<Match<'t>> {
        loop {
            let start = self.from + self.text[self.from..].find("{{")?;
            let inside = &self.text[start + 2..];
            let length = inside.find(['{', '}'])?;
            let (body, behind) = inside.split_at(length);
            if !body.is_empty() && behind.starts_with("}}") {
                let found = Match { start, body };
                self.from = found.end();
                return Some(found);
            }
            self.from = start + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bound(reference: &Reference<'_>, _: &mut Budget) -> Result<String, TemplateError> {
        match reference.text() {
            "a" => Ok("1".into()),
            "b" => Ok("{{a}}{{a}}".into()),
            "name" => Ok("http".into()),
            "ports[http]" => Ok("8080".into()),
            "open" => Ok("{{".into()),
            "loop" => Ok("{{loop}}".into()),
            "double" => Ok("{{double}}{{double}}".into()),
            "escaped" => Ok("{{&a}}".into()),
            other => Err(TemplateError::Unbound(other.into())),
        }
    }

    fn expand(text: &str) -> Result<String, Vec<TemplateError>> {
        super::expand(text, &mut Budget::default(), bound).map(Cow::into_owned)
    }

    fn steps(text: &str) -> Option<Vec<Step<'_>>> {
        Reference::parse(text).map(|reference| reference.steps().to_vec())
    }

    /// T13: the grammar of references.
    #[test]
    fn a_reference_is_names_and_indexes() {
        use Step::{Index, Name};

        assert_eq!(steps("a.b[c].d"), Some(vec![Name("a"), Name("b"), Index("c"), Name("d")]));
        assert_eq!(steps("_a1[x-1./y]"), Some(vec![Name("_a1"), Index("x-1./y")]));
        for text in ["", " a", "a ", "a b", ".a", "a.", "a..b", "1a", "a[]", "a[b", "a]", "[a]"] {
            assert_eq!(steps(text), None, "{text}");
        }
        for text in ["a[b c]", "a[b]c", "a-b", "é", "&a", "a.1"] {
            assert_eq!(steps(text), None, "{text}");
        }
    }

    /// T13
    #[test]
    fn references_are_filled_in_and_the_rest_stays() {
        assert_eq!(expand("no braces").unwrap(), "no braces");
        assert_eq!(expand("{{a}}-{{a}}").unwrap(), "1-1");
        assert_eq!(expand("${{{a}}}").unwrap(), "${1}");
        for literal in ["{{", "}}", "{{}}", "{a}", "{{a}", "{{a} }", "{ {a}}", "{{a{"] {
            assert_eq!(expand(literal).unwrap(), literal);
        }
    }

    /// T13: results are scanned again, inner braces first.
    #[test]
    fn what_comes_in_is_scanned_again_and_inner_braces_come_first() {
        assert_eq!(expand("{{b}}").unwrap(), "11");
        assert_eq!(expand("{{ports[{{name}}]}}").unwrap(), "8080");
        assert_eq!(expand("{{open}}a}}").unwrap(), "1");
    }

    /// T13: `{{&x}}` gives a literal `{{x}}`.
    #[test]
    fn an_escaped_reference_is_literal() {
        assert_eq!(expand("{{&a}} {{a}}").unwrap(), "{{a}} 1");
        assert_eq!(expand("{{& .Name }}").unwrap(), "{{ .Name }}");
        assert_eq!(expand("{{&&a}}").unwrap(), "{{&a}}");
        assert_eq!(expand("{{escaped}}").unwrap(), "{{a}}");
        assert_eq!(expand("{{&x{{a}}}}").unwrap(), "{{x1}}");
    }

    /// T13: anything unbound is an error; each one of a text is named.
    #[test]
    fn every_wrong_reference_is_named() {
        assert_eq!(
            expand("{{x}} {{a}} {{ y }} {{&}}").unwrap_err(),
            [
                TemplateError::Unbound("x".into()),
                TemplateError::Malformed(" y ".into()),
                TemplateError::Malformed("&".into()),
            ]
        );
    }

    /// attack 52: errors repeat no more of a text than fits a line.
    #[test]
    fn a_reference_has_a_length_that_a_message_can_hold() {
        let longest = "x".repeat(MAX_REFERENCE);
        let begin = "x".repeat(60);

        assert_eq!(
            expand(&format!("{{{{{longest}}}}} {{{{{longest}x}}}}")).unwrap_err(),
            [TemplateError::Unbound(longest), TemplateError::TooLong(begin)]
        );
    }

    /// T13: over 100 rounds is an error.
    #[test]
    fn a_circle_ends_after_a_hundred_rounds() {
        let mut rounds = 0;

        let error = super::expand("{{loop}}", &mut Budget::default(), |reference, budget| {
            rounds += 1;
            bound(reference, budget)
        })
        .unwrap_err();

        assert_eq!(error, [TemplateError::TooDeep]);
        assert_eq!(rounds, 101);
    }

    /// attack 52: a template bomb is refused for its size.
    #[test]
    fn a_text_that_doubles_each_round_is_refused() {
        assert_eq!(expand("{{double}}").unwrap_err(), [TemplateError::TooLarge]);
    }

    /// attack 52: the budget is one for all texts.
    #[test]
    fn texts_share_one_budget() {
        let mut budget = Budget::default();
        let big = "x".repeat(MAX_BYTES / 4);
        let mut fill = || super::expand("{{big}}", &mut budget, |_, _| Ok(big.clone())).is_ok();

        assert_eq!([fill(), fill()], [true, false]);
    }

    #[test]
    fn errors_say_what_would_be_right() {
        let error = TemplateError::Malformed(" .Name ".into());
        assert_eq!(error.to_string(), "`{{ .Name }}` is not a reference");
        assert_eq!(
            error.expected(),
            "a reference such as `{{thermos.ports[http]}}`, with no blanks inside; \
             for the braces themselves write `{{& .Name }}`"
        );
    }

    proptest! {
        #[test]
        fn any_text_gives_an_answer(text in "([{}&a-z\\[\\]. é]|\\{\\{|\\}\\}){0,40}") {
            let _ = expand(&text);
        }

        /// What holds no reference comes out as it went in.
        #[test]
        fn a_text_without_double_braces_is_unchanged(text in "([^{]|\\{[^{])*[^{]?") {
            prop_assume!(!text.contains("{{"));
            prop_assert_eq!(expand(&text).unwrap(), text);
        }
    }
}
