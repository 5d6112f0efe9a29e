//! Which kernel computes a product, in which tiles.
//!
//! Every card has gemm.cu's two tiles. A card of compute capability 9.0 has its own kernels (kernels/hopper), which take any
//! operands that begin at, and have rows at, multiples of 16 bytes.

use crate::machine::driver::{Card, MOST_BLOCKS};
use crate::machine::launch::Launch;
use crate::machine::tensor::Tensor;

/// A block's tile of a product, and its threads.
pub(super) struct Tile {
    pub rows: usize,
    pub columns: usize,
    pub threads: u32,
}

pub(super) const LARGE: Tile = Tile { rows: 128, columns: 256, threads: 256 };
const SMALL: Tile = Tile { rows: 64, columns: 64, threads: 128 };

/// Large tiles from this many blocks on: half of the multiprocessors of the largest card in use.
const ENOUGH: usize = 64;

/// Most rows of a product on a device: small tiles, which are lower, are for few blocks only.
pub const MOST_ROWS: usize = LARGE.rows * MOST_BLOCKS[1] as usize;

impl Tile {
    pub fn grid(&self, m: usize, n: usize) -> [usize; 3] {
        [n.div_ceil(self.columns), m.div_ceil(self.rows), 1]
    }

    /// Four stages of 32 inner positions of two bf16 operands.
    pub fn shared(&self) -> usize {
        4 * 32 * 2 * (self.rows + self.columns)
    }
}

/// A product (m x n) for each segment, by the kernel for large tiles or the one for small tiles.
pub(super) fn portable([large, small]: [&'static str; 2], m: usize, n: usize, segments: usize) -> Launch {
    let fills = LARGE.grid(m, n).iter().product::<usize>() * segments >= ENOUGH;
    let (name, tile) = if fills { (large, LARGE) } else { (small, SMALL) };
    let [x, y, _] = tile.grid(m, n);
    Launch::new(name, [x, y, segments], tile.threads).shared(tile.shared())
}

/// Tiles of kernels/hopper/gemm.cu: 128 rows by `wide` columns, computed by blocks alone or in pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct HopperTile {
    wide: usize,
    pair: bool,
    /// Blocks of the launch.
    blocks: usize,
}

/// Of a forward product, of an input gradient, of weight gradients.
type Kernels = [&'static str; 3];

const KERNELS: [(usize, bool, Kernels); 5] = [
    (64, false, ["gemm_forward_hopper_64_1", "gemm_input_hopper_64_1", "gemm_weight_hopper_64_1"]),
    (128, false, ["gemm_forward_hopper_128_1", "gemm_input_hopper_128_1", "gemm_weight_hopper_128_1"]),
    (192, false, ["gemm_forward_hopper_192_1", "gemm_input_hopper_192_1", "gemm_weight_hopper_192_1"]),
    (128, true, ["gemm_forward_hopper_128_2", "gemm_input_hopper_128_2", "gemm_weight_hopper_128_2"]),
    (192, true, ["gemm_forward_hopper_192_2", "gemm_input_hopper_192_2", "gemm_weight_hopper_192_2"]),
];

impl HopperTile {
    pub const ROWS: usize = 128;
    /// All shared memory that a block may have.
    const SHARED: usize = 227 << 10;
    /// What a tile takes beside its products, in columns.
    const OVERHEAD: usize = 32;

    /// For a product (m x n) for each segment, on a card that has these kernels: the width whose waves of tiles take the least
    /// time. Pairs pay from four waves on.
    pub fn of(card: &Card, [m, n]: [usize; 2], segments: usize) -> Option<Self> {
        if !card.hopper {
            return None;
        }
        let tiles = |wide: usize| m.div_ceil(Self::ROWS) * n.div_ceil(wide) * segments;
        let time = |wide: usize| tiles(wide).div_ceil(card.multiprocessors) * (wide + Self::OVERHEAD);
        let wide = [192, 128, 64].into_iter().min_by_key(|&wide| time(wide))?;
        let pair = wide > 64 && m > Self::ROWS && tiles(wide) >= 4 * card.multiprocessors;
        Some(Self::new(card, wide, pair, [m, n], segments))
    }

    fn new(card: &Card, wide: usize, pair: bool, [m, n]: [usize; 2], segments: usize) -> Self {
        let together = if pair { 2 } else { 1 };
        let tiles = m.div_ceil(together * Self::ROWS) * n.div_ceil(wide) * segments;
        Self { wide, pair, blocks: together * tiles.min(card.multiprocessors / together) }
    }

    /// Every tile that there is, for a product (m x n) for each segment.
    #[cfg(test)]
    pub fn all(card: &Card, size: [usize; 2], segments: usize) -> Vec<Self> {
        KERNELS.map(|(wide, pair, _)| Self::new(card, wide, pair, size, segments)).into()
    }

    pub fn forward([name, ..]: Kernels) -> &'static str {
        name
    }

    pub fn input([_, name, _]: Kernels) -> &'static str {
        name
    }

    pub fn weight([.., name]: Kernels) -> &'static str {
        name
    }

    pub fn launch(self, name: fn(Kernels) -> &'static str) -> Launch {
        let own = KERNELS.into_iter().find(|&(wide, pair, _)| (wide, pair) == (self.wide, self.pair));
        let (.., names) = own.expect("tiles are made of this list");
        Launch::line(name(names), self.blocks, 384).shared(Self::SHARED)
    }

    /// Rows of the second operand's boxes where they are columns of the output: each block of a pair brings its half.
    pub fn columns(self) -> u32 {
        self.wide as u32 / self.together()
    }

    /// The same where they are inner positions.
    pub fn inner(self) -> u32 {
        64 / self.together()
    }

    fn together(self) -> u32 {
        if self.pair { 2 } else { 1 }
    }
}

/// Matrices whose rows begin at multiples of 16 bytes.
pub(super) fn aligned<const N: usize>(tensors: [Tensor; N]) -> bool {
    tensors.iter().all(|tensor| tensor.at % 16 == 0 && tensor.ld * tensor.dtype.bytes() % 16 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tallest_product_has_a_grid_that_a_card_takes() {
        assert_eq!(portable(["large", "small"], MOST_ROWS, 16, 1).grid, [1, MOST_BLOCKS[1], 1]);
    }

    #[test]
    fn few_blocks_take_small_tiles() {
        assert_eq!(portable(["large", "small"], 8192, 768, 1).kernel, "large");
        let small = portable(["large", "small"], 65, 130, 2);
        assert_eq!((small.kernel, small.grid, small.shared), ("small", [3, 2, 2], 32_768));
    }

    #[test]
    fn widths_follow_from_waves_of_tiles() {
        let card = Card { multiprocessors: 132, hopper: true };
        let of = |m, n, segments| HopperTile::of(&card, [m, n], segments).expect("a card with these kernels");
        // 256 tiles of 192 columns in two waves; 384 of 128 in three.
        assert_eq!(of(8192, 768, 1), HopperTile { wide: 192, pair: false, blocks: 132 });
        assert_eq!(of(32_768, 3072, 1), HopperTile { wide: 192, pair: true, blocks: 132 });
        assert_eq!(of(10, 20, 1), HopperTile { wide: 64, pair: false, blocks: 1 });
        assert_eq!(HopperTile::of(&Card::PLAIN, [8192, 768], 1), None);
    }
}
