//! The table of a task, and of `task_defaults`.

use super::kind::{Bounds, Kind, PathFrom};
use super::tables::ROUNDS;
use super::{Section, YEAR_MS, key, optional, required};

const DATA_FILE: Kind = Kind::Path(PathFrom::DataRoot);
const COLUMNS: Kind = Kind::List(&Kind::Column);
const TEXTS: Kind = Kind::List(&Kind::Text);

const METRICS: Kind = Kind::one_of(&["accuracy", "f1", "matthews", "pearson", "spearman", "mse", "mae", "auroc"]);

pub static TASK: Section = Section {
    keys: &[
        optional("train", DATA_FILE, "Training rows. A task has `train`, or `file`."),
        optional("dev", DATA_FILE, "Rows evaluated while training."),
        optional("test", DATA_FILE, "Rows evaluated at the end."),
        optional("file", DATA_FILE, "One file with the rows of all splits."),
        optional("split", Kind::Column, "Column of `file` that names the split of a row."),
        key("train_splits", TEXTS, "[\"train\"]", "Values of the split column that mean training."),
        key("dev_splits", TEXTS, "[\"dev\"]", "Values of the split column that mean dev."),
        key("test_splits", TEXTS, "[\"test\"]", "Values of the split column that mean test."),
        optional("format", Kind::one_of(&["jsonl", "tsv", "csv", "parquet"]), "From the file name when absent."),
        key("columns", COLUMNS, "[]", "TSV and CSV: column names when the file has no header line; empty means it has one."),
        optional("quoted", Kind::Bool, "TSV and CSV: fields may be quoted; when absent, only in CSV."),
        key("text", COLUMNS, "[]", "One column, or two for text pairs."),
        key("features", COLUMNS, "[]", "Dense features: one column holding a list, or one column per feature."),
        key(
            "label",
            COLUMNS,
            "[]",
            "One column; several for multilabel or regression with several outputs. A row whose key is absent or null, or whose cell is empty, \
            has no label. Multilabel in one column: a list of names, or a text with commas or semicolons between them; `[]`, as a list or \
            as the text, says that none of the labels applies.",
        ),
        key(
            "head",
            Kind::one_of(&["classification", "regression", "multilabel", "mlm"]),
            "\"classification\"",
            "What the task predicts. `mlm`: the words at masked places of its text (15 % of them), for a transformer; it has no label.",
        ),
        key("classes", TEXTS, "[]", "Class names in index order; empty means discovered from the training rows, sorted.")
            .only(".head", &["classification", "multilabel"]),
        key("weight", Kind::Float(Bounds::POSITIVE), "1.0", "Factor on the task's loss."),
        key("priority", Kind::Int(-1_000_000, 1_000_000), "0", "The larger goes first.").only("schedule.policy", &["priority"]),
        optional(
            "deadline_ms",
            Kind::Float(Bounds::POSITIVE.up_to(YEAR_MS)),
            "The task commits once in every such span of planned time; a set of deadlines that cannot be met is refused.",
        )
        .only("schedule.policy", &["rms", "edf"]),
        optional(
            "adaptive",
            Kind::Section(&ADAPTIVE),
            "Micro-batches that follow the measured time of a fused group, e.g. `{ target_ms = 50 }`. Sizes then depend on the machine: \
            a rerun has other bytes, while the plan holds for any.",
        ),
        key("period", Kind::Int(1, ROUNDS), "1", "The task is present every `period`-th round."),
        optional("rounds", Kind::Int(1, ROUNDS), "Rounds after which the task is done; absent means it trains to the end."),
        optional(
            "target",
            Kind::Float(Bounds::NON_NEGATIVE),
            "The task is done once its primary metric on dev is at least this (mse, mae: at most).",
        ),
        key("depends_on", TEXTS, "[]", "Tasks that must be done before this one starts; each needs `rounds` or `target`."),
        key(
            "metrics",
            Kind::List(&METRICS),
            "[]",
            "The first is the task's primary metric; empty means the usual ones of its head. [evaluation.md](evaluation.md) defines them.",
        ),
        key("share", Kind::Float(Bounds::POSITIVE), "1.0", "Share of the slots of a round, relative to the other tasks'.")
            .only("sampler.kind", &["explicit"]),
        key(
            "memory",
            Kind::Bytes,
            "0",
            "What the task may take for itself (its row of J, head, moments, data); 0 means no limit.",
        ),
    ],
    later: &[],
};

static ADAPTIVE: Section = Section {
    keys: &[
        required(
            "target_ms",
            Kind::Float(Bounds::POSITIVE),
            "Time of a fused group with this task that its micro-batch aims at.",
        ),
        key("grow", Kind::Float(Bounds::ABOVE_ONE), "1.1", "Factor after a group that took less than 0.8 of it."),
        key("shrink", Kind::Float(Bounds::UNIT_OPEN), "0.9", "Factor after one that took more."),
        key("min", Kind::Int(1, 1 << 20), "1", "Fewest examples."),
        key("max", Kind::Int(1, 1 << 20), "256", "Most examples: what the plan reserves memory for."),
    ],
    later: &[],
};
