//! One task at a time: its rows, inputs, label, head and metrics.

use super::super::defaults::{ROWS, literal};
use super::super::keys::Default;
use super::super::metrics::fits;
use super::super::schema::{Adaptive, ClassWeights, EncoderKind, HeadKind, MetricKind, TASK, Task};
use super::super::suggest::nearest;
use super::super::synthetic;
use super::super::tree::Node;
use super::rows::{NO_SPLIT, distinct_splits, rows};
use super::{Checker, task_key};
use crate::choices::Choice;

pub fn check(checker: &mut Checker) {
    let config = checker.config;
    if config.tasks_from.is_some() {
        discovered(checker);
    }
    let made = config.synthetic.as_ref().map_or_else(Vec::new, synthetic::names);
    if made.iter().any(|name| !config.tasks.contains_key(name)) {
        head(checker, "task_defaults", &config.task_defaults);
    }
    for (name, task) in &config.tasks {
        let key = task_key(name);
        identity(checker, name, task, &made);
        if task.synthetic.is_none() {
            rows(checker, &key, task);
            inputs(checker, &key, task);
            label(checker, &key, task);
        }
        head(checker, &key, task);
        adaptive(checker, &key, task);
    }
    adaptive(checker, "task_defaults", &config.task_defaults);
}

fn adaptive(checker: &mut Checker, key: &str, task: &Task) {
    let Some(Adaptive { min, max, .. }) = task.adaptive else { return };
    let own = format!("{key}.adaptive");
    if min > max && checker.is_own(&own) {
        let message = format!("asks for micro-batches of at least {min} and at most {max} examples");
        checker.error(&[&own, &format!("{own}.min"), &format!("{own}.max")], message, "");
    }
}

/// The tasks that data will bring are settled by `task_defaults` alone.
fn discovered(checker: &mut Checker) {
    let task = &checker.config.task_defaults;
    for (name, is_set) in task.rows_set() {
        if is_set {
            let message = "does nothing beside [tasks_from], which names the file of all tasks";
            checker.error(&[&format!("task_defaults.{name}"), "tasks_from"], message, "");
        }
    }
    if task.split.is_none() {
        checker.error(&["tasks_from.file", "task_defaults.split"], NO_SPLIT, "");
    }
    distinct_splits(checker, "task_defaults", task);
    inputs(checker, "task_defaults", task);
    label(checker, "task_defaults", task);
    head(checker, "task_defaults", task);
}

/// Whether the entry describes a task of its own, or changes one that exists. `made` are the synthetic ones.
fn identity(checker: &mut Checker, name: &str, task: &Task, made: &[String]) {
    let key = task_key(name);
    if task.synthetic.is_some() {
        return no_rows(checker, &key);
    }
    if synthetic::has_own_rows(&checker.resolved.tree, name) {
        if made.iter().any(|other| other == name) {
            checker.error(&[&key, "synthetic"], "is also the name of a task that [synthetic] makes", "choose another name");
        }
        return;
    }
    match &checker.config.tasks_from {
        Some(from) if !from.include.is_empty() && !from.include.iter().any(|other| other == name) => {
            let message = "is not in `tasks_from.include`, and has no `train` or `file` of its own";
            let help = did_you_mean(name, &from.include);
            checker.error(&[&key, "tasks_from", "tasks_from.include"], message, &help);
        }
        None if task.train.is_none() && task.file.is_none() => {
            let [train, file] = ["train", "file"].map(|name| format!("{key}.{name}"));
            let mut message = "has no rows: set `train`, or `file` and `split`".to_owned();
            if !made.is_empty() {
                message.push_str("; it is no task of [synthetic] either");
            }
            checker.error(&[&key, &train, &file, "synthetic", "tasks_from"], message, &did_you_mean(name, made));
        }
        _ => {}
    }
}

/// A synthetic task has no use for keys about rows. Defaults are how a resolved configuration writes their absence.
fn no_rows(checker: &mut Checker, key: &str) {
    for name in ROWS {
        let row_key = format!("{key}.{name}");
        let default = TASK.find(name).filter(|key| matches!(key.default, Default::Is(_))).map(literal);
        let is_default = |node: &Node| default.as_ref() == Some(&node.value);
        if checker.is_own(&row_key) && !checker.resolved.tree.get(&row_key).is_some_and(is_default) {
            checker.error(&[&row_key], "does nothing: [synthetic] makes the rows of this task", "");
        }
    }
}

fn did_you_mean(name: &str, others: &[String]) -> String {
    nearest(name, others.iter().map(String::as_str)).map_or_else(String::new, |near| format!("did you mean `{near}`?"))
}

fn inputs(checker: &mut Checker, key: &str, task: &Task) {
    let [text, features] = ["text", "features"].map(|name| format!("{key}.{name}"));
    let keys = [text.as_str(), features.as_str(), "encoder.kind"];
    let kind = checker.config.encoder.kind;
    match (task.text.is_empty(), task.features.is_empty()) {
        (false, false) => {
            checker.error(&[&features, &text], "`text` is set as well: a task has one kind of input", "remove one of the two");
        }
        (false, true) if !kind.reads_text() => {
            checker.error(&keys, format!("the {} encoder reads `features`, not text", kind.name()), "set encoder.kind = \"bag\"");
        }
        (true, false) if kind.reads_text() => {
            let keys = [features.as_str(), text.as_str(), "encoder.kind"];
            checker.error(
                &keys,
                format!("the {} encoder reads `text`, not features", kind.name()),
                "set encoder.kind = \"linear\"",
            );
        }
        (true, true) => missing(checker, key, &keys, if kind.reads_text() { "text" } else { "features" }),
        _ => {}
    }
    if task.text.len() > 2 {
        checker.error(&[&text], format!("a task reads one column, or two as a pair; these are {}", task.text.len()), "");
    }
}

fn missing(checker: &mut Checker, key: &str, looked_at: &[&str], name: &str) {
    let keys: Vec<_> = [key].iter().chain(looked_at).copied().collect();
    checker.error(&keys, format!("needs `{name}`, the column or columns the encoder reads"), "");
}

fn label(checker: &mut Checker, key: &str, task: &Task) {
    let [label, head, text, features] = ["label", "head", "text", "features"].map(|name| format!("{key}.{name}"));
    if task.head == HeadKind::Mlm {
        if !task.label.is_empty() {
            checker.error(&[&label, &head], "does nothing for head = \"mlm\": the text itself is predicted", "remove it");
        }
        if checker.config.encoder.kind != EncoderKind::Transformer {
            let help = "set encoder.kind = \"transformer\"";
            checker.error(&[&head, "encoder.kind"], "\"mlm\" predicts the words of a transformer", help);
        }
        return;
    }
    if task.head == HeadKind::Similarity {
        return pair(checker, key, task);
    }
    if task.label.is_empty() {
        checker.error(&[key, &label], "needs `label`, the column to predict", "");
    }
    if task.head == HeadKind::Classification && task.label.len() > 1 {
        let message = format!("classification predicts one column; these are {}", task.label.len());
        checker.error(&[&label, &head], message, "several columns are for head = \"multilabel\" or \"regression\"");
    }
    if let Some(column) = task.label.iter().find(|column| task.text.contains(column) || task.features.contains(column)) {
        checker.error(&[&label, &text, &features], format!("\"{column}\" is an input of the task as well"), "");
    }
}

/// A task that compares the two texts of its rows.
fn pair(checker: &mut Checker, key: &str, task: &Task) {
    let [label, head, text] = ["label", "head", "text"].map(|name| format!("{key}.{name}"));
    let encoder = &checker.config.encoder;
    let (kind, starts_at_zero) = (encoder.kind, encoder.kind == EncoderKind::Bag && encoder.embedding_init == 0.0);
    if !task.label.is_empty() {
        let message = "does nothing for head = \"similarity\": that two texts belong together is all that is learned";
        checker.error(&[&label, &head], message, "remove it");
    }
    if !kind.reads_text() && task.text.is_empty() {
        let message = format!("\"similarity\" compares two texts, which the {} encoder does not read", kind.name());
        checker.error(&[&head, "encoder.kind"], message, "set encoder.kind = \"transformer\" or \"bag\"");
    }
    if task.text.len() == 1 {
        checker.error(&[&text, &head], "\"similarity\" compares two texts; this is one column", "name two columns");
    }
    if starts_at_zero {
        let message = "is 0, so that every text begins as the zero vector, whose cosine with any other says nothing";
        checker.error(&["encoder.embedding_init", &head, "encoder.kind"], message, "set encoder.embedding_init, e.g. to 0.1");
    }
    let (own, size) = match task.adaptive {
        Some(adaptive) => (format!("{key}.adaptive.max"), adaptive.max),
        None => ("train.micro_batch".to_owned(), checker.config.train.micro_batch),
    };
    if size == 1 {
        checker.error(
            &[&own, &head],
            "is 1: \"similarity\" tells a pair from the others of its micro-batch",
            "raise it, e.g. to 32",
        );
    }
}

fn head(checker: &mut Checker, key: &str, task: &Task) {
    let [metrics, head, classes] = ["metrics", "head", "classes"].map(|name| format!("{key}.{name}"));
    let head_name = task.head.name();
    for metric in task.metrics.iter().filter(|metric| !fits(**metric, task.head)) {
        let fitting = MetricKind::ALL.iter().filter(|other| fits(**other, task.head));
        let fitting: Vec<_> = fitting.map(|other| other.name()).collect();
        let message = format!("\"{}\" does not measure a {head_name} head", metric.name());
        checker.error(&[&metrics, &head], message, &format!("{head_name} has {}", fitting.join(", ")));
    }
    if task.head == HeadKind::Classification && task.classes.len() == 1 {
        checker.error(&[&classes, &head], "names one class; there must be two at least", "");
    }
    if let Some(ClassWeights::List(weights)) = &task.class_weights {
        let own = format!("{key}.class_weights");
        if !weights.iter().any(|&weight| weight as f32 > 0.0) {
            checker.error(&[&own, &head], "leaves no class any weight", "");
        } else if !task.classes.is_empty() && weights.len() != task.classes.len() {
            let message = format!("has {} numbers, `classes` names {} classes", weights.len(), task.classes.len());
            checker.error(&[&own, &classes], message, "");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{Folder, locations};
    use super::super::super::{Errors, Resolved};

    const LINEAR: &str = "[encoder]\nkind = \"linear\"\n[train]\nrounds = 1\n";
    const BAG: &str = "[encoder]\nkind = \"bag\"\ntokenizer = \"words\"\n[train]\nrounds = 1\n";

    fn load(head: &str, rest: &str) -> Result<Resolved, Errors> {
        Folder::new(&[("main.toml", &format!("{head}{rest}")), ("a.csv", "")]).load(&[])
    }

    /// The only error, as `key: message`.
    fn error(head: &str, rest: &str) -> String {
        let errors = load(head, rest).unwrap_err();
        assert_eq!(errors.diagnostics().len(), 1, "{errors}");
        format!("{}: {}", errors.diagnostics()[0].key, errors.diagnostics()[0].message)
    }

    /// The only error of a sound task with one more line.
    fn error_with(line: &str) -> String {
        error(LINEAR, &format!("[tasks.a]\ntrain = \"a.csv\"\nfeatures = \"x\"\nlabel = \"y\"\n{line}\n"))
    }

    #[test]
    fn a_pattern_takes_no_file_of_another_split() {
        let task = "[tasks.a]\ntrain = \"*.csv\"\ndev = \"b.csv\"\nfeatures = \"x\"\nlabel = \"y\"\n";
        let folder = Folder::new(&[("main.toml", &format!("{LINEAR}{task}")), ("a.csv", ""), ("b.csv", "")]);
        let errors = folder.load(&[]).unwrap_err();
        let expected = format!("{} is among the files of `train` as well", folder.path("b.csv").display());
        assert_eq!((errors.diagnostics()[0].key.as_str(), &errors.diagnostics()[0].message), ("tasks.a.dev", &expected));
        assert!(load(LINEAR, &task.replace("*.csv", "a.csv").replace("b.csv", "a.csv")).is_ok());
    }

    #[test]
    fn something_is_left_to_train_on() {
        assert!(error_with("dev = 0.5\ntest = 0.5").starts_with("tasks.a.test: dev and test take 0.5 and 0.5"));
        assert!(error_with("dev = 1").starts_with("tasks.a.dev: expected a number above 0 and below 1, found 1"));
        assert!(error_with("dev = true").starts_with("tasks.a.dev: expected a number above 0 and below 1, or a path, or a list"));
        let task = "[tasks.a]\nfile = \"a.csv\"\ndev = 0.1\nsplit = \"s\"\nfeatures = \"x\"\nlabel = \"y\"\n";
        assert!(error(LINEAR, task).starts_with("tasks.a.file: `dev` is set as well"));
    }

    #[test]
    fn only_numbers_are_scaled() {
        let bag = "[tasks.a]\ntrain = \"a.csv\"\ntext = \"x\"\nlabel = \"y\"\n";
        let error_beside = |line: &str| error(BAG, &format!("{bag}{line}\n"));
        assert!(
            error_beside("feature_scale = \"none\"")
                .starts_with("tasks.a.feature_scale: does nothing while `encoder.kind` is \"bag\"")
        );
        assert!(
            error_beside("label_scale = \"standard\"")
                .starts_with("tasks.a.label_scale: does nothing while `head` is \"classification\"")
        );
        assert!(error_with("feature_scale = \"standart\"").ends_with("\"standart\" is not one of \"standard\", \"none\""));
        let made = "[synthetic]\n[tasks.alone_1]\nfeature_scale = \"none\"\n";
        assert!(error(LINEAR, made).starts_with("tasks.alone_1.feature_scale: does nothing: [synthetic] makes the rows"));
    }

    #[test]
    fn a_task_has_rows() {
        let message = error(LINEAR, "[tasks.a]\nfeatures = \"x\"\nlabel = \"y\"\n");
        assert_eq!(message, "tasks.a: has no rows: set `train`, or `file` and `split`");
    }

    #[test]
    fn a_task_has_one_file_a_split_or_one_for_all() {
        assert!(error_with("file = \"a.csv\"\nsplit = \"s\"").starts_with("tasks.a.file: `train` is set as well"));
        let task = "[tasks.a]\nfile = \"a.csv\"\ndev = \"a.csv\"\nsplit = \"s\"\nfeatures = \"x\"\nlabel = \"y\"\n";
        assert!(error(LINEAR, task).starts_with("tasks.a.file: `dev` is set as well"));
    }

    #[test]
    fn a_file_and_its_split_column_need_each_other() {
        assert_eq!(error_with("split = \"s\""), "tasks.a.split: does nothing without `file`");
        let task = "[tasks.a]\nfile = \"a.csv\"\nfeatures = \"x\"\nlabel = \"y\"\n";
        assert!(error(LINEAR, task).starts_with("tasks.a.file: needs `split`"));
    }

    #[test]
    fn a_shared_split_column_is_not_for_tasks_with_their_own_files() {
        let task = "[task_defaults]\nsplit = \"s\"\nfeatures = \"x\"\nlabel = \"y\"\n[tasks.a]\ntrain = \"a.csv\"\n";
        assert_eq!(load(LINEAR, task).unwrap().config.tasks["a"].split, None);
    }

    #[test]
    fn splits_do_not_overlap() {
        let task =
            "[tasks.a]\nfile = \"a.csv\"\nsplit = \"s\"\nfeatures = \"x\"\nlabel = \"y\"\ntrain_splits = [\"train\", \"dev\"]\n";
        assert_eq!(error(LINEAR, task), "tasks.a.train_splits: \"dev\" is in `dev_splits` as well");
    }

    #[test]
    fn inputs_are_those_of_the_encoder() {
        let task = |input: &str| format!("[tasks.a]\ntrain = \"a.csv\"\nlabel = \"y\"\n{input}\n");
        assert!(error(LINEAR, &task("")).starts_with("tasks.a: needs `features`"));
        assert!(error(BAG, &task("")).starts_with("tasks.a: needs `text`"));
        assert!(error(LINEAR, &task("text = \"t\"")).starts_with("tasks.a.text: the linear encoder"));
        assert!(error(BAG, &task("features = \"x\"")).starts_with("tasks.a.features: the bag encoder"));
        assert!(error(BAG, &task("text = \"t\"\nfeatures = \"x\"")).starts_with("tasks.a.features: `text` is set as well"));
    }

    #[test]
    fn text_is_one_column_or_a_pair() {
        let task = "[tasks.a]\ntrain = \"a.csv\"\nlabel = \"y\"\ntext = [\"a\", \"b\", \"c\"]\n";
        assert!(error(BAG, task).starts_with("tasks.a.text: a task reads one column, or two"));
        assert!(load(BAG, &task.replace(", \"c\"", "")).is_ok());
    }

    #[test]
    fn a_task_has_a_label_of_its_own() {
        let task = "[tasks.a]\ntrain = \"a.csv\"\nfeatures = \"x\"\n";
        assert_eq!(error(LINEAR, task), "tasks.a: needs `label`, the column to predict");
        assert_eq!(error(LINEAR, &format!("{task}label = \"x\"\n")), "tasks.a.label: \"x\" is an input of the task as well");
    }

    #[test]
    fn classification_has_one_label_column_and_other_heads_may_have_more() {
        let task = "[tasks.a]\ntrain = \"a.csv\"\nfeatures = \"x\"\nlabel = [\"y\", \"z\"]\n";
        assert!(error(LINEAR, task).starts_with("tasks.a.label: classification predicts one column"));
        assert!(load(LINEAR, &format!("{task}head = \"regression\"\n")).is_ok());
        assert!(load(LINEAR, &format!("{task}head = \"multilabel\"\n")).is_ok());
    }

    #[test]
    fn metrics_fit_the_head() {
        assert_eq!(error_with("metrics = \"mse\""), "tasks.a.metrics: \"mse\" does not measure a classification head");
        assert!(error_with("head = \"regression\"\nmetrics = [\"pearson\", \"f1\"]").contains("\"f1\" does not"));
        assert!(error_with("head = \"multilabel\"\nmetrics = \"matthews\"").contains("multilabel head"));
    }

    #[test]
    fn the_defaults_are_those_of_synthetic_tasks_without_an_entry() {
        let message = error(LINEAR, "[synthetic]\n[task_defaults]\nmetrics = \"mse\"\n");
        assert_eq!(message, "task_defaults.metrics: \"mse\" does not measure a classification head");
    }

    #[test]
    fn one_class_is_no_choice() {
        assert!(error_with("classes = \"a\"").starts_with("tasks.a.classes: names one class"));
    }

    #[test]
    fn an_inherited_error_is_said_once_where_it_was_written() {
        let tasks = "[task_defaults]\nlabel = \"y\"\nfeatures = \"x\"\nmetrics = \"mse\"\n\
                     [tasks.a]\ntrain = \"a.csv\"\n[tasks.b]\ntrain = \"a.csv\"\n";
        let errors = load(LINEAR, tasks).unwrap_err();
        assert_eq!(locations(&errors), [(8, 11, "task_defaults.metrics")]);
    }

    const FROM: &str = "[task_defaults]\nfeatures = \"x\"\nlabel = \"y\"\n[tasks_from]\nfile = \"a.csv\"\nsplit = \"s\"\n";

    #[test]
    fn an_entry_beside_tasks_from_changes_a_discovered_task() {
        let resolved = load(LINEAR, &format!("{FROM}[tasks.books]\nweight = 2\n")).unwrap();
        let task = &resolved.config.tasks["books"];
        assert_eq!(task.file, resolved.config.tasks_from.as_ref().map(|from| from.file.clone()));
        assert_eq!((task.split.as_deref(), resolved.config.task_defaults.split.as_deref()), (Some("s"), Some("s")));
        assert_eq!(resolved.locate("tasks.books.file"), resolved.locate("tasks_from.file"));
    }

    #[test]
    fn discovered_tasks_need_what_every_task_needs() {
        let errors = load(LINEAR, "[tasks_from]\nfile = \"a.csv\"\n").unwrap_err();
        let keys: Vec<_> = locations(&errors).into_iter().map(|(_, _, key)| key).collect();
        assert_eq!(keys, ["task_defaults", "task_defaults", "tasks_from.file"]);
    }

    #[test]
    fn shared_files_are_not_for_discovered_tasks() {
        assert!(
            error(LINEAR, &FROM.replace("label", "train = \"a.csv\"\nlabel")).starts_with("task_defaults.train: does nothing")
        );
    }

    #[test]
    fn an_entry_must_be_among_the_included_tasks() {
        let rest = format!("{FROM}include = [\"books\"]\n[tasks.boks]\nweight = 2\n");
        assert!(error(LINEAR, &rest).starts_with("tasks.boks: is not in `tasks_from.include`"));
    }

    #[test]
    fn an_entry_must_be_among_the_synthetic_tasks() {
        let errors = load(LINEAR, "[synthetic]\n[tasks.agree_1]\nweight = 2\nlabel = \"y\"\nfeatures = \"x\"\n").unwrap_err();
        assert!(errors.to_string().contains("it is no task of [synthetic] either\n  help: did you mean `agree_1a`?"), "{errors}");
    }

    #[test]
    fn a_synthetic_task_has_no_other_rows() {
        let own = "[synthetic]\n[tasks.alone_1]\ntrain = \"a.csv\"\nlabel = \"y\"\nfeatures = \"x\"\n";
        assert_eq!(error(LINEAR, own), "tasks.alone_1: is also the name of a task that [synthetic] makes");
        let label = "[synthetic]\n[tasks.alone_1]\nlabel = \"y\"\n";
        assert!(error(LINEAR, label).starts_with("tasks.alone_1.label: does nothing"));
    }
}
