//! `taskloom bench`: what parts of the program take, on synthetic data. This file has what the measurements share: how often something
//! is run, what is reported of its times, and how a report is printed.

mod kernels;
mod operations;
mod prepared;
mod schedule;
mod step;
mod surgery;

use std::time::Duration;

use anyhow::Result;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::{Value, json};

use crate::choices::Choice;
use crate::machine::memory::peak_resident;
use crate::output;

#[derive(clap::Subcommand)]
pub enum Bench {
    /// One training round, stage by stage
    Step(step::Args),
    /// Gram matrix, solve and fused update on a synthetic Jacobian, beside the time memory alone takes
    Surgery(surgery::Args),
    /// The CUDA kernels on a card, beside a ceiling measured in the same run
    Kernels(kernels::Args),
    /// The scheduler beside real rounds on the CPU: its own time, shares by weight, and an urgent task beside busy ones
    Schedule(schedule::Args),
}

pub fn run(part: &Bench) -> Result<()> {
    match part {
        Bench::Step(args) => step::run(args),
        Bench::Surgery(args) => surgery::run(args),
        Bench::Kernels(args) => kernels::run(args),
        Bench::Schedule(args) => schedule::run(args),
    }
}

/// Runs that are not counted: the first ones touch memory for the first time.
const WARM_UP: usize = 2;

/// What `runs` runs give after [`WARM_UP`] others; each is told its number, those included.
fn repeat<T>(runs: usize, mut run: impl FnMut(usize) -> Result<T>) -> Result<Vec<T>> {
    (0..WARM_UP).try_for_each(|number| run(number).map(drop))?;
    (WARM_UP..WARM_UP + runs).map(run).collect()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Nearest rank.
fn quantile(values: impl IntoIterator<Item = f64>, share: f64) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(values, 0.5)
}

/// `more` with what every measurement tells: its name, and `times` in milliseconds.
fn report(name: &str, times: &[f64], mut more: Value) -> Value {
    let [ms, p10, p90] = [0.5, 0.1, 0.9].map(|share| quantile(times.iter().copied(), share));
    let common = [
        ("name", json!(name)),
        ("ms", json!(ms)),
        ("ms_p10", json!(p10)),
        ("ms_p90", json!(p90)),
        ("runs", json!(times.len())),
        ("peak_bytes", json!(peak_resident())),
    ];
    for (key, value) in common {
        more[key] = value;
    }
    more
}

/// A report as a line of JSON, or as text.
fn print(json: bool, report: &Value, text: impl FnOnce(&Value) -> String) -> Result<()> {
    if json { output::line(report) } else { output::line(text(report)) }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

/// One of an enum's names.
fn choice<T: Choice + Send + Sync>() -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(T::NAMES.iter().copied()).map(|name| T::named(&name).expect("one of the names"))
}

/// A whole number as it is typed.
fn count<const LEAST: usize, const MOST: usize>(text: &str) -> Result<usize, String> {
    let found = text.parse().ok().filter(|count| (LEAST..=MOST).contains(count));
    found.ok_or_else(|| format!("expected a whole number from {LEAST} to {MOST}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_runs_are_not_counted() {
        assert_eq!(repeat(3, Ok).unwrap(), [2, 3, 4]);
    }

    #[test]
    fn times_are_reported_by_nearest_rank() {
        let times: Vec<f64> = (1..=11).rev().map(f64::from).collect();
        let found = report("x", &times, json!({ "tasks": 3 }));
        assert_eq!([&found["ms"], &found["ms_p10"], &found["ms_p90"]].map(number), [6.0, 2.0, 10.0]);
        assert_eq!((found["runs"].as_u64(), found["tasks"].as_u64()), (Some(11), Some(3)));
    }

    #[test]
    fn counts_have_ranges() {
        assert_eq!([count::<1, 8>("1"), count::<1, 8>("8")], [Ok(1), Ok(8)]);
        for bad in ["0", "9", "-1", "1.5", "", "99999999999999999999"] {
            assert_eq!(count::<1, 8>(bad).unwrap_err(), "expected a whole number from 1 to 8", "{bad}");
        }
    }
}
