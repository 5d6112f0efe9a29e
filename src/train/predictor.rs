//! Who computes the logits of an evaluation: the host, a device, or the device that trains.

use anyhow::{Error, Result, bail};

use super::accelerator::{Accelerator, Inference};
use super::placement::device_fault;
use super::round::Trainer;
use crate::failure::Stopped;
use crate::machine::driver::{DeviceError, Driver};
use crate::model::Model;
use crate::model::network::{Batch, Limits, Network, Scratch, TokenRoom};

pub trait Predictor {
    fn network(&self) -> &Network;

    /// What a batch may have, where the encoder reads tokens.
    fn token_room(&self) -> Option<TokenRoom>;

    /// Batches that may be under way while others use what computes them. One more may be submitted before the first of them is
    /// collected.
    fn most_under_way(&self) -> usize;

    /// Begins to compute the logits of a batch of one task's rows.
    fn submit(&mut self, batch: &Batch) -> Result<()>;

    /// (rows x outputs) logits of the oldest batch that was submitted and not collected; more may follow. Waits for them.
    fn collect(&mut self) -> Result<&[f32]>;

    /// Logits of a batch, as [`Predictor::collect`].
    fn predict(&mut self, batch: &Batch) -> Result<&[f32]> {
        self.submit(batch)?;
        self.collect()
    }
}

/// Computes what the heads see, too.
pub trait Embedder: Predictor {
    /// (rows x hidden) the encoder's output for a batch of one task's rows, which its head reads.
    fn embed(&mut self, batch: &Batch) -> Result<Vec<f32>>;
}

/// A model, and room for the activations of a batch.
pub struct HostPredictor<'a> {
    pub model: &'a Model,
    pub scratch: &'a mut Scratch,
}

impl HostPredictor<'_> {
    /// (tokens x hidden) what the frozen prefix makes of a batch; none where there is no transformer.
    pub fn prefix(&mut self, batch: &Batch) -> Option<&[f32]> {
        self.model.prefix(batch, self.scratch)
    }
}

impl Predictor for HostPredictor<'_> {
    fn network(&self) -> &Network {
        &self.model.network
    }

    fn token_room(&self) -> Option<TokenRoom> {
        self.scratch.token_room()
    }

    fn most_under_way(&self) -> usize {
        0
    }

    fn submit(&mut self, batch: &Batch) -> Result<()> {
        self.model.predict(batch, self.scratch);
        Ok(())
    }

    fn collect(&mut self) -> Result<&[f32]> {
        Ok(self.scratch.logits())
    }
}

impl Embedder for HostPredictor<'_> {
    fn embed(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        self.predict(batch)?;
        Ok(self.scratch.hidden(batch.keys.len()).to_vec())
    }
}

/// A model, and its copy on a device.
pub struct DevicePredictor<'a> {
    model: &'a Model,
    device: Inference,
}

impl<'a> DevicePredictor<'a> {
    /// For groups within `limits`; an error where a device cannot compute them.
    pub fn new(driver: Box<dyn Driver>, model: &'a Model, limits: &Limits) -> Result<Self> {
        let limits = limits.of_group();
        if let Some(fault) = device_fault(&model.network.spec, &limits) {
            bail!(fault);
        }
        Ok(Self { model, device: Inference::new(driver, model, &limits).map_err(failed)? })
    }
}

impl Predictor for DevicePredictor<'_> {
    fn network(&self) -> &Network {
        &self.model.network
    }

    fn token_room(&self) -> Option<TokenRoom> {
        self.device.token_room()
    }

    fn most_under_way(&self) -> usize {
        self.device.most_under_way()
    }

    fn submit(&mut self, batch: &Batch) -> Result<()> {
        self.device.submit(self.model, batch).map_err(|error| failed(error.into()))
    }

    fn collect(&mut self) -> Result<&[f32]> {
        self.device.collect().map_err(|error| failed(error.into()))
    }
}

impl Embedder for DevicePredictor<'_> {
    fn embed(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        self.predict(batch)?;
        self.device.hidden(batch.keys.len()).map_err(|error| failed(error.into()))
    }
}

/// Nobody who asked is at fault for a device that is lost.
fn failed(error: Error) -> Error {
    match error.downcast_ref() {
        Some(DeviceError::Lost(what)) => Stopped(format!("the device was lost ({what}): ask again once it is back")).into(),
        _ => error,
    }
}

/// On the device, if there is one.
impl Predictor for Trainer {
    fn network(&self) -> &Network {
        &self.model.network
    }

    fn token_room(&self) -> Option<TokenRoom> {
        self.accelerator.as_ref().map_or_else(|| self.host.arenas[0].token_room(), Accelerator::token_room)
    }

    fn most_under_way(&self) -> usize {
        self.accelerator.as_ref().map_or(0, Accelerator::most_under_way)
    }

    fn submit(&mut self, batch: &Batch) -> Result<()> {
        match &mut self.accelerator {
            Some(accelerator) => {
                if self.snapshot.is_none() {
                    accelerator.fetch_slots(&mut self.model.parameters)?;
                }
                Ok(accelerator.submit(&self.model, batch)?)
            }
            None => {
                let quantum = self.host.quanta.begin_evaluation();
                self.model.predict(batch, &mut self.host.arenas[0]);
                self.host.quanta.end(quantum);
                Ok(())
            }
        }
    }

    fn collect(&mut self) -> Result<&[f32]> {
        match &mut self.accelerator {
            Some(accelerator) => Ok(accelerator.collect()?),
            None => Ok(self.host.arenas[0].logits()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::machine::memory::Memory;
    use crate::machine::planned::Planned;
    use crate::model::Start;
    use crate::model::encoders::linear::Linear;
    use crate::model::spec::{HeadKind, HeadSpec, ModelSpec};
    use crate::ops::activation::Activation;

    fn model() -> Model {
        let encoder = Linear { columns: 16, hidden: 8, activation: Activation::None, residual: false, dropout: 0.0 };
        let head =
            HeadSpec { task: "a".into(), kind: HeadKind::Classification, outputs: 2, class_weights: None, temperature: 1.0 };
        let network = Network::new(ModelSpec { encoder: Arc::new(encoder), heads: vec![head] });
        let start = Start { seed: 1, equal_heads: false, second_moment: true, row_moment: false, row_capacity: 0 };
        Model::new(&mut Memory::unlimited(), network, &start).unwrap()
    }

    /// However large the rounds were that it was trained in.
    #[test]
    fn a_device_holds_parameters_and_activations_and_nothing_of_training() {
        let (driver, buffers) = Planned::driver();
        let limits = Limits { group_rows: 4, round_rows: 4000, group_logits: 8, present: 500, ..Limits::default() };
        drop(DevicePredictor::new(driver, &model(), &limits).unwrap());
        let buffers = buffers.borrow();
        let is_training =
            |name: &str| ["moment", "jacobian", "surgery", "products", "heads: gradients"].iter().any(|word| name.contains(word));
        let names: Vec<&str> = buffers.iter().map(|(name, _)| name.as_str()).collect();
        assert!(names.contains(&"encoder: parameters in bf16") && !names.iter().any(|name| is_training(name)), "{names:?}");
        assert!(buffers.iter().map(|(_, bytes)| bytes).sum::<u64>() < 24 << 10, "{buffers:?}");
    }

    #[test]
    fn a_lost_device_is_nobodys_fault() {
        let error = failed(DeviceError::Lost("fell off the bus".into()).into());
        assert_eq!(crate::failure::exit_code(&error), crate::failure::STOPPED);
        assert!(!error.to_string().contains("resume"), "{error}");
        let error = failed(DeviceError::Invalid("no".into()).into());
        assert_eq!(crate::failure::exit_code(&error), crate::failure::BAD_INPUT);
    }
}
