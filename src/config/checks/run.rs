//! The tables of the run: its length, the encoder, the synthetic source.

use super::super::freeze::frozen_blocks;
use super::super::keys::kind::name_problem;
use super::super::schema::{EncoderKind, HeadKind};
use super::Checker;

pub fn check(checker: &mut Checker) {
    length(checker);
    encoder(checker);
    sources(checker);
    trackio(checker);
}

/// Trackio keeps other things in files of some names.
fn trackio(checker: &mut Checker) {
    const TAKEN: [&str; 8] = [
        "_system",
        "_configs",
        "_traces",
        "_artifacts",
        "_artifact_versions",
        "_artifact_aliases",
        "_run_artifact_links",
        "_external_run_artifact_links",
    ];
    let project = &checker.config.observe.trackio;
    let problem = if project.is_empty() {
        None
    } else if let Some(problem) = name_problem(project) {
        Some(format!("\"{project}\" is no name: {problem}"))
    } else if project.starts_with("registry-") {
        Some(format!("\"{project}\" begins as Trackio's registries do"))
    } else {
        let end = TAKEN.iter().find(|end| project.ends_with(**end));
        end.map(|end| format!("\"{project}\" ends in `{end}`, as Trackio's exports do"))
    };
    if let Some(problem) = problem {
        checker.error(&["observe.trackio"], problem, "choose another name");
    }
}

fn length(checker: &mut Checker) {
    let keys = ["train", "train.epochs", "train.rounds"];
    match (checker.config.train.epochs, checker.config.train.rounds) {
        (None, None) => checker.error(&keys, "has no length: set `epochs` or `rounds`", ""),
        (Some(_), Some(_)) => {
            checker.error(
                &["train.rounds", "train.epochs"],
                "`epochs` is set as well: a run has one length",
                "remove one of the two",
            );
        }
        _ => {}
    }
}

fn encoder(checker: &mut Checker) {
    let encoder = &checker.config.encoder;
    match encoder.kind {
        EncoderKind::Linear => return,
        EncoderKind::Transformer => return transformer(checker),
        EncoderKind::Bag => {}
    }
    if encoder.tokenizer.is_none() {
        let help = "`words`, a `vocab.txt` or a `tokenizer.json`";
        checker.error(&["encoder.tokenizer", "encoder.kind"], "is required: the bag encoder reads text", help);
    }
    if encoder.residual && encoder.embedding_dim > encoder.hidden {
        let (dim, hidden) = (encoder.embedding_dim, encoder.hidden);
        let message = format!("adds the input to the output, but `embedding_dim` is {dim} and `hidden` only {hidden}");
        checker.error(&["encoder.residual", "encoder.embedding_dim", "encoder.hidden", "encoder.kind"], message, "");
    }
}

fn transformer(checker: &mut Checker) {
    let encoder = &checker.config.encoder;
    let help = "a `vocab.txt` or a `tokenizer.json`";
    match encoder.tokenizer.as_deref() {
        None if encoder.from.is_none() => {
            checker.error(&["encoder.tokenizer", "encoder.kind"], "is required: the transformer reads text", help);
        }
        Some("words") => {
            checker.error(&["encoder.tokenizer"], "`words` has no vocabulary, which the transformer's word table needs", help);
        }
        _ => {}
    }
    let heads = if encoder.heads == 0 { encoder.hidden / 64 } else { encoder.heads };
    // Sizes that `encoder.from` settles are not known yet.
    if encoder.from.is_none() && (heads == 0 || !encoder.hidden.is_multiple_of(heads)) {
        let message = format!("{} columns cannot be shared out to {heads} heads", encoder.hidden);
        checker.error(&["encoder.heads", "encoder.hidden", "encoder.kind"], message, "hidden must be a multiple of heads");
    }
    let layers = if encoder.from.is_none() { Some(encoder.layers) } else { None };
    if let Err(message) = frozen_blocks(&encoder.freeze, layers) {
        checker.error(&["encoder.freeze"], message, "e.g. [\"embeddings\", \"layer.0-5\"]");
    }
    if encoder.cache_frozen {
        cache(checker);
    }
}

fn cache(checker: &mut Checker) {
    if checker.config.encoder.freeze.is_empty() {
        let help = "set encoder.freeze, e.g. to [\"embeddings\", \"layer.0-5\"]";
        checker.error(&["encoder.cache_frozen", "encoder.freeze"], "keeps what frozen blocks compute, but none is frozen", help);
    }
    let words = checker.known_tasks().into_iter().find(|(_, task)| task.head == HeadKind::Mlm);
    if let Some((name, _)) = words {
        let message = format!("keeps one result for each text, but task `{name}` hides other words of it in every round");
        checker.error(&["encoder.cache_frozen", "tasks", "task_defaults"], message, "remove the key, or the task");
    }
}

fn sources(checker: &mut Checker) {
    let config = checker.config;
    if config.tasks.is_empty() && config.tasks_from.is_none() && config.synthetic.is_none() {
        let help = "add a [tasks.NAME], or [tasks_from], or [synthetic]";
        checker.error(&["tasks", "tasks_from", "synthetic"], "there is no task to train on", help);
    }
    let Some(synthetic) = &config.synthetic else { return };
    if synthetic.agree + synthetic.oppose + synthetic.alone == 0 {
        let keys = ["synthetic", "synthetic.agree", "synthetic.oppose", "synthetic.alone"];
        checker.error(&keys, "makes no task: one of `agree`, `oppose` and `alone` must be above 0", "");
    }
    if config.encoder.kind.reads_text() {
        let help = "set encoder.kind = \"linear\"";
        let message = format!("makes dense features, which the {} encoder does not read", config.encoder.kind.name());
        checker.error(&["synthetic", "encoder.kind"], message, help);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{Folder, errors, load_text, locations};

    const LINEAR: &str = "[encoder]\nkind = \"linear\"\n";

    #[test]
    fn a_run_has_exactly_one_length() {
        let none = errors(&format!("{LINEAR}[synthetic]\n[train]\naccumulate = 2\n"));
        assert_eq!(locations(&none), [(4, 2, "train")]);
        let both = errors(&format!("{LINEAR}[synthetic]\n[train]\nepochs = 1\nrounds = 2\n"));
        assert_eq!(locations(&both), [(6, 10, "train.rounds")]);
    }

    #[test]
    fn a_length_that_is_wrong_is_not_also_missing() {
        let errors = errors(&format!("{LINEAR}[synthetic]\n[train]\nepochs = 0\n"));
        assert_eq!(locations(&errors), [(5, 10, "train.epochs")]);
        assert_eq!(errors.diagnostics()[0].message, "expected a number above 0, found 0.0");
    }

    #[test]
    fn there_must_be_a_task() {
        let errors = errors(&format!("{LINEAR}[train]\nrounds = 1\n"));
        assert_eq!(locations(&errors), [(1, 1, "tasks")]);
    }

    #[test]
    fn synthetic_must_make_a_task() {
        let errors = errors(&format!("{LINEAR}[train]\nrounds = 1\n[synthetic]\nagree = 0\noppose = 0\nalone = 0\n"));
        assert_eq!(locations(&errors), [(5, 2, "synthetic")]);
    }

    #[test]
    fn a_bag_reads_text_with_a_tokenizer() {
        let errors = errors("[encoder]\nkind = \"bag\"\n[train]\nrounds = 1\n[synthetic]\n");
        assert_eq!(locations(&errors), [(1, 2, "encoder.tokenizer"), (5, 2, "synthetic")]);
    }

    #[test]
    fn a_residual_needs_a_layer_as_wide_as_its_input() {
        let text = "[encoder]\nkind = \"bag\"\ntokenizer = \"words\"\nresidual = true\nhidden = 8\nembedding_dim = 16\n\
                    [train]\nrounds = 1\n[tasks.a]\ntrain = \"main.toml\"\ntext = \"t\"\nlabel = \"y\"\n";
        assert_eq!(locations(&errors(text)), [(4, 12, "encoder.residual")]);
        let folder = Folder::new(&[("main.toml", text)]);
        assert!(folder.load(&["encoder.embedding_dim=8"]).is_ok());
        assert!(folder.load(&["encoder.embedding_dim=0"]).is_ok());
    }

    #[test]
    fn a_wrong_encoder_kind_is_one_error() {
        let errors = load_text("[train]\nrounds = 1\n[synthetic]\n[encoder]\nkind = \"lstm\"\n", &[]).unwrap_err();
        assert_eq!(errors.diagnostics().len(), 1);
        assert!(errors.diagnostics()[0].message.starts_with("\"lstm\" is not one of"));
    }
}
