//! Values and moments of the dense parameters of one space (the shared encoder, or all heads).

use rayon::prelude::*;

use crate::machine::host::HostMemory;
use crate::machine::memory::{Buffer, Memory};
use crate::machine::tensor::Tensor;
use crate::model::Start;
use crate::model::spec::{Init, Param};
use crate::ops::philox::{Keyed, Stream};
use crate::ops::update::ParameterState;

/// Values drawn by one parallel job.
const CHUNK: usize = 1 << 14;

/// Parameters with their optimizer state, all of one length.
pub struct DenseParams {
    pub values: Buffer,
    pub first: Buffer,
    /// Empty under an optimizer without a second moment.
    pub second: Buffer,
}

impl DenseParams {
    pub fn new(memory: &mut Memory, name: &str, params: &[Param], start: &Start) -> anyhow::Result<Self> {
        let len = params.last().map_or(0, |param| param.range().end);
        let values = fixed_params(memory, name, params, start)?;
        let first = memory.buffer(&format!("{name}: first moment"), len)?;
        let second = memory.buffer(&format!("{name}: second moment"), if start.second_moment { len } else { 0 })?;
        Ok(Self { values, first, second })
    }

    /// As tapes see it.
    pub fn lend<'a>(&'a mut self, memory: &mut HostMemory<'a>) -> ParameterState {
        let [values, first, second] =
            [&mut self.values, &mut self.first, &mut self.second].map(|own| memory.lend_mut(&mut own[..]));
        ParameterState { values, first, second, copy: Tensor::NONE }
    }
}

/// Values of parameters that do not change.
pub fn fixed_params(memory: &mut Memory, name: &str, params: &[Param], start: &Start) -> anyhow::Result<Buffer> {
    let mut values = memory.buffer(&format!("{name}: parameters"), params.last().map_or(0, |param| param.range().end))?;
    // The buffers of a plan stay empty.
    for param in params.iter().take(if values.is_empty() { 0 } else { params.len() }) {
        initialize(&mut values[param.range()], param, start);
    }
    Ok(values)
}

/// Starts a parameter from the seed and its name. With equal heads the name does not count: what two tasks' gradients then
/// say about each other is about the tasks alone, not about their heads.
fn initialize(values: &mut [f32], param: &Param, start: &Start) {
    let role = if start.equal_heads && param.block.starts_with("heads.") { "heads" } else { &param.name };
    let hash = blake3::hash(role.as_bytes());
    let id = u32::from_le_bytes(hash.as_bytes()[..4].try_into().expect("four bytes of a hash"));
    let random = Keyed::new(start.seed, Stream::Init, 0, 0, id);
    let mut fill = |draw: &(dyn Fn(u32) -> f64 + Sync)| {
        values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
            for (position, value) in values.iter_mut().enumerate() {
                *value = draw((chunk * CHUNK + position) as u32) as f32;
            }
        });
    };
    match param.init {
        Init::Zero => {}
        Init::One => values.fill(1.0),
        Init::Uniform(bound) => fill(&|position| (2.0 * random.uniform(position) - 1.0) * bound),
        Init::Normal(deviation) => fill(&|position| random.normal(position) * deviation),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::encoders::linear::Linear;
    use crate::model::spec::{HeadKind, HeadSpec, ModelSpec, ParamTable};
    use crate::ops::activation::Activation;

    #[test]
    fn heads_start_equal_on_request_and_biases_at_zero() {
        let head = |task: &str| HeadSpec {
            task: task.into(),
            kind: HeadKind::Regression,
            outputs: 1,
            class_weights: None,
            temperature: 1.0,
        };
        let encoder = Linear { columns: 8, hidden: 16, activation: Activation::None, residual: false, dropout: 0.0 };
        let table = ParamTable::new(&ModelSpec { encoder: std::sync::Arc::new(encoder), heads: vec![head("a"), head("b")] });
        let mut start = Start { seed: 1, equal_heads: false, second_moment: true, row_moment: false, row_capacity: 0 };
        let new = |start: &Start| DenseParams::new(&mut Memory::unlimited(), "heads", &table.heads, start).unwrap();
        assert_ne!(new(&start).values[..16], new(&start).values[17..33]);
        start.equal_heads = true;
        let heads = new(&start);
        assert_eq!(heads.values[..17], heads.values[17..]);
        assert_eq!(heads.values[16], 0.0);
        assert!(heads.values[..16].iter().all(|x| x.abs() <= 0.25 && *x != 0.0));
    }
}
