//! Which file is read for whom: files shared by tasks or splits are read once and their rows routed.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Result, bail, ensure};

use crate::config::schema::{Config, HeadKind, Task};
use crate::data::labels::LabelForm;
use crate::data::read::{FileSpec, Row};
use crate::data::split::SplitName;
use crate::data::suggest::missing;

/// One file and all that is taken from it. Columns are places in `wanted`, and so in a row.
pub(super) struct Source {
    pub file: FileSpec,
    pub wanted: Vec<String>,
    pub inputs: Vec<InputColumns>,
    pub sinks: Vec<Sink>,
    routes: Routes,
}

/// The columns an example's input is made of; sinks with equal ones share the work and the stored result.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum InputColumns {
    /// One sequence of all its texts.
    Text(Vec<usize>),
    /// A sequence of each.
    Texts(Vec<usize>),
    Features(Vec<usize>),
}

/// One task's use of a file.
pub(super) struct Sink {
    /// Place of the task in name order.
    pub task: usize,
    pub input: usize,
    pub form: LabelForm,
    pub label: Vec<usize>,
    pub label_names: Vec<String>,
    /// Some rows of train will be another split's.
    pub held_out: bool,
    pub rule: SplitRule,
    /// Column and value of each of `eval.slices`; empty for rows of train only.
    pub slices: Vec<(usize, String)>,
}

/// Which split a row belongs to.
pub(super) enum SplitRule {
    Always(SplitName),
    Column { column: usize, values: Vec<(String, SplitName)> },
}

/// Which sinks want a row.
#[derive(Default)]
struct Routes {
    always: Vec<usize>,
    /// The task column, and the sinks by its value.
    by_task: Option<(usize, HashMap<String, Vec<usize>>)>,
}

impl SplitRule {
    pub(super) fn split_of(&self, row: &Row) -> Option<SplitName> {
        match self {
            SplitRule::Always(split) => Some(*split),
            SplitRule::Column { column, values } => {
                let value = row.cells[*column].plain()?;
                values.iter().find(|(name, _)| *name == value).map(|(_, split)| *split)
            }
        }
    }
}

impl Source {
    /// A file of these columns from which only a task's input is taken.
    pub(super) fn of_inputs(file: FileSpec, wanted: Vec<String>, settings: &Task) -> Result<Source> {
        let (inputs, sinks, routes) = (Vec::new(), Vec::new(), Routes::default());
        for column in settings.text.iter().chain(&settings.features) {
            // Late keys of JSON lines would not be among the row's own columns.
            ensure!(wanted.contains(column), "{}: {}", file.path.display(), missing("column", column, &wanted));
        }
        let mut source = Source { file, wanted, inputs, sinks, routes };
        source.input(settings);
        Ok(source)
    }

    /// The sinks that may want a row, by its task column.
    pub(super) fn sinks_of<'a>(&'a self, row: &Row) -> impl Iterator<Item = usize> + use<'a> {
        let routed = self.routes.by_task.as_ref().and_then(|(column, sinks)| {
            let task = row.cells[*column].plain()?;
            sinks.get(task.as_ref())
        });
        self.routes.always.iter().chain(routed.into_iter().flatten()).copied()
    }

    pub(super) fn is_text(&self, input: usize) -> bool {
        matches!(self.inputs[input], InputColumns::Text(_) | InputColumns::Texts(_))
    }

    fn want(&mut self, column: &str) -> usize {
        match self.wanted.iter().position(|name| name == column) {
            Some(place) => place,
            None => {
                self.wanted.push(column.to_owned());
                self.wanted.len() - 1
            }
        }
    }

    fn want_all(&mut self, columns: &[String]) -> Vec<usize> {
        columns.iter().map(|column| self.want(column)).collect()
    }

    fn input(&mut self, settings: &Task) -> usize {
        let columns = if settings.text.is_empty() {
            InputColumns::Features(self.want_all(&settings.features))
        } else if settings.head == HeadKind::Similarity {
            InputColumns::Texts(self.want_all(&settings.text))
        } else {
            InputColumns::Text(self.want_all(&settings.text))
        };
        match self.inputs.iter().position(|input| *input == columns) {
            Some(place) => place,
            None => {
                self.inputs.push(columns);
                self.inputs.len() - 1
            }
        }
    }
}

/// Sources in file order, for the tasks `tasks` (in name order).
pub(super) fn sources(config: &Config, tasks: &[(&String, &Task)]) -> Result<Vec<Source>> {
    let mut sources: BTreeMap<_, Source> = BTreeMap::new();
    for (index, (name, settings)) in tasks.iter().enumerate() {
        check_columns_named(name, settings)?;
        let files = files_of(name, settings)?;
        for (path, split) in files {
            let file = file_spec(settings, path);
            // `Format` has no order of its own; its name does.
            let key = (file.path.clone(), format!("{:?} {:?} {:?}", file.format, file.columns, file.quoted));
            let source = sources.entry(key).or_insert_with(|| Source {
                file,
                wanted: Vec::new(),
                inputs: Vec::new(),
                sinks: Vec::new(),
                routes: Routes::default(),
            });
            add_sink(source, config, index, name, settings, split);
        }
    }
    Ok(sources.into_values().collect())
}

/// A task's files, with the split they are when they are one.
pub(in crate::data) fn files_of<'a>(name: &str, settings: &'a Task) -> Result<Vec<(&'a std::path::Path, Option<SplitName>)>> {
    if let Some(file) = &settings.file {
        ensure!(
            settings.train.is_none() && settings.dev.is_none() && settings.test.is_none(),
            "task `{name}` has both `file` and `train`, `dev` or `test`: rows come either from one file or from one per split"
        );
        let split = settings.split.is_none().then_some(SplitName::Train);
        return Ok(vec![(file, split)]);
    }
    ensure!(settings.train.is_some(), "task `{name}` has no data: set `train`, or `file`");
    let files = settings.files().into_iter().zip(SplitName::ALL);
    Ok(files.flat_map(|((_, files), split)| files.iter().map(move |file| (file.as_path(), Some(split)))).collect())
}

pub(in crate::data) fn file_spec(settings: &Task, path: &std::path::Path) -> FileSpec {
    FileSpec { path: path.to_owned(), format: settings.format, columns: settings.columns.clone(), quoted: settings.quoted }
}

fn check_columns_named(name: &str, settings: &Task) -> Result<()> {
    ensure!(settings.text.is_empty() || settings.features.is_empty(), "task `{name}` has both `text` and `features`");
    ensure!(!settings.text.is_empty() || !settings.features.is_empty(), "task `{name}` has neither `text` nor `features`");
    ensure!(settings.text.len() <= 2, "task `{name}`: `text` names {} columns, at most two", settings.text.len());
    let labelled = !settings.label.is_empty() || matches!(LabelForm::of(settings), LabelForm::Words | LabelForm::Pair);
    ensure!(labelled, "task `{name}` has no `label`");
    let classes = settings.classes.len();
    match LabelForm::of(settings) {
        LabelForm::Class => {
            ensure!(settings.label.len() == 1, "task `{name}`: classification needs one `label` column");
        }
        LabelForm::Pair => {
            ensure!(settings.text.len() == 2, "task `{name}`: similarity needs two `text` columns");
        }
        LabelForm::Flags if classes > 0 && classes != settings.label.len() => {
            bail!("task `{name}`: {classes} `classes` for {} `label` columns", settings.label.len());
        }
        _ => {}
    }
    Ok(())
}

fn add_sink(source: &mut Source, config: &Config, task: usize, name: &str, settings: &Task, split: Option<SplitName>) {
    let rule = match (split, &settings.split) {
        (None, Some(column)) => SplitRule::Column { column: source.want(column), values: split_values(settings) },
        (split, _) => SplitRule::Always(split.unwrap_or(SplitName::Train)),
    };
    let held_out = settings.shares().is_some();
    let evaluated = held_out || !matches!(rule, SplitRule::Always(SplitName::Train));
    let slices = config.eval.slices.values().filter(|_| evaluated);
    let slices = slices.map(|slice| (source.want(&slice.column), slice.equals.clone())).collect();
    let sink = Sink {
        task,
        input: source.input(settings),
        form: LabelForm::of(settings),
        label: source.want_all(&settings.label),
        label_names: settings.label.clone(),
        held_out,
        rule,
        slices,
    };
    source.sinks.push(sink);
    let place = source.sinks.len() - 1;
    match task_column(config, settings) {
        None => source.routes.always.push(place),
        Some(column) => {
            let column = source.want(column);
            let (_, by_task) = source.routes.by_task.get_or_insert_with(|| (column, HashMap::new()));
            by_task.entry(name.to_owned()).or_default().push(place);
        }
    }
}

fn split_values(settings: &Task) -> Vec<(String, SplitName)> {
    let values = [
        (&settings.train_splits, SplitName::Train),
        (&settings.dev_splits, SplitName::Dev),
        (&settings.test_splits, SplitName::Test),
    ];
    values.into_iter().flat_map(|(names, split)| names.iter().map(move |name| (name.clone(), split))).collect()
}

/// The column that tells whose row it is, for a task made by `tasks_from`.
pub(in crate::data) fn task_column<'a>(config: &'a Config, settings: &Task) -> Option<&'a str> {
    let from = config.tasks_from.as_ref()?;
    (settings.file.as_ref() == Some(&from.file)).then_some(from.task.as_str())
}
