//! What a device is told to do: a kernel with its grid and its arguments, or a copy. Nothing here touches a device.

use super::driver::Address;

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

/// A kernel with its grid and arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    pub kernel: &'static str,
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// One slot for each argument, which lies in its first bytes.
    pub arguments: Vec<u64>,
}

impl Launch {
    pub fn new(kernel: &'static str, grid: [usize; 3], threads: u32) -> Self {
        Self { kernel, grid: grid.map(|size| size as u32), threads, shared: 0, arguments: Vec::new() }
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

    /// There is nothing to do, and no device takes an empty grid.
    pub fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }

    pub fn shared(mut self, bytes: usize) -> Self {
        self.shared = bytes as u32;
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
