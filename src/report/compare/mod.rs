//! The sections of the page about several runs side by side.

mod before;
mod curves;
mod groups;
mod keys;
mod paired;
mod runs;
mod scores;

use anyhow::Result;
use maud::Markup;

use super::folder::Run;
use super::sections::Section;
use groups::Groups;

/// Makes the body of a section.
type Body = fn(&[Run], &Groups) -> Result<Markup>;

const SECTIONS: [(&str, &str, Body); 6] = [
    ("runs", "Runs", runs::body),
    ("scores", "Final scores", scores::body),
    ("paired", "Paired differences", paired::body),
    ("before", "Before and after", before::body),
    ("curves", "Curves", curves::body),
    ("keys", "Differing keys", keys::body),
];

pub fn all(runs: &[Run]) -> Result<Vec<Section>> {
    let groups = Groups::of(runs);
    SECTIONS.iter().map(|&(id, title, body)| Ok(Section { id, title, body: body(runs, &groups)? })).collect()
}
