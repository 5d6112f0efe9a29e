//! How rows of J are kept: as f32, or rounded to bf16 for half the bytes. Every pass over J computes in f32.

use std::ops::Range;

pub use half::bf16;
use multiversion::multiversion;

use crate::choices::choices;

choices! {
    /// How the rows of J are kept.
    pub enum Storage {
        F32 = "f32",
        /// Each micro-batch's gradient is computed in f32, added in f32 to what the row holds, and rounded.
        Bf16 = "bf16",
    }
}

/// Rows of equal length.
#[derive(Clone)]
pub enum Rows<'a> {
    F32(Vec<&'a [f32]>),
    Bf16(Vec<&'a [bf16]>),
}

impl<'a> From<&[&'a [f32]]> for Rows<'a> {
    fn from(rows: &[&'a [f32]]) -> Self {
        Self::F32(rows.to_vec())
    }
}

impl Rows<'_> {
    pub fn count(&self) -> usize {
        match self {
            Self::F32(rows) => rows.len(),
            Self::Bf16(rows) => rows.len(),
        }
    }

    /// Columns.
    pub fn width(&self) -> usize {
        match self {
            Self::F32(rows) => rows.first().map_or(0, |row| row.len()),
            Self::Bf16(rows) => rows.first().map_or(0, |row| row.len()),
        }
    }

    /// Whether every row has this many columns.
    pub fn all_have(&self, width: usize) -> bool {
        match self {
            Self::F32(rows) => rows.iter().all(|row| row.len() == width),
            Self::Bf16(rows) => rows.iter().all(|row| row.len() == width),
        }
    }

    /// Goes through some columns of every row in f32, in order: `work` gets slices, the position in them where a stretch of
    /// columns begins, and that stretch. Rounded rows are widened into `room`, a stretch at a time.
    pub fn each_f32(&self, columns: Range<usize>, room: &mut Vec<f32>, mut work: impl FnMut(&[&[f32]], usize, Range<usize>)) {
        match self {
            Self::F32(rows) => work(rows, columns.start, columns),
            Self::Bf16(rows) => {
                room.resize(room.len().max(rows.len() * STRETCH), 0.0);
                for start in columns.clone().step_by(STRETCH) {
                    let stretch = start..(start + STRETCH).min(columns.end);
                    let wide = room.chunks_exact_mut(STRETCH).zip(rows);
                    wide.for_each(|(wide, row)| widen(&mut wide[..stretch.len()], &row[stretch.clone()]));
                    let views: Vec<&[f32]> = room.chunks_exact(STRETCH).take(rows.len()).collect();
                    work(&views, 0, stretch);
                }
            }
        }
    }
}

/// Columns widened at a time: few enough for the first-level cache.
const STRETCH: usize = 256;

/// wide = narrow, exactly; equal lengths.
#[multiversion(targets("x86_64+avx2+fma"))]
pub fn widen(wide: &mut [f32], narrow: &[bf16]) {
    for (wide, narrow) in wide.iter_mut().zip(narrow) {
        *wide = f32::from_bits(u32::from(narrow.to_bits()) << 16);
    }
}

/// narrow = wide, rounded to the nearest, ties to even; equal lengths. NaN stays NaN.
#[multiversion(targets("x86_64+avx2+fma"))]
pub fn round(narrow: &mut [bf16], wide: &[f32]) {
    for (narrow, wide) in narrow.iter_mut().zip(wide) {
        *narrow = bf16::from_f32(*wide);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_the_nearest_even() {
        // bf16 has 8 bits of mantissa: from 256 on, it holds even numbers only.
        let wide = [1.0, -0.0, 257.0, 259.0, 258.0, f32::INFINITY, f32::NAN];
        let mut narrow = [bf16::ZERO; 7];
        round(&mut narrow, &wide);
        let mut back = [0.0; 7];
        widen(&mut back, &narrow);
        assert_eq!(back[..6], [1.0, -0.0, 256.0, 260.0, 258.0, f32::INFINITY]);
        assert!(back[1].is_sign_negative() && back[6].is_nan());
    }

    #[test]
    fn columns_of_both_kinds_read_alike() {
        let wide: Vec<Vec<f32>> = (0..3).map(|row| (0..600).map(|column| (column % 80 + row) as f32).collect()).collect();
        let narrow: Vec<Vec<bf16>> = wide.iter().map(|row| row.iter().map(|&x| bf16::from_f32(x)).collect()).collect();
        let kinds = [Rows::F32(wide.iter().map(Vec::as_slice).collect()), Rows::Bf16(narrow.iter().map(Vec::as_slice).collect())];
        let mut room = Vec::new();
        for rows in kinds {
            assert_eq!((rows.count(), rows.width(), rows.all_have(600)), (3, 600, true));
            for columns in [2..5, 0..600, 4..4] {
                let mut seen = vec![Vec::new(); 3];
                rows.each_f32(columns.clone(), &mut room, |rows, at, stretch| {
                    assert_eq!(stretch.start, columns.start + seen[0].len());
                    seen.iter_mut().zip(rows).for_each(|(seen, row)| seen.extend_from_slice(&row[at..at + stretch.len()]));
                });
                let expected: Vec<Vec<f32>> = wide.iter().map(|row| row[columns.clone()].to_vec()).collect();
                assert_eq!(seen, expected);
            }
        }
    }
}
