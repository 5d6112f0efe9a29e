//! `encoder.freeze`: the prefix of a transformer that is not trained.

use std::collections::BTreeSet;

/// How many blocks (embeddings, then layers) `encoder.freeze` names; they have to be the encoder's first ones.
pub fn frozen_blocks(names: &[String], layers: Option<usize>) -> Result<usize, String> {
    let mut blocks = BTreeSet::new();
    for name in names {
        let range = match name.strip_prefix("layer.") {
            None if name == "embeddings" => Some(0..=0),
            None => None,
            Some(range) => {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                first.parse().ok().zip(last.parse().ok()).map(|(first, last): (usize, usize)| first + 1..=last + 1)
            }
        };
        match range.filter(|range| !range.is_empty() && *range.end() <= 1 << 20) {
            Some(range) => blocks.extend(range),
            None => return Err(format!("\"{name}\" is no block: expected `embeddings`, `layer.N` or `layer.N-M`")),
        }
    }
    let count = blocks.len();
    if let (Some(layers), Some(last)) = (layers, blocks.last().filter(|last| **last > 0)) {
        if *last > layers {
            return Err(format!("names layer {}, the encoder's last is {}", last - 1, layers - 1));
        }
        if *last == layers {
            return Err("freezes every layer, so that nothing of them is left to train".into());
        }
    }
    match blocks.iter().enumerate().find(|(index, block)| index != *block) {
        Some((0, _)) => Err("leaves out `embeddings`: what is frozen has to be the encoder's first blocks".into()),
        Some((index, _)) => Err(format!("leaves out `layer.{}`: what is frozen has to be the encoder's first blocks", index - 1)),
        None => Ok(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(names: &[&str]) -> Result<usize, String> {
        frozen_blocks(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), Some(4))
    }

    #[test]
    fn a_prefix_is_counted() {
        assert_eq!(blocks(&[]), Ok(0));
        assert_eq!(blocks(&["embeddings"]), Ok(1));
        assert_eq!(blocks(&["layer.0-1", "embeddings", "layer.2"]), Ok(4));
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        for (names, part) in [
            (&["layer.0"][..], "leaves out `embeddings`"),
            (&["embeddings", "layer.1"], "leaves out `layer.0`"),
            (&["embeddings", "layer.0-3"], "freezes every layer"),
            (&["embeddings", "layer.0-9"], "names layer 9"),
            (&["pooler"], "is no block"),
            (&["layer.2-1"], "is no block"),
        ] {
            assert!(blocks(names).unwrap_err().contains(part), "{names:?}");
        }
    }
}
