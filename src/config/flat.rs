//! A configuration as a flat list of keys and values, for people who compare runs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use super::tree::{Node, join_key};
use super::{Resolved, load_stored};
use crate::config::Config;

/// A run's `config.toml`.
#[derive(Clone, Debug)]
pub struct Settings {
    pub config: Config,
    /// Value as TOML by key, as in `tasks.books.label`.
    pub values: BTreeMap<String, String>,
}

/// The configuration that [`Resolved::to_toml`] wrote to `path`.
pub fn stored_settings(path: &Path) -> Result<Settings> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let table = text.parse::<toml::Table>().with_context(|| format!("{} is not a stored configuration", path.display()))?;
    let mut values = BTreeMap::new();
    flatten("", &table, &mut values);
    Ok(Settings { config: load_stored(path)?, values })
}

fn flatten(path: &str, table: &toml::Table, found: &mut BTreeMap<String, String>) {
    for (name, value) in table {
        let key = join_key(path, name);
        match value {
            toml::Value::Table(inner) => flatten(&key, inner, found),
            value => drop(found.insert(key, value.to_string())),
        }
    }
}

/// The numbers, booleans and words of a stored configuration by key, of the keys that pass; no lists, and nothing that may be a
/// path.
pub fn scalars(path: &Path, pass: impl Fn(&str) -> bool) -> Result<Vec<(String, Value)>> {
    let values = stored_settings(path)?.values.into_iter().filter(|(key, _)| pass(key));
    let scalar = |text: &str| match toml::de::ValueDeserializer::parse(text)
        .ok()
        .and_then(|value| toml::Value::deserialize(value).ok())?
    {
        toml::Value::Integer(value) => Some(Value::from(value)),
        toml::Value::Float(value) => Some(Value::from(value)),
        toml::Value::Boolean(value) => Some(Value::from(value)),
        toml::Value::String(value) if !value.contains('/') => Some(Value::from(value)),
        _ => None,
    };
    Ok(values.filter_map(|(key, text)| Some((key, scalar(&text)?))).collect())
}

impl Resolved {
    /// Where each value that is no default was written, by its key: `reviews.toml:12` or `--set`. What a task has from
    /// `task_defaults` was written there.
    pub fn origins(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        origins("", &self.tree, &mut found);
        found
    }
}

fn origins(path: &str, node: &Node, found: &mut BTreeMap<String, String>) {
    match node.table() {
        Some(table) => table.iter().for_each(|(name, inner)| origins(&join_key(path, name), inner, found)),
        None if node.at.is_default() => {}
        None => drop(found.insert(path.to_owned(), node.at.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Folder;
    use super::*;

    #[test]
    fn values_are_listed_with_where_they_were_written() {
        let text =
            "[encoder]\nkind = \"linear\"\n[train]\nrounds = 9\n[synthetic]\n[task_defaults]\nweight = 2\n[tasks.alone_1]\n";
        let folder = Folder::new(&[("main.toml", text)]);
        let resolved = folder.load(&["run.seed=7"]).unwrap();
        let file = folder.path("main.toml").display().to_string();
        let expected = [
            ("encoder.kind", format!("{file}:2")),
            ("run.seed", "--set".to_owned()),
            ("task_defaults.weight", format!("{file}:7")),
            ("tasks.alone_1.weight", format!("{file}:7")),
            ("train.rounds", format!("{file}:4")),
        ];
        assert!(resolved.origins().iter().map(|(key, at)| (key.as_str(), at.clone())).eq(expected), "{:?}", resolved.origins());
        let run = Folder::new(&[("config.toml", &resolved.to_toml())]);
        let stored = stored_settings(&run.path("config.toml")).unwrap();
        assert_eq!(stored.config.run.seed, 7);
        assert_eq!(stored.values["encoder.kind"], "\"linear\"");
        assert_eq!(stored.values["tasks.alone_1.weight"], "2.0");
    }

    #[test]
    fn what_is_no_configuration_is_named() {
        let folder = Folder::new(&[("config.toml", "[run\n")]);
        let error = format!("{:#}", stored_settings(&folder.path("config.toml")).unwrap_err());
        assert!(error.contains("config.toml is not a stored configuration"), "{error}");
    }
}
