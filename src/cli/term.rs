//! Text for terminals: nothing that a task controls reaches one as anything but visible characters.
//!
//! It is escaped ([`crate::escape`]). Escape sequences are written only by [`Style`] and by the live display, and only to a
//! terminal.

use std::borrow::Cow;
use std::os::fd::AsFd;

pub(super) use crate::escape::{Neutralizer, escape};
use crate::proto;

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
