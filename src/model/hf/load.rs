//! Weights of a folder into a network's parameters.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use memmap2::Mmap;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::family::Family;
use super::{HfConfig, POSITIONS, TYPES, WORDS};
use crate::model::Parameters;
use crate::model::encoders::Encoder;
use crate::model::network::Network;

/// Names of left-out tensors said in a note.
const MOST_NAMES: usize = 4;

/// Whether the weights in a folder are those of this encoder, by their headers.
pub fn check(folder: &Path, encoder: &dyn Encoder) -> Result<()> {
    let (files, theirs) = (WeightFiles::open(folder)?, config(folder)?);
    check_tensors(folder, &files.tensors(theirs.family)?, &wanted(encoder, &theirs))
}

/// Fills the encoder from a folder; returns notes on what was left out or not found. Tensors may carry their family's prefix,
/// LayerNorms may say gamma and beta, and heads are ignored. A missing pooler keeps its initial values.
pub fn load(folder: &Path, network: &Network, parameters: &mut Parameters) -> Result<Vec<String>> {
    let (files, theirs) = (WeightFiles::open(folder)?, config(folder)?);
    let tensors = files.tensors(theirs.family)?;
    let wanted = wanted(&*network.spec.encoder, &theirs);
    check_tensors(folder, &tensors, &wanted)?;
    let words = parameters.rows.as_mut().context("a transformer has a word table")?;
    words.touch_all();
    let mut spaces: BTreeMap<&str, &mut [f32]> = BTreeMap::from([(WORDS, &mut *words.stored_mut()[0])]);
    for (params, values) in
        [(&network.table.shared, &mut parameters.shared.values), (&network.table.frozen, &mut parameters.frozen)]
    {
        let mut rest = &mut values[..];
        for param in params {
            let (own, tail) = std::mem::take(&mut rest).split_at_mut(param.len());
            spaces.insert(&param.name, own);
            rest = tail;
        }
    }
    let mut notes = Vec::new();
    for (name, values) in spaces {
        if name == TYPES && theirs.family.types == 0 {
            // Then nothing is added up, as without types.
            values.fill(0.0);
            continue;
        }
        let Some(tensor) = tensors.get(name) else {
            notes.push(format!("{name} is not in {}: starts anew", folder.display()));
            continue;
        };
        let width = tensor.shape().last().copied().unwrap_or(0);
        let skipped = if name == POSITIONS { theirs.rows_before_positions as usize * width } else { 0 };
        convert(tensor, skipped, values);
        if name == TYPES && theirs.family.types == 1 {
            values.copy_within(..width, width);
        }
        ensure!(
            values.iter().all(|value| value.is_finite()),
            "{}: {name} holds a number that is not finite: save the encoder again from a sound checkpoint",
            folder.display()
        );
    }
    let extra: Vec<&str> = tensors.keys().map(String::as_str).filter(|name| wanted.iter().all(|(own, _)| own != name)).collect();
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

fn config(folder: &Path) -> Result<HfConfig> {
    HfConfig::read(&folder.join("config.json"))
}

/// Name and shape of every tensor of the encoder, as a folder of this configuration has them.
fn wanted(encoder: &dyn Encoder, theirs: &HfConfig) -> Vec<(String, Vec<usize>)> {
    let words = encoder.table().map(|table| (WORDS.to_owned(), vec![table.rows, table.dim]));
    let dense = encoder.params().into_iter().flatten().map(|param| (param.name, param.shape));
    let in_folder = |(name, mut shape): (String, Vec<usize>)| {
        match &name[..] {
            POSITIONS => shape[0] += theirs.rows_before_positions as usize,
            TYPES => shape[0] = theirs.family.types,
            _ => {}
        }
        (shape[0] > 0).then_some((name, shape))
    };
    words.into_iter().chain(dense).filter_map(in_folder).collect()
}

/// An error that names every tensor that is missing or another one than is wanted.
fn check_tensors(folder: &Path, tensors: &BTreeMap<String, TensorView>, wanted: &[(String, Vec<usize>)]) -> Result<()> {
    let fault = |(name, shape): &(String, Vec<usize>)| match tensors.get(name) {
        None if name.starts_with("pooler.") => None,
        None => Some(format!("{name} is missing")),
        Some(tensor) if tensor.shape() != shape => Some(format!("{name} is {:?}, expected {shape:?}", tensor.shape())),
        Some(tensor) if reading(tensor.dtype()).is_none() => {
            Some(format!("{name} holds {:?}, expected F32, F16 or BF16", tensor.dtype()))
        }
        Some(_) => None,
    };
    let faults: Vec<String> = wanted.iter().filter_map(fault).collect();
    ensure!(faults.is_empty(), "{}: the weights do not fit config.json:\n  {}", folder.display(), faults.join("\n  "));
    Ok(())
}

struct WeightFiles(Vec<(PathBuf, Mmap)>);

impl WeightFiles {
    fn open(folder: &Path) -> Result<Self> {
        let files = weight_files(folder)?.into_iter().map(|path| map(&path).map(|bytes| (path, bytes)));
        Ok(Self(files.collect::<Result<_>>()?))
    }

    /// All tensors, by BERT's names.
    fn tensors(&self, family: &Family) -> Result<BTreeMap<String, TensorView<'_>>> {
        let mut tensors = BTreeMap::new();
        for (path, bytes) in &self.0 {
            let parsed = SafeTensors::deserialize(bytes);
            let parsed = parsed.with_context(|| format!("{} is no whole safetensors file", path.display()))?;
            for (name, view) in parsed.iter() {
                let plain = family.plain_name(name);
                ensure!(!tensors.contains_key(&plain), "{}: {name} is there a second time, as {plain}", path.display());
                tensors.insert(plain, view);
            }
        }
        Ok(tensors)
    }
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
    // A shard is a file of this folder.
    let shard = |name: &Value| name.as_str().filter(|name| Path::new(name).file_name() == Some(name.as_ref())).map(str::to_owned);
    let shards: BTreeSet<String> = map
        .iter()
        .map(|(tensor, name)| {
            shard(name).with_context(|| format!("{}: {tensor} is in {name}, expected a file name", index.display()))
        })
        .collect::<Result<_>>()?;
    Ok(shards.into_iter().map(|name| folder.join(name)).collect())
}

fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    // SAFETY: read once, here, while loading; a file that somebody changes meanwhile gives wrong weights at worst, as any
    // other way of reading it would.
    unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map {}", path.display()))
}

/// How a number is read from its bytes.
type Read = fn(&[u8]) -> f32;

/// A number's bytes, and how it is read from them, little-endian; none where the encoder's weights cannot be of this type.
fn reading(dtype: Dtype) -> Option<(usize, Read)> {
    match dtype {
        Dtype::F32 => Some((4, |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
        Dtype::BF16 => Some((2, |b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))),
        Dtype::F16 => Some((2, |b| half_to_f32(u16::from_le_bytes([b[0], b[1]])))),
        _ => None,
    }
}

/// The tensor's numbers but for the first `skipped`.
fn convert(tensor: &TensorView, skipped: usize, values: &mut [f32]) {
    let Some((width, read)) = reading(tensor.dtype()) else { return };
    let numbers = tensor.data().chunks_exact(width).skip(skipped).map(read);
    values.iter_mut().zip(numbers).for_each(|(value, number)| *value = number);
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
    fn halves_are_exact() {
        for (bits, value) in [(0x3c00, 1.0), (0xc000, -2.0), (0x0001, 2f32.powi(-24)), (0x7bff, 65_504.0), (0x8000, -0.0)] {
            assert_eq!(half_to_f32(bits), value);
        }
        assert!(half_to_f32(0x7c00).is_infinite() && half_to_f32(0x7e00).is_nan());
    }
}
