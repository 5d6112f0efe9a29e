//! Inverted dropout with counter-based masks: element j of an example is kept or dropped by (seed, round, task, example, j).

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::philox::{Keyed, Stream, drop_threshold};
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::Tensor;

/// Identity of a row for everything random that happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct RowKey {
    pub task: u32,
    /// Which of its split's rows: an example, or one of an example's.
    pub example: u32,
}

/// x (n x width) becomes x * mask / (1 - probability). Applied to a gradient it is its own backward pass.
pub fn dropout(x: &mut [f32], width: usize, keys: &[RowKey], probability: f64, seed: u64, round: u32) {
    if probability == 0.0 {
        return;
    }
    let threshold = drop_threshold(probability);
    let scale = (1.0 / (1.0 - probability)) as f32;
    x.par_chunks_mut(width).zip(keys).for_each(|(row, key)| {
        let random = Keyed::new(seed, Stream::HiddenDropout, round, key.task, key.example);
        for (block, values) in row.chunks_mut(4).enumerate() {
            for (value, word) in values.iter_mut().zip(random.block(block as u32)) {
                *value = if word < threshold { 0.0 } else { *value * scale };
            }
        }
    });
}

/// What a mask is drawn from beside the rows' keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Randomness {
    pub seed: u64,
    pub round: u32,
}

/// As [`dropout()`], in place.
pub struct Dropout<'a> {
    /// (n x width)
    pub x: Tensor,
    /// (n)
    pub keys: &'a [RowKey],
    pub probability: f64,
    pub random: Randomness,
}

impl Op for Dropout<'_> {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn operands(&self) -> Operands {
        Operands::new([], [self.x])
    }

    fn host(&self, memory: &HostMemory) {
        let Randomness { seed, round } = self.random;
        dropout(memory.write(self.x), self.x.columns, self.keys, self.probability, seed, round);
    }

    /// Keys, and the round.
    fn tables(&self) -> Vec<Bytes> {
        vec![bytes_of(self.keys), bytes_of(&[u64::from(self.random.round)])]
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let &[keys, round] = tables else { unreachable!("two tables") };
        let Tensor { at, rows, columns, .. } = self.x;
        let launch = Launch::elements("dropout_bf16", rows * columns.div_ceil(4))
            .addresses([at, keys])
            .int(rows)
            .int(columns)
            .word(drop_threshold(self.probability))
            .float((1.0 / (1.0 - self.probability)) as f32)
            .long(self.random.seed)
            .addresses([round]);
        vec![launch.into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [RowKey; 2] = [RowKey { task: 1, example: 5 }, RowKey { task: 2, example: 5 }];

    #[test]
    fn a_row_keeps_its_mask_wherever_it_is_packed() {
        let mut both = vec![1.0; 2 * 64];
        dropout(&mut both, 64, &KEYS, 0.5, 3, 7);
        let mut alone = vec![1.0; 64];
        dropout(&mut alone, 64, &KEYS[1..], 0.5, 3, 7);
        assert_eq!(both[64..], alone);
        assert_ne!(both[..64], alone);
    }

    #[test]
    fn the_mean_is_kept() {
        let mut x = vec![1.0; 40_000];
        dropout(&mut x, 40_000, &KEYS[..1], 0.3, 3, 7);
        let mean = x.iter().sum::<f32>() / 40_000.0;
        // Standard error sqrt(p / (1 - p) / n) = 0.0033.
        assert!((mean - 1.0).abs() < 0.014, "{mean}");
    }
}

#[cfg(test)]
mod cases {
    use super::*;
    use crate::ops::testing::{On, Place, coarse_noise, on_devices};

    /// bf16 keeps zeros, and half of these values are.
    fn dropout_has_the_same_masks(on: On) {
        let (rows, width) = (5, 21);
        let keys: Vec<RowKey> = (0..rows as u32).map(|row| RowKey { task: row % 2, example: 100 + row }).collect();
        let x = coarse_noise(rows * width, 4);
        on.compare(|place: &mut Place| {
            let x = place.narrow_in_place(&x, width);
            let random = Randomness { seed: 0x1234_5678_9abc, round: 9 };
            place.run(&Dropout { x, keys: &keys, probability: 0.5, random });
            vec![place.found("dropped", x)]
        });
    }

    on_devices! { dropout_has_the_same_masks }
}
