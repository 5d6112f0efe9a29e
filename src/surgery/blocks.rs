//! Blocks: the parts of the shared encoder that conflict statistics tell apart, and that surgery settles one by one where
//! its granularity is finer than the model.

use std::ops::Range;

use super::methods::Granularity;
use super::methods::Needs;
use crate::model::network::Network;

/// The encoder's parameters, cut into named parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Blocks {
    pub names: Vec<String>,
    /// Columns of the dense part of J; empty for an embedding table that shares its block with nothing dense.
    pub ranges: Vec<Range<usize>>,
    /// The block of the row-sparse embedding table.
    pub table: Option<usize>,
    /// Each block has weights of its own.
    pub apart: bool,
}

/// The block of the row-sparse embedding table.
const TABLE: &str = "embeddings";

impl Blocks {
    /// Cut by tensors where surgery is, else by layers. A method whose `needs` are the same in every block has one set of
    /// weights for all of them.
    pub fn new(network: &Network, granularity: Granularity, needs: Needs) -> Self {
        let apart = granularity != Granularity::Model && needs.differ_by_block();
        let mut blocks = Self { names: Vec::new(), ranges: Vec::new(), table: None, apart };
        for param in &network.table.shared {
            let name = if granularity == Granularity::Tensor { &param.name } else { &param.block };
            match blocks.names.last() {
                Some(last) if last == name => {
                    if let Some(range) = blocks.ranges.last_mut() {
                        range.end = param.range().end;
                    }
                }
                _ => {
                    blocks.names.push(name.clone());
                    blocks.ranges.push(param.range());
                }
            }
        }
        if network.spec.encoder.table().is_some_and(|table| table.trained) {
            let shared = blocks.names.iter().position(|name| name == TABLE);
            if shared.is_none() {
                blocks.names.push(TABLE.into());
                blocks.ranges.push(0..0);
            }
            blocks.table = shared.or(Some(blocks.names.len() - 1));
        }
        blocks
    }

    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// Sets of weights that surgery makes.
    pub fn sets(&self) -> usize {
        if self.apart { self.count() } else { 1 }
    }

    /// Which set of weights a block takes.
    pub fn set_of(&self, block: usize) -> usize {
        if self.apart { block } else { 0 }
    }

    /// The block that holds this column of the dense part of J.
    pub fn of_column(&self, column: usize) -> usize {
        self.ranges.iter().position(|range| range.contains(&column)).expect("every column lies in a block")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::encoders::Encoder;
    use crate::model::encoders::bag::Bag;
    use crate::model::encoders::linear::Linear;
    use crate::model::spec::{HeadKind, HeadSpec, ModelSpec};
    use crate::ops::activation::Activation;

    const LAYER: Linear = Linear { columns: 4, hidden: 8, activation: Activation::None, residual: false, dropout: 0.0 };

    fn network(encoder: impl Encoder + 'static) -> Network {
        let head = HeadSpec { task: "a".into(), kind: HeadKind::Regression, outputs: 1, class_weights: None, temperature: 1.0 };
        Network::new(ModelSpec { encoder: Arc::new(encoder), heads: vec![head] })
    }

    #[test]
    fn layers_hold_their_tensors() {
        let network = network(LAYER);
        let layers = Blocks::new(&network, Granularity::Layer, Needs::GRAM);
        assert_eq!(layers.names, ["encoder.dense"]);
        assert_eq!((layers.ranges[0].clone(), layers.count(), layers.sets()), (0..40, 1, 1));
        let tensors = Blocks::new(&network, Granularity::Tensor, Needs::GRAM);
        assert_eq!(tensors.names, ["encoder.dense.weight", "encoder.dense.bias"]);
        assert_eq!((tensors.of_column(31), tensors.of_column(32), tensors.sets()), (0, 1, 2));
        assert_eq!(Blocks::new(&network, Granularity::Tensor, Needs::ELEMENTWISE).sets(), 1);
    }

    #[test]
    fn the_table_is_a_block() {
        let bag = Bag { rows: 8, init: 0.0, word_dropout: 0.0, vocabulary: None, buckets: 8, ngrams: 1, layer: LAYER };
        let blocks = Blocks::new(&network(bag), Granularity::Model, Needs::GRAM);
        assert_eq!((blocks.names.len(), blocks.table, blocks.sets(), blocks.set_of(1)), (2, Some(1), 1, 0));
    }
}
