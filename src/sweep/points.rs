//! The points of a sweep: which values the varied keys take together.

use serde_json::Value;

use crate::config::sweep::{Parameter, Search, Sweep};
use crate::random::{Random, finalize};

/// One choice of values.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Its place among the points, from 0.
    pub number: usize,
    /// Key and value, by key.
    pub values: Vec<(String, Value)>,
}

impl Point {
    /// As `--set` takes them.
    pub fn sets(&self) -> Vec<String> {
        self.values.iter().map(|(key, value)| format!("{key}={value}")).collect()
    }
}

/// All points, in order. The same sweep has the same points; a random one with more of them begins with those it had.
pub fn points(sweep: &Sweep) -> Vec<Point> {
    let values = match sweep.search {
        Search::Grid => grid(sweep),
        Search::Random => (0..sweep.points.unwrap_or(0)).map(|number| drawn(sweep, number as u64)).collect(),
    };
    values.into_iter().enumerate().map(|(number, values)| Point { number, values }).collect()
}

/// Every combination; the last key changes fastest.
fn grid(sweep: &Sweep) -> Vec<Vec<(String, Value)>> {
    let with = |before: Vec<Vec<(String, Value)>>, (key, parameter): (&String, &Parameter)| {
        let extended = |before: &Vec<(String, Value)>| -> Vec<Vec<(String, Value)>> {
            let one = |value: &Value| [before.clone(), vec![(key.clone(), value.clone())]].concat();
            parameter.values.iter().map(one).collect()
        };
        before.iter().flat_map(extended).collect()
    };
    sweep.parameters.iter().fold(vec![Vec::new()], with)
}

fn drawn(sweep: &Sweep, number: u64) -> Vec<(String, Value)> {
    let value = |(key, parameter): (&String, &Parameter)| (key.clone(), draw(parameter, &mut generator(sweep.seed, key, number)));
    sweep.parameters.iter().map(value).collect()
}

/// Each value has a generator of its own, so that another key beside it changes nothing.
fn generator(seed: u64, key: &str, number: u64) -> Random {
    let name = blake3::hash(key.as_bytes());
    let name = name.as_bytes().iter().take(8).fold(0, |sum: u64, &byte| sum << 8 | u64::from(byte));
    Random(finalize(finalize(seed ^ name).wrapping_add(number)))
}

fn draw(parameter: &Parameter, random: &mut Random) -> Value {
    match (&parameter.uniform[..], &parameter.log_uniform[..], &parameter.int[..]) {
        (&[low, high], _, _) => Value::from(short(low + (high - low) * random.uniform(), low, high)),
        (_, &[low, high], _) => {
            let exponent = low.ln() + (high.ln() - low.ln()) * random.uniform();
            Value::from(short(exponent.exp(), low, high))
        }
        (_, _, &[low, high]) => Value::from(low + random.below((high - low) as usize + 1) as i64),
        _ => parameter.values[random.below(parameter.values.len())].clone(),
    }
}

/// Five digits are enough, and can be read.
fn short(value: f64, low: f64, high: f64) -> f64 {
    format!("{value:.4e}").parse().unwrap_or(value).clamp(low, high)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::sweep::load_sweep;

    fn load(text: &str) -> Vec<Point> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sweep.toml");
        std::fs::write(&path, format!("config = \"run.toml\"\n{text}")).unwrap();
        points(&load_sweep(&path, &[]).unwrap().sweep)
    }

    fn sets(points: &[Point]) -> Vec<String> {
        points.iter().map(|point| point.sets().join(" ")).collect()
    }

    #[test]
    fn a_grid_has_every_combination_in_order() {
        let points = load("[parameters]\nb.x = [1, 2.5]\na = [\"u\", \"v\"]\n");
        assert_eq!(sets(&points), ["a=\"u\" b.x=1", "a=\"u\" b.x=2.5", "a=\"v\" b.x=1", "a=\"v\" b.x=2.5"]);
        assert_eq!(load("seeds = [1, 2]\n").len(), 1, "one point, that of the configuration itself");
    }

    const RANDOM: &str =
        "search = \"random\"\n[parameters]\nlr = { log_uniform = [1e-4, 1e-1] }\nn = { int = [3, 5] }\nm = [\"x\", \"y\"]\n";

    #[test]
    fn random_points_are_those_of_their_seed() {
        let some = load(&format!("points = 20\n{RANDOM}"));
        assert_eq!(some, load(&format!("points = 20\n{RANDOM}")));
        assert_ne!(some, load(&format!("points = 20\nseed = 43\n{RANDOM}")));
        assert_eq!(some[..], load(&format!("points = 40\n{RANDOM}"))[..20], "more points change none");
        let more = load(&format!("points = 20\n{RANDOM}k = {{ uniform = [0, 1] }}\n"));
        let without = |point: &Point| point.values.iter().filter(|(key, _)| key != "k").cloned().collect::<Vec<_>>();
        assert!(some.iter().zip(&more).all(|(some, more)| some.values == without(more)), "another key changes no other");
    }

    #[test]
    fn random_values_lie_in_their_ranges() {
        let points = load(&format!("points = 400\n{RANDOM}"));
        let values = |point: &Point, key: &str| point.values.iter().find(|(own, _)| own == key).unwrap().1.clone();
        let of = |key: &'static str| points.iter().map(move |point| values(point, key));
        let lr: Vec<f64> = of("lr").map(|value| value.as_f64().unwrap()).collect();
        assert!(lr.iter().all(|lr| (1e-4..=1e-1).contains(lr)));
        // Uniform in the logarithm: a third of the points in each decade.
        let below = lr.iter().filter(|&&lr| lr < 1e-3).count();
        assert!((100..170).contains(&below), "{below}");
        for n in 3..=5 {
            assert!(of("n").filter(|value| *value == n).count() > 90);
        }
        assert!(of("m").filter(|value| value == "x").count() > 150);
    }
}
