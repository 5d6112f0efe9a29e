//! Which runs keep their training examples on their device.

use anyhow::{Result, bail};

use crate::config::schema::{Config, DataPlace};
use crate::machine::Device;
use crate::model::encoders::Input;
use crate::model::network::{DataLimits, Limits};
use crate::model::spec::ModelSpec;
use crate::ops::row_index::KeyBits;
use crate::surgery::methods::Needs;

/// What lies on the device of all examples (`limits.data`). An error where `data.resident = "device"` asks for what cannot be.
pub fn data_limits(config: &Config, spec: &ModelSpec, needs: Needs, limits: &Limits) -> Result<DataLimits> {
    let wanted = config.data.resident;
    if wanted == DataPlace::Host {
        return Ok(DataLimits::default());
    }
    match fault(config, spec, needs, limits)? {
        None => Ok(limits.data),
        Some(_) if wanted == DataPlace::Auto => Ok(DataLimits::default()),
        Some(why) => bail!("data.resident = \"device\", but {why}: set data.resident = \"auto\""),
    }
}

/// As [`fault`], of a transformer.
fn token_fault(spec: &ModelSpec) -> Option<&'static str> {
    let Input::Tokens(own) = spec.encoder.reads() else { return None };
    if spec.mlm_head().is_some() {
        Some("masked words are drawn where the host packs a batch")
    } else if own.embeddings_frozen() {
        Some("the embeddings are frozen, whose texts the host packs")
    } else if spec.table_stepped_whole().is_some() {
        Some("optimizer.embedding = \"dense\" moves words that no text has, which the host lists")
    } else {
        None
    }
}

/// Why examples come with their rounds, if they do.
fn fault(config: &Config, spec: &ModelSpec, needs: Needs, limits: &Limits) -> Result<Option<&'static str>> {
    let encoder = &spec.encoder;
    let batches = if needs.second_batch { 2 } else { 1 };
    let keys = encoder.table().is_some_and(|table| KeyBits::of(table.rows, limits.present * batches).is_none());
    let counted = [limits.data.examples, limits.data.entries].iter().all(|&count| count < u32::MAX as usize);
    let why = if Device::parse(&config.run.device)? == Device::Cpu {
        "the run has no device"
    } else if let Some(why) = token_fault(spec) {
        why
    } else if !config.faults.is_empty() {
        "[faults] are injected where the host packs a batch"
    } else if !counted || keys {
        "the examples' numbers do not fit 32 bits"
    } else if encoder.table().is_none() {
        return Ok(None);
    } else if config.schedule.max_staleness > 0 {
        "schedule.max_staleness computes several rounds together, whose embedding rows the host sorts apart"
    } else if needs.row_state {
        "the method keeps buffers of embedding rows, which the host sorts"
    } else {
        return Ok(None);
    };
    Ok(Some(why))
}
