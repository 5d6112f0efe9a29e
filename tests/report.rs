//! `taskloom report`: what the page holds of one run and of several, what it says where something is missing, and its errors.

mod common;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use common::{Outcome, Place, metrics, outcome, taskloom};
use scraper::{Html, Selector};
use serde_json::{Value, json};

/// Sections of a page about one run.
const SECTIONS: [&str; 11] = [
    "overview",
    "scores",
    "training",
    "conflicts",
    "yielded",
    "weights",
    "schedule",
    "slow",
    "memory",
    "faults",
    "configuration",
];

/// Sections of a page about several.
const COMPARED: [&str; 6] = ["runs", "scores", "paired", "before", "curves", "keys"];

/// A page below this many bytes opens at once, also on a phone.
const MOST_BYTES: usize = 5 << 20;

fn report(runs: &[&Path], out: &Path) -> Outcome {
    outcome(taskloom().arg("report").args(runs).arg("--out").arg(out).output())
}

/// A written page.
struct Page {
    html: Html,
    text: String,
}

impl Page {
    fn of(runs: &[&Path], out: &Path) -> Self {
        let told = report(runs, out).ok();
        assert_eq!((told.out.trim_end(), told.err.as_str()), (out.to_str().expect("UTF-8"), ""));
        Self::read(out)
    }

    /// The page is well-formed and takes nothing from anywhere.
    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).expect("a page");
        let html = Html::parse_document(&text);
        assert!(html.errors.is_empty(), "{:?}", html.errors);
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!text.contains(outside), "the page has {outside}");
        }
        let page = Self { html, text };
        // Each link of the page leads somewhere.
        for link in page.all("nav a") {
            let target = link.value().attr("href").expect("a link");
            assert_eq!(page.count(&format!("section{target}")), 1, "{target}");
        }
        page
    }

    fn all(&self, selector: &str) -> Vec<scraper::ElementRef<'_>> {
        self.html.select(&Selector::parse(selector).expect("a selector")).collect()
    }

    fn count(&self, selector: &str) -> usize {
        self.all(selector).len()
    }

    /// What people read of it.
    fn words(&self, selector: &str) -> String {
        self.all(selector).iter().flat_map(|element| element.text()).collect::<Vec<_>>().join(" ")
    }

    fn sections(&self) -> Vec<&str> {
        self.all("main > section").iter().map(|section| section.value().id().expect("sections have names")).collect()
    }
}

fn said(page: &Page, section: &str) -> String {
    page.words(&format!("#{section} .missing"))
}

#[test]
fn a_page_shows_one_run() {
    let place = Place::new();
    let run = place.train(&place.synthetic(), &["eval.every=3", "observe.conflict_every=2", "run.seed=7", "memory.device=1GiB"]);
    let told = outcome(taskloom().arg("report").arg(&run).output()).ok();
    let path = run.join("report.html");
    assert_eq!(told.out, format!("{}\n", path.display()));
    let page = Page::read(&path);
    assert_eq!(page.sections(), SECTIONS);
    assert_eq!(page.count(".missing"), 0, "{}", page.words(".missing"));

    let start = &metrics(&run)[0];
    let tasks: Vec<&str> = start["tasks"].as_array().expect("tasks").iter().map(|task| task.as_str().expect("a name")).collect();
    assert_eq!(page.count("#conflicts table.map tbody tr"), tasks.len());
    assert_eq!(page.count("#conflicts table.map tbody td"), tasks.len() * tasks.len());
    let conflicts = metrics(&run).iter().filter(|line| line["kind"] == "conflict").count();
    let steps: usize = page.all("#conflicts input")[0].value().attr("max").expect("an end").parse().expect("a number");
    assert_eq!(steps + 1, conflicts);
    // A curve of each task, in its own colour.
    for (number, task) in tasks.iter().enumerate() {
        assert_eq!(page.count(&format!("#training figure:first-of-type polyline.s{number}")), 1, "{task}");
        assert!(page.words("#scores tbody").contains(task) && page.words("#yielded tbody").contains(task));
    }
    assert!(page.words("#final thead").contains("dev loss") && page.words("#final tbody").contains(tasks[0]));
    assert!(page.count("figure svg") >= 10);
    let buffers = start["buffers"].as_array().expect("buffers");
    assert_eq!(page.count("#memory details tbody tr"), buffers.len());
    assert_eq!(
        buffers.iter().filter_map(|buffer| buffer["bytes"].as_u64()).sum::<u64>(),
        start["bytes"].as_u64().expect("bytes")
    );
    assert!(page.words("#memory").contains("1.00 GiB") && page.words("#memory svg").contains("budget"));
    assert_eq!(page.count("#slow tbody tr"), 10);
    let settings = page.words("#configuration");
    assert!(settings.contains("--set") && settings.contains("synthetic.toml:"), "{settings}");
    assert_eq!(page.count("#configuration details"), 1);
}

#[test]
fn names_are_escaped() {
    let place = Place::new();
    let run = place.train(&place.synthetic(), &[]);
    let name = "</script><img src=x onerror=alert(1)>&amp;\\\"'";
    let task = metrics(&run)[0]["tasks"][0].as_str().expect("a name").to_owned();
    for file in ["metrics.jsonl", "trace.json"] {
        let text = std::fs::read_to_string(run.join(file)).expect("it is there");
        std::fs::write(run.join(file), text.replace(&format!("\"{task}\""), &format!("\"{name}\""))).expect("can be written");
    }
    let page = place.path("page.html");
    report(&[&run], &page).ok();
    let text = std::fs::read_to_string(&page).expect("a page");
    assert!(!text.contains("<img"));
    let html = Html::parse_document(&text);
    assert!(html.errors.is_empty(), "{:?}", html.errors);
    let page = Page { html, text };
    let shown = page.all("#conflicts tbody th")[0].value().attr("data-name").expect("a name").to_owned();
    assert_eq!(shown, name.replace("\\\"", "\""));
}

#[test]
fn a_page_says_what_is_not_there() {
    let place = Place::new();
    let run = place.train(&place.synthetic(), &["observe.conflict_every=0", "observe.trace_rounds=0", "eval.every=end"]);
    for name in ["trace.json", "origins.json"] {
        let _ = std::fs::remove_file(run.join(name));
    }
    let page = Page::of(&[&run], &place.path("page.html"));
    assert_eq!(page.sections(), SECTIONS);
    for (section, words) in [
        ("conflicts", "no conflict line"),
        ("yielded", "conflict lines"),
        ("schedule", "no trace.json"),
        ("slow", "no trace.json"),
        ("configuration", "origins.json"),
    ] {
        assert!(said(&page, section).contains(words), "{section}: {}", said(&page, section));
    }
    // Lines of an older version, without buffers.
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let mut start: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    start.as_object_mut().expect("an object").remove("buffers");
    let rest = text.split_once('\n').expect("lines").1;
    std::fs::write(run.join("metrics.jsonl"), format!("{start}\n{rest}")).expect("can be written");
    assert!(said(&Page::of(&[&run], &place.path("page.html")), "memory").contains("did not record its buffers"));
    // A run that was killed before its first line.
    std::fs::remove_file(run.join("metrics.jsonl")).expect("can be removed");
    let page = Page::of(&[&run], &place.path("page.html"));
    assert_eq!(page.sections(), SECTIONS);
    assert!(said(&page, "overview").contains("has not begun"));
}

#[test]
fn several_runs_stand_side_by_side() {
    let place = Place::new();
    let config = place.synthetic();
    let mut runs = Vec::new();
    for method in ["pcgrad", "sum"] {
        for seed in 1..=3 {
            let (method, seed) = (format!("surgery.method={method}"), format!("run.seed={seed}"));
            runs.push(place.train(&config, &[&method, &seed, "eval.every=3", "eval.test=true"]));
        }
    }
    let told = outcome(taskloom().arg("report").args(&runs).current_dir(place.path("")).output()).ok();
    assert_eq!(told.out, "report.html\n");
    let page = Page::read(&place.path("report.html"));
    assert_eq!(page.sections(), COMPARED);
    assert_eq!(page.count("#runs tbody tr"), 6);
    let heads: Vec<String> = page.all("#scores-dev thead th").iter().map(|head| head.text().collect()).collect();
    assert_eq!(heads[2..], ["pcgrad (3)", "sum (3)"]);
    assert_eq!(page.all("#paired thead th")[1].text().collect::<String>(), "sum (3)");
    // Mean and deviation of the final scores, by hand.
    let task = metrics(&runs[0])[0]["tasks"][0].as_str().expect("a name").to_owned();
    let last = |run: &PathBuf, split: &str| {
        let line = metrics(run).into_iter().rev().find(|line| line["kind"] == "end").expect("an end");
        line["scores"][split]["tasks"][&task]["pearson"].as_f64().expect("a score")
    };
    for split in ["dev", "test"] {
        let scores: Vec<f64> = runs[..3].iter().map(|run| last(run, split)).collect();
        let mean = scores.iter().sum::<f64>() / 3.0;
        let deviation = (scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / 2.0).sqrt();
        let row = page.all(&format!("#scores-{split} tbody tr"))[0].text().collect::<Vec<_>>().concat();
        assert!(row.contains(&format!("{mean:.4} ± {deviation:.4}").replace('-', "−")), "{row}: {mean} {deviation}");
    }
    let difference = (0..3).map(|seed| last(&runs[3 + seed], "dev") - last(&runs[seed], "dev")).sum::<f64>() / 3.0;
    let row = page.all("#paired tbody tr")[0].text().collect::<Vec<_>>().concat();
    assert!(row.contains(&format!("{:.4} ± ", difference.abs())), "{row}: {difference}");
    let keys: Vec<String> = page.all("#keys tbody th").iter().map(|key| key.text().collect()).collect();
    assert!(keys.contains(&"surgery.method".to_owned()) && keys.iter().all(|key| key.starts_with("surgery.")), "{keys:?}");
    // A line of each run in each of the overlaid charts.
    assert_eq!(page.count("#curves .charts:not(.small) figure:first-of-type polyline[class]"), 6);

    let folders: Vec<&Path> = runs[..2].iter().map(PathBuf::as_path).collect();
    let page = Page::of(&folders, &place.path("seeds.html"));
    assert!(said(&page, "paired").contains("one group only") && said(&page, "keys").contains("nothing but seed and name"));
}

#[test]
fn a_cut_last_line_is_no_error_and_garbage_is() {
    let place = Place::new();
    let run = place.train(&place.synthetic(), &[]);
    let path = run.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).expect("metrics");
    let write = |text: &str| std::fs::write(&path, text).expect("can be written");
    let last = text.trim_end().rfind('\n').expect("lines") + 1;
    write(&text[..last]);
    let whole = Page::of(&[&run], &place.path("whole.html")).text;
    write(&text[..last + 20]);
    assert_eq!(Page::of(&[&run], &place.path("cut.html")).text, whole);
    let second = text.find('\n').expect("lines") + 1;
    write(&format!("{}\u{fffd}garbage{}", &text[..second], &text[second..]));
    let out = place.path("none.html");
    report(&[&run], &out).failed(2, &["metrics.jsonl:2: no line of a run's metrics: "]);
    assert!(!out.exists());
    std::fs::remove_file(&path).expect("can be removed");
    std::fs::create_dir(&path).expect("a folder");
    report(&[&run], &out).failed(2, &["cannot read", "metrics.jsonl"]);
}

#[test]
fn what_cannot_be_read_or_written_is_named() {
    let place = Place::new();
    let out = place.path("page.html");
    report(&[&place.path("none")], &out).failed(2, &["cannot open", "none"]);
    report(&[&place.path("")], &out).failed(2, &["is no run folder: it has no config.toml"]);
    let run = place.train(&place.synthetic(), &["train.rounds=2"]);
    report(&[&run, &run], &out).failed(2, &["is given twice"]);
    report(&[&run], &place.path("none/page.html")).failed(2, &["cannot write", "none/page.html", "No such file"]);
    report(&[&run], &place.path("")).failed(2, &["cannot write", "Is a directory"]);
    assert_eq!(outcome(taskloom().arg("report").output()).code, Some(2));
    std::fs::write(run.join("config.toml"), "[run").expect("can be written");
    report(&[&run], &out).failed(2, &["config.toml is not a stored configuration"]);
}

/// Values that look like a run's, and repeat.
fn noise(number: usize) -> f64 {
    ((number * 7919 + 13) % 1009) as f64 / 1009.0 - 0.5
}

/// A run of so many rounds of sixteen tasks, in the folder of one that was trained.
fn long_run(place: &Place, rounds: usize, blocks: usize, sets: &[&str]) -> PathBuf {
    let sizes = ["synthetic.agree=4", "synthetic.oppose=2", "synthetic.alone=4", "train.rounds=2", "eval.every=1"];
    let run = place.train(&place.synthetic(), &[&sizes, sets].concat());
    let lines = metrics(&run);
    let tasks = lines[0]["tasks"].as_array().expect("tasks").clone();
    assert_eq!(tasks.len(), 16);
    let evaluation = lines.iter().find(|line| line["kind"] == "eval").expect("an evaluation");
    let by_task = |seed: usize| -> Value {
        tasks
            .iter()
            .enumerate()
            .map(|(number, task)| (task.as_str().expect("a name").to_owned(), json!(noise(seed + number))))
            .collect()
    };
    let square = |seed: usize| -> Value {
        let row = |i: usize| {
            (0..16).map(move |j| if i == j { 1.0 } else { noise(seed + i.min(j) * 16 + i.max(j)) }).collect::<Vec<f64>>()
        };
        (0..16).map(row).collect()
    };
    let map = |seed: usize| {
        json!({ "norms": vec![1.0; 16], "cosines": square(seed), "mean_cosines": square(seed + 1),
        "similarities": square(seed + 2), "pairs": 60, "tragic_pairs": 3, "share": 0.5, "yielded": vec![noise(seed); 16] })
    };
    let mut text = format!("{}\n", lines[0]);
    for round in 0..rounds {
        if round % 10 == 0 {
            let mut line = map(round);
            let parts: serde_json::Map<String, Value> =
                (0..blocks).map(|block| (format!("layer.{block}"), map(round + block))).collect();
            line["blocks"] = parts.into();
            (line["v"], line["kind"], line["round"], line["tasks"]) = (json!(1), json!("conflict"), json!(round), json!(tasks));
            writeln!(text, "{line}").expect("a string");
        }
        let line = json!({ "v": 1, "kind": "round", "round": round, "epoch": 1.0, "lr": 1e-3, "losses": by_task(round),
            "weights": by_task(round + 5), "norm": 1.0 + noise(round), "clip": 1.0, "ms": 5.0 + noise(round) });
        writeln!(text, "{line}").expect("a string");
        if round % 50 == 49 {
            let mut line = evaluation.clone();
            line["round"] = json!(round + 1);
            writeln!(text, "{line}").expect("a string");
        }
    }
    std::fs::write(run.join("metrics.jsonl"), text).expect("can be written");
    run
}

#[test]
fn a_page_about_a_long_run_is_small() {
    let place = Place::new();
    let run = long_run(&place, 10_000, 14, &[]);
    let page = Page::of(&[&run], &place.path("long.html"));
    assert!(page.text.len() < MOST_BYTES, "{} bytes", page.text.len());
    assert_eq!(page.count("#conflicts option"), 15);
    assert_eq!(page.count("#training figure:first-of-type polyline[class]"), 16);
}

#[test]
fn two_dozen_runs_fit_on_a_page() {
    let place = Place::new();
    let mut runs = Vec::new();
    for method in ["pcgrad", "sum", "mgda", "cagrad"] {
        for seed in 0..6 {
            runs.push(long_run(&place, 400, 0, &[&format!("surgery.method={method}"), &format!("run.seed={seed}")]));
        }
    }
    let folders: Vec<&Path> = runs.iter().map(PathBuf::as_path).collect();
    let page = Page::of(&folders, &place.path("many.html"));
    assert!(page.text.len() < MOST_BYTES, "{} bytes", page.text.len());
    assert_eq!(page.count("#runs tbody tr"), 24);
    assert_eq!(page.count("#scores thead th"), 6);
    assert_eq!(page.count("#curves .charts.small figure"), 16);
}
