//! kernels/gemm.cu against ops::linear and ops::activation.

use super::super::activation::{Activation, activation_backward, bias_activation_forward};
use super::super::gemm::Write;
use super::super::launch::gemm::{self, Forward, Input, Segments};
use super::super::launch::{Launch, pitch};
use super::super::linear::{WeightGradient, linear_forward, linear_input_backward, linear_weight_backward};
use super::{Device, On, assert_close, assert_near, coarse_noise, dense, noise, operand};

/// The same launch with large tiles, whatever the size.
fn large(mut launch: Launch, [m, n]: [usize; 2]) -> Launch {
    launch.kernel = launch.kernel.trim_end_matches("_small");
    launch.kernel =
        ["gemm_forward", "gemm_input", "gemm_weight"].into_iter().find(|name| *name == launch.kernel).expect("a product");
    launch.grid = [n.div_ceil(256) as u32, m.div_ceil(128) as u32, launch.grid[2]];
    launch.threads = 256;
    launch.shared = 98_304;
    launch
}

struct Case {
    m: usize,
    n: usize,
    k: usize,
    activation: Activation,
    /// Columns of the residual, 0 for none.
    residual: usize,
    large: bool,
}

fn forward(on: On, case: &Case) {
    let &Case { m, n, k, activation, residual, .. } = case;
    let (x, weight, bias, shortcut) =
        (coarse_noise(m * k, 0), coarse_noise(n * k, 1), noise(n, 2), coarse_noise(m * residual, 3));
    let mut pre = vec![0.0; m * n];
    linear_forward(&mut pre, &x, &weight, k, n);
    let mut out = vec![0.0; m * n];
    bias_activation_forward(&mut out, &mut pre, &bias, activation);
    if activation == Activation::None {
        out.clone_from(&pre);
    }
    for (out, own) in out.chunks_mut(n).zip(shortcut.chunks(residual.max(1))) {
        out.iter_mut().zip(own).for_each(|(out, own)| *out += own);
    }
    let (found, found_pre) = on.run(|device: &mut Device| {
        let values = m * pitch(n);
        let [at, at_pre] = [device.room::<u16>(values), device.room::<u16>(values)];
        let launch = gemm::forward(Forward {
            out: at,
            pre: at_pre,
            x: device.upload(&operand(&x, k)),
            weight: device.upload(&operand(&weight, k)),
            bias: device.upload(&bias),
            residual: if residual > 0 { device.upload(&operand(&shortcut, residual)) } else { 0 },
            residual_columns: residual,
            m,
            n,
            k,
            activation,
        });
        device.run(&if case.large { large(launch, [m, n]) } else { launch });
        (device.download::<u16>(at, values), device.download::<u16>(at_pre, values))
    });
    assert_near(&dense(&found, n), &out, "out");
    assert_near(&dense(&found_pre, n), &pre, "pre");
}

fn forward_small_ragged(on: On) {
    forward(on, &Case { m: 65, n: 70, k: 40, activation: Activation::Gelu, residual: 30, large: false });
}

fn forward_small_padded(on: On) {
    // The residual is wider than the output.
    forward(on, &Case { m: 3, n: 7, k: 13, activation: Activation::Tanh, residual: 13, large: false });
}

fn forward_small_many_steps(on: On) {
    forward(on, &Case { m: 16, n: 24, k: 200, activation: Activation::None, residual: 24, large: false });
}

fn forward_large_ragged(on: On) {
    forward(on, &Case { m: 130, n: 40, k: 72, activation: Activation::Relu, residual: 0, large: true });
}

fn input(on: On, case: &Case) {
    let &Case { m, n, k, activation, residual, .. } = case;
    let (dout, weight) = (coarse_noise(m * k, 4), coarse_noise(k * n, 5));
    let (pre, shortcut) = (coarse_noise(m * n, 6), coarse_noise(m * residual, 7));
    let mut expected = vec![0.0; m * n];
    linear_input_backward(&mut expected, &dout, &weight, n, k);
    for (out, own) in expected.chunks_mut(n).zip(shortcut.chunks(residual.max(1))) {
        out.iter_mut().zip(own).for_each(|(out, own)| *out += own);
    }
    activation_backward(&mut expected, &pre, n, activation);
    let (found, found_wide) = on.run(|device: &mut Device| {
        let values = m * pitch(n);
        let (out, out_wide) = (device.room::<u16>(values), device.room::<f32>(values));
        let launch = gemm::input(Input {
            out,
            out_wide,
            dout: device.upload(&operand(&dout, k)),
            weight: device.upload(&operand(&weight, n)),
            pre: if activation == Activation::None { 0 } else { device.upload(&operand(&pre, n)) },
            residual: if residual > 0 { device.upload(&operand(&shortcut, residual)) } else { 0 },
            residual_columns: residual,
            m,
            n,
            k,
            activation,
        });
        device.run(&if case.large { large(launch, [m, n]) } else { launch });
        (device.download::<u16>(out, values), device.download::<f32>(out_wide, values))
    });
    assert_near(&dense(&found, n), &expected, "dx");
    assert_close(&dense(&found_wide, n), &expected, 1e-5, "dx in f32");
}

fn input_small_ragged(on: On) {
    input(on, &Case { m: 66, n: 72, k: 48, activation: Activation::Gelu, residual: 20, large: false });
}

fn input_small_padded(on: On) {
    input(on, &Case { m: 5, n: 9, k: 33, activation: Activation::None, residual: 0, large: false });
}

fn input_large_ragged(on: On) {
    input(on, &Case { m: 20, n: 264, k: 40, activation: Activation::Gelu, residual: 0, large: true });
}

/// Three segments, one empty and one that adds; their rows of J begin at odd places.
fn weight(on: On, outputs: usize, inputs: usize, with_large: bool) {
    let bounds = [(0usize, 37usize), (37, 37), (37, 90)];
    let (rows, cells) = (90, outputs * inputs);
    let stride = cells + outputs + 1;
    let (dout, x, before) = (coarse_noise(rows * outputs, 8), coarse_noise(rows * inputs, 9), noise(3 * stride, 10));
    let mut expected = before.clone();
    let mut segments: Vec<WeightGradient> = Vec::new();
    for (row, &(start, end)) in expected.chunks_mut(stride).zip(&bounds) {
        let (weight, bias) = row[..stride - 1].split_at_mut(cells);
        let write = if start == 37 && end == 90 { Write::Add } else { Write::Replace };
        segments.push(WeightGradient { rows: start..end, weight, bias, write });
    }
    linear_weight_backward(&mut segments, &dout, &x, inputs, outputs);
    let found = on.run(|device: &mut Device| {
        let jacobian = device.upload(&before);
        let (dout, x) = (device.upload(&operand(&dout, outputs)), device.upload(&operand(&x, inputs)));
        let mut segments = Segments {
            starts: device.upload(&bounds.map(|(start, _)| start as u32)),
            ends: device.upload(&bounds.map(|(_, end)| end as u32)),
            offsets: device.upload(&[0, stride as u64, 2 * stride as u64]),
            add: device.upload(&[0u32, 0, 1]),
            count: 3,
        };
        let launch = gemm::weight(jacobian, dout, x, segments, outputs, inputs);
        device.run(&if with_large { large(launch, [outputs, inputs]) } else { launch });
        segments.offsets = device.upload(&[cells as u64, (stride + cells) as u64, (2 * stride + cells) as u64]);
        device.run(&gemm::bias(jacobian, dout, segments, outputs));
        device.download::<f32>(jacobian, 3 * stride)
    });
    assert_close(&found, &expected, 1e-5, "weight gradients");
}

fn weight_small(on: On) {
    weight(on, 72, 40, false);
}

fn weight_small_padded(on: On) {
    weight(on, 5, 67, false);
}

fn weight_large(on: On) {
    weight(on, 136, 16, true);
}

super::on_devices! {
    forward_small_ragged,
    forward_small_padded,
    forward_small_many_steps,
    forward_large_ragged,
    input_small_ragged,
    input_small_padded,
    input_large_ragged,
    weight_small,
    weight_small_padded,
    weight_large,
}
