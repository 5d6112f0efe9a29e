//! The configuration of a run that has begun, with `--set` over it.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::diagnostic::{Diagnostic, Errors};
use super::keys::resumable;
use super::tree::{Node, Origin, join_key};
use super::{Resolved, load};

/// Reads the `config.toml` of a run folder with `sets` over it; beside it the keys that have another value than before, each with
/// `from` and `to` (null: not set). Keys that a run cannot change on its way are refused; `own` are settings that hold either way.
pub fn change(path: &Path, own: &[String], sets: &[String]) -> Result<(Resolved, Map<String, Value>), Errors> {
    let before = load(path, own)?;
    if sets.is_empty() {
        return Ok((before, Map::new()));
    }
    let after = load(path, &[own, sets].concat())?;
    let resumable = resumable();
    let mut set = Vec::new();
    written("", &after.tree, &mut set);
    set.retain(|(_, origin)| !own.iter().any(|own| matches!(origin, Origin::Set(text) if **text == **own)));
    let refuse = |(key, origin): &(String, Origin)| {
        let refused = Diagnostic::new(origin.clone(), key, "cannot change in a run that has begun");
        refused.help(format!("start a new run, or change one of {}", resumable.join(", ")))
    };
    let refused: Vec<Diagnostic> = set.iter().filter(|(key, _)| !resumable.contains(key)).map(refuse).collect();
    if !refused.is_empty() {
        return Err(Errors::new(refused));
    }
    let value = |tree: &Node, key: &str| tree.get(key).map(Node::to_toml);
    let changes = resumable.iter().map(|key| (key, value(&before.tree, key), value(&after.tree, key)));
    let changes = changes.filter(|(_, from, to)| from != to);
    let changes = changes.map(|(key, from, to)| (key.clone(), json!({ "from": from, "to": to }))).collect();
    Ok((after, changes))
}

/// The keys that `--set` wrote.
fn written(path: &str, node: &Node, found: &mut Vec<(String, Origin)>) {
    match node.table() {
        Some(table) => table.iter().for_each(|(name, inner)| written(&join_key(path, name), inner, found)),
        None if matches!(node.at, Origin::Set(_)) && node.inherited.is_none() => found.push((path.to_owned(), node.at.clone())),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Folder;
    use super::*;

    fn changed(sets: &[&str]) -> Result<(Resolved, Map<String, Value>), Errors> {
        let text = "[encoder]\nkind = \"linear\"\n[train]\nrounds = 9\n[synthetic]\n[optimizer]\nlr = 0.5\n";
        let folder = Folder::new(&[("main.toml", text)]);
        let stored = folder.load(&[]).unwrap().to_toml();
        let run = Folder::new(&[("config.toml", &stored)]);
        change(&run.path("config.toml"), &[], &sets.iter().map(|set| (*set).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn what_has_another_value_is_a_change() {
        let (resolved, changes) = changed(&["optimizer.lr=0.25", "train.epochs=3", "clip.norm=1.0"]).unwrap();
        assert_eq!(resolved.config.optimizer.lr, 0.25);
        let expected = json!({
            "train.epochs": { "from": null, "to": 3.0 },
            "train.rounds": { "from": 9, "to": null },
            "optimizer.lr": { "from": 0.5, "to": 0.25 },
        });
        assert_eq!(Value::Object(changes), expected);
        assert!(changed(&[]).unwrap().1.is_empty());
    }

    #[test]
    fn the_other_keys_are_refused_by_name() {
        let errors =
            changed(&["run.seed=1", "optimizer.lr=0.1", "task_defaults.weight=2", "tasks.alone_1.period=2"]).unwrap_err();
        let keys: Vec<&str> = errors.diagnostics().iter().map(|error| error.key.as_str()).collect();
        assert_eq!(keys, ["run.seed", "task_defaults.weight", "tasks.alone_1.period"]);
        let first = errors.to_string();
        assert!(first.starts_with("--set run.seed=1: run.seed: cannot change in a run that has begun\n  help: "), "{first}");
        assert!(first.contains("optimizer.lr, ") && first.contains("optimizer.schedule.warmup"), "{first}");
    }

    #[test]
    fn a_key_of_another_schedule_goes_out_of_use() {
        let (resolved, changes) = changed(&["optimizer.schedule.kind=constant"]).unwrap();
        assert_eq!(changes.len(), 1, "{changes:?}");
        let run = Folder::new(&[("config.toml", &resolved.to_toml())]);
        assert_eq!(load(&run.path("config.toml"), &[]).unwrap().config, resolved.config);
    }
}
