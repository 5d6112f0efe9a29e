//! Gradients of embedding rows on devices against the host.

use std::ops::Range;

use super::*;
use crate::ops::testing::{On, Place, coarse_noise, on_devices};

/// Tokens of two tasks in bf16; one word is in 50 places.
fn gradients_of_words(on: On) {
    const DIM: usize = 264;
    let rows = (0..60).map(|token| if token % 6 == 0 { token } else { 7 }).collect();
    let bags = Bags { offsets: (0..=60).collect(), rows, scales: vec![1.0; 60] };
    let index = |examples: Range<usize>| {
        let mut index = RowIndex::default();
        index.fill(&bags, examples);
        index
    };
    let indexes = [index(0..3), index(3..60)];
    let count: usize = indexes.iter().map(|index| index.rows.len()).sum();
    on.compare(|place: &mut Place| {
        let all = place.f32(&vec![9.0; count * DIM], DIM);
        let first = indexes[0].rows.len();
        let out = vec![all.rows(0..first), all.rows(first..count)];
        let dout = place.narrow(&coarse_noise(60 * DIM, 1), DIM);
        let sources = Sources::Packed { indexes: &indexes, scales: &bags.scales, room: 0 };
        place.run(&RowGradientsBackward { sources, out, dout });
        vec![place.found("row gradients", all)]
    });
}

/// Tasks of which the second and the fourth have a gradient of all words already; from gradients of tokens in bf16, and in f32.
fn gradients_that_are_added(on: On) {
    const WORDS: usize = 9;
    let rows = (0..60).map(|token| if token % 6 == 0 { token / 6 % WORDS as u32 } else { 7 }).collect();
    let bags = Bags { offsets: (0..=60).collect(), rows, scales: (0..60).map(|token| 1.0 + token as f32).collect() };
    let index = |examples: Range<usize>, all: bool| {
        let mut index = RowIndex::default();
        index.fill(&bags, examples);
        if all {
            index.cover(WORDS);
        }
        index
    };
    let indexes = [index(0..3, false), index(3..30, true), index(30..58, false), index(58..60, true)];
    let count: usize = indexes.iter().map(|index| index.rows.len()).sum();
    for (dim, narrow) in [(264, true), (37, false)] {
        let scales = if narrow { &[1.0; 60] } else { &bags.scales[..] };
        on.compare(|place: &mut Place| {
            let all = place.f32(&coarse_noise(count * dim, 2), dim);
            let own = |(index, first): (&RowIndex, usize)| all.rows(first..first + index.rows.len());
            let (out, values) = (indexes.iter().zip(first_rows(&indexes)).map(own).collect(), coarse_noise(60 * dim, 1));
            let dout = if narrow { place.narrow(&values, dim) } else { place.padded(&values, dim) };
            let sources = Sources::Packed { indexes: &indexes, scales, room: 0 };
            place.run(&RowGradientsBackward { sources, out, dout });
            vec![place.found("row gradients", all)]
        });
    }
}

on_devices! { gradients_of_words, gradients_that_are_added }
