//! A trained encoder as a folder that transformers loads, with the tasks' heads beside it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Serialize;
use serde_json::{Value, json};

use super::{HfConfig, WORDS};
use crate::model::Parameters;
use crate::model::network::Network;
use crate::model::spec::{HeadKind, Param};

/// What heads.json says of a task.
#[derive(Clone, Debug, Serialize)]
pub struct HeadFile {
    pub kind: HeadKind,
    pub outputs: usize,
    /// In index order; empty for regression.
    pub classes: Vec<String>,
}

/// Writes config.json, model.safetensors (a BertModel), heads.json and heads.safetensors (tensors `heads.TASK.weight` and
/// `.bias`), and where there is one tokenizer.json with its tokenizer_config.json.
pub fn export(
    out: &Path,
    network: &Network,
    parameters: &Parameters,
    heads: &BTreeMap<String, HeadFile>,
    tokenizer: Option<&str>,
) -> Result<()> {
    let spec = network.spec.encoder.transformer();
    let spec = spec.context("only a transformer encoder has a Hugging Face form; this run's is linear or bag")?;
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let hidden = network.spec.encoder.hidden;
    let table = parameters.rows.as_ref().context("a transformer has a word table")?;
    let words = table.whole();
    let mut tensors = BTreeMap::new();
    let view = TensorView::new(Dtype::F32, vec![spec.vocabulary, hidden], bytemuck::cast_slice(&words))?;
    tensors.insert(WORDS.to_owned(), view);
    add(&mut tensors, &network.table.shared, &parameters.shared.values)?;
    add(&mut tensors, &network.table.frozen, &parameters.frozen)?;
    write_tensors(&out.join("model.safetensors"), &tensors)?;
    let mut tensors = BTreeMap::new();
    add(&mut tensors, &network.table.heads, &parameters.heads.values)?;
    write_tensors(&out.join("heads.safetensors"), &tensors)?;
    write_json(&out.join("heads.json"), &serde_json::to_value(heads)?)?;
    write_json(&out.join("config.json"), &HfConfig::document(spec, hidden, network.spec.encoder.dropout))?;
    if let Some(tokenizer) = tokenizer {
        write(&out.join("tokenizer.json"), &with_special_tokens(tokenizer, [spec.cls, spec.sep])?)?;
        let settings = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": spec.positions,
            "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]",
        });
        write_json(&out.join("tokenizer_config.json"), &settings)?;
    }
    Ok(())
}

/// A tokenizer.json that puts `cls` before a text and `sep` after each, as training did, unless it has its own rule.
fn with_special_tokens(tokenizer: &str, [cls, sep]: [u32; 2]) -> Result<String> {
    let mut value: Value = serde_json::from_str(tokenizer).context("the tokenizer is no JSON")?;
    if value["post_processor"].is_null() {
        let name = |id: u32| {
            let mut words = value["model"]["vocab"].as_object().into_iter().flatten();
            let found = words.find(|(_, number)| number.as_u64() == Some(u64::from(id)));
            found.map(|(word, _)| word.clone()).with_context(|| format!("the tokenizer has no word {id}"))
        };
        let rule = json!({ "type": "BertProcessing", "sep": [name(sep)?, sep], "cls": [name(cls)?, cls] });
        value["post_processor"] = rule;
    }
    Ok(format!("{value}\n"))
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
