//! Completes the written tree: what tasks share, what `tasks_from` and `synthetic` imply, the defaults, and the keys that
//! another key's value puts out of use.

use std::collections::BTreeSet;

use toml::de::DeValue;

use super::diagnostic::Diagnostic;
use super::keys::{Default, Key, Kind, Only, Section};
use super::schema::{METHOD_KEYS, ROOT, params_of};
use super::tree::{Node, Origin, Spans, Table, Value, join_key};
use crate::surgery::methods::params;

/// The resolved form of a key's default.
pub fn literal(key: &Key) -> Value {
    let Default::Is(literal) = key.default else { return key.kind.placeholder() };
    let parsed = DeValue::parse(literal).unwrap_or_else(|error| panic!("default of `{}` in the key table: {error}", key.name));
    let value = Spans::Default.node(0..0, &parsed).value;
    match (&key.kind, value) {
        (Kind::List(_) | Kind::Section(_) | Kind::Sections(_), value) => value,
        (kind, value) => kind.read(&value).unwrap_or_else(|bad| panic!("default of `{}` in the key table: {bad:?}", key.name)),
    }
}

/// Completes the tree; reports required keys that are missing and keys that would do nothing.
pub fn complete(root: &mut Node) -> Vec<Diagnostic> {
    let mut errors = Vec::new();
    split_for_all(root, &mut errors);
    one_length(root);
    inherit(root);
    let place = root.place().clone();
    fill("", root, &ROOT, &place, &mut errors);
    for unused in unused(root) {
        errors.extend(unused.complaint(root));
        unused.reset(root);
    }
    method_defaults(root);
    errors
}

/// Parameters of the chosen method that nobody set take the method's own defaults.
fn method_defaults(root: &mut Node) {
    for key in METHOD_KEYS {
        let Some(method) = root.get(key).and_then(Node::text).map(str::to_owned) else { continue };
        let section = key.trim_end_matches(".method");
        let Some(table) = root.get_mut(section).and_then(Node::table_mut) else { continue };
        for param in params_of(key, &method) {
            let value = match param.kind {
                params::Kind::Number { default, .. } => Value::Float(default),
                params::Kind::Count { default, .. } => Value::Int(default as i64),
                params::Kind::Choice { default, .. } => Value::Text(default.to_owned()),
            };
            table.entry(param.name.to_owned()).or_insert_with(|| Node::default(value));
        }
    }
}

/// `tasks_from.split` is written beside the file it describes, and means `task_defaults.split`.
fn split_for_all(root: &mut Node, errors: &mut Vec<Diagnostic>) {
    let Some(table) = root.table_mut() else { return };
    let split = table.get_mut("tasks_from").and_then(Node::table_mut).and_then(|from| from.remove("split"));
    let Some(mut split) = split else { return };
    split.inherited = Some("tasks_from.split".to_owned());
    let defaults = table.entry("task_defaults".to_owned()).or_insert_with(|| Node::default(Value::Table(Table::new())));
    let Some(defaults) = defaults.table_mut() else { return };
    if defaults.contains_key("split") {
        let message = "does nothing, because `task_defaults.split` is set";
        errors.push(Diagnostic::new(split.key_at, "tasks_from.split", message));
    } else {
        defaults.insert("split".to_owned(), split);
    }
}

/// Of `epochs` and `rounds` the later layer has its way, as `--set train.rounds=10` should on any file. Within one layer
/// they contradict each other, which is left for the checks to say.
fn one_length(root: &mut Node) {
    let Some(train) = root.get_mut("train").and_then(Node::table_mut) else { return };
    let layer = |name| train.get(name).map(|node: &Node| node.at.layer());
    match (layer("epochs"), layer("rounds")) {
        (Some(epochs), Some(rounds)) if epochs < rounds => train.remove("epochs"),
        (Some(epochs), Some(rounds)) if epochs > rounds => train.remove("rounds"),
        _ => None,
    };
}

/// Keys that say where rows come from and how to read them.
pub const ROWS: &[&str] =
    &["train", "dev", "test", "file", "split", "format", "columns", "quoted", "text", "features", "feature_scale", "label"];

/// Gives every task what it did not set itself.
fn inherit(root: &mut Node) {
    let shared = root.get("task_defaults").and_then(Node::table).cloned().unwrap_or_default();
    let file = root.get("tasks_from.file").cloned();
    let synthetic = root.get("synthetic").map_or_else(BTreeSet::new, super::synthetic::written_names);
    let tasks = root.table_mut().and_then(|table| table.get_mut("tasks")).and_then(Node::table_mut);
    for (name, task) in tasks.into_iter().flatten() {
        let Some(task) = task.table_mut() else { continue };
        let own_rows = task.contains_key("train") || task.contains_key("file");
        let made = !own_rows && synthetic.contains(name);
        if let Some(file) = file.as_ref().filter(|_| !own_rows && !made) {
            task.insert("file".to_owned(), inherited(file, "tasks_from.file"));
        }
        let foreign: &[&str] = if made {
            ROWS
        } else if task.contains_key("train") {
            &["file", "split"]
        } else {
            &[]
        };
        for (key, node) in shared.iter().filter(|(key, _)| !foreign.contains(&key.as_str())) {
            task.entry(key.clone()).or_insert_with(|| inherited(node, &join_key("task_defaults", key)));
        }
    }
}

fn inherited(node: &Node, key: &str) -> Node {
    let key = node.inherited.clone().unwrap_or_else(|| key.to_owned());
    Node { inherited: Some(key), ..node.clone() }
}

/// `place` is where a missing key is reported: the nearest table that was written.
pub fn fill(path: &str, node: &mut Node, section: &Section, place: &Origin, errors: &mut Vec<Diagnostic>) {
    let flawed = node.flawed;
    let place = if node.place().is_default() { place.clone() } else { node.place().clone() };
    let Some(table) = node.table_mut() else { return };
    for key in section.keys.iter() {
        let path = join_key(path, key.name);
        if !table.contains_key(key.name) {
            match key.default {
                Default::Is(_) => table.insert(key.name.to_owned(), Node::default(literal(key))),
                Default::Absent => None,
                Default::Required => {
                    if !flawed {
                        let message = format!("is required: {}", key.kind.describe());
                        errors.push(Diagnostic::new(place.clone(), path.as_str(), message));
                    }
                    table.insert(key.name.to_owned(), Node::flawed(key.kind.placeholder(), place.clone()))
                }
            };
        }
        let Some(node) = table.get_mut(key.name) else { continue };
        match key.kind {
            Kind::Section(inner) => fill(&path, node, inner, &place, errors),
            Kind::Sections(inner) => {
                for (name, node) in node.table_mut().into_iter().flatten() {
                    fill(&join_key(&path, name), node, inner, &place, errors);
                }
            }
            _ => {}
        }
    }
}

/// A key of the tree that its [`Only`] puts out of use.
pub struct Unused {
    /// Path of the table that holds it.
    table: String,
    key: &'static Key,
    only: &'static Only,
}

pub fn unused(root: &Node) -> Vec<Unused> {
    let mut found = Vec::new();
    find_unused("", root, root, &ROOT, &mut found);
    found
}

fn find_unused(path: &str, node: &Node, root: &Node, section: &'static Section, found: &mut Vec<Unused>) {
    for key in section.keys.iter() {
        let Some(child) = node.table().and_then(|table| table.get(key.name)) else { continue };
        if let Some(only) = &key.only {
            let unused = Unused { table: path.to_owned(), key, only };
            let acts = unused.governor(root).and_then(Node::text).is_some_and(|value| only.values.contains(&value));
            found.extend((!acts).then_some(unused));
        }
        let path = join_key(path, key.name);
        match key.kind {
            Kind::Section(inner) => find_unused(&path, child, root, inner, found),
            Kind::Sections(inner) => {
                for (name, entry) in child.table().into_iter().flatten() {
                    find_unused(&join_key(&path, name), entry, root, inner, found);
                }
            }
            _ => {}
        }
    }
}

impl Unused {
    pub fn path(&self) -> String {
        join_key(&self.table, self.key.name)
    }

    /// The node whose value decides whether the key acts.
    fn governor<'a>(&self, root: &'a Node) -> Option<&'a Node> {
        match self.only.key.strip_prefix('.') {
            Some(sibling) => root.get(&join_key(&self.table, sibling)),
            None => root.get(self.only.key),
        }
    }

    /// An error, unless a later layer (a file over its base, `--set`) changed the deciding key: that is how one method
    /// is tried in place of another.
    fn complaint(&self, root: &Node) -> Option<Diagnostic> {
        let path = self.path();
        let node = root.get(&path)?;
        let governor = self.governor(root)?;
        let written = !node.at.is_default() && node.inherited.is_none();
        let sound = !node.flawed && !governor.flawed;
        if !written || !sound || node.at.layer() < governor.at.layer() {
            return None;
        }
        let deciding = self.only.key.trim_start_matches('.');
        let value = governor.text().unwrap_or_default();
        let message = format!("does nothing while `{deciding}` is \"{value}\"");
        let values: Vec<_> = self.only.values.iter().map(|value| format!("\"{value}\"")).collect();
        let help = format!("it acts with `{deciding}` = {}", values.join(" or "));
        Some(Diagnostic::new(node.key_at.clone(), path, message).help(help))
    }

    /// Puts the default back, so that the resolved values say what the run does.
    fn reset(&self, root: &mut Node) {
        let Some(table) = root.get_mut(&self.table).and_then(Node::table_mut) else { return };
        table.remove(self.key.name);
        if matches!(self.key.default, Default::Is(_)) {
            table.insert(self.key.name.to_owned(), Node::default(literal(self.key)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::sections;
    use super::super::testing::{errors, load_text, locations};
    use super::*;

    const RUN: &str = "[encoder]\nkind = \"linear\"\n[train]\nrounds = 1\n[synthetic]\n";

    #[test]
    fn every_default_is_of_its_kind() {
        for (path, section) in sections() {
            for key in section.keys.iter().filter(|key| matches!(key.default, Default::Is(_))) {
                let value = literal(key);
                let sound = match (&key.kind, &value) {
                    (Kind::List(inner), Value::List(items)) => items.iter().all(|item| inner.read(&item.value).is_ok()),
                    (Kind::Section(_) | Kind::Sections(_), Value::Table(table)) => table.is_empty(),
                    (kind, value) => kind.read(value).as_ref() == Ok(value),
                };
                assert!(sound, "{path}.{}", key.name);
            }
        }
    }

    #[test]
    fn every_only_names_a_key_and_its_values() {
        for (path, section) in sections() {
            for key in section.keys.iter() {
                let Some(only) = &key.only else { continue };
                let (table, name) = match only.key.strip_prefix('.') {
                    Some(sibling) => (path.as_str(), sibling),
                    None => only.key.rsplit_once('.').unwrap(),
                };
                let governor = sections().into_iter().find(|(path, _)| path == table).unwrap().1.find(name).unwrap();
                let Kind::OneOf(values) = &governor.kind else { panic!("{}", only.key) };
                assert!(only.values.iter().all(|value| values.contains(value)), "{}", only.key);
            }
        }
    }

    #[test]
    fn a_missing_required_key_is_reported_at_its_table() {
        let errors = errors("[train]\nrounds = 1\n[synthetic]\n[encoder]\n[eval.slices.a]\ncolumn = \"c\"\n");
        assert_eq!(locations(&errors), [(4, 2, "encoder.kind"), (5, 14, "eval.slices.a.equals")]);
    }

    #[test]
    fn a_missing_required_key_of_a_missing_table_is_reported_at_the_top() {
        assert_eq!(locations(&errors("[train]\nrounds = 1\n[synthetic]\n")), [(1, 1, "encoder.kind")]);
    }

    #[test]
    fn a_parameter_of_another_method_is_an_error() {
        let errors = errors(&format!("{RUN}[surgery]\nmethod = \"mean\"\norder = \"fixed\"\n"));
        assert_eq!(locations(&errors), [(8, 1, "surgery.order")]);
        assert_eq!(errors.diagnostics()[0].message, "does nothing while `surgery.method` is \"mean\"");
    }

    #[test]
    fn a_method_has_all_its_parameters_and_no_others() {
        let surgery = load_text(RUN, &["surgery.method=cagrad", "surgery.c=0.25"]).unwrap().config.surgery;
        let expected = serde_json::json!({"c": 0.25, "rescale": "none", "norm_eps": 1e-4});
        assert_eq!(serde_json::Value::Object(surgery.params), expected);
    }

    #[test]
    fn changing_the_method_from_outside_puts_its_parameters_out_of_use() {
        let text = format!("{RUN}[surgery]\norder = \"fixed\"\n");
        let resolved = load_text(&text, &["surgery.method=mean"]).unwrap();
        assert!(resolved.config.surgery.params.is_empty());
        assert_eq!(load_text(&text, &[]).unwrap().config.surgery.params["order"], "fixed");
        assert!(load_text(&text, &["surgery.method=mean", "surgery.order=fixed"]).is_err());
    }

    #[test]
    fn the_length_of_a_later_layer_has_its_way() {
        let train = load_text(RUN, &["train.epochs=2"]).unwrap().config.train;
        assert_eq!((train.epochs, train.rounds), (Some(2.0), None));
        assert!(load_text(RUN, &["train.epochs=2", "train.rounds=3"]).is_err());
    }

    #[test]
    fn shared_settings_that_do_not_fit_a_task_are_left_out_of_it() {
        let text = format!("{RUN}[task_defaults]\nclasses = [\"a\", \"b\"]\n[tasks.alone_1]\nhead = \"regression\"\n");
        let config = load_text(&text, &[]).unwrap().config;
        assert_eq!(config.task_defaults.classes, ["a", "b"]);
        assert!(config.tasks["alone_1"].classes.is_empty());
    }

    #[test]
    fn own_settings_win_over_shared_ones_and_those_over_defaults() {
        let text = format!("{RUN}[task_defaults]\nweight = 2\nperiod = 3\n[tasks.alone_1]\nweight = 4\n");
        let task = load_text(&text, &[]).unwrap().config.tasks["alone_1"].clone();
        assert_eq!((task.weight, task.period, task.memory), (4.0, 3, 0));
    }
}
