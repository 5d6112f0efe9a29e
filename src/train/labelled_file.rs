//! The examples of a file that a trained model is scored on: rows with labels, for those of its tasks whose columns the file has.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::config::Config;
use crate::config::schema::{HeadKind, Task};
use crate::data::{self, Corpus, Inputs, Split, Targets, TaskData, TokenStore};
use crate::train::checkpoint::{State, TaskState};

/// All tasks of the checkpoint, in its order; dev holds the file's rows of those that have any. `only`: of this task.
pub fn labelled(config: &Config, state: &State, path: &Path, only: Option<&str>) -> Result<Corpus> {
    let known: Vec<&str> = state.tasks.iter().map(|task| task.name.as_str()).collect();
    if let Some(only) = only {
        ensure!(known.contains(&only), "--task: there is no task \"{only}\"; there are {}", known.join(", "));
    }
    let mut of_file = config.clone();
    (of_file.tasks, of_file.tasks_from) = (Default::default(), None);
    of_file.eval.slices.clear();
    let asked = state.tasks.iter().filter(|task| only.is_none_or(|only| task.name == only));
    let asked: Vec<(&TaskState, Task)> = asked.map(|task| (task, settings(config, task, path))).collect();
    route(config, path, &mut of_file)?;
    let mut why = String::new();
    for (task, settings) in asked {
        match data::missing_columns(&settings, path, task.kind)? {
            None => drop(of_file.tasks.insert(task.name.clone(), settings)),
            Some(missing) if why.is_empty() => why = format!("task {}: {missing}", task.name),
            Some(_) => {}
        }
    }
    if let Some(from) = &of_file.tasks_from {
        let there = data::values_of(path, &config.task_defaults, &from.task)?;
        of_file.tasks.retain(|name, _| there.contains(name));
        of_file.tasks.values_mut().for_each(|task| (task.file, task.train) = (Some(path.to_owned()), None));
        ensure!(!of_file.tasks.is_empty(), "{}: column `{}` names no task to score in any row", path.display(), from.task);
    }
    ensure!(!of_file.tasks.is_empty(), "{} has not the columns of any task to score: {why}", path.display());
    let mut found = data::load_labelled(&of_file, &|_| {})?;
    let mut tasks = Vec::new();
    for task in &state.tasks {
        let place = found.tasks.iter().position(|found| found.name == task.name);
        tasks.push(match place {
            Some(place) => scored(found.tasks.swap_remove(place), task)?,
            None => absent(task, config.task_defaults.clone()),
        });
    }
    found.tasks = tasks;
    Ok(found)
}

/// How the task reads the file: as it read its own, with the classes and columns that it learned.
fn settings(config: &Config, task: &TaskState, path: &Path) -> Task {
    let mut settings = config.tasks.get(&task.name).unwrap_or(&config.task_defaults).clone();
    settings.train = Some(vec![path.to_owned()]);
    (settings.dev, settings.test, settings.file, settings.split, settings.synthetic) = (None, None, None, None, None);
    settings.class_weights = None;
    settings.format = data::format_for(path, &settings);
    if !task.features.is_empty() {
        settings.features.clone_from(&task.features);
    }
    if task.kind == HeadKind::Classification || task.kind == HeadKind::Multilabel && settings.label.len() == 1 {
        settings.classes.clone_from(&task.classes);
    }
    settings
}

/// Rows of a file with the column of `tasks_from` belong to the tasks that it names.
fn route(config: &Config, path: &Path, of_file: &mut Config) -> Result<()> {
    let Some(from) = &config.tasks_from else { return Ok(()) };
    let columns = data::columns_of(path, &config.task_defaults)?;
    if columns.contains(&from.task) {
        of_file.tasks_from = Some(from.clone());
        of_file.tasks_from.iter_mut().for_each(|from| from.file = path.to_owned());
    }
    Ok(())
}

/// The file's rows as the task's dev split.
fn scored(mut found: TaskData, task: &TaskState) -> Result<TaskData> {
    let (name, outputs) = (&task.name, task.outputs);
    ensure!(found.outputs == outputs, "task {name}: the file has {} outputs, the model {outputs}", found.outputs);
    let scaled = found.scale(task.feature_scale.clone(), task.label_scale.clone());
    let weighed = scaled.and_then(|()| found.take_class_weights(task.class_weights.clone()));
    weighed.with_context(|| format!("task {name}: the checkpoint does not fit the file"))?;
    let rows = std::mem::replace(&mut found.train, nothing());
    Ok(TaskData { dev: Some(rows), ..found })
}

fn absent(task: &TaskState, settings: Task) -> TaskData {
    TaskData {
        name: task.name.clone(),
        settings,
        outputs: task.outputs,
        classes: task.classes.clone(),
        train: nothing(),
        dev: None,
        test: None,
        report: Default::default(),
        fingerprint: [0; 32],
        feature_scale: None,
        label_scale: None,
        class_weights: None,
    }
}

fn nothing() -> Split {
    let inputs = Inputs::Tokens(TokenStore::from_rows(&[]));
    Split { inputs, targets: Targets::Class(Vec::new()), unscaled: None, slices: Default::default() }
}
