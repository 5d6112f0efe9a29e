//! Makes every path absolute, so that a resolved configuration means the same from any folder.

use std::path::{Path, PathBuf};

use super::keys::kind::PathFrom;
use super::keys::{Kind, Section};
use super::model_cache::{cached_model, model_caches};
use super::patterns;
use super::schema::ROOT;
use super::tree::{Node, Origin, Value};

/// The tokenizer that is no file.
pub const WORDS: &str = "words";

/// `loaded` is the file given to [`super::load`].
pub fn resolve(root: &mut Node, loaded: &Path) {
    if let Some(node) = root.get_mut("data.root") {
        let folder = match &node.at {
            Origin::File { source, .. } => folder_of(&source.path).to_owned(),
            Origin::Set(_) => PathBuf::new(),
            Origin::Default => folder_of(loaded).to_owned(),
        };
        make_absolute(node, &folder);
    }
    let data_root = root.get("data.root").and_then(Node::text).map(PathBuf::from).unwrap_or_default();
    walk(root, &ROOT, &data_root);
}

fn walk(node: &mut Node, section: &'static Section, data_root: &Path) {
    for key in section.keys.iter() {
        let Some(child) = node.table_mut().and_then(|table| table.get_mut(key.name)) else { continue };
        match &key.kind {
            Kind::Path(PathFrom::CurrentDir) => make_absolute(child, Path::new("")),
            Kind::Path(PathFrom::DataRoot) => make_absolute(child, data_root),
            Kind::Path(PathFrom::DataRootOrModels) => model_folder(child, data_root),
            Kind::List(item) if **item == Kind::Path(PathFrom::DataRoot) => files(child, data_root),
            Kind::NumberOr(_, other) if **other == Kind::list(Kind::Path(PathFrom::DataRoot)) => files(child, data_root),
            Kind::Tokenizer if child.text() != Some(WORDS) => make_absolute(child, data_root),
            Kind::Section(inner) => walk(child, inner, data_root),
            Kind::Sections(inner) => {
                child.table_mut().into_iter().flatten().for_each(|(_, entry)| walk(entry, inner, data_root));
            }
            // `data.root` is resolved first: the others need it.
            _ => {}
        }
    }
}

/// A folder below `folder`, else the model of that name that was fetched, if there is one.
fn model_folder(node: &mut Node, folder: &Path) {
    let fetched = |name: &str| {
        let is_there = folder.join(name).exists();
        if is_there { None } else { cached_model(name, &model_caches()) }
    };
    match node.text().and_then(fetched) {
        Some(found) => node.value = Value::Text(found.to_string_lossy().into_owned()),
        None => make_absolute(node, folder),
    }
}

/// Patterns become the files that they match; one that matches none stays, to be found missing.
fn files(node: &mut Node, folder: &Path) {
    let Value::List(items) = &mut node.value else { return };
    let mut named: Vec<Node> = Vec::new();
    for mut item in std::mem::take(items) {
        make_absolute(&mut item, folder);
        let found = item.text().map(|text| patterns::files(Path::new(text))).unwrap_or_default();
        let found =
            found.into_iter().map(|file| Node { value: Value::Text(file.to_string_lossy().into_owned()), ..item.clone() });
        let found: Vec<Node> = found.collect();
        named.extend(if found.is_empty() { vec![item] } else { found });
    }
    // A file that several of them name is read once.
    for item in named {
        if !items.iter().any(|other| other.text() == item.text()) {
            items.push(item);
        }
    }
}

fn folder_of(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new(""))
}

fn make_absolute(node: &mut Node, folder: &Path) {
    let Value::Text(text) = &mut node.value else { return };
    let joined = folder.join(under_home(text));
    // Fails only for an empty path or a current directory that is gone; the path then stays relative to it.
    let absolute = std::path::absolute(&joined).unwrap_or(joined);
    *text = absolute.to_string_lossy().into_owned();
}

/// `~` and `~/...` mean the home folder, as in a shell, where the environment names it.
pub fn under_home(text: &str) -> PathBuf {
    let below = text.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/'));
    match (below, std::env::home_dir().filter(|home| home.is_absolute())) {
        (Some(rest), Some(home)) => home.join(rest.trim_start_matches('/')),
        _ => PathBuf::from(text),
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema::HeldOut;
    use super::super::testing::{Folder, load_text};
    use super::*;

    const RUN: &str = "[encoder]\nkind = \"linear\"\n[train]\nrounds = 1\n";
    const TASK: &str = "[tasks.a]\ntrain = \"a.csv\"\nfeatures = \"x\"\nlabel = \"y\"\n";

    #[test]
    fn the_data_root_is_relative_to_the_file_that_sets_it() {
        let folder = Folder::new(&[
            ("main.toml", &format!("base = \"common/base.toml\"\n{RUN}{TASK}")),
            ("common/base.toml", "[data]\nroot = \"../sets\"\n"),
            ("sets/a.csv", ""),
        ]);
        let config = folder.load(&[]).unwrap().config;
        assert_eq!(config.data.root, folder.path("common/../sets"));
        assert_eq!(config.tasks["a"].train, Some(vec![folder.path("common/../sets/a.csv")]));
    }

    #[test]
    fn patterns_become_their_files() {
        let task =
            "[tasks.a]\ntrain = [\"b.csv\", \"part-*.csv\", \"b.csv.gz\"]\ndev = \"no-*.csv\"\nfeatures = \"x\"\nlabel = \"y\"\n";
        let names = ["part-2.csv", "part-1.csv", "b.csv", "b.csv.gz", "no-1.csv", "no-2.tsv"];
        let files: Vec<(&str, &str)> = names.iter().map(|name| (*name, "")).collect();
        let text = format!("{RUN}{task}");
        let folder = Folder::new(&[&[("main.toml", text.as_str())][..], &files].concat());
        let resolved = folder.load(&[]).unwrap();
        let task = &resolved.config.tasks["a"];
        let expected = ["b.csv", "part-1.csv", "part-2.csv", "b.csv.gz"].map(|name| folder.path(name));
        assert_eq!(task.train.as_deref(), Some(&expected[..]));
        assert_eq!(task.dev.as_ref().map(HeldOut::files), Some(&[folder.path("no-1.csv")][..]));
        // A run goes on with the files that it began with.
        std::fs::write(folder.path("part-3.csv"), "").unwrap();
        std::fs::write(folder.path("config.toml"), resolved.to_toml()).unwrap();
        let again = super::super::load(&folder.path("config.toml"), &[]).unwrap().config;
        assert_eq!(again.tasks["a"].train.as_deref(), Some(&expected[..]));
    }

    #[test]
    fn a_tilde_is_the_home_folder() {
        let home = std::env::home_dir().expect("tests have a home folder");
        assert_eq!(under_home("~/sets/a.csv"), home.join("sets/a.csv"));
        assert_eq!(under_home("~"), home);
        assert_eq!([under_home("~other/a"), under_home("a/~")], ["~other/a", "a/~"].map(PathBuf::from));
    }

    #[test]
    fn without_a_data_root_files_are_beside_the_loaded_file() {
        let folder = Folder::new(&[("main.toml", &format!("{RUN}{TASK}")), ("a.csv", "")]);
        assert_eq!(folder.load(&[]).unwrap().config.tasks["a"].train, Some(vec![folder.path("a.csv")]));
    }

    #[test]
    fn a_data_root_from_set_is_relative_to_the_current_directory() {
        let text = format!("{RUN}[synthetic]\n");
        let config = load_text(&text, &["data.root=some/where"]).unwrap().config;
        assert_eq!(config.data.root, std::env::current_dir().unwrap().join("some/where"));
    }

    #[test]
    fn the_run_folder_is_relative_to_the_current_directory() {
        let config = load_text(&format!("{RUN}[synthetic]\n"), &[]).unwrap().config;
        assert_eq!(config.run.out, std::env::current_dir().unwrap().join("runs"));
    }

    #[test]
    fn absolute_paths_stay_as_they_are() {
        let config = load_text(&format!("{RUN}[synthetic]\n[run]\nout = \"/x/./y\"\n"), &[]).unwrap().config;
        assert_eq!(config.run.out, Path::new("/x/y"));
    }

    #[test]
    fn a_tokenizer_is_a_path_unless_it_is_words() {
        let bag = "[encoder]\nkind = \"bag\"\ntokenizer = \"TOKENIZER\"\n[train]\nrounds = 1\n\
                   [tasks.a]\ntrain = \"a.csv\"\ntext = \"x\"\nlabel = \"y\"\n";
        for (tokenizer, expected) in [("words", PathBuf::from("words")), ("vocab.txt", PathBuf::new())] {
            let text = bag.replace("TOKENIZER", tokenizer);
            let folder = Folder::new(&[("main.toml", &text), ("a.csv", ""), ("vocab.txt", "")]);
            let expected = if expected.as_os_str().is_empty() { folder.path(tokenizer) } else { expected };
            let found = folder.load(&[]).unwrap().config.encoder.tokenizer;
            assert_eq!(found.map(PathBuf::from), Some(expected));
        }
    }
}
