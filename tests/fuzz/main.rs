//! Broken, hostile and odd inputs for everything that reads what others wrote: each must be taken or refused with a message,
//! without a panic, an abort, more than ten seconds or more than two GiB.
//!
//! Input N of a target is made from good documents by a generator that starts at N, so a target and a number say it all.
//! `cargo test --test fuzz` meets a fixed set; `scripts/fuzz.sh MINUTES` goes on with new numbers.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test tells what it found")]

mod batch;
mod child;
#[path = "../common/mod.rs"]
mod common;
mod mutate;
mod random;
mod targets;
mod tree;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use batch::{Limits, Tally};
use targets::TARGETS;

/// Inputs of one process: its start and its seeds cost as much as some dozens of them.
const BATCH: u64 = 250;
/// Processes at once.
const WORKERS: usize = 2;
/// A target with so many different findings is given up: each further one may cost its ten seconds.
const MOST_FINDINGS: usize = 20;

#[test]
#[ignore = "what the other tests start, under limits"]
fn child() {
    let Ok(job) = std::env::var(child::JOB) else { return };
    // As the program's main thread.
    let thread = std::thread::Builder::new().stack_size(8 << 20).spawn(move || child::run(&job));
    thread.expect("a thread").join().expect("the thread ends well");
}

#[test]
fn no_input_does_harm() {
    let setting = |name: &str| std::env::var(name).ok();
    let number =
        |name: &str| setting(name).map(|text| text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text} is no number")));
    let only = setting("FUZZ_TARGETS");
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    let wanted: Vec<&str> = match &only {
        Some(only) => {
            only.split(',').inspect(|name| assert!(names.contains(name), "there is no target {name}: {names:?}")).collect()
        }
        None => names,
    };
    let first = number("FUZZ_FIRST").unwrap_or(0);
    let inputs = number("FUZZ_INPUTS");
    let minutes = number("FUZZ_MINUTES");
    let started = Instant::now();
    let ends = minutes.map(|minutes| started + Duration::from_secs(60 * minutes));
    // In rounds over all targets, so that time spent is spent on all of them.
    let jobs = (0..).flat_map(|round| TARGETS.iter().map(move |target| (round, target)));
    let jobs = jobs.filter(|(_, target)| wanted.contains(&target.name));
    let jobs = jobs.map(|(round, target)| {
        let share = |inputs: u64| inputs.div_ceil(target.cost);
        let size = if ends.is_some() { share(BATCH) } else { share(inputs.unwrap_or(targets::BOUNDED)) };
        (round, target.name, first + round * size, size)
    });
    // Without a time to fill, one round.
    let jobs = jobs.take_while(|(round, ..)| ends.map_or(*round == 0, |ends| Instant::now() < ends));
    let jobs = jobs.flat_map(|(_, name, first, count)| {
        (0..count.div_ceil(BATCH)).map(move |part| (name, first + part * BATCH, BATCH.min(count - part * BATCH)))
    });
    let tallies = meet_all(jobs, Limits::default());
    report(&tallies, started.elapsed());
    let findings: usize = tallies.values().map(|tally| tally.findings.len()).sum();
    assert_eq!(findings, 0, "inputs did harm; they lie under target/fuzz");
}

/// Every kind of harm is seen, named and put down to its input, and the inputs behind it are met.
#[test]
fn harm_of_every_kind_is_seen() {
    let limits = Limits { time: Duration::from_secs(2), ..Limits::default() };
    let tally = batch::run(targets::PLANTED.name, 0, 6, limits);
    let seen: Vec<(u64, &str)> = tally.findings.values().map(|finding| (finding.number, finding.what.as_str())).collect();
    let expected = [
        (1, "panic at tests/fuzz/targets/"),
        (2, "signal 6"),
        (3, "memory allocation of"),
        (4, "no end after 2 s"),
        (5, "panic at "),
    ];
    assert_eq!(seen.len(), expected.len(), "{seen:?}");
    for (number, part) in expected {
        assert!(seen.iter().any(|(at, what)| *at == number && what.contains(part)), "{number}, {part}: {seen:?}");
    }
    assert_eq!((tally.inputs, tally.accepted), (6, 1));
}

/// By target.
fn meet_all(jobs: impl Iterator<Item = (&'static str, u64, u64)> + Send, limits: Limits) -> BTreeMap<&'static str, Tally> {
    let jobs = Mutex::new(jobs);
    let tallies = Mutex::new(BTreeMap::<&'static str, Tally>::new());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let Some((name, first, count)) = jobs.lock().expect("nobody panics").next() else { return };
                    let known: Vec<_> = {
                        let tallies = tallies.lock().expect("nobody panics");
                        tallies.get(name).map(|tally| tally.findings.keys().cloned().collect()).unwrap_or_default()
                    };
                    if known.len() >= MOST_FINDINGS {
                        continue;
                    }
                    let mut tally = batch::run(name, first, count, limits);
                    tally.findings.retain(|key, finding| {
                        if known.contains(key) {
                            return true;
                        }
                        let folder = batch::repeat(finding, limits);
                        println!("{name} {}: {}\n    {}", finding.number, finding.what, folder.display());
                        // What ends when it is met again was held up by others.
                        finding.alone || !finding.what.starts_with(batch::NO_END)
                    });
                    tallies.lock().expect("nobody panics").entry(name).or_default().add(tally);
                }
            });
        }
    });
    tallies.into_inner().expect("nobody panics")
}

fn report(tallies: &BTreeMap<&str, Tally>, time: Duration) {
    println!("\n| target | inputs | taken | slowest (s) | peak (MiB) | findings |\n|---|---|---|---|---|---|");
    let mut all = Tally::default();
    for (name, tally) in tallies {
        row(name, tally);
        all.add(tally.clone());
    }
    row("all", &all);
    println!("\nin {:.0} s", time.as_secs_f64());
    for finding in all.findings.values() {
        let alone = if finding.alone { "" } else { " (not when met alone)" };
        println!("{} {} ({} times){alone}: {}", finding.target, finding.number, finding.times, finding.what);
    }
}

fn row(name: &str, tally: &Tally) {
    let taken = 100.0 * tally.accepted as f64 / tally.inputs.max(1) as f64;
    let (slowest, peak) = (tally.slowest.as_secs_f64(), tally.peak_bytes >> 20);
    let (inputs, findings) = (tally.inputs, tally.findings.len());
    println!("| {name} | {inputs} | {taken:.0} % | {slowest:.2} (input {}) | {peak} | {findings} |", tally.slowest_input);
}
