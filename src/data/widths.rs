//! `taskloom check`: do all tasks bring as many features, and no more than the encoder takes? Reads the first rows.

use std::path::Path;
use std::sync::Arc;

use super::feature_columns;
use super::load::{feature_count, file_spec, files_of};
use super::read::{Item, Reader};
use crate::config::schema::{Config, Task};

/// Rows looked at for one that can be read.
const FIRST_ROWS: usize = 16;

/// Every problem, as (key, message).
pub(super) fn check(config: &Config) -> Vec<(String, String)> {
    if config.encoder.kind.reads_text() {
        return Vec::new();
    }
    let made = config.synthetic.iter().map(|made| ("synthetic.features".to_owned(), made.features));
    let found = config.tasks_from.iter().filter_map(|from| width(config, &from.file, "task_defaults", &config.task_defaults));
    let found = found.map(|width| ("task_defaults.features".to_owned(), width));
    let own = config.tasks.iter().filter(|(_, task)| task.synthetic.is_none()).filter_map(|(name, task)| {
        let (file, _) = *files_of(name, task).ok()?.first()?;
        Some((format!("tasks.{name}.features"), width(config, file, name, task)?))
    });
    let mut widths = made.chain(found).chain(own);
    let Some((first, expected)) = widths.next() else { return Vec::new() };
    let others = widths.filter(|(_, width)| *width != expected);
    let unequal = |width| format!("has {width} features, {first} {expected}: the shared encoder needs the same number");
    let mut problems: Vec<_> = others.map(|(key, width)| (key, unequal(width))).collect();
    if config.encoder.residual && expected > config.encoder.hidden {
        let message = format!(
            "adds the {expected} features to encoder.hidden = {} outputs: the input may not be wider",
            config.encoder.hidden
        );
        problems.push(("encoder.residual".to_owned(), message));
    }
    problems
}

/// Several columns hold one number each, one column a list.
fn width(config: &Config, file: &Path, name: &str, task: &Task) -> Option<usize> {
    let features = feature_columns::named(config, name, task).ok()?;
    if features.len() != 1 {
        return Some(features.len()).filter(|columns| *columns > 0);
    }
    let rows = Reader::open(&file_spec(task, file), &features, Arc::default()).ok()?;
    // What cannot be read is told when it is.
    rows.take(FIRST_ROWS).find_map(|item| match item {
        Ok(Item::Row(row)) => feature_count(row.cells.first()?),
        _ => None,
    })
}
