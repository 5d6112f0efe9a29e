//! The resolved configuration, and where each value comes from.

use std::collections::BTreeMap;

use anyhow::Result;
use maud::{Markup, html};

use crate::report::folder::Run;
use crate::report::words::missing;

/// A value and where it was written; none for a default.
type Line<'a> = (&'a String, &'a String, Option<String>);

pub fn body(run: &Run) -> Result<Markup> {
    let values = &run.settings.values;
    let shown: Vec<(&String, &String)> = values.iter().filter(|(key, value)| !is_shared(values, key, value)).collect();
    let left_out = values.len() - shown.len();
    let note =
        html! { @if left_out > 0 { p.note { "Without " (left_out) " values of tasks that are those of task_defaults." } } };
    let Some(origins) = &run.origins else {
        let all: Vec<Line> = shown.into_iter().map(|(key, value)| (key, value, None)).collect();
        return Ok(html! {
            (missing("The run did not record where its values come from (origins.json), so that this is the resolved configuration alone."))
            (table(&all, false))
            (note)
        });
    };
    let changed = changed(run);
    let origin = |key: &String| changed.get(key).cloned().or_else(|| origins.get(key).cloned());
    let lines = shown.into_iter().map(|(key, value)| (key, value, origin(key)));
    let (written, defaults): (Vec<Line>, Vec<Line>) = lines.partition(|line| line.2.is_some());
    Ok(html! {
        (table(&written, true))
        details { summary { (defaults.len()) " values are defaults" } (table(&defaults, false)) }
        (note)
    })
}

/// Whether a task has the value from `task_defaults`.
fn is_shared(values: &BTreeMap<String, String>, key: &str, value: &str) -> bool {
    // The name of a task may hold dots.
    let own = key.strip_prefix("tasks.").and_then(|rest| rest.rsplit_once('.')).map(|(_, own)| own);
    own.is_some_and(|own| values.get(&format!("task_defaults.{own}")).is_some_and(|shared| shared == value))
}

/// Keys that `resume --set` changed, the last time that it did.
fn changed(run: &Run) -> BTreeMap<String, String> {
    let incidents = run.history.incidents.iter().filter_map(|incident| Some((incident.round, incident.changes.as_ref()?)));
    let keys = incidents.flat_map(|(round, changes)| changes.keys().map(move |key| (key.clone(), round)));
    keys.map(|(key, round)| (key, format!("resume --set, after {round} rounds"))).collect()
}

fn table(lines: &[Line], with_origins: bool) -> Markup {
    html! {
        div.scroll {
            table.settings {
                thead { tr { th { "Key" } th { "Value" } @if with_origins { th { "Set by" } } } }
                tbody { @for (key, value, origin) in lines {
                    tr { th scope="row" { (key) } td { code { (value) } } @if with_origins { td { (origin.as_deref().unwrap_or("default")) } } }
                } }
            }
        }
    }
}
