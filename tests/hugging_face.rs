//! Hugging Face folders in and out: `tests/fixtures/hugging_face` is a BERT with a classifier that transformers saved in shards
//! (its script stands beside it). It is trained on with steps that leave every number but zeros as it is, exported, and must come out as it went in.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use common::{Place, run};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hugging_face");

const TABLE: &str =
    "text\tother\tlabel\nthe good film\ta book\tyes\na very bad book\tbad\tno\ngood book\tgood\tyes\nbad film\ta film\tno\n";

/// A run of one round over a folder's encoder.
fn config(place: &Place, from: &Path) -> PathBuf {
    place.write("table.tsv", TABLE);
    let text = format!(
        "[run]\nname = \"in-and-out\"\n[encoder]\nkind = \"transformer\"\nfrom = {from:?}\n\
         [optimizer]\nlr = 1e-30\n[train]\nrounds = 1\nmicro_batch = 2\n\
         [task_defaults]\ntrain = {:?}\nlabel = \"label\"\n\
         [tasks.mood]\ntext = \"text\"\n[tasks.pair]\ntext = [\"text\", \"other\"]\n",
        place.path("table.tsv"),
    );
    place.write("config.toml", text)
}

/// A RoBERTa and a DistilBERT compute here what they compute in transformers (`tests/fixtures/families.py` made them), and are exported as the
/// BERTs that compute the same: the script holds such a folder against transformers.
#[test]
fn other_families_are_read_as_berts() {
    for family in ["roberta", "distilbert"] {
        let place = Place::new();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(family);
        let trained = place.train(&config(&place, &folder), &["encoder.pooling=mean"]);
        let expected = std::fs::read(folder.join("expected.json")).expect("the fixture");
        let expected: Value = serde_json::from_slice(&expected).expect("JSON");
        let numbers = |value: &Value| -> Vec<f64> { serde_json::from_value(value.clone()).expect("numbers") };
        for (text, mean) in expected["texts"].as_array().expect("texts").iter().zip(expected["means"].as_array().expect("means"))
        {
            let text = text.as_str().expect("a text");
            let found = run(&["predict", trained.to_str().unwrap(), "--task", "mood", "--text", text, "--embed"]).ok().out;
            let found = numbers(&serde_json::from_str::<Value>(&found).expect("JSON")["embedding"]);
            let expected = numbers(mean);
            assert_eq!(found.len(), expected.len());
            // f32 and sums of up to 24 products of numbers around 1, through two layers.
            assert!(
                found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5),
                "{family}, {text:?}: {found:?} for {expected:?}"
            );
        }
        let out = place.path("out");
        run(&["export", trained.to_str().unwrap(), "--out", out.to_str().unwrap()]).ok();
        let document: Value = serde_json::from_slice(&std::fs::read(out.join("config.json")).expect("a file")).expect("JSON");
        let kind = [&document["model_type"], &document["type_vocab_size"], &document["max_position_embeddings"]];
        assert_eq!(kind, [&json!("bert"), &json!(2), &json!(20)]);
        // And read again as such.
        let again = place.train(&config(&place, &out), &["encoder.pooling=mean"]);
        let of = |run: &Path| common::final_checkpoint(run).remove("model.safetensors").expect("the model");
        let same = |bytes: &[u8]| -> BTreeMap<String, Vec<u8>> {
            let parsed = SafeTensors::deserialize(bytes).expect("safetensors");
            let encoder = parsed.iter().filter(|(name, _)| !name.starts_with("heads."));
            encoder.map(|(name, view)| (name.to_owned(), view.data().to_vec())).collect()
        };
        assert!(same(&of(&again)).keys().eq(same(&of(&trained)).keys()), "{family} comes back as it went out");
    }
}

#[test]
fn a_folder_of_another_family_is_refused_by_name() {
    let place = Place::new();
    let folder = copy(&place);
    let spoil = |key: &str, value: Value| {
        let file = folder.join("config.json");
        let mut document: Value = serde_json::from_slice(&std::fs::read(&file).expect("a file")).expect("JSON");
        document[key] = value;
        std::fs::write(&file, document.to_string()).expect("can write");
    };
    spoil("model_type", json!("roberta"));
    spoil("type_vocab_size", json!(1));
    spoil("pad_token_id", json!(1));
    let check = || run(&["check", config(&place, &folder).to_str().unwrap()]);
    // Its tensors are named as a BERT's.
    check().failed(2, &["the weights do not fit config.json", "embeddings.word_embeddings.weight is missing"]);
    spoil("pad_token_id", json!(24));
    check().failed(2, &["max_position_embeddings is 24, which pad_token_id leaves no position of"]);
    spoil("pad_token_id", json!(null));
    check().failed(2, &["pad_token_id is missing"]);
    spoil("model_type", json!("gpt2"));
    check().failed(2, &["model_type is \"gpt2\", expected one of \"bert\", \"roberta\", \"distilbert\""]);
}

/// A copy of the fixture, to be spoiled.
fn copy(place: &Place) -> PathBuf {
    let folder = place.path("copy");
    std::fs::create_dir(&folder).expect("a folder");
    for entry in std::fs::read_dir(FIXTURE).expect("the fixture") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, folder.join(path.file_name().expect("a name"))).expect("a copy");
    }
    folder
}

/// Tensors of all safetensors files of a folder by name: shape and values.
fn tensors(folder: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let bytes = std::fs::read(path).expect("a file");
            let parsed = SafeTensors::deserialize(&bytes).expect("safetensors");
            for (name, view) in parsed.iter() {
                let values = view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")));
                all.insert(name.to_owned(), (view.shape().to_vec(), values.collect()));
            }
        }
    }
    all
}

#[test]
fn an_encoder_comes_out_as_it_went_in() {
    let place = Place::new();
    let folder = place.train(&config(&place, Path::new(FIXTURE)), &[]);
    let out = place.path("out");
    run(&["export", folder.to_str().unwrap(), "--out", out.to_str().unwrap()]).ok();
    let (came, mut went) = (tensors(&out), tensors(Path::new(FIXTURE)));
    went.retain(|name, _| name.starts_with("bert."));
    assert_eq!(went.len(), 39);
    for (name, tensor) in went {
        let plain = name.trim_start_matches("bert.");
        // There is no pooler under this configuration's pooling.
        if plain.starts_with("pooler.") {
            continue;
        }
        let (shape, values) = came.get(plain).unwrap_or_else(|| panic!("{plain} is missing"));
        assert_eq!(*shape, tensor.0, "{name}");
        assert!(values.iter().zip(&tensor.1).all(|(came, went)| (came - went).abs() < 1e-20), "{name}");
    }
}

/// What `check` and `train` say of a folder or a configuration, which both must refuse, leaving no run behind.
fn refused(place: &Place, config: &Path, sets: &[&str], parts: &[&str]) {
    let words = [vec!["check", config.to_str().unwrap()], sets.iter().flat_map(|set| ["--set", set]).collect()].concat();
    run(&words).failed(2, parts);
    place.outcome_of_training(config, sets, &place.path("refused")).failed(2, parts);
    assert!(!place.path("refused").exists(), "a refused run leaves no folder");
}

/// Changes a file of a folder.
fn edit(folder: &Path, name: &str, change: impl Fn(&str) -> String) {
    let file = folder.join(name);
    let text = std::fs::read_to_string(&file).expect("a file");
    std::fs::write(file, change(&text)).expect("can write");
}

#[test]
fn every_wrong_shape_is_named() {
    let place = Place::new();
    let folder = copy(&place);
    edit(&folder, "config.json", |text| text.replace("\"intermediate_size\": 32", "\"intermediate_size\": 24"));
    let mut named = Vec::new();
    for layer in 0..2 {
        named.extend([
            format!("encoder.layer.{layer}.intermediate.dense.weight is [32, 16], expected [24, 16]"),
            format!("encoder.layer.{layer}.intermediate.dense.bias is [32], expected [24]"),
            format!("encoder.layer.{layer}.output.dense.weight is [16, 32], expected [16, 24]"),
        ]);
    }
    refused(&place, &config(&place, &folder), &[], &named.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn weights_that_are_not_there_or_not_whole() {
    let place = Place::new();
    let folder = copy(&place);
    let config = config(&place, &folder);
    let shard = folder.join("model-00002-of-00003.safetensors");
    let whole = std::fs::read(&shard).unwrap();
    let huge = [&u64::MAX.to_le_bytes()[..], &whole[8..]].concat();
    for bytes in [&whole[..whole.len() - 1], &whole[..3], &[], &huge] {
        std::fs::write(&shard, bytes).unwrap();
        refused(&place, &config, &[], &["encoder.from", "model-00002-of-00003.safetensors is no whole safetensors file"]);
    }
    std::fs::remove_file(&shard).unwrap();
    refused(&place, &config, &[], &["encoder.from", "model-00002-of-00003.safetensors"]);
    std::fs::write(&shard, &whole).unwrap();
    edit(&folder, "model.safetensors.index.json", |text| text.replacen("model-00001", "../model-00001", 1));
    refused(&place, &config, &[], &["model.safetensors.index.json", "../model-00001", "expected a file name"]);
    edit(&folder, "model.safetensors.index.json", |text| text.replace("../", "").replace("model-00002-of", "model-00001-of"));
    refused(&place, &config, &[], &["the weights do not fit config.json", " is missing"]);
}

/// The fixture's weights in one file, each tensor as `change` leaves it.
fn rewritten(folder: &Path, change: impl Fn(&str, Dtype, Vec<u8>) -> (Dtype, Vec<u8>)) {
    let changed: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = tensors(Path::new(FIXTURE))
        .into_iter()
        .map(|(name, (shape, values))| {
            let (dtype, bytes) = change(&name, Dtype::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect());
            (name, (dtype, shape, bytes))
        })
        .collect();
    let views = changed.iter().map(|(name, (dtype, shape, bytes))| {
        (name.clone(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor"))
    });
    let bytes = safetensors::serialize(views, None).expect("safetensors");
    std::fs::write(folder.join("model.safetensors"), bytes).expect("can write");
}

#[test]
fn weights_of_another_type_or_without_end() {
    const NORM: &str = "bert.encoder.layer.1.output.LayerNorm.weight";
    let place = Place::new();
    let folder = copy(&place);
    let config = config(&place, &folder);
    rewritten(&folder, |name, dtype, bytes| (if name == NORM { Dtype::I32 } else { dtype }, bytes));
    refused(&place, &config, &[], &["encoder.layer.1.output.LayerNorm.weight holds I32, expected F32, F16 or BF16"]);
    rewritten(&folder, |name, dtype, mut bytes| {
        if name == NORM {
            bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        }
        (dtype, bytes)
    });
    let parts = ["encoder.layer.1.output.LayerNorm.weight holds a number that is not finite"];
    place.outcome_of_training(&config, &[], &place.path("nan")).failed(2, &parts);
}

#[test]
fn every_size_has_a_range() {
    let place = Place::new();
    let folder = copy(&place);
    let config = config(&place, &folder);
    for (key, whole, huge) in [
        ("num_hidden_layers", "2", "18446744073709551615"),
        ("num_hidden_layers", "2", "1025"),
        ("vocab_size", "12", "1073741825"),
        ("hidden_size", "16", "131072"),
        ("intermediate_size", "32", "1048577"),
        ("max_position_embeddings", "24", "3"),
        ("max_position_embeddings", "24", "9223372036854775808"),
        ("layer_norm_eps", "1e-12", "0"),
    ] {
        let change = |from: &str, to: &str| {
            edit(&folder, "config.json", |text| text.replace(&format!("\"{key}\": {from}"), &format!("\"{key}\": {to}")));
        };
        change(whole, huge);
        refused(
            &place,
            &config,
            &[],
            &["config.toml:5:8: encoder.from: ", "config.json: ", &format!("{key} is {huge}, expected a")],
        );
        change(huge, whole);
    }
    edit(&folder, "config.json", |text| text.replace("\"hidden_size\": 16,", ""));
    refused(&place, &config, &[], &["encoder.from: ", "config.json", "hidden_size is missing"]);
    edit(&folder, "config.json", |text| text[..text.len() / 2].to_owned());
    refused(&place, &config, &[], &["encoder.from: ", "config.json is not JSON"]);
}

#[test]
fn sizes_that_contradict_the_folder() {
    let place = Place::new();
    let config = config(&place, Path::new(FIXTURE));
    for (key, value, theirs) in [
        ("hidden", "768", "hidden_size"),
        ("layers", "3", "num_hidden_layers"),
        ("heads", "4", "num_attention_heads"),
        ("positions", "512", "max_position_embeddings"),
        ("norm_eps", "1e-5", "layer_norm_eps"),
    ] {
        let set = format!("encoder.{key}={value}");
        refused(&place, &config, &[&set], &[&format!("--set {set}: encoder.{key}: is "), theirs, "remove the key"]);
    }
    refused(&place, &config, &["encoder.freeze=[\"embeddings\", \"layer.0-1\"]"], &["encoder.freeze: freezes every layer"]);
    let all = ["encoder.hidden=16", "encoder.layers=2", "encoder.heads=2", "encoder.vocabulary=12"];
    let printed = run(&["check", config.to_str().unwrap(), "--print", "--set", all[0], "--set", all[1]]).ok().out;
    for line in ["hidden = 16", "layers = 2", "positions = 24", "vocab.txt"] {
        assert!(printed.contains(line), "no `{line}` in\n{printed}");
    }
    place.train(&config, &all);
}

#[test]
fn a_folder_that_is_none_or_lacks_its_tokenizer() {
    let place = Place::new();
    let folder = copy(&place);
    let config = config(&place, &folder);
    std::fs::rename(folder.join("vocab.txt"), place.path("words.txt")).unwrap();
    refused(
        &place,
        &config,
        &[],
        &["config.toml:5:8: encoder.from: ", "has no tokenizer.json or vocab.txt: set encoder.tokenizer"],
    );
    let own = format!("encoder.tokenizer={}", place.path("words.txt").display());
    place.train(&config, &[&own]);
    let words = std::fs::read_to_string(place.path("words.txt")).unwrap();
    place.write("words.txt", format!("{words}more\n"));
    refused(&place, &config, &[&own], &["encoder.tokenizer: ", "13 words", "12 rows"]);
    place.write("words.txt", words.replace("[CLS]", "[XYZ]"));
    refused(&place, &config, &[&own], &["encoder.tokenizer: ", "no [CLS]"]);
    let mlm = ["tasks.mood.head=mlm", "tasks.mood.label=[]", &own];
    place.write("words.txt", words.replace("[MASK]", "[XYZ]"));
    refused(&place, &config, &mlm, &["tasks.mood.head: ", "needs a [MASK]"]);
    let file = format!("encoder.from={}", place.path("words.txt").display());
    refused(&place, &config, &[&file], &["encoder.from: is a file, not a folder"]);
    let gone = format!("encoder.from={}", place.path("gone").display());
    refused(&place, &config, &[&gone], &["encoder.from: no such folder", "gone"]);
}

#[test]
fn a_run_goes_on_without_the_folder_it_started_from() {
    let place = Place::new();
    let (folder, out) = (copy(&place), place.path("out"));
    let config = config(&place, &folder);
    let sets = ["train.rounds=4", "checkpoint.every=1"];
    let whole = place.train(&config, &sets);
    let part = place.train(&config, &sets);
    let newest = common::checkpoints(&part).pop().unwrap();
    std::fs::remove_dir_all(newest).unwrap();
    let tokenizer = format!("encoder.tokenizer={}", folder.join("vocab.txt").display());
    let named = place.train(&config, &[&sets[..], &[&tokenizer]].concat());
    std::fs::remove_dir_all(&folder).unwrap();
    common::resume(&part).ok();
    common::assert_same_files(&common::final_checkpoint(&part), &common::final_checkpoint(&whole), "resumed");
    for run_folder in [&part, &named] {
        let path = run_folder.to_str().unwrap();
        run(&["eval", path, "--json"]).says(&["no task has a dev split"]);
        run(&["predict", path, "--task", "mood", "--text", "good film"]).ok();
    }
    run(&["export", part.to_str().unwrap(), "--out", out.to_str().unwrap()]).ok();
    // One that has not got to its first checkpoint needs the weights.
    std::fs::remove_dir_all(named.join("checkpoints")).unwrap();
    std::fs::create_dir(named.join("checkpoints")).unwrap();
    common::resume(&named).failed(2, &["no checkpoint yet", "encoder.from", "copy"]);
}

/// Copies the fixture to where Hugging Face's libraries would have put it.
fn fetched(place: &Place) -> PathBuf {
    let model = place.path("hub/models--org--small");
    let snapshot = model.join("snapshots/0123abc");
    std::fs::create_dir_all(&snapshot).expect("a folder");
    std::fs::create_dir_all(model.join("refs")).expect("a folder");
    std::fs::write(model.join("refs/main"), "0123abc").expect("a reference");
    let own = copy(place);
    for entry in std::fs::read_dir(own).expect("the copy") {
        let path = entry.expect("an entry").path();
        std::fs::rename(&path, snapshot.join(path.file_name().expect("a name"))).expect("moved");
    }
    snapshot
}

#[test]
fn a_fetched_model_is_found_by_its_name() {
    let place = Place::new();
    let snapshot = fetched(&place);
    let config = config(&place, Path::new("org/small"));
    let train = |run_dir: &str, home: &Path| {
        let mut command = common::training(&config, &[], &place.path(run_dir));
        common::outcome(command.env_remove("HF_HUB_CACHE").env("HF_HOME", home).output())
    };
    train("by-name", &place.path("")).ok();
    let stored = std::fs::read_to_string(place.path("by-name/config.toml")).expect("a configuration");
    assert!(stored.contains(&format!("from = {:?}", snapshot.display().to_string())), "{stored}");
    let by_path = place.train(&config, &[&format!("encoder.from={}", snapshot.display())]);
    common::assert_same_files(&common::final_checkpoint(&place.path("by-name")), &common::final_checkpoint(&by_path), "by name");
    // Where it is not, every place is named.
    let missing = place.path("elsewhere/hub/models--org--small").display().to_string();
    let parts = ["encoder.from: no such folder", &missing, "HF_HUB_OFFLINE is set", "hf download org/small"];
    train("refused", &place.path("elsewhere")).failed(2, &parts);
}

/// What a hub that has the fixture as `org/small` answers to each request.
#[derive(Clone, Copy, PartialEq)]
enum Hub {
    Whole,
    /// The second of the weights' files ends halfway.
    Broken,
    /// Nothing without a login.
    Closed,
}

/// A hub on this machine, as long as the test runs: its address. Weights lie elsewhere, as on the real one.
fn hub(kind: Hub) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| answer(kind, stream)));
    format!("http://{address}")
}

fn answer(kind: Hub, mut stream: TcpStream) {
    let mut lines = BufReader::new(stream.try_clone().expect("a stream")).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    // The rest of it.
    lines.take_while(|line| !line.is_empty()).for_each(drop);
    let path = request.split(' ').nth(1).unwrap_or_default();
    let file = path.strip_prefix("/org/small/resolve/").and_then(|rest| Some(rest.split_once('/')?.1));
    let mut send = |status: &str, headers: &str, length: usize, body: &[u8]| {
        let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
        // A client may have gone.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    };
    let name = file.or(path.strip_prefix("/elsewhere/")).unwrap_or_default();
    let content = std::fs::read(Path::new(FIXTURE).join(name)).unwrap_or_default();
    match file {
        Some(_) if kind == Hub::Closed => send("401 Unauthorized", "", 0, b""),
        _ if content.is_empty() => send("404 Not Found", "", 0, b""),
        Some(file) if file.ends_with(".safetensors") => {
            send("302 Found", &format!("Location: /elsewhere/{file}\r\n"), 0, b"");
        }
        None if kind == Hub::Broken && name.contains("-00002-") => {
            send("200 OK", "", content.len(), &content[..content.len() / 2])
        }
        _ => send("200 OK", "X-Repo-Commit: 0123abcd\r\n", content.len(), &content),
    }
}

#[test]
fn a_model_is_fetched_by_its_name() {
    let place = Place::new();
    let config = config(&place, Path::new("org/small"));
    let train = |run_dir: &str, endpoint: &str| {
        let mut command = common::training(&config, &[], &place.path(run_dir));
        command.env_remove("HF_HUB_CACHE").env("HF_HOME", place.path("home")).env("HF_HUB_OFFLINE", "0");
        common::outcome(command.env("HF_ENDPOINT", endpoint).output())
    };
    let cache = place.path("home/hub/models--org--small");
    let snapshot = cache.join("snapshots/0123abcd");
    // What does not come whole is not there.
    train("nobody", "http://127.0.0.1:1").failed(2, &["encoder.from", "http://127.0.0.1:1 does not give it", "hf download"]);
    train("closed", &hub(Hub::Closed)).failed(2, &["no such model, or it asks for a login: set HF_TOKEN"]);
    train("broken", &hub(Hub::Broken)).failed(2, &["encoder.from", "model-00002-of-00003.safetensors"]);
    assert!(!snapshot.join("config.json").exists() && !cache.join("refs").exists());
    // The next attempt goes on.
    let first = train("first", &hub(Hub::Whole)).ok();
    assert!(first.err.contains("fetching org/small from http://127.0.0.1:"), "{}", first.err);
    for file in std::fs::read_dir(&snapshot).expect("the snapshot").map(|entry| entry.expect("an entry").path()) {
        let original = std::fs::read(Path::new(FIXTURE).join(file.file_name().expect("a name"))).expect("of the fixture");
        assert!(std::fs::read(&file).expect("a file") == original, "{}", file.display());
    }
    // And then nobody is asked any more.
    let second = train("second", "http://127.0.0.1:1").ok();
    assert!(!second.err.contains("fetching"), "{}", second.err);
    let [first, second] = ["first", "second"].map(|run| common::final_checkpoint(&place.path(run)));
    common::assert_same_files(&first, &second, "fetched and found");
}

/// What transformers needs to give an exported model the inputs it was trained on. `hugging_face_answers.py` has transformers
/// itself read such a folder.
#[test]
fn an_export_says_how_texts_become_inputs() {
    let place = Place::new();
    let out = place.path("out");
    let trained = place.train(&config(&place, Path::new(FIXTURE)), &["encoder.pooling=mean", "encoder.max_len=9"]);
    run(&["export", trained.to_str().unwrap(), "--out", out.to_str().unwrap()]).ok();
    let read = |name: &str| -> Value { serde_json::from_slice(&std::fs::read(out.join(name)).expect(name)).expect("JSON") };
    let expected = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "model_max_length": 12, "padding_side": "right", "truncation_side": "right", "clean_up_tokenization_spaces": false,
        "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]",
    });
    assert_eq!(read("tokenizer_config.json"), expected);
    let tokenizer = read("tokenizer.json");
    let rule = json!({"type": "BertProcessing", "cls": ["[CLS]", 2], "sep": ["[SEP]", 3]});
    assert_eq!(
        (&tokenizer["post_processor"], &tokenizer["truncation"], &tokenizer["padding"]),
        (&rule, &Value::Null, &Value::Null)
    );
    let added = tokenizer["added_tokens"].as_array().unwrap();
    assert!(added.len() == 5 && added.iter().all(|token| token["special"] == true), "{added:?}");
    let config = read("config.json");
    assert_eq!((&config["model_type"], &config["pad_token_id"], &config["vocab_size"]), (&json!("bert"), &json!(0), &json!(12)));
    let head = json!({"kind": "classification", "outputs": 2, "classes": ["no", "yes"], "pooling": "mean"});
    assert_eq!(read("heads.json"), json!({"mood": head, "pair": head}));
}

/// A tokenizer's own rule for special tokens is not the one that training follows, and tokens it lacks are not made up.
#[test]
fn an_export_has_the_rule_and_the_tokens_of_training() {
    let place = Place::new();
    let (folder, out) = (copy(&place), place.path("out"));
    let words = ["<pad>", "<unk>", "<s>", "</s>", "x", "good", "bad", "film", "book", "the", "a", "very"];
    let vocabulary: BTreeMap<&str, usize> = words.into_iter().zip(0..).collect();
    let own = json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 5},
        "padding": null, "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "RobertaProcessing", "sep": ["</s>", 3], "cls": ["<s>", 2], "trim_offsets": true, "add_prefix_space": false},
        "decoder": null, "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    });
    std::fs::write(folder.join("tokenizer.json"), own.to_string()).unwrap();
    let trained = place.train(&config(&place, &folder), &[]);
    run(&["export", trained.to_str().unwrap(), "--out", out.to_str().unwrap()]).ok();
    let read = |name: &str| -> Value { serde_json::from_slice(&std::fs::read(out.join(name)).expect(name)).expect("JSON") };
    let rule = json!({"type": "BertProcessing", "cls": ["<s>", 2], "sep": ["</s>", 3]});
    let tokenizer = read("tokenizer.json");
    assert_eq!((&tokenizer["post_processor"], &tokenizer["truncation"]), (&rule, &Value::Null));
    let settings = read("tokenizer_config.json");
    assert_eq!(
        (&settings["cls_token"], &settings["pad_token"], &settings["mask_token"]),
        (&json!("<s>"), &json!("<pad>"), &Value::Null)
    );
}

#[test]
fn a_task_is_exported_as_a_classifier() {
    let place = Place::new();
    let config = config(&place, Path::new(FIXTURE));
    let table =
        std::fs::read_to_string(place.path("table.tsv")).expect("the table").replace("\tyes", "\t9.5").replace("\tno", "\t1.5");
    let numbers = place.write("numbers.tsv", table);
    let sets = [
        "encoder.pooling=pooler".to_owned(),
        format!("tasks.score={{ train = [{numbers:?}], text = \"text\", head = \"regression\", label_scale = \"standard\" }}"),
    ];
    let trained = place.train(&config, &sets.each_ref().map(String::as_str));
    let export = |task: Option<&str>, out: &Path| {
        let words = ["export", trained.to_str().unwrap(), "--out", out.to_str().unwrap()];
        run(&[&words[..], &task.map_or(vec![], |task| vec!["--task", task])].concat())
    };
    let [plain, mood, score] = ["plain", "mood", "score"].map(|name| place.path(name));
    assert!(export(None, &plain).ok().out.contains("AutoModel.from_pretrained"));
    let told = export(Some("mood"), &mood).ok().out;
    assert!(
        told.contains("AutoModelForSequenceClassification.from_pretrained") && told.contains(mood.to_str().unwrap()),
        "{told}"
    );
    assert!(std::fs::read_to_string(mood.join("README.md")).expect("a README").contains(&told));
    export(Some("score"), &score).ok();
    let [plain, of_mood, of_score] = [&plain, &mood, &score].map(|folder| tensors(folder));
    let encoder: Vec<&String> = plain.keys().filter(|name| !name.starts_with("heads.")).collect();
    assert!(encoder.contains(&&"pooler.dense.weight".to_owned()));
    for name in &encoder {
        assert_eq!(of_mood[&format!("bert.{name}")], plain[*name], "{name}");
    }
    for part in ["weight", "bias"] {
        assert_eq!(of_mood[&format!("classifier.{part}")], plain[&format!("heads.mood.{part}")]);
    }
    assert_eq!(of_mood.len(), encoder.len() + 2 + plain.keys().filter(|name| name.starts_with("heads.")).count());
    // Labels of 1.5 and 9.5, half of each: mean 5.5, deviation 4.
    let scaled = |part: &str, mean: f32| {
        plain[&format!("heads.score.{part}")].1.iter().map(|value| value * 4.0 + mean).collect::<Vec<f32>>()
    };
    for (part, mean) in [("weight", 0.0), ("bias", 5.5)] {
        let found = &of_score[&format!("classifier.{part}")].1;
        assert!(
            found.iter().zip(scaled(part, mean)).all(|(found, expected)| (found - expected).abs() < 1e-5),
            "{part}: {found:?}"
        );
    }
    let config =
        |folder: &Path| -> Value { serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap() };
    let of_mood = config(&mood);
    assert_eq!(of_mood["architectures"], json!(["BertForSequenceClassification"]));
    assert_eq!(
        (&of_mood["id2label"], &of_mood["problem_type"]),
        (&json!({"0": "no", "1": "yes"}), &json!("single_label_classification"))
    );
    assert_eq!((&config(&score)["id2label"], &config(&score)["problem_type"]), (&json!({"0": "LABEL_0"}), &json!("regression")));
    export(Some("moood"), &place.path("none")).failed(2, &["--task: there is no task `moood`; there are mood, pair, score"]);
}

#[test]
fn a_head_without_the_pooler_is_no_classifier() {
    let place = Place::new();
    let trained = place.train(&config(&place, Path::new(FIXTURE)), &[]);
    let out = place.path("out");
    let refused = run(&["export", trained.to_str().unwrap(), "--out", out.to_str().unwrap(), "--task", "mood"]);
    refused.failed(
        2,
        &[
            "--task mood: BertForSequenceClassification reads the pooler's output, this run's heads read \"cls\"",
            "encoder.pooling",
        ],
    );
    assert!(!out.exists(), "nothing is left behind");
}

#[test]
fn an_export_overwrites_nothing() {
    let place = Place::new();
    let folder = copy(&place);
    let trained = place.train(&config(&place, &folder), &[]);
    let before = common::files(&folder);
    let export = |out: &Path| run(&["export", trained.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    std::os::unix::fs::symlink(&folder, place.path("link")).unwrap();
    for out in [folder.clone(), folder.join("new/one"), place.path("link"), place.path("link/new"), place.path("refused/../copy")]
    {
        export(&out).failed(2, &["--out: ", "the encoder that the run started from (encoder.from)", "choose another folder"]);
    }
    place.write("full", "");
    export(&place.path("full")).failed(2, &["--out: ", "full"]);
    for full in [trained.clone(), place.path("")] {
        export(&full).failed(2, &["--out: ", "is not empty: choose a new folder"]);
    }
    assert_eq!(common::files(&folder), before);
    std::fs::create_dir(place.path("empty")).unwrap();
    export(&place.path("empty")).ok();
    export(&place.path("empty")).failed(2, &["is not empty"]);
    export(&place.path("new/deep")).ok();
    // The folder of the encoder may be gone.
    std::fs::remove_dir_all(&folder).unwrap();
    export(&place.path("after")).ok();
}

#[test]
fn predict_takes_what_its_task_reads() {
    let place = Place::new();
    let trained = place.train(&config(&place, Path::new(FIXTURE)), &[]);
    let ask = |task: &str, text: &str| run(&["predict", trained.to_str().unwrap(), "--task", task, "--text", text]);
    ask("mood", "good film").ok();
    ask("pair", "good film\tbook").ok();
    ask("mood", "good film\tbook").failed(2, &["task \"mood\" reads one text, found 2"]);
    ask("pair", "good film").failed(2, &["task \"pair\" reads a pair of texts separated by a tab, found 1"]);
    ask("pair", "a\tb\tc").failed(2, &["task \"pair\" reads a pair of texts separated by a tab, found 3"]);
    let line = "{\"text\": \"good film\", \"label\": \"yes\"}";
    // One who means it can say so.
    ask("mood", line).ok();
    for (task, line) in [("mood", line), ("pair", line), ("mood", " {}")] {
        let mut child = common::taskloom();
        let child = child.arg("predict").arg(&trained).args(["--task", task]).stdin(std::process::Stdio::piped()).spawn();
        let mut child = child.expect("starts");
        writeln!(child.stdin.take().expect("a pipe"), "{line}").expect("the program reads");
        let outcome = common::outcome(child.wait_with_output());
        outcome.failed(2, &["stdin, line 1: found a JSON object", "as plain text", "separated by a tab"]);
    }
}
