//! What the tests that run the built program share: a folder of their own, small configurations, the program's answers.

#![allow(dead_code, reason = "every test file uses its own part of this")]

pub mod device;
pub mod null_driver;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use taskloom::random::Random;
use tempfile::TempDir;

/// A folder that goes away with the test.
pub struct Place {
    folder: TempDir,
    runs: AtomicU32,
}

impl Place {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder"), runs: AtomicU32::new(0) }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).expect("can write in the temporary folder");
        path
    }

    /// The text table of [`table`] and a configuration `bag.toml` over it.
    pub fn bag(&self) -> PathBuf {
        self.write("table.tsv", table());
        self.write("bag.toml", format!("{BAG}{MIXED_TASKS}"))
    }

    /// The same three tasks on dense features.
    pub fn linear(&self) -> PathBuf {
        self.write("table.tsv", table());
        self.write("linear.toml", format!("{LINEAR}{MIXED_TASKS}"))
    }

    /// A BERT of two layers over the text table, as one that other settings start from.
    pub fn transformer(&self) -> PathBuf {
        self.bag();
        self.write("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\ndull\nfast\nslow\nkind\nloud\nsoft\ncold\ngood\nnew\n");
        let encoder = "kind = \"transformer\"\ntokenizer = \"vocab.txt\"\nhidden = 64\nheads = 2\nlayers = 2\nintermediate = 96\n\
                       dropout = 0.1\nattention_dropout = 0.1\n";
        let tasks = "[task_defaults]\nfile = \"table.tsv\"\nsplit = \"split\"\n\
                     [tasks.topic]\ntext = \"text\"\nlabel = \"topic\"\n\
                     [tasks.score]\ntext = [\"text\", \"topic\"]\nlabel = \"speed\"\nhead = \"regression\"\n\
                     [tasks.flags]\ntext = \"text\"\nlabel = [\"red\", \"cold\"]\nhead = \"multilabel\"\n";
        let rest = "[train]\nrounds = 6\nmicro_batch = 4\n[eval]\nevery = 3\nbatch = 16\n[checkpoint]\nevery = 3\n\
                    [optimizer]\nlr = 1e-3\n";
        self.write("bert.toml", format!("[run]\nname = \"bert\"\nthreads = 2\n[encoder]\n{encoder}{tasks}{rest}"))
    }

    /// As [`Place::transformer`], with a task that predicts words.
    pub fn transformer_of_words(&self) -> PathBuf {
        let own = std::fs::read_to_string(self.transformer()).expect("a configuration");
        self.write("words.toml", format!("{own}[tasks.words]\ntext = \"text\"\nhead = \"mlm\"\n"))
    }

    /// Five tasks of the built-in source.
    pub fn synthetic(&self) -> PathBuf {
        self.write("synthetic.toml", SYNTHETIC)
    }

    /// Trains to the end in a new run folder, which is returned.
    pub fn train(&self, config: &Path, sets: &[&str]) -> PathBuf {
        let run = self.path(&format!("run-{}", self.runs.fetch_add(1, Ordering::Relaxed)));
        self.outcome_of_training(config, sets, &run).ok();
        run
    }

    pub fn outcome_of_training(&self, config: &Path, sets: &[&str], run: &Path) -> Outcome {
        outcome(training(config, sets, run).output())
    }
}

/// A `train` command that has not been started.
pub fn training(config: &Path, sets: &[&str], run: &Path) -> Command {
    let mut command = taskloom();
    command.arg("train").arg(config).arg("--run-dir").arg(run);
    sets.iter().for_each(|set| {
        command.args(["--set", set]);
    });
    command
}

/// `TASKLOOM_BIN`, where tests run beside a program that was built elsewhere; else the one of this build.
fn program() -> PathBuf {
    std::env::var_os("TASKLOOM_BIN").map_or_else(|| env!("CARGO_BIN_EXE_taskloom").into(), PathBuf::from)
}

/// An example configuration: beside `TASKLOOM_BIN`, or of this checkout.
pub fn example(name: &str) -> PathBuf {
    let beside = std::env::var_os("TASKLOOM_BIN").map(|program| Path::new(&program).with_file_name("configs"));
    beside.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")).join(name)
}

/// The built program, its input closed and its output kept.
pub fn taskloom() -> Command {
    let mut command = Command::new(program());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // No test depends on a network.
    command.env("HF_HUB_OFFLINE", "1");
    command
}

/// Runs the program with these words.
pub fn run(words: &[&str]) -> Outcome {
    outcome(taskloom().args(words).output())
}

pub fn resume(run: &Path) -> Outcome {
    outcome(taskloom().arg("resume").arg(run).output())
}

/// How the program ended.
#[derive(Debug)]
pub struct Outcome {
    /// None: ended by a signal.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

pub fn outcome(output: std::io::Result<Output>) -> Outcome {
    let output = output.expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("messages are UTF-8");
    Outcome { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

impl Outcome {
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "stderr:\n{}", self.err);
        self
    }

    /// Ended with `code`, nothing on stdout, and one message that holds all `parts`.
    pub fn failed(self, code: i32, parts: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "stderr:\n{}", self.err);
        assert_eq!(self.out, "", "stdout holds results only");
        assert_eq!(self.err.lines().filter(|line| line.starts_with("error: ")).count(), 1, "one message:\n{}", self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self.says(parts)
    }

    /// A run that went on to its end without a task that failed.
    pub fn ended(self, code: i32, parts: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "stderr:\n{}", self.err);
        self.says(parts)
    }

    pub fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.err.contains(part), "no `{part}` in:\n{}", self.err);
        }
        self
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in stdout:\n{}", self.out))
    }
}

/// Every file below a folder, by relative name.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("can list the folder").path();
        let name = path.file_name().expect("entries have names").to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|(below, bytes)| (format!("{name}/{below}"), bytes)));
        } else {
            found.insert(name, std::fs::read(&path).expect("can read the file"));
        }
    }
    found
}

/// Checkpoints of a run, oldest first.
pub fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(run.join("checkpoints")) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.expect("can list checkpoints").path()).collect();
    found.retain(|path| path.join("COMPLETE").is_file());
    found.sort();
    found
}

/// The files of the newest checkpoint.
pub fn final_checkpoint(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let newest = checkpoints(run).pop().unwrap_or_else(|| panic!("{} has a checkpoint", run.display()));
    let found = files(&newest);
    assert_eq!(found.len(), 4, "{:?}", found.keys());
    found
}

/// Says which files differ, instead of printing all bytes.
pub fn assert_same_files(ours: &BTreeMap<String, Vec<u8>>, theirs: &BTreeMap<String, Vec<u8>>, what: &str) {
    assert!(ours.keys().eq(theirs.keys()), "{what}: {:?} against {:?}", ours.keys(), theirs.keys());
    let different: Vec<&String> = ours.keys().filter(|name| ours[*name] != theirs[*name]).collect();
    assert!(different.is_empty(), "{what}: {different:?} differ");
}

/// The lines of metrics.jsonl; a cut last line is left out.
pub fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    text.lines().map_while(|line| serde_json::from_str(line).ok()).collect()
}

/// metrics.jsonl apart from times (and where the run folder lies, and how much memory was taken). Checkpoints written beside
/// training are told of when they are there, so that their lines may stand anywhere: those without a number come last.
pub fn history(run: &Path) -> Vec<Value> {
    let mut lines = metrics(run);
    for line in &mut lines {
        let fields = line.as_object_mut().expect("every line is an object");
        ["time", "seconds", "held_up", "ms", "peak_bytes"].iter().for_each(|name| drop(fields.remove(*name)));
        let path = fields.get("path").and_then(|path| Path::new(path.as_str()?).file_name()?.to_str()).map(str::to_owned);
        fields.extend(path.map(|name| ("path".to_owned(), name.into())));
    }
    lines.sort_by_key(|line| line["n"].as_u64().unwrap_or(u64::MAX));
    lines
}

/// Says which line differs first, instead of printing all.
pub fn assert_same_history(run: &Path, reference: &Path, what: &str) {
    let (ours, theirs) = (history(run), history(reference));
    if let Some((ours, theirs)) = ours.iter().zip(&theirs).find(|(ours, theirs)| ours != theirs) {
        panic!("{what}: metrics.jsonl has\n{ours}\ninstead of\n{theirs}");
    }
    assert_eq!(ours.len(), theirs.len(), "{what}: lines of metrics.jsonl");
    assert_eq!(tensorboard(run), tensorboard(reference), "{what}: TensorBoard events");
}

/// Step and length of each record in the run's one TensorBoard file.
pub fn tensorboard(run: &Path) -> Vec<(u64, usize)> {
    let found = files(run);
    let mut events = found.iter().filter(|(name, _)| name.contains("tfevents"));
    let (_, mut bytes) = events.next().map(|(name, bytes)| (name, &bytes[..])).expect("there is an event file");
    assert_eq!(events.count(), 0, "one event file");
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let record = &bytes[12..12 + length];
        // After the wall time (tag and double), 0x10 begins the step.
        let digits = record[10..].iter().enumerate().take_while(|(i, _)| *i == 0 || record[9 + i] >= 0x80);
        let step = digits.fold(0, |step, (i, byte)| step | u64::from(byte & 0x7f) << (7 * i));
        records.push((if record[9] == 0x10 { step } else { 0 }, length));
        bytes = &bytes[length + 16..];
    }
    records
}

/// The run is done and is that of `reference` in every file, apart from times and from `trace.json`, which shows what took place.
pub fn assert_same_run(run: &Path, reference: &Path, what: &str) {
    let kept = |run: &Path| -> BTreeMap<String, Vec<u8>> {
        let mut found = files(run);
        found.retain(|name, _| !name.contains("tfevents"));
        ["metrics.jsonl", "summary.json", "trace.json"]
            .iter()
            .for_each(|name| drop(found.insert((*name).to_owned(), Vec::new())));
        found
    };
    assert_same_files(&kept(run), &kept(reference), what);
    assert_same_history(run, reference, what);
}

/// `round` of every metrics line of a kind.
pub fn rounds(run: &Path, kind: &str) -> Vec<u64> {
    let lines = metrics(run).into_iter().filter(|line| line["kind"] == kind);
    lines.map(|line| line["round"].as_u64().expect("every line has a round")).collect()
}

/// Weights of a checkpoint by name.
pub fn weights(checkpoint: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(checkpoint.join("model.safetensors")).expect("a checkpoint holds the model");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let floats = tensors.tensors().into_iter().filter(|(_, tensor)| tensor.dtype() == safetensors::Dtype::F32);
    let values = |bytes: &[u8]| bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    floats.map(|(name, tensor)| (name, values(tensor.data()))).collect()
}

/// Made-up rows: a text, eight features, a class, two numbers and three flags with gaps, a split, and a slice column.
pub fn table() -> String {
    const WORDS: [&str; 12] = ["red", "dull", "fast", "slow", "kind", "loud", "soft", "cold", "good", "bad", "new", "old"];
    let mut random = Random(1);
    let mut draw = move |below: usize| random.below(below) as u32;
    let mut text = "text\tx0\tx1\tx2\tx3\tx4\tx5\tx6\tx7\ttopic\tscore\tspeed\tred\tloud\tcold\tsplit\tseen\n".to_owned();
    for row in 0..160 {
        let words: Vec<u32> = (0..3 + draw(8)).map(|_| draw(12)).collect();
        let has = |word: u32| u32::from(words.contains(&word));
        let features: Vec<String> = (0..8).map(|i| format!("{}.{}", has(i), draw(10))).collect();
        let topic = ["arts", "maths", "sport"][(has(2) + has(8)) as usize];
        let gap = |value: String, hidden: bool| if hidden { String::new() } else { value };
        let score = gap(format!("{}", 2 * has(8) + has(10)), draw(4) == 0);
        let speed = gap(format!("{}.5", has(2)), draw(4) == 0);
        let flags: Vec<String> = [0, 5, 7].map(|word| gap(has(word).to_string(), draw(5) == 0)).to_vec();
        let topic = gap(topic.to_owned(), draw(10) == 0);
        let split = ["train", "train", "train", "dev", "test"][row % 5];
        let words: Vec<&str> = words.iter().map(|&word| WORDS[word as usize]).collect();
        let fields = [words.join(" "), features.join("\t"), topic, score, speed, flags.join("\t"), split.into()];
        text += &format!("{}\t{}\n", fields.join("\t"), row % 2);
    }
    text
}

const BAG: &str = r#"
[run]
name = "bag"
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
[task_defaults]
text = "text"
"#;

const LINEAR: &str = r#"
[run]
name = "linear"
seed = 7
threads = 2
[encoder]
kind = "linear"
hidden = 16
dropout = 0.1
[task_defaults]
features = ["x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7"]
"#;

const MIXED_TASKS: &str = r#"
file = "table.tsv"
split = "split"
[tasks.topic]
label = "topic"
head = "classification"
[tasks.numbers]
label = ["score", "speed"]
head = "regression"
weight = 0.5
[tasks.flags]
label = ["red", "loud", "cold"]
head = "multilabel"
[train]
rounds = 24
micro_batch = 8
[eval]
every = 8
[eval.slices]
seen = { column = "seen", equals = "1" }
[checkpoint]
every = 8
keep = 2
"#;

/// Long enough to be killed in the middle.
const SYNTHETIC: &str = r#"
[run]
name = "synthetic"
seed = 3
threads = 2
[synthetic]
features = 16
train = 200
dev = 60
test = 60
[task_defaults]
head = "regression"
[encoder]
kind = "linear"
hidden = 32
dropout = 0.1
[train]
rounds = 120
micro_batch = 16
[eval]
every = 20
[checkpoint]
every = 10
keep = 3
"#;
