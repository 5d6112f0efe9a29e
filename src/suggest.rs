//! "Did you mean": the known name that a word was most likely meant to be.

/// Longer words are no names with a slip in them.
const MOST_BYTES: usize = 256;

/// The candidate a slip of the keyboard or of memory away from `word`, if any is.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let near = |candidate: &str| {
        // Distances cost the product of the lengths, in time and in memory.
        if word.len().max(candidate.len()) > MOST_BYTES {
            return None;
        }
        let other = candidate.to_lowercase();
        let distance = strsim::damerau_levenshtein(&word, &other);
        let longer = word.chars().count().max(other.chars().count());
        let part = word.len().min(other.len()) >= 4 && (word.contains(&other) || other.contains(&word));
        (distance <= (longer / 3).max(1) && distance < longer || part).then_some(distance)
    };
    candidates.into_iter().filter_map(|candidate| Some((near(candidate)?, candidate))).min().map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_name_and_a_stranger_none() {
        assert_eq!(nearest("epoch", ["epochs", "rounds"]), Some("epochs"));
        assert_eq!(nearest("Wieght", ["weight", "period"]), Some("weight"));
        assert_eq!(nearest("max_length", ["max_len", "ngrams"]), Some("max_len"));
        assert_eq!(nearest("lable", ["text", "label"]), Some("label"));
        assert_eq!(nearest("Text", ["text", "label"]), Some("text"));
        for stranger in ["x", "banana", "zebra"] {
            assert_eq!(nearest(stranger, ["lr", "y", "epochs", "label"]), None, "{stranger}");
        }
    }

    #[test]
    fn a_page_is_no_slip() {
        let page = "word ".repeat(40_000);
        assert_eq!(nearest(&page, [page.as_str(), "max_len"]), None);
        assert_eq!(nearest("max_length", [page.as_str(), "max_len"]), Some("max_len"));
    }
}
