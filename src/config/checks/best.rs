//! What is measured must be there: the metric of `best`, and the splits that evaluations read.

use super::super::metrics::metrics_of;
use super::super::objective::{FORMS, Objective, Quantity, meant};
use super::super::schema::{Every, EveryNamed, Task};
use super::super::suggest::nearest;
use super::Checker;

const KEY: &str = "best.metric";

pub fn check(checker: &mut Checker) {
    let config = checker.config;
    match Objective::parse(&config.best.metric) {
        None => {
            let help = meant(&config.best.metric).map(|form| format!("the worst task's value is `{form}`"));
            checker.error(&[KEY], format!("\"{}\" is not {FORMS}", config.best.metric), &help.unwrap_or_default());
        }
        Some(Objective::Over(_, quantity)) => over(checker, quantity),
        Some(Objective::One { task, quantity }) => one(checker, &task, quantity),
    }
    splits(checker);
}

fn over(checker: &mut Checker, quantity: Quantity) {
    let Quantity::Metric(metric) = quantity else { return };
    let reported = checker.known_tasks().values().any(|task| metrics_of(task).contains(&metric));
    let reported_later = checker.is_open() && metrics_of(&checker.config.task_defaults).contains(&metric);
    if !reported && !reported_later {
        checker.error(&[KEY, "tasks", "task_defaults"], format!("no task reports {}", metric.name()), "");
    }
}

fn one(checker: &mut Checker, name: &str, quantity: Quantity) {
    let tasks = checker.known_tasks();
    let Some(task) = tasks.get(name) else {
        if !checker.is_open() {
            let help = nearest(name, tasks.keys().map(String::as_str)).map(|near| format!("did you mean `{near}`?"));
            checker.error(&[KEY, "tasks"], format!("there is no task `{name}`"), &help.unwrap_or_default());
        }
        return;
    };
    let metrics = metrics_of(task);
    if let Quantity::Metric(metric) = quantity
        && !metrics.contains(&metric)
    {
        let reported: Vec<_> = metrics.iter().map(|metric| metric.name()).collect();
        let message = format!("`{name}` does not report {}", metric.name());
        let help = format!("it reports {}", reported.join(", "));
        let task_metrics = format!("{}.metrics", super::task_key(name));
        checker.error(&[KEY, &task_metrics], message, &help);
    }
    if !may_have(checker, name, task, Split::Dev) {
        let dev = format!("{}.dev", super::task_key(name));
        checker.error(&[KEY, &dev], format!("`{name}` has no dev split to be measured on"), "");
    }
}

#[derive(Clone, Copy)]
enum Split {
    Dev,
    Test,
}

fn splits(checker: &mut Checker) {
    let config = checker.config;
    let somewhere = |checker: &Checker, split| {
        let found = |(name, task): (&String, &&Task)| may_have(checker, name, task, split);
        config.tasks_from.is_some() || checker.known_tasks().iter().any(found)
    };
    if config.best.patience > 0 && !somewhere(checker, Split::Dev) {
        checker.error(&["best.patience", "tasks", "task_defaults"], "needs a dev split, and no task has one", "");
    }
    if config.eval.test && !somewhere(checker, Split::Test) {
        checker.error(&["eval.test", "tasks", "task_defaults"], "needs a test split, and no task has one", "");
    }
    if config.eval.batches_per_round > 0 && config.eval.every == Every::Named(EveryNamed::End) {
        let message = "does nothing: with eval.every = \"end\" no round follows an evaluation";
        checker.error(&["eval.batches_per_round", "eval.every"], message, "evaluate every so many rounds, or every epoch");
    }
}

/// What a file with a split column holds is known when it is read.
fn may_have(checker: &Checker, name: &str, task: &Task, split: Split) -> bool {
    let config = checker.config;
    let without_entry = !config.tasks.contains_key(name);
    let made = config.synthetic.as_ref().filter(|_| task.synthetic.is_some() || without_entry);
    let (held, made) = match split {
        Split::Dev => (&task.dev, made.is_some_and(|made| made.dev > 0)),
        Split::Test => (&task.test, made.is_some_and(|made| made.test > 0)),
    };
    let discovered = config.tasks_from.is_some() && without_entry;
    held.is_some() || task.file.is_some() || made || discovered
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{errors, load_text, locations};

    const RUN: &str = "[encoder]\nkind = \"linear\"\n[train]\nrounds = 1\n[synthetic]\n";

    fn message(rest: &str) -> String {
        let errors = errors(&format!("{RUN}{rest}"));
        assert_eq!(errors.diagnostics().len(), 1, "{errors}");
        errors.diagnostics()[0].message.clone()
    }

    #[test]
    fn every_form_is_accepted() {
        for metric in ["min(primary)", "max(loss)", "mean(accuracy)", "alone_1.accuracy", "agree_1a.loss"] {
            assert!(load_text(RUN, &[&format!("best.metric={metric}")]).is_ok(), "{metric}");
        }
    }

    #[test]
    fn other_forms_are_answered_with_the_known_ones() {
        assert!(message("[best]\nmetric = \"median(loss)\"\n").starts_with("\"median(loss)\" is not `mean(primary)`, "));
    }

    #[test]
    fn the_best_task_is_answered_with_the_worst() {
        let errors =
            errors(&format!("{RUN}[task_defaults]\nhead = \"regression\"\nmetrics = \"mse\"\n[best]\nmetric = \"min(mse)\"\n"));
        assert_eq!(errors.diagnostics()[0].help, ["the worst task's value is `max(mse)`"]);
    }

    #[test]
    fn the_task_must_exist() {
        assert_eq!(message("[best]\nmetric = \"alone_2.loss\"\n"), "there is no task `alone_2`");
    }

    #[test]
    fn the_metric_must_be_reported() {
        assert_eq!(message("[best]\nmetric = \"alone_1.f1\"\n"), "`alone_1` does not report f1");
        assert_eq!(message("[best]\nmetric = \"mean(mse)\"\n"), "no task reports mse");
    }

    #[test]
    fn the_task_must_have_a_dev_split() {
        let text = "[encoder]\nkind = \"linear\"\n[train]\nrounds = 1\n[best]\nmetric = \"a.loss\"\npatience = 2\n\
                    [eval]\ntest = true\n[tasks.a]\ntrain = \"main.toml\"\nfeatures = \"x\"\nlabel = \"y\"\n";
        assert_eq!(locations(&errors(text)), [(6, 10, "best.metric"), (7, 12, "best.patience"), (9, 8, "eval.test")]);
    }
}
