//! Who computes the logits of an evaluation: the host, or the device that trains.

use anyhow::Result;

use super::round::Trainer;
use crate::model::Model;
use crate::model::network::{Batch, Network, Scratch, TokenRoom};

pub trait Predictor {
    fn network(&self) -> &Network;

    /// What a batch may have, where the encoder reads tokens.
    fn token_room(&self) -> Option<TokenRoom>;

    /// (rows x outputs) logits of a batch of one task's rows; more may follow.
    fn predict(&mut self, batch: &Batch) -> Result<&[f32]>;
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

    fn predict(&mut self, batch: &Batch) -> Result<&[f32]> {
        Ok(self.model.predict(batch, self.scratch))
    }
}

/// On the device, if there is one.
impl Predictor for Trainer {
    fn network(&self) -> &Network {
        &self.model.network
    }

    fn token_room(&self) -> Option<TokenRoom> {
        self.host.arenas[0].token_room()
    }

    fn predict(&mut self, batch: &Batch) -> Result<&[f32]> {
        match &mut self.accelerator {
            Some(accelerator) => Ok(accelerator.predict(&self.model, batch)?),
            None => {
                let quantum = self.host.quanta.begin_evaluation();
                self.model.predict(batch, &mut self.host.arenas[0]);
                self.host.quanta.end(quantum);
                Ok(self.host.arenas[0].logits())
            }
        }
    }
}
