//! The program itself: words nobody foresaw, and the files of the other targets by way of its commands. It ends with one of its
//! own exit codes, and with one message where it refuses.

use std::io::{Seek, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use super::{Input, checkpoint, config, data, folder, surgery, workload};
use crate::common::taskloom;
use crate::mutate;
use crate::random::Random;

pub fn make(random: &mut Random) -> Input {
    let words = |words: &[&str]| -> Vec<String> { words.iter().map(|word| (*word).to_owned()).collect() };
    let mut input = match random.below(10) {
        0 => Input { words: words(&["check", "config.toml", "--print"]), ..config::make(random) },
        1 => Input { words: words(&["plan", "config.toml"]), ..config::make(random) },
        2 => {
            let make = [data::jsonl, data::tsv, data::csv, data::parquet][random.below(4)];
            Input { words: words(&["train", "config.toml", "--run-dir", "run"]), ..make(random) }
        }
        3 => Input { words: words(&["train", "config.toml", "--run-dir", "run"]), ..folder::make(random) },
        4 => Input { words: words(&["simulate", "workload.toml"]), ..workload::make(random) },
        5 => Input { words: words(&["surgery"]), ..surgery::request(random) },
        6 => Input { words: words(&["resume", "run"]), ..checkpoint::make(random) },
        7 => Input { words: words(&["eval", "run", "--json"]), ..checkpoint::make(random) },
        8 => Input { words: words(&["export", "run", "--out", "out"]), ..checkpoint::make(random) },
        _ => {
            let mut input = Input { words: words(&["predict", "run", "--task", "topic"]), ..checkpoint::make(random) };
            let mut lines = b"good film\n\na\tb\tc\n[1, 2, 3]\n[1e39, 0, 0]\n".to_vec();
            mutate::bytes(random, &mut lines);
            input.files.push(("request.json".into(), lines));
            input
        }
    };
    if random.once_in(4) {
        odd_word(random, &mut input.words);
    }
    input
}

/// Another word among those typed. None that names a place outside the folder: the program would write there.
fn odd_word(random: &mut Random, words: &mut Vec<String>) {
    let odd = random.pick(&[
        "",
        "-",
        "--",
        "--json",
        "--set",
        "x=1",
        "run.seed=",
        "--text",
        "é",
        "--task",
        "--help",
        "NaN",
        "-1",
        "config.toml",
        ".",
    ]);
    let at = 1 + random.below(words.len());
    match random.below(3) {
        0 if at < words.len() => words[at] = odd.to_owned(),
        1 if at < words.len() => drop(words.remove(at)),
        _ => words.insert(at, odd.to_owned()),
    }
}

pub fn run(place: &Path, words: &[String]) -> Result<()> {
    let mut stdin = tempfile::tempfile()?;
    stdin.write_all(&std::fs::read(place.join("request.json")).unwrap_or_default())?;
    stdin.rewind()?;
    let mut command: Command = taskloom();
    command.args(words).current_dir(place).stdin(Stdio::from(stdin)).env("XDG_CACHE_HOME", place.join("cache"));
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last: String = said.lines().rev().take(3).collect::<Vec<_>>().join(" | ").chars().take(400).collect();
    match output.status.code() {
        Some(0) => Ok(()),
        Some(code @ (2 | 3)) => {
            assert!(!said.contains("panicked"), "{words:?}: {last}");
            assert!(said.contains("error"), "{words:?} ended with {code} and without a message: {last}");
            bail!("{last}")
        }
        _ => panic!("{} ended with {}: {last}", words.first().map_or("", String::as_str), output.status),
    }
}
