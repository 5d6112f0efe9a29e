//! `depends_on` and `target`: parents exist, can be done before the end of the run, and do not wait for each other.

use std::collections::BTreeMap;

use super::super::schema::{Every, EveryNamed, Task};
use super::super::suggest::nearest;
use super::{Checker, task_key};
use crate::schedule::graph::cycles as cycles_of;

type Tasks<'a> = BTreeMap<String, &'a Task>;

pub fn check(checker: &mut Checker) {
    let tasks = checker.known_tasks();
    let cycles = cycles(&tasks);
    for (name, task) in &tasks {
        target(checker, name, task);
        for parent in &task.depends_on {
            // Within a cycle nobody ever starts, whatever else is missing.
            if !cycles.iter().any(|cycle| cycle.windows(2).any(|pair| pair[0] == *name && pair[1] == *parent)) {
                edge(checker, &tasks, name, parent);
            }
        }
    }
    for cycle in cycles {
        let key = depends_key(checker, &cycle[0]);
        checker.error(&[&key], format!("tasks wait for each other: {}", cycle.join(" -> ")), "");
    }
}

fn edge(checker: &mut Checker, tasks: &Tasks, name: &str, parent: &str) {
    let key = depends_key(checker, name);
    if parent == name {
        checker.error(&[&key], format!("`{name}` waits for itself"), "");
        return;
    }
    let Some(task) = tasks.get(parent) else {
        if !checker.is_open() {
            let help = nearest(parent, tasks.keys().map(String::as_str)).map(|near| format!("did you mean `{near}`?"));
            checker.error(&[&key, "tasks"], format!("there is no task `{parent}`"), &help.unwrap_or_default());
        }
        return;
    };
    if task.rounds.is_none() && task.target.is_none() {
        let [rounds, target] = ["rounds", "target"].map(|name| format!("{}.{name}", task_key(parent)));
        let message = format!(
            "`{parent}` has no `rounds` and no `target`, so it is done only when the run is, and `{name}` would never start"
        );
        checker.error(&[&key, &rounds, &target], message, &format!("set `{rounds}` or `{target}`"));
    }
}

/// A target is looked at when the dev split is evaluated.
fn target(checker: &mut Checker, name: &str, task: &Task) {
    if task.target.is_some() && checker.config.eval.every == Every::Named(EveryNamed::End) {
        let key = key_of(checker, name, "target");
        let message = "does nothing: with eval.every = \"end\" the run is over when the metric is known";
        checker.error(&[&key, "eval.every"], message, "evaluate every so many rounds, or every epoch");
    }
}

/// A synthetic or included task without an entry has what `task_defaults` says.
fn depends_key(checker: &Checker, name: &str) -> String {
    key_of(checker, name, "depends_on")
}

fn key_of(checker: &Checker, task: &str, key: &str) -> String {
    let table = if checker.config.tasks.contains_key(task) { task_key(task) } else { "task_defaults".to_owned() };
    format!("{table}.{key}")
}

/// By their names. Waiting for oneself, or for a task that is not there, is reported apart.
fn cycles(tasks: &Tasks) -> Vec<Vec<String>> {
    let names: Vec<&String> = tasks.keys().collect();
    let parents = |(name, task): (&String, &&Task)| {
        task.depends_on.iter().filter(|parent| *parent != name).filter_map(|parent| names.binary_search(&parent).ok()).collect()
    };
    let cycles = cycles_of(&tasks.iter().map(parents).collect::<Vec<_>>());
    cycles.into_iter().map(|cycle| cycle.into_iter().map(|task| names[task].clone()).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{errors, load_text, locations};

    fn run(tasks: &[(&str, &str)]) -> String {
        let mut text = "[encoder]\nkind = \"linear\"\n[train]\nrounds = 9\n[task_defaults]\ntrain = \"main.toml\"\n\
                        features = \"x\"\nlabel = \"y\"\n"
            .to_owned();
        for (name, rest) in tasks {
            text += &format!("[tasks.{name}]\n{rest}\n");
        }
        text
    }

    fn messages(tasks: &[(&str, &str)]) -> Vec<String> {
        errors(&run(tasks)).diagnostics().iter().map(|error| format!("{}: {}", error.key, error.message)).collect()
    }

    #[test]
    fn a_parent_with_rounds_is_fine() {
        assert!(load_text(&run(&[("a", "rounds = 3"), ("b", "depends_on = \"a\"")]), &[]).is_ok());
    }

    #[test]
    fn a_parent_must_exist() {
        let errors = errors(&run(&[("books", "rounds = 3"), ("b", "depends_on = [\"boks\"]")]));
        assert_eq!(locations(&errors), [(12, 14, "tasks.b.depends_on")]);
        assert_eq!(errors.diagnostics()[0].help, ["did you mean `books`?"]);
    }

    #[test]
    fn a_parent_must_be_done_before_the_end() {
        let messages = messages(&[("a", ""), ("b", "depends_on = \"a\"")]);
        assert_eq!(messages.len(), 1);
        assert!(messages[0].starts_with("tasks.b.depends_on: `a` has no `rounds` and no `target`"));
        assert!(load_text(&run(&[("a", "target = 0.5"), ("b", "depends_on = \"a\"")]), &[]).is_ok());
    }

    #[test]
    fn a_target_needs_evaluations() {
        let errors = errors(&format!("{}[eval]\nevery = \"end\"\n", run(&[("a", "target = 0.5")])));
        assert!(errors.diagnostics()[0].message.starts_with("does nothing: with eval.every"));
    }

    #[test]
    fn a_task_does_not_wait_for_itself() {
        assert_eq!(messages(&[("a", "rounds = 1\ndepends_on = \"a\"")]), ["tasks.a.depends_on: `a` waits for itself"]);
    }

    #[test]
    fn a_cycle_is_named_in_full() {
        let on = |parent: &str| format!("rounds = 1\ndepends_on = \"{parent}\"");
        let found = messages(&[("a", &on("b")), ("b", &on("c")), ("c", &on("b"))]);
        assert_eq!(found, ["tasks.b.depends_on: tasks wait for each other: b -> c -> b"]);
    }

    #[test]
    fn a_cycle_hides_what_follows_from_it() {
        let found = messages(&[("a", "depends_on = \"b\""), ("b", "depends_on = \"a\""), ("c", "depends_on = \"a\"")]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[1].starts_with("tasks.c.depends_on: `a` has no `rounds`"));
        assert_eq!(found[0], "tasks.a.depends_on: tasks wait for each other: a -> b -> a");
        assert_eq!(messages(&[("a", "depends_on = \"b\""), ("b", "depends_on = \"a\"")]).len(), 1);
    }

    #[test]
    fn two_cycles_are_two_errors() {
        let on = |parent: &str| format!("rounds = 1\ndepends_on = \"{parent}\"");
        let found = messages(&[("a", &on("b")), ("b", &on("a")), ("c", &on("d")), ("d", &on("c"))]);
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn synthetic_tasks_are_parents_too() {
        let text = "[encoder]\nkind = \"linear\"\n[train]\nrounds = 9\n[synthetic]\n[tasks.agree_1a]\nrounds = 2\n\
                    [tasks.alone_1]\ndepends_on = [\"agree_1a\"]\n";
        assert!(load_text(text, &[]).is_ok());
    }
}
