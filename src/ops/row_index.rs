//! Which rows of an embedding table a batch touches, and from which examples or tokens, found on a device that holds the data: what
//! [`RowIndex`](super::row_gradients::RowIndex), [`Union`](super::row_gradients::Union) and the table's slots are on the host.

#[cfg(test)]
mod cases;
mod host;
mod tokens;

use bytemuck::{Pod, Zeroable};

use super::dropout::Randomness;
use super::embedding_bag::RowInit;
use super::philox::drop_threshold;
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch, Work};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::{DType, Tensor};
pub use tokens::{FetchTokens, TokenData, TokensAt};

/// Items of one block of the kernels, `kTile` of kernels/row_index.cu, and digits of their sort.
const TILE: usize = 4096;
const DIGITS: usize = 256;
const DIGIT_BITS: u32 = 8;

/// Places of the counts.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Count {
    Entries,
    GradientRows,
    UnionRows,
    Touched,
    TouchedBefore,
}

/// How many counts there are.
const COUNTS: usize = 5;

/// What a batch has at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MostRows {
    /// Of n-grams; none where entries are tokens.
    pub examples: usize,
    /// N-grams or tokens.
    pub entries: usize,
    /// Rows of all tasks' gradients, and of their union.
    pub gradient_rows: usize,
    pub union_rows: usize,
}

/// Lists of a batch on a device, all u32 but the scales: room for the largest, true counts in `counts`.
#[derive(Clone, Copy, Debug)]
pub struct RowLists {
    pub most: MostRows,
    /// N-grams or tokens, rows of gradients, rows of the union, and rows of the table with a slot, now and before the batch.
    pub counts: Tensor,
    /// (examples + 1) bounds of each example's n-grams; none of tokens.
    pub offsets: Tensor,
    /// (entries) rows of the table, then where they lie; none of tokens.
    pub rows: Tensor,
    /// (examples) f32; none of tokens.
    pub scales: Tensor,
    /// (entries x 2) twice, what comes along and what it is sorted by.
    items: [Tensor; 2],
    /// (tiles x digits), and (tiles) twice.
    sums: Tensor,
    firsts: Tensor,
    fresh: Tensor,
    /// (entries) the example of each n-gram, or each token, by row of the gradients; (gradient rows + 1) their bounds; (gradient rows) rows of J.
    pub sources: Tensor,
    pub starts: Tensor,
    tasks: Tensor,
    /// (union rows), and (union rows + 1) bounds of their members.
    pub union_rows: Tensor,
    pub union_starts: Tensor,
    /// (gradient rows x 2) row of J, gradient row.
    pub members: Tensor,
    /// (union rows)
    pub union_slots: Tensor,
}

impl RowLists {
    /// Makes each list by `room`, which is given its name, rows, columns and type.
    pub fn new<E>(most: MostRows, mut room: impl FnMut(&str, usize, usize, DType) -> Result<Tensor, E>) -> Result<Self, E> {
        let MostRows { examples, entries, gradient_rows, union_rows } = most;
        let tiles = entries.div_ceil(TILE).max(1);
        let mut of_ngrams = |name: &str, columns: usize, dtype: DType| {
            if examples == 0 { Ok(Tensor::NONE) } else { room(name, 1, columns.max(1), dtype) }
        };
        let (offsets, rows) =
            (of_ngrams("bounds of examples", examples + 1, DType::U32)?, of_ngrams("n-grams", entries, DType::U32)?);
        let scales = of_ngrams("scales of examples", examples, DType::F32)?;
        let mut list = |name: &str, rows: usize, columns: usize| room(name, rows.max(1), columns, DType::U32);
        Ok(Self {
            most,
            counts: list("counts of rows", 1, COUNTS)?,
            offsets,
            rows,
            scales,
            items: [list("rows to sort", entries, 2)?, list("rows sorted", entries, 2)?],
            sums: list("digits of rows", tiles, DIGITS)?,
            firsts: list("rows by tile", 1, tiles)?,
            fresh: list("new rows by tile", 1, tiles)?,
            sources: list("examples by row", 1, entries.max(1))?,
            starts: list("bounds of rows", 1, gradient_rows + 1)?,
            tasks: list("tasks of rows", 1, gradient_rows.max(1))?,
            union_rows: list("united rows", 1, union_rows.max(1))?,
            union_starts: list("bounds of united rows", 1, union_rows + 1)?,
            members: list("members of united rows", gradient_rows, 2)?,
            union_slots: list("slots of united rows", 1, union_rows.max(1))?,
        })
    }

    fn count(&self, which: Count) -> Address {
        self.counts.at + 4 * which as Address
    }

    /// Where the number of gradients' rows is, and of the union's.
    pub(super) fn gradient_count(&self) -> Address {
        self.count(Count::GradientRows)
    }

    pub(super) fn union_count(&self) -> Address {
        self.count(Count::UnionRows)
    }

    /// Where the number of rows with a slot is: written when data comes, and read back with it.
    pub fn touched_count(&self) -> Tensor {
        self.counts.range(Count::Touched as usize..Count::Touched as usize + 1)
    }

    fn tiles(&self) -> usize {
        self.firsts.columns
    }
}

/// The n-grams of a run's training examples, end to end.
#[derive(Clone, Copy, Debug)]
pub struct BagData {
    /// (n-grams) rows of the table, ascending within an example.
    pub rows: Tensor,
    /// (examples + 1)
    pub offsets: Tensor,
}

/// Packed examples of one task, from `start` to the next part's: `Part` of kernels/row_index.cu.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct FetchPart {
    pub start: u32,
    /// Of J.
    pub row: u32,
    pub task: u32,
    /// Number of the task's first example in the data.
    pub first: u32,
    /// Tokens that pad the groups before its own; of n-grams there are none.
    pub padding: u32,
}

/// N-grams are dropped with this probability, by (seed, round, task, example, n-gram).
#[derive(Clone, Copy, Debug)]
pub struct WordDropout {
    pub random: Randomness,
    pub probability: f64,
}

/// How keys of items are made: a row of the table has `bits`, a row of J the `task_bits` above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyBits {
    pub bits: u32,
    pub task_bits: u32,
}

impl KeyBits {
    /// For so many rows of the table and of J; none where a key has no room for both.
    pub fn of(rows: usize, tasks: usize) -> Option<Self> {
        let bits = |count: usize| usize::BITS - count.saturating_sub(1).leading_zeros();
        // A shift by all bits of a number has no meaning.
        let own = Self { bits: bits(rows).max(1), task_bits: bits(tasks) };
        (own.bits < 32 && own.bits + own.task_bits <= 32).then_some(own)
    }
}

/// Fetches the n-grams of a batch's examples: offsets, rows, scales, and items to sort.
pub struct FetchBags<'a> {
    pub lists: RowLists,
    pub data: BagData,
    /// (examples) each one's number within its task.
    pub examples: &'a [u32],
    /// Ascending, the first from example 0 on.
    pub parts: &'a [FetchPart],
    pub bits: KeyBits,
    pub dropout: Option<WordDropout>,
}

impl FetchBags<'_> {
    fn round(&self) -> u64 {
        self.dropout.map_or(0, |dropout| u64::from(dropout.random.round))
    }
}

impl Op for FetchBags<'_> {
    fn name(&self) -> &'static str {
        "fetch_bags"
    }

    fn operands(&self) -> Operands {
        let RowLists { counts, offsets, rows, scales, items: [items, _], .. } = self.lists;
        Operands::new([self.data.rows, self.data.offsets], [counts, offsets, rows, scales, items])
    }

    fn work(&self) -> Work {
        Work::default()
    }

    fn host(&self, memory: &HostMemory) {
        host::fetch(self, memory);
    }

    /// Examples, parts, and the round.
    fn tables(&self) -> Vec<Bytes> {
        vec![bytes_of(self.examples), bytes_of(self.parts), bytes_of(&[self.round()])]
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let &[examples, parts, round] = tables else { unreachable!("three tables") };
        let RowLists { counts, offsets, rows, scales, items: [items, _], .. } = self.lists;
        let (data, count) = (self.data, self.examples.len());
        let (seed, probability) = self.dropout.map_or((0, 0.0), |own| (own.random.seed, own.probability));
        let batch = |launch: Launch| {
            launch
                .addresses([data.offsets.at, examples, parts])
                .int(self.parts.len())
                .int(count)
                .word(drop_threshold(probability))
                .long(seed)
                .addresses([round])
        };
        let warps = |kernel| Launch::line(kernel, count.div_ceil(8), 256);
        let counted = batch(warps("bag_counts").addresses([offsets.at]));
        let summed = Launch::line("bag_offsets", 1, 1024).addresses([offsets.at, counts.at]).int(count);
        let entries = warps("bag_entries").addresses([rows, items, scales, offsets, data.rows].map(|list| list.at));
        let entries = batch(entries).double(1.0 - probability).int(self.bits.bits as usize);
        [counted, summed, entries].map(Command::from).into()
    }
}

/// The table that rows are of.
#[derive(Clone, Copy, Debug)]
pub struct SlotsAt {
    /// (rows of the table) u32 where each lies, or [`UNTOUCHED`](super::embedding_bag::UNTOUCHED).
    pub slots: Tensor,
    /// (slots) u32 the row of each.
    pub touched: Tensor,
    /// (slots x dim) f32
    pub values: Tensor,
    pub init: RowInit,
}

/// Where the n-grams of [`FetchBags`] lie, once all their rows have slots.
pub struct LookUpSlots {
    pub lists: RowLists,
    /// (rows of the table)
    pub slots: Tensor,
}

impl Op for LookUpSlots {
    fn name(&self) -> &'static str {
        "look_up_slots"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.slots, self.lists.counts], [self.lists.rows])
    }

    fn work(&self) -> Work {
        Work::default()
    }

    fn host(&self, memory: &HostMemory) {
        let (slots, counts): (&[u32], &[u32]) = (memory.read(self.slots), memory.read(self.lists.counts));
        let rows = memory.write::<u32>(self.lists.rows).iter_mut().take(counts[Count::Entries as usize] as usize);
        rows.for_each(|row| *row = slots[*row as usize]);
    }

    fn device(&self, card: &Card, _: &[Address]) -> Vec<Command> {
        let RowLists { most, rows, counts, .. } = self.lists;
        let launch = Launch::line("bag_slots", card.blocks(most.entries.div_ceil(256)), 256);
        vec![launch.addresses([rows, self.slots, counts].map(|list| list.at)).into()]
    }
}

/// Sorts the items of [`FetchBags`] or [`FetchTokens`]: sources and bounds of each gradient row, the union of all tasks' rows with its
/// members, and where each lies. Rows that are touched for the first time get the next slots, in order, and their initial values.
pub struct IndexRows {
    pub lists: RowLists,
    pub table: SlotsAt,
    pub bits: KeyBits,
}

impl IndexRows {
    /// Sorts some items by so many bits, from the first of two rooms; where they then are, and the other room.
    fn sort(&self, commands: &mut Vec<Command>, which: Count, [mut from, mut to]: [Tensor; 2], bits: u32) -> [Tensor; 2] {
        let RowLists { counts, sums, .. } = self.lists;
        for shift in (0..bits).step_by(DIGIT_BITS as usize) {
            let counted = self.tiles("radix_counts").addresses([sums.at, from.at, counts.at]);
            let moved = self.tiles("radix_scatter").addresses([to.at, from.at, sums.at, counts.at]);
            commands.extend([counted, moved].map(|launch| launch.word(which as u32).word(shift).into()));
            (from, to) = (to, from);
        }
        [from, to]
    }

    fn tiles(&self, kernel: &'static str) -> Launch {
        Launch::line(kernel, self.lists.tiles(), 256)
    }

    /// How many distinct keys each tile of some items begins; with the table's slots, how many of them are new.
    fn distinct(&self, items: Tensor, which: Count, slots: Tensor) -> Command {
        let RowLists { counts, firsts, fresh, .. } = self.lists;
        let fresh = if slots.is_none() { 0 } else { fresh.at };
        let counted = self.tiles("distinct_counts").addresses([firsts.at, fresh, items.at, slots.at, counts.at]);
        counted.word(which as u32).into()
    }
}

impl Op for IndexRows {
    fn name(&self) -> &'static str {
        "index_rows"
    }

    fn operands(&self) -> Operands {
        let RowLists { counts, items: [first, second], sums, firsts, fresh, sources, starts, tasks, .. } = self.lists;
        let RowLists { union_rows, union_starts, members, union_slots, .. } = self.lists;
        let SlotsAt { slots, touched, values, .. } = self.table;
        let mut operands = Operands::new([], [counts, first, second, sums, firsts, fresh, sources, starts, tasks]);
        operands.writes.extend([union_rows, union_starts, members, union_slots, slots, touched, values]);
        operands
    }

    fn work(&self) -> Work {
        Work::default()
    }

    fn host(&self, memory: &HostMemory) {
        host::index(self, memory);
    }

    fn device(&self, card: &Card, _: &[Address]) -> Vec<Command> {
        let RowLists { most, counts, sources, starts, tasks, firsts, fresh, .. } = self.lists;
        let RowLists { union_rows, union_starts, members, union_slots, .. } = self.lists;
        let SlotsAt { slots, touched, values, init } = self.table;
        let KeyBits { bits, task_bits } = self.bits;
        let mut commands = Vec::new();
        let [sorted, other] = self.sort(&mut commands, Count::Entries, self.lists.items, bits + task_bits);
        commands.push(self.distinct(sorted, Count::Entries, Tensor::NONE));
        let gradients =
            self.tiles("gradient_rows").addresses([other, sources, starts, tasks, sorted, firsts, counts].map(|list| list.at));
        commands.push(gradients.int(bits as usize).into());
        let [sorted, _] = self.sort(&mut commands, Count::GradientRows, [other, sorted], bits);
        commands.push(self.distinct(sorted, Count::GradientRows, slots));
        let outputs = [union_rows, union_starts, members, union_slots, slots, touched];
        let united = self.tiles("union_rows").addresses(outputs.map(|list| list.at));
        commands.push(united.addresses([sorted, tasks, firsts, fresh, counts].map(|list| list.at)).into());
        let [count, before] = [Count::UnionRows, Count::TouchedBefore].map(|which| self.lists.count(which));
        let lists = [union_rows.at, union_slots.at, count, before];
        commands.push(rows_init(card, values, most.union_rows, lists, init).into());
        commands
    }
}

/// Gives rows their initial values: their numbers, their slots, how many there are, at most `most`, and the first slot that counts.
pub(super) fn rows_init(card: &Card, values: Tensor, most: usize, lists: [Address; 4], init: RowInit) -> Launch {
    Launch::line("embedding_rows_init", card.blocks(most), 256)
        .addresses([values.at])
        .addresses(lists)
        .int(values.columns)
        .long(init.seed)
        .double(init.deviation)
}
