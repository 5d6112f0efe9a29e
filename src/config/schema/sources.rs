//! Tables that make tasks.

use std::path::PathBuf;

use serde::Deserialize;

use super::{EXAMPLES, WIDTH};
use crate::config::keys::{Bounds, Kind, PathFrom};
use crate::config::table::table;

table! {
    /// Built-in source: tasks that agree, oppose each other, or stand alone, on dense features. They are named `agree_1a`,
    /// `agree_1b`, ..., `oppose_1a`, `oppose_1b`, ..., `alone_1`, ...; a `[tasks.NAME]` of such a name changes its settings.
    pub struct Synthetic = SYNTHETIC {
        /// Pairs of tasks that agree.
        agree: usize = 1 in 0..=1000;
        /// Pairs of tasks that oppose each other.
        oppose: usize = 1 in 0..=1000;
        /// Tasks unrelated to all others.
        alone: usize = 1 in 0..=1000;
        /// Width of a feature vector.
        features: usize = 64 in 1..=WIDTH;
        /// Training examples of each task.
        train: usize = 2000 in 1..=EXAMPLES;
        /// Dev examples of each task.
        dev: usize = 500 in 0..=EXAMPLES;
        /// Test examples of each task.
        test: usize = 500 in 0..=EXAMPLES;
        /// Noise in the labels; 0 means none.
        noise: f64 = 0.1 in Bounds::NON_NEGATIVE.up_to(1e6);
    }
}

table! {
    /// One task per distinct value of a column, each with the settings of `[task_defaults]`. A `[tasks.NAME]` without `train`
    /// and `file` changes the settings of the task found under that name.
    pub struct TasksFrom = TASKS_FROM {
        /// The file that holds the rows of all tasks.
        file: PathBuf = required in Kind::Path(PathFrom::DataRoot);
        /// Column naming the task of a row.
        task: String = "task" in Kind::Column;
        /// Short for `task_defaults.split`.
        split: Option<Moved> = none in Kind::Column;
        /// Task names to use; empty means every value found.
        include: Vec<String> = [];
    }
}

/// Of a key that becomes another before the structs are read, so that it is never there.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub enum Moved {}
