//! Models that Hugging Face's own libraries have fetched: `encoder.from` may name one of them.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders of fetched models, in the order in which they are looked through: those that the environment names, then the usual
/// one.
pub fn model_caches() -> Vec<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")));
    let found = [
        named("HF_HUB_CACHE"),
        named("HUGGINGFACE_HUB_CACHE"),
        named("HF_HOME").map(|home| home.join("hub")),
        cache.map(|cache| cache.join("huggingface/hub")),
    ];
    let mut folders: Vec<PathBuf> = Vec::new();
    for folder in found.into_iter().flatten() {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

/// Whether `name` can be that of a model: `bert-base-uncased` or `google/bert_uncased_L-2_H-128_A-2`.
pub fn is_model_name(name: &str) -> bool {
    let is_part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    let parts: Vec<&str> = name.split('/').collect();
    parts.len() <= 2 && parts.into_iter().all(is_part)
}

/// Where the model is in one of the folders: the snapshot that `refs/main` names, else the only one.
pub fn cached_model(name: &str, caches: &[PathBuf]) -> Option<PathBuf> {
    if !is_model_name(name) {
        return None;
    }
    caches.iter().find_map(|cache| snapshot(&place(name, cache)))
}

/// Where a folder of fetched models has the model, if it has it.
pub fn place(name: &str, cache: &Path) -> PathBuf {
    cache.join(format!("models--{}", name.replace('/', "--")))
}

fn snapshot(model: &Path) -> Option<PathBuf> {
    let snapshots = model.join("snapshots");
    let is_model = |folder: &PathBuf| folder.join("config.json").is_file();
    if let Ok(commit) = fs::read_to_string(model.join("refs/main")) {
        let named = snapshots.join(commit.trim());
        // An empty or strange reference leads to no folder of its own.
        if is_model_name(commit.trim()) && is_model(&named) {
            return Some(named);
        }
    }
    let mut all = fs::read_dir(snapshots).ok()?.flatten().map(|entry| entry.path()).filter(is_model);
    all.next().filter(|_| all.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(cache: &Path, name: &str, commit: &str) -> PathBuf {
        let folder = place(name, cache).join("snapshots").join(commit);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("config.json"), "{}").unwrap();
        folder
    }

    #[test]
    fn names_are_told_from_paths() {
        assert!(["bert-base-uncased", "google/bert_uncased_L-2", "a.b"].into_iter().all(is_model_name));
        assert!(!["/a", "a/b/c", "../a", ".", "", "~/a", "a/"].into_iter().any(is_model_name));
    }

    #[test]
    fn the_main_snapshot_is_taken() {
        let place_of = tempfile::tempdir().unwrap();
        let [empty, cache] = ["empty", "hub"].map(|name| place_of.path().join(name));
        let caches = [empty, cache.clone()];
        assert_eq!(cached_model("org/small", &caches), None);
        let first = model(&cache, "org/small", "1111");
        assert_eq!(cached_model("org/small", &caches), Some(first));
        let second = model(&cache, "org/small", "2222");
        assert_eq!(cached_model("org/small", &caches), None, "which of the two?");
        let refs = place("org/small", &cache).join("refs");
        fs::create_dir_all(&refs).unwrap();
        fs::write(refs.join("main"), "2222\n").unwrap();
        assert_eq!(cached_model("org/small", &caches), Some(second));
        assert_eq!(cached_model("../org/small", &caches), None);
    }
}
