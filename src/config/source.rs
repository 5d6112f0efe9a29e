//! From files and `--set` to one merged tree.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::diagnostic::Diagnostic;
use super::keys::kind::describe;
use super::paths::under_home;
use super::tree::{Node, Origin, Source, Spans, Table, Value, merge};

/// No configuration is longer.
const MOST_BYTES: u64 = 16 << 20;

/// What was written, with what could not be read of it.
pub struct Gathered {
    pub tree: Node,
    pub errors: Vec<Diagnostic>,
    /// Lines that are no TOML: what was made of them is not worth a second error. As (depth of the file, line).
    pub broken_lines: BTreeSet<(usize, usize)>,
    /// Something is missing from the tree, so nothing can be said about what it lacks.
    pub incomplete: bool,
}

pub fn gather(path: &Path, sets: &[String]) -> Gathered {
    let mut chain = Chain::default();
    chain.follow(path);
    let incomplete = !chain.errors.is_empty();
    let Chain { layers, mut errors, broken_lines, .. } = chain;
    let start = Node::default(Value::Table(Table::new()));
    let mut tree = layers.into_iter().rev().reduce(merge).unwrap_or(start);
    for text in sets {
        match parse_set(text) {
            Ok(layer) => tree = merge(tree, layer),
            Err(error) => errors.push(error),
        }
    }
    Gathered { tree, errors, broken_lines, incomplete }
}

/// A file and its bases, the loaded file first.
#[derive(Default)]
struct Chain {
    layers: Vec<Node>,
    /// As given, and with links resolved.
    seen: Vec<(PathBuf, PathBuf)>,
    errors: Vec<Diagnostic>,
    broken_lines: BTreeSet<(usize, usize)>,
}

impl Chain {
    fn follow(&mut self, path: &Path) {
        let mut next = Some((path.to_owned(), None));
        while let Some((path, named_at)) = next {
            next = self.add(&path, named_at).map(|(base, at)| (base, Some(at)));
        }
    }

    /// Reads one file; its base is the next.
    fn add(&mut self, path: &Path, named_at: Option<Origin>) -> Option<(PathBuf, Origin)> {
        let text = match read(path) {
            Ok(text) => text,
            Err(problem) => {
                let key = if named_at.is_some() { "base" } else { "" };
                self.errors.push(Diagnostic::new(named_at.unwrap_or(Origin::Default), key, problem));
                return None;
            }
        };
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if let Some(first) = self.seen.iter().position(|(_, seen)| *seen == real) {
            let names = self.seen[first..].iter().map(|(path, _)| path.as_path()).chain([path]);
            let names: Vec<_> = names.map(|path| path.display().to_string()).collect();
            let message = format!("the bases form a cycle: {}", names.join(" -> "));
            self.errors.push(Diagnostic::new(named_at.unwrap_or(Origin::Default), "base", message));
            return None;
        }
        let source = Arc::new(Source { depth: self.seen.len(), path: path.to_owned() });
        self.seen.push((path.to_owned(), real));
        let mut layer = self.parse(source, &text);
        let base = layer.table_mut()?.remove("base");
        self.layers.push(layer);
        let base = base?;
        match base.value {
            Value::Text(name) => Some((path.parent().unwrap_or(Path::new("")).join(under_home(&name)), base.at)),
            other => {
                let message = format!("expected the path of a file, found {}", describe(&other));
                self.errors.push(Diagnostic::new(base.at, "base", message));
                None
            }
        }
    }

    /// What can be read of a text that is not all TOML is kept: its other lines may have errors of their own.
    fn parse(&mut self, source: Arc<Source>, text: &str) -> Node {
        let depth = source.depth;
        let spans = Spans::file(source, text);
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let at = spans.origin(error.span().unwrap_or(0..0));
            let Origin::File { line, .. } = at else { continue };
            // What follows on the same line is mostly the same slip.
            if self.broken_lines.insert((depth, line)) {
                self.errors.push(Diagnostic::new(at, "", format!("not valid TOML: {}", error.message())));
            }
        }
        let root = spans.origin(0..0);
        Node::new(Value::Table(spans.table(table.get_ref())), root.clone(), root)
    }
}

fn read(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    // Not all of it at once: a device or a pipe may have no end.
    let read = std::fs::File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(format!("{} is longer than {} MiB: is it a configuration?", path.display(), MOST_BYTES >> 20));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        format!("{} is not UTF-8 at byte {offset}", path.display())
    })?;
    // A byte order mark would count as a column.
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// `a.b.c=V` as a tree of one leaf. V is TOML, or else a plain string.
fn parse_set(text: &str) -> Result<Node, Diagnostic> {
    let origin: Arc<str> = text.into();
    let refuse = |message: &str| {
        Diagnostic::new(Origin::Set(origin.clone()), "", message).help("write --set KEY=VALUE, as in --set optimizer.lr=3e-4")
    };
    let (key, value) = split_at_equals(text).ok_or_else(|| refuse("there is no `=` between key and value"))?;
    let line = format!("{key}=0");
    let parsed = DeTable::parse(&line).ok().filter(|table| !key.contains('\n') && table.get_ref().len() == 1);
    let table = parsed.ok_or_else(|| refuse("what stands before `=` is not a dotted key"))?;
    let spans = Spans::Set(origin.clone());
    let mut table = spans.table(table.get_ref());
    if table.contains_key("base") {
        return Err(refuse("`base` can be set in a file only"));
    }
    let leaf = match DeValue::parse(value.trim()) {
        Ok(parsed) => spans.node(0..0, &parsed).value,
        Err(_) => Value::Text(value.to_owned()),
    };
    table.values_mut().for_each(|node| set_leaf(node, &leaf));
    let root = Origin::Set(origin);
    Ok(Node::new(Value::Table(table), root.clone(), root))
}

/// The tree of a dotted key has one node a level.
fn set_leaf(node: &mut Node, leaf: &Value) {
    match &mut node.value {
        Value::Table(table) => table.values_mut().for_each(|inner| set_leaf(inner, leaf)),
        value => *value = leaf.clone(),
    }
}

/// At the first `=` outside quotes.
fn split_at_equals(text: &str) -> Option<(&str, &str)> {
    let mut quote = None;
    for (index, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '=') => return Some((&text[..index], &text[index + 1..])),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::testing::Folder;
    use super::*;

    fn gather_in(folder: &Folder, sets: &[&str]) -> Gathered {
        let sets: Vec<_> = sets.iter().map(|set| set.to_string()).collect();
        gather(&folder.path("main.toml"), &sets)
    }

    fn value(gathered: &Gathered, key: &str) -> Value {
        gathered.tree.get(key).unwrap().value.clone()
    }

    #[test]
    fn a_chain_of_bases_is_relative_to_each_file() {
        let folder = Folder::new(&[
            ("main.toml", "base = \"sub/mid.toml\"\n[a]\nx = 1"),
            ("sub/mid.toml", "base = \"../far.toml\"\n[a]\nx = 2\ny = 2"),
            ("far.toml", "[a]\nx = 3\ny = 3\nz = 3"),
        ]);
        let gathered = gather_in(&folder, &[]);
        assert!(gathered.errors.is_empty());
        assert_eq!(["a.x", "a.y", "a.z"].map(|key| value(&gathered, key)), [1, 2, 3].map(Value::Int));
        assert!(gathered.tree.get("base").is_none());
        let layers = ["a.x", "a.y", "a.z"].map(|key| gathered.tree.get(key).unwrap().at.layer());
        assert!(layers.is_sorted_by(|above, below| above > below));
    }

    #[test]
    fn a_cycle_of_bases_names_the_chain() {
        let folder = Folder::new(&[("main.toml", "base = \"b.toml\""), ("b.toml", "\nbase = \"main.toml\"")]);
        let gathered = gather_in(&folder, &[]);
        let error = gathered.errors[0].to_string();
        let (a, b) = (folder.path("main.toml"), folder.path("b.toml"));
        let (a, b) = (a.display(), b.display());
        assert_eq!(error, format!("{b}:2:8: base: the bases form a cycle: {a} -> {b} -> {a}"));
    }

    #[test]
    fn a_missing_base_is_reported_where_it_is_named() {
        let folder = Folder::new(&[("main.toml", "base = \"none.toml\"")]);
        let gathered = gather_in(&folder, &[]);
        let error = gathered.errors[0].to_string();
        assert!(error.contains("main.toml:1:8: base: cannot read ") && error.contains("none.toml"), "{error}");
        assert!(gathered.incomplete);
    }

    #[test]
    fn a_base_must_be_a_path() {
        let folder = Folder::new(&[("main.toml", "base = 3")]);
        assert!(gather_in(&folder, &[]).errors[0].message.contains("found 3"));
    }

    #[test]
    fn several_syntax_errors_are_found_at_once() {
        let folder = Folder::new(&[("main.toml", "[a]\nx = \ny = 1\nz = = 2\ny = 3\n")]);
        let lines: BTreeSet<_> = gather_in(&folder, &[]).broken_lines.into_iter().map(|(_, line)| line).collect();
        assert_eq!(lines, BTreeSet::from([2, 4, 5]));
    }

    #[test]
    fn text_that_is_not_utf8_is_an_error() {
        let folder = Folder::new(&[]);
        std::fs::write(folder.path("main.toml"), b"a = \"\xff\"").unwrap();
        assert!(gather_in(&folder, &[]).errors[0].message.ends_with("is not UTF-8 at byte 5"));
    }

    #[test]
    fn a_file_without_end_is_an_error() {
        let gathered = gather(Path::new("/dev/zero"), &[]);
        assert_eq!(gathered.errors[0].message, "/dev/zero is longer than 16 MiB: is it a configuration?");
    }

    #[test]
    fn set_wins_and_later_sets_win_over_earlier_ones() {
        let folder = Folder::new(&[("main.toml", "[a]\nx = 1")]);
        let gathered = gather_in(&folder, &["a.x=2", "a.x=3"]);
        assert_eq!(value(&gathered, "a.x"), Value::Int(3));
        assert_eq!(gathered.tree.get("a.x").unwrap().at, Origin::Set("a.x=3".into()));
        assert!(matches!(gathered.tree.get("a").unwrap().place(), Origin::File { line: 1, .. }));
    }

    #[test]
    fn a_set_value_is_toml_or_else_a_plain_string() {
        let leaf = |set| parse_set(set).unwrap().get("a.b").unwrap().value.clone();
        assert_eq!(leaf("a.b=true"), Value::Bool(true));
        assert_eq!(leaf("a.b=\"3\""), Value::Text("3".to_owned()));
        assert_eq!(leaf("a.b=/some/dir"), Value::Text("/some/dir".to_owned()));
        assert_eq!(leaf("a.b=x=y"), Value::Text("x=y".to_owned()));
        assert_eq!(leaf("a.b="), Value::Text(String::new()));
        assert!(matches!(leaf("a.b=[1, 2]"), Value::List(_)));
        assert!(matches!(leaf("a.b={c = 1}"), Value::Table(_)));
    }

    #[test]
    fn a_set_key_may_be_quoted() {
        let tree = parse_set("tasks.\"a=b.c\".weight=2").unwrap();
        assert_eq!(tree.get("tasks.\"a=b.c\".weight").unwrap().value, Value::Int(2));
    }

    #[test]
    fn a_malformed_set_is_answered_with_an_example() {
        for set in ["run.seed", "=3", "a..b=3", "a b=3", "a\nb=3", "base=x.toml"] {
            let error = parse_set(set).unwrap_err();
            assert_eq!(error.help, ["write --set KEY=VALUE, as in --set optimizer.lr=3e-4"], "{set}");
        }
    }
}
