//! What the run's memory was for, against its budget.

use std::collections::BTreeMap;

use anyhow::Result;
use maud::{Markup, html};

use crate::machine::memory::human_bytes;
use crate::report::chart::bars::{Bar, Bars, Row};
use crate::report::chart::ink::Ink;
use crate::report::folder::Run;
use crate::report::lines::Buffer;
use crate::report::words::{missing, percent};

pub fn body(run: &Run) -> Result<Markup> {
    let Some(start) = &run.history.start else {
        return Ok(missing("metrics.jsonl has no line about the run's start, which says what memory is for."));
    };
    let budget = run.settings.config.memory.device;
    let peak = run.history.end.as_ref().map(|end| end.peak_bytes);
    Ok(html! {
        p {
            "The run's buffers take " b { (human_bytes(start.bytes)) }
            @if budget > 0 { " of the " (human_bytes(budget)) " that memory.device allows (" (percent(start.bytes as f64 / budget as f64)) ")" }
            @else { "; memory.device sets no budget" }
            ". "
            @if let Some(peak) = peak { "The process had at most " (human_bytes(peak)) " resident." }
        }
        @if start.buffers.is_empty() {
            (missing("The run did not record its buffers one by one."))
        } @else {
            div.charts { (chart(&start.buffers, start.bytes, budget)?) }
            (table(&start.buffers, start.bytes))
        }
    })
}

/// `jacobian` of `jacobian: dense`.
fn arena(buffer: &Buffer) -> &str {
    buffer.name.split_once(": ").map_or(buffer.name.as_str(), |(arena, _)| arena)
}

fn chart(buffers: &[Buffer], total: u64, budget: u64) -> Result<Markup> {
    let mut arenas: BTreeMap<&str, u64> = BTreeMap::new();
    for buffer in buffers {
        *arenas.entry(arena(buffer)).or_default() += buffer.bytes;
    }
    let mut arenas: Vec<(&str, u64)> = arenas.into_iter().collect();
    arenas.sort_by_key(|arena| std::cmp::Reverse(arena.1));
    arenas.insert(0, ("all", total));
    let row = |&(name, bytes): &(&str, u64)| {
        let ink = if name == "all" { Ink::Soft } else { Ink::Positive };
        Row { name: name.to_owned(), bars: vec![Bar { value: bytes as f64, text: human_bytes(bytes), ink, behind: None }] }
    };
    let limit = (budget > 0).then(|| (budget as f64, format!("budget {}", human_bytes(budget))));
    Bars { title: "Bytes by arena", rows: arenas.iter().map(row).collect(), limit }.figure()
}

fn table(buffers: &[Buffer], total: u64) -> Markup {
    let mut buffers: Vec<&Buffer> = buffers.iter().collect();
    buffers.sort_by_key(|buffer| std::cmp::Reverse(buffer.bytes));
    html! {
        details {
            summary { "All " (buffers.len()) " buffers" }
            div.scroll {
                table {
                    thead { tr { th { "Buffer" } th.n { "Bytes" } th.n { "Share" } } }
                    tbody { @for buffer in buffers {
                        tr { th scope="row" { (buffer.name) } td.n { (human_bytes(buffer.bytes)) } td.n { (percent(buffer.bytes as f64 / total.max(1) as f64)) } }
                    } }
                }
            }
        }
    }
}
