//! "Did you mean": the closest of a list of names, and a list that fits in a message.

/// Names listed in one message at most.
const MOST_NAMES: usize = 20;

/// Longer texts are no names with a slip in them, and comparing costs the product of the lengths.
const MOST_BYTES: usize = 256;

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
    if name.len() > MOST_BYTES {
        return None;
    }
    let candidates = candidates.into_iter().take(MOST_CANDIDATES).filter(|candidate| candidate.len() <= MOST_BYTES);
    let folded = name.to_lowercase();
    let score = |candidate: &str| strsim::jaro_winkler(&folded, &candidate.to_lowercase());
    let scored = candidates.map(|candidate| (score(candidate), candidate));
    // Below 0.8 two names share hardly more than a few letters.
    scored.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, candidate)| candidate)
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
    fn suggests_the_closest_name_or_none() {
        assert_eq!(closest("lable", ["text", "label"]), Some("label"));
        assert_eq!(closest("Text", ["text", "label"]), Some("text"));
        assert_eq!(closest("zebra", ["text", "label"]), None);
    }

    #[test]
    fn pages_are_no_names() {
        let page = "word ".repeat(40_000);
        assert_eq!(closest(&page, [page.as_str(), "label"]), None);
        assert_eq!(closest("label", [page.as_str(), "lable"]), Some("lable"));
        assert!(missing("column", &page, &[&page]).len() < 300);
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..25).map(|i| i.to_string()).collect();
        assert!(list(&names).ends_with("`19` and 5 more"));
        assert_eq!(list::<&str>(&[]), "none");
    }
}
