//! Text for terminals: nothing that a task controls reaches one as anything but visible characters.
//!
//! Names, task ids and verdicts are chosen by others. Before they are shown they are escaped: control characters,
//! and the invisible ones that reorder or hide text (attack 47). Escape sequences are written only by [`Style`]
//! and by the live display, and only to a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::os::fd::AsFd;

use crate::proto;

/// `text` with every character that would act on a terminal, or that cannot be seen, written as `\x1b` or
/// `\u{202e}`.
pub(super) fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    text.chars().for_each(|c| push_escaped(&mut safe, c));
    Cow::Owned(safe)
}

fn push_escaped(out: &mut String, c: char) {
    let written = match c {
        c if !is_unsafe(c) => {
            out.push(c);
            Ok(())
        }
        '\n' => out.write_str("\\n"),
        '\r' => out.write_str("\\r"),
        '\t' => out.write_str("\\t"),
        '\0'..='\u{ff}' => write!(out, "\\x{:02x}", c as u32),
        _ => write!(out, "\\u{{{:x}}}", c as u32),
    };
    written.expect("a string takes any text");
}

/// Control characters; and of the Unicode format characters those that reorder, hide or join what stands around
/// them (UAX #9, UTS #39), and the separators that some terminals take for line ends.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// Makes a stream of bytes safe for a terminal; characters may be cut anywhere between two pieces.
#[derive(Debug, Default)]
pub(super) struct Neutralizer {
    /// The beginning of a character whose rest has not come yet.
    cut: Vec<u8>,
}

impl Neutralizer {
    /// Appends the safe form of `bytes` to `out`; line ends and tabs stay.
    pub(super) fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let joined;
        let bytes = if self.cut.is_empty() {
            bytes
        } else {
            let mut whole = std::mem::take(&mut self.cut);
            whole.extend_from_slice(bytes);
            joined = whole;
            &joined
        };
        let mut safe = String::with_capacity(bytes.len());
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            for c in chunk.valid().chars() {
                if matches!(c, '\n' | '\t') { safe.push(c) } else { push_escaped(&mut safe, c) }
            }
            let bad = chunk.invalid();
            if chunks.peek().is_none() && is_cut(bad) {
                self.cut.extend_from_slice(bad);
            } else {
                push_bytes(&mut safe, bad);
            }
        }
        out.extend_from_slice(safe.as_bytes());
    }

    /// Appends what is left of a character that never became whole.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        let mut safe = String::new();
        push_bytes(&mut safe, &std::mem::take(&mut self.cut));
        out.extend_from_slice(safe.as_bytes());
    }
}

fn push_bytes(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        write!(out, "\\x{byte:02x}").expect("a string takes any text");
    }
}

/// Whether `bytes`, which are not UTF-8, may become a character with more of them.
fn is_cut(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// Columns that `text` takes: two for the wide characters of East Asia and for emoji, one for any other.
pub(super) fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

/// As much of `text` as fits `limit` columns; what is cut off shows as `…`.
pub(super) fn cut(text: &str, limit: usize) -> Cow<'_, str> {
    if width(text) <= limit {
        return Cow::Borrowed(text);
    }
    let mut left = limit.saturating_sub(1);
    let mut kept = String::with_capacity(limit);
    for c in text.chars() {
        let columns = columns(c);
        if columns > left {
            break;
        }
        left -= columns;
        kept.push(c);
    }
    if limit > 0 {
        kept.push('…');
    }
    Cow::Owned(kept)
}

fn columns(c: char) -> usize {
    let wide = matches!(c,
        '\u{1100}'..='\u{115f}' | '\u{2e80}'..='\u{a4cf}' | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}' | '\u{fe30}'..='\u{fe6f}' | '\u{ff00}'..='\u{ff60}'
        | '\u{ffe0}'..='\u{ffe6}' | '\u{1f300}'..='\u{1faff}' | '\u{20000}'..='\u{3fffd}');
    if wide { 2 } else { 1 }
}

/// Rows and columns of the terminal behind `fd`; `None` if it is no terminal or does not say.
pub(super) fn size(fd: impl AsFd) -> Option<(usize, usize)> {
    let (columns, rows) = terminal_size::terminal_size_of(fd)?;
    Some((rows.0.into(), columns.0.into()))
}

/// Whether text is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// No escape sequence is written.
    Plain,
    /// States have colours.
    Coloured,
}

impl Style {
    /// Coloured on a terminal, unless NO_COLOR is set and not empty (no-color.org) or the terminal is dumb.
    pub(super) fn detect(is_terminal: bool) -> Self {
        let refused = || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = || std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if is_terminal && !refused() && !dumb() { Self::Coloured } else { Self::Plain }
    }

    /// `text` in the colour of a process state.
    pub(super) fn process(self, state: proto::ProcessState, text: &str) -> Cow<'_, str> {
        use proto::ProcessState as S;
        self.paint(
            text,
            match state {
                S::Success => Colour::Green,
                S::Failed => Colour::Red,
                S::Killed | S::Lost => Colour::Yellow,
                S::Running => Colour::Cyan,
                S::Waiting | S::Forked | S::Unspecified => Colour::Dim,
            },
        )
    }

    /// `text` in the colour of a task state.
    pub(super) fn task(self, state: proto::TaskState, text: &str) -> Cow<'_, str> {
        use proto::TaskState as S;
        self.paint(
            text,
            match state {
                S::Success => Colour::Green,
                S::Failed | S::Corrupt => Colour::Red,
                S::Killed | S::Lost | S::Cleaning | S::Finalizing => Colour::Yellow,
                S::Active => Colour::Cyan,
                S::Unspecified => Colour::Dim,
            },
        )
    }

    /// `text` in the background.
    pub(super) fn dim(self, text: &str) -> Cow<'_, str> {
        self.paint(text, Colour::Dim)
    }

    fn paint(self, text: &str, colour: Colour) -> Cow<'_, str> {
        match self {
            Self::Plain => Cow::Borrowed(text),
            Self::Coloured => Cow::Owned(format!("\x1b[{}m{text}\x1b[0m", colour as u8)),
        }
    }
}

/// Select Graphic Rendition parameters (ECMA-48, 8.3.117).
#[derive(Debug, Clone, Copy)]
enum Colour {
    Dim = 2,
    Red = 31,
    Green = 32,
    Yellow = 33,
    Cyan = 36,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_47_nothing_that_acts_on_a_terminal_gets_through() {
        for (text, safe) in [
            ("plain näme 名前", "plain näme 名前"),
            ("\x1b[2Jgone", "\\x1b[2Jgone"),
            ("a\rb\nc\td\u{7f}", "a\\rb\\nc\\td\\x7f"),
            ("csi \u{9b}31m", "csi \\x9b31m"),
            ("user\u{202e}txt.exe\u{2066}", "user\\u{202e}txt.exe\\u{2066}"),
            ("zero\u{200b}width\u{e0041}", "zero\\u{200b}width\\u{e0041}"),
            ("line\u{2028}end", "line\\u{2028}end"),
        ] {
            assert_eq!(escape(text), safe);
        }
    }

    fn neutral(pieces: &[&[u8]]) -> String {
        let mut neutralizer = Neutralizer::default();
        let mut out = Vec::new();
        pieces.iter().for_each(|piece| neutralizer.push(piece, &mut out));
        neutralizer.finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn attack_47_a_log_is_neutral_however_it_is_cut() {
        let log = "ok\tä名\n\x1b]0;title\x07\u{202e}\n".as_bytes();
        let whole = neutral(&[log]);
        assert_eq!(whole, "ok\tä名\n\\x1b]0;title\\x07\\u{202e}\n");
        for at in 0..log.len() {
            assert_eq!(neutral(&[&log[..at], &log[at..]]), whole, "cut at {at}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_as_hexadecimal() {
        assert_eq!(neutral(&[b"a\xff\xfeb", b"\xe4", b"\xb8"]), "a\\xff\\xfeb\\xe4\\xb8");
        assert_eq!(neutral(&[b"\xe4", b"x"]), "\\xe4x");
    }

    #[test]
    fn a_line_is_cut_to_columns_not_to_bytes() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "ab…");
        assert_eq!(cut("名前名前", 5), "名前…");
        assert_eq!(cut("名前名前", 4), "名…");
        assert_eq!(cut("abc", 0), "");
    }

    #[test]
    fn without_a_terminal_nothing_is_coloured() {
        assert_eq!(Style::detect(false), Style::Plain);
        assert_eq!(Style::Plain.process(proto::ProcessState::Failed, "FAILED"), "FAILED");
        assert_eq!(
            Style::Coloured.process(proto::ProcessState::Failed, "FAILED"),
            "\x1b[31mFAILED\x1b[0m"
        );
    }
}
