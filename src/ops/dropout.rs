//! Inverted dropout with counter-based masks: element j of an example is kept or dropped by (seed, round, task, example, j).

use rayon::prelude::*;

use super::philox::{Keyed, Stream, drop_threshold};

/// Identity of a row for everything random that happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowKey {
    pub task: u32,
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
