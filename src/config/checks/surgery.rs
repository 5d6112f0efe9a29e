//! What a surgery method asks of the rest of the run.

use super::super::schema::HeadGradients;
use super::Checker;
use crate::ops::storage::Storage;
use crate::surgery::methods::Granularity;
use crate::surgery::methods::registry;

pub fn check(checker: &mut Checker) {
    let config = checker.config;
    let surgery = &config.surgery;
    let Ok(method) = registry::find(&surgery.method) else { return };
    let fewest = checker.known_tasks().values().filter_map(|task| Some(task.adaptive?.min)).min();
    let examples = fewest.map_or(config.train.micro_batch, |min| min.min(config.train.micro_batch)) * config.train.accumulate;
    if method.needs.second_batch && examples < 2 {
        let message = format!("\"{}\" divides a task's examples of a round into two batches, but there is only 1", method.name);
        let keys = ["surgery.method", "train.micro_batch", "train.accumulate"];
        checker.error(&keys, message, "raise train.micro_batch, train.accumulate or adaptive.min");
    }
    if method.needs.row_state && surgery.storage == Storage::Bf16 {
        let message = format!("\"{}\" works on J and buffers of its own together, in f32", method.name);
        checker.error(&["surgery.storage", "surgery.method"], message, "set surgery.storage = \"f32\"");
    }
    if surgery.heads == HeadGradients::Weighted {
        let keys = ["surgery.heads", "surgery.method", "surgery.granularity"];
        if method.needs.elementwise {
            let message = format!("\"weighted\" has no weights to take: \"{}\" makes none", method.name);
            checker.error(&keys, message, "set surgery.heads = \"own\"");
        } else if method.needs.differ_by_block() && surgery.granularity != Granularity::Model {
            let message = "\"weighted\" needs one weight per task, but surgery.granularity gives each block its own";
            checker.error(&keys, message, "set surgery.granularity = \"model\" or surgery.heads = \"own\"");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{errors, load_text, locations};

    const RUN: &str = "[encoder]\nkind = \"linear\"\n[synthetic]\n[train]\nrounds = 1\n";

    #[test]
    fn two_batches_need_two_examples() {
        let found = errors(&format!("{RUN}micro_batch = 1\n[surgery]\nmethod = \"modo\"\n"));
        assert_eq!(locations(&found), [(8, 10, "surgery.method")]);
        assert!(load_text(RUN, &["train.micro_batch=1", "train.accumulate=2", "surgery.method=modo"]).is_ok());
    }

    #[test]
    fn averaged_gradients_are_not_rounded() {
        let text = format!("{RUN}[surgery]\nstorage = \"bf16\"\n");
        let found = load_text(&text, &["surgery.method=moco"]).unwrap_err();
        assert_eq!(locations(&found), [(7, 11, "surgery.storage")]);
        assert!(load_text(&text, &["surgery.method=graddrop"]).is_ok());
    }

    #[test]
    fn weighted_heads_need_one_weight_per_task() {
        let text = format!("{RUN}[surgery]\nheads = \"weighted\"\n");
        for sets in [&["surgery.method=graddrop"][..], &["surgery.granularity=layer"]] {
            let found = load_text(&text, sets).unwrap_err();
            assert_eq!(locations(&found), [(7, 9, "surgery.heads")]);
        }
        for sets in [&["surgery.method=cagrad"][..], &["surgery.method=sum", "surgery.granularity=layer"]] {
            assert!(load_text(&text, sets).is_ok(), "{sets:?}");
        }
    }
}
