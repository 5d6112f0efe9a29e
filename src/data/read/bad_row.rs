//! Rows that cannot be used: why, where, and how many of each reason were left out.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// Why a row is bad; the load report counts by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BadKind {
    FieldCount,
    InvalidUtf8,
    BadQuotes,
    BadJson,
    BadDate,
    MissingText,
    BadLabel,
    UnknownLabel,
    BadFeatures,
    FeatureCount,
}

impl fmt::Display for BadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BadKind::FieldCount => "wrong number of fields",
            BadKind::InvalidUtf8 => "invalid UTF-8",
            BadKind::BadQuotes => "misplaced quotes",
            BadKind::BadJson => "bad JSON",
            BadKind::BadDate => "bad date or time",
            BadKind::MissingText => "no text",
            BadKind::BadLabel => "bad label",
            BadKind::UnknownLabel => "unknown label",
            BadKind::BadFeatures => "bad features",
            BadKind::FeatureCount => "wrong number of features",
        })
    }
}

/// What is wrong with a row, before it is known where the row stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    pub kind: BadKind,
    pub message: String,
}

impl Fault {
    pub fn new(kind: BadKind, message: impl Into<String>) -> Fault {
        Fault { kind, message: message.into() }
    }

    /// The error that stops a load: `file:line: message`, and the way around it.
    pub fn into_error(self, path: &Path, line: u64) -> anyhow::Error {
        let message = self.message;
        anyhow::anyhow!("{}:{line}: {message} (data.on_bad_row = \"skip\" leaves such rows out)", path.display())
    }
}

/// Rows left out, by reason.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BadRows {
    pub by_kind: BTreeMap<BadKind, BadCount>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct BadCount {
    pub count: u64,
    /// The first one: `file:line: message`.
    pub first: String,
}

impl BadRows {
    pub fn add(&mut self, fault: Fault, path: &Path, line: u64) {
        let first = || BadCount { count: 0, first: format!("{}:{line}: {}", path.display(), fault.message) };
        self.by_kind.entry(fault.kind).or_insert_with(first).count += 1;
    }

    pub fn total(&self) -> u64 {
        self.by_kind.values().map(|bad| bad.count).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.by_kind.is_empty()
    }
}

impl fmt::Display for BadRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (kind, bad) in &self.by_kind {
            write!(f, "{separator}{} x {kind} (first: {})", bad.count, bad.first)?;
            separator = "; ";
        }
        Ok(())
    }
}
