//! `tasks_from`: one task per distinct value of a column; and feature columns by patterns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Result, bail, ensure};

use super::feature_columns;
use super::load::file_spec;
use super::read::{Item, Reader};
use super::suggest::missing;
use crate::config::schema::{Config, OnBadRow, Task, TasksFrom};

/// Adds the tasks of `tasks_from` to `tasks`: settings from `tasks` where the name stands there, else from
/// `task_defaults`, and the file of `tasks_from`. Then names the columns that patterns among `features` stand for. Doing it twice
/// changes nothing.
pub fn expand(config: &mut Config) -> Result<()> {
    from_file(config)?;
    feature_columns::expand(config)
}

fn from_file(config: &mut Config) -> Result<()> {
    let Some(from) = config.tasks_from.clone() else { return Ok(()) };
    let found = task_names(config, &from)?;
    let found_names: Vec<&String> = found.keys().collect();
    for name in &from.include {
        ensure!(found.contains_key(name), "tasks_from.include: {}: {}", from.file.display(), missing("task", name, &found_names));
    }
    let included: BTreeSet<&String> = from.include.iter().collect();
    let names: Vec<&String> = found_names.into_iter().filter(|name| included.is_empty() || included.contains(name)).collect();
    check_overrides(config, &from, &names)?;
    for name in names {
        ensure!(
            is_task_name(name),
            "{}:{}: task name `{name}`: use letters, digits, `_`, `.` and `-` only",
            from.file.display(),
            found[name]
        );
        let mut settings = config.tasks.get(name).unwrap_or(&config.task_defaults).clone();
        ensure!(
            settings.train.is_none() && settings.file.as_ref().is_none_or(|file| *file == from.file),
            "task `{name}` has files of its own, but tasks_from.file {} has rows for it too; rename one",
            from.file.display()
        );
        settings.file = Some(from.file.clone());
        config.tasks.insert(name.clone(), settings);
    }
    Ok(())
}

/// The values of the task column and the line each first stands on.
fn task_names(config: &Config, from: &TasksFrom) -> Result<BTreeMap<String, u64>> {
    let file = file_spec(&config.task_defaults, &from.file);
    let mut names = BTreeMap::new();
    for item in Reader::open(&file, std::slice::from_ref(&from.task), Arc::default())? {
        match item? {
            Item::Row(row) => {
                // A row without a task is nobody's; loading counts it.
                let Some(name) = row.cells.first().and_then(|cell| cell.plain()) else { continue };
                if !name.is_empty() && !names.contains_key(name.as_ref()) {
                    names.insert(name.into_owned(), row.line);
                }
            }
            Item::Bad(line, fault) if config.data.on_bad_row == OnBadRow::Error => {
                return Err(fault.into_error(&from.file, line));
            }
            Item::Bad(..) => {}
        }
    }
    ensure!(!names.is_empty(), "{}: column `{}` names no task in any row", from.file.display(), from.task);
    Ok(names)
}

/// Settings without files of their own are meant for a task of the file: its name must be there.
fn check_overrides(config: &Config, from: &TasksFrom, names: &[&String]) -> Result<()> {
    let has_no_files = |task: &Task| task.synthetic.is_none() && task.train.is_none() && task.file.is_none();
    for (name, _) in config.tasks.iter().filter(|(_, task)| has_no_files(task)) {
        if !names.contains(&name) {
            let place = from.file.display();
            bail!("tasks.{name}: {place}: {} (or set `train` or `file`)", missing("included task", name, names));
        }
    }
    Ok(())
}

fn is_task_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}
