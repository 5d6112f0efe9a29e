//! Data files and the tokenizer are where the configuration says.

use std::io::ErrorKind;
use std::path::Path;

use super::super::paths::WORDS;
use super::super::patterns::is_pattern;
use super::{Checker, task_key};

pub fn check(checker: &mut Checker) {
    let config = checker.config;
    if let Some(tokenizer) = config.encoder.tokenizer.as_deref().filter(|tokenizer| *tokenizer != WORDS) {
        file(checker, "encoder.tokenizer", Path::new(tokenizer));
    }
    if let Some(from) = &config.tasks_from {
        file(checker, "tasks_from.file", &from.file);
    }
    for (name, task) in &config.tasks {
        let key = task_key(name);
        for (name, files) in task.files() {
            files.iter().for_each(|path| file(checker, &format!("{key}.{name}"), path));
        }
    }
}

fn file(checker: &mut Checker, key: &str, path: &Path) {
    let shown = path.display();
    let message = match path.metadata() {
        Ok(found) if found.is_dir() => format!("{shown} is a folder, not a file"),
        Ok(_) => return,
        Err(error) if error.kind() == ErrorKind::NotFound && is_pattern(path) => format!("no file matches: {shown}"),
        Err(error) if error.kind() == ErrorKind::NotFound => format!("no such file: {shown}"),
        Err(error) => format!("cannot read {shown}: {error}"),
    };
    let origin = &checker.config.data.origin;
    let help = if origin.is_empty() { String::new() } else { format!("the set comes from: {origin}") };
    checker.error(&[key], message, &help);
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::Folder;

    fn run(data: &str, task: &str) -> (Folder, String) {
        let text = format!(
            "[encoder]\nkind = \"linear\"\n[train]\nrounds = 1\n[data]\n{data}\n[task_defaults]\nfeatures = \"x\"\n\
             label = \"y\"\n{task}\n"
        );
        let folder = Folder::new(&[("main.toml", &text), ("a.csv", ""), ("sub/b.csv", "")]);
        let errors = folder.load(&[]).err().map(|errors| errors.to_string()).unwrap_or_default();
        (folder, errors)
    }

    #[test]
    fn a_missing_file_is_named_with_its_key_path_and_origin() {
        let (folder, errors) = run("origin = \"https://sets.example/x\"", "[tasks.a]\ntrain = \"none.csv\"");
        let (main, path) = (folder.path("main.toml"), folder.path("none.csv"));
        let expected = format!(
            "{}:11:9: tasks.a.train: no such file: {}\n  help: the set comes from: https://sets.example/x",
            main.display(),
            path.display()
        );
        assert_eq!(errors, expected);
    }

    #[test]
    fn a_pattern_without_files_is_an_error() {
        let (folder, errors) = run("", "[tasks.a]\ntrain = [\"a.csv\", \"b-*.csv\"]");
        assert!(errors.contains(&format!("tasks.a.train: no file matches: {}", folder.path("b-*.csv").display())), "{errors}");
    }

    #[test]
    fn a_folder_is_no_file() {
        let (folder, errors) = run("", "[tasks.a]\ntrain = \"a.csv\"\ndev = \"sub\"");
        assert!(errors.ends_with(&format!("tasks.a.dev: {} is a folder, not a file", folder.path("sub").display())));
    }

    #[test]
    fn the_file_of_all_tasks_is_checked_once() {
        let (_folder, errors) = run("", "split = \"s\"\n[tasks_from]\nfile = \"none.csv\"\n[tasks.a]\nweight = 2");
        assert_eq!(errors.lines().count(), 1, "{errors}");
        assert!(errors.contains(": tasks_from.file: no such file: "), "{errors}");
    }

    #[test]
    fn a_missing_tokenizer_is_an_error() {
        let folder = Folder::new(&[(
            "main.toml",
            "[encoder]\nkind = \"bag\"\ntokenizer = \"vocab.txt\"\n[train]\nrounds = 1\n[tasks.a]\ntrain = \"main.toml\"\n\
             text = \"x\"\nlabel = \"y\"\n",
        )]);
        assert!(folder.load(&[]).unwrap_err().to_string().contains(":3:13: encoder.tokenizer: no such file: "));
    }
}
