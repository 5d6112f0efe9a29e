//! What is wrong with a configuration, where, and what to do about it.

use std::fmt;

use super::tree::Origin;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    /// [`Origin::Default`] when there is no place to point at.
    pub at: Origin,
    /// Dotted, as in `tasks.books.label`; empty when the error is not about one key.
    pub key: String,
    pub message: String,
    pub help: Vec<String>,
}

impl Diagnostic {
    pub fn new(at: Origin, key: impl Into<String>, message: impl Into<String>) -> Diagnostic {
        Diagnostic { at, key: key.into(), message: message.into(), help: Vec::new() }
    }

    pub fn help(mut self, line: impl Into<String>) -> Diagnostic {
        self.help.push(line.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            Origin::File { source, line, column } => write!(f, "{}:{line}:{column}: ", source.path.display())?,
            Origin::Set(text) => write!(f, "--set {text}: ")?,
            Origin::Default => {}
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        self.help.iter().try_for_each(|line| write!(f, "\n  help: {line}"))
    }
}

/// Every error of a configuration, in reading order. Never empty when returned by [`super::load`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Errors(Vec<Diagnostic>);

impl Errors {
    /// Sorted by place; what several tasks inherited is said once.
    pub fn new(mut diagnostics: Vec<Diagnostic>) -> Errors {
        diagnostics.sort();
        diagnostics.dedup();
        Errors(diagnostics)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.0
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::super::tree::Source;
    use super::*;

    fn at(line: usize, column: usize) -> Origin {
        let source = Arc::new(Source { depth: 0, path: PathBuf::from("reviews.toml") });
        Origin::File { source, line, column }
    }

    #[test]
    fn a_diagnostic_names_place_key_problem_and_help() {
        let text = Diagnostic::new(at(3, 7), "run.sed", "unknown key").help("did you mean `seed`?").to_string();
        assert_eq!(text, "reviews.toml:3:7: run.sed: unknown key\n  help: did you mean `seed`?");
    }

    #[test]
    fn a_set_is_named_by_its_text() {
        let text = Diagnostic::new(Origin::Set("run.sed=1".into()), "run.sed", "unknown key").to_string();
        assert_eq!(text, "--set run.sed=1: run.sed: unknown key");
    }

    #[test]
    fn errors_are_sorted_by_place_and_said_once() {
        let late = Diagnostic::new(at(10, 1), "b", "late");
        let early = Diagnostic::new(at(9, 2), "a", "early");
        let nowhere = Diagnostic::new(Origin::Default, "", "nowhere");
        let errors = Errors::new(vec![nowhere.clone(), late.clone(), early.clone(), late.clone()]);
        assert_eq!(errors.diagnostics(), [early, late, nowhere]);
        assert_eq!(errors.to_string().lines().count(), 3);
    }
}
