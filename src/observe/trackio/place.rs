//! Where Trackio keeps a project.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// The file of a project: a name in Trackio's folder.
pub fn file(project: &str) -> Result<PathBuf> {
    let folder = folder(|name| std::env::var_os(name).filter(|value| !value.is_empty()));
    let folder = folder.context("observe.trackio: there is no folder for Trackio's files: set TRACKIO_DIR")?;
    Ok(folder.join(format!("{}.db", file_name(project))))
}

/// Trackio's own folder, then the one of Hugging Face's libraries, then that folder's usual place.
fn folder(named: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name: &str| named(name).map(PathBuf::from);
    let home = || path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache"))).map(|cache| cache.join("huggingface"));
    path("TRACKIO_DIR").or_else(|| Some(path("HF_HOME").or_else(home)?.join("trackio")))
}

/// Trackio takes a name's letters, digits, `_` and `-`.
fn file_name(project: &str) -> String {
    project.chars().filter(|c| c.is_alphanumeric() || "_-".contains(*c)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_trackios() {
        let found = |variables: &[(&str, &str)]| {
            folder(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value)))
        };
        let all = [("TRACKIO_DIR", "/t"), ("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/me")];
        let expected = ["/t", "/h/trackio", "/x/huggingface/trackio", "/me/.cache/huggingface/trackio"];
        for (first, expected) in expected.into_iter().enumerate() {
            assert_eq!(found(&all[first..]), Some(PathBuf::from(expected)));
        }
        assert_eq!(found(&[]), None);
        assert_eq!(file_name("my.model_2-b"), "mymodel_2-b");
    }
}
