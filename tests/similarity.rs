//! `head = "similarity"`: losses and gradients as those of sentence-transformers (fixture and its script:
//! tests/fixtures/pair_loss.*), and whole runs of the program on made-up pairs.

mod common;

use std::path::{Path, PathBuf};

use common::{Outcome, Place, assert_same_run, checkpoints, device, metrics, resume, run, training};
use serde_json::{Value, json};
use taskloom::machine::host::HostMemory;
use taskloom::machine::tape::Tape;
use taskloom::ops::pair_loss::PairLoss;
use taskloom::ops::unit_rows::{UnitRowsBackward, UnitRowsForward};

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|number| number.as_f64().expect("a number")).collect()
}

/// States are f32 there too, all else is f64; a score is off by scale * 2^-22, and so is the slope of a probability.
#[test]
fn losses_and_gradients_are_sentence_transformers() {
    let cases: Value = serde_json::from_str(include_str!("fixtures/pair_loss.json")).expect("JSON");
    for case in cases.as_array().expect("cases") {
        let [pairs, width] = ["pairs", "width"].map(|key| case[key].as_u64().expect("a size") as usize);
        let scale = case["scale"].as_f64().expect("a number");
        let states: Vec<f32> = numbers(&case["states"]).iter().map(|&x| x as f32).collect();
        let zeros = || vec![0.0f32; states.len()];
        let (mut units, mut dunits, mut gradient) = (zeros(), zeros(), zeros());
        let (mut scores, mut row_losses) = (vec![0.0f32; pairs * pairs], vec![0.0f64; 2 * pairs]);
        let (mut memory, mut tape) = (HostMemory::new(), Tape::default());
        let x = memory.lend(&states).as_rows(2 * pairs, width);
        let [units, dunits, dx] =
            [&mut units, &mut dunits, &mut gradient].map(|own| memory.lend_mut(&mut own[..]).as_rows(2 * pairs, width));
        let (scores, losses_at) = (memory.lend_mut(&mut scores).as_rows(pairs, pairs), memory.lend_mut(&mut row_losses));
        let (temperature, mean) = ((1.0 / scale) as f32, 1.0 / pairs as f32);
        tape.push(UnitRowsForward { out: units, x });
        tape.push(PairLoss { units, dunits, scores, row_losses: losses_at, temperature, scale: mean });
        tape.push(UnitRowsBackward { dx, dout: dunits, x });
        tape.run(&memory);
        drop((tape, memory));
        let (loss, expected) = (row_losses.iter().sum::<f64>() / pairs as f64, case["loss"].as_f64().expect("a number"));
        assert!((loss - expected).abs() < 5e-7 * scale, "{loss} against {expected}");
        let expected = numbers(&case["gradient"]);
        let largest = expected.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        for (ours, theirs) in gradient.iter().zip(&expected) {
            assert!((f64::from(*ours) - theirs).abs() <= 1e-6 * scale * largest, "{ours} against {theirs}");
        }
    }
}

/// Words that stand in both columns say nothing; which `b` belongs to an `a` is to be learned.
const FILLERS: [&str; 4] = ["red", "dull", "fast", "slow"];
const KEYS: usize = 12;

/// Every pair of keys with some fillers around them; dev and test have each pair once, between fillers as no row of train has them.
fn pairs() -> String {
    let mut text = "anchor\tpositive\tparity\tsplit\n".to_owned();
    for (number, (one, other)) in (0..16).map(|at| (at, (FILLERS[at / 4], FILLERS[at % 4]))) {
        let split = if number == 6 { "dev" } else { ["train", "test"][usize::from(number == 9)] };
        for key in 0..KEYS {
            text += &format!("{one} a{key}\tb{key} {other}\t{}\t{split}\n", key % 2);
        }
    }
    text
}

/// A task that compares beside one that classifies the same texts.
fn place(encoder: &str, rest: &str) -> (Place, PathBuf) {
    let place = Place::new();
    place.write("pairs.tsv", pairs());
    let keys = (0..KEYS).map(|key| format!("a{key}\nb{key}\n")).collect::<String>();
    place.write("vocab.txt", format!("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n{}\n{keys}", FILLERS.join("\n")));
    let tasks = "[task_defaults]\nfile = \"pairs.tsv\"\nsplit = \"split\"\n\
                 [tasks.parity]\ntext = \"anchor\"\nlabel = \"parity\"\n\
                 [tasks.pairs]\ntext = [\"anchor\", \"positive\"]\nhead = \"similarity\"\n";
    let config = format!("[run]\nname = \"pairs\"\nthreads = 2\n[encoder]\n{encoder}{tasks}{rest}");
    let config = place.write("pairs.toml", config);
    (place, config)
}

const BERT: &str = "kind = \"transformer\"\ntokenizer = \"vocab.txt\"\nhidden = 64\nheads = 2\nlayers = 1\nintermediate = 64\n\
                    pooling = \"mean\"\ndropout = 0.1\nattention_dropout = 0.1\n";
const BAG: &str = "kind = \"bag\"\ntokenizer = \"words\"\nhidden = 32\nembedding_dim = 32\nbuckets = 512\nngrams = 1\n\
                   embedding_init = 0.2\nactivation = \"none\"\n";
const TRAINING: &str = "[train]\nrounds = 60\nmicro_batch = 16\n[optimizer]\nlr = 3e-3\n[surgery]\nmethod = \"pcgrad\"\n\
                        [eval]\nevery = 4\nbatch = 16\n[eval.slices]\neven = { column = \"parity\", equals = \"0\" }\n\
                        [checkpoint]\nevery = 20\n[best]\nmetric = \"pairs.accuracy\"\n";

/// What the `eval` lines of a run say of the task.
fn scores(run: &Path) -> Vec<Value> {
    metrics(run).into_iter().filter(|line| line["kind"] == "eval").map(|line| line["tasks"]["pairs"].clone()).collect()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("no {key} in {value}"))
}

fn words(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn predict(run: &Path, rest: &[&str]) -> Outcome {
    common::run(&[&["predict", words(run), "--task", "pairs"][..], rest].concat())
}

#[test]
fn a_transformer_learns_which_texts_belong_together() {
    let (place, config) = place(BERT, TRAINING);
    let trained = place.train(&config, &[]);
    let along = scores(&trained);
    let (first, last) = (&along[0], along.last().expect("evaluations"));
    assert!(number(last, "accuracy") > number(first, "accuracy") && number(last, "accuracy") > 0.9, "{along:?}");
    assert!(number(last, "loss") < number(first, "loss"), "{along:?}");
    assert!(last["slices"]["even"]["examples"].as_u64() == Some(6) && number(last, "cosine") <= 1.0, "{last}");

    // What `eval` says of the split and of a file of its rows.
    let rows = pairs();
    let dev: Vec<&str> = rows.lines().filter(|row| row.ends_with("\tdev")).collect();
    let file =
        place.write("dev.tsv", format!("anchor\tpositive\n{}\n", dev.join("\n").replace("\t0\tdev", "").replace("\t1\tdev", "")));
    let of_split = run(&["eval", words(&trained), "--json"]).ok().json();
    let of_file = run(&["eval", words(&trained), "--file", words(&file), "--json"]).ok().json();
    for key in ["accuracy", "cosine", "loss"] {
        let [split, file] = [&of_split, &of_file].map(|found| number(&found["tasks"]["pairs"], key));
        assert!((split - file).abs() < 1e-9, "{key}: {split} {file}");
    }
    assert!(of_file["tasks"].get("parity").is_none(), "{of_file}");

    // The answers' mean is the metric, and an answer is the cosine of the vectors of both texts, each of them read alone.
    let answers = predict(&trained, &["--file", words(&file)]).ok().out;
    let answers: Vec<Value> = answers.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let mean = answers.iter().map(|row| number(&row["prediction"], "cosine")).sum::<f64>() / answers.len() as f64;
    assert!((mean - number(&of_split["tasks"]["pairs"], "cosine")).abs() < 1e-5, "{mean} {of_split}");
    let vector = |text: &str| numbers(&predict(&trained, &["--embed", "--text", text]).ok().json()["embedding"]);
    let (one, other) = (vector("red a3"), vector("b3 dull"));
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let cosine = product(&one, &other) / (product(&one, &one) * product(&other, &other)).sqrt();
    let answer = predict(&trained, &["--text", "red a3\tb3 dull"]).ok().json();
    assert!((number(&answer, "cosine") - cosine).abs() < 1e-5, "{answer} {cosine}");
    let stranger = predict(&trained, &["--text", "red a3\tb4 dull"]).ok().json();
    assert!(number(&stranger, "cosine") < cosine, "{stranger} {answer}");
    let both = predict(&trained, &["--embed", "--text", "red a3\tb3 dull"]).ok().json();
    let vectors: Vec<Vec<f64>> = both["embedding"].as_array().expect("two vectors").iter().map(numbers).collect();
    for (found, alone) in vectors.iter().zip([&one, &other]) {
        assert!(found.len() == 64 && found.iter().zip(alone).all(|(a, b)| (a - b).abs() < 1e-5), "{both}");
    }
    predict(&trained, &["--text", "red a3"]).failed(2, &["task \"pairs\" reads a pair of texts separated by a tab, found 1"]);
    let table = place.path("answers.csv");
    predict(&trained, &["--file", words(&file), "--out", words(&table)]).ok();
    let table = std::fs::read_to_string(&table).expect("answers");
    assert!(table.starts_with("anchor,positive,prediction\n") && table.lines().count() == 1 + dev.len(), "{table}");
    let vectors = place.path("vectors.csv");
    predict(&trained, &["--file", words(&file), "--embed", "--out", words(&vectors)]).ok();
    let vectors = std::fs::read_to_string(&vectors).expect("vectors");
    assert!(vectors.lines().all(|line| line.split(',').count() == 2 + 2 * 64), "{vectors}");

    // The encoder is exported, and no head of the task.
    let out = place.path("exported");
    run(&["export", words(&trained), "--out", words(&out)]).ok();
    let heads = std::fs::read(out.join("heads.safetensors")).expect("heads");
    let heads = safetensors::SafeTensors::deserialize(&heads).expect("a safetensors file");
    assert!(heads.names().iter().all(|name| name.starts_with("heads.parity.")), "{:?}", heads.names());
    let known: Value = serde_json::from_slice(&std::fs::read(out.join("heads.json")).expect("heads")).expect("JSON");
    assert_eq!((&known["pairs"]["kind"], &known["pairs"]["pooling"]), (&json!("similarity"), &json!("mean")));
    let other = place.path("classifier");
    let classifier = ["export", words(&trained), "--out", words(&other), "--task", "pairs"];
    run(&classifier).failed(2, &["a task that compares texts has no head"]);
}

/// The same without the task that classifies: no head in the whole run.
fn alone(place: &Place, config: &Path) -> PathBuf {
    let text = std::fs::read_to_string(config).expect("a configuration");
    let alone = text.replace("[tasks.parity]\ntext = \"anchor\"\nlabel = \"parity\"\n", "");
    assert!(alone.len() < text.len());
    place.write("alone.toml", alone)
}

#[test]
fn a_bag_learns_it_too() {
    let (place, config) = place(BAG, TRAINING);
    let trained = place.train(
        &alone(&place, &config),
        &["train.rounds=150", "optimizer.lr=0.02", "encoder.word_dropout=0.1", "encoder.dropout=0.1"],
    );
    let along = scores(&trained);
    let [first, last] = [along.first(), along.last()].map(|scores| number(scores.expect("evaluations"), "accuracy"));
    assert!(last > 0.7 && first < 0.5, "{along:?}");
    let answer = predict(&trained, &["--text", "red a3\tb3 dull"]).ok().json();
    assert!(number(&answer, "cosine") > 0.5, "{answer}");
}

/// However rounds are cut into groups, whatever the threads, and killed in between.
#[test]
fn the_same_bytes_again() {
    for encoder in [BERT, BAG] {
        let (place, config) = place(encoder, TRAINING);
        let reference = place.train(&config, &["train.rounds=24", "checkpoint.every=8", "eval.every=8"]);
        let sets = ["train.rounds=24", "checkpoint.every=8", "eval.every=8"];
        let resumed = place.train(&config, &sets);
        checkpoints(&resumed).into_iter().skip(1).for_each(|newer| std::fs::remove_dir_all(newer).expect("can remove"));
        resume(&resumed).ok();
        assert_same_run(&resumed, &reference, "resumed");
        let apart = place.train(&config, &[&sets[..], &["train.fuse=1", "run.threads=1"]].concat());
        let newest = |run: &Path| common::weights(&checkpoints(run).pop().expect("a checkpoint"));
        assert_eq!(newest(&apart), newest(&reference), "task by task");
    }
}

/// Losses of dev agree to what bf16 leaves of scores that are 20 times a cosine.
#[test]
fn a_device_learns_as_the_host_does() {
    if !device::is_there() {
        return;
    }
    let sets = ["train.rounds=4", "train.micro_batch=6", "eval.every=2", "checkpoint.every=4"];
    for (encoder, more) in
        [(BERT, "encoder.pooling=pooler"), (BERT, "train.fuse=1"), (BAG, "data.resident=host"), (BAG, "data.resident=device")]
    {
        let (place, config) = place(encoder, TRAINING);
        let train = |on| {
            // Where a run's examples lie on a device is no setting of one without.
            let own = [on, more];
            let count = if on != device::EMULATED && more.starts_with("data.") { 1 } else { 2 };
            place.train(&config, &[&sets[..], &own[..count]].concat())
        };
        let [host, emulated] = ["run.device=cpu", device::EMULATED].map(train);
        let (ours, theirs) = (device::losses(&host), device::losses(&emulated));
        assert!(!ours.is_empty() && ours.len() == theirs.len());
        assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 3e-2 * a.abs().max(1.0)), "{more}: {ours:?} {theirs:?}");
        let cosine =
            |more: &[&str]| number(&predict(&host, &[&["--text", "red a3\tb3 dull"], more].concat()).ok().json(), "cosine");
        assert!((cosine(&[]) - cosine(&["--device", "emulated"])).abs() < 1e-2);
    }
}

/// No task of the run has parameters of its own.
#[test]
fn a_device_takes_a_run_without_heads() {
    if !device::is_there() {
        return;
    }
    let (place, config) = place(BAG, TRAINING);
    let config = alone(&place, &config);
    let sets = ["train.rounds=4", "train.micro_batch=6", "eval.every=2", "checkpoint.every=2", device::EMULATED];
    let trained = place.train(&config, &sets);
    let resumed = place.train(&config, &sets);
    checkpoints(&resumed).into_iter().skip(1).for_each(|newer| std::fs::remove_dir_all(newer).expect("can remove"));
    resume(&resumed).ok();
    assert_same_run(&resumed, &trained, "resumed");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let (place, config) = place(BERT, TRAINING);
    let refused = |sets: &[&str], message: &str| {
        let outcome = common::outcome(training(&config, sets, &place.path("run")).output());
        let said = outcome.failed(2, &[message, "similarity"]);
        assert!(said.err.contains("pairs.toml:") || said.err.contains("--set"), "{}", said.err);
    };
    refused(&["tasks.pairs.label=parity"], "tasks.pairs.label: does nothing for head = \"similarity\"");
    refused(&["tasks.pairs.text=anchor"], "tasks.pairs.text: \"similarity\" compares two texts; this is one column");
    refused(&["train.micro_batch=1"], "train.micro_batch: is 1: \"similarity\" tells a pair from the others of its micro-batch");
    refused(&["tasks.pairs.metrics=f1"], "tasks.pairs.metrics: \"f1\" does not measure a similarity head");
    refused(&["tasks.parity.temperature=0.1"], "tasks.parity.temperature: does nothing while `head` is \"classification\"");
    place
        .outcome_of_training(&config, &["tasks.pairs.temperature=0"], &place.path("run"))
        .failed(2, &["tasks.pairs.temperature: expected a number at least 0.0001 and at most 1000"]);
    let bag = place.write(
        "bag.toml",
        std::fs::read_to_string(&config).expect("text").replace(BERT, BAG).replace("embedding_init = 0.2\n", ""),
    );
    let zero = "encoder.embedding_init: is 0, so that every text begins as the zero vector";
    place.outcome_of_training(&bag, &[], &place.path("run")).failed(2, &[zero]);
    let linear = "[encoder]\nkind = \"linear\"\n[train]\nrounds = 1\n[tasks.pairs]\ntrain = \"pairs.tsv\"\nfeatures = \"x\"\nhead = \"similarity\"\n";
    let linear = place.write("linear.toml", linear);
    let message = "tasks.pairs.head: \"similarity\" compares two texts, which the linear encoder does not read";
    place.outcome_of_training(&linear, &[], &place.path("run")).failed(2, &["linear.toml:8:", message]);
}

/// An empty text is a text; a row that lacks one is a bad row like any other.
#[test]
fn a_text_may_be_empty_but_not_missing() {
    let (place, _) = place(BAG, "");
    let train = |rows: &str| {
        place.write("rows.jsonl", rows);
        let own = format!(
            "[encoder]\n{BAG}[train]\nrounds = 2\nmicro_batch = 2\n\
             [tasks.pairs]\ntrain = \"rows.jsonl\"\ntext = [\"a\", \"b\"]\nhead = \"similarity\"\n"
        );
        let run = place.path("rows");
        let outcome = place.outcome_of_training(&place.write("rows.toml", own), &[], &run);
        let _ = std::fs::remove_dir_all(run);
        outcome
    };
    train("{\"a\":\"x\",\"b\":\"\"}\n{\"a\":\"y\",\"b\":\"z\"}\n").ok();
    train("{\"a\":\"x\",\"b\":\"z\"}\n{\"a\":\"y\"}\n").failed(2, &["rows.jsonl:2: text column `b` holds"]);
}
