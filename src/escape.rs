//! Text that a task controls, made safe to show: nothing of it acts on a terminal, and nothing hides.
//!
//! Names, task ids, verdicts and output are chosen by others. Before they are shown they are escaped: control characters, and the
//! invisible ones that reorder or hide text (attack 47).

use std::borrow::Cow;
use std::fmt::Write as _;

/// `text` with every character that would act on a terminal, or that cannot be seen, written as `\x1b` or
/// `\u{202e}`.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
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
pub(crate) struct Neutralizer {
    /// The beginning of a character whose rest has not come yet.
    cut: Vec<u8>,
}

impl Neutralizer {
    /// Appends the safe form of `bytes` to `out`; line ends and tabs stay.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
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
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
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
}
