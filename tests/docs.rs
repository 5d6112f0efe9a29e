//! Generated pages are what the program says today. `TASKLOOM_WRITE_DOCS=1 cargo test --release --test docs` rewrites them.

use std::path::{Path, PathBuf};

fn up_to_date(page: &str, content: &str) {
    let path = root().join("docs").join(page);
    if std::env::var_os("TASKLOOM_WRITE_DOCS").is_some() {
        std::fs::write(&path, content).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == content, "docs/{page} is out of date; run this test with TASKLOOM_WRITE_DOCS=1");
}

#[test]
fn configuration_reference() {
    up_to_date("configuration.md", &taskloom::config::reference());
}

#[test]
fn schemas() {
    up_to_date("schema/run.json", &taskloom::config::run_schema());
    up_to_date("schema/sweep.json", &taskloom::config::sweep_schema());
    up_to_date("schema/workload.json", &taskloom::config::workload_schema());
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README.md and the pages of docs/.
fn pages() -> Vec<PathBuf> {
    let docs = std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    docs.chain([root().join("README.md")]).filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

/// Targets of a page's links, code left out.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let prose = text.split("\n```").step_by(2).flat_map(|piece| piece.split('`').step_by(2));
    prose.flat_map(|piece| piece.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0)))
}

/// What a heading's anchor is called, on GitHub and in mdBook.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in links(&text).filter(|link| !link.contains("://")) {
            let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.with_file_name(file) };
            let found = target.exists();
            let headed = |text: String| text.lines().any(|line| line.starts_with('#') && anchor(line) == fragment);
            if !found || !(fragment.is_empty() || std::fs::read_to_string(&target).is_ok_and(headed)) {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_page_is_in_the_book() {
    let summary = std::fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    let listed: Vec<&str> = links(&summary).collect();
    for page in pages().iter().filter(|page| page.parent().is_some_and(|folder| folder.ends_with("docs"))) {
        let name = page.file_name().unwrap().to_str().unwrap();
        assert!(name == "SUMMARY.md" || listed.contains(&name), "docs/SUMMARY.md does not list {name}");
    }
}

/// The text of every file of Rust below a folder.
fn sources(folder: &Path, text: &mut String) {
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *text += &std::fs::read_to_string(&path).unwrap();
        }
    }
}

#[test]
fn tests_that_pages_name_are_there() {
    let mut rust = String::new();
    ["src", "tests"].iter().for_each(|folder| sources(&root().join(folder), &mut rust));
    let mut named = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        let prose: Vec<&str> = text.split('`').collect();
        // What stands between backquotes, and what before it.
        for pair in prose.chunks_exact(2).filter(|pair| pair[0].trim_end().ends_with("(test")) {
            named += 1;
            assert!(rust.contains(&format!("fn {}(", pair[1])), "{}: there is no test `{}`", page.display(), pair[1]);
        }
    }
    assert!(named > 0, "the pages name no test");
}
