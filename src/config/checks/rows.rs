//! Where a task's rows come from, and which split they are.

use super::super::schema::Task;
use super::Checker;

pub(super) const NO_SPLIT: &str = "needs `split`, the column that names the split of a row";

pub(super) fn rows(checker: &mut Checker, key: &str, task: &Task) {
    let [train, file, split] = ["train", "file", "split"].map(|name| format!("{key}.{name}"));
    if task.file.is_some() {
        for (name, is_set) in &task.rows_set()[..3] {
            if *is_set {
                let message = format!("`{name}` is set as well: a task has one file a split, or one file for all");
                checker.error(&[&file, &format!("{key}.{name}")], message, "remove one of the two");
            }
        }
        if task.split.is_none() {
            checker.error(&[&file, &split], NO_SPLIT, "");
        }
        distinct_splits(checker, key, task);
    } else if task.train.is_some() && task.split.is_some() {
        checker.error(&[&split, &train, &file], "does nothing without `file`", "");
    }
    shares(checker, key, task);
    one_split_a_file(checker, key, task);
}

/// A pattern or a list may take a file of another split in with it, which then measures what was trained on. One and the same file for
/// both is what somebody wrote.
fn one_split_a_file(checker: &mut Checker, key: &str, task: &Task) {
    let files = task.files();
    for (index, (name, own)) in files.iter().enumerate() {
        for (other, others) in &files[..index] {
            let Some(file) = own.iter().find(|file| others.contains(file)) else { continue };
            if own.len() > 1 || others.len() > 1 {
                let keys = [name, other].map(|name| format!("{key}.{name}"));
                let message = format!("{} is among the files of `{other}` as well", file.display());
                checker.error(&[&keys[0], &keys[1]], message, "a file belongs to one split");
            }
        }
    }
}

fn shares(checker: &mut Checker, key: &str, task: &Task) {
    let Some([dev, test]) = task.shares() else { return };
    if dev + test >= 1.0 {
        let [dev_key, test_key] = ["dev", "test"].map(|name| format!("{key}.{name}"));
        let message = format!("dev and test take {dev} and {test} of the training rows, which leaves none to train on");
        checker.error(&[&test_key, &dev_key], message, "their sum has to be below 1");
    }
}

pub(super) fn distinct_splits(checker: &mut Checker, key: &str, task: &Task) {
    let lists = [("train_splits", &task.train_splits), ("dev_splits", &task.dev_splits), ("test_splits", &task.test_splits)];
    if task.train_splits.is_empty() {
        checker.error(&[&format!("{key}.train_splits")], "is empty, so the task has no training rows", "");
    }
    for (index, (name, values)) in lists.iter().enumerate() {
        for (other, others) in &lists[..index] {
            let Some(value) = values.iter().find(|value| others.contains(value)) else { continue };
            // Blame the list that was written, if only one was.
            let written = |name: &str| !checker.resolved.locate_exactly(&format!("{key}.{name}")).is_default();
            let (blamed, other) = if written(name) { (name, other) } else { (other, name) };
            let keys = [blamed, other].map(|name| format!("{key}.{name}"));
            checker.error(&[&keys[0], &keys[1]], format!("\"{value}\" is in `{other}` as well"), "");
        }
    }
}
