//! The tensors of one fused group, for the most rows it may have: one list, whoever allocates them.

use crate::machine::driver::Address;
use crate::machine::memory::{Buffer, Memory};
use crate::machine::tensor::{DType, Tensor};
use crate::model::network::Limits;
use crate::model::spec::EncoderSpec;
use crate::model::transformer;
use crate::ops::activation::Activation;

/// Allocates a group's tensors on one machine; those without elements are none.
pub trait Allocator {
    type Error;

    /// (rows x columns) that products read or write: f32 on the host, bf16 on a device.
    fn activation(&mut self, name: &str, rows: usize, columns: usize) -> Result<Tensor, Self::Error>;

    /// (rows x columns) f32 without gaps.
    fn numbers(&mut self, name: &str, rows: usize, columns: usize) -> Result<Tensor, Self::Error>;

    /// (count) f32 that a device's kernels pass on; none on the host.
    fn partials(&mut self, name: &str, count: usize) -> Result<Tensor, Self::Error>;
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
    pub transformer: Option<transformer::Activations>,
}

impl Activations {
    pub fn new<A: Allocator>(room: &mut A, encoder: &EncoderSpec, limits: &Limits) -> Result<Self, A::Error> {
        let (hidden, rows) = (encoder.hidden, head_rows(encoder, limits));
        let (bag, dense) = (encoder.bag().is_some(), encoder.transformer().is_none());
        let transformer = match encoder.transformer() {
            Some(spec) => Some(transformer::Activations::new(room, spec, hidden, limits)?),
            None => None,
        };
        let only = |wanted: bool| if wanted { rows } else { 0 };
        Ok(Self {
            transformer,
            input: room.activation("encoder input", only(bag), encoder.inputs())?,
            pre: room.activation("pre-activations", only(dense && encoder.activation != Activation::None), hidden)?,
            hidden: room.activation("hidden states", rows, hidden)?,
            dhidden: room.activation("gradient of hidden states", rows, hidden)?,
            shortcut: room.activation("gradient of the shortcut", only(bag && encoder.residual), hidden)?,
            logits: room.numbers("logits", 1, limits.group_logits)?,
            dlogits: room.numbers("gradient of logits", 1, limits.group_logits)?,
        })
    }
}

/// Rows that the heads of the largest group see.
pub fn head_rows(encoder: &EncoderSpec, limits: &Limits) -> usize {
    if encoder.transformer().is_some() { limits.tokens.head_rows } else { limits.group_rows }
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
    type Error = anyhow::Error;

    fn activation(&mut self, name: &str, rows: usize, columns: usize) -> anyhow::Result<Tensor> {
        self.numbers(name, rows, columns)
    }

    fn numbers(&mut self, name: &str, rows: usize, columns: usize) -> anyhow::Result<Tensor> {
        let buffer = self.memory.buffer(&format!("scratch: {name}"), rows * columns)?;
        if buffer.is_empty() {
            return Ok(Tensor::NONE);
        }
        let at = buffer.as_ptr() as Address;
        self.buffers.push(buffer);
        Ok(Tensor::dense(at, rows, columns, DType::F32))
    }

    fn partials(&mut self, _: &str, _: usize) -> anyhow::Result<Tensor> {
        Ok(Tensor::NONE)
    }
}
