//! The tables of a run; those of a task are next door.

use super::kind::{Bounds, Kind, PathFrom};
use super::methods::{BALANCE, SURGERY};
use super::task::TASK;
use super::{Section, YEAR_MS, key, optional, required};

const COUNT: i64 = 1 << 40;
const WIDTH: i64 = 1 << 16;
/// Random draws tell 2^32 rounds, and 2^32 examples of a task, apart.
pub const ROUNDS: i64 = u32::MAX as i64;
const EXAMPLES: i64 = u32::MAX as i64;
const SECONDS: Bounds = Bounds::NON_NEGATIVE.up_to(YEAR_MS / 1e3);

pub static ROOT: Section = Section {
    keys: &[
        key("run", Kind::Section(&RUN), "{}", "The run as a whole."),
        key("data", Kind::Section(&DATA), "{}", "Where data files are."),
        key("encoder", Kind::Section(&ENCODER), "{}", "The trunk all tasks share."),
        key("train", Kind::Section(&TRAIN), "{}", "How long, and how much at a time."),
        key("optimizer", Kind::Section(&OPTIMIZER), "{}", "The step taken once a round."),
        key("clip", Kind::Section(&CLIP), "{}", "Limits the norm of what reaches the optimizer."),
        key("balance", Kind::Section(&BALANCE), "{}", "Scales losses before surgery."),
        key("surgery", Kind::Section(&SURGERY), "{}", "Makes one update of the tasks' private gradients."),
        key("schedule", Kind::Section(&SCHEDULE), "{}", "Which tasks run when."),
        key("memory", Kind::Section(&MEMORY), "{}", "Budgets in bytes."),
        key("sampler", Kind::Section(&SAMPLER), "{}", "How often each task is drawn."),
        key("eval", Kind::Section(&EVAL), "{}", "Evaluation on the dev split."),
        key("best", Kind::Section(&BEST), "{}", "Which evaluation counts as the best one."),
        key("checkpoint", Kind::Section(&CHECKPOINT), "{}", "What `resume` starts from."),
        key("observe", Kind::Section(&OBSERVE), "{}", "What metrics.jsonl and trace.json receive."),
        key(
            "faults",
            Kind::Sections(&FAULT),
            "{}",
            "Failures made on purpose, to rehearse what a run does about them; each under a name of your choice.",
        ),
        optional(
            "synthetic",
            Kind::Section(&SYNTHETIC),
            "Built-in source: tasks that agree, oppose each other, or stand alone, on dense features. \
            They are named `agree_1a`, `agree_1b`, ..., `oppose_1a`, `oppose_1b`, ..., `alone_1`, ...; \
            a `[tasks.NAME]` of such a name changes its settings.",
        ),
        optional(
            "tasks_from",
            Kind::Section(&TASKS_FROM),
            "One task per distinct value of a column, each with the settings of `[task_defaults]`. \
            A `[tasks.NAME]` without `train` and `file` changes the settings of the task found under that name.",
        ),
        key("task_defaults", Kind::Section(&TASK), "{}", "Whatever most tasks share: takes every key of a task."),
        key(
            "tasks",
            Kind::Sections(&TASK),
            "{}",
            "One table per task. What a task does not set comes from `[task_defaults]`, then from the defaults.",
        ),
    ],
    later: &[],
};

static RUN: Section = Section {
    keys: &[
        key("name", Kind::Name, "\"run\"", "Names the run and the start of its folder."),
        key("seed", Kind::Int(0, i64::MAX), "42", "Same configuration, seed and device: the same bytes."),
        key(
            "device",
            Kind::Device,
            "\"auto\"",
            "`auto` is the CPU in this version; `emulated` runs the CUDA kernels as C++, checked and slow, for tests.",
        ),
        key(
            "out",
            Kind::Path(PathFrom::CurrentDir),
            "\"runs\"",
            "Folder that receives one folder per run. Relative to the current directory.",
        ),
        key("threads", Kind::Int(0, 4096), "0", "Worker threads; 0 means one per core."),
    ],
    later: &[],
};

static DATA: Section = Section {
    keys: &[
        key(
            "root",
            Kind::Path(PathFrom::SettingFile),
            "\".\"",
            "Data files and the tokenizer are looked up here. Relative to the file that sets it \
            (`--set`: to the current directory; the default: to the loaded file).",
        ),
        key("origin", Kind::Text, "\"\"", "Said when a data file is missing: where the set comes from."),
        key(
            "on_bad_row",
            Kind::one_of(&["error", "skip"]),
            "\"error\"",
            "A wrong label, short line or invalid UTF-8 stops the run, or is skipped and counted.",
        ),
    ],
    later: &[],
};

static ENCODER: Section = Section {
    keys: &[
        required(
            "kind",
            Kind::one_of(&["linear", "bag", "transformer"]),
            "`linear`: one layer over dense features. `bag`: the mean of hashed n-gram embeddings of a text. `transformer`: BERT's \
            encoder over a text's tokens.",
        ),
        key("hidden", Kind::Int(1, WIDTH), "768", "Width of what the heads see."),
        key("activation", Kind::one_of(&["none", "relu", "gelu", "tanh"]), "\"gelu\"", "Applied to the encoder's layer.")
            .only("encoder.kind", ONE_LAYER),
        key(
            "residual",
            Kind::Bool,
            "false",
            "Adds the layer's input to the first columns of its output; the input may not be wider than `hidden`.",
        )
        .only("encoder.kind", ONE_LAYER),
        key(
            "dropout",
            Kind::Float(Bounds::UNIT_OPEN),
            "0.0",
            "Probability of zeroing an element of the encoder's output while training; in a transformer also of the embeddings \
            and of each layer's two parts (BERT: 0.1).",
        ),
        optional(
            "tokenizer",
            Kind::Tokenizer,
            "`words`, or a `vocab.txt` (WordPiece) or `tokenizer.json` (Hugging Face), relative to `data.root`. Text needs one; a \
            transformer a vocabulary, by default that of `from`.",
        )
        .only("encoder.kind", TEXT),
        key(
            "lowercase",
            Kind::Bool,
            "true",
            "Fold case and strip accents, as BERT's uncased vocabularies want; a `tokenizer.json` says so itself.",
        )
        .only("encoder.kind", TEXT),
        key("max_len", Kind::Int(1, 1 << 20), "512", "Tokens kept of one example, special tokens not counted.")
            .only("encoder.kind", TEXT),
        key("ngrams", Kind::Int(1, 3), "2", "Longest n-gram.").only("encoder.kind", BAG),
        key("buckets", Kind::Int(1, 1 << 30), "524288", "Rows of the hashed part of the table.").only("encoder.kind", BAG),
        key("embedding_dim", Kind::Int(0, WIDTH), "0", "Width of an embedding row; 0 means `hidden`.").only("encoder.kind", BAG),
        key(
            "embedding_init",
            Kind::Float(Bounds::NON_NEGATIVE),
            "0.0",
            "Standard deviation of the initial rows; 0 starts at zero and leaves untouched rows out of memory.",
        )
        .only("encoder.kind", BAG),
        key("word_dropout", Kind::Float(Bounds::UNIT_OPEN), "0.0", "Probability of dropping an n-gram while training.")
            .only("encoder.kind", BAG),
        optional(
            "from",
            Kind::Path(PathFrom::DataRoot),
            "Hugging Face folder of a BERT to start from (config.json, model.safetensors). Sizes are then its own.",
        )
        .only("encoder.kind", TRANSFORMER),
        key("vocabulary", Kind::Int(0, 1 << 24), "0", "Rows of the word table; 0 means the tokenizer's size.")
            .only("encoder.kind", TRANSFORMER),
        key("layers", Kind::Int(1, 1 << 10), "12", "Transformer layers.").only("encoder.kind", TRANSFORMER),
        key("heads", Kind::Int(0, WIDTH), "0", "Attention heads; 0 means `hidden / 64`.").only("encoder.kind", TRANSFORMER),
        key("intermediate", Kind::Int(0, 1 << 18), "0", "Width of the feed-forward part; 0 means `4 * hidden`.")
            .only("encoder.kind", TRANSFORMER),
        key("positions", Kind::Int(4, 1 << 20), "512", "Longest sequence, special tokens counted; longer texts are cut.")
            .only("encoder.kind", TRANSFORMER),
        key(
            "pooling",
            Kind::one_of(&["cls", "mean", "pooler"]),
            "\"cls\"",
            "What heads see: the first token, the mean of all, or BERT's pooler (tanh of a layer over the first token).",
        )
        .only("encoder.kind", TRANSFORMER),
        key("attention_dropout", Kind::Float(Bounds::UNIT_OPEN), "0.0", "Dropout of attention weights (BERT: 0.1).")
            .only("encoder.kind", TRANSFORMER),
        key("norm_eps", Kind::Float(Bounds::POSITIVE), "1e-12", "Added to the variance in layer normalization.")
            .only("encoder.kind", TRANSFORMER),
        key("init", Kind::Float(Bounds::POSITIVE), "0.02", "Standard deviation of initial weights.")
            .only("encoder.kind", TRANSFORMER),
        key(
            "freeze",
            Kind::List(&Kind::Text),
            "[]",
            "`embeddings`, `layer.N`, `layer.N-M`: the encoder's first blocks, which then are not trained and run without dropout.",
        )
        .only("encoder.kind", TRANSFORMER),
        key(
            "recompute",
            Kind::Bool,
            "false",
            "Keep only each layer's input and compute the rest again in the backward pass: less memory, about a third more time.",
        )
        .only("encoder.kind", TRANSFORMER),
        key(
            "cache_frozen",
            Kind::Bool,
            "false",
            "Compute what the blocks of `freeze` make of each text once, and keep it on disk: the same bytes as without, less time. \
            The files lie in the folder that TASKLOOM_CACHE names, or in the user's cache folder; they may be removed between runs.",
        )
        .only("encoder.kind", TRANSFORMER),
    ],
    later: &[],
};

const BAG: &[&str] = &["bag"];
const TRANSFORMER: &[&str] = &["transformer"];
const TEXT: &[&str] = &["bag", "transformer"];
const ONE_LAYER: &[&str] = &["linear", "bag"];

static TRAIN: Section = Section {
    keys: &[
        optional(
            "epochs",
            Kind::Float(Bounds::POSITIVE),
            "Length of the run in passes over the training rows. Exactly one of `epochs` and `rounds` is needed; \
            a later layer's wins.",
        )
        .resumable(),
        optional("rounds", Kind::Int(1, ROUNDS), "Length of the run in rounds.").resumable(),
        key("micro_batch", Kind::Int(1, 1 << 20), "32", "Examples of one task in one micro-batch."),
        key(
            "accumulate",
            Kind::Int(1, 1 << 20),
            "1",
            "Micro-batches per slot and round; their private gradients add up before surgery.",
        ),
        key("fuse", Kind::Int(0, 1 << 20), "0", "Most tasks packed into one fused group; 0 means all of a round."),
        key(
            "label_smoothing",
            Kind::Float(Bounds::UNIT_OPEN),
            "0.0",
            "Share of the target probability spread evenly over all classes; classification only.",
        ),
        key(
            "equal_heads",
            Kind::Bool,
            "false",
            "Heads of one shape start from the same draw, so that gradients compare tasks and not heads.",
        ),
        key(
            "max_bad_rounds",
            Kind::Int(1, u32::MAX as i64),
            "3",
            "Rounds in a row that may fail on a non-finite loss or gradient before the run stops.",
        )
        .resumable(),
    ],
    later: &[],
};

const ADAMW: &[&str] = &["adamw"];

static OPTIMIZER: Section = Section {
    keys: &[
        key("kind", Kind::one_of(&["adamw", "sgd"]), "\"adamw\"", "AdamW with decoupled weight decay, or SGD with momentum."),
        key("lr", Kind::Float(Bounds::POSITIVE), "1e-3", "Learning rate at the end of the warmup.").resumable(),
        key("head_lr_scale", Kind::Float(Bounds::NON_NEGATIVE), "1.0", "Heads learn at `lr * head_lr_scale`.").resumable(),
        key("embedding_lr_scale", Kind::Float(Bounds::NON_NEGATIVE), "1.0", "Embedding rows learn at `lr * embedding_lr_scale`.")
            .only("encoder.kind", TEXT)
            .resumable(),
        key("weight_decay", Kind::Float(Bounds::NON_NEGATIVE), "0.01", "Decoupled; biases and norms are left out.").resumable(),
        key("beta1", Kind::Float(Bounds::UNIT_OPEN), "0.9", "Decay of the first moment.")
            .only("optimizer.kind", ADAMW)
            .resumable(),
        key("beta2", Kind::Float(Bounds::UNIT_OPEN), "0.999", "Decay of the second moment.")
            .only("optimizer.kind", ADAMW)
            .resumable(),
        key("eps", Kind::Float(Bounds::POSITIVE), "1e-8", "Added to the root of the second moment.")
            .only("optimizer.kind", ADAMW)
            .resumable(),
        key("momentum", Kind::Float(Bounds::UNIT_OPEN), "0.9", "Decay of the velocity.")
            .only("optimizer.kind", &["sgd"])
            .resumable(),
        key(
            "row_moment",
            Kind::OneOf { values: &["element", "row"], later: &[] },
            "\"element\"",
            "AdamW's second moment of an embedding row: one number per element, or one per row (a third less memory).",
        )
        .only("encoder.kind", TEXT),
        key(
            "embedding",
            Kind::one_of(&["lazy", "dense"]),
            "\"lazy\"",
            "Word rows that a step moves: those the round touched (as SparseAdam), or all (as AdamW over the whole table).",
        )
        .only("encoder.kind", TRANSFORMER),
        key("schedule", Kind::Section(&LR_SCHEDULE), "{}", "The learning rate over the run."),
    ],
    later: &[],
};

static LR_SCHEDULE: Section = Section {
    keys: &[
        key(
            "kind",
            Kind::one_of(&["constant", "linear", "cosine"]),
            "\"linear\"",
            "What the learning rate does after the warmup.",
        )
        .resumable(),
        key("warmup", Kind::Float(Bounds::NON_NEGATIVE), "0.06", "Below 1: share of all rounds; 1 and above: rounds.")
            .resumable(),
        key("end", Kind::Float(Bounds::UNIT), "0.0", "Share of `lr` left at the last round.")
            .only("optimizer.schedule.kind", &["linear", "cosine"])
            .resumable(),
    ],
    later: &[],
};

static CLIP: Section = Section {
    keys: &[
        key("norm", Kind::Float(Bounds::NON_NEGATIVE), "1.0", "Largest Euclidean norm; 0 switches clipping off.").resumable(),
        key(
            "scope",
            Kind::one_of(&["update", "task"]),
            "\"update\"",
            "Clips the update after surgery, or each task's private gradient before it.",
        )
        .resumable(),
    ],
    later: &[],
};

static SCHEDULE: Section = Section {
    keys: &[
        key(
            "mode",
            Kind::one_of(&["synchronous", "time_sliced"]),
            "\"synchronous\"",
            "All tasks present in a round commit together, or each round belongs to one task (the least memory).",
        ),
        key(
            "policy",
            Kind::one_of(&["round_robin", "weighted", "priority", "rms", "edf"]),
            "\"round_robin\"",
            "Whose round is next: in turn; by the sampler's shares; by `priority`; by period or deadline (`deadline_ms`).",
        )
        .only("schedule.mode", &["time_sliced"]),
        key(
            "server_share",
            Kind::Float(Bounds::UNIT_OPEN),
            "0.05",
            "Share of the time of tasks that `priority`, `rms` or `edf` would pass over.",
        )
        .only("schedule.policy", &["priority", "rms", "edf"]),
        key(
            "example_us",
            Kind::Float(Bounds::POSITIVE.up_to(1e9)),
            "100.0",
            "Planned time of one example: the clock that policies and retries go by, so that equal configurations have equal \
            orders.",
        ),
        key(
            "max_retries",
            Kind::Int(0, 1_000_000),
            "3",
            "Failures in a row after which a task is given up, and with it those that depend on it; the others go on.",
        ),
        key(
            "retry_base",
            Kind::Float(SECONDS),
            "5.0",
            "Seconds of planned time until a task whose reader died is tried again; doubles with each further failure in a row.",
        ),
        key("retry_cap", Kind::Float(SECONDS), "60.0", "Longest such wait in seconds, up to a tenth of it on top."),
        key(
            "lanes",
            Kind::Int(1, 64),
            "1",
            "Fused groups of a round that are computed at the same time on the CPU: each lane has its share of the worker threads and \
            its own scratch memory. Where `train.fuse` is 0, a round is cut into as many groups. The result is the same to the bit.",
        )
        .only("schedule.mode", &["synchronous"]),
    ],
    later: &["max_staleness"],
};

static MEMORY: Section = Section {
    keys: &[
        key("device", Kind::Bytes, "0", "What the run's arenas may take; 0 means no limit."),
        key(
            "on_pressure",
            Kind::List(&Kind::one_of(&["queue", "recompute", "split"])),
            "[]",
            "What gives when the run does not fit, in this order whatever the list's. `queue`: the tasks of a round compute one after \
            another, fewer in a fused group (the same result). `recompute`: `encoder.recompute` of a transformer (the same result). \
            `split`: first less room for `adaptive` micro-batches to grow, then half the micro-batch and twice the accumulation (the \
            same within rounding). All make evaluation batches smaller. \
            Empty: the run is refused.",
        ),
    ],
    later: &[],
};

static SAMPLER: Section = Section {
    keys: &[
        key(
            "kind",
            Kind::one_of(&["proportional", "round_robin", "explicit"]),
            "\"proportional\"",
            "By size, p ~ min(n, cap)^(1/temperature); each in turn; or by the tasks' `share`.",
        ),
        key("temperature", Kind::Float(Bounds::POSITIVE), "1.0", "1 is by size; the larger, the more even.")
            .only("sampler.kind", &["proportional"]),
        key("cap", Kind::Int(0, COUNT), "0", "Examples counted per task at most; 0 means no cap.")
            .only("sampler.kind", &["proportional"]),
    ],
    later: &[],
};

static EVAL: Section = Section {
    keys: &[
        key("every", Kind::Every, "\"epoch\"", "When the dev split is evaluated."),
        key("batch", Kind::Int(1, 1 << 20), "256", "Examples in one evaluation batch."),
        key(
            "batches_per_round",
            Kind::Int(0, COUNT),
            "0",
            "0: training waits until an evaluation is done. Otherwise a copy of the parameters is evaluated, so many batches after \
            each round: its outcome (best, targets, patience) counts once the last one is done, always after the same round. \
            What is left when the next evaluation is due, or when training ends, is done at once.",
        ),
        key("test", Kind::Bool, "false", "Also evaluate the test split when training ends."),
        key("slices", Kind::Sections(&SLICE), "{}", "Parts of a split that are also reported on their own."),
    ],
    later: &[],
};

static SLICE: Section = Section {
    keys: &[
        required("column", Kind::Column, "Column that decides whether a row belongs to the slice."),
        required("equals", Kind::Text, "The value it must have."),
    ],
    later: &[],
};

static BEST: Section = Section {
    keys: &[
        key(
            "metric",
            Kind::Text,
            "\"mean(primary)\"",
            "`mean(primary)`, `min(primary)` (the worst task), `mean(loss)`, `max(loss)`, `mean(METRIC)`, `min(METRIC)` (of mse and mae: \
            `max`), `TASK.METRIC` or `TASK.loss`. Losses, mse and mae are best when small; [evaluation.md](evaluation.md) says how they \
            go together with the others, and what becomes of a value that is undefined.",
        ),
        key(
            "patience",
            Kind::Int(0, u32::MAX as i64),
            "0",
            "Evaluations without a better value before the run stops; 0 never stops early.",
        ),
        key("keep", Kind::Bool, "true", "Keep the best parameters in `best/`; needs a dev split."),
    ],
    later: &[],
};

static CHECKPOINT: Section = Section {
    keys: &[
        key("every", Kind::Every, "\"epoch\"", "When a checkpoint is written.").resumable(),
        key("keep", Kind::Int(1, 1 << 20), "2", "Newest checkpoints kept.").resumable(),
        key(
            "background",
            Kind::Bool,
            "false",
            "Training waits only until a checkpoint (or `best/`) is copied; the copy is written while it goes on. The same files; \
            costs their size in memory once more.",
        ).resumable(),
    ],
    later: &[],
};

static OBSERVE: Section = Section {
    keys: &[
        key("log_every", Kind::Int(1, COUNT), "1", "Rounds between two `round` lines in metrics.jsonl.").resumable(),
        key(
            "conflict_every",
            Kind::Int(0, COUNT),
            "10",
            "Rounds between two `conflict` lines (cosine matrix, norms); 0 writes none.",
        ).resumable(),
        key(
            "trace_rounds",
            Kind::Int(0, COUNT),
            "1000",
            "Rounds of `trace.json` (for ui.perfetto.dev), from each start of the run on; failures, evaluations and checkpoints are \
            always in it. 0 writes none.",
        ).resumable(),
    ],
    later: &[],
};

static FAULT: Section = Section {
    keys: &[
        required("task", Kind::Text, "The task that fails."),
        required(
            "kind",
            Kind::one_of(&["not_finite", "out_of_memory", "crash", "stall"]),
            "Its gradient is not a number, an allocation fails, whoever reads for it dies, or its part takes `ms` longer.",
        ),
        key("round", Kind::Int(0, COUNT), "0", "The first round that may be hit, counted from 0."),
        key("times", Kind::Int(1, COUNT), "1", "How often it happens: each time the task takes part from that round on."),
        key("ms", Kind::Float(Bounds::NON_NEGATIVE.up_to(YEAR_MS)), "100.0", "Length of a stall in milliseconds.")
            .only(".kind", &["stall"]),
    ],
    later: &[],
};

static SYNTHETIC: Section = Section {
    keys: &[
        key("agree", Kind::Int(0, 1000), "1", "Pairs of tasks that agree."),
        key("oppose", Kind::Int(0, 1000), "1", "Pairs of tasks that oppose each other."),
        key("alone", Kind::Int(0, 1000), "1", "Tasks unrelated to all others."),
        key("features", Kind::Int(1, WIDTH), "64", "Width of a feature vector."),
        key("train", Kind::Int(1, EXAMPLES), "2000", "Training examples of each task."),
        key("dev", Kind::Int(0, EXAMPLES), "500", "Dev examples of each task."),
        key("test", Kind::Int(0, EXAMPLES), "500", "Test examples of each task."),
        key("noise", Kind::Float(Bounds::NON_NEGATIVE.up_to(1e6)), "0.1", "Noise in the labels; 0 means none."),
    ],
    later: &[],
};

static TASKS_FROM: Section = Section {
    keys: &[
        required("file", Kind::Path(PathFrom::DataRoot), "The file that holds the rows of all tasks."),
        key("task", Kind::Column, "\"task\"", "Column naming the task of a row."),
        optional("split", Kind::Column, "Short for `task_defaults.split`."),
        key("include", Kind::List(&Kind::Text), "[]", "Task names to use; empty means every value found."),
    ],
    later: &[],
};
