//! Files by a pattern: `*` stands for any characters of a name, `?` for one of them.

use std::path::{Component, Path, PathBuf};

/// Whether a path has a name with `*` or `?` in it.
pub fn is_pattern(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str().to_string_lossy().contains(['*', '?']))
}

/// The files that an absolute pattern matches, in the order of their names; none for a path that is no pattern, or that is there as
/// it is written.
pub fn files(pattern: &Path) -> Vec<PathBuf> {
    if !is_pattern(pattern) || pattern.exists() {
        return Vec::new();
    }
    let mut found = vec![PathBuf::new()];
    for part in pattern.components() {
        found = match part {
            Component::Normal(name) if is_pattern(Path::new(name)) => {
                found.iter().flat_map(|folder| matching(folder, &name.to_string_lossy())).collect()
            }
            part => found.into_iter().map(|folder| folder.join(part)).collect(),
        };
    }
    found.retain(|path| path.is_file());
    found.sort();
    found
}

/// Entries of a folder; one whose name begins with a dot has to be asked for.
fn matching(folder: &Path, pattern: &str) -> Vec<PathBuf> {
    let pattern: Vec<char> = pattern.chars().collect();
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name()).filter(|name| {
        let name = name.to_string_lossy();
        (pattern[0] == '.' || !name.starts_with('.')) && matches(&pattern, &name.chars().collect::<Vec<char>>())
    });
    names.map(|name| folder.join(name)).collect()
}

/// Goes back to the last `*` only, so that it takes at most the product of the lengths.
fn matches(pattern: &[char], name: &[char]) -> bool {
    let (mut at, mut in_name) = (0, 0);
    let mut star = None;
    while in_name < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, in_name));
                at += 1;
            }
            Some(&c) if c == '?' || c == name[in_name] => (at, in_name) = (at + 1, in_name + 1),
            _ => {
                let Some((star_at, taken)) = star else { return false };
                star = Some((star_at, taken + 1));
                (at, in_name) = (star_at + 1, taken + 1);
            }
        }
    }
    pattern[at..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::super::testing::Folder;
    use super::*;

    #[test]
    fn stars_and_question_marks() {
        let is_match = |pattern: &str, name: &str| {
            let [pattern, name] = [pattern, name].map(|text| text.chars().collect::<Vec<char>>());
            matches(&pattern, &name)
        };
        for (pattern, name) in [("*", "a"), ("a*b*c", "axbxbc"), ("part-??.csv", "part-07.csv"), ("*.csv", ".csv"), ("a*", "a")] {
            assert!(is_match(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("a*", "ba"), ("?", ""), ("*.csv", "a.csv.gz"), ("a", "A"), ("part-?.csv", "part-07.csv")] {
            assert!(!is_match(pattern, name), "{pattern} {name}");
        }
        assert!(!is_match(&"*a".repeat(200), &"a".repeat(199)));
    }

    #[test]
    fn files_in_order_also_of_several_folders() {
        let names = ["b/2.csv", "a/2.csv", "a/1.csv", "a/1.tsv", "a/.3.csv", "c/sub.csv/x", "[x]?.csv"];
        let folder = Folder::new(&names.map(|name| (name, "")));
        let expected = ["a/1.csv", "a/2.csv", "b/2.csv"].map(|name| folder.path(name));
        assert_eq!(files(&folder.path("*/*.csv")), expected);
        assert_eq!(files(&folder.path("none-*.csv")), Vec::<PathBuf>::new());
        // A name is taken as it is where there is one.
        assert_eq!(files(&folder.path("[x]?.csv")), Vec::<PathBuf>::new());
    }
}
