//! What a device is told to do: a kernel with its grid and its arguments, or a copy. Nothing here touches a device.

use super::driver::{Address, DeviceError, MOST_BLOCKS, MOST_THREADS, Result};
use super::tensor::Tensor;

/// One step of an operation on a device.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Launch(Launch),
    Copy { to: Address, from: Address, bytes: usize },
}

impl From<Launch> for Command {
    fn from(launch: Launch) -> Self {
        Self::Launch(launch)
    }
}

/// What an operation asks of a device at least.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Bytes read and written; 0 where they hang on what is in memory.
    pub bytes: u64,
    /// Of matrix products, two for a multiply-add.
    pub operations: u64,
}

/// The operation that a launch belongs to, and its work, at the first of its launches.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    pub op: &'static str,
    pub work: Work,
}

/// A launch is what it is, wherever it comes from.
impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// A kernel with its grid and arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    pub kernel: &'static str,
    pub origin: Origin,
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// The kernel's first arguments.
    pub maps: Vec<TensorMap>,
    /// One slot for each argument, which lies in its first bytes.
    pub arguments: Vec<u64>,
}

/// How a card's copy engine sees a matrix: boxes of rows and columns, what lies beyond the matrix read as zeros and not written.
/// The rows of a box are 128 bytes and lie in shared memory under the swizzle of that width.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorMap {
    pub tensor: Tensor,
    pub rows: u32,
}

impl Launch {
    pub fn new(kernel: &'static str, grid: [usize; 3], threads: u32) -> Self {
        let (grid, origin) = (grid.map(|size| size as u32), Origin { op: kernel, work: Work::default() });
        Self { kernel, origin, grid, threads, shared: 0, maps: Vec::new(), arguments: Vec::new() }
    }

    /// A grid of `blocks` in one dimension.
    pub fn line(kernel: &'static str, blocks: usize, threads: u32) -> Self {
        Self::new(kernel, [blocks, 1, 1], threads)
    }

    /// A thread for each of some items that are all alike, or for every so many of them where they more than fill the largest
    /// card.
    pub fn elements(kernel: &'static str, items: usize) -> Self {
        const THREADS: usize = 256;
        const FULL: usize = 132 * 8;
        Self::line(kernel, items.div_ceil(THREADS).min(FULL), THREADS as u32)
    }

    /// A warp for each row of a matrix whose rows are whole vectors of 16 bytes in bf16.
    pub fn warps(kernel: &'static str, matrix: Tensor) -> Self {
        const ROWS: usize = 8;
        Self::line(kernel, matrix.rows.div_ceil(ROWS), 32 * ROWS as u32).vectors(matrix.columns)
    }

    /// The kernel takes rows of whole vectors of 16 bytes in bf16.
    pub fn vectors(self, columns: usize) -> Self {
        assert!(columns.is_multiple_of(8), "{} takes rows of a multiple of 8 columns, not of {columns}", self.kernel);
        self
    }

    /// There is nothing to do, and no device takes an empty grid.
    pub fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }

    /// An error where no card takes this launch: the emulated device refuses what a card would.
    pub fn check(&self) -> Result<()> {
        let Self { kernel, grid, threads, .. } = self;
        let fits = grid.iter().zip(MOST_BLOCKS).all(|(&size, most)| (1..=most).contains(&size));
        if fits && (1..=MOST_THREADS).contains(threads) {
            return Ok(());
        }
        let (blocks, most) = (MOST_BLOCKS, MOST_THREADS);
        Err(DeviceError::Invalid(format!(
            "kernel {kernel}: a device takes no grid of {grid:?} blocks of {threads} threads, at most {blocks:?} of {most}"
        )))
    }

    pub fn shared(mut self, bytes: usize) -> Self {
        self.shared = bytes as u32;
        self
    }

    pub fn maps<const N: usize>(mut self, maps: [(Tensor, u32); N]) -> Self {
        self.maps.extend(maps.map(|(tensor, rows)| TensorMap { tensor, rows }));
        self
    }

    pub fn addresses<const N: usize>(mut self, addresses: [Address; N]) -> Self {
        self.arguments.extend(addresses);
        self
    }

    pub fn int(mut self, value: usize) -> Self {
        self.arguments.push(u64::from(i32::try_from(value).expect("sizes of kernels are 32-bit") as u32));
        self
    }

    pub fn signed(mut self, value: i32) -> Self {
        self.arguments.push(u64::from(value as u32));
        self
    }

    pub fn word(mut self, value: u32) -> Self {
        self.arguments.push(u64::from(value));
        self
    }

    pub fn long(mut self, value: u64) -> Self {
        self.arguments.push(value);
        self
    }

    pub fn float(mut self, value: f32) -> Self {
        self.arguments.push(u64::from(value.to_bits()));
        self
    }

    pub fn double(mut self, value: f64) -> Self {
        self.arguments.push(value.to_bits());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_device_is_given_a_grid_that_a_card_refuses() {
        let launch = |grid, threads| Launch { grid, ..Launch::line("k", 1, threads) }.check();
        assert!(launch([1 << 20, 65_535, 65_535], 1024).is_ok());
        for (grid, threads) in [([1, 65_536, 1], 32), ([1, 1, 65_536], 32), ([0, 1, 1], 32), ([1, 1, 1], 1056)] {
            assert!(launch(grid, threads).unwrap_err().to_string().contains("at most [2147483647, 65535, 65535]"), "{grid:?}");
        }
    }
}
