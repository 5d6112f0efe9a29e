//! `faults`: each names a task that exists.

use super::super::suggest::nearest;
use super::super::tree::quote_key;
use super::Checker;

pub fn check(checker: &mut Checker) {
    let tasks = checker.known_tasks();
    for (name, fault) in &checker.config.faults {
        if tasks.contains_key(&fault.task) || checker.is_open() {
            continue;
        }
        let key = format!("faults.{}.task", quote_key(name));
        let near = nearest(&fault.task, tasks.keys().map(String::as_str));
        let help = near.map_or_else(String::new, |near| format!("did you mean `{near}`?"));
        checker.error(&[&key, "tasks"], format!("there is no task `{}`", fault.task), &help);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{errors, locations};

    #[test]
    fn a_fault_hits_a_task_that_exists() {
        let text =
            "[encoder]\nkind = \"linear\"\n[train]\nrounds = 1\n[synthetic]\n[faults.x]\ntask = \"alone_2\"\nkind = \"crash\"\n";
        let errors = errors(text);
        assert_eq!(locations(&errors), [(7, 8, "faults.x.task")]);
        assert_eq!(errors.diagnostics()[0].help, ["did you mean `alone_1`?"]);
    }
}
