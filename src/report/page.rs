//! The page around the sections: title, contents, style and script, all in one file.

use anyhow::Result;
use maud::{DOCTYPE, PreEscaped, html};

use super::sections::Section;

/// Nothing is loaded from anywhere.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

pub fn write(title: &str, sections: &[Section]) -> Result<String> {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="color-scheme" content="light dark";
                title { (title) " – Taskloom" }
                style { (PreEscaped(include_str!("page.css"))) }
            }
            body {
                header {
                    p.brand { "Taskloom report" }
                    h1 { (title) }
                }
                nav aria-label="Sections" {
                    ul { @for section in sections { li { a href=(format!("#{}", section.id)) { (section.title) } } } }
                }
                main {
                    @for section in sections {
                        section id=(section.id) {
                            h2 { (section.title) }
                            (section.body)
                        }
                    }
                }
                footer { "Written by taskloom " (env!("CARGO_PKG_VERSION")) "." }
                script { (PreEscaped(include_str!("page.js"))) }
            }
        }
    };
    Ok(page.into_string())
}
