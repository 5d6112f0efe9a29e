//! docs/contributing.md says what is touched to add something: its lists are those that the sources give.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use taskloom::choices::Choice;
use taskloom::config::schema::EncoderKind;
use taskloom::schedule::policy::POLICIES;
use taskloom::surgery::methods::registry::DESCRIPTORS;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// A file of a list, and the lines that are added to it; none if it is the thing's own.
struct Touched {
    file: String,
    lines: Vec<String>,
}

/// The list under a heading: "- `file`: `line` and ..., or what the file holds".
fn touched(heading: &str) -> Vec<Touched> {
    let page = read("docs/contributing.md");
    let section = page.split("\n## ").find_map(|section| section.strip_prefix(heading)).expect("the page has the section");
    let item = |item: &str| {
        let mut code = item.split('`').skip(1).step_by(2).map(str::to_owned);
        let file = code.next().expect("an item begins with a file");
        let is_new = !item.contains(&format!("`{file}`: `"));
        Touched { file, lines: if is_new { Vec::new() } else { code.collect() } }
    };
    section.split("\n- ").skip(1).map(|rest| item(rest.split("\n\n").next().unwrap_or(rest))).collect()
}

/// Rust and CUDA files.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = ["src", "kernels", "build"].map(|folder| root().join(folder)).to_vec();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(path.read_dir().expect("can list").map(|entry| entry.expect("can list").path()));
        } else if path.extension().is_some_and(|extension| ["rs", "cu", "cuh"].iter().any(|known| extension == *known)) {
            found.push(path);
        }
    }
    found
}

/// Whether code (comments and unit tests left out) has the word; `path` also where it is the file's name.
fn names(path: &Path, word: &str) -> bool {
    let text = std::fs::read_to_string(path).expect("sources are UTF-8");
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    path.file_stem().is_some_and(|stem| stem == word)
        || lines.flat_map(|line| line.split(|c| !is_part(c))).any(|found| found == word)
}

/// The files of a list exist, the lines are in them, and no other source file but `users` names what is added, by any of the words.
fn holds(heading: &str, words: &[&str], users: &[&str]) {
    let touched = touched(heading);
    for Touched { file, lines } in &touched {
        let text = read(file);
        assert!(lines.iter().all(|line| text.contains(line.as_str())), "{file} has not {lines:?}");
        let says = |line: &String| words.iter().any(|word| line.contains(word));
        assert!(lines.is_empty() || lines.iter().any(says), "{lines:?} say nothing of {words:?}");
    }
    let listed: BTreeSet<PathBuf> = touched.iter().map(|touched| root().join(&touched.file)).collect();
    let is_user = |path: &PathBuf| users.iter().any(|user| path.starts_with(root().join(user)));
    let is_named = |path: &PathBuf| words.iter().any(|word| names(path, word));
    let named: BTreeSet<PathBuf> =
        sources().into_iter().filter(|path| is_named(path) && (listed.contains(path) || !is_user(path))).collect();
    assert_eq!(named, listed, "what names {words:?}, against the list of docs/contributing.md");
}

/// `src/config` takes its choices from the registries; the tests of both hold them together.
const CHOICES: &str = "src/config";

#[test]
fn a_method_is_a_file_and_its_lines() {
    holds("A surgery method", &["fairgrad"], &[CHOICES]);
    for method in DESCRIPTORS.iter().filter(|method| !["mean", "sum"].contains(&method.name)) {
        assert!(root().join(format!("src/surgery/methods/{}.rs", method.name)).is_file(), "{} has no file", method.name);
    }
}

#[test]
fn a_key_is_a_line_and_its_use() {
    // Readers are tested on the settings of a whole task.
    holds("A configuration key", &["max_bad_rounds"], &["src/data/tests"]);
}

#[test]
fn an_encoder_is_a_file_and_its_lines() {
    // How many rows its n-grams touch, and what of them lies on a device; the data that rounds are timed on; readers are tested on the
    // settings of a whole encoder.
    let users =
        ["src/train/shapes.rs", "src/train/accelerator/data.rs", "src/commands/bench", "src/data/tests", "src/config/checks"];
    holds("An encoder", &["Bag", "bag"], &users);
    for kind in EncoderKind::ALL {
        let places = [format!("src/model/encoders/{}.rs", kind.name()), format!("src/model/{}/encoder.rs", kind.name())];
        assert!(places.iter().any(|place| root().join(place).is_file()), "{} has no file", kind.name());
    }
}

#[test]
fn a_policy_is_a_file_and_its_lines() {
    holds("A scheduling policy", &["edf"], &[CHOICES]);
    for policy in POLICIES {
        assert!(root().join(format!("src/schedule/policy/{}.rs", policy.name)).is_file(), "{} has no file", policy.name);
    }
}

#[test]
fn an_operation_is_a_file_a_line_and_a_kernel() {
    // Those in src/ops work on the same bags.
    let users = [
        "src/model",
        "src/train",
        "src/surgery",
        "src/ops/row_gradients.rs",
        "src/ops/row_index.rs",
        "src/ops/row_index",
        "src/ops/token_embedding.rs",
    ];
    holds("An operation", &["embedding_bag"], &users);
    for kernels in root().join("kernels").read_dir().expect("can list").map(|entry| entry.expect("can list").path()) {
        if kernels.extension().is_some_and(|extension| extension == "cu") {
            // Kernels of a backward pass may fill a file of their own.
            let name = kernels.file_stem().expect("a name").to_string_lossy().into_owned();
            let own = root().join("src/ops").join(name.trim_end_matches("_backward")).with_extension("rs");
            assert!(own.is_file(), "{} has no {}", kernels.display(), own.display());
        }
    }
}

/// A registered entry is a choice of the configuration and a line of `taskloom methods` without further ado.
#[test]
fn what_is_registered_is_offered() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("x.toml");
    let common = "[encoder]\nkind = \"linear\"\n[train]\nrounds = 1\n[synthetic]\n";
    std::fs::write(&path, common).expect("can write");
    let accepts = |sets: &[String]| taskloom::config::load(&path, sets).map(drop).unwrap_or_else(|errors| panic!("{errors}"));
    let page = read("docs/methods.md");
    for method in DESCRIPTORS {
        accepts(&[format!("surgery.method={}", method.name)]);
        assert!(page.contains(&format!("### `{}`", method.name)), "{}", method.name);
    }
    for policy in POLICIES {
        accepts(&["schedule.mode=time_sliced".to_owned(), format!("schedule.policy={}", policy.name)]);
    }
}
