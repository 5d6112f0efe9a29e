//! The tensors of one fused group, for the most rows it may have: one list, whoever allocates them.

use anyhow::Result;

use crate::machine::driver::Address;
use crate::machine::memory::{Buffer, Memory};
use crate::machine::tensor::{DType, Tensor};
use crate::model::network::{Limits, TokenRoom};
use crate::model::transformer;

/// Allocates a group's tensors on one machine; those without elements are none.
pub trait Allocator {
    /// (rows x columns) that products read or write: f32 on the host, bf16 on a device.
    fn activation(&mut self, name: &str, rows: usize, columns: usize) -> Result<Tensor>;

    /// (rows x columns) f32 without gaps.
    fn numbers(&mut self, name: &str, rows: usize, columns: usize) -> Result<Tensor>;

    /// (count) f32 that a device's kernels pass on; none on the host.
    fn partials(&mut self, name: &str, count: usize) -> Result<Tensor>;

    /// Whether all logits over a whole vocabulary are kept, not only those of some rows at a time.
    fn keeps_words(&self) -> bool;
}

/// Activations of one group; those that its encoder does not use are none.
#[derive(Clone, Debug)]
pub struct Activations {
    /// (rows x inputs) for bags; features come with the batch.
    pub input: Tensor,
    /// (rows x hidden) the activation's argument.
    pub pre: Tensor,
    /// (rows x hidden) each
    pub hidden: Tensor,
    pub dhidden: Tensor,
    /// (rows x hidden) the gradient that a shortcut passes on, where somebody wants it.
    pub shortcut: Tensor,
    /// f32, part after part.
    pub logits: Tensor,
    pub dlogits: Tensor,
    /// (pairs x pairs) f32 what the pairs of one part are compared in; none where no task compares texts.
    pub scores: Tensor,
    /// As [`Allocator::keeps_words`]; otherwise training leaves such logits out of `logits`, and evaluation has their rows
    /// [`pitch`](crate::machine::tensor::pitch) apart.
    pub keeps_words: bool,
    pub transformer: Option<transformer::Activations>,
}

impl Activations {
    /// Those that every encoder has: what the heads see in `rows` rows, and what they make of it.
    pub fn new(room: &mut dyn Allocator, hidden: usize, rows: usize, limits: &Limits) -> Result<Self> {
        let keeps_words = room.keeps_words();
        let logits = limits.logits_at_once.filter(|_| !keeps_words).unwrap_or(limits.group_logits);
        Ok(Self {
            transformer: None,
            keeps_words,
            input: Tensor::NONE,
            pre: Tensor::NONE,
            hidden: room.activation("hidden states", rows, hidden)?,
            dhidden: room.activation("gradient of hidden states", rows, hidden)?,
            shortcut: Tensor::NONE,
            logits: room.numbers("logits", 1, logits)?,
            dlogits: room.numbers("gradient of logits", 1, logits)?,
            scores: room.numbers("scores of pairs", limits.pairs, limits.pairs)?,
        })
    }

    /// What an evaluation batch may have, for an encoder that reads tokens.
    pub fn token_room(&self) -> Option<TokenRoom> {
        let TokenRoom { tokens, masked } = self.transformer.as_ref()?.room();
        let words = self.transformer.as_ref()?.mlm.logits.ld;
        let masked = if self.keeps_words { masked } else { masked.min(self.logits.columns / words.max(1)) };
        Some(TokenRoom { tokens, masked })
    }
}

/// Tensors of the host, and the memory that they lie in.
pub struct HostAllocator<'m> {
    memory: &'m mut Memory,
    pub buffers: Vec<Buffer>,
}

impl<'m> HostAllocator<'m> {
    pub fn new(memory: &'m mut Memory) -> Self {
        Self { memory, buffers: Vec::new() }
    }
}

impl Allocator for HostAllocator<'_> {
    fn activation(&mut self, name: &str, rows: usize, columns: usize) -> Result<Tensor> {
        self.numbers(name, rows, columns)
    }

    fn numbers(&mut self, name: &str, rows: usize, columns: usize) -> Result<Tensor> {
        let buffer = self.memory.buffer(&format!("scratch: {name}"), rows * columns)?;
        if buffer.is_empty() {
            return Ok(Tensor::NONE);
        }
        let at = buffer.as_ptr() as Address;
        self.buffers.push(buffer);
        Ok(Tensor::dense(at, rows, columns, DType::F32))
    }

    fn partials(&mut self, _: &str, _: usize) -> Result<Tensor> {
        Ok(Tensor::NONE)
    }

    fn keeps_words(&self) -> bool {
        true
    }
}
