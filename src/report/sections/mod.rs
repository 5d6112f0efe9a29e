//! The sections of the page about one run.

pub mod conflict;
pub mod faults;
pub mod heat;
pub mod memory;
pub mod overview;
pub mod schedule;
pub mod scores;
pub mod settings;
pub mod slow;
pub mod training;
pub mod weights;
pub mod yielded;

use anyhow::Result;
use maud::Markup;

use super::folder::Run;

pub struct Section {
    /// Where a link on the page leads.
    pub id: &'static str,
    pub title: &'static str,
    pub body: Markup,
}

/// Makes the body of a section.
type Body = fn(&Run) -> Result<Markup>;

const SECTIONS: [(&str, &str, Body); 11] = [
    ("overview", "Overview", overview::body),
    ("scores", "Dev scores", scores::body),
    ("training", "Training", training::body),
    ("conflicts", "Conflicts", conflict::body),
    ("yielded", "Who yielded", yielded::body),
    ("weights", "Weights", weights::body),
    ("schedule", "Schedule", schedule::body),
    ("slow", "Slow quanta", slow::body),
    ("memory", "Memory", memory::body),
    ("faults", "Faults", faults::body),
    ("configuration", "Configuration", settings::body),
];

pub fn all(run: &Run) -> Result<Vec<Section>> {
    SECTIONS.iter().map(|&(id, title, body)| Ok(Section { id, title, body: body(run)? })).collect()
}

/// Why a section has nothing to show of a run without lines.
const NO_ROUNDS: &str = "metrics.jsonl holds no round yet.";
