//! Holds the written tree against the table of keys: unknown keys, wrong kinds, impossible values.
//!
//! What passes is brought into its resolved form on the way (sizes in bytes, single items as lists). What fails is
//! reported and replaced by a stand-in marked as flawed, so that later checks neither stop here nor repeat it.

use std::collections::BTreeSet;

use super::diagnostic::Diagnostic;
use super::keys::kind::{describe, name_problem};
use super::keys::{Default, Key, Kind, Section};
use super::suggest::{explain_unknown, nearest};
use super::tree::{Node, Table, Value, join_key};

pub fn check(root: &mut Node, section: &'static Section) -> Vec<Diagnostic> {
    let mut shape = Shape::default();
    shape.value("", root, &Kind::Section(section));
    shape.errors
}

#[derive(Default)]
struct Shape {
    errors: Vec<Diagnostic>,
}

impl Shape {
    /// Whether the node itself is sound; its parts report for themselves.
    fn value(&mut self, path: &str, node: &mut Node, kind: &Kind) -> bool {
        match (kind, &mut node.value) {
            (Kind::Section(section), Value::Table(table)) => self.section(path, table, section),
            (Kind::Sections(section), Value::Table(table)) => self.sections(path, table, section),
            (Kind::NumberOr(bounds, _), Value::Int(_) | Value::Float(_)) => return self.scalar(path, node, &Kind::from(*bounds)),
            (Kind::NumberOr(_, other), Value::Text(_) | Value::List(_)) => return self.value(path, node, other),
            (Kind::WordOr(_, other), Value::Int(_) | Value::Float(_) | Value::List(_)) => return self.value(path, node, other),
            (Kind::List(inner), _) => return self.list(path, node, inner),
            _ => return self.scalar(path, node, kind),
        }
        true
    }

    fn scalar(&mut self, path: &str, node: &mut Node, kind: &Kind) -> bool {
        match kind.read(&node.value) {
            Ok(value) => {
                node.value = value;
                true
            }
            Err(complaint) => {
                let diagnostic = Diagnostic::new(node.at.clone(), path, complaint.message);
                self.errors.push(complaint.help.into_iter().fold(diagnostic, Diagnostic::help));
                false
            }
        }
    }

    fn list(&mut self, path: &str, node: &mut Node, inner: &Kind) -> bool {
        if !matches!(node.value, Value::List(_)) {
            let single = Node::new(node.value.clone(), node.at.clone(), node.at.clone());
            node.value = Value::List(vec![single]);
        }
        let Value::List(items) = &mut node.value else { return false };
        let mut sound = true;
        let mut seen = BTreeSet::new();
        for item in items {
            sound &= self.value(path, item, inner);
            if let Value::Text(text) = &item.value
                && !seen.insert(text.clone())
            {
                self.errors.push(Diagnostic::new(item.at.clone(), path, format!("\"{text}\" is listed twice")));
                sound = false;
            }
        }
        sound
    }

    fn section(&mut self, path: &str, table: &mut Table, section: &'static Section) {
        for (name, mut node) in std::mem::take(table) {
            let path = join_key(path, &name);
            match section.find(&name) {
                Some(key) => {
                    if !self.value(&path, &mut node, &key.kind) {
                        node = Node { key_at: node.key_at, ..Node::flawed(stand_in(key), node.at) };
                    }
                    // A key may be here already, as the stand-in for its misspelled form.
                    table.insert(name, node);
                }
                None => self.unknown(&path, &name, node, table, section),
            }
        }
    }

    fn unknown(&mut self, path: &str, name: &str, mut node: Node, table: &mut Table, section: &'static Section) {
        let place = node.key_at.clone();
        if section.later.contains(&name) {
            self.errors.push(Diagnostic::new(place, path, format!("`{name}` is not in this version")));
            return;
        }
        self.errors.push(explain_unknown(name, section, Diagnostic::new(place.clone(), path, "unknown key")));
        // Most likely this is the key that was meant: do not also report that one as missing, but look into it.
        let meant = nearest(name, section.keys.iter().map(|key| key.name)).and_then(|near| section.find(near));
        let Some(key) = meant else { return };
        let is_table = matches!(node.value, Value::Table(_)) && matches!(key.kind, Kind::Section(_) | Kind::Sections(_));
        if is_table {
            self.value(path, &mut node, &key.kind);
            node.flawed = true;
        } else {
            node = Node::flawed(stand_in(key), place);
        }
        table.entry(key.name.to_owned()).or_insert(node);
    }

    fn sections(&mut self, path: &str, table: &mut Table, section: &'static Section) {
        for (name, node) in table {
            let path = join_key(path, name);
            if let Some(problem) = name_problem(name) {
                self.errors.push(Diagnostic::new(node.key_at.clone(), path.as_str(), format!("{name:?} is no name: {problem}")));
            }
            if matches!(node.value, Value::Table(_)) {
                self.value(&path, node, &Kind::Section(section));
                continue;
            }
            let message = format!("expected a table, found {}", describe(&node.value));
            self.errors.push(Diagnostic::new(node.at.clone(), path.as_str(), message));
            node.value = Value::Table(Table::new());
            node.flawed = true;
        }
    }
}

fn stand_in(key: &Key) -> Value {
    match key.default {
        Default::Is(_) => super::defaults::literal(key),
        Default::Required | Default::Absent => key.kind.placeholder(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::sections;
    use super::super::testing::{errors, load_text, locations};

    const RUN: &str = "[encoder]\nkind = \"linear\"\n[train]\nrounds = 1\n[synthetic]\n";

    /// The errors about `key` in a file of nothing but one line in one table, as (line, column, message, help).
    fn about(table: &str, line: &str, key: &str) -> Vec<(usize, usize, String, Vec<String>)> {
        let header = if table.is_empty() { String::new() } else { format!("[{table}]") };
        let errors = errors(&format!("{header}\n{line}\n"));
        let found = errors.diagnostics().iter().zip(locations(&errors)).filter(|(error, _)| error.key == key);
        found.map(|(error, (line, column, _))| (line, column, error.message.clone(), error.help.clone())).collect()
    }

    fn join(table: &str, name: &str) -> String {
        if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") }
    }

    #[test]
    fn a_typo_in_any_key_of_any_table_is_found_and_explained() {
        for (path, section) in sections() {
            let table = path.replace("NAME", "x");
            for key in section.keys.iter() {
                let typo = format!("{}_", key.name);
                let found = about(&table, &format!("{typo} = 1"), &join(&table, &typo));
                let expected = (2, 1, "unknown key".to_owned(), vec![format!("did you mean `{}`?", key.name)]);
                assert_eq!(found, [expected], "{path}");
            }
        }
    }

    #[test]
    fn a_wrong_type_in_any_key_of_any_table_is_found() {
        for (path, section) in sections() {
            let table = path.replace("NAME", "x");
            for key in section.keys.iter() {
                let found = about(&table, &format!("{} = 2020-01-01", key.name), &join(&table, key.name));
                assert_eq!(found.len(), 1, "{path}.{}: {found:?}", key.name);
                let (line, column, message, _) = &found[0];
                assert_eq!((*line, *column), (2, key.name.len() + 4));
                assert!(message.starts_with("expected ") && message.ends_with(", found the date 2020-01-01"), "{message}");
            }
        }
    }

    #[test]
    fn a_key_of_a_later_version_is_named_as_such() {
        for (path, section) in sections() {
            let table = path.replace("NAME", "x");
            for name in section.later {
                let found = about(&table, &format!("{name} = 1"), &join(&table, name));
                assert_eq!(found, [(2, 1, format!("`{name}` is not in this version"), vec![])]);
            }
        }
    }

    #[test]
    fn numbers_have_ranges() {
        let message = |table, line, key| about(table, line, key).remove(0).2;
        assert_eq!(message("train", "micro_batch = 0", "train.micro_batch"), "expected an integer from 1 to 1048576, found 0");
        assert_eq!(message("run", "seed = -1", "run.seed"), "expected an integer of at least 0, found -1");
        let found = message("encoder", "dropout = 1", "encoder.dropout");
        assert_eq!(found, "expected a number at least 0 and below 1, found 1.0");
        assert_eq!(message("optimizer", "lr = nan", "optimizer.lr"), "expected a number above 0, found NaN");
    }

    #[test]
    fn an_item_of_a_list_is_located_itself() {
        let found = about("tasks.x", "metrics = [\"accuracy\", \"acuracy\"]", "tasks.x.metrics");
        assert_eq!((found[0].1, found[0].3.as_slice()), (24, ["did you mean \"accuracy\"?".to_owned()].as_slice()));
    }

    #[test]
    fn nothing_is_listed_twice() {
        let found = about("tasks.x", "depends_on = [\"a\", \"a\"]", "tasks.x.depends_on");
        assert_eq!(found[0].2, "\"a\" is listed twice");
    }

    #[test]
    fn one_item_needs_no_brackets() {
        let config = load_text(&format!("{RUN}[tasks.alone_1]\nmetrics = \"f1\"\n"), &[]).unwrap().config;
        assert_eq!(config.tasks["alone_1"].metrics.len(), 1);
    }

    #[test]
    fn task_names_can_be_folders() {
        let errors = errors(&format!("{RUN}[tasks.\"a/b\"]\ntrain = \"main.toml\"\nfeatures = \"x\"\nlabel = \"y\"\n"));
        assert_eq!(locations(&errors)[0], (6, 8, "tasks.\"a/b\""));
    }

    #[test]
    fn a_misspelled_table_is_looked_into() {
        let errors = errors("[encodr]\nkind = \"bag\"\nhiden = 3\n[train]\nrounds = 1\n");
        assert_eq!(locations(&errors), [(1, 1, "tasks"), (1, 2, "encodr"), (3, 1, "encodr.hiden")]);
    }

    #[test]
    fn a_misspelled_key_is_not_also_missing() {
        let errors = errors("[encoder]\nkin = \"linear\"\n[train]\nround = 1\n[synthetic]\n");
        assert_eq!(locations(&errors), [(2, 1, "encoder.kin"), (4, 1, "train.round")]);
    }
}
