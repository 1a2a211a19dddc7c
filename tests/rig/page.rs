//! Reads the examples in the pages of docs/, so that tests run them as written.

use std::path::Path;

/// One block of code in a page. The line that opens it is "```LANGUAGE NAME".
#[derive(Debug, Clone)]
pub struct Example {
    pub name: String,
    pub language: String,
    pub text: String,
}

/// The examples of docs/`page`, in order.
///
/// # Panics
/// If a block has no language or no name, because it would not be run.
pub fn examples(page: &str) -> Vec<Example> {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(page)).unwrap();
    let mut found = Vec::new();
    let mut parts = page.split("\n```");
    while let (Some(_), Some(block)) = (parts.next(), parts.next()) {
        let (opening, text) = block.split_once('\n').unwrap();
        let (language, name) = opening.split_once(' ').unwrap_or_else(|| panic!("an example without a name: {text}"));
        found.push(Example { name: name.to_owned(), language: language.to_owned(), text: format!("{text}\n") });
    }
    found
}
