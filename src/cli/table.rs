//! Tables for people: columns without lines, and no blanks at the ends of rows, which are noise in a pipe or a diff.

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
pub(super) fn lines(table: &Table) -> String {
    table.to_string().lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_row_ends_with_blanks() {
        let mut table = headed(&["NAME", "A LONG HEAD"]);
        table.add_row(["a", "b"]).add_row(["a longer name", ""]);
        let lines = lines(&table);
        assert_eq!(lines.lines().count(), 3);
        assert!(lines.lines().all(|line| line == line.trim_end()), "{lines:?}");
    }
}
