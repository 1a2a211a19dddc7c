//! Tables for people: columns without lines, with two spaces between, and no spaces at the end of a row.

use comfy_table::Table;
use comfy_table::presets::NOTHING;

use crate::visible::visible;

/// Rows below their headings. Every cell is made visible, so that none can forge a row.
pub(super) struct Rows(Table);

impl Rows {
    pub(super) fn headed(heads: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(NOTHING);
        table.set_header(heads);
        Self(table)
    }

    pub(super) fn add<const N: usize>(&mut self, cells: [String; N]) {
        self.0.add_row(cells.iter().map(|cell| visible(cell)));
    }

    /// The table as text, with a line break at the end.
    pub(super) fn lines(mut self) -> String {
        for column in self.0.column_iter_mut() {
            column.set_padding((0, 2));
        }
        format!("{}\n", self.0.trim_fmt())
    }
}

/// A value, or a dash if there is none.
pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_two_blanks_apart_and_no_row_ends_with_blanks() {
        let mut rows = Rows::headed(&["FUNCTION", "STATE"]);
        rows.add(["orders", "open"].map(str::to_owned));
        rows.add(["a", "paused by an operator"].map(str::to_owned));
        assert_eq!(rows.lines(), "FUNCTION  STATE\norders    open\na         paused by an operator\n");
    }

    #[test]
    fn no_cell_forges_a_row() {
        let mut rows = Rows::headed(&["FUNCTION", "STATE"]);
        rows.add(["orders\ninvoices  open".to_owned(), "held: \x1b[2J".to_owned()]);
        let lines = rows.lines();
        assert_eq!(lines.lines().count(), 2, "{lines}");
        assert!(lines.contains("orders\\ninvoices  open  held: \\u{1b}[2J"), "{lines}");
    }
}
