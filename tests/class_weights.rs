//! `tasks.X.class_weights`: losses and gradients as PyTorch's, balanced weights as scikit-learn's, and the same training however a
//! round is cut, on the host and on the emulated device.

mod common;

use std::path::{Path, PathBuf};

use common::{Place, assert_same_run, checkpoints, device, final_checkpoint, metrics, resume, run, weights};
use serde_json::Value;
use taskloom::ops::loss::cross_entropy;

fn fixture() -> Value {
    serde_json::from_str(include_str!("fixtures/class_weights.json")).expect("JSON")
}

fn numbers(value: &Value) -> Vec<f32> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().expect("a number") as f32],
    }
}

/// Logits are f32 there too; losses f64, gradients rounded to f32 once.
#[test]
fn losses_and_gradients_are_pytorchs() {
    for case in fixture()["losses"].as_array().expect("cases") {
        let [weights, logits, expected] = ["weights", "logits", "gradient"].map(|key| numbers(&case[key]));
        let targets: Vec<u32> = numbers(&case["targets"]).iter().map(|&class| class as u32).collect();
        let observed: f64 = targets.iter().map(|&class| f64::from(weights[class as usize])).sum();
        let smoothing = case["smoothing"].as_f64().expect("a number");
        let mut gradient = vec![0.0; logits.len()];
        let scale = (1.0 / observed) as f32;
        let sum = cross_entropy(&mut gradient, &logits, &targets, weights.len(), (smoothing, &weights), scale);
        let loss = case["loss"].as_f64().expect("a number");
        assert!((sum / observed - loss).abs() < 1e-12 * loss, "{} against {loss}", sum / observed);
        for (ours, theirs) in gradient.iter().zip(&expected) {
            assert!((ours - theirs).abs() < 1e-6 * theirs.abs().max(0.1), "{ours} against {theirs}");
        }
    }
}

/// Topics of unequal size in `table.tsv`, beside two tasks without weights.
fn place(class_weights: &str) -> (Place, PathBuf) {
    let place = Place::new();
    let config = std::fs::read_to_string(place.linear()).expect("a configuration");
    let config = config.replace("[tasks.topic]\n", &format!("[tasks.topic]\nclass_weights = {class_weights}\n"));
    assert!(config.contains("class_weights"), "{config}");
    let config = place.write("weighted.toml", config);
    (place, config)
}

fn losses(run: &Path) -> Vec<f64> {
    let lines = metrics(run).into_iter().filter(|line| line["kind"] == "round");
    lines.filter_map(|line| line["losses"]["topic"].as_f64()).collect()
}

fn kept_weights(run: &Path) -> Vec<f32> {
    let state: Value = serde_json::from_slice(&final_checkpoint(run)["state.json"]).expect("JSON");
    let tasks = state["tasks"].as_array().expect("tasks");
    let topic = tasks.iter().find(|task| task["name"] == "topic").expect("the task");
    numbers(&topic["class_weights"])
}

#[test]
fn balanced_weights_are_scikit_learns() {
    let (fixture, place) = (fixture(), Place::new());
    let mut rows = "x,y\n".to_owned();
    for (class, count) in numbers(&fixture["counts"]).into_iter().enumerate() {
        (0..count as usize).for_each(|row| rows += &format!("0.{row},c{class}\n"));
    }
    place.write("rows.csv", rows);
    let config = "[run]\nname = \"a\"\n[encoder]\nkind = \"linear\"\nhidden = 4\n[train]\nrounds = 1\n\
                  [tasks.topic]\ntrain = \"rows.csv\"\nfeatures = \"x\"\nlabel = \"y\"\nclass_weights = \"balanced\"\n";
    let trained = place.train(&place.write("balanced.toml", config), &[]);
    assert_eq!(kept_weights(&trained), numbers(&fixture["balanced"]));
}

/// f32 sums of at most 32 rows in another order, over some rounds.
fn assert_close(one: &Path, other: &Path, tolerance: f32) {
    let [a, b] = [one, other].map(|run| weights(&checkpoints(run).pop().expect("a checkpoint")));
    for (name, values) in &a {
        for (x, y) in values.iter().zip(&b[name]) {
            assert!((x - y).abs() <= tolerance, "{name}: {x} against {y}");
        }
    }
    for (x, y) in losses(one).iter().zip(losses(other)) {
        assert!((x - y).abs() <= f64::from(tolerance), "losses {x} and {y}");
    }
}

#[test]
fn a_round_is_the_same_however_it_is_cut() {
    let (place, config) = place("\"balanced\"");
    let cut = |micro: usize, accumulate: usize, fuse: usize| {
        let [micro, accumulate, fuse] = [("micro_batch", micro), ("accumulate", accumulate), ("fuse", fuse)]
            .map(|(key, value)| format!("train.{key}={value}"));
        let sets = ["encoder.dropout=0", &micro, &accumulate, &fuse, "train.epochs=2", "train.label_smoothing=0.1"];
        place.train(&config, &sets)
    };
    let whole = cut(16, 1, 0);
    assert_close(&whole, &cut(4, 4, 0), 2e-5);
    assert_close(&whole, &cut(8, 2, 1), 2e-5);
    assert!(losses(&whole).windows(2).any(|pair| pair[0] != pair[1]));
}

#[test]
fn a_device_weighs_as_the_host_does() {
    if !device::is_there() {
        return;
    }
    let set = |device: &'static str| {
        [
            "run.seed=3",
            "task_defaults.head=classification",
            "task_defaults.metrics=[]",
            "task_defaults.class_weights=[0.25, 4]",
            "train.rounds=4",
            "train.label_smoothing=0.1",
            "checkpoint.every=4",
            device,
        ]
    };
    let place = Place::new();
    let mut ours = Vec::new();
    // A method that a device solves with losses, and one without.
    for method in ["surgery.method=db_mtl", "surgery.method=pcgrad"] {
        let train = |on| place.train(&device::small(), &[&set(on)[..], &[method]].concat());
        let [host, device] = ["run.device=cpu", device::EMULATED].map(train);
        let theirs = device::losses(&device);
        ours = device::losses(&host);
        assert!(!ours.is_empty() && ours.len() == theirs.len());
        // Activations are bf16 there.
        assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 1e-2), "{method}: {ours:?} {theirs:?}");
    }
    let plain: Vec<&str> = set("run.device=cpu").into_iter().filter(|set| !set.contains("class_weights")).collect();
    let plain = device::losses(&place.train(&device::small(), &plain));
    assert!(plain.iter().zip(&ours).any(|(a, b)| (a - b).abs() > 2e-2), "{plain:?} {ours:?}");
}

#[test]
fn a_killed_run_weighs_the_same() {
    let (place, config) = place("\"balanced\"");
    let reference = place.train(&config, &[]);
    let run = place.train(&config, &[]);
    checkpoints(&run).into_iter().skip(1).for_each(|newer| std::fs::remove_dir_all(newer).expect("can remove"));
    resume(&run).ok();
    assert_same_run(&run, &reference, "resumed");
}

/// The loss of a split, of a file with the same rows, and what the answers' probabilities come to; without rows to count again.
#[test]
fn evaluation_weighs_losses_and_no_metric() {
    let (place, config) = place("[0.5, 0, 3]");
    let trained = place.train(&config, &[]);
    assert_eq!(kept_weights(&trained), [0.5, 0.0, 3.0]);
    let path = trained.to_str().expect("UTF-8");
    let dev = run(&["eval", path, "--json"]).ok().json();
    let table = common::table();
    let mut lines = table.lines();
    let header = lines.next().expect("a header");
    let dev_rows: Vec<&str> = lines.filter(|row| row.contains("\tdev\t")).collect();
    let file = place.write("dev.tsv", format!("{header}\n{}\n", dev_rows.join("\n")));
    let of_file = run(&["eval", path, "--file", file.to_str().expect("UTF-8"), "--task", "topic", "--json"]).ok().json();
    let loss = |scores: &Value| scores["tasks"]["topic"]["loss"].as_f64().expect("a loss");
    assert!((loss(&dev) - loss(&of_file)).abs() < 1e-9, "{dev} {of_file}");
    let answers = run(&["predict", path, "--task", "topic", "--file", file.to_str().expect("UTF-8")]).ok();
    let (mut sum, mut observed, mut right, mut all) = (0.0, 0.0, 0u32, 0u32);
    for answer in answers.out.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")) {
        let Some(topic) = answer["topic"].as_str().filter(|topic| !topic.is_empty()) else { continue };
        let weight = [("arts", 0.5), ("maths", 0.0), ("sport", 3.0)].iter().find(|(name, _)| *name == topic).expect("a class").1;
        let probability = answer["prediction"]["probabilities"][topic].as_f64().expect("a number");
        sum -= weight * probability.ln();
        observed += weight;
        right += u32::from(answer["prediction"]["label"] == topic);
        all += 1;
    }
    assert!((sum / observed - loss(&dev)).abs() < 1e-5, "{} {}", sum / observed, loss(&dev));
    let accuracy = dev["tasks"]["topic"]["accuracy"].as_f64().expect("a number");
    assert!((accuracy - f64::from(right) / f64::from(all)).abs() < 1e-9, "{accuracy} {right} of {all}");
}

#[test]
fn lists_that_fit_no_classes_are_refused() {
    for (list, message) in [
        ("[1, 2]", "class_weights has 2 numbers, the classes are these 3: `arts`, `maths`, `sport`"),
        ("[1, -2, 1]", "tasks.topic.class_weights: expected a number at least 0"),
        ("[1, inf, 1]", "tasks.topic.class_weights: expected a number at least 0"),
        ("[1, nan, 1]", "tasks.topic.class_weights: expected a number at least 0"),
        ("[0, 0, 0]", "tasks.topic.class_weights: leaves no class any weight"),
        ("\"balancd\"", "did you mean \"balanced\"?"),
    ] {
        let (place, config) = place(list);
        place.outcome_of_training(&config, &[], &place.path("run")).failed(2, &[message]);
    }
    let (place, config) = place("\"balanced\"");
    let refused = |sets: &[&str], message: &str| {
        place.outcome_of_training(&config, sets, &place.path("run")).failed(2, &[message]);
    };
    refused(&[r#"tasks.topic.classes=["arts", "maths", "music", "sport"]"#], "no training row has the class `music`");
    refused(
        &[r#"tasks.topic.classes=["arts", "maths", "sport"]"#, "tasks.topic.class_weights=[1, 2]"],
        "has 2 numbers, `classes` names 3",
    );
    refused(&["tasks.flags.class_weights=[1, 2]"], "does nothing while `head` is");
}
