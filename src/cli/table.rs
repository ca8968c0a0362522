//! Columns of text.

use std::borrow::Cow;

use super::term::{Style, width};
use super::words;

/// Blanks between two columns.
const GAP: usize = 2;

/// On which side a column is filled up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    /// Text begins at the same place.
    Left,
    /// Numbers end at the same place.
    Right,
}

/// The rows as lines without blanks at their ends. `paint` colours a cell by row, column and padded text; what it
/// adds takes no columns.
pub(super) fn lines<const N: usize>(
    rows: &[[String; N]],
    aligns: [Align; N],
    paint: impl for<'t> Fn(usize, usize, &'t str) -> Cow<'t, str>,
) -> Vec<String> {
    let mut widths = [0; N];
    for row in rows {
        for (cell, most) in row.iter().zip(&mut widths) {
            *most = width(cell).max(*most);
        }
    }
    let line = |(number, row): (usize, &[String; N])| {
        let last = row.iter().rposition(|cell| !cell.is_empty()).map_or(0, |last| last + 1);
        let mut line = String::new();
        for column in 0..last {
            let cell = &row[column];
            let padding = widths[column] - width(cell);
            let (before, after) = match aligns[column] {
                Align::Left if column + 1 == last => (0, 0),
                Align::Left => (0, padding),
                Align::Right => (padding, 0),
            };
            let gap = if column == 0 { 0 } else { GAP };
            line.extend(std::iter::repeat_n(' ', gap + before));
            line.push_str(&paint(number, column, cell));
            line.extend(std::iter::repeat_n(' ', after));
        }
        line
    };
    rows.iter().enumerate().map(line).collect()
}

/// `lines`, the first of which is a heading, after a column with the root of each of the others; without it if none has one.
pub(super) fn rooted<'a>(
    lines: Vec<String>,
    roots: impl Iterator<Item = Option<&'a str>>,
    style: Style,
) -> Vec<String> {
    let roots: Vec<_> = roots.map(|root| root.map(words::name)).collect();
    if roots.iter().all(Option::is_none) {
        return lines;
    }
    let roots = std::iter::once(Some("ROOT".to_owned())).chain(roots);
    let roots: Vec<_> = roots.map(Option::unwrap_or_default).collect();
    let most = roots.iter().map(|root| width(root)).max().unwrap_or_default();
    let line = |(number, (root, line)): (usize, (String, String))| {
        let blanks = " ".repeat(most - width(&root) + GAP);
        let root = if number == 0 { style.dim(&root) } else { root.as_str().into() };
        format!("{root}{blanks}{line}")
    };
    roots.into_iter().zip(lines).enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row<const N: usize>(cells: [&str; N]) -> [String; N] {
        cells.map(str::to_owned)
    }

    #[test]
    fn columns_line_up_by_what_is_seen() {
        let rows = [row(["名前", "1", "x"]), row(["b", "100", ""]), row(["", "", ""])];

        let plain =
            lines(&rows, [Align::Left, Align::Right, Align::Left], |_, _, text| text.into());
        let painted =
            lines(&rows, [Align::Left, Align::Right, Align::Left], |row, column, text| {
                if (row, column) == (0, 0) { format!("<{text}>").into() } else { text.into() }
            });

        assert_eq!(plain, ["名前    1  x", "b     100", ""]);
        assert_eq!(painted, ["<名前>    1  x", "b     100", ""]);
    }
}
