//! Inverted dropout inside the transformer: element j of a token is kept or dropped by (seed, round, site, task, example,
//! position, j), wherever the token is packed.

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::philox::{Keyed, Stream, drop_threshold, site_seed};
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::Tensor;

/// Identity of a token for everything random that happens to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TokenKey {
    pub task: u32,
    pub example: u32,
    /// In its sequence.
    pub position: u32,
}

/// Who some packed tokens are.
#[derive(Clone, Copy, Debug)]
pub enum TokenKeys<'a> {
    Packed(&'a [TokenKey]),
    /// (n x 3) u32, as a device fetched them.
    Fetched(Tensor),
}

impl<'a> TokenKeys<'a> {
    /// On the host, which packs its batches.
    pub(super) fn packed(self) -> &'a [TokenKey] {
        match self {
            Self::Packed(keys) => keys,
            Self::Fetched(_) => unreachable!("the host packs its batches"),
        }
    }

    /// What is laid out of them for a device.
    pub(super) fn table(self) -> Bytes {
        match self {
            Self::Packed(keys) => bytes_of(keys),
            Self::Fetched(_) => Bytes::new(),
        }
    }

    /// Where a device finds them.
    pub(super) fn at(self, table: Address) -> Address {
        match self {
            Self::Packed(_) => table,
            Self::Fetched(keys) => keys.at,
        }
    }
}

/// What one application of dropout draws its mask from.
#[derive(Clone, Copy, Debug)]
pub struct TokenDropout<'a> {
    /// (n) by packed token.
    pub tokens: TokenKeys<'a>,
    pub probability: f64,
    pub seed: u64,
    pub round: u32,
    /// Place in the network; each has its own mask.
    pub site: u32,
}

impl TokenDropout<'_> {
    /// One token's values become value * mask / (1 - probability).
    pub fn apply(&self, token: usize, values: &mut [f32]) {
        if self.probability == 0.0 {
            return;
        }
        let key = self.tokens.packed()[token];
        let threshold = drop_threshold(self.probability);
        let scale = (1.0 / (1.0 - self.probability)) as f32;
        let random = Keyed::new(self.seed, Stream::TokenDropout, self.round, key.task, key.example).at_site(self.site);
        let first = key.position * values.len().div_ceil(4) as u32;
        for (block, values) in values.chunks_mut(4).enumerate() {
            for (value, word) in values.iter_mut().zip(random.block(first + block as u32)) {
                *value = if word < threshold { 0.0 } else { *value * scale };
            }
        }
    }

    /// All tokens of x (n x width). Applied to a gradient it is its own backward pass.
    pub fn apply_all(&self, x: &mut [f32], width: usize) {
        if self.probability > 0.0 {
            x.par_chunks_mut(width).enumerate().with_min_len(8).for_each(|(token, values)| self.apply(token, values));
        }
    }

    /// Keys, and the round.
    pub(super) fn tables(&self) -> Vec<Bytes> {
        vec![self.tokens.table(), bytes_of(&[u64::from(self.round)])]
    }

    /// What kernels take of it, with its tables.
    pub(super) fn arguments(&self, launch: Launch, [keys, round]: [Address; 2]) -> Launch {
        let scale = (1.0 / (1.0 - self.probability)) as f32;
        let launch = launch.addresses([self.tokens.at(keys)]).word(drop_threshold(self.probability)).float(scale);
        launch.long(site_seed(self.seed, self.site)).addresses([round])
    }
}

/// As [`TokenDropout::apply_all`], in place.
pub struct DropoutByToken<'a> {
    /// (n x width)
    pub x: Tensor,
    pub dropout: TokenDropout<'a>,
}

impl Op for DropoutByToken<'_> {
    fn name(&self) -> &'static str {
        "dropout_by_token"
    }

    fn operands(&self) -> Operands {
        Operands::new([], [self.x])
    }

    fn host(&self, memory: &HostMemory) {
        self.dropout.apply_all(memory.write(self.x), self.x.columns);
    }

    fn tables(&self) -> Vec<Bytes> {
        self.dropout.tables()
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let &[keys, round] = tables else { unreachable!("two tables") };
        let launch = Launch::warps("dropout_by_token", self.x).addresses([self.x.at]).int(self.x.rows).int(self.x.columns);
        vec![self.dropout.arguments(launch, [keys, round]).into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_follow_the_token_and_differ_by_site_and_position() {
        let tokens = [TokenKey { task: 1, example: 2, position: 0 }, TokenKey { task: 1, example: 2, position: 1 }];
        let drop = |tokens, site| TokenDropout { tokens: TokenKeys::Packed(tokens), probability: 0.5, seed: 1, round: 3, site };
        let mut both = vec![1.0; 2 * 64];
        drop(&tokens, 0).apply_all(&mut both, 64);
        let mut second = vec![1.0; 64];
        drop(&tokens[1..], 0).apply_all(&mut second, 64);
        assert_eq!(both[64..], second);
        assert_ne!(both[..64], second);
        let mut elsewhere = vec![1.0; 64];
        drop(&tokens[1..], 1).apply_all(&mut elsewhere, 64);
        assert_ne!(elsewhere, second);
    }

    #[test]
    fn the_mean_is_kept() {
        let tokens = [TokenKey::default()];
        let mut x = vec![1.0; 40_000];
        TokenDropout { tokens: TokenKeys::Packed(&tokens), probability: 0.3, seed: 3, round: 7, site: 2 }
            .apply_all(&mut x, 40_000);
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
    fn tokens_have_the_same_masks(on: On) {
        let tokens: Vec<TokenKey> =
            (0..11).map(|token| TokenKey { task: token % 2, example: 7 + token / 3, position: token % 3 }).collect();
        for width in [8, 264, 768] {
            on.compare(|place: &mut Place| {
                let x = place.narrow_in_place(&coarse_noise(tokens.len() * width, 4), width);
                let dropout = TokenDropout {
                    tokens: TokenKeys::Packed(&tokens),
                    probability: 0.5,
                    seed: 0x1234_5678_9abc,
                    round: 9,
                    site: 3,
                };
                place.run(&DropoutByToken { x, dropout });
                vec![place.found("dropped", x)]
            });
        }
    }

    on_devices! { tokens_have_the_same_masks }
}
