//! Did-you-mean: the nearest key of a table, the table a key belongs in, the name other trainers give it.

use super::diagnostic::Diagnostic;
use super::keys::{Key, Section, sections};
use super::schema::METHOD_KEYS;
pub use crate::suggest::nearest;

/// What other trainers call some keys.
const ALIASES: &[(&str, &str)] = &[
    ("adam_beta1", "optimizer.beta1"),
    ("adam_beta2", "optimizer.beta2"),
    ("adam_epsilon", "optimizer.eps"),
    ("batch_size", "train.micro_batch"),
    ("early_stopping", "best.patience"),
    ("early_stopping_patience", "best.patience"),
    ("eval_batch_size", "eval.batch"),
    ("eval_steps", "eval.every"),
    ("grad_clip", "clip.norm"),
    ("gradient_accumulation", "train.accumulate"),
    ("gradient_accumulation_steps", "train.accumulate"),
    ("hidden_size", "encoder.hidden"),
    ("label_smoothing_factor", "train.label_smoothing"),
    ("learning_rate", "optimizer.lr"),
    ("logging_steps", "observe.log_every"),
    ("lr_scheduler_type", "optimizer.schedule.kind"),
    ("max_grad_norm", "clip.norm"),
    ("max_seq_len", "encoder.max_len"),
    ("max_steps", "train.rounds"),
    ("metric_for_best_model", "best.metric"),
    ("model_name_or_path", "encoder.from"),
    ("num_epochs", "train.epochs"),
    ("num_train_epochs", "train.epochs"),
    ("output_dir", "run.out"),
    ("per_device_eval_batch_size", "eval.batch"),
    ("per_device_train_batch_size", "train.micro_batch"),
    ("save_steps", "checkpoint.every"),
    ("save_total_limit", "checkpoint.keep"),
    ("steps", "train.rounds"),
    ("warmup_ratio", "optimizer.schedule.warmup"),
    ("warmup_steps", "optimizer.schedule.warmup"),
];

/// What other trainers have a key for and this one has not.
const WITHOUT_KEY: &[(&[&str], &str)] = &[(
    &["bf16", "fp16", "mixed_precision", "precision"],
    "precision is no choice: devices compute in bf16 over parameters in f32, the CPU in f32",
)];

/// Tells the writer of an unknown key what they may have meant.
pub fn explain_unknown(name: &str, section: &'static Section, mut diagnostic: Diagnostic) -> Diagnostic {
    let near = nearest(name, section.keys.iter().map(|key| key.name));
    if let Some(near) = near {
        diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
    }
    if let Some((_, key)) = ALIASES.iter().find(|(alias, _)| *alias == name) {
        return diagnostic.help(format!("`{name}` is called `{key}` here"));
    }
    if let Some((_, why)) = WITHOUT_KEY.iter().find(|(names, _)| names.contains(&name)) {
        return diagnostic.help(*why);
    }
    let homes = homes(name);
    if !homes.is_empty() {
        return diagnostic.help(format!("`{name}` belongs in {}", homes.join(" or ")));
    }
    if near.is_some() {
        return diagnostic;
    }
    let keys: Vec<_> = section.keys.iter().map(|key| key.name).collect();
    diagnostic.help(format!("this table takes {}", keys.join(", ")))
}

/// The headers of the tables that have a key of this name; one where it is a method's parameter only if no other has it.
fn homes(name: &str) -> Vec<String> {
    let of_method = |key: &Key| key.only.as_ref().is_some_and(|only| METHOD_KEYS.contains(&only.key));
    let label = |path: String| if path.is_empty() { "the top level".to_owned() } else { format!("[{path}]") };
    let found = sections().into_iter().filter_map(|(path, section)| Some((label(path), of_method(section.find(name)?))));
    let (parameters, own): (Vec<_>, Vec<_>) = found.partition(|(_, of_method)| *of_method);
    let homes = if own.is_empty() { parameters } else { own };
    homes.into_iter().map(|(path, _)| path).collect()
}

#[cfg(test)]
mod tests {
    use super::super::schema::ROOT;
    use super::super::tree::Origin;
    use super::*;

    fn help(name: &str, section: &'static Section) -> Vec<String> {
        explain_unknown(name, section, Diagnostic::new(Origin::Default, "", "")).help
    }

    fn section(path: &str) -> &'static Section {
        sections().into_iter().find(|(name, _)| name == path).unwrap().1
    }

    #[test]
    fn a_key_of_another_table_is_sent_home() {
        assert_eq!(help("lr", section("train")), ["`lr` belongs in [optimizer]"]);
        assert_eq!(help("momentum", &ROOT), ["`momentum` belongs in [optimizer]"]);
        assert_eq!(help("label", section("run")), ["`label` belongs in [task_defaults] or [tasks.NAME]"]);
    }

    #[test]
    fn names_of_other_trainers_are_translated() {
        assert_eq!(help("learning_rate", section("train")), ["`learning_rate` is called `optimizer.lr` here"]);
        assert_eq!(help("warmup_ratio", section("optimizer")), ["`warmup_ratio` is called `optimizer.schedule.warmup` here"]);
        let batch = help("per_device_train_batch_size", section("train"));
        assert_eq!(batch.last().unwrap(), "`per_device_train_batch_size` is called `train.micro_batch` here");
        assert!(help("fp16", section("train")).iter().any(|line| line.contains("bf16")));
    }

    #[test]
    fn aliases_lead_to_keys() {
        for (_, key) in ALIASES {
            let (table, name) = key.rsplit_once('.').unwrap();
            assert!(section(table).find(name).is_some(), "{key}");
        }
    }

    #[test]
    fn a_stranger_is_told_what_the_table_takes() {
        assert_eq!(help("banana", section("clip")), ["this table takes norm, scope"]);
    }
}
