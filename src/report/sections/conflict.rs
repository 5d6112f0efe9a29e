//! Which tasks' gradients pointed against each other, where in the encoder, and when.

use anyhow::Result;
use maud::{Markup, html};

use super::heat;
use super::training::single;
use crate::report::chart::lines::{Chart, Series};
use crate::report::folder::Run;
use crate::report::words::{by_number, count, missing, percent, signed};

/// Blocks whose share of conflicts is drawn: those with the most.
const MOST_BLOCKS: usize = 12;

pub fn body(run: &Run) -> Result<Markup> {
    let conflicts = &run.history.conflicts;
    if conflicts.lines == 0 {
        return Ok(missing("metrics.jsonl holds no conflict line: observe.conflict_every was 0, or none was due yet."));
    }
    if conflicts.share.is_empty() {
        return Ok(missing("Every round was one task's alone, so that no two gradients met."));
    }
    Ok(html! {
        p {
            "Two tasks conflict in a round where the cosine of their gradients is negative. "
            (count(conflicts.lines, "round")) " of the run " (if conflicts.lines == 1 { "was" } else { "were" }) " recorded (observe.conflict_every)."
        }
        div.charts {
            (heat::map(run))
            (single("Share of pairs that conflict, whole encoder", &conflicts.share, Some(0.0))?)
            (blocks(run)?)
        }
        (contested(run))
    })
}

fn blocks(run: &Run) -> Result<Markup> {
    let mut shares: Vec<_> = run.history.conflicts.block_shares.iter().collect();
    shares.sort_by(|a, b| b.1.mean().unwrap_or(0.0).total_cmp(&a.1.mean().unwrap_or(0.0)));
    let left_out = shares.len().saturating_sub(MOST_BLOCKS);
    shares.truncate(MOST_BLOCKS);
    shares.sort_by(|a, b| by_number(a.0, b.0));
    let series = shares.iter().enumerate().map(|(number, (block, curve))| Series {
        name: (*block).clone(),
        number,
        points: curve.points(),
    });
    let title = if left_out == 0 {
        "Share of pairs that conflict, by block".to_owned()
    } else {
        format!("Share of pairs that conflict, in the {MOST_BLOCKS} blocks with the most of {}", MOST_BLOCKS + left_out)
    };
    Chart { title: &title, x: "round", series: series.collect(), baseline: Some(0.0), legend: true }.figure()
}

/// As the run itself counted them, over all its rounds.
fn contested(run: &Run) -> Markup {
    let blocks = run.history.end.as_ref().map_or(&[][..], |end| &end.contested_blocks);
    html! {
        @if !blocks.is_empty() {
            h3 { "Most contested blocks, over all rounds" }
            div.scroll {
                table {
                    thead { tr { th { "Block" } th.n { "Pairs and rounds in conflict" } th.n { "Mean cosine at the end" } } }
                    tbody { @for block in blocks {
                        tr { th scope="row" { (block.block) } td.n { (percent(block.share)) } td.n { (signed(block.cosine)) } }
                    } }
                }
            }
        }
    }
}
