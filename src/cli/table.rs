//! Aligned tables that fit the terminal: first wide columns are cut, then the least needed are left out.
//! Without a terminal everything is printed whole.

use super::out::{Look, Tone, hanging, harmless};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

const GAP: usize = 2;
const INDENT: usize = 2;
/// What stands before a note.
const NOTE: &str = "      ";

/// A column: its heading, and what may happen to it when room is short.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    heading: &'static str,
    right: bool,
    shortest: Option<usize>,
    rank: u8,
}

impl Column {
    /// Text.
    #[must_use]
    pub const fn left(heading: &'static str) -> Self {
        Self { heading, right: false, shortest: None, rank: 0 }
    }

    /// Numbers.
    #[must_use]
    pub const fn right(heading: &'static str) -> Self {
        Self { heading, right: true, shortest: None, rank: 0 }
    }

    /// It may be cut to this many columns.
    #[must_use]
    pub const fn shrinks_to(mut self, shortest: usize) -> Self {
        self.shortest = Some(shortest);
        self
    }

    /// It may be left out: the highest rank goes first.
    #[must_use]
    pub const fn leaves_at(mut self, rank: u8) -> Self {
        self.rank = rank;
        self
    }
}

/// A text in a table, made harmless for terminals.
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    tone: Tone,
}

/// A cell with a tone.
#[must_use]
pub fn toned(tone: Tone, text: impl AsRef<str>) -> Cell {
    Cell { text: harmless(text.as_ref()), tone }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        toned(Tone::Plain, text)
    }
}

/// A table.
#[derive(Debug)]
pub struct Table<const N: usize> {
    columns: [Column; N],
    rows: Vec<[Cell; N]>,
    /// Texts below rows, by the row's number.
    notes: Vec<(usize, String)>,
}

impl<const N: usize> Table<N> {
    /// A table without rows.
    #[must_use]
    pub const fn new(columns: [Column; N]) -> Self {
        Self { columns, rows: Vec::new(), notes: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: [Cell; N]) {
        self.rows.push(cells);
    }

    /// Says more of the last row, on lines of its own below it.
    pub fn note(&mut self, text: &str) {
        self.notes.push((self.rows.len(), harmless(text)));
    }

    /// The table as text, each line ended.
    #[must_use]
    pub fn render(&self, look: &Look) -> String {
        let widths = self.fit(look.width);
        let headings = self.columns.map(|column| toned(Tone::Dim, column.heading));
        let mut text = String::new();
        for (number, row) in std::iter::once(&headings).chain(&self.rows).enumerate() {
            self.line(&mut text, row, &widths, look);
            for (_, note) in self.notes.iter().filter(|(of, _)| *of == number) {
                text.push_str(&hanging(NOTE, NOTE.len(), note, look));
            }
        }
        text
    }

    /// One row. `None` as width: the column is left out.
    fn line(&self, text: &mut String, row: &[Cell; N], widths: &[Option<usize>; N], look: &Look) {
        let mut line = " ".repeat(INDENT);
        for ((cell, column), width) in row.iter().zip(&self.columns).zip(widths) {
            let Some(width) = *width else { continue };
            let shown = cut(&cell.text, width);
            let padding = " ".repeat(width.saturating_sub(shown.width()));
            let painted = look.paint(cell.tone, &shown);
            if column.right {
                line.extend([&padding, painted.as_ref()]);
            } else {
                line.extend([painted.as_ref(), &padding]);
            }
            line.push_str(&" ".repeat(GAP));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }

    /// The width of each column, so that all fits if it can.
    fn fit(&self, room: Option<usize>) -> [Option<usize>; N] {
        let mut widths: [Option<usize>; N] = std::array::from_fn(|index| Some(self.natural_width(index)));
        let Some(room) = room else { return widths };
        loop {
            let excess = total(&widths).saturating_sub(room);
            if excess == 0 || self.shrink(&mut widths, excess) {
                return widths;
            }
            let leaves = (0..N).filter(|&index| widths[index].is_some() && self.columns[index].rank > 0);
            match leaves.max_by_key(|&index| self.columns[index].rank) {
                Some(index) => widths[index] = None,
                None => return widths,
            }
        }
    }

    fn natural_width(&self, index: usize) -> usize {
        let cells = self.rows.iter().map(|row| row[index].text.width());
        cells.chain([self.columns[index].heading.width()]).max().unwrap_or(0)
    }

    /// Takes `excess` from the columns that can be cut, the widest first. False: they have not so much to give,
    /// and nothing was changed.
    fn shrink(&self, widths: &mut [Option<usize>; N], excess: usize) -> bool {
        let mut tried = *widths;
        for _ in 0..excess {
            let spare = (0..N).filter(|&index| {
                self.columns[index].shortest.is_some_and(|shortest| tried[index].is_some_and(|width| width > shortest))
            });
            match spare.max_by_key(|&index| tried[index]) {
                Some(index) => tried[index] = tried[index].map(|width| width - 1),
                None => return false,
            }
        }
        *widths = tried;
        true
    }
}

fn total<const N: usize>(widths: &[Option<usize>; N]) -> usize {
    let shown = widths.iter().flatten();
    INDENT + shown.clone().sum::<usize>() + GAP * shown.count().saturating_sub(1)
}

/// The text, or as much of its beginning as fits, with an ellipsis.
#[must_use]
pub fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut shown = String::new();
    let mut used = 0;
    for letter in text.chars() {
        used += letter.width().unwrap_or(0);
        if used + 1 > width {
            break;
        }
        shown.push(letter);
    }
    shown.push('…');
    shown
}

#[cfg(test)]
mod tests {
    use super::super::out::tests::look;
    use super::*;

    fn fleet() -> Table<3> {
        let mut table =
            Table::new([Column::left("HOST"), Column::right("VMS"), Column::left("WHY").shrinks_to(8).leaves_at(1)]);
        table.row(["mini-07".into(), "2/2".into(), "a long text that someone wrote".into()]);
        table.row(["größe".into(), "11/12".into(), "".into()]);
        table
    }

    #[test]
    fn columns_line_up() {
        insta::assert_snapshot!(fleet().render(&look(80)), @r"
          HOST       VMS  WHY
          mini-07    2/2  a long text that someone wrote
          größe    11/12
        ");
    }

    #[test]
    fn a_narrow_terminal_cuts_and_then_leaves_out() {
        insta::assert_snapshot!(fleet().render(&look(30)), @r"
          HOST       VMS  WHY
          mini-07    2/2  a long text…
          größe    11/12
        ");
        insta::assert_snapshot!(fleet().render(&look(20)), @r"
          HOST       VMS
          mini-07    2/2
          größe    11/12
        ");
    }

    #[test]
    fn what_others_wrote_cannot_drive_the_terminal() {
        let mut table = Table::new([Column::left("LABEL")]);
        table.row(["\u{1b}]0;owned\u{7}".into()]);
        assert!(!table.render(&look(80)).contains('\u{1b}'));
    }
}
