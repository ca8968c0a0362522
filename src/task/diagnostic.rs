//! What is wrong with a task file, and how it is shown.
//!
//! Reading a file collects problems at byte offsets; a [`Report`] gives each its line and
//! column in one pass over the text, and keeps the piece of the line that it shows. Nothing that
//! the file holds reaches a terminal as a control character.

use std::collections::BTreeMap;
use std::fmt;

/// Most problems that are kept of a file.
pub(super) const MAX_PROBLEMS: usize = 1000;
/// Most characters of a line that are shown before and from a place.
const SHOWN_BEFORE: usize = 60;
const SHOWN_AFTER: usize = 80;

/// Something wrong at a place of a file.
#[derive(Debug)]
pub(super) struct Problem {
    /// Byte offsets of what is wrong.
    pub(super) start: usize,
    pub(super) end: usize,
    /// Path of the field; empty for the file as a whole.
    pub(super) field: String,
    /// What was found.
    pub(super) message: String,
    /// What would have been right.
    pub(super) expected: String,
    /// Of two that clash: byte offset of the first.
    pub(super) first: Option<usize>,
}

/// The problems of a file: the first [`MAX_PROBLEMS`] of them.
#[derive(Debug, Default)]
pub(super) struct Problems {
    pub(super) list: Vec<Problem>,
    pub(super) more: usize,
}

impl Problems {
    pub(super) fn add(&mut self, problem: Problem) {
        if self.is_full() {
            self.more += 1;
        } else {
            self.list.push(problem);
        }
    }

    /// Whether further problems are only counted.
    pub(super) fn is_full(&self) -> bool {
        self.list.len() >= MAX_PROBLEMS
    }
}

/// A place in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

/// Something wrong with a task file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Where it is.
    pub place: Place,
    /// Path of the field, such as `processes[1].cmdline`; empty for the file as a whole.
    pub field: String,
    /// What was found.
    pub message: String,
    /// What would have been right.
    pub expected: String,
    /// Of two that clash: where the first is.
    pub first: Option<Place>,
    snippet: Snippet,
}

impl Diagnostic {
    /// The line as it is shown, or a piece of a long one.
    pub fn source_line(&self) -> &str {
        &self.snippet.line
    }
}

/// A piece of a line and what of it is meant, in characters.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Snippet {
    line: String,
    indent: usize,
    width: usize,
}

/// Everything that is wrong with a task file, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    file: String,
    diagnostics: Vec<Diagnostic>,
    more: usize,
}

impl std::error::Error for Report {}

impl Report {
    /// Gives each problem its place in `source`.
    pub(super) fn new(file: &str, source: &str, problems: Problems) -> Self {
        let Problems { mut list, more } = problems;
        list.sort_by_key(|problem| problem.start);
        let offsets = list.iter().flat_map(|problem| [Some(problem.start), problem.first]);
        let places = places(source, offsets.flatten().collect());
        let place = |offset: usize| places[&offset.min(source.len())];
        let diagnostics = list
            .into_iter()
            .map(|problem| Diagnostic {
                place: place(problem.start),
                first: problem.first.map(place),
                snippet: snippet(source, problem.start, problem.end),
                field: problem.field,
                message: problem.message,
                expected: problem.expected,
            })
            .collect();
        Self { file: file.to_owned(), diagnostics, more }
    }

    /// What is wrong, in the order of the file: at least one.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// How many more errors the file has than [`Report::diagnostics`] holds.
    pub fn more(&self) -> usize {
        self.more
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = printable(&self.file);
        for diagnostic in &self.diagnostics {
            diagnostic.render(&file, f)?;
        }
        match (self.diagnostics.len(), self.more) {
            (1, 0) => write!(f, "1 error in {file}"),
            (count, 0) => write!(f, "{count} errors in {file}"),
            (count, more) => {
                write!(f, "{} errors in {file}, the first {count} shown", count + more)
            }
        }
    }
}

impl Diagnostic {
    fn render(&self, file: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { line, column } = self.place;
        let gutter = line.to_string().len();
        let blank = "";
        f.write_str("error: ")?;
        if !self.field.is_empty() {
            write!(f, "{}: ", printable(&self.field))?;
        }
        writeln!(f, "{}", printable(&self.message))?;
        writeln!(f, "{blank:gutter$}--> {file}:{line}:{column}")?;
        writeln!(f, "{blank:gutter$} |")?;
        writeln!(f, "{line} | {}", self.snippet.line)?;
        let Snippet { indent, width, .. } = self.snippet;
        write!(f, "{blank:gutter$} | {blank:indent$}{blank:^<width$}")?;
        writeln!(f, " expected {}", printable(&self.expected))?;
        if let Some(first) = self.first {
            let Place { line, column } = first;
            writeln!(f, "{blank:gutter$} = the first one is at {file}:{line}:{column}")?;
        }
        writeln!(f)
    }
}

/// The characters that stand for `c` in a message: itself, or its escape if it would control a
/// terminal or reorder a line.
pub(super) fn visible(c: char) -> impl Iterator<Item = char> {
    let reorders = matches!(c, '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}'
        | '\u{2028}' | '\u{2029}' | '\u{2066}'..='\u{2069}' | '\u{FEFF}');
    let escaped = (c.is_control() || reorders).then(|| c.escape_default());
    let plain = escaped.is_none().then_some(c);
    escaped.into_iter().flatten().chain(plain)
}

fn printable(text: &str) -> String {
    text.chars().flat_map(visible).collect()
}

/// The places of `offsets`, in one pass over `source`; an offset beyond its end is its end.
fn places(source: &str, mut offsets: Vec<usize>) -> BTreeMap<usize, Place> {
    for offset in &mut offsets {
        *offset = (*offset).min(source.len());
    }
    offsets.sort_unstable();
    offsets.dedup();
    let mut places = BTreeMap::new();
    let mut offsets = offsets.into_iter().peekable();
    let mut place = Place { line: 1, column: 1 };
    let mut previous = '\0';
    for (offset, c) in source.char_indices() {
        if c != '\n' && previous == '\r' {
            place = Place { line: place.line + 1, column: 1 };
        }
        while let Some(wanted) = offsets.next_if(|&wanted| wanted <= offset) {
            places.insert(wanted, place);
        }
        if offsets.peek().is_none() {
            return places;
        }
        match c {
            '\n' => place = Place { line: place.line + 1, column: 1 },
            _ => place.column += 1,
        }
        previous = c;
    }
    places.extend(offsets.map(|wanted| (wanted, place)));
    places
}

/// What to show of the line at `start`.
fn snippet(source: &str, start: usize, end: usize) -> Snippet {
    let is_break = |c: char| c == '\n' || c == '\r';
    let (before, from) = source.split_at_checked(start).unwrap_or((source, ""));
    let shown = |c: char| visible(if c == '\t' { ' ' } else { c });
    let mut prefix: Vec<char> =
        before.chars().rev().take_while(|&c| !is_break(c)).take(SHOWN_BEFORE + 1).collect();
    prefix.reverse();
    let mut line = String::new();
    if prefix.len() > SHOWN_BEFORE {
        line.push('…');
        prefix.remove(0);
    }
    line.extend(prefix.into_iter().flat_map(shown));
    let indent = line.chars().count();
    let mut width = 0;
    let mut rest = from.char_indices().take_while(|&(_, c)| !is_break(c));
    for (offset, c) in rest.by_ref().take(SHOWN_AFTER) {
        let piece: String = shown(c).collect();
        if start + offset < end {
            width += piece.chars().count();
        }
        line.push_str(&piece);
    }
    if rest.next().is_some() {
        line.push('…');
    }
    Snippet { line, indent, width: width.max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(start: usize, end: usize) -> Problem {
        Problem {
            start,
            end,
            field: "f".into(),
            message: "m".into(),
            expected: "e".into(),
            first: None,
        }
    }

    fn report(source: &str, problems: Vec<Problem>) -> Report {
        Report::new("t.yaml", source, Problems { list: problems, more: 0 })
    }

    #[test]
    fn a_report_shows_each_line_and_points_at_what_is_meant() {
        let source = "a: 1\n  é: bad # x\n";
        let bad = source.find("bad").unwrap();

        let report = report(source, vec![problem(bad, bad + 3), problem(0, 1)]);

        assert_eq!(
            report.to_string(),
            "\
error: f: m
 --> t.yaml:1:1
  |
1 | a: 1
  | ^ expected e

error: f: m
 --> t.yaml:2:6
  |
2 |   é: bad # x
  |      ^^^ expected e

2 errors in t.yaml"
        );
    }

    #[test]
    fn a_clash_names_both_places() {
        let clash = Problem { first: Some(0), ..problem(5, 6) };

        let text = report("a: 1\na: 2\n", vec![clash]).to_string();

        assert!(text.contains("2 | a: 2\n  | ^ expected e\n  = the first one is at t.yaml:1:1\n"));
        assert!(text.ends_with("\n1 error in t.yaml"));
    }

    #[test]
    fn lines_end_as_in_yaml_and_places_beyond_the_end_are_the_end() {
        let source = "a\r\nb\rc\nd";
        let lines: Vec<_> = report(source, (0..12).map(|at| problem(at, at)).collect())
            .diagnostics()
            .iter()
            .map(|diagnostic| (diagnostic.place.line, diagnostic.place.column))
            .collect();

        let expected =
            [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (4, 2), (4, 2)];
        assert_eq!(lines[..10], expected);
        assert_eq!(lines[10..], [(4, 2), (4, 2)]);
    }

    /// attack 52: a file cannot write to the terminal through its errors.
    #[test]
    fn control_and_reordering_characters_are_escaped() {
        let source = "\t\u{1b}[31mx\u{202e}y";
        let hostile =
            Problem { message: "\u{1b}]0;\u{7}".into(), ..problem(source.len() - 1, source.len()) };

        let text = report(source, vec![hostile]).to_string();

        assert!(text.contains("error: f: \\u{1b}]0;\\u{7}\n"));
        assert!(text.contains("1 |  \\u{1b}[31mx\\u{202e}y\n  |                     ^ expected"));
    }

    /// attack 52: a JSON file of one long line is shown in pieces.
    #[test]
    fn a_long_line_is_cut_around_the_place() {
        let source = format!("{}X{}", "a".repeat(1_000_000), "b".repeat(1_000_000));

        let report = report(&source, vec![problem(1_000_000, 2_000_000)]);

        let diagnostic = &report.diagnostics()[0];
        assert_eq!(diagnostic.place, Place { line: 1, column: 1_000_001 });
        let shown = format!("…{}X{}…", "a".repeat(60), "b".repeat(79));
        assert_eq!(diagnostic.source_line(), shown);
    }

    #[test]
    fn what_is_not_shown_is_counted() {
        let mut problems = Problems::default();
        for _ in 0..MAX_PROBLEMS + 3 {
            problems.add(problem(0, 0));
        }

        let text = Report::new("t.yaml", "x", problems).to_string();

        assert!(text.ends_with("1003 errors in t.yaml, the first 1000 shown"));
    }
}
