//! The reference of all keys as Markdown, written from the table of keys.

use super::keys::{Default, Key, Kind, Section, sections};

const INTRODUCTION: &str = "\
# Configuration

One TOML file describes a run. Written by `taskloom` from its table of keys; do not edit.

- `base = \"common.toml\"` at the top of a file puts it over another one, named relative to this file. Tables merge key by
  key, arrays and values are replaced, and a base may have a base.
- `--set KEY=VALUE` wins over every file, the last one over those before: `--set optimizer.lr=3e-4`,
  `--set 'tasks.\"a.b\".weight=2'`. The value is read as TOML, and as a plain string if it is none.
- A task takes each setting from its own table, then from `[task_defaults]`, then from the defaults below.
- A list of one item may be written without brackets.
- `~/` at the start of a path is the home folder.
- A key that would do nothing is an error, unless a later layer (a file over its base, `--set`) put it out of use.
- A *resumable* key may change in a run that has begun: `taskloom resume RUN_DIR --set KEY=VALUE`. The run folder's
  `config.toml` keeps the new value. The others decide what a checkpoint means: a run with another value is another run.
- `taskloom check CONFIG` reports every error at once; `--print` shows each value and where it comes from.
- `taskloom schema` prints these keys as a JSON schema ([schema/run.json](schema/run.json)). A first line `#:schema PATH` has
  Taplo, the language server of TOML, complete and check a file by it.
";

pub fn reference() -> String {
    let mut text = INTRODUCTION.to_owned();
    for (path, section) in sections() {
        // The top level is the list of the tables that follow; tasks and their shared settings have the same keys.
        if path.is_empty() || path == "tasks.NAME" {
            continue;
        }
        let both = if path == "task_defaults" { " and `[tasks.NAME]`" } else { "" };
        text += &format!("\n## `[{path}]`{both}\n\n");
        if let Some(key) = table_key(&path) {
            text += &format!("{}{}\n\n", key.doc, if matches!(key.default, Default::Absent) { " Optional." } else { "" });
        }
        text += "| key | value | default | |\n| --- | --- | --- | --- |\n";
        section.keys.iter().filter(|key| !is_table(key)).for_each(|key| text += &row(key));
    }
    text
}

fn is_table(key: &Key) -> bool {
    matches!(key.kind, Kind::Section(_) | Kind::Sections(_))
}

/// The key that a table is the value of.
fn table_key(path: &str) -> Option<&'static Key> {
    let path = path.trim_end_matches(".NAME");
    let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
    let section: &'static Section = sections().into_iter().find(|(path, _)| path == parent)?.1;
    section.find(name)
}

fn row(key: &Key) -> String {
    let default = match key.default {
        Default::Required => "required".to_owned(),
        Default::Absent => "none".to_owned(),
        Default::Is(literal) => format!("`{literal}`"),
    };
    let cells = [format!("`{}`", key.name), key.kind.describe(), default, explain(key)].map(|cell| cell.replace('|', "\\|"));
    format!("| {} |\n", cells.join(" | "))
}

/// What a key does, and when.
pub fn explain(key: &Key) -> String {
    let mut doc = key.doc.clone();
    if key.resumable {
        doc += " *Resumable.*";
    }
    if let Some(only) = &key.only {
        let values: Vec<_> = only.values.iter().map(|value| format!("\"{value}\"")).collect();
        doc += &format!(" Only with `{}` = {}.", only.key.trim_start_matches('.'), values.join(" or "));
    }
    doc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_line() {
        let text = reference();
        for (path, section) in sections().iter().filter(|(path, _)| !path.is_empty()) {
            for key in section.keys.iter().filter(|key| !is_table(key)) {
                assert!(text.contains(&row(key)), "{path}.{}", key.name);
            }
        }
    }

    #[test]
    fn a_line_tells_kind_default_and_use() {
        let expected = "| `lr` | a number above 0 | `1e-3` | Learning rate at the end of the warmup. *Resumable.* |\n";
        assert!(reference().contains(expected));
    }
}
