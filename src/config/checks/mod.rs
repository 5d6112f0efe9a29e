//! What several keys, or keys and the file system, say together.
//!
//! Runs on resolved values. A check names every key it looked at, so that nothing is reported that only follows from an
//! error reported before.

mod best;
mod depends;
mod device;
mod faults;
mod files;
mod rows;
mod run;
mod schedule;
mod surgery;
mod tasks;

use std::collections::BTreeMap;

use super::diagnostic::Diagnostic;
use super::schema::{Config, Task};
use super::tree::quote_key;
use super::{Resolved, synthetic};

pub fn run(resolved: &Resolved) -> Vec<Diagnostic> {
    let mut checker = Checker { resolved, config: &resolved.config, errors: Vec::new() };
    run::check(&mut checker);
    schedule::check(&mut checker);
    surgery::check(&mut checker);
    device::check(&mut checker);
    tasks::check(&mut checker);
    depends::check(&mut checker);
    faults::check(&mut checker);
    best::check(&mut checker);
    files::check(&mut checker);
    checker.errors
}

struct Checker<'a> {
    resolved: &'a Resolved,
    config: &'a Config,
    errors: Vec<Diagnostic>,
}

impl<'a> Checker<'a> {
    /// Reports an error of the first key, unless one of `keys` is known to be wrong. No help is an empty one.
    fn error(&mut self, keys: &[&str], message: impl Into<String>, help: &str) {
        if keys.iter().any(|key| self.resolved.is_flawed(key)) {
            return;
        }
        let diagnostic = self.resolved.diagnostic(keys[0], message);
        self.errors.push(if help.is_empty() { diagnostic } else { diagnostic.help(help) });
    }

    /// Whether the file, and not a default or another table, gives the key its value.
    fn is_own(&self, key: &str) -> bool {
        self.resolved.tree.get(key).is_some_and(|node| !node.at.is_default() && node.inherited.is_none())
    }

    /// Every task whose name is known before any data is read, with its settings.
    fn known_tasks(&self) -> BTreeMap<String, &'a Task> {
        let made = self.config.synthetic.iter().flat_map(synthetic::names);
        let included = self.config.tasks_from.iter().flat_map(|from| from.include.iter().cloned());
        let mut known: BTreeMap<_, _> = made.chain(included).map(|name| (name, &self.config.task_defaults)).collect();
        known.extend(self.config.tasks.iter().map(|(name, task)| (name.clone(), task)));
        known
    }

    /// Whether data may bring tasks beyond the known ones.
    fn is_open(&self) -> bool {
        self.config.tasks_from.as_ref().is_some_and(|from| from.include.is_empty())
    }
}

/// The key of a task's table.
fn task_key(name: &str) -> String {
    format!("tasks.{}", quote_key(name))
}
