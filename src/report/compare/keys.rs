//! The keys in which the groups' configurations differ.

use anyhow::Result;
use maud::{Markup, html};

use super::groups::Groups;
use crate::report::folder::Run;
use crate::report::words::missing;

pub fn body(_: &[Run], groups: &Groups) -> Result<Markup> {
    if groups.keys.is_empty() {
        return Ok(missing("The configurations differ in nothing but seed and name."));
    }
    let value = |run: &Run, key: &str| run.settings.values.get(key).cloned().unwrap_or_else(|| "–".to_owned());
    Ok(html! {
        div.scroll {
            table.settings {
                thead { tr { th { "Key" } @for group in &groups.all { th { (group.label) } } } }
                tbody { @for key in &groups.keys {
                    tr { th scope="row" { (key) } @for group in &groups.all { td { code { (value(group.runs[0], key)) } } } }
                } }
            }
        }
    })
}
