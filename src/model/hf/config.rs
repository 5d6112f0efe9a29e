//! config.json of an encoder.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::family::{FAMILIES, Family};
use crate::model::transformer::TransformerSpec;

/// What a config.json says about the encoder, each size at least 1.
#[derive(Clone, Debug, PartialEq)]
pub struct HfConfig {
    pub family: &'static Family,
    pub vocabulary: u64,
    pub hidden: u64,
    pub layers: u64,
    pub heads: u64,
    pub intermediate: u64,
    pub positions: u64,
    /// Rows of the table of positions before the first position.
    pub rows_before_positions: u64,
    pub norm_eps: f64,
}

impl HfConfig {
    pub fn read(path: &Path) -> Result<Self> {
        let file = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {file}"))?;
        let value: Value = serde_json::from_str(&text).with_context(|| format!("{file} is not JSON"))?;
        Self::parse(&value).with_context(|| format!("{file} describes no encoder that can be read"))
    }

    fn parse(value: &Value) -> Result<Self> {
        let text = |key: &str, expected: &str| -> Result<()> {
            match value.get(key).filter(|found| !found.is_null()) {
                Some(found) if found != expected => bail!("{key} is {found}, expected \"{expected}\""),
                _ => Ok(()),
            }
        };
        let named = value.get("model_type").filter(|found| !found.is_null());
        let family = match named {
            None => Some(&FAMILIES[0]),
            Some(name) => FAMILIES.iter().find(|family| name == family.model_type),
        };
        let family = family.with_context(|| {
            let known: Vec<String> = FAMILIES.iter().map(|family| format!("\"{}\"", family.model_type)).collect();
            format!("model_type is {}, expected one of {}", named.unwrap_or(&Value::Null), known.join(", "))
        })?;
        let keys = &family.keys;
        text(keys.activation, "gelu")?;
        text("position_embedding_type", "absolute")?;
        let types = value.get("type_vocab_size").unwrap_or(&Value::Null);
        ensure!(types.is_null() || types == family.types, "type_vocab_size is {types}, expected {}", family.types);
        let size = |key: &str| {
            let found = value.get(key).with_context(|| format!("{key} is missing"))?;
            let size = found.as_u64().filter(|size| *size > 0);
            size.with_context(|| format!("{key} is {found}, expected an integer of at least 1"))
        };
        let (hidden, heads) = (size(keys.hidden)?, size(keys.heads)?);
        ensure!(hidden.is_multiple_of(heads), "{} {hidden} is no multiple of {} {heads}", keys.hidden, keys.heads);
        let rows = size("max_position_embeddings")?;
        let before = if family.positions_behind_padding {
            let pad = value
                .get("pad_token_id")
                .and_then(Value::as_u64)
                .context("pad_token_id is missing: positions begin behind it")?;
            pad.saturating_add(1)
        } else {
            0
        };
        ensure!(before < rows, "max_position_embeddings is {rows}, which pad_token_id leaves no position of");
        let norm_eps = value
            .get("layer_norm_eps")
            .map_or(Ok(1e-12), |found| found.as_f64().with_context(|| format!("layer_norm_eps is {found}, expected a number")))?;
        Ok(Self {
            family,
            vocabulary: size("vocab_size")?,
            hidden,
            layers: size(keys.layers)?,
            heads,
            intermediate: size(keys.intermediate)?,
            positions: rows - before,
            rows_before_positions: before,
            norm_eps,
        })
    }

    /// The config.json of an encoder. `dropout` is what it was trained with, `pad` the id of the token that fills up short texts.
    pub fn document(spec: &TransformerSpec, hidden: usize, dropout: f64, pad: Option<u32>) -> Value {
        json!({
            "architectures": ["BertModel"],
            "model_type": "bert",
            "vocab_size": spec.vocabulary,
            "hidden_size": hidden,
            "num_hidden_layers": spec.layers,
            "num_attention_heads": spec.heads,
            "intermediate_size": spec.intermediate,
            "max_position_embeddings": spec.positions,
            "type_vocab_size": spec.types,
            "layer_norm_eps": spec.norm_eps,
            "hidden_act": "gelu",
            "position_embedding_type": "absolute",
            "initializer_range": spec.init,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": spec.attention_dropout,
            "pad_token_id": pad,
            "torch_dtype": "float32",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Value {
        json!({"model_type": "bert", "vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
               "intermediate_size": 16, "max_position_embeddings": 12})
    }

    #[test]
    fn sizes_are_read() {
        let config = HfConfig::parse(&document()).unwrap();
        assert_eq!((config.vocabulary, config.hidden, config.heads, config.norm_eps), (10, 8, 2, 1e-12));
    }

    #[test]
    fn what_is_no_bert_is_refused_by_name() {
        for (key, value, part) in [
            ("model_type", json!("gpt2"), "model_type is \"gpt2\", expected one of \"bert\", \"roberta\", \"distilbert\""),
            ("hidden_act", json!("relu"), "hidden_act is \"relu\", expected \"gelu\""),
            ("position_embedding_type", json!(1), "position_embedding_type is 1, expected \"absolute\""),
            ("num_attention_heads", json!(3), "no multiple"),
            ("type_vocab_size", json!(1), "type_vocab_size is 1"),
            ("type_vocab_size", json!(2.5), "type_vocab_size is 2.5"),
            ("vocab_size", json!(0), "vocab_size is 0, expected an integer of at least 1"),
            ("num_hidden_layers", json!(1e300), "num_hidden_layers is 1e+300, expected an integer"),
            ("num_attention_heads", json!("2"), "num_attention_heads is \"2\""),
            ("intermediate_size", json!(-1), "intermediate_size is -1"),
            ("layer_norm_eps", json!("small"), "layer_norm_eps is \"small\", expected a number"),
        ] {
            let mut document = document();
            document[key] = value;
            let error = HfConfig::parse(&document).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
