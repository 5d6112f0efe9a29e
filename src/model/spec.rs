//! What a model is made of, and the parameter table that follows from it.

use std::sync::Arc;

use crate::model::batch::Targets;
use crate::model::encoders::Encoder;
use crate::model::transformer::mlm_params;
pub use crate::ops::heads::HeadKind;

/// The embedding table, kept by row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TableSpec {
    pub rows: usize,
    pub dim: usize,
    /// Standard deviation of the initial rows.
    pub init: f64,
    /// It has moments.
    pub trained: bool,
    /// Every row takes part in every step of a trained table, not only those a round touched.
    pub dense_steps: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct HeadSpec {
    pub task: String,
    pub kind: HeadKind,
    pub outputs: usize,
    /// (outputs) factors on the losses of its classes, where they have some.
    pub class_weights: Option<Arc<[f32]>>,
    /// What cosines are divided by where texts are compared.
    pub temperature: f64,
}

impl HeadSpec {
    /// What the mean of losses divides by: the targets that are there, or the sum of their classes' weights.
    pub fn observed(&self, targets: &Targets) -> f64 {
        match (targets, &self.class_weights) {
            (Targets::Class(classes), Some(weights)) => classes.iter().map(|&class| f64::from(weights[class as usize])).sum(),
            _ => targets.observed() as f64,
        }
    }
}

#[derive(Clone)]
pub struct ModelSpec {
    pub encoder: Arc<dyn Encoder>,
    /// In task order.
    pub heads: Vec<HeadSpec>,
}

impl ModelSpec {
    /// Every embedding row takes part in each step or is read whole, so all of them are kept from the start.
    pub fn reads_whole_table(&self) -> bool {
        self.encoder.table().is_some_and(|table| table.dense_steps || self.mlm_head().is_some())
    }

    /// The embedding table, where every row takes part in every step.
    pub fn table_stepped_whole(&self) -> Option<TableSpec> {
        self.encoder.table().filter(|table| table.dense_steps && table.trained)
    }

    /// Most outputs of a head that is a linear layer.
    pub fn widest_head(&self) -> usize {
        let linear = self.heads.iter().filter(|head| head.kind.is_linear());
        linear.map(|head| head.outputs).max().unwrap_or(0)
    }

    /// The first head that predicts words.
    pub fn mlm_head(&self) -> Option<&HeadSpec> {
        self.heads.iter().find(|head| head.kind == HeadKind::Mlm)
    }
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    Zero,
    /// Uniform in +-bound, as PyTorch's `nn.Linear` with bound = 1/sqrt(inputs).
    Uniform(f64),
    /// Normal with this standard deviation.
    Normal(f64),
    One,
}

/// One dense parameter of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Hugging Face's name where it has one.
    pub name: String,
    pub shape: Vec<usize>,
    /// The unit of layer-wise statistics and locking.
    pub block: String,
    /// First element in its space, shared parameters and heads being two spaces.
    pub offset: usize,
    pub init: Init,
    /// Weight decay: matrices yes, biases no.
    pub decay: bool,
}

impl Param {
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// The one list of every dense parameter: those all tasks share, and the heads'. The embedding table is kept by row beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamTable {
    pub shared: Vec<Param>,
    /// Shared parameters that do not change, a space of their own.
    pub frozen: Vec<Param>,
    /// Per task weight (outputs x hidden) and bias (outputs); an `mlm` head has its own five (see [`ParamTable::head_params`]),
    /// one that compares texts has none.
    pub heads: Vec<Param>,
    /// (tasks + 1) bounds of each task's parameters in `heads`.
    head_bounds: Vec<usize>,
}

impl ParamTable {
    pub fn new(spec: &ModelSpec) -> Self {
        let (hidden, [shared, frozen]) = (spec.encoder.hidden(), spec.encoder.params());
        let mut heads = Vec::new();
        let mut head_bounds = vec![0];
        let bound = 1.0 / (hidden as f64).sqrt();
        for head in &spec.heads {
            let name = format!("heads.{}", head.task);
            match (head.kind, spec.encoder.table()) {
                (HeadKind::Similarity, _) => {}
                (HeadKind::Mlm, Some(words)) => mlm_params(&mut heads, &name, hidden, words.rows, words.init),
                _ => push_linear(&mut heads, &name, &name, [head.outputs, hidden], Init::Uniform(bound)),
            }
            head_bounds.push(heads.len());
        }
        Self { shared, frozen, heads, head_bounds }
    }

    /// P, the columns of a dense row of J.
    pub fn shared_len(&self) -> usize {
        self.shared.last().map_or(0, |param| param.range().end)
    }

    pub fn heads_len(&self) -> usize {
        self.heads.last().map_or(0, |param| param.range().end)
    }

    /// The output layer of task t, whose head is one: its weight and its bias.
    pub fn head(&self, task: usize) -> (&Param, &Param) {
        let own = self.head_params(task);
        (&own[0], &own[1])
    }

    /// All parameters of task t's head.
    pub fn head_params(&self, task: usize) -> &[Param] {
        &self.heads[self.head_bounds[task]..self.head_bounds[task + 1]]
    }

    /// Elements of task t's head in the heads' space.
    pub fn head_range(&self, task: usize) -> std::ops::Range<usize> {
        let end = |param: usize| self.heads[..param].last().map_or(0, |last| last.range().end);
        end(self.head_bounds[task])..end(self.head_bounds[task + 1])
    }
}

/// Adds a linear layer's weight and bias.
pub fn push_linear(params: &mut Vec<Param>, name: &str, block: &str, [outputs, inputs]: [usize; 2], init: Init) {
    let offset = params.last().map_or(0, |param| param.range().end);
    let weight =
        Param { name: format!("{name}.weight"), shape: vec![outputs, inputs], block: block.into(), offset, init, decay: true };
    let bias = Param {
        name: format!("{name}.bias"),
        shape: vec![outputs],
        block: block.into(),
        offset: weight.range().end,
        init: Init::Zero,
        decay: false,
    };
    params.extend([weight, bias]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::encoders::linear::Linear;
    use crate::ops::activation::Activation;

    #[test]
    fn parameters_lie_end_to_end() {
        let head = |task: &str, outputs| HeadSpec {
            task: task.into(),
            kind: HeadKind::Classification,
            outputs,
            class_weights: None,
            temperature: 1.0,
        };
        let encoder = Linear { columns: 10, hidden: 8, activation: Activation::None, residual: false, dropout: 0.0 };
        let table = ParamTable::new(&ModelSpec { encoder: Arc::new(encoder), heads: vec![head("a", 2), head("b", 3)] });
        assert_eq!(table.shared_len(), 88);
        assert_eq!(table.heads_len(), 18 + 27);
        assert_eq!(table.head(1).0.range(), 18..42);
        assert_eq!(table.head(1).1.name, "heads.b.bias");
        assert!(table.heads.windows(2).all(|pair| pair[0].range().end == pair[1].offset));
    }
}
