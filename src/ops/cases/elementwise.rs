//! kernels/activation.cu against ops::activation and ops::dropout.

use super::super::activation::{Activation, activation_backward, bias_activation_forward};
use super::super::dropout::{self, RowKey};
use super::super::launch::elementwise::{self, Scalar};
use super::super::launch::{Launch, gemm};
use super::{Device, On, assert_close, assert_near, narrow, noise, wide};

const ALL: [Activation; 4] = [Activation::None, Activation::Relu, Activation::Gelu, Activation::Tanh];

fn activations_forward(on: On) {
    let (rows, width) = (7, 35);
    let (x, bias) = (noise(rows * width, 0), noise(width, 1));
    for activation in ALL {
        let (mut pre, mut out) = (x.clone(), vec![0.0; rows * width]);
        bias_activation_forward(&mut out, &mut pre, &bias, activation);
        let out = if activation == Activation::None { pre.clone() } else { out };
        let found = on.run(|device: &mut Device| {
            let [at, pre, bias] = [device.room::<f32>(rows * width), device.upload(&x), device.upload(&bias)];
            device.run(&elementwise::activation_forward(Scalar::F32, at, pre, bias, rows * width, width, activation));
            (device.download::<f32>(at, rows * width), device.download::<f32>(pre, rows * width))
        });
        assert_close(&found.0, &out, 1e-5, "out");
        assert_close(&found.1, &pre, 1e-5, "pre");
        let found = on.run(|device: &mut Device| {
            let [at, pre, bias] = [device.room::<u16>(rows * width), device.upload(&narrow(&x)), device.upload(&bias)];
            device.run(&elementwise::activation_forward(Scalar::Bf16, at, pre, bias, rows * width, width, activation));
            device.download::<u16>(at, rows * width)
        });
        assert_near(&found, &out, "out in bf16");
    }
}

fn activations_backward(on: On) {
    let count = 203;
    let (pre, dout) = (noise(count, 2), noise(count, 3));
    for activation in ALL {
        let mut expected = dout.clone();
        activation_backward(&mut expected, &pre, count, activation);
        let found = on.run(|device: &mut Device| {
            let [d, pre] = [device.upload(&dout), device.upload(&pre)];
            device.run(&elementwise::activation_backward(Scalar::F32, d, pre, count, activation));
            device.download::<f32>(d, count)
        });
        assert_close(&found, &expected, 1e-5, "dpre");
        let found = on.run(|device: &mut Device| {
            let [d, pre] = [device.upload(&narrow(&dout)), device.upload(&narrow(&pre))];
            device.run(&elementwise::activation_backward(Scalar::Bf16, d, pre, count, activation));
            device.download::<u16>(d, count)
        });
        assert_near(&found, &expected, "dpre in bf16");
    }
}

fn dropout_has_the_same_masks(on: On) {
    // The checker keeps accesses by 4 bytes: rows of an odd number of bf16 would share one between two threads.
    let (rows, width, seed, round) = (5, 22, 0x1234_5678_9abc, 9u64);
    let keys: Vec<RowKey> = (0..rows as u32).map(|row| RowKey { task: row % 2, example: 100 + row }).collect();
    let words: Vec<u32> = keys.iter().flat_map(|key| [key.task, key.example]).collect();
    let x = noise(rows * width, 4);
    let mut expected = x.clone();
    dropout::dropout(&mut expected, width, &keys, 0.3, seed, round as u32);
    let (found, coarse) = on.run(|device: &mut Device| {
        let (at, keys, round) = (device.upload(&x), device.upload(&words), device.upload(&[round]));
        device.run(&elementwise::dropout(Scalar::F32, [at, keys, round], rows, width, 0.3, seed));
        let narrow_at = device.upload(&narrow(&x));
        device.run(&elementwise::dropout(Scalar::Bf16, [narrow_at, keys, round], rows, width, 0.3, seed));
        (device.download::<f32>(at, rows * width), device.download::<u16>(narrow_at, rows * width))
    });
    assert_eq!(found, expected);
    assert_near(&coarse, &expected, "dropout in bf16");
    assert!(coarse.iter().zip(&expected).all(|(&x, &y)| (x == 0) == (y == 0.0)), "the masks");
}

fn conversions_round_to_nearest_even(on: On) {
    let x: Vec<f32> = noise(77, 5).into_iter().chain([0.0, f32::INFINITY, 1.003_906_3, 1.011_718_8, -1e-30]).collect();
    let (found, back) = on.run(|device: &mut Device| {
        let (from, to, back) = (device.upload(&x), device.room::<u16>(x.len()), device.room::<f32>(x.len()));
        device.run(&elementwise::to_bf16(to, from, x.len()));
        device.run(&elementwise::to_f32(back, to, x.len()));
        (device.download::<u16>(to, x.len()), device.download::<f32>(back, x.len()))
    });
    assert_eq!(found, narrow(&x));
    assert_eq!(back, wide(&narrow(&x)));
}

/// Two segments, the second one adding; in bf16 they are part of the products' cases.
fn bias_gradients_in_f32(on: On) {
    let (rows, width) = (70, 45);
    let (dout, before) = (noise(rows * width, 6), noise(2 * width, 7));
    let bounds = [(0, 31), (31, rows)];
    let mut expected = before.clone();
    for (segment, &(start, end)) in bounds.iter().enumerate() {
        for column in 0..width {
            let sum: f32 = (start..end).map(|row| dout[row * width + column]).sum();
            let out = &mut expected[segment * width + column];
            *out = if segment == 1 { *out + sum } else { sum };
        }
    }
    let found = on.run(|device: &mut Device| {
        let (gradients, dout) = (device.upload(&before), device.upload(&dout));
        let segments = gemm::Segments {
            starts: device.upload(&bounds.map(|(start, _)| start as u32)),
            ends: device.upload(&bounds.map(|(_, end)| end as u32)),
            offsets: device.upload(&[0, width as u64]),
            add: device.upload(&[0u32, 1]),
            count: 2,
        };
        device.run(&Launch { kernel: "bias_gradients_f32", ..gemm::bias(gradients, dout, segments, width) });
        device.download::<f32>(gradients, 2 * width)
    });
    assert_close(&found, &expected, 1e-5, "bias gradients");
}

super::on_devices! {
    bias_gradients_in_f32,
    activations_forward,
    activations_backward,
    dropout_has_the_same_masks,
    conversions_round_to_nearest_even,
}
