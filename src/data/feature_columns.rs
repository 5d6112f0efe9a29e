//! Feature columns that a task names together: by how they begin, from one to another, or all of a file.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::load::{file_spec, files_of, task_column};
use super::read::columns;
use super::suggest::{list, missing};
use crate::config::schema::{Config, Task};

/// Gives every task the columns that its patterns mean.
pub(super) fn expand(config: &mut Config) -> Result<()> {
    let named: Vec<(String, Vec<String>)> = config
        .tasks
        .iter()
        .filter(|(_, task)| task.features.iter().any(|name| may_be_pattern(name)))
        .map(|(name, task)| Ok((name.clone(), named(config, name, task)?)))
        .collect::<Result<_>>()?;
    for (name, features) in named {
        if let Some(task) = config.tasks.get_mut(&name) {
            task.features = features;
        }
    }
    Ok(())
}

/// The task's feature columns, in the order of its list; those of a pattern in the order of its first training file.
pub(super) fn named(config: &Config, name: &str, task: &Task) -> Result<Vec<String>> {
    if !task.features.iter().any(|feature| may_be_pattern(feature)) {
        return Ok(task.features.clone());
    }
    let from = config.tasks_from.as_ref().filter(|_| task.train.is_none() && task.file.is_none());
    let path = match from {
        Some(from) => from.file.as_path(),
        None => files_of(name, task)?[0].0,
    };
    let there = columns(&file_spec(task, path))?;
    let beside = not_features(config, task, path);
    let mut features: Vec<String> = Vec::new();
    for feature in &task.features {
        let found = match range(feature, &there, path)? {
            _ if there.contains(feature) || !may_be_pattern(feature) => vec![feature.clone()],
            Some(range) => range,
            None => {
                let start = feature.trim_end_matches('*');
                let found = there.iter().filter(|column| column.starts_with(start) && !beside.contains(column.as_str()));
                let found: Vec<String> = found.cloned().collect();
                ensure!(
                    !found.is_empty(),
                    "{}: no column for `{feature}` beside labels and splits; there is: {}",
                    path.display(),
                    list(&there)
                );
                found
            }
        };
        found.into_iter().for_each(|column| {
            if !features.contains(&column) {
                features.push(column);
            }
        });
    }
    let label = task.label.iter().find(|label| features.contains(label));
    ensure!(label.is_none(), "task `{name}`: its label `{}` is among its features", label.map_or("", String::as_str));
    Ok(features)
}

fn may_be_pattern(feature: &str) -> bool {
    feature.ends_with('*') || feature.contains("..")
}

/// `x1..x9`: both ends and what stands between them.
fn range(feature: &str, there: &[String], path: &std::path::Path) -> Result<Option<Vec<String>>> {
    let Some((first, last)) = feature.split_once("..").filter(|_| !there.iter().any(|column| column == feature)) else {
        return Ok(None);
    };
    let mut ends = [0; 2];
    for (end, column) in ends.iter_mut().zip([first, last]) {
        let place = there.iter().position(|other| other == column);
        ensure!(place.is_some(), "{}: `{feature}`: {}", path.display(), missing("column", column, there));
        *end = place.unwrap_or(0);
    }
    let [from, to] = ends;
    ensure!(from <= to, "{}: `{feature}`: column `{last}` stands before `{first}`", path.display());
    Ok(Some(there[from..=to].to_vec()))
}

/// What `*` leaves out: labels of all tasks that read the file, and the columns that say whose a row is.
fn not_features<'a>(config: &'a Config, task: &'a Task, path: &std::path::Path) -> BTreeSet<&'a str> {
    let from = config.tasks_from.as_ref().filter(|from| from.file == path);
    let reads = |other: &&Task| {
        let own = other.files().iter().any(|(_, files)| files.iter().any(|file| file == path));
        own || from.is_some() && other.train.is_none() && other.file.is_none()
    };
    let others = config.tasks.values().chain(from.map(|_| &config.task_defaults)).filter(reads);
    let columns = others.chain([task]).flat_map(|task| task.label.iter().chain(&task.split));
    columns.map(String::as_str).chain(task_column(config, task)).chain(from.map(|from| from.task.as_str())).collect()
}
