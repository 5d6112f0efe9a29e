//! config.json of a BERT.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::model::transformer::TransformerSpec;

/// What a config.json says about the encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct HfConfig {
    pub vocabulary: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub intermediate: usize,
    pub positions: usize,
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
            match value.get(key).and_then(Value::as_str) {
                Some(found) if found != expected => bail!("{key} is \"{found}\", expected \"{expected}\""),
                _ => Ok(()),
            }
        };
        text("model_type", "bert")?;
        text("hidden_act", "gelu")?;
        text("position_embedding_type", "absolute")?;
        let number = |key: &str| {
            let found = value.get(key).and_then(Value::as_u64).filter(|number| *number > 0);
            found.map(|number| number as usize).with_context(|| format!("{key} is missing or no positive number"))
        };
        let types = value.get("type_vocab_size").and_then(Value::as_u64).unwrap_or(2);
        ensure!(types == 2, "type_vocab_size is {types}, expected 2 (first and second text)");
        let (hidden, heads) = (number("hidden_size")?, number("num_attention_heads")?);
        ensure!(hidden.is_multiple_of(heads), "hidden_size {hidden} is no multiple of num_attention_heads {heads}");
        Ok(Self {
            vocabulary: number("vocab_size")?,
            hidden,
            layers: number("num_hidden_layers")?,
            heads,
            intermediate: number("intermediate_size")?,
            positions: number("max_position_embeddings")?,
            norm_eps: value.get("layer_norm_eps").and_then(Value::as_f64).unwrap_or(1e-12),
        })
    }

    /// The config.json of an encoder. `dropout` is what it was trained with.
    pub fn document(spec: &TransformerSpec, hidden: usize, dropout: f64) -> Value {
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
            "pad_token_id": 0,
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
            ("model_type", json!("roberta"), "model_type is \"roberta\""),
            ("hidden_act", json!("relu"), "hidden_act"),
            ("num_attention_heads", json!(3), "no multiple"),
            ("type_vocab_size", json!(1), "type_vocab_size is 1"),
            ("vocab_size", json!(0), "vocab_size is missing"),
        ] {
            let mut document = document();
            document[key] = value;
            let error = HfConfig::parse(&document).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
