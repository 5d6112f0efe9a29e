//! Configurations written to a temporary folder, for the tests of this room.

use std::path::PathBuf;

use super::{Errors, Origin, Resolved, load};

pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new(files: &[(&str, &str)]) -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        for (name, text) in files {
            let path = folder.path(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Loads its `main.toml`.
    pub fn load(&self, sets: &[&str]) -> Result<Resolved, Errors> {
        let sets: Vec<_> = sets.iter().map(|set| set.to_string()).collect();
        load(&self.path("main.toml"), &sets)
    }
}

pub fn load_text(text: &str, sets: &[&str]) -> Result<Resolved, Errors> {
    Folder::new(&[("main.toml", text)]).load(sets)
}

pub fn errors(text: &str) -> Errors {
    load_text(text, &[]).unwrap_err()
}

/// Line, column and key of each error.
pub fn locations(errors: &Errors) -> Vec<(usize, usize, &str)> {
    let place = |at: &Origin| match at {
        Origin::File { line, column, .. } => (*line, *column),
        _ => (0, 0),
    };
    errors.diagnostics().iter().map(|error| (place(&error.at).0, place(&error.at).1, error.key.as_str())).collect()
}
