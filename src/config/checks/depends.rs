//! `depends_on`: parents exist, can be done before the end of the run, and do not wait for each other.

use std::collections::{BTreeMap, BTreeSet};

use super::super::schema::Task;
use super::super::suggest::nearest;
use super::{Checker, task_key};

type Tasks<'a> = BTreeMap<String, &'a Task>;

pub fn check(checker: &mut Checker) {
    let tasks = checker.known_tasks();
    for (name, task) in &tasks {
        for parent in &task.depends_on {
            edge(checker, &tasks, name, parent);
        }
    }
    for cycle in cycles(&tasks) {
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
    if task.rounds.is_none() {
        let rounds = format!("{}.rounds", task_key(parent));
        let message = format!("`{parent}` has no `rounds`, so it is done only when the run is, and `{name}` would never start");
        checker.error(&[&key, &rounds], message, &format!("set `{rounds}`"));
    }
}

/// A synthetic or included task without an entry has what `task_defaults` says.
fn depends_key(checker: &Checker, name: &str) -> String {
    let table = if checker.config.tasks.contains_key(name) { task_key(name) } else { "task_defaults".to_owned() };
    format!("{table}.depends_on")
}

/// Each cycle once, its first task repeated at the end. Waiting for oneself is reported apart.
fn cycles(tasks: &Tasks) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut finished = BTreeSet::new();
    for start in tasks.keys() {
        // Depth first without recursion: a chain of tasks may be long. Each step is a task and its next parent.
        let mut path: Vec<(&str, usize)> = vec![(start, 0)];
        let mut on_path = BTreeSet::from([start.as_str()]);
        while let Some((name, next)) = path.last_mut() {
            let parent = tasks.get(*name).and_then(|task| task.depends_on.get(*next));
            *next += 1;
            match parent.map(String::as_str) {
                None => {
                    on_path.remove(*name);
                    finished.insert((*name).to_owned());
                    path.pop();
                }
                Some(parent) if parent == *name || finished.contains(parent) => {}
                Some(parent) if on_path.contains(parent) => {
                    let names = path.iter().map(|(name, _)| (*name).to_owned()).skip_while(|name| name != parent);
                    found.push(names.chain([parent.to_owned()]).collect());
                }
                Some(parent) => {
                    on_path.insert(parent);
                    path.push((parent, 0));
                }
            }
        }
    }
    found
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
        assert!(messages[0].starts_with("tasks.b.depends_on: `a` has no `rounds`"));
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
