//! Sizes that change from round to round, rounded up to a few: what is launched for them then comes again, and a device replays it.

use bytemuck::NoUninit;

use crate::machine::tape::{Bytes, bytes_of};

/// Rows of a product's tile, which it computes in any case.
const TILE: usize = 128;

/// Most that [`rows`] adds.
const MOST_PAD: usize = 1024;

/// What so many rows are padded to a multiple of on a device: packed tokens of a group, those of them that are read, and the masked ones of a
/// part that predicts words. A tile, or up to a 32nd of many rows.
pub fn multiple(count: usize) -> usize {
    ((1 << count.max(1).ilog2()) / 32).clamp(TILE, MOST_PAD)
}

/// So many rows with what pads them.
pub fn rows(count: usize) -> usize {
    count.next_multiple_of(multiple(count))
}

/// Most items of a table that has `count`: a power of two, or none.
pub fn items(count: usize) -> usize {
    const LEAST: usize = 16;
    if count == 0 { 0 } else { count.next_power_of_two().max(LEAST) }
}

/// A table of [`items`], or of `room` where that is more; those that are missing `with` what kernels pass over or never read.
pub fn table<T: NoUninit>(values: &[T], room: usize, with: T) -> Bytes {
    padded(values, items(values.len()).max(room), with)
}

/// A table of `count` items.
pub fn padded<T: NoUninit>(values: &[T], count: usize, with: T) -> Bytes {
    let mut bytes = bytes_of(values);
    let missing = count.checked_sub(values.len()).expect("room for all items");
    bytes.extend_from_slice(&bytemuck::bytes_of(&with).repeat(missing));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_by_a_tile_or_a_little() {
        assert_eq!([0, 1, 128, 8191, 8193, 10_500].map(rows), [0, 128, 128, 8192, 8448, 10_752]);
        for count in (1..300_000).step_by(77) {
            let padded = rows(count);
            assert!(padded >= count && padded - count < MOST_PAD && (padded - count < TILE || padded <= count + count / 32));
            assert_eq!(rows(padded), padded);
        }
    }

    #[test]
    fn tables_have_few_sizes() {
        assert_eq!([0, 1, 16, 17, 100].map(items), [0, 16, 16, 32, 128]);
        assert_eq!(table(&[7u32, 8], 0, 9)[4..12], [8, 0, 0, 0, 9, 0, 0, 0]);
        assert_eq!([0, 10, 20].map(|room| table(&[7u32, 8], room, 9).len()), [64, 64, 80]);
    }
}
