//! Weights of a folder into a network's parameters.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use memmap2::Mmap;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::WORDS;
use crate::model::Parameters;
use crate::model::network::Network;

/// Names of left-out tensors said in a note.
const MOST_NAMES: usize = 4;

/// Fills the encoder from a folder; returns notes on what was left out or not found. Tensors may carry the prefix `bert.`,
/// LayerNorms may say gamma and beta, and heads are ignored. A missing pooler keeps its initial values.
pub fn load(folder: &Path, network: &Network, parameters: &mut Parameters) -> Result<Vec<String>> {
    let spec = network.spec.encoder.transformer().context("only a transformer starts from a Hugging Face folder")?;
    let files: Vec<Mmap> = weight_files(folder)?.iter().map(|path| map(path)).collect::<Result<_>>()?;
    let mut tensors = BTreeMap::new();
    for file in &files {
        let parsed = SafeTensors::deserialize(file);
        let parsed = parsed.with_context(|| format!("weights in {} are no safetensors file", folder.display()))?;
        tensors.extend(parsed.iter().map(|(name, view)| (plain_name(name), view)));
    }
    let table = parameters.rows.as_mut().context("a transformer has a word table")?;
    table.touch_all();
    let words = [spec.vocabulary, network.spec.encoder.hidden];
    let mut wanted: Vec<(&str, &[usize], &mut [f32])> = vec![(WORDS, &words, &mut *table.stored_mut()[0])];
    let spaces = [(&network.table.shared, &mut parameters.shared.values), (&network.table.frozen, &mut parameters.frozen)];
    for (params, values) in spaces {
        let mut rest = &mut values[..];
        for param in params {
            let (own, tail) = std::mem::take(&mut rest).split_at_mut(param.len());
            wanted.push((&param.name, &param.shape, own));
            rest = tail;
        }
    }
    let (mut faults, mut notes, mut used) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (name, shape, values) in wanted {
        match tensors.get(name) {
            None if name.starts_with("pooler.") => notes.push(format!("{name} is not in {}: starts anew", folder.display())),
            None => faults.push(format!("{name} is missing")),
            Some(tensor) if tensor.shape() != shape => {
                faults.push(format!("{name} is {:?}, expected {shape:?}", tensor.shape()));
            }
            Some(tensor) => match convert(tensor, values) {
                Ok(()) => drop(used.insert(name.to_owned())),
                Err(fault) => faults.push(format!("{name} {fault}")),
            },
        }
    }
    ensure!(faults.is_empty(), "{}: the weights do not fit config.json:\n  {}", folder.display(), faults.join("\n  "));
    let extra: Vec<&str> = tensors.keys().filter(|name| !used.contains(*name)).map(String::as_str).collect();
    if !extra.is_empty() {
        let shown = extra[..extra.len().min(MOST_NAMES)].join(", ");
        let more = if extra.len() > MOST_NAMES { ", ..." } else { "" };
        notes.push(format!(
            "{} tensors of {} are not the encoder's and were left out: {shown}{more}",
            extra.len(),
            folder.display()
        ));
    }
    Ok(notes)
}

/// The one file, or the shards that the index names.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = folder.join("model.safetensors.index.json");
    if !index.is_file() {
        let old =
            if folder.join("pytorch_model.bin").is_file() { " (pytorch_model.bin is not read: save as safetensors)" } else { "" };
        bail!("{} holds neither model.safetensors nor model.safetensors.index.json{old}", folder.display());
    }
    let text = std::fs::read_to_string(&index).with_context(|| format!("cannot read {}", index.display()))?;
    let value: Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", index.display()))?;
    let map = value["weight_map"].as_object().with_context(|| format!("{} has no weight_map", index.display()))?;
    let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    // SAFETY: read once, here, while loading; a file that somebody changes meanwhile gives wrong weights at worst, as any
    // other way of reading it would.
    unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map {}", path.display()))
}

/// Without `bert.`, and with today's names of a LayerNorm's parameters.
fn plain_name(name: &str) -> String {
    let name = name.strip_prefix("bert.").unwrap_or(name);
    match name.rsplit_once('.') {
        Some((stem, "gamma")) => format!("{stem}.weight"),
        Some((stem, "beta")) => format!("{stem}.bias"),
        _ => name.to_owned(),
    }
}

/// f32, f16 or bf16, little-endian, to f32.
fn convert(tensor: &TensorView, values: &mut [f32]) -> Result<(), String> {
    let bytes = tensor.data();
    match tensor.dtype() {
        Dtype::F32 => {
            let numbers = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            values.iter_mut().zip(numbers).for_each(|(value, number)| *value = number);
        }
        Dtype::BF16 => {
            let numbers = bytes.chunks_exact(2).map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16));
            values.iter_mut().zip(numbers).for_each(|(value, number)| *value = number);
        }
        Dtype::F16 => {
            let numbers = bytes.chunks_exact(2).map(|b| half_to_f32(u16::from_le_bytes([b[0], b[1]])));
            values.iter_mut().zip(numbers).for_each(|(value, number)| *value = number);
        }
        other => return Err(format!("is {other:?}, expected F32, F16 or BF16")),
    }
    Ok(())
}

/// IEEE 754 binary16.
fn half_to_f32(half: u16) -> f32 {
    let sign = if half >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(half >> 10 & 0x1f), f32::from(half & 0x3ff));
    match exponent {
        0 => sign * fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        _ => sign * (1.0 + fraction / 1024.0) * 2f32.powi(exponent - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_old_and_new_checkpoints_meet() {
        assert_eq!(plain_name("bert.embeddings.LayerNorm.gamma"), "embeddings.LayerNorm.weight");
        assert_eq!(plain_name("encoder.layer.0.output.LayerNorm.beta"), "encoder.layer.0.output.LayerNorm.bias");
        assert_eq!(plain_name("pooler.dense.weight"), "pooler.dense.weight");
    }

    #[test]
    fn halves_are_exact() {
        for (bits, value) in [(0x3c00, 1.0), (0xc000, -2.0), (0x0001, 2f32.powi(-24)), (0x7bff, 65_504.0), (0x8000, -0.0)] {
            assert_eq!(half_to_f32(bits), value);
        }
        assert!(half_to_f32(0x7c00).is_infinite() && half_to_f32(0x7e00).is_nan());
    }
}
