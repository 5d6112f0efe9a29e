//! The names of the tasks that `[synthetic]` makes.

use std::collections::BTreeSet;

use super::schema::{Config, Synthetic};
use super::tree::{Node, Value};

/// `agree_1a`, `agree_1b`, ..., `oppose_1a`, `oppose_1b`, ..., `alone_1`, ...
pub fn names(synthetic: &Synthetic) -> Vec<String> {
    list(synthetic.agree, synthetic.oppose, synthetic.alone)
}

/// The same from a table to which defaults have not been added yet.
pub fn written_names(node: &Node) -> BTreeSet<String> {
    let count = |key| match node.get(key).map(|node| &node.value) {
        Some(Value::Int(count)) => usize::try_from(*count).unwrap_or(0),
        _ => 1,
    };
    list(count("agree"), count("oppose"), count("alone")).into_iter().collect()
}

fn list(agree: usize, oppose: usize, alone: usize) -> Vec<String> {
    let pairs = |kind: &'static str, count| (1..=count).flat_map(move |n| ["a", "b"].map(|half| format!("{kind}_{n}{half}")));
    pairs("agree", agree).chain(pairs("oppose", oppose)).chain((1..=alone).map(|n| format!("alone_{n}"))).collect()
}

/// Marks the entries of `tasks` that only change settings of a synthetic task.
pub fn mark(config: &mut Config, tree: &Node) {
    let Some(synthetic) = &config.synthetic else { return };
    for name in names(synthetic) {
        if let Some(task) = config.tasks.get_mut(&name)
            && !has_own_rows(tree, &name)
        {
            task.synthetic = Some(name);
        }
    }
}

/// Whether `tasks.NAME` itself, not `task_defaults` or `tasks_from`, says where its rows are.
pub fn has_own_rows(tree: &Node, task: &str) -> bool {
    let own = |key| tree.get(&format!("tasks.\"{task}\".{key}")).is_some_and(|node| node.inherited.is_none());
    own("train") || own("file")
}

#[cfg(test)]
mod tests {
    use super::super::testing::load_text;
    use super::*;

    #[test]
    fn names_count_pairs_and_loners() {
        let expected = ["agree_1a", "agree_1b", "agree_2a", "agree_2b", "oppose_1a", "oppose_1b", "alone_1", "alone_2"];
        assert_eq!(list(2, 1, 2), expected);
    }

    #[test]
    fn an_entry_of_a_synthetic_task_is_marked() {
        let text = "[encoder]\nkind = \"linear\"\n[train]\nrounds = 1\n[synthetic]\n[tasks.alone_1]\nweight = 2\n";
        let config = load_text(text, &[]).unwrap().config;
        assert_eq!(config.tasks["alone_1"].synthetic.as_deref(), Some("alone_1"));
        assert_eq!(config.tasks.len(), 1);
        assert_eq!(names(&config.synthetic.unwrap()).len(), 5);
    }
}
