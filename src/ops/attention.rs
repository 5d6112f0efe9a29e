//! Softmax attention over packed sequences of any length, block by block: no matrix of a whole sequence squared is kept
//! (the forward pass keeps each query's log-sum, the backward pass computes the weights again; Dao et al. 2022).
//!
//! Query rows may be fewer than key rows: a last layer of which only some rows are read asks for those alone. Each sequence
//! is computed on its own, so what it is packed with cannot change it.

mod hopper;
mod host;

use std::cmp::Reverse;

use bytemuck::{Pod, Zeroable};

use super::buckets;
use super::philox::drop_threshold;
use super::token_dropout::{TokenKey, TokenKeys};
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch, Work};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::Tensor;
use host::{attention_backward, attention_forward};

/// Which rows belong together. H = heads x dim.
#[derive(Clone, Copy)]
pub struct Sequences<'a> {
    /// (n + 1) bounds of each sequence's query rows.
    pub queries: &'a [u32],
    /// (n + 1) bounds of each sequence's key and value rows.
    pub keys: &'a [u32],
    pub heads: usize,
    pub dim: usize,
    pub dropout: Option<AttentionDropout<'a>>,
}

/// Dropout of attention weights: (seed, round, layer, example, head, query position, key position) decide.
#[derive(Clone, Copy)]
pub struct AttentionDropout<'a> {
    /// By packed query row.
    pub queries: TokenKeys<'a>,
    pub probability: f64,
    pub seed: u64,
    pub round: u32,
    pub layer: u32,
}

/// Whether kernels take heads of this many columns.
pub fn supported(dim: usize) -> bool {
    [32, 64].contains(&dim)
}

const THREADS: u32 = 128;

/// Rows that a block of a large kernel owns, and of a small one; rows that move past them.
const LARGE: usize = 128;
const SMALL: usize = 64;
const MOVING: usize = 64;

/// Bytes of a bf16.
const NARROW: usize = 2;

/// Work of one block on one head, as `AttentionBlock` of kernels/attention.cuh: packed rows.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct Block {
    /// Of the whole sequence.
    queries: [u32; 2],
    keys: [u32; 2],
    /// The first row that the block owns.
    start: u32,
}

impl Block {
    fn work(&self) -> u64 {
        let count = |rows: [u32; 2]| u64::from(rows[1] - rows[0]);
        count(self.queries) * count(self.keys)
    }
}

/// Which rows blocks own.
#[derive(Clone, Copy, PartialEq)]
enum Owned {
    Queries,
    Keys,
}

/// Blocks of the large kernel, then those that the small one has enough rows for. Each list is filled up with blocks that own nothing, so that
/// grids have few sizes.
struct Blocks {
    all: Vec<Block>,
    large: usize,
}

/// Owns nothing.
const NOTHING: Block = Block { queries: [0; 2], keys: [0; 2], start: 0 };

impl Blocks {
    fn new(shape: &Sequences, owned: Owned) -> Self {
        let bounds = |rows: &[u32]| [rows[0], rows[1]];
        let sequences = shape.queries.windows(2).zip(shape.keys.windows(2));
        let (mut large, mut small) = (Vec::new(), Vec::new());
        for (queries, keys) in sequences.map(|(queries, keys)| (bounds(queries), bounds(keys))) {
            let [first, end] = if owned == Owned::Queries { queries } else { keys };
            for start in (first..end).step_by(LARGE) {
                let list = if (end - start) as usize > SMALL { &mut large } else { &mut small };
                list.push(Block { queries, keys, start });
            }
        }
        // The longest are begun first, so that none is left alone at the end.
        [&mut large, &mut small].into_iter().for_each(|blocks| blocks.sort_by_key(|block| Reverse(block.work())));
        // A block of the large kernel owns more rows than one of the small owns, and a sequence has one of these at most.
        let owned = if owned == Owned::Queries { shape.queries } else { shape.keys };
        let rows = owned.last().map_or(0, |&end| end as usize);
        large.resize(rows / SMALL, NOTHING);
        small.resize(owned.len() - 1, NOTHING);
        let count = large.len();
        large.append(&mut small);
        Self { all: large, large: count }
    }

    /// Of the sequences whose keys no block owns alone; all for one kernel.
    fn of_long(shape: &Sequences) -> Self {
        let mut blocks = Self::new(shape, Owned::Queries).all;
        blocks.retain(|block| (block.keys[1] - block.keys[0]) as usize > LARGE);
        blocks.resize(buckets::items(blocks.len()), NOTHING);
        Self { large: blocks.len(), all: blocks }
    }

    /// How many there are for the large kernel, and for the small one.
    fn counts(&self) -> [usize; 2] {
        [self.large, self.all.len() - self.large]
    }

    /// Where both kernels find their blocks, and how many there are for each.
    fn parts(&self, table: Address) -> [(Address, usize); 2] {
        let [large, small] = self.counts();
        [(table, large), (table + (large * size_of::<Block>()) as Address, small)]
    }
}

/// A kernel for heads of 64 and 32 columns, without and with dropout.
type Kernels = [[&'static str; 2]; 2];

macro_rules! kernels {
    ($name:literal, $suffix:literal) => {
        [
            [concat!($name, "_64", $suffix), concat!($name, "_64", $suffix, "_drop")],
            [concat!($name, "_32", $suffix), concat!($name, "_32", $suffix, "_drop")],
        ]
    };
}

const FORWARD: [Kernels; 2] = [kernels!("attention_forward", ""), kernels!("attention_forward", "_small")];
const BACKWARD: [Kernels; 2] = [kernels!("attention_backward", ""), kernels!("attention_backward", "_small")];
const BACKWARD_QUERIES: Kernels = kernels!("attention_backward_queries", "");

impl Sequences<'_> {
    fn drops(&self) -> Option<&AttentionDropout<'_>> {
        self.dropout.as_ref().filter(|dropout| dropout.probability > 0.0)
    }

    /// Operations of one product of queries and keys, or of as many numbers.
    fn product(&self) -> u64 {
        let lengths = |bounds: &[u32]| bounds.windows(2).map(|pair| u64::from(pair[1] - pair[0])).collect::<Vec<_>>();
        let pairs: u64 = lengths(self.queries).iter().zip(lengths(self.keys)).map(|(queries, keys)| queries * keys).sum();
        2 * pairs * (self.heads * self.dim) as u64
    }

    /// Tokens and the round, where something is dropped.
    fn dropout_tables(&self) -> Vec<Bytes> {
        let Some(dropout) = self.drops() else { return Vec::new() };
        vec![dropout.queries.table(), bytes_of(&[u64::from(dropout.round)])]
    }

    /// One of `kernels` for some blocks.
    fn launch(&self, kernels: Kernels, blocks: usize, shared: usize) -> Launch {
        assert!(supported(self.dim), "kernels of attention take heads of 32 or 64 columns, not {}", self.dim);
        let kernel = kernels[usize::from(self.dim == 32)][usize::from(self.drops().is_some())];
        Launch::line(kernel, blocks * self.heads, THREADS).shared(shared)
    }

    /// The arguments of any kernel: `tensors`, blocks at `table` and, where it asks, how many there are, and dropout, of which `dropout`
    /// are the tables.
    fn with_arguments<const T: usize, const N: usize>(
        &self,
        launch: Launch,
        tensors: [Tensor; T],
        table: Address,
        counts: [usize; N],
        dropout: &[Address],
    ) -> Launch {
        let launch = launch.addresses(tensors.map(|tensor| tensor.at)).addresses([table]);
        let launch = counts.into_iter().fold(launch, Launch::int).int(self.heads);
        let launch = tensors.iter().fold(launch, |launch, tensor| launch.int(tensor.ld));
        self.with_dropout(launch, dropout)
    }

    /// What a mask is drawn from, as the kernels' last arguments; `tables` are those of [`Sequences::dropout_tables`].
    fn with_dropout(&self, launch: Launch, tables: &[Address]) -> Launch {
        match (self.drops(), tables) {
            (Some(dropout), &[tokens, round]) => launch
                .addresses([dropout.queries.at(tokens)])
                .word(drop_threshold(dropout.probability))
                .float((1.0 / (1.0 - dropout.probability)) as f32)
                .long(dropout.seed)
                .addresses([round])
                .word(dropout.layer),
            _ => launch.addresses([0]).word(0).float(1.0).long(0).addresses([0]).word(0),
        }
    }
}

/// As [`attention_forward`].
pub struct AttentionForward<'a> {
    pub out: Tensor,
    pub log_sums: Tensor,
    pub q: Tensor,
    pub kv: Tensor,
    pub shape: Sequences<'a>,
}

impl Op for AttentionForward<'_> {
    fn name(&self) -> &'static str {
        "attention_forward"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.q, self.kv], [self.out, self.log_sums])
    }

    fn work(&self) -> Work {
        Work { bytes: self.operands().bytes(), operations: 2 * self.shape.product() }
    }

    fn host(&self, memory: &HostMemory) {
        let (out, log_sums) = (memory.write(self.out), memory.write(self.log_sums));
        attention_forward(out, log_sums, memory.read(self.q), memory.read(self.kv), self.shape);
    }

    /// Blocks, then dropout's.
    fn tables(&self) -> Vec<Bytes> {
        let mut tables = vec![bytes_of(&Blocks::new(&self.shape, Owned::Queries).all)];
        tables.extend(self.shape.dropout_tables());
        tables
    }

    fn device(&self, card: &Card, tables: &[Address]) -> Vec<Command> {
        let tensors = [self.out, self.log_sums, self.q, self.kv];
        let blocks = Blocks::new(&self.shape, Owned::Queries);
        if hopper::takes(card, &self.shape) {
            let launch = hopper::launch(hopper::FORWARD, &self.shape, card, &blocks);
            return vec![self.shape.with_arguments(launch, tensors, tables[0], blocks.counts(), &tables[1..]).into()];
        }
        let launch = |(kernels, (rows, (table, blocks)))| {
            let shared = (rows + 4 * MOVING) * self.shape.dim * NARROW;
            let launch = self.shape.launch(kernels, blocks, shared);
            self.shape.with_arguments(launch, tensors, table, [], &tables[1..]).into()
        };
        FORWARD.into_iter().zip([LARGE, SMALL].into_iter().zip(blocks.parts(tables[0]))).map(launch).collect()
    }
}

/// As [`attention_backward`].
pub struct AttentionBackward<'a> {
    pub dq: Tensor,
    pub dkv: Tensor,
    pub dout: Tensor,
    /// What the forward pass left.
    pub out: Tensor,
    pub log_sums: Tensor,
    pub q: Tensor,
    pub kv: Tensor,
    pub shape: Sequences<'a>,
}

impl Op for AttentionBackward<'_> {
    fn name(&self) -> &'static str {
        "attention_backward"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.dout, self.out, self.log_sums, self.q, self.kv], [self.dq, self.dkv])
    }

    fn work(&self) -> Work {
        Work { bytes: self.operands().bytes(), operations: 5 * self.shape.product() }
    }

    fn host(&self, memory: &HostMemory) {
        let (dq, dkv) = (memory.write(self.dq), memory.write(self.dkv));
        let [dout, out, log_sums, q, kv] = [self.dout, self.out, self.log_sums, self.q, self.kv].map(|known| memory.read(known));
        attention_backward(dq, dkv, dout, out, log_sums, q, kv, self.shape);
    }

    /// Blocks of keys, blocks of queries of the sequences that these leave, then dropout's.
    fn tables(&self) -> Vec<Bytes> {
        let mut tables = vec![bytes_of(&Blocks::new(&self.shape, Owned::Keys).all), bytes_of(&Blocks::of_long(&self.shape).all)];
        tables.extend(self.shape.dropout_tables());
        tables
    }

    fn device(&self, card: &Card, tables: &[Address]) -> Vec<Command> {
        let tensors = [self.dq, self.dkv, self.dout, self.out, self.log_sums, self.q, self.kv];
        let (of_keys, of_long) = (Blocks::new(&self.shape, Owned::Keys), Blocks::of_long(&self.shape));
        if hopper::takes(card, &self.shape) {
            let parts = [(hopper::BACKWARD, &of_keys, tables[0]), (hopper::BACKWARD_QUERIES, &of_long, tables[1])];
            let launch = |(kernels, blocks, table): (_, &Blocks, _)| {
                let launch = hopper::launch(kernels, &self.shape, card, blocks);
                self.shape.with_arguments(launch, tensors, table, blocks.counts(), &tables[2..]).into()
            };
            return parts.into_iter().map(launch).collect();
        }
        let (dim, drops) = (self.shape.dim, self.shape.drops().is_some());
        // Queries and dO, their log-sums and D; words of dropout.
        let stage = 2 * MOVING * dim * NARROW + 2 * MOVING * size_of::<f32>();
        let stages = 2 * (stage + if drops { MOVING * size_of::<TokenKey>() } else { 0 });
        let keys = |rows: usize| rows * (2 * dim + MOVING) * NARROW + stages;
        let queries = (2 * LARGE + 4 * MOVING) * dim * NARROW;
        let [large, small] = of_keys.parts(tables[0]);
        let [long, _] = of_long.parts(tables[1]);
        let launches = [(BACKWARD[0], keys(LARGE), large), (BACKWARD[1], keys(SMALL), small), (BACKWARD_QUERIES, queries, long)];
        let launch = |(kernels, shared, (table, blocks))| {
            let launch = self.shape.launch(kernels, blocks, shared);
            self.shape.with_arguments(launch, tensors, table, [], &tables[2..]).into()
        };
        launches.into_iter().map(launch).collect()
    }
}

#[cfg(test)]
mod cases;
