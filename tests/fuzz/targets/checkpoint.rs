//! Run folders: everything that `resume`, `eval`, `predict` and `export` read, damaged, or changed with the hashes made to fit.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use taskloom::observe::console::Console;
use taskloom::observe::metrics_file::Past;
use taskloom::observe::{Listeners, Observer};
use taskloom::train::checkpoint;
use taskloom::train::fit_memory;
use taskloom::train::restore::stored_model;
use taskloom::train::run::{Built, Run, check_data};
use taskloom::train::run_folder::{RunFolder, Source, newest_whole};
use taskloom::train::setup::{load_corpus, load_model, load_run};

use super::{Input, tables};
use crate::common::{self, table};
use crate::mutate;
use crate::random::Random;
use crate::tree::{self, Tree};

const TASKS: &str = "[task_defaults]\nfile = \"table.tsv\"\nsplit = \"split\"\n";
const TRAIN: &str = "[run]\nthreads = 2\n[train]\nrounds = 6\nmicro_batch = 8\n[eval]\nevery = 2\nbatches_per_round = 1\nbatch = 8\n\
                     [checkpoint]\nevery = 3\nkeep = 2\n[observe]\ntrace_rounds = 0\n[tasks.topic]\nlabel = \"topic\"\n";

/// Runs whose checkpoints hold all that one can hold: rows of a table, moments, buffers, states of methods and balancers.
const RUNS: [&str; 4] = [
    "text = \"text\"\n[tasks.flags]\nlabel = [\"red\", \"loud\", \"cold\"]\nhead = \"multilabel\"\n[encoder]\nkind = \"bag\"\ntokenizer = \"words\"\n\
     hidden = 8\nbuckets = 32\n[surgery]\nmethod = \"moco\"\n[balance]\nmethod = \"famo\"\n",
    "features = [\"x0\", \"x1\", \"x2\"]\n[tasks.numbers]\nlabel = [\"score\", \"speed\"]\nhead = \"regression\"\n[encoder]\nkind = \"linear\"\n\
     hidden = 8\n[surgery]\nmethod = \"gradvac\"\n[balance]\nmethod = \"dwa\"\n",
    "text = \"text\"\n[tasks.words]\nlabel = []\nhead = \"mlm\"\n[encoder]\nkind = \"transformer\"\ntokenizer = \"vocab.txt\"\nhidden = 8\nheads = 2\n\
     layers = 1\npositions = 32\nmax_len = 16\n[surgery]\nmethod = \"nash_mtl\"\n[balance]\nmethod = \"uw\"\n",
    "text = \"text\"\n[tasks.numbers]\nlabel = \"score\"\nhead = \"regression\"\nrounds = 3\ntarget = 0.1\n[encoder]\nkind = \"bag\"\ntokenizer = \"vocab.txt\"\n\
     hidden = 8\nbuckets = 8\n[schedule]\nmode = \"time_sliced\"\n[surgery]\nmethod = \"excess_mtl\"\n[faults.x]\nkind = \"not_finite\"\ntask = \"topic\"\nround = 2\n",
];

type Files = BTreeMap<String, Vec<u8>>;

/// The run folders after their end, with the data beside them.
static SEEDS: LazyLock<Vec<Files>> = LazyLock::new(|| RUNS.iter().filter_map(|settings| trained(settings)).collect());

fn trained(settings: &str) -> Option<Files> {
    let place = common::Place::new();
    place.write("table.tsv", table());
    place.write("vocab.txt", super::data::VOCABULARY);
    let path = place.write("config.toml", format!("{TASKS}{settings}{TRAIN}"));
    let run = place.path("run");
    let outcome = place.outcome_of_training(&path, &[], &run);
    // The first error of a seed is for whoever changes the seeds.
    assert_eq!(outcome.code, Some(0), "{settings}:\n{}", outcome.err);
    let mut files = Files::new();
    for (name, content) in common::files(&run) {
        // The data lies beside the run; the paths are made relative, as the folder is another one each time.
        let content = if name == "config.toml" {
            let text = String::from_utf8(content).expect("a configuration is UTF-8");
            super::config::relative(&text, place.path("x").parent().expect("it lies in the folder")).into_bytes()
        } else {
            content
        };
        files.insert(format!("run/{name}"), content);
    }
    files.retain(|name, _| !name.contains("events.out") && !name.ends_with("run.lock"));
    files.insert("run/table.tsv".to_owned(), table().into_bytes());
    files.insert("run/vocab.txt".to_owned(), super::data::VOCABULARY.into());
    Some(files)
}

pub fn make(random: &mut Random) -> Input {
    let mut files = run_folder(random);
    for content in files.values_mut() {
        content.truncate(mutate::MOST_BYTES);
    }
    Input { files: files.into_iter().collect(), words: Vec::new() }
}

/// A run folder with one file changed or several.
pub fn run_folder(random: &mut Random) -> Files {
    let mut files = SEEDS[random.below(SEEDS.len())].clone();
    // The older checkpoint is the newest that is left in half of the cases, so that rounds are still to come.
    if random.once_in(2) {
        let newest = folders(&files).pop().expect("a checkpoint");
        files.retain(|name, _| !name.starts_with(&newest));
    }
    if random.once_in(2) {
        files.retain(|name, _| !name.starts_with("run/best/"));
    }
    match random.below(8) {
        0 => {
            // Damage that the hashes find, or that has none.
            let names: Vec<String> = files.keys().filter(|name| !name.ends_with("table.tsv")).cloned().collect();
            let name = &names[random.below(names.len())];
            let content = files.get_mut(name).expect("it is there");
            match random.below(4) {
                0 => content.clear(),
                1 => drop(files.remove(name)),
                _ => mutate::bytes(random, content),
            }
        }
        1 => {
            let name = random.pick(&["run/metrics.jsonl", "run/tokenizer.json", "run/encoder.json"]).to_owned();
            mutate::bytes(random, files.entry(name).or_insert_with(|| b"{\"a\": 1}".to_vec()));
        }
        _ => {
            for folder in folders(&files) {
                spoil(random, &mut files, &folder);
            }
        }
    }
    files
}

/// `run/best/` and the checkpoints, oldest first.
fn folders(files: &Files) -> Vec<String> {
    files.keys().filter_map(|name| Some(format!("{}/", name.strip_suffix("/COMPLETE")?))).collect()
}

/// Changes a checkpoint and makes its hashes fit.
fn spoil(random: &mut Random, files: &mut Files, folder: &str) {
    let state_name = format!("{folder}state.json");
    let mut state = Tree::parse_json(&String::from_utf8_lossy(&files[&state_name]));
    if random.once_in(2) {
        let names: Vec<String> =
            files.keys().filter(|name| name.starts_with(folder) && name.ends_with(".safetensors")).cloned().collect();
        let name = &names[random.below(names.len())];
        let content = tables::hostile(random, tables::read(&files[name]));
        if let Some(hashes) = state.get_mut("hashes") {
            hashes.set(&name[folder.len()..], Tree::Text(blake3::hash(&content).to_hex().to_string()));
        }
        files.insert(name.clone(), content);
    }
    if random.once_in(2) {
        // Hashes that do not fit end it all, so they are left alone.
        let hashes = state.get_mut("hashes").cloned();
        tree::mutate(random, &mut state, &[]);
        if let Some(hashes) = hashes.filter(|_| !random.once_in(20)) {
            state.set("hashes", hashes);
        }
    }
    let text = state.json().into_bytes();
    files.insert(format!("{folder}COMPLETE"), blake3::hash(&text).to_hex().to_string().into_bytes());
    files.insert(state_name, text);
}

/// As `predict` and `export` find a model, then as `resume` goes on with the run.
pub fn run(place: &Path, _: &[String]) -> Result<()> {
    let path = place.join("run");
    let found = model(&path);
    let resumed = resume(&path);
    found.and(resumed)
}

fn model(path: &Path) -> Result<()> {
    let source = Source::find(path, &mut drop)?;
    let config = load_model(&source.run)?;
    stored_model(&config, &source, 1).map(drop)
}

fn resume(path: &Path) -> Result<()> {
    let folder = RunFolder::open(path)?;
    let mut config = load_run(folder.path())?;
    // A run of billions of rounds is no finding.
    config.train.rounds = config.train.rounds.map(|rounds| rounds.min(8));
    checkpoint::recover(folder.path())?;
    checkpoint::recover(&folder.checkpoints())?;
    let (path, state) = newest_whole(&folder.checkpoints(), &mut drop)?.context("no checkpoint is whole")?;
    let mut corpus = load_corpus(&mut config, &Console::new())?;
    check_data(&corpus, &state)?;
    let (plan, _) = fit_memory::fit(&mut config, &mut corpus)?;
    let built = Built::new(&config, &corpus, &plan)?;
    let past = Past { rounds: state.round, events: state.events };
    let observer = Observer::resume(Console::new(), &folder.metrics(), folder.path(), Listeners::default(), past)?;
    let stop = AtomicBool::new(false);
    let mut run = Run::new(&config, &corpus, &plan, built, &folder, observer, &stop)?;
    run.restore(&path, state)?;
    run.run().map(drop)
}
