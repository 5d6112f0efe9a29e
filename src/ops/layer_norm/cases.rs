//! The kernels of normalization against the host. Widths are those of each kernel, and rows that fill no block.

use std::ops::Range;

use super::*;
use crate::machine::tensor::DType;
use crate::ops::gemm::Write;
use crate::ops::jacobian_rows::Segment;
use crate::ops::testing::{Found, On, Place, coarse_noise, noise, on_devices};
use crate::ops::token_dropout::{TokenKey, TokenKeys};

const WIDTHS: [usize; 6] = [8, 264, 768, 904, 1032, 4096];
const ROWS: usize = 11;

/// Gain and shift at odd places, as behind a head with an odd number of outputs.
fn norm(place: &mut Place, width: usize) -> NormTensors {
    let values = place.f32(&noise(2 * width + 1, 20), 2 * width + 1);
    NormTensors { gain: values.range(1..width + 1), shift: values.range(width + 1..2 * width + 1), eps: 1e-12 }
}

/// Rows of a mean and a deviation of their own.
fn uneven(width: usize, id: u32) -> Vec<f32> {
    let scaled = |(at, x): (usize, f32)| {
        let row = (at / width) as f32;
        half::bf16::from_f32(x * (1.0 + row) + 0.5 * row).to_f32()
    };
    noise(ROWS * width, id).into_iter().enumerate().map(scaled).collect()
}

fn rows_are_normalized(on: On) {
    for width in WIDTHS {
        on.compare(|place: &mut Place| {
            let (x, norm) = (place.narrow(&uneven(width, 0), width), norm(place, width));
            let (out, stats) = (place.room(ROWS, width, DType::Bf16), place.room(ROWS, 2, DType::F32));
            place.run(&LayerNormForward { out, stats, x, norm });
            vec![place.found("out", out), place.found("statistics", stats)]
        });
    }
}

fn residual(on: On, width: usize, probability: Option<f64>) {
    let token = |at: u32| TokenKey { task: at % 2, example: 3 + at / 4, position: at % 4 };
    let tokens: Vec<TokenKey> = (0..ROWS as u32).map(token).collect();
    on.compare(|place: &mut Place| -> Vec<Found> {
        let (sum, residual) = (place.narrow_in_place(&uneven(width, 1), width), place.narrow(&uneven(width, 2), width));
        let (norm, bias) = (norm(place, width), place.f32(&noise(width, 3), width));
        let (out, stats) = (place.room(ROWS, width, DType::Bf16), place.room(ROWS, 2, DType::F32));
        let own = |probability| TokenDropout {
            tokens: TokenKeys::Packed(&tokens),
            probability,
            seed: 0x9876_5432_1012,
            round: 5,
            site: 2,
        };
        place.run(&ResidualNormForward { out, stats, sum, bias, residual, dropout: probability.map(own), norm });
        vec![place.found("sum", sum), place.found("out", out), place.found("statistics", stats)]
    });
}

fn residuals_are_added_and_normalized(on: On) {
    for width in WIDTHS {
        residual(on, width, None);
    }
}

fn residuals_are_added_to_what_dropout_left(on: On) {
    for width in [264, 768, 904, 1032] {
        residual(on, width, Some(0.1));
    }
}

fn gradients_pass_a_normalization(on: On) {
    for width in WIDTHS {
        on.compare(|place: &mut Place| {
            let (x, norm) = (place.narrow(&uneven(width, 0), width), norm(place, width));
            let (out, stats) = (place.room(ROWS, width, DType::Bf16), place.room(ROWS, 2, DType::F32));
            let (dout, dx) = (place.narrow(&coarse_noise(ROWS * width, 1), width), place.room(ROWS, width, DType::Bf16));
            place.run(&LayerNormForward { out, stats, x, norm });
            let row = place.jacobian(&noise(2 * width, 2), 2 * width, DType::F32);
            let segments = vec![Segment { rows: 0..ROWS, row: row.rows(0..1), write: Write::Replace }];
            let jacobian = JacobianRows { segments, added: false, staging: Tensor::NONE };
            let (gain, columns) = (norm.gain, 0..2 * width);
            let partials = place.scratch(norm_partials(ROWS, 1, width), DType::F32);
            place.run(&LayerNormBackward { dx, dout, x, stats, gain, jacobian, columns, partials });
            vec![place.found("dx", dx), place.found("gradients of gain and shift", row)]
        });
    }
}

/// Segments of many rows, of one and of none, one that adds; their rows of J begin at odd places.
fn gains(on: On, width: usize, segments: &[(Range<usize>, Write)], added: bool, dtype: DType) {
    let (rows, stride) = (segments.last().expect("some").0.end, 2 * width + 3);
    let stats: Vec<f32> = noise(2 * rows, 4).iter().map(|x| x.abs()).collect();
    on.compare(|place: &mut Place| {
        let all = place.jacobian(&noise(segments.len() * stride, 5), stride, dtype);
        let segment = |(row, (rows, write)): (usize, &(Range<usize>, Write))| {
            let row = if added { 0 } else { row };
            Segment { rows: rows.clone(), row: all.rows(row..row + 1), write: *write }
        };
        let segments: Vec<Segment> = segments.iter().enumerate().map(segment).collect();
        let partials = place.scratch(norm_partials(rows, segments.len(), width), DType::F32);
        let jacobian = JacobianRows { segments, added, staging: place.staging(2 * width, dtype) };
        let (dout, x) =
            (place.narrow(&coarse_noise(rows * width, 6), width), place.narrow(&coarse_noise(rows * width, 7), width));
        let (stats, gain) = (place.f32(&stats, 2), place.f32(&noise(width, 8), width));
        let (dx, columns) = (place.room(rows, width, DType::Bf16), 1..2 * width + 1);
        place.run(&LayerNormBackward { dx, dout, x, stats, gain, jacobian, columns, partials });
        vec![place.found("dx", dx), place.found("gradients of gain and shift", all)]
    });
}

fn gains_of_segments(on: On) {
    use Write::{Add, Replace};
    for width in [8, 768] {
        gains(
            on,
            width,
            &[(0..5, Replace), (5..5, Replace), (5..70, Add), (70..71, Replace), (71..103, Replace)],
            false,
            DType::F32,
        );
    }
    for width in [904, 1032] {
        gains(on, width, &[(0..1, Replace), (1..34, Add)], false, DType::F32);
    }
}

fn gains_of_one_row(on: On) {
    gains(on, 264, &[(0..70, Write::Replace), (70..90, Write::Add)], true, DType::F32);
}

fn gains_in_bf16(on: On) {
    gains(on, 264, &[(0..70, Write::Replace), (70..90, Write::Add)], false, DType::Bf16);
}

on_devices! {
    rows_are_normalized,
    residuals_are_added_and_normalized,
    residuals_are_added_to_what_dropout_left,
    gradients_pass_a_normalization,
    gains_of_segments,
    gains_of_one_row,
    gains_in_bf16,
}
