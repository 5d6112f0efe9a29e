//! Configurations: read, checked, printed and read again, held against their data, and planned.

use std::path::Path;
use std::sync::LazyLock;

use anyhow::Result;
use taskloom::commands;
use taskloom::config::{self, Config};
use taskloom::observe::console::Console;
use taskloom::train::fit_memory;
use taskloom::train::plan::Plan;
use taskloom::train::setup::load_corpus;

use super::{Input, data, folder};
use crate::common::table;
use crate::mutate;
use crate::random::Random;
use crate::tree::{self, Tree};

const TEXT: &str = r#"
[run]
name = "text"
seed = 7
threads = 2
[encoder]
kind = "bag"
tokenizer = "words"
hidden = 16
embedding_dim = 12
buckets = 128
residual = true
dropout = 0.1
word_dropout = 0.2
ngrams = 2
[task_defaults]
text = "text"
file = "table.tsv"
split = "split"
[tasks.topic]
label = "topic"
head = "classification"
target = 0.9
[tasks.numbers]
label = ["score", "speed"]
head = "regression"
weight = 0.5
depends_on = ["topic"]
rounds = 4
[tasks.flags]
label = ["red", "loud", "cold"]
head = "multilabel"
period = 2
[train]
rounds = 12
micro_batch = 8
[surgery]
method = "cagrad"
c = 0.4
[balance]
method = "dwa"
[eval]
every = 8
[eval.slices]
seen = { column = "seen", equals = "1" }
[checkpoint]
every = 8
keep = 2
[schedule]
lanes = 2
"#;

const FEATURES: &str = r#"
[encoder]
kind = "linear"
hidden = 16
activation = "gelu"
[task_defaults]
features = ["x0", "x1", "x2", "x3"]
file = "table.tsv"
split = "split"
[tasks.numbers]
label = ["score", "speed"]
head = "regression"
[tasks.topic]
label = "topic"
deadline_ms = 50
adaptive = { target_ms = 5, min = 2, max = 16 }
[train]
epochs = 1.5
micro_batch = 8
[schedule]
mode = "time_sliced"
policy = "edf"
[memory]
device = "64MiB"
on_pressure = ["queue", "split"]
[sampler]
kind = "proportional"
temperature = 2
[optimizer]
kind = "sgd"
momentum = 0.9
"#;

const TRANSFORMER: &str = r#"
[encoder]
kind = "transformer"
tokenizer = "vocab.txt"
hidden = 16
heads = 2
layers = 2
positions = 32
max_len = 24
pooling = "mean"
freeze = ["embeddings", "layer.0"]
[task_defaults]
text = "text"
file = "table.tsv"
split = "split"
[tasks.topic]
label = "topic"
[tasks.words]
label = []
head = "mlm"
[train]
rounds = 5
micro_batch = 4
accumulate = 2
[optimizer.schedule]
kind = "linear"
warmup = 0.1
[surgery]
granularity = "layer"
"#;

const FROM_FOLDER: &str = r#"
[encoder]
kind = "transformer"
from = "bert"
[tasks.topic]
text = "text"
label = "topic"
train = "table.tsv"
[train]
rounds = 3
"#;

const SYNTHETIC: &str = r#"
[synthetic]
agree = 1
oppose = 1
alone = 1
features = 8
train = 100
dev = 20
test = 20
noise = 0.1
[task_defaults]
head = "regression"
[tasks.oppose_1a]
weight = 4
[encoder]
kind = "linear"
hidden = 32
[train]
rounds = 20
micro_batch = 16
[faults.x]
kind = "not_finite"
task = "agree_1a"
round = 3
"#;

/// Own ones that can be planned here, each also with every key that it leaves to its default, and the example ones.
static SEEDS: LazyLock<Vec<Tree>> = LazyLock::new(|| {
    let own = [TEXT, FEATURES, TRANSFORMER, FROM_FOLDER, SYNTHETIC];
    let place = tempfile::tempdir().expect("a folder");
    for (name, content) in data_files() {
        let path = place.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, content).expect("a file");
    }
    let complete = own.iter().map(|text| {
        let path = place.path().join("config.toml");
        std::fs::write(&path, text).expect("a file");
        let resolved = config::load(&path, &[]).unwrap_or_else(|errors| panic!("a seed has errors: {errors}"));
        // Its paths are those of this folder.
        relative(&resolved.to_toml(), place.path())
    });
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let mut examples: Vec<_> =
        std::fs::read_dir(folder).expect("the examples").map(|entry| entry.expect("a file").path()).collect();
    examples.sort();
    let examples = examples.iter().filter(|path| path.is_file()).map(|path| std::fs::read_to_string(path).expect("an example"));
    own.iter().map(|text| (*text).to_owned()).chain(complete).chain(examples).map(|text| Tree::parse_toml(&text)).collect()
});

/// Paths that a configuration has from its folder, or from where this runs, as they are from any other one.
pub fn relative(config: &str, folder: &Path) -> String {
    let here = std::env::current_dir().expect("this runs somewhere");
    [folder, &here].iter().fold(config.to_owned(), |config, folder| {
        let folder = folder.display().to_string();
        config.replace(&format!("{folder}/"), "").replace(&folder, ".")
    })
}

/// Seeds that can be planned: the first of [`SEEDS`].
const PLANNED: usize = 10;

pub fn data_files() -> Vec<(String, Vec<u8>)> {
    let mut files = vec![("table.tsv".to_owned(), table().into_bytes()), ("vocab.txt".to_owned(), data::VOCABULARY.into())];
    files.extend(folder::fixture().iter().map(|(name, content)| (format!("bert/{name}"), content.clone())));
    files
}

/// A configuration; one in ten is changed by its bytes, too.
pub fn text(random: &mut Random) -> Vec<u8> {
    let seeds = if random.once_in(6) { SEEDS.len() } else { PLANNED.min(SEEDS.len()) };
    let mut tree = SEEDS[random.below(seeds)].clone();
    tree::mutate(random, &mut tree, &SEEDS);
    let mut text = tree.toml().into_bytes();
    if random.once_in(10) {
        mutate::bytes(random, &mut text);
    }
    text.truncate(mutate::MOST_BYTES);
    text
}

pub fn make(random: &mut Random) -> Input {
    let mut files = data_files();
    files.push(("config.toml".into(), text(random)));
    if random.once_in(20) {
        files.push(("base.toml".into(), text(random)));
        files[0].1.truncate(random.size(2000));
    }
    let sets = (0..random.size(2)).map(|_| set(random)).collect();
    Input { files, words: sets }
}

/// `KEY=VALUE`, as it is typed.
pub fn set(random: &mut Random) -> String {
    let mut bytes = random
        .pick(&[
            "train.rounds=3",
            "optimizer.lr=1e-3",
            "tasks.topic.weight=2",
            "surgery.method=mgda",
            "encoder.hidden=8",
            "base=base.toml",
        ])
        .as_bytes()
        .to_vec();
    if random.once_in(2) {
        mutate::bytes(random, &mut bytes);
    }
    bytes.truncate(1000);
    String::from_utf8_lossy(&bytes).into_owned()
}

pub fn run(place: &Path, sets: &[String]) -> Result<()> {
    let path = place.join("config.toml");
    let resolved = config::load(&path, sets)?;
    drop(resolved.print());
    // What a run stores is the configuration it was given.
    let stored = place.join("stored.toml");
    std::fs::write(&stored, resolved.to_toml())?;
    let again = config::load(&stored, &[]).unwrap_or_else(|errors| panic!("the stored configuration is refused: {errors}"));
    assert_eq!(format!("{:?}", again.config), format!("{:?}", resolved.config), "the stored configuration is another one");
    config::load_stored(&stored).expect("a stored configuration is read");
    plan(commands::check::load(&path, sets)?.config)
}

/// What `taskloom plan` works out.
pub fn plan(mut config: Config) -> Result<()> {
    let mut corpus = load_corpus(&mut config, &Console::new())?;
    data::read_all(&corpus, config.encoder.max_len.max(1));
    let (plan, _) = fit_memory::fit(&mut config, &mut corpus)
        .or_else(|_| Ok::<_, anyhow::Error>((Plan::new(&config, &corpus)?, Vec::new())))?;
    plan.buffers(&config)?;
    plan.passes(&config, &corpus)?;
    plan.saved_bytes(&config)?;
    (0..corpus.tasks.len()).for_each(|task| assert!(plan.task_bytes(task) > 0, "a task without bytes"));
    Ok(())
}
