//! Every key of the configuration: its kind, its default, one line on what it does. The single source of rules and
//! defaults; validation, `check --print` and the reference are all read from it.

pub mod kind;
mod methods;
mod tables;
mod task;

pub use kind::Kind;
pub use tables::{ROOT, ROUNDS};

/// The longest time that can be set, in milliseconds.
pub const YEAR_MS: f64 = 365.0 * 86_400_000.0;

/// A table of the configuration.
#[derive(Debug)]
pub struct Section {
    pub keys: &'static [Key],
    /// Keys the design names and this version does not have.
    pub later: &'static [&'static str],
}

impl Section {
    pub fn find(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    pub default: Default,
    /// Set where the key acts only beside certain values of another.
    pub only: Option<Only>,
    /// `resume --set` may change it.
    pub resumable: bool,
    pub doc: &'static str,
}

#[derive(Debug)]
pub enum Default {
    Required,
    /// The key stays out of the resolved configuration.
    Absent,
    /// A TOML literal.
    Is(&'static str),
}

/// The key acts only while `key` has one of `values`; a leading dot means a key of the same table.
#[derive(Debug)]
pub struct Only {
    pub key: &'static str,
    pub values: &'static [&'static str],
}

impl Key {
    const fn only(mut self, key: &'static str, values: &'static [&'static str]) -> Key {
        self.only = Some(Only { key, values });
        self
    }

    /// A run goes on from its checkpoints whatever the value.
    const fn resumable(mut self) -> Key {
        self.resumable = true;
        self
    }
}

pub const fn key(name: &'static str, kind: Kind, literal: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default: Default::Is(literal), only: None, resumable: false, doc }
}

pub const fn required(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, kind, default: Default::Required, only: None, resumable: false, doc }
}

pub const fn optional(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, kind, default: Default::Absent, only: None, resumable: false, doc }
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
        for key in section.keys {
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

    use super::super::schema::{Adaptive, Config, Format, Task, TasksFrom};
    use super::super::testing::load_text;
    use super::*;

    /// A configuration in which no optional value is missing.
    fn full() -> Config {
        let text = "[encoder]\nkind = \"linear\"\n[train]\nrounds = 1\n[synthetic]\n[tasks.alone_1]\n\
                    [eval.slices.a]\ncolumn = \"c\"\nequals = \"1\"\n[faults.a]\ntask = \"alone_1\"\nkind = \"crash\"\n";
        let mut config = load_text(text, &[]).unwrap().config;
        config.encoder.tokenizer = Some("words".to_owned());
        config.train.epochs = Some(1.0);
        config.encoder.from = Some("f".to_owned());
        config.tasks_from = Some(TasksFrom { file: "f".into(), task: "t".to_owned(), include: vec![] });
        for (params, section) in [(&mut config.surgery.params, "surgery"), (&mut config.balance.params, "balance")] {
            let section = sections().into_iter().find(|(path, _)| path == section).unwrap().1;
            let parameters = section.keys.iter().filter(|key| key.only.is_some());
            *params = parameters.map(|key| (key.name.to_owned(), 1.into())).collect();
        }
        fill(&mut config.task_defaults);
        config.tasks.values_mut().for_each(fill);
        config
    }

    fn fill(task: &mut Task) {
        for path in [&mut task.train, &mut task.dev, &mut task.test, &mut task.file] {
            *path = Some("f".into());
        }
        task.split = Some("s".to_owned());
        task.format = Some(Format::Csv);
        task.quoted = Some(true);
        task.rounds = Some(1);
        task.target = Some(1.0);
        task.deadline_ms = Some(1.0);
        task.adaptive = Some(Adaptive { target_ms: 1.0, grow: 1.1, shrink: 0.9, min: 1, max: 1 });
        task.synthetic = None;
    }

    #[test]
    fn every_field_has_a_key_and_every_key_a_field() {
        let config = toml::Value::try_from(full()).unwrap();
        for (path, section) in sections() {
            let mut value = &config;
            for name in path.split('.').filter(|name| !name.is_empty()) {
                let table = value.as_table().unwrap();
                value = if name == "NAME" { table.values().next().unwrap() } else { &table[name] };
            }
            let fields: BTreeSet<_> = value.as_table().unwrap().keys().map(String::as_str).collect();
            // `tasks_from.split` becomes `task_defaults.split`.
            let sugar = |name: &str| path == "tasks_from" && name == "split";
            let keys: BTreeSet<_> = section.keys.iter().map(|key| key.name).filter(|name| !sugar(name)).collect();
            assert_eq!(fields, keys, "[{path}]");
        }
    }

    #[test]
    fn no_key_is_there_twice_or_both_here_and_later() {
        for (path, section) in sections() {
            let names: Vec<_> = section.keys.iter().map(|key| key.name).chain(section.later.iter().copied()).collect();
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "[{path}]");
        }
    }
}
