//! A trained encoder as a folder that transformers loads, with the tasks' heads beside it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Classifier, HfConfig, WORDS};
use crate::model::Parameters;
use crate::model::network::Network;
use crate::model::spec::{HeadKind, Param};
use crate::model::transformer::Pooling;

/// What heads.json says of a task.
#[derive(Clone, Debug, Serialize)]
pub struct HeadFile {
    pub kind: HeadKind,
    pub outputs: usize,
    /// In index order; empty for regression.
    pub classes: Vec<String>,
    /// Of regression on scaled labels: what each of the head's answers is to be multiplied by, and what is then added.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub label_deviation: Vec<f32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub label_mean: Vec<f32>,
    /// What the head sees of the encoder's output: `cls`, the first token; `mean`, the mean of all; `pooler`, the pooler's. An
    /// `mlm` head sees every token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
}

/// A tokenizer as transformers is to find it.
#[derive(Clone, Debug)]
pub struct HfTokenizer {
    /// tokenizer.json.
    pub json: String,
    /// Those there are.
    pub special: Vec<SpecialToken>,
    /// Longest sequence, special tokens counted.
    pub max_len: usize,
}

#[derive(Clone, Debug)]
pub struct SpecialToken {
    /// `cls_token`, `pad_token`, ...
    pub role: &'static str,
    pub token: String,
    pub id: u32,
}

/// Writes config.json, model.safetensors (a BertModel, or with a `classifier` a BertForSequenceClassification), heads.json and
/// heads.safetensors (tensors `heads.TASK.weight` and `.bias`), and where there is one tokenizer.json with its
/// tokenizer_config.json.
pub fn export(
    out: &Path,
    network: &Network,
    parameters: &Parameters,
    heads: &BTreeMap<String, HeadFile>,
    tokenizer: Option<&HfTokenizer>,
    classifier: Option<&Classifier>,
) -> Result<()> {
    let encoder = network.spec.encoder.transformer();
    let encoder = encoder.context("only a transformer encoder has a Hugging Face form")?;
    let (spec, hidden) = (&encoder.spec, encoder.hidden);
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let table = parameters.rows.as_ref().context("a transformer has a word table")?;
    let words = table.whole();
    let mut tensors = BTreeMap::new();
    let view = TensorView::new(Dtype::F32, vec![spec.vocabulary, hidden], bytemuck::cast_slice(&words))?;
    tensors.insert(WORDS.to_owned(), view);
    add(&mut tensors, &network.table.shared, &parameters.shared.values)?;
    add(&mut tensors, &network.table.frozen, &parameters.frozen)?;
    if let Some(Classifier { weight, bias, .. }) = classifier {
        tensors = tensors.into_iter().map(|(name, view)| (format!("bert.{name}"), view)).collect();
        let shape = vec![bias.len(), hidden];
        tensors.insert("classifier.weight".to_owned(), TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(weight))?);
        tensors.insert("classifier.bias".to_owned(), TensorView::new(Dtype::F32, vec![bias.len()], bytemuck::cast_slice(bias))?);
    }
    write_tensors(&out.join("model.safetensors"), &tensors)?;
    let mut tensors = BTreeMap::new();
    add(&mut tensors, &network.table.heads, &parameters.heads.values)?;
    write_tensors(&out.join("heads.safetensors"), &tensors)?;
    write_json(&out.join("heads.json"), &serde_json::to_value(heads)?)?;
    let pad = tokenizer.and_then(|tokenizer| tokenizer.special.iter().find(|token| token.role == "pad_token"));
    let pad = pad.map(|token| token.id);
    let mut config = HfConfig::document(spec, hidden, encoder.dropout, pad);
    classifier.iter().for_each(|classifier| classifier.describe(&mut config));
    write_json(&out.join("config.json"), &config)?;
    if let Some(tokenizer) = tokenizer {
        write_json(&out.join("tokenizer.json"), &with_special_tokens(tokenizer, [spec.cls, spec.sep])?)?;
        write_json(&out.join("tokenizer_config.json"), &tokenizer_config(tokenizer))?;
    }
    Ok(())
}

/// The general class reads tokenizer.json as it is, where BERT's own would put its normalizer in place of the file's; and it
/// leaves out the token types, which tell a pair's texts apart, unless they are asked for.
fn tokenizer_config(tokenizer: &HfTokenizer) -> Value {
    let mut settings = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "model_max_length": tokenizer.max_len,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": false,
    });
    for SpecialToken { role, token, .. } in &tokenizer.special {
        settings[*role] = json!(token);
    }
    settings
}

/// The tokenizer.json with the rule that training follows, whatever its own is: `cls` before a text and `sep` after each.
fn with_special_tokens(tokenizer: &HfTokenizer, [cls, sep]: [u32; 2]) -> Result<Value> {
    let mut value: Value = serde_json::from_str(&tokenizer.json).context("the tokenizer is no JSON")?;
    let named = |id: u32| {
        let found = tokenizer.special.iter().find(|token| token.id == id);
        found.map(|token| json!([token.token, id])).with_context(|| format!("the tokenizer has no token {id}"))
    };
    value["post_processor"] = json!({ "type": "BertProcessing", "sep": named(sep)?, "cls": named(cls)? });
    Ok(value)
}

fn add<'a>(tensors: &mut BTreeMap<String, TensorView<'a>>, params: &[Param], values: &'a [f32]) -> Result<()> {
    for param in params {
        let view = TensorView::new(Dtype::F32, param.shape.clone(), bytemuck::cast_slice(&values[param.range()]))?;
        tensors.insert(param.name.clone(), view);
    }
    Ok(())
}

fn write_tensors(path: &Path, tensors: &BTreeMap<String, TensorView>) -> Result<()> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(tensors, Some(metadata)).with_context(|| format!("cannot lay out {}", path.display()))?;
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    write(path, &format!("{value:#}\n"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
