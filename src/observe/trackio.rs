//! A run in Trackio's own file of a project, by `observe.trackio`: the scalars that TensorBoard gets, and the configuration. Trackio's
//! dashboard and its commands find it there.
//!
//! What the file lacks can be made again of metrics.jsonl, so that an error stops a run only where it begins.

mod place;
mod tables;
mod time;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rusqlite::Connection;
use serde_json::{Map, Value};

use self::time::iso;
use super::scalars::scalars;

/// Between two writes; a killed process loses no more.
const PAUSE: Duration = Duration::from_secs(1);
/// The same while the file cannot be written.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Rows that wait for the file to be writable, at most.
const MOST_WAITING: usize = 100_000;
/// Rows that wait while a run's past is written.
const PAST: usize = 1000;

/// A project's file.
pub struct Project {
    database: Connection,
    path: PathBuf,
}

/// One run in it.
pub struct Trackio {
    database: Connection,
    path: PathBuf,
    run: RunRow,
    waiting: Vec<MetricsRow>,
    /// The run's past is written, in one transaction.
    is_rewriting: bool,
    tried: Instant,
    pause: Duration,
    has_failed: bool,
    has_given_up: bool,
}

/// How the file names a run, and what it says of it once.
pub struct RunRow {
    pub id: String,
    pub name: String,
    /// By key.
    pub config: Map<String, Value>,
}

/// A line's scalars.
struct MetricsRow {
    timestamp: String,
    step: i64,
    /// A JSON object, by tag.
    metrics: String,
}

impl Project {
    /// Opens the file, or makes it as Trackio would.
    pub fn open(name: &str) -> Result<Self> {
        Self::open_at(place::file(name)?)
    }

    fn open_at(path: PathBuf) -> Result<Self> {
        let open = || {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            tables::open(&path)
        };
        let database = open().with_context(|| {
            format!(
                "observe.trackio: cannot use {}, Trackio's file of the project: set the key to \"\", or name another",
                path.display()
            )
        })?;
        Ok(Self { database, path })
    }

    pub fn run(self, run: RunRow) -> Trackio {
        Trackio {
            database: self.database,
            path: self.path,
            run,
            waiting: Vec::new(),
            is_rewriting: false,
            tried: Instant::now(),
            pause: PAUSE,
            has_failed: false,
            has_given_up: false,
        }
    }
}

impl Trackio {
    /// Forgets what the file has of the run; nobody sees it until [`Trackio::replace`].
    pub fn begin(&mut self) -> Result<()> {
        self.is_rewriting = true;
        tables::forget(&self.database, &self.run).with_context(|| self.problem())
    }

    /// A line of the run's past.
    pub fn rewrite(&mut self, line: &Value) -> Result<()> {
        self.keep(line);
        if self.waiting.len() < PAST { Ok(()) } else { self.insert() }
    }

    /// Puts the past in its place.
    pub fn replace(mut self) -> Result<Self> {
        self.insert()?;
        self.database.execute_batch("COMMIT").with_context(|| self.problem())?;
        self.is_rewriting = false;
        Ok(self)
    }

    fn insert(&mut self) -> Result<()> {
        tables::insert(&self.database, &self.run, &self.waiting).with_context(|| self.problem())?;
        self.waiting.clear();
        Ok(())
    }

    /// A line, and at times or with the last one all that wait; returns what there is to say.
    pub fn write(&mut self, line: &Value) -> Option<String> {
        self.keep(line);
        let is_due = line["kind"] == "end" || self.tried.elapsed() >= self.pause;
        if is_due { self.flush() } else { None }
    }

    fn keep(&mut self, line: &Value) {
        let scalars = scalars(line);
        if scalars.is_empty() || self.has_given_up {
            return;
        }
        let metrics: Map<String, Value> = scalars.into_iter().map(|(tag, value)| (tag, Value::from(value))).collect();
        self.waiting.push(MetricsRow {
            timestamp: iso(line["time"].as_f64().unwrap_or_default()),
            step: line["round"].as_i64().unwrap_or_default(),
            metrics: Value::from(metrics).to_string(),
        });
    }

    fn flush(&mut self) -> Option<String> {
        let written = tables::commit(&self.database, &self.run, &self.waiting);
        self.tried = Instant::now();
        let Err(error) = written else {
            self.waiting.clear();
            self.pause = PAUSE;
            return None;
        };
        self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        if self.waiting.len() >= MOST_WAITING {
            self.has_given_up = true;
            self.waiting = Vec::new();
            return Some(format!("{}: {error}; the rest of the run will not be in it", self.problem()));
        }
        let is_new = !std::mem::replace(&mut self.has_failed, true);
        is_new.then(|| format!("{}: {error}; the run goes on, its metrics.jsonl has everything", self.problem()))
    }

    fn problem(&self) -> String {
        format!("observe.trackio: cannot write {}", self.path.display())
    }
}

/// A run that ends by an error.
impl Drop for Trackio {
    fn drop(&mut self) {
        if !self.is_rewriting && !self.waiting.is_empty() {
            // The error that ends it is said.
            let _ = self.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::types::FromSql;
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    fn run(folder: &TempDir, id: &str) -> Trackio {
        let config = [("optimizer.lr".to_owned(), json!(0.5))].into_iter().collect();
        let run = RunRow { id: id.into(), name: "first".into(), config };
        Project::open_at(folder.path().join("new/p.db")).unwrap().run(run)
    }

    fn round(round: u64, loss: f64) -> Value {
        json!({"kind": "round", "round": round, "time": 0.5, "lr": 0.1, "losses": {"a": loss, "b": null}})
    }

    fn begun(folder: &TempDir, id: &str, past: &[Value]) -> Trackio {
        let mut run = run(folder, id);
        run.begin().unwrap();
        past.iter().for_each(|line| run.rewrite(line).unwrap());
        run.replace().unwrap()
    }

    fn values<T: FromSql>(folder: &TempDir, query: &str) -> Vec<T> {
        let database = Connection::open(folder.path().join("new/p.db")).unwrap();
        let mut statement = database.prepare(query).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn a_run_that_goes_on_has_each_row_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = begun(&folder, "1", &[]);
        (0..3).for_each(|number| assert_eq!(first.write(&round(number, 1.0)), None));
        drop(first);
        assert_eq!(values::<i64>(&folder, "SELECT step FROM metrics ORDER BY id"), [0, 1, 2]);
        drop(begun(&folder, "2", &[round(0, 3.0)]));
        let mut first = begun(&folder, "1", &[round(0, 1.0)]);
        first.write(&round(1, 2.0));
        first.write(&json!({"kind": "end", "round": 2, "time": 1.0, "scores": {"dev": {"split": "dev", "mean_primary": 0.5}}}));
        let rows: Vec<String> = values(&folder, "SELECT metrics FROM metrics WHERE run_id = '1' ORDER BY id");
        let expected = [
            json!({"train/lr": 0.1, "loss/a": 1.0}),
            json!({"train/lr": 0.1, "loss/a": 2.0}),
            json!({"final_dev/mean_primary": 0.5}),
        ];
        let rows: Vec<Value> = rows.iter().map(|row| serde_json::from_str(row).unwrap()).collect();
        assert_eq!(rows, expected);
        assert_eq!(values::<i64>(&folder, "SELECT COUNT(*) FROM metrics WHERE run_id = '2'"), [1], "another run's rows stay");
        assert_eq!(values::<String>(&folder, "SELECT run_id FROM configs ORDER BY run_id"), ["1", "2"]);
        let config: Value = serde_json::from_str(&values::<String>(&folder, "SELECT config FROM configs")[0]).unwrap();
        assert_eq!(config["optimizer.lr"], 0.5);
        assert_eq!(values::<String>(&folder, "SELECT timestamp FROM metrics")[0], "1970-01-01T00:00:00.500000+00:00");
    }

    /// A past of more rows than are held at a time, all or none of it.
    #[test]
    fn a_past_is_there_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let past: Vec<Value> = (0..2500).map(|number| round(number, 1.0)).collect();
        drop(begun(&folder, "1", &past));
        let mut broken = run(&folder, "1");
        broken.begin().unwrap();
        past.iter().for_each(|line| broken.rewrite(line).unwrap());
        drop(broken);
        assert_eq!(values::<i64>(&folder, "SELECT COUNT(*) FROM metrics"), [2500]);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_told_of_once_and_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = begun(&folder, "1", &[]);
        run.database.busy_timeout(Duration::ZERO).unwrap();
        let other = Connection::open(folder.path().join("new/p.db")).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        run.keep(&round(0, 1.0));
        let said = run.flush().unwrap();
        assert!(said.contains("p.db: database is locked; the run goes on"), "{said}");
        run.keep(&round(1, 1.0));
        assert_eq!((run.flush(), run.pause), (None, 4 * PAUSE));
        other.execute_batch("COMMIT").unwrap();
        assert_eq!((run.flush(), run.pause), (None, PAUSE));
        assert_eq!(values::<i64>(&folder, "SELECT step FROM metrics ORDER BY id"), [0, 1]);
    }

    #[test]
    fn files_of_others_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: PathBuf| format!("{:#}", Project::open_at(path).err().unwrap());
        let text = folder.path().join("text.db");
        std::fs::write(&text, "not a database, but long enough to be read as the head of one".repeat(4)).unwrap();
        let error = refused(text);
        assert!(error.contains("observe.trackio: cannot use") && error.contains("file is not a database"), "{error}");
        // Runs by name alone, as Trackio had them before 0.24.
        let old = folder.path().join("old.db");
        let database = Connection::open(&old).unwrap();
        database
            .execute_batch("CREATE TABLE metrics (id INTEGER PRIMARY KEY, run_name TEXT, step INTEGER, metrics TEXT)")
            .unwrap();
        let error = refused(old);
        assert!(error.contains("tables of another version") && error.contains("run_id"), "{error}");
    }
}
