//! Tables for people: columns without lines, two blanks apart, and no blanks at the ends of rows, which are noise in a pipe.

use comfy_table::Table;
use comfy_table::presets::NOTHING;

/// An empty table with these heads.
pub(super) fn headed(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(heads);
    table
}

/// The table as it is printed, with a line break at its end.
pub(super) fn lines(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    format!("{}\n", table.trim_fmt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_two_blanks_apart_and_no_row_ends_with_blanks() {
        let mut table = headed(&["FUNCTION", "STATE"]);
        table.add_row(["orders", "open"]).add_row(["a", "paused by an operator"]);
        assert_eq!(lines(table), "FUNCTION  STATE\norders    open\na         paused by an operator\n");
    }
}
