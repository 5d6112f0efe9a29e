//! Folders as Hugging Face keeps them: config.json, weights in one file or in shards, a tokenizer.

use std::path::Path;
use std::sync::LazyLock;

use anyhow::{Result, ensure};
use taskloom::commands;
use taskloom::machine::memory::Memory;
use taskloom::observe::console::Console;
use taskloom::train::plan::Plan;
use taskloom::train::pretrained;
use taskloom::train::setup::load_corpus;

use super::{Input, tables, tokenizer};
use crate::mutate;
use crate::random::Random;
use crate::tree::{self, Tree};

/// A model above this is a model, but none of a test.
const MOST_ENGINE_BYTES: u64 = 256 << 20;

static FIXTURE: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hugging_face");
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder)
        .expect("the fixture")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| (path.file_name().expect("a name").to_string_lossy().into_owned(), std::fs::read(&path).expect("a file")))
        .filter(|(name, _)| name != "expected.json")
        .collect();
    files.sort();
    files
});

/// The files of a whole folder: two layers in three shards.
pub fn fixture() -> &'static [(String, Vec<u8>)] {
    &FIXTURE
}

pub fn make(random: &mut Random) -> Input {
    let mut files = FIXTURE.clone();
    if random.once_in(2) {
        in_one_file(&mut files);
    }
    let mut tokenizer = "bert/vocab.txt";
    if random.once_in(3) {
        files.retain(|(name, _)| name != "vocab.txt");
        files.push(("tokenizer.json".into(), tokenizer::word_piece()));
        tokenizer = "bert/tokenizer.json";
    }
    let (mut at, count) = (random.below(files.len()), files.len());
    for _ in 0..=random.size(2) {
        // Each file once: it has to be whole to be spoiled by its structure.
        at += 1;
        let (name, content) = &mut files[at % count];
        spoil(random, name, content);
        content.truncate(mutate::MOST_BYTES);
    }
    if random.once_in(20) {
        files.remove(random.below(files.len()));
    }
    let mut files: Vec<_> = files.into_iter().map(|(name, content)| (format!("bert/{name}"), content)).collect();
    files.push(("table.tsv".into(), TABLE.into()));
    let tokenizer = if random.once_in(2) { format!("tokenizer = {tokenizer:?}\n") } else { String::new() };
    files.push(("config.toml".into(), format!("{CONFIG}{tokenizer}").into_bytes()));
    Input { files, words: Vec::new() }
}

const TABLE: &str = "text\tlabel\nthe good film\tyes\na very bad book\tno\ngood book\tyes\nbad film\tno\n";

const CONFIG: &str = "[train]\nrounds = 1\nmicro_batch = 2\n[tasks.mood]\ntrain = \"table.tsv\"\ntext = \"text\"\nlabel = \"label\"\n\
                      [encoder]\nkind = \"transformer\"\nfrom = \"bert\"\n";

fn in_one_file(files: &mut Vec<(String, Vec<u8>)>) {
    let (shards, rest): (Vec<_>, Vec<_>) = files.drain(..).partition(|(name, _)| name.ends_with(".safetensors"));
    let tensors: Vec<_> = shards.iter().flat_map(|(_, content)| tables::read(content)).collect();
    *files = rest;
    files.retain(|(name, _)| name != "model.safetensors.index.json");
    files.push(("model.safetensors".into(), tables::write(&tensors)));
}

fn spoil(random: &mut Random, name: &str, content: &mut Vec<u8>) {
    if name.ends_with(".safetensors") {
        *content = tables::hostile(random, tables::read(content));
    } else if name.ends_with(".json") && !random.once_in(4) {
        let mut tree = Tree::parse_json(&String::from_utf8_lossy(content));
        tree::mutate(random, &mut tree, &[]);
        *content = tree.json().into_bytes();
    } else {
        mutate::bytes(random, content);
    }
}

/// What `train` does with a folder before its first round.
pub fn run(place: &Path, _: &[String]) -> Result<()> {
    let mut config = commands::check::load(&place.join("config.toml"), &[])?.config;
    let corpus = load_corpus(&mut config, &Console::new())?;
    let plan = Plan::new(&config, &corpus)?;
    let bytes: u64 = plan.buffers(&config)?.iter().map(|(_, bytes)| bytes).sum();
    ensure!(bytes <= MOST_ENGINE_BYTES, "a model of {bytes} bytes");
    let mut trainer = plan.trainer(&config, &mut Memory::new(0))?;
    pretrained::load(&config, &mut trainer, &Console::new())
}
