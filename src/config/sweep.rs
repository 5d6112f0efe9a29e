//! The file `taskloom sweep` reads: which runs to make of one configuration.
//!
//! The same machinery as for a run's configuration: every error at once, each at its line and column.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::diagnostic::{Diagnostic, Errors};
use super::keys::kind::PathFrom;
use super::keys::{Bounds, Kind};
use super::objective::{FORMS, Objective};
use super::paths::under_home;
use super::schema::ROOT;
use super::table::table;
use super::tree::{Node, Origin, Table, Value, join_key};
use super::{defaults, load, shape, source};
use crate::choices::choices;

/// Most points of a sweep.
pub const MOST_POINTS: usize = 100_000;

const POINTS: i64 = MOST_POINTS as i64;
const LARGE: i64 = 1_000_000_000;
const ANY: Bounds = Bounds { low: -LARGE as f64, low_included: true, high: LARGE as f64, high_included: true };

table! {
    /// Runs that differ in some keys.
    pub struct Sweep = SWEEP {
        /// The configuration that the runs share, named relative to this file.
        config: PathBuf = required in Kind::Path(PathFrom::SettingFile);
        /// Folder of the sweep, relative to the current directory; `sweeps/` and the name of this file unless set.
        out: Option<PathBuf> = none in Kind::Path(PathFrom::CurrentDir);
        /// Every combination of `values`, or points drawn at random.
        search: Search = "grid";
        /// How many points are drawn; needed by `search = "random"`.
        points: Option<usize> = none in 1..=POINTS;
        /// Of the random points. A point stays the same whatever the number of them.
        seed: u64 = 42 in 0..=i64::MAX;
        /// Each point is run with each of these as `run.seed`; empty means the configuration's own.
        seeds: Vec<u64> = [] in Kind::list(0..=i64::MAX);
        /// What points are ranked by, in the forms of `best.metric`, which it replaces; unless set, the configuration's own.
        objective: Option<String> = none;
        /// Keys of all runs, as `KEY=VALUE`.
        set: Vec<String> = [];
        /// Runs at a time; at most one a core, and as many as `memory` allows.
        parallel: usize = 1 in 1..=4096;
        /// What the runs at work may take together on the CPU, as `plan` counts it; 0 means what is available now.
        memory: u64 = 0 in Kind::Bytes;
        halving: Option<Halving> = none;
        /// What is varied: keys of a run's configuration.
        parameters: BTreeMap<String, Parameter> = {};
    }
}

table! {
    /// Stops the worse points early.
    pub struct Halving = HALVING {
        /// One point of so many goes on from each rung.
        eta: usize = 3 in 2..=1000;
        /// Rounds to the first rung; each later one is `eta` times as far.
        min_rounds: u64 = required in 1..=u32::MAX as i64;
    }
}

table! {
    /// One varied key: exactly one of these. `KEY = [..]` is short for `KEY = { values = [..] }`.
    pub struct Parameter = PARAMETER {
        /// One of these.
        values: Vec<serde_json::Value> = [] in Kind::list(Kind::Plain);
        /// A number between two, all equally likely.
        uniform: Vec<f64> = [] in Kind::list(ANY);
        /// A number between two above zero, whose logarithm is uniform.
        log_uniform: Vec<f64> = [] in Kind::list(Bounds::POSITIVE);
        /// A whole number from one to another, both included.
        int: Vec<i64> = [] in Kind::list(-LARGE..=LARGE);
    }
}

choices! {
    pub enum Search { Grid = "grid", Random = "random" }
}

/// A sweep without errors, and where its parts were written.
#[derive(Debug)]
pub struct LoadedSweep {
    pub sweep: Sweep,
    tree: Node,
}

/// Reads a sweep, then `sets` (the texts given to `--set`).
pub fn load_sweep(path: &Path, sets: &[String]) -> Result<LoadedSweep, Errors> {
    let source::Gathered { mut tree, mut errors, incomplete, .. } = source::gather(path, sets);
    if incomplete {
        return Err(Errors::new(errors));
    }
    if let Some(parameters) = tree.get_mut("parameters").and_then(Node::table_mut) {
        *parameters = one_level(std::mem::take(parameters));
    }
    errors.extend(shape::check(&mut tree, &SWEEP));
    let place = tree.place().clone();
    defaults::fill("", &mut tree, &SWEEP, &place, &mut errors);
    place_config(&mut tree, path);
    if !errors.is_empty() {
        return Err(Errors::new(errors));
    }
    let sweep: Sweep = tree.to_toml().try_into().map_err(|error: toml::de::Error| {
        // A key takes what its field does not.
        Errors::new(vec![Diagnostic::new(place.clone(), "", format!("a bug in taskloom: {}", error.message()))])
    })?;
    let loaded = LoadedSweep { sweep, tree };
    let errors = loaded.check();
    if errors.is_empty() { Ok(loaded) } else { Err(Errors::new(errors)) }
}

/// `surgery.method = [..]` under the name `surgery.method`, as one table `{ values = [..] }`.
fn one_level(table: Table) -> Table {
    let mut found = Table::new();
    for (name, node) in table {
        flatten(name.clone(), node, inside(Some(Kind::Section(&ROOT)), &name), &mut found);
    }
    found
}

/// `kind` is that of the run's key `path`, if there is such a key.
fn flatten(path: String, node: Node, kind: Option<Kind>, found: &mut Table) {
    match node.value {
        Value::Table(inner) if is_above(kind.as_ref(), &inner) => {
            for (name, node) in inner {
                flatten(join_key(&path, &name), node, inside(kind.clone(), &name), found);
            }
        }
        Value::List(_) => {
            let table = Table::from([("values".to_owned(), node.clone())]);
            found.insert(path, Node::new(Value::Table(table), node.at, node.key_at));
        }
        _ => drop(found.insert(path, node)),
    }
}

/// Whether a table holds keys of a run's configuration, and not what one of them varies over.
fn is_above(kind: Option<&Kind>, table: &Table) -> bool {
    let varies = || table.is_empty() || table.keys().any(|key| PARAMETER.find(key).is_some());
    kind.map_or_else(|| !varies(), |kind| kind.section().is_some())
}

/// The kind of a key in a table of this kind. A quoted name may be several, as in `"optimizer.lr"`.
fn inside(kind: Option<Kind>, name: &str) -> Option<Kind> {
    let step = |kind: Option<Kind>, name: &str| match kind? {
        Kind::Section(section) => section.find(name).map(|key| key.kind.clone()),
        Kind::Sections(section) => Some(Kind::Section(section)),
        _ => None,
    };
    step(kind.clone(), name).or_else(|| name.split('.').fold(kind, step))
}

/// Relative to the file that names it.
fn place_config(tree: &mut Node, loaded: &Path) {
    let Some(node) = tree.get_mut("config").filter(|node| !node.flawed) else { return };
    let folder = match &node.at {
        Origin::File { source, .. } => source.path.parent(),
        Origin::Set(_) => None,
        Origin::Default => loaded.parent(),
    };
    if let Value::Text(text) = &mut node.value {
        *text = folder.unwrap_or(Path::new("")).join(under_home(text)).to_string_lossy().into_owned();
    }
}

impl LoadedSweep {
    fn at(&self, key: &str) -> Origin {
        self.tree.get(key).unwrap_or(&self.tree).place().clone()
    }

    fn error(&self, key: &str, message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(self.at(key), key, message)
    }

    fn check(&self) -> Vec<Diagnostic> {
        let sweep = &self.sweep;
        let mut errors = Vec::new();
        if sweep.parameters.is_empty() && sweep.seeds.is_empty() {
            let help = "add keys to [parameters], as in optimizer.lr = [1e-4, 1e-3], or seeds = [1, 2, 3]";
            errors.push(self.error("parameters", "there is nothing to vary").help(help));
        }
        match (sweep.search, sweep.points) {
            (Search::Grid, Some(_)) => {
                let help = "it acts with search = \"random\"; a grid has every combination";
                errors.push(self.error("points", "does nothing while `search` is \"grid\"").help(help));
            }
            (Search::Random, None) => errors.push(self.error("points", "is required by search = \"random\": how many are drawn")),
            _ => {}
        }
        for (name, parameter) in &sweep.parameters {
            let path = parameter_path(name);
            errors.extend(parameter.problem(sweep.search).map(|problem| self.error(&path, problem)));
            if name == "run.seed" {
                errors.push(self.error(&path, "is what `seeds` is for: seeds = [1, 2, 3]"));
            }
        }
        let combinations = sweep.parameters.values().map(|parameter| parameter.values.len() as f64).product::<f64>();
        if sweep.search == Search::Grid && combinations > MOST_POINTS as f64 {
            let message = format!("a grid of {combinations:.0} points; at most {MOST_POINTS}");
            errors.push(self.error("parameters", message).help("draw some of them: search = \"random\" and points = 50"));
        }
        if let Some(objective) = sweep.objective.as_ref().filter(|objective| Objective::parse(objective).is_none()) {
            errors.push(self.error("objective", format!("\"{objective}\" is not one of {FORMS}")));
        }
        errors
    }

    /// The errors of the shared configuration under each of these lists of `--set`, said once: those about a varied key at its
    /// place here.
    pub fn check_runs<'a>(&self, runs: impl Iterator<Item = &'a [String]>) -> Result<(), Errors> {
        let mut errors = Vec::new();
        for sets in runs {
            let Err(found) = load(&self.sweep.config, sets) else { continue };
            errors.extend(found.diagnostics().iter().map(|error| self.placed(error)));
        }
        if errors.is_empty() { Ok(()) } else { Err(Errors::new(errors)) }
    }

    fn placed(&self, error: &Diagnostic) -> Diagnostic {
        let Origin::Set(text) = &error.at else { return error.clone() };
        let key = text.split('=').next().unwrap_or_default();
        let list = self.tree.get("set").map(|node| &node.value);
        let of_all = match list {
            Some(Value::List(items)) => items.iter().find(|item| item.text() == Some(text)),
            _ => None,
        };
        let varied = self.tree.get("parameters").and_then(|node| node.table()?.get(key));
        let at = of_all.or(varied).map_or_else(|| self.tree.place(), Node::place).clone();
        let message = if varied.is_some() { format!("{} (with {text})", error.message) } else { error.message.clone() };
        Diagnostic { at, message, ..error.clone() }
    }
}

fn parameter_path(name: &str) -> String {
    format!("parameters.{}", super::tree::quote_key(name))
}

impl Parameter {
    /// What is wrong with it, if anything is.
    fn problem(&self, search: Search) -> Option<String> {
        let ranges = [self.uniform.len(), self.log_uniform.len(), self.int.len()];
        let given = ranges.iter().chain([&self.values.len()]).filter(|&&len| len > 0).count();
        if given != 1 {
            let found = if given == 0 { "none" } else { "several" };
            return Some(format!("needs exactly one of `values`, `uniform`, `log_uniform` and `int`, found {found}"));
        }
        if self.values.is_empty() && search == Search::Grid {
            return Some("a grid needs `values`; ranges are for search = \"random\"".to_owned());
        }
        if let Some(len) = ranges.into_iter().find(|&len| len > 0 && len != 2) {
            return Some(format!("a range has two ends, found {len}"));
        }
        let falls = |ends: &[f64]| ends.len() == 2 && ends[0] >= ends[1];
        let falls = falls(&self.uniform) || falls(&self.log_uniform) || self.int.len() == 2 && self.int[0] >= self.int[1];
        falls.then(|| "the second end of a range has to be above the first".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Folder, locations};
    use super::*;

    const RUN: &str = "[encoder]\nkind = \"linear\"\n[train]\nrounds = 9\n[synthetic]\n";

    fn load_text(text: &str) -> Result<LoadedSweep, Errors> {
        let folder = Folder::new(&[("main.toml", text), ("run.toml", RUN)]);
        load_sweep(&folder.path("main.toml"), &[])
    }

    #[test]
    fn keys_may_be_dotted_quoted_or_tables() {
        let text = "config = \"run.toml\"\nsearch = \"random\"\npoints = 2\n[parameters]\nsurgery.method = [\"sum\", \"mean\"]\n\
                    \"optimizer.lr\" = { log_uniform = [1e-4, 1] }\n[parameters.train.micro_batch]\nint = [1, 4]\n";
        let loaded = load_text(text).unwrap();
        let parameters = &loaded.sweep.parameters;
        assert_eq!(parameters.keys().collect::<Vec<_>>(), ["optimizer.lr", "surgery.method", "train.micro_batch"]);
        assert_eq!(parameters["surgery.method"].values, ["sum", "mean"]);
        assert_eq!(parameters["optimizer.lr"].log_uniform, [1e-4, 1.0]);
        assert_eq!(parameters["train.micro_batch"].int, [1, 4]);
        assert!(loaded.sweep.config.ends_with("run.toml") && loaded.sweep.config.is_absolute());
    }

    #[test]
    fn a_key_that_looks_like_a_range_is_a_key() {
        let text = "config = \"run.toml\"\n[parameters]\nencoder.init = [0.01, 0.02]\ntasks.a.weight = [1, 2]\n\
                    [parameters.surgery]\nc = [0.1, 0.5]\nmethod = { values = [\"cagrad\"] }\n";
        let loaded = load_text(text).unwrap();
        let keys: Vec<&str> = loaded.sweep.parameters.keys().map(String::as_str).collect();
        assert_eq!(keys, ["encoder.init", "surgery.c", "surgery.method", "tasks.a.weight"]);
        let errors = load_text("config = \"run.toml\"\n[parameters]\noptimizer.lr = {}\n").unwrap_err();
        assert!(errors.to_string().contains("needs exactly one of"), "{errors}");
    }

    #[test]
    fn every_error_is_found_at_its_place() {
        let text = "config = \"run.toml\"\npoints = 3\nparalel = 2\n[parameters]\noptimizer.lr = { log_uniforn = [1, 2] }\n";
        let errors = load_text(text).unwrap_err();
        assert_eq!(locations(&errors), [(3, 1, "paralel"), (5, 18, "parameters.\"optimizer.lr\".log_uniforn")], "{errors}");
        assert!(errors.to_string().contains("did you mean `log_uniform`?"), "{errors}");
    }

    #[test]
    fn what_keys_say_together_is_checked() {
        for (text, key, message) in [
            ("points = 3\nseeds = [1]\n", "points", "does nothing while `search` is \"grid\""),
            ("search = \"random\"\nseeds = [1]\n", "points", "is required by search = \"random\""),
            ("", "parameters", "there is nothing to vary"),
            ("objective = \"best\"\nseeds = [1]\n", "objective", "\"best\" is not one of "),
            ("[parameters]\na.b = { int = [1, 2] }\n", "parameters.\"a.b\"", "a grid needs `values`"),
            ("[parameters]\na.b = []\n", "parameters.\"a.b\"", "needs exactly one of"),
            ("[parameters]\nrun.seed = [1, 2]\n", "parameters.\"run.seed\"", "is what `seeds` is for"),
            ("search = \"random\"\npoints = 1\n[parameters]\na = { int = [2, 1] }\n", "parameters.a", "the second end"),
            ("search = \"random\"\npoints = 1\n[parameters]\na = { uniform = [2] }\n", "parameters.a", "two ends, found 1"),
        ] {
            let errors = load_text(&format!("config = \"run.toml\"\n{text}")).unwrap_err();
            let found = errors.diagnostics().iter().map(|error| (error.key.as_str(), error.message.starts_with(message)));
            assert!(found.clone().eq([(key, true)]) || errors.to_string().contains(message), "{errors}");
        }
    }

    #[test]
    fn errors_of_runs_are_said_at_the_varied_key() {
        let text = "config = \"run.toml\"\nset = [\"trian.rounds=3\"]\n[parameters]\noptimizer.lr = [1, \"fast\"]\n";
        let folder = Folder::new(&[("main.toml", text), ("run.toml", RUN)]);
        let loaded = load_sweep(&folder.path("main.toml"), &[]).unwrap();
        let runs = [["trian.rounds=3", "optimizer.lr=1"], ["trian.rounds=3", "optimizer.lr=\"fast\""]];
        let runs: Vec<Vec<String>> = runs.iter().map(|sets| sets.iter().map(|set| set.to_string()).collect()).collect();
        let errors = loaded.check_runs(runs.iter().map(Vec::as_slice)).unwrap_err();
        assert_eq!(locations(&errors), [(2, 8, "trian"), (4, 11, "optimizer.lr")], "{errors}");
        assert!(errors.to_string().contains("(with optimizer.lr=\"fast\")"), "{errors}");
    }
}
