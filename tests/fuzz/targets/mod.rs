//! What the inputs are fed to. One file per kind: how its inputs are made, and what reads them.

mod checkpoint;
mod command;
mod config;
mod data;
mod folder;
mod pack;
mod surgery;
mod tables;
mod tokenizer;
mod workload;

use std::path::Path;

use anyhow::Result;

use crate::random::Random;

/// Inputs per target of cost 1 where no number is asked for.
pub const BOUNDED: u64 = 1500;

/// Files, and what else is handed over beside them.
#[derive(Default)]
pub struct Input {
    pub files: Vec<(String, Vec<u8>)>,
    pub words: Vec<String>,
}

pub struct Target {
    pub name: &'static str,
    /// Its inputs are so many times as dear as others', so that it gets the fewer.
    pub cost: u64,
    pub make: fn(&mut Random) -> Input,
    /// Reads the files, which lie in a folder; an error is a refusal.
    pub run: fn(&Path, &[String]) -> Result<()>,
}

pub const TARGETS: &[Target] = &[
    Target { name: "config", cost: 1, make: config::make, run: config::run },
    Target { name: "workload", cost: 2, make: workload::make, run: workload::run },
    Target { name: "jsonl", cost: 1, make: data::jsonl, run: data::run },
    Target { name: "tsv", cost: 1, make: data::tsv, run: data::run },
    Target { name: "csv", cost: 1, make: data::csv, run: data::run },
    Target { name: "parquet", cost: 1, make: data::parquet, run: data::run },
    Target { name: "tokenizer-json", cost: 1, make: tokenizer::json, run: tokenizer::run },
    Target { name: "vocab", cost: 1, make: tokenizer::vocab, run: tokenizer::run },
    Target { name: "hugging-face", cost: 1, make: folder::make, run: folder::run },
    Target { name: "checkpoint", cost: 1, make: checkpoint::make, run: checkpoint::run },
    Target { name: "surgery", cost: 1, make: surgery::request, run: surgery::answer },
    Target { name: "surgery-file", cost: 2, make: surgery::file, run: surgery::solve },
    Target { name: "command", cost: 10, make: command::make, run: command::run },
];

/// Does harm of every kind, for the test of those who watch.
pub const PLANTED: &Target = &Target { name: "planted", cost: 1, make: |_| Input::default(), run: planted };

pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().chain([PLANTED]).find(|target| target.name == name)
}

fn planted(_: &Path, _: &[String]) -> Result<()> {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let job = std::env::var(crate::child::JOB)?;
    let first: u64 = job.split(' ').nth(1).unwrap_or_default().parse()?;
    match first + NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
        1 => panic!("planted"),
        2 => std::process::abort(),
        3 => drop(std::hint::black_box(vec![0u8; 3 << 30])),
        4 => loop {
            std::hint::spin_loop();
        },
        // On a thread whose end nobody looks at.
        5 => drop(std::thread::spawn(|| panic!("planted")).join()),
        _ => {}
    }
    Ok(())
}
