//! Gradients of a layer whose weight is a table of words and whose bias is its own.

use super::host::{WeightGradient, linear_weight_backward};
use super::operations;
use super::products::{HopperTile, aligned, portable};
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch, Work};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::Tensor;
use crate::ops::gemm::Write;

/// Weight (or none) and bias, for all rows.
pub struct DecoderBackward {
    /// (words x inputs) f32, or none.
    pub weight: Tensor,
    /// (words) f32
    pub bias: Tensor,
    /// (n x words)
    pub dout: Tensor,
    /// (n x inputs)
    pub x: Tensor,
    /// Of the weight, and of the bias.
    pub write: [Write; 2],
}

impl Op for DecoderBackward {
    fn name(&self) -> &'static str {
        "decoder_backward"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.dout, self.x], [self.weight, self.bias])
    }

    fn work(&self) -> Work {
        let operations = if self.weight.is_none() { 0 } else { operations(self.x, self.dout.columns) };
        Work { bytes: self.operands().bytes(), operations }
    }

    fn host(&self, memory: &HostMemory) {
        let (weight, bias): (&mut [f32], _) = (memory.write(self.weight), memory.write(self.bias));
        let [of_weight, write] = self.write;
        if of_weight == Write::Replace && write == Write::Add {
            weight.fill(0.0);
        }
        // Without a weight there is a product of no columns.
        let (x, inputs) = if weight.is_empty() { (&[][..], 0) } else { (memory.read(self.x), self.x.columns) };
        let segment = WeightGradient { rows: 0..self.dout.rows, weight, bias, write };
        linear_weight_backward(&mut [segment], memory.read(self.dout), x, inputs, self.dout.columns);
    }

    /// First row and the one behind the last, whether the weight and the bias are added to, and where they begin.
    fn tables(&self) -> Vec<Bytes> {
        let one = |value: usize| bytes_of(&[value as u32]);
        let offset = |of: Tensor| bytes_of(&[of.at.saturating_sub(self.base()) / 4]);
        let [weight, bias] = self.write.map(|write| one(usize::from(write == Write::Add)));
        vec![one(0), one(self.dout.rows), weight, bias, offset(self.weight), offset(self.bias)]
    }

    fn device(&self, card: &Card, tables: &[Address]) -> Vec<Command> {
        let &[starts, ends, add_weight, add_bias, weight, bias] = tables else { unreachable!("six tables") };
        let (inputs, outputs) = (self.x.columns, self.dout.columns);
        let by_columns = Launch::new("bias_gradients", [outputs.div_ceil(32), 1, 1], 1024)
            .addresses([self.base(), self.dout.at, starts, ends, bias, add_bias])
            .int(outputs)
            .int(0);
        if self.weight.is_none() {
            return vec![by_columns.into()];
        }
        // That kernel writes both alike, and no copy engine takes a matrix of no rows.
        let takes = self.write[0] == self.write[1] && self.dout.rows > 0 && aligned([self.dout, self.x]);
        match HopperTile::of(card, [outputs, inputs], 1).filter(|_| takes) {
            // The bias as well.
            Some(tile) => {
                let launch = tile
                    .launch(HopperTile::weight)
                    .maps([(self.dout, 64), (self.x, tile.inner())])
                    .addresses([self.base(), starts, ends, weight, bias, add_weight])
                    .int(1)
                    .int(outputs)
                    .int(inputs)
                    .int(0);
                vec![launch.into()]
            }
            None => {
                let product = portable(["gemm_weight", "gemm_weight_small"], outputs, inputs, 1)
                    .addresses([self.base(), self.dout.at, self.x.at, starts, ends, weight, add_weight])
                    .int(outputs)
                    .int(inputs)
                    .int(0);
                vec![product.into(), by_columns.into()]
            }
        }
    }
}

impl DecoderBackward {
    /// What kernels count places from.
    fn base(&self) -> Address {
        if self.weight.is_none() { self.bias.at } else { self.weight.at.min(self.bias.at) }
    }
}

#[cfg(test)]
mod cases {
    use super::*;
    use crate::ops::testing::{On, Place, coarse_noise, noise, on_devices};

    /// Of `rows` rows, with a table that is trained or not; the bias begins at an odd place.
    fn decoder(on: On, rows: usize, trained: bool, write: [Write; 2]) {
        let (words, inputs) = (203, 40);
        let case = |place: &mut Place| {
            let table = place.f32(&noise(words * inputs, 3), inputs);
            let biases = place.f32(&noise(words + 1, 4), words + 1);
            let dout = place.narrow(&coarse_noise(rows * words, 0), words);
            let x = place.narrow(&coarse_noise(rows * inputs, 1), inputs);
            let (weight, bias) = (if trained { table } else { Tensor::NONE }, biases.range(1..words + 1));
            place.run(&DecoderBackward { weight, bias, dout, x, write });
            vec![place.found("weight", table), place.found("bias", biases)]
        };
        on.compare(case);
        if on.card().hopper {
            on.compare_as(Card::PLAIN, &|launch| launch, case);
        }
    }

    fn decoder_of_a_trained_table(on: On) {
        use Write::{Add, Replace};
        for write in [[Replace; 2], [Add; 2], [Replace, Add]] {
            decoder(on, 70, true, write);
        }
        decoder(on, 0, true, [Replace; 2]);
    }

    fn decoder_of_a_frozen_table(on: On) {
        decoder(on, 9, false, [Write::Replace; 2]);
        decoder(on, 9, false, [Write::Add; 2]);
    }

    on_devices! { decoder_of_a_trained_table, decoder_of_a_frozen_table }
}
