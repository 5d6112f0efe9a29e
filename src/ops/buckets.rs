//! Sizes that change from round to round, rounded up to a few: what is launched for them then comes again, and a device replays it.

use bytemuck::NoUninit;

use crate::machine::tape::{Bytes, bytes_of};

/// Packed tokens of a group, and the masked ones of a part that predicts words, are padded to multiples of this on a device: rows of a product's tile, which it computes in any case.
pub const TOKENS: usize = 128;

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
    fn tables_have_few_sizes() {
        assert_eq!([0, 1, 16, 17, 100].map(items), [0, 16, 16, 32, 128]);
        assert_eq!(table(&[7u32, 8], 0, 9)[4..12], [8, 0, 0, 0, 9, 0, 0, 0]);
        assert_eq!([0, 10, 20].map(|room| table(&[7u32, 8], room, 9).len()), [64, 64, 80]);
    }
}
