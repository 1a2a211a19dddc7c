//! Checks that every test that docs/guarantees.md names exists.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::Path;

/// The pairs of file and test in the rows of the page's tables. A row may name only a file.
fn named(page: &str) -> Vec<(String, Option<String>)> {
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cell = row.split('|').nth(1).unwrap();
        let mut quoted = cell.split('`').skip(1).step_by(2).map(str::to_owned);
        (quoted.next().unwrap(), quoted.next())
    })
    .collect()
}

#[test]
fn every_test_that_the_guarantees_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/guarantees.md")).unwrap();
    let named = named(&page);
    for (file, test) in &named {
        let source = fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        if let Some(test) = test {
            let is_there = ["(", "<"].iter().any(|after| source.contains(&format!("fn {test}{after}")));
            assert!(is_there, "{file} has no test {test}");
        }
    }
    for promise in ["G1", "G2", "G3", "G4", "G5", "G6"] {
        assert!(page.contains(&format!("\n## {promise} ")), "{promise} has no section");
    }
    assert!(named.len() > 30, "the rows were not read: {}", named.len());
}

#[test]
fn a_row_is_read_as_a_file_and_a_test() {
    let page = "| test | shows |\n|---|---|\n| `a.rs` `b_c` | d `e` |\n| `f.rs` | g |\nx";
    let expected = [("a.rs".to_owned(), Some("b_c".to_owned())), ("f.rs".to_owned(), None)];
    assert_eq!(named(page), expected);
}
