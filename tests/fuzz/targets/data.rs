//! Data files in every format, read as `train` reads them, for tasks of every kind.

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use taskloom::config::{self, Config};
use taskloom::data::{self, Corpus, Inputs, Split, SplitName};
use taskloom::model::spec::HeadKind;

use super::{Input, pack};
use crate::mutate;
use crate::random::Random;
use crate::tree::{self, Tree};

mod parquet;

const COLUMNS: [&str; 12] = ["text", "other", "label", "names", "score", "red", "loud", "x0", "x1", "vector", "split", "task"];

/// Ways to use the columns.
const TASKS: [&str; 10] = [
    "text = \"text\"\nlabel = \"label\"\nhead = \"classification\"\n",
    "text = [\"text\", \"other\"]\nlabel = \"label\"\nhead = \"classification\"\nclasses = [\"good\", \"bad\"]\n",
    "text = \"text\"\nlabel = \"names\"\nhead = \"multilabel\"\n",
    "text = \"text\"\nlabel = [\"red\", \"loud\"]\nhead = \"multilabel\"\n",
    "features = [\"x0\", \"x1\"]\nlabel = \"score\"\nhead = \"regression\"\n",
    "features = \"vector\"\nlabel = [\"score\", \"x0\"]\nhead = \"regression\"\n",
    "text = \"text\"\nlabel = \"label\"\nhead = \"classification\"\nsplit = \"split\"\ndev_splits = [\"dev\", \"\"]\n",
    "text = \"text\"\nlabel = \"score\"\nhead = \"regression\"\nsplit = \"split\"\n",
    "features = \"x0\"\nlabel = \"vector\"\nhead = \"multilabel\"\n",
    "text = \"text\"\nlabel = []\nhead = \"mlm\"\n",
];

pub const VOCABULARY: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngood\nbad\n##s\nfilm\na\n";

fn rows(random: &mut Random) -> Vec<Map<String, Value>> {
    let count = 1 + random.size(60);
    let row = |random: &mut Random| {
        let text = |random: &mut Random| -> String {
            (0..random.size(12))
                .map(|_| random.pick(&["good ", "bad ", "film, ", "a", " \"quoted\" ", "é ", "日本 ", "tab"]))
                .collect()
        };
        let number = |random: &mut Random| (random.below(2000) as f64 - 1000.0) / 8.0;
        let value = json!({
            "text": text(random), "other": text(random), "label": random.pick(&["good", "bad"]),
            "names": random.pick(&["a, b", "b", "", "c;a"]), "score": number(random),
            "red": random.below(2), "loud": random.once_in(2), "x0": number(random), "x1": random.below(100),
            "vector": [number(random), number(random), 1], "split": random.pick(&["train", "train", "dev", "test"]),
            "task": random.pick(&["a", "b"]),
        });
        match value {
            Value::Object(map) => map,
            _ => unreachable!("it is an object"),
        }
    };
    (0..count).map(|_| row(random)).collect()
}

pub fn jsonl(random: &mut Random) -> Input {
    let mut lines = String::new();
    for row in rows(random) {
        let mut tree = Tree::from_json(&Value::Object(row));
        if random.once_in(8) {
            tree::mutate(random, &mut tree, &[]);
        }
        lines += &(tree.json() + random.pick(&["\n", "\n", "\n", "\n", "\n", "\r\n", "\n\n"]));
    }
    input(random, "data.jsonl", lines.into_bytes(), "")
}

pub fn tsv(random: &mut Random) -> Input {
    delimited(random, "data.tsv", '\t')
}

pub fn csv(random: &mut Random) -> Input {
    delimited(random, "data.csv", ',')
}

fn delimited(random: &mut Random, name: &str, delimiter: char) -> Input {
    let quoted = random.once_in(2);
    let headless = random.once_in(4);
    let cell = |random: &mut Random, value: &Value| -> String {
        let plain = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let plain = if random.once_in(40) { random.pick(&ODD_CELLS).to_owned() } else { plain };
        if quoted || plain.contains(delimiter) { format!("\"{}\"", plain.replace('"', "\"\"")) } else { plain }
    };
    let mut text = if headless { String::new() } else { COLUMNS.join(&delimiter.to_string()) + "\n" };
    for row in rows(random) {
        let mut cells: Vec<String> = COLUMNS.iter().map(|column| cell(random, &row[*column])).collect();
        if random.once_in(40) {
            cells.truncate(random.below(COLUMNS.len()));
        }
        text += &cells.join(&delimiter.to_string());
        text += random.pick(&["\n", "\n", "\n", "\n", "\r\n", "\n\n"]);
    }
    let mut settings = String::new();
    if headless {
        settings += &format!("columns = {COLUMNS:?}\n");
    }
    if random.once_in(2) {
        settings += &format!("quoted = {quoted}\n");
    }
    input(random, name, text.into_bytes(), &settings)
}

const ODD_CELLS: [&str; 16] = [
    "",
    " ",
    "NaN",
    "inf",
    "-inf",
    "1e999",
    "-0",
    "1e-50",
    "340282350000000000000000000000000000001",
    "[1, 2]",
    "[",
    "true",
    "\"",
    "\n",
    "\u{0}",
    "99999999999999999999999999999999999999999",
];

pub fn parquet(random: &mut Random) -> Input {
    let mut content = parquet::FILES[random.below(parquet::FILES.len())].clone();
    if !random.once_in(10) {
        parquet::spoil(random, &mut content);
    }
    content.truncate(mutate::MOST_BYTES);
    let config = config_over(random, "data.parquet", "");
    Input { files: files(config, "data.parquet".into(), content), words: Vec::new() }
}

/// A text in a file, as it is or packed, and a configuration over it.
fn input(random: &mut Random, name: &str, mut content: Vec<u8>, settings: &str) -> Input {
    if random.once_in(2) {
        mutate::bytes(random, &mut content);
    }
    let (name, content) = pack::pack(random, name, content);
    let config = config_over(random, &name, settings);
    Input { files: files(config, name, content), words: Vec::new() }
}

fn files(config: String, name: String, content: Vec<u8>) -> Vec<(String, Vec<u8>)> {
    vec![("config.toml".into(), config.into_bytes()), (name, content), ("vocab.txt".into(), VOCABULARY.into())]
}

fn config_over(random: &mut Random, file: &str, settings: &str) -> String {
    let mut names = vec!["a", "b"];
    names.truncate(1 + random.below(2));
    let is_whole = |settings: &str| settings.contains("\"mlm\"");
    let tasks: Vec<&str> = names.iter().map(|_| random.pick(&TASKS)).collect();
    // Texts and features do not mix; language modelling takes a transformer.
    let kind = if tasks[0].starts_with("features") { "linear" } else { "text" };
    let tasks: Vec<&str> = tasks.iter().filter(|task| (kind == "linear") == task.starts_with("features")).copied().collect();
    let words_wanted = tasks.iter().any(|task| is_whole(task));
    let encoder = match kind {
        "linear" => "kind = \"linear\"\nhidden = 8\n".to_owned(),
        _ if words_wanted || random.once_in(4) => {
            "kind = \"transformer\"\nhidden = 8\nheads = 2\nlayers = 1\npositions = 32\ntokenizer = \"vocab.txt\"\n".to_owned()
        }
        _ => format!(
            "kind = \"bag\"\nhidden = 8\nbuckets = 32\ntokenizer = {:?}\nmax_len = {}\n",
            random.pick(&["words", "vocab.txt"]),
            1 + random.size(512)
        ),
    };
    let mut text = format!(
        "[data]\non_bad_row = {:?}\n[encoder]\n{encoder}[train]\nrounds = 2\nmicro_batch = 2\n",
        random.pick(&["skip", "skip", "error"])
    );
    if random.once_in(6) {
        text += "[eval.slices.odd]\ncolumn = \"label\"\nequals = \"good\"\n";
    }
    if random.once_in(6) {
        return text + &format!("[tasks_from]\nfile = {file:?}\ntask = \"task\"\n[task_defaults]\n{}{settings}", tasks[0]);
    }
    for (name, task) in names.iter().zip(&tasks) {
        let source = match (task.contains("split = "), random.below(3)) {
            (true, _) => format!("file = {file:?}\n"),
            (false, 0) => format!("train = {file:?}\ndev = {file:?}\n"),
            (false, _) => format!("train = {file:?}\n"),
        };
        text += &format!("[tasks.{name}]\n{source}{task}{settings}");
    }
    text
}

/// Checks the sources, loads them, and reads every example that came of them.
pub fn run(place: &Path, _: &[String]) -> Result<()> {
    let mut config: Config = config::load(&place.join("config.toml"), &[])?.config;
    let problems = data::check_sources(&config);
    data::expand(&mut config)?;
    let corpus = data::load(&config, &|_| {});
    if let Some((key, message)) = problems.first() {
        bail!("{key}: {message}");
    }
    read_all(&corpus?, config.encoder.max_len);
    Ok(())
}

/// What a sampler may rely on.
pub fn read_all(corpus: &Corpus, max_len: usize) {
    for task in &corpus.tasks {
        assert!(!task.train.is_empty(), "a task without training examples");
        for split in SplitName::ALL.into_iter().filter_map(|name| task.split(name)) {
            read_split(split, task.outputs, task.settings.head, max_len);
            // The built-in source may be told to make noise of any size; no file brings such labels.
            if let (data::Targets::Values { values, .. }, None) = (&split.targets, &task.settings.synthetic) {
                assert!(!values.iter().any(|value| value.is_infinite()), "labels that are infinite");
            }
        }
    }
}

fn read_split(split: &Split, outputs: usize, kind: HeadKind, max_len: usize) {
    let count = split.len();
    let mut ids = Vec::new();
    for example in 0..split.rows() {
        match &split.inputs {
            Inputs::Tokens(store) => {
                let first = store.read(example, &mut ids);
                assert!(first <= store.token_count(example) && store.token_count(example) <= max_len, "more tokens than max_len");
            }
            Inputs::Features(store) => {
                assert!(store.row(example).iter().all(|value| value.is_finite()), "features that are not finite")
            }
        }
    }
    match &split.targets {
        data::Targets::Class(classes) => {
            assert_eq!(classes.len(), count, "a class per example");
            assert!(classes.iter().all(|class| (*class as usize) < outputs), "a class beyond the outputs");
        }
        data::Targets::Values { dim, values } => {
            assert_eq!((values.len(), *dim), (count * outputs, outputs), "values per example");
        }
        data::Targets::Words => assert!(kind == HeadKind::Mlm, "words for a head of another kind"),
        data::Targets::Pairs => assert_eq!((kind, split.rows()), (HeadKind::Similarity, 2 * count), "two texts of each pair"),
    }
    assert!(split.slices.values().all(|flags| flags.len() == count), "a flag per example");
}
