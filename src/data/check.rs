//! `taskloom check`: are the files there, and do they have the columns the tasks name? Reads headers and first rows only.

use std::collections::{BTreeSet, HashMap};

use super::feature_columns;
use super::load::{file_spec, files_of, task_column};
use super::read::{FileSpec, columns, comes_late};
use super::split::SplitName;
use super::suggest::missing;
use super::tokenizer::Tokenizer;
use super::widths;
use crate::config::schema::{Config, Task};

/// Every problem of the data sources, as (key, message); in key order, each once. Works before and after
/// [`super::expand`].
pub fn check_sources(config: &Config) -> Vec<(String, String)> {
    let mut check = Check { config, seen: HashMap::new(), late: HashMap::new(), problems: BTreeSet::new() };
    check.tasks_from();
    for (name, task) in config.tasks.iter().filter(|(_, task)| task.synthetic.is_none()) {
        check.task(name, task);
    }
    check.tokenizer();
    check.problems.extend(widths::check(config));
    check.problems.into_iter().collect()
}

const DEFAULTS: &str = "task_defaults";

struct Check<'a> {
    config: &'a Config,
    /// Columns of the files opened so far, or what is wrong with them.
    seen: HashMap<String, Result<Vec<String>, String>>,
    /// Whether a file has a column beyond these.
    late: HashMap<(String, String), Result<bool, String>>,
    problems: BTreeSet<(String, String)>,
}

impl Check<'_> {
    fn tasks_from(&mut self) {
        let Some(from) = &self.config.tasks_from else { return };
        let defaults = &self.config.task_defaults;
        let file = file_spec(defaults, &from.file);
        let Some(there) = self.columns("tasks_from.file", &file) else { return };
        self.need("tasks_from.task".to_owned(), &file, &there, &from.task);
        let defaults = self.with_features(DEFAULTS, defaults);
        self.task_columns(DEFAULTS, &defaults, &file, &there, only_train(&defaults));
    }

    fn task(&mut self, name: &str, task: &Task) {
        let named = self.with_features(name, task);
        let task = &named;
        // Settings without files belong to tasks of `tasks_from`, as do tasks already made from it.
        let has_no_files = task.file.is_none() && task.train.is_none();
        let from = self.config.tasks_from.as_ref().filter(|_| has_no_files || task_column(self.config, task).is_some());
        if let Some(from) = from {
            let file = file_spec(task, &from.file);
            if let Some(there) = self.columns("tasks_from.file", &file) {
                self.task_columns(&format!("tasks.{name}"), task, &file, &there, only_train(task));
            }
            return;
        }
        let files = match files_of(name, task) {
            Ok(files) => files,
            Err(error) => {
                self.problems.insert((format!("tasks.{name}"), format!("{error:#}")));
                return;
            }
        };
        for (path, split) in files {
            let key = match (&task.file, split) {
                (None, Some(split)) => split.as_str(),
                _ => "file",
            };
            let file = file_spec(task, path);
            if let Some(there) = self.columns(&format!("tasks.{name}.{key}"), &file) {
                self.task_columns(&format!("tasks.{name}"), task, &file, &there, split);
            }
        }
    }

    /// The task with the columns that patterns among its features stand for.
    fn with_features(&mut self, name: &str, task: &Task) -> Task {
        let mut task = task.clone();
        match feature_columns::named(self.config, name, &task) {
            Ok(features) => task.features = features,
            Err(error) => {
                // A file that is not there is told of where it is named.
                let is_there = self.config.tasks_from.is_some() || files_of(name, &task).is_ok_and(|files| files[0].0.is_file());
                if is_there {
                    let key = if name == DEFAULTS { format!("{name}.features") } else { format!("tasks.{name}.features") };
                    self.problems.insert((key, format!("{error:#}")));
                }
                task.features.clear();
            }
        }
        task
    }

    fn task_columns(&mut self, prefix: &str, task: &Task, file: &FileSpec, there: &[String], split: Option<SplitName>) {
        let defaults = &self.config.task_defaults;
        let from_defaults = self.config.tasks_from.as_ref().is_some_and(|from| from.file == file.path);
        let fields = [
            ("text", task.text.as_slice(), defaults.text.as_slice()),
            ("features", &task.features, &defaults.features),
            ("label", &task.label, &defaults.label),
            ("split", task.split.as_slice(), defaults.split.as_slice()),
        ];
        for (field, names, default_names) in fields {
            if field == "split" && task.file.is_none() && !from_defaults {
                continue;
            }
            // What a task of `tasks_from` has from the defaults is one problem, not one per task.
            let prefix = if from_defaults && names == default_names { "task_defaults" } else { prefix };
            for name in names {
                self.need(format!("{prefix}.{field}"), file, there, name);
            }
        }
        if split != Some(SplitName::Train) || task.shares().is_some() {
            for (slice, settings) in &self.config.eval.slices {
                self.need(format!("eval.slices.{slice}.column"), file, there, &settings.column);
            }
        }
    }

    fn need(&mut self, key: String, file: &FileSpec, there: &[String], column: &str) {
        if there.iter().any(|name| name == column) {
            return;
        }
        // Reads to the end of the file, so once for all tasks.
        let late = self.late.entry((format!("{file:?}"), column.to_owned()));
        match late.or_insert_with(|| comes_late(file, column).map_err(|error| format!("{error:#}"))) {
            Ok(true) => {}
            Ok(false) => {
                self.problems.insert((key, format!("{}: {}", file.path.display(), missing("column", column, there))));
            }
            Err(message) => {
                self.problems.insert((key, message.clone()));
            }
        }
    }

    /// The columns of a file, opened once; a problem is noted under `key`.
    fn columns(&mut self, key: &str, file: &FileSpec) -> Option<Vec<String>> {
        let found = self.seen.entry(format!("{file:?}")).or_insert_with(|| columns(file).map_err(|error| format!("{error:#}")));
        match found {
            Ok(columns) => Some(columns.clone()),
            Err(message) => {
                let origin = self.config.data.origin.trim();
                let hint = if origin.is_empty() { String::new() } else { format!(" (data.origin: {origin})") };
                self.problems.insert((key.to_owned(), format!("{message}{hint}")));
                None
            }
        }
    }

    fn tokenizer(&mut self) {
        let tasks = self.config.tasks.values().filter(|task| task.synthetic.is_none());
        let defaults = self.config.tasks_from.as_ref().map(|_| &self.config.task_defaults);
        if !tasks.chain(defaults).any(|task| !task.text.is_empty()) {
            return;
        }
        let key = "encoder.tokenizer".to_owned();
        let problem = match &self.config.encoder.tokenizer {
            // Whatever is wrong with that folder is told elsewhere.
            None if self.config.encoder.from.is_some() => None,
            None => Some("text tasks need one: words, a vocab.txt or a tokenizer.json".to_owned()),
            Some(spec) => Tokenizer::open(spec, self.config.encoder.lowercase).err().map(|error| {
                // The key is said already.
                let said = format!("{error:#}");
                said.strip_prefix("encoder.tokenizer: ").unwrap_or(&said).to_owned()
            }),
        };
        self.problems.extend(problem.map(|message| (key, message)));
    }
}

/// Without a split column, all rows of one file are training rows.
fn only_train(task: &Task) -> Option<SplitName> {
    task.split.is_none().then_some(SplitName::Train)
}
