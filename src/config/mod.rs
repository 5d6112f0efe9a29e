//! The configuration of a run: read, checked as a whole, resolved.
//!
//! [`load`] reads a file, its bases and `--set` into one tree ([`source`], [`tree`]), holds it against the table of keys
//! ([`schema`], [`shape`]), completes it ([`defaults`], [`paths`]), and checks what several keys say together ([`checks`]).
//! Every error of all these steps is reported at once, at its line and column. The result is a [`Config`] of plain values
//! that still knows where each of them was written.

mod change;
mod checks;
mod defaults;
mod diagnostic;
mod flat;
mod freeze;
mod from_pretrained;
mod json_schema;
pub mod keys;
mod metrics;
mod model_cache;
mod objective;
mod paths;
mod patterns;
mod print;
mod reference;
pub mod schema;
mod shape;
mod source;
mod suggest;
pub mod sweep;
mod synthetic;
mod table;
#[cfg(test)]
mod testing;
mod tree;
pub mod workload;

use std::path::Path;

use anyhow::Context;

pub use change::change;
pub use diagnostic::{Diagnostic, Errors};
pub use flat::{Settings, scalars, stored_settings};
pub use freeze::frozen_blocks;
pub use from_pretrained::{Settled, Unsettled};
pub use json_schema::{run_schema, sweep_schema, workload_schema};
pub use metrics::{is_error, metrics_of, usual_metrics};
pub use model_cache::{is_model_name, model_caches, place as cache_place};
pub use objective::{Fold, Objective, Quantity};
pub use paths::WORDS;
pub use reference::reference;
pub use schema::Config;
pub use synthetic::names as synthetic_names;
pub use tree::{Origin, Source};

use tree::Node;

/// Rounds of the longest run.
pub const MOST_ROUNDS: u64 = schema::ROUNDS as u64;

/// A configuration without errors, and where its values come from.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub config: Config,
    tree: Node,
}

/// Reads `path` with its bases, then `sets` (the texts given to `--set`, the last one winning).
pub fn load(path: &Path, sets: &[String]) -> Result<Resolved, Errors> {
    let source::Gathered { mut tree, mut errors, broken_lines, incomplete } = source::gather(path, sets);
    let readable = |error: &Diagnostic| match &error.at {
        Origin::File { source, line, .. } => !broken_lines.contains(&(source.depth, *line)),
        _ => true,
    };
    errors.extend(shape::check(&mut tree, &schema::ROOT).into_iter().filter(readable));
    if incomplete {
        return Err(Errors::new(errors));
    }
    errors.extend(defaults::complete(&mut tree));
    paths::resolve(&mut tree, path);
    match tree.to_toml().try_into::<Config>() {
        Ok(mut config) => {
            synthetic::mark(&mut config, &tree);
            let resolved = Resolved { config, tree };
            errors.extend(checks::run(&resolved));
            if errors.is_empty() { Ok(resolved) } else { Err(Errors::new(errors)) }
        }
        Err(error) => {
            // A key takes what its field does not.
            errors.push(Diagnostic::new(Origin::Default, "", format!("a bug in taskloom: {}", error.message())));
            Err(Errors::new(errors))
        }
    }
}

/// A configuration that [`Resolved::to_toml`] wrote. Keys that were out of use were left out and are completed again, but
/// nothing is held against the files it names, so they may be gone.
pub fn load_stored(path: &Path) -> anyhow::Result<Config> {
    let source::Gathered { mut tree, mut errors, .. } = source::gather(path, &[]);
    errors.extend(shape::check(&mut tree, &schema::ROOT));
    errors.extend(defaults::complete(&mut tree));
    if !errors.is_empty() {
        return Err(Errors::new(errors).into());
    }
    paths::resolve(&mut tree, path);
    tree.to_toml().try_into().with_context(|| format!("{} is not a stored configuration", path.display()))
}

impl Resolved {
    /// Where `key` (as in `tasks.books.label`) was written; if it was not, where the nearest table around it was.
    ///
    /// A value that a task has from `task_defaults` or `tasks_from` is located there.
    pub fn locate(&self, key: &str) -> Origin {
        let (path, _) = self.tree.trail(key);
        let written = path.into_iter().rev().find(|node| !node.place().is_default());
        written.map_or(Origin::Default, |node| node.place().clone())
    }

    /// Where exactly `key` was written; [`Origin::Default`] if it was not.
    fn locate_exactly(&self, key: &str) -> Origin {
        self.tree.get(key).map_or(Origin::Default, |node| node.place().clone())
    }

    /// An error about `key`, to be reported like those found here.
    pub fn diagnostic(&self, key: &str, message: impl Into<String>) -> Diagnostic {
        let written_as = self.tree.get(key).and_then(|node| node.inherited.as_deref());
        Diagnostic::new(self.locate(key), written_as.unwrap_or(key), message)
    }

    /// Whether an error about the key, or about a table around it, has been reported.
    fn is_flawed(&self, key: &str) -> bool {
        self.tree.trail(key).0.iter().any(|node| node.flawed)
    }

    /// The resolved configuration as TOML in which each line ends in where its value comes from.
    ///
    /// A task's table shows what was written for it or in `task_defaults`.
    pub fn print(&self) -> String {
        print::with_origins(&self.tree)
    }

    /// The complete configuration; [`load`] makes an equal [`Config`] of it.
    pub fn to_toml(&self) -> String {
        print::complete(&self.tree)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Folder, errors, load_text, locations};

    const RUN: &str = "[encoder]\nkind = \"linear\"\n[train]\nrounds = 1\n[synthetic]\n";

    #[test]
    fn errors_of_every_step_come_together() {
        let text = "[encoder]\nkind = \"linear\"\nhiden = 3\n[train]\nmicro_batch = 0\n[optimizer]\nlr = \"fast\"\n\
                    momentum = 0.5\n[tasks.a]\ntrain = \"none.csv\"\nfeatures = \"x\"\ndepends_on = [\"a\"]\n";
        let expected = [
            (3, 1, "encoder.hiden"),
            (4, 2, "train"),
            (5, 15, "train.micro_batch"),
            (7, 6, "optimizer.lr"),
            (8, 1, "optimizer.momentum"),
            (9, 8, "tasks.a"),
            (10, 9, "tasks.a.train"),
            (12, 14, "tasks.a.depends_on"),
        ];
        assert_eq!(locations(&errors(text)), expected);
    }

    #[test]
    fn beside_broken_toml_the_other_lines_are_still_checked() {
        let errors = errors("[run]\nseed = = 1\nnam = \"x\"\n");
        assert_eq!(locations(&errors)[..], [(2, 8, ""), (3, 1, "run.nam")]);
    }

    #[test]
    fn an_unreadable_file_is_one_error() {
        let errors = super::load(std::path::Path::new("/none/main.toml"), &[]).unwrap_err();
        assert!(errors.to_string().starts_with("cannot read /none/main.toml: "), "{errors}");
        assert_eq!(errors.diagnostics().len(), 1);
    }

    #[test]
    fn a_written_key_is_located_at_its_value() {
        let folder = Folder::new(&[("main.toml", &format!("{RUN}[tasks.alone_1]\nweight = 2\n"))]);
        let found = folder.load(&[]).unwrap().locate("tasks.alone_1.weight");
        assert_eq!(found.to_string(), format!("{}:7", folder.path("main.toml").display()));
    }

    #[test]
    fn an_unwritten_key_is_located_at_its_table() {
        let resolved = load_text(&format!("{RUN}[tasks.alone_1]\nweight = 2\n"), &[]).unwrap();
        assert_eq!(resolved.locate("tasks.alone_1.label"), resolved.locate("tasks.alone_1"));
        assert_eq!(resolved.locate("tasks.none.label"), resolved.locate("tasks"));
        assert_eq!(resolved.locate("run.seed"), resolved.locate(""));
    }

    #[test]
    fn an_inherited_key_is_located_and_named_where_it_was_written() {
        let folder = Folder::new(&[
            (
                "main.toml",
                "[encoder]\nkind = \"linear\"\n[train]\nrounds = 1\n[task_defaults]\nlabel = \"y\"\nfeatures = \"x\"\n\
                 [tasks.a]\ntrain = \"a.csv\"\n",
            ),
            ("a.csv", ""),
        ]);
        let diagnostic = folder.load(&[]).unwrap().diagnostic("tasks.a.label", "no such column: y");
        let expected = format!("{}:6:9: task_defaults.label: no such column: y", folder.path("main.toml").display());
        assert_eq!(diagnostic.to_string(), expected);
    }

    #[test]
    fn an_error_in_a_set_names_the_set() {
        let errors = load_text(RUN, &["run.sed=1"]).unwrap_err();
        assert_eq!(errors.to_string(), "--set run.sed=1: run.sed: unknown key\n  help: did you mean `seed`?");
    }
}
