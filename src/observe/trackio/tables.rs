//! The tables of Trackio's file that a run is in: `metrics` has a row for each line, `configs` one for each run.
//!
//! They are those of Trackio's page "Storage Schema and Direct Queries", as its version 0.43 makes them. Trackio itself adds what else
//! it needs when it opens the file.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::Value;

use super::time::iso;
use super::{MetricsRow, RunRow};

/// How long the file may be in use elsewhere before it cannot be written.
const BUSY: Duration = Duration::from_secs(5);

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS metrics (
        id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, timestamp TEXT NOT NULL, run_name TEXT NOT NULL,
        step INTEGER NOT NULL, metrics TEXT NOT NULL, log_id TEXT, space_id TEXT);
    CREATE TABLE IF NOT EXISTS configs (
        id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, run_name TEXT NOT NULL, config TEXT NOT NULL,
        created_at TEXT NOT NULL, UNIQUE (run_id));";
/// By which a run's rows are found; not before the columns are known to be there.
const INDEX: &str = "CREATE INDEX IF NOT EXISTS idx_metrics_run_step ON metrics (run_id, step)";

const METRICS: &str = "INSERT INTO metrics (run_id, run_name, timestamp, step, metrics) VALUES (?, ?, ?, ?, ?)";
const CONFIG: &str = "INSERT OR REPLACE INTO configs (run_id, run_name, config, created_at) VALUES (?, ?, ?, ?)";

/// Opens a file with tables that take what a run has to write.
pub fn open(path: &Path) -> Result<Connection> {
    let database = Connection::open(path)?;
    database.busy_timeout(BUSY)?;
    // As Trackio opens it: readers do not wait for writers, and a commit does not wait for the disk.
    database.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    database.execute_batch("PRAGMA synchronous = NORMAL")?;
    database.execute_batch(&format!("BEGIN IMMEDIATE; {TABLES} COMMIT"))?;
    try_out(&database).context("it has the tables of another version of Trackio")?;
    database.execute_batch(INDEX)?;
    Ok(database)
}

/// Inserts a row of each kind, and takes them back.
fn try_out(database: &Connection) -> rusqlite::Result<()> {
    database.execute_batch("BEGIN IMMEDIATE")?;
    let tried = database
        .execute(METRICS, params!["", "", "", 0, "{}"])
        .and_then(|_| database.execute(CONFIG, params!["", "", "{}", ""]).map(drop));
    database.execute_batch("ROLLBACK")?;
    tried
}

/// Begins a transaction in which the run has its configuration and no rows.
pub fn forget(database: &Connection, run: &RunRow) -> rusqlite::Result<()> {
    database.execute_batch("BEGIN IMMEDIATE")?;
    database.execute("DELETE FROM metrics WHERE run_id = ?", [&run.id])?;
    let created =
        database.query_row("SELECT created_at FROM configs WHERE run_id = ?", [&run.id], |row| row.get(0)).optional()?;
    let created: String = created.unwrap_or_else(now);
    let mut config = run.config.clone();
    config.insert("_Created".to_owned(), Value::from(created.as_str()));
    database.execute(CONFIG, params![run.id, run.name, Value::from(config).to_string(), created])?;
    Ok(())
}

pub fn insert(database: &Connection, run: &RunRow, rows: &[MetricsRow]) -> rusqlite::Result<()> {
    let mut statement = database.prepare(METRICS)?;
    rows.iter().try_for_each(|row| statement.execute(params![run.id, run.name, row.timestamp, row.step, row.metrics]).map(drop))
}

/// All rows, or none.
pub fn commit(database: &Connection, run: &RunRow, rows: &[MetricsRow]) -> rusqlite::Result<()> {
    database.execute_batch("BEGIN IMMEDIATE")?;
    let written = insert(database, run, rows).and_then(|()| database.execute_batch("COMMIT"));
    if written.is_err() && !database.is_autocommit() {
        database.execute_batch("ROLLBACK")?;
    }
    written
}

fn now() -> String {
    iso(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64())
}
