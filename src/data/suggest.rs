//! "Did you mean": the closest of a list of names, and a list that fits in a message.

use crate::suggest::nearest;

/// Names listed in one message at most.
const MOST_NAMES: usize = 20;

/// Candidates looked at: there may be as many as a file has rows, and a message for each of them.
const MOST_CANDIDATES: usize = 1_000;

/// Characters of a name that are shown.
const MOST_CHARS: usize = 60;

/// The beginning of a text that may be a whole page.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// The candidate that `name` was most likely meant to be.
pub(super) fn closest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    nearest(name, candidates.into_iter().take(MOST_CANDIDATES))
}

/// `` `a`, `b` and 3 more``
pub(super) fn list<S: AsRef<str>>(names: &[S]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    let shown: Vec<String> = names.iter().take(MOST_NAMES).map(|name| format!("`{}`", shorten(name.as_ref()))).collect();
    match names.len().saturating_sub(MOST_NAMES) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// ``no column `lable`; there is: `label`, `text`; did you mean `label`?``
pub(super) fn missing<S: AsRef<str>>(what: &str, name: &str, there_is: &[S]) -> String {
    let hint = match closest(name, there_is.iter().map(AsRef::as_ref)) {
        Some(close) => format!("; did you mean `{close}`?"),
        None => String::new(),
    };
    format!("no {what} `{}`; there is: {}{hint}", shorten(name), list(there_is))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_shown_by_its_beginning() {
        let page = "word ".repeat(40_000);
        assert!(missing("column", &page, &[&page]).len() < 300);
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..25).map(|i| i.to_string()).collect();
        assert!(list(&names).ends_with("`19` and 5 more"));
        assert_eq!(list::<&str>(&[]), "none");
    }
}
