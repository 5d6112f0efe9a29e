//! Rooms import downwards only, and each outside crate with a face of its own stays in its room.
//!
//! A file's imports are read from its text: `use crate::...` (also nested), `crate::...` paths in code, and `super::...` that
//! leaves the room.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The rooms from top to bottom; each imports itself and what lies below it.
const LEVELS: &[&[&str]] = &[
    // Names the rooms.
    &["lib", "main"],
    &["cli"],
    &["commands"],
    // Makes runs, and reports them.
    &["sweep"],
    // A report reads what a run has written; neither needs the other.
    &["report", "train"],
    &["config", "data", "model", "observe", "simulate", "surgery", "surgery/balance", "surgery/methods"],
    &["ops", "schedule"],
    &["machine"],
    // Of no room's own business: what is printed, named values, exit codes, whole files, random numbers, did-you-mean.
    &["output"],
    &["choices", "failure", "files", "limits", "random", "suggest"],
];

/// The arrows within a level.
const BESIDE: &[(&str, &str)] = &[
    // Each task says in its settings what is read of which files, and readers take just these settings.
    ("data", "config"),
    // The parameters of `[surgery]` and `[balance]` are those of the descriptors of methods and balancers, which are pure.
    ("config", "surgery/balance"),
    ("config", "surgery/methods"),
    // The Gram matrix and the update work on the model's gradients and parameters.
    ("surgery", "model"),
    ("surgery", "surgery/methods"),
    // Balancers describe their parameters as methods do.
    ("surgery/balance", "surgery/methods"),
    // Conflict statistics are told as surgery computes them.
    ("observe", "surgery"),
];

/// Rooms that import nothing of the rest, but for how an enum is declared and functions of their arguments alone.
const PURE: &[&str] = &["schedule", "surgery/methods"];

/// Where those are.
const FUNCTIONS: &[&str] = &["choices", "random", "suggest"];

/// An outside crate, and the only places that may name it.
const CRATES: &[(&str, &[&str])] = &[
    ("clap", &["cli.rs", "commands/"]),
    ("clap_complete", &["commands/"]),
    ("clap_mangen", &["commands/"]),
    ("indicatif", &["observe/"]),
    // `surgery` reads and writes whole Jacobians.
    ("safetensors", &["train/checkpoint/", "model/hf", "commands/surgery.rs"]),
    ("tokenizers", &["data/"]),
    ("parquet", &["data/"]),
    ("flate2", &["data/"]),
    ("zstd", &["data/"]),
    ("corosensei", &["machine/emulated/"]),
    ("cudarc", &["machine/"]),
    ("gemm", &["ops/"]),
    ("maud", &["report/"]),
    ("rusqlite", &["observe/trackio"]),
    ("plotters", &["report/"]),
    ("toml", &["config/"]),
    ("signal_hook", &["commands/"]),
    ("strsim", &["suggest.rs"]),
    ("ureq", &["train/fetch.rs"]),
];

struct SourceFile {
    /// Below src/, with `/` between folders.
    name: String,
    text: String,
}

fn sources() -> Vec<SourceFile> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("src can be read") {
            let path: PathBuf = entry.expect("src can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).expect("below src").to_string_lossy().replace('\\', "/");
                let text = std::fs::read_to_string(&path).expect("sources are UTF-8");
                found.push(SourceFile { name, text: without_comments(without_tests(&text)) });
            }
        }
    }
    assert!(found.len() > 50, "src is there");
    found
}

/// Drops the tests at the end of a file: inside them `super` means something else.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

/// Drops `//` comments (documentation may point anywhere) and the contents of plain strings.
fn without_comments(text: &str) -> String {
    let mut kept = String::new();
    for line in text.lines() {
        let mut quoted = false;
        let mut before = ' ';
        let characters: Vec<char> = line.chars().collect();
        for (position, &c) in characters.iter().enumerate() {
            if c == '"' && before != '\\' && before != '\'' {
                quoted = !quoted;
            }
            if !quoted && c == '/' && characters.get(position + 1) == Some(&'/') {
                break;
            }
            if !quoted {
                kept.push(c);
            }
            before = if before == '\\' { ' ' } else { c };
        }
        kept.push('\n');
    }
    kept
}

/// The longest room of [`LEVELS`] that `path` (a file, or a module path with `/`) lies in.
fn room(path: &str) -> Option<&'static str> {
    let inside = |room: &str| path == room || path.strip_prefix(room).is_some_and(|rest| rest.starts_with('/'));
    LEVELS.concat().into_iter().filter(|room| inside(room)).max_by_key(|room| room.len())
}

fn level(room: &str) -> Option<usize> {
    LEVELS.iter().position(|rooms| rooms.contains(&room))
}

fn may_import(from: &str, to: &str) -> bool {
    let may = level(from) < level(to) || BESIDE.contains(&(from, to));
    from == to || may && (!PURE.contains(&from) || FUNCTIONS.contains(&to))
}

/// Module paths a file names: `crate::a::b` as `a/b`, each branch of `crate::{a, b::c}`, and `super::super::a`.
fn imports(file: &SourceFile) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let module = file.name.trim_end_matches(".rs").trim_end_matches("/mod").to_owned();
    for (marker, base) in [("crate::", String::new()), ("super::", parent(&module))] {
        for (start, _) in file.text.match_indices(marker) {
            let before = file.text[..start].chars().next_back().unwrap_or(' ');
            if before.is_alphanumeric() || before == '_' || before == ':' || before == '$' {
                continue;
            }
            let mut rest = &file.text[start + marker.len()..];
            // `use super::*` in a module of tests names the file itself.
            if marker == "super::" && rest.starts_with('*') {
                continue;
            }
            let mut base = base.clone();
            while let Some(up) = rest.strip_prefix("super::") {
                (rest, base) = (up, parent(&base));
            }
            let mut branches = Vec::new();
            expand(rest, &base, &mut branches);
            found.extend(branches);
        }
    }
    found
}

fn parent(module: &str) -> String {
    module.rsplit_once('/').map_or(String::new(), |(above, _)| above.to_owned())
}

/// Follows `a::b::{c, d::e}` behind `base`; returns what is left of the text.
fn expand<'a>(text: &'a str, base: &str, found: &mut Vec<String>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = expand(rest, base, found).trim_start();
            match rest.chars().next() {
                Some(',') => rest = &rest[1..],
                Some('}') => return &rest[1..],
                _ => return rest,
            }
            if rest.trim_start().starts_with('}') {
                return &rest.trim_start()[1..];
            }
        }
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let path = if base.is_empty() { text[..end].to_owned() } else { format!("{base}/{}", &text[..end]) };
    match text[end..].strip_prefix("::") {
        Some(rest) => expand(rest, &path, found),
        None => {
            found.push(path);
            let rest = &text[end..];
            rest.strip_prefix(" as ")
                .map_or(rest, |renamed| renamed.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'))
        }
    }
}

#[test]
fn rooms_import_downwards() {
    let mut wrong = Vec::new();
    for file in sources() {
        let own = room(file.name.trim_end_matches(".rs"));
        let own = own.unwrap_or_else(|| panic!("src/{} is in no room: add it to the levels", file.name));
        for path in imports(&file) {
            if let Some(target) = room(&path).filter(|target| !may_import(own, target)) {
                wrong.push(format!("src/{} imports {path}: {own} may not import {target}", file.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn rules_name_rooms_and_are_needed() {
    let sources = sources();
    let found: BTreeSet<(&str, &str)> = sources
        .iter()
        .flat_map(|file| {
            let own = room(file.name.trim_end_matches(".rs"));
            imports(file).into_iter().filter_map(move |path| Some((own?, room(&path)?)))
        })
        .collect();
    for arrow in BESIDE {
        assert!(found.contains(arrow), "nothing in {} imports {}: take the arrow out", arrow.0, arrow.1);
        assert_eq!(level(arrow.0), level(arrow.1), "{arrow:?} is not within a level");
        assert!(!BESIDE.contains(&(arrow.1, arrow.0)), "{arrow:?} goes both ways");
    }
    for room in PURE.iter().chain(FUNCTIONS) {
        assert!(level(room).is_some(), "{room} is no room");
    }
    for name in LEVELS.concat() {
        let is_there = |file: &SourceFile| room(file.name.trim_end_matches(".rs")) == Some(name);
        assert!(sources.iter().any(is_there), "there is no room {name}");
    }
}

#[test]
fn outside_crates_stay_in_their_rooms() {
    let mut wrong = Vec::new();
    for file in sources() {
        for (name, places) in CRATES {
            let names_it = file.text.match_indices(&format!("{name}::")).any(|(start, _)| {
                let before = file.text[..start].chars().next_back().unwrap_or(' ');
                // `crate::ops::gemm::` is a module of ours.
                !before.is_alphanumeric() && before != '_' && before != ':'
            });
            if names_it && !places.iter().any(|place| file.name.starts_with(place)) {
                wrong.push(format!("src/{} uses {name}, which belongs in {places:?}", file.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn main_decides_exit_codes_and_nothing_else() {
    let main = sources().into_iter().find(|file| file.name == "main.rs").expect("there is a main.rs");
    assert!(main.text.lines().filter(|line| !line.trim().is_empty()).count() <= 20, "main.rs does more than print an error");
}

#[test]
fn imports_are_read_from_every_form_of_path() {
    let text = "use crate::{a, b::{c as d, e}, f};\nlet x = crate::g::h(1);\nuse super::super::i;\nuse super::j;\n// crate::k\n\"crate::l\"";
    let file = SourceFile { name: "train/checkpoint/tensors.rs".into(), text: without_comments(text) };
    let expected = ["a", "b/c", "b/e", "f", "g/h", "train/i", "train/checkpoint/j"];
    assert_eq!(imports(&file), expected.iter().map(|path| (*path).to_owned()).collect());
}
