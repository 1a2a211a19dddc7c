//! Checks that every link of the documents, and every citation of a page in code or in an alert, leads somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use super::{assert_none, files_below, read, root};

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let pages = documents();
    let links = pages.values().map(|text| links_of(text).len()).sum::<usize>();
    assert!(links > 100, "the links are no longer found: {links}");
    assert_none(pages.iter().flat_map(|(path, text)| dead_links(path, text, &pages)));
    let texts = ["src", "tests", "benches", "config", "deploy", "docs"]
        .iter()
        .flat_map(|folder| files_below(folder, &["rs", "toml", "md", "yaml", "yml", "service", "socket"]));
    // This file cites pages of its own.
    let texts = texts.filter(|(path, _)| path != "tests/tidy/links.rs");
    assert_none(texts.flat_map(|(path, text)| dead_citations(&path, &text, &pages)));
}

#[test]
fn every_dead_link_is_found() {
    let page = "# A page\n\n## `two` words, twice\n\n## Again\n## Again\n";
    let pages = BTreeMap::from([("README.md".to_owned(), String::new()), ("docs/a.md".to_owned(), page.to_owned())]);
    let dead = |path: &str, text: &str| dead_links(path, text, &pages).len();
    assert_eq!(dead("README.md", "[a](docs/a.md), [b](docs/a.md#two-words-twice) [c](docs/a.md#again-1)"), 0);
    assert_eq!(dead("docs/a.md", "# Here\n[up](../README.md) [root](../Cargo.toml) [web](https://example.com)"), 0);
    assert_eq!(dead("README.md", "[a](docs/b.md), [b](docs/a.md#two-words) [c](docs/a.md#again-2) [d](a.md)"), 4);
    assert_eq!(dead("docs/a.md", "[broken\nover lines](#nowhere)"), 1);
    assert_eq!(dead("docs/a.md", "# A page\n[a page](#a-page), `[no](link)`\n\n```\n[no](link)\n```\n"), 0);
    let dead = |text: &str| dead_citations("src/a.rs", text, &pages).len();
    assert_eq!(dead("// docs/a.md, \"Again\"; docs/a.md says so, docs/a.md#again-1, docs/a.md."), 0);
    assert_eq!(dead("// docs/a.md, \"Nothing\"; docs/b.md says so; docs/a.md#nothing."), 3);
}

/// The documents, by path: all of docs/, and those at the top.
fn documents() -> BTreeMap<String, String> {
    let mut pages = files_below("docs", &["md"]);
    for path in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"] {
        pages.insert(path.to_owned(), read(path));
    }
    pages
}

/// The targets of `[text](target)`, outside of code.
fn links_of(text: &str) -> Vec<String> {
    let mut outside = String::new();
    for (n, part) in text.split("```").enumerate() {
        // Every second part is a block of code, and within a part so is what is between backticks.
        if n % 2 == 0 {
            outside.extend(part.split('`').step_by(2));
        }
    }
    let targets = outside.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).collect()
}

/// The anchors of a page, as GitHub makes them of its headings.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut seen = BTreeMap::<String, usize>::new();
    let prose = page.split("```").step_by(2).collect::<String>();
    let headings = prose.lines().filter(|line| line.starts_with('#') && line.trim_start_matches('#').starts_with(' '));
    headings
        .map(|line| {
            let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
            let text = line.trim_start_matches('#').trim().to_lowercase();
            let slug: String = text.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect();
            let times = seen.entry(slug.clone()).or_default();
            *times += 1;
            if *times == 1 { slug } else { format!("{slug}-{}", *times - 1) }
        })
        .collect()
}

/// Links of a document to files that do not exist, and to headings that a page does not have.
fn dead_links(path: &str, text: &str, pages: &BTreeMap<String, String>) -> Vec<String> {
    let is_here = |link: &String| !["http://", "https://", "mailto:"].iter().any(|scheme| link.starts_with(scheme));
    let folder = Path::new(path).parent().unwrap();
    let is_dead = |link: &String| {
        let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
        let target = if file.is_empty() { PathBuf::from(path) } else { joined(folder, file) };
        let page = if file.is_empty() { Some(text) } else { pages.get(target.to_str().unwrap()).map(String::as_str) };
        let exists = page.is_some() || root().join(&target).exists();
        !exists || !anchor.is_empty() && page.is_none_or(|page| !anchors(page).contains(anchor))
    };
    links_of(text)
        .into_iter()
        .filter(is_here)
        .filter(is_dead)
        .map(|link| format!("{path}: {link} leads nowhere"))
        .collect()
}

/// `docs/PAGE.md` where there is no such page, `docs/PAGE.md#ANCHOR` and `docs/PAGE.md, "HEADING"` where the page has no such
/// heading.
fn dead_citations(path: &str, text: &str, pages: &BTreeMap<String, String>) -> Vec<String> {
    let mut dead = Vec::new();
    for (at, _) in text.match_indices("docs/") {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_');
        let name = text[at..].split(|c| !is_part(c)).next().unwrap().trim_end_matches('.');
        let is_whole = !text[..at].ends_with(is_part);
        if !is_whole || !name.ends_with(".md") {
            continue;
        }
        let rest = &text[at + name.len()..];
        let anchor = rest.strip_prefix('#').map(|rest| rest.split(|c| !is_part(c)).next().unwrap().to_owned());
        let heading = rest.strip_prefix(", \"").and_then(|rest| rest.split_once('"'));
        let wanted = anchor.or_else(|| anchors(&format!("# {}", heading?.0)).pop_first());
        match (pages.get(name), wanted) {
            (None, _) => dead.push(format!("{path} names {name}, which does not exist")),
            (Some(page), Some(wanted)) if !anchors(page).contains(&wanted) => {
                dead.push(format!("{path} names the heading {wanted} of {name}, which it does not have"));
            }
            (Some(_), _) => {}
        }
    }
    dead
}

/// `file` from `folder`, without `..`.
fn joined(folder: &Path, file: &str) -> PathBuf {
    let mut path = PathBuf::new();
    for part in folder.join(file).components() {
        if part == Component::ParentDir {
            path.pop();
        } else {
            path.push(part);
        }
    }
    path
}
