//! The tables of the run: its length, the encoder, the synthetic source.

use super::super::schema::EncoderKind;
use super::Checker;

pub fn check(checker: &mut Checker) {
    length(checker);
    encoder(checker);
    sources(checker);
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
    if encoder.kind != EncoderKind::Bag {
        return;
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
    if config.encoder.kind == EncoderKind::Bag {
        let help = "set encoder.kind = \"linear\"";
        checker.error(&["synthetic", "encoder.kind"], "makes dense features, which the bag encoder does not read", help);
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
        let errors = load_text("[train]\nrounds = 1\n[synthetic]\n[encoder]\nkind = \"transformer\"\n", &[]).unwrap_err();
        assert_eq!(errors.diagnostics().len(), 1);
        assert_eq!(errors.diagnostics()[0].message, "\"transformer\" is not in this version; it has linear, bag");
    }
}
