//! What is known of a key: its kind, its default, when it acts, one line on what it does.
//!
//! Keys are declared in [`super::schema`]; validation, `check --print`, the reference and the JSON schema are read from
//! them.

mod bounds;
pub mod kind;

use std::sync::LazyLock;

pub use bounds::Bounds;
pub use kind::{Kind, PathFrom};

use super::schema::ROOT;

/// The longest time that can be set, in milliseconds.
pub const YEAR_MS: f64 = 365.0 * 86_400_000.0;

/// A table of the configuration.
#[derive(Debug)]
pub struct Section {
    pub doc: &'static str,
    pub keys: LazyLock<Vec<Key>>,
    /// Keys the design names and this version does not have.
    pub later: &'static [&'static str],
}

impl Section {
    pub const fn new(doc: &'static str, keys: fn() -> Vec<Key>, later: &'static [&'static str]) -> Section {
        Section { doc, keys: LazyLock::new(keys), later }
    }

    pub fn find(&self, name: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

/// There is one of each.
impl PartialEq for Section {
    fn eq(&self, other: &Section) -> bool {
        std::ptr::eq(self, other)
    }
}

/// What is known of a key: what it takes, what it is by itself, when it acts.
#[derive(Clone, Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    pub default: Default,
    /// Set where the key acts only beside certain values of another.
    pub only: Option<Only>,
    /// `resume --set` may change it.
    pub resumable: bool,
    pub doc: String,
}

#[derive(Clone, Copy, Debug)]
pub enum Default {
    Required,
    /// The key stays out of the resolved configuration.
    Absent,
    /// A TOML literal.
    Is(&'static str),
}

/// The key acts only while `key` has one of `values`; a leading dot means a key of the same table.
#[derive(Clone, Debug)]
pub struct Only {
    pub key: &'static str,
    pub values: Vec<&'static str>,
}

impl Key {
    /// A table without a `doc` of its own as a key is described as the table is.
    pub fn new(name: &'static str, kind: Kind, default: Default, doc: impl Into<String>) -> Key {
        let (doc, table) = (doc.into(), kind.section().map_or("", |section| section.doc));
        let doc = if doc.is_empty() { table } else { &doc }.trim_start().to_owned();
        Key { name, kind, default, only: None, resumable: false, doc }
    }

    pub fn only(mut self, key: &'static str, values: impl Into<Vec<&'static str>>) -> Key {
        self.only = Some(Only { key, values: values.into() });
        self
    }

    /// A run goes on from its checkpoints whatever the value.
    pub fn resumable(mut self) -> Key {
        self.resumable = true;
        self
    }
}

/// Dotted names of the keys that `resume --set` may change.
pub fn resumable() -> Vec<String> {
    let keys = |(path, section): (String, &'static Section)| {
        let resumable = section.keys.iter().filter(|key| key.resumable);
        resumable.map(move |key| format!("{path}.{}", key.name))
    };
    sections().into_iter().flat_map(keys).collect()
}

/// Every table with its name as a header would write it, `NAME` standing for a name of the user's choice.
pub fn sections() -> Vec<(String, &'static Section)> {
    let mut found = vec![(String::new(), &ROOT)];
    let mut next = 0;
    while next < found.len() {
        let (parent, section) = found[next].clone();
        for key in section.keys.iter() {
            let path = if parent.is_empty() { key.name.to_owned() } else { format!("{parent}.{}", key.name) };
            match key.kind {
                Kind::Section(inner) => found.push((path, inner)),
                Kind::Sections(inner) => found.push((format!("{path}.NAME"), inner)),
                _ => {}
            }
        }
        next += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_key_is_there_twice_or_both_here_and_later() {
        for (path, section) in sections() {
            let names: Vec<_> = section.keys.iter().map(|key| key.name).chain(section.later.iter().copied()).collect();
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "[{path}]");
        }
    }
}
