//! kernels/activation.cu against ops::activation and ops::dropout.

use super::super::activation::{Activation, activation_backward};
use super::super::dropout::{self, RowKey};
use super::super::launch::elementwise;
use super::super::launch::pitch;
use super::{Device, On, assert_near, dense, narrow, noise, padded};

const ALL: [Activation; 4] = [Activation::None, Activation::Relu, Activation::Gelu, Activation::Tanh];

fn activations_backward(on: On) {
    let (rows, width) = (7, 29);
    let (pre, dout) = (noise(rows * width, 2), noise(rows * width, 3));
    for activation in ALL {
        let mut expected = dout.clone();
        activation_backward(&mut expected, &pre, width, activation);
        let found = on.run(|device: &mut Device| {
            let [d, pre] = [&dout, &pre].map(|values| device.upload(&padded(&narrow(values), width, 0)));
            device.run(&elementwise::activation_backward(d, pre, rows, width, activation));
            device.download::<u16>(d, rows * pitch(width))
        });
        assert_near(&dense(&found, width), &expected, "dpre");
    }
}

fn dropout_has_the_same_masks(on: On) {
    let (rows, width, seed, round) = (5, 21, 0x1234_5678_9abc, 9u64);
    let keys: Vec<RowKey> = (0..rows as u32).map(|row| RowKey { task: row % 2, example: 100 + row }).collect();
    let words: Vec<u32> = keys.iter().flat_map(|key| [key.task, key.example]).collect();
    let x = noise(rows * width, 4);
    let mut expected = x.clone();
    dropout::dropout(&mut expected, width, &keys, 0.3, seed, round as u32);
    let found = on.run(|device: &mut Device| {
        let at = device.upload(&padded(&narrow(&x), width, 0));
        let (keys, round) = (device.upload(&words), device.upload(&[round]));
        device.run(&elementwise::dropout([at, keys, round], rows, width, 0.3, seed));
        device.download::<u16>(at, rows * pitch(width))
    });
    let found = dense(&found, width);
    assert_near(&found, &expected, "dropout");
    assert!(found.iter().zip(&expected).all(|(&x, &y)| (x == 0) == (y == 0.0)), "the masks");
}

fn conversion_rounds_to_nearest_even(on: On) {
    let x: Vec<f32> = noise(75, 5).into_iter().chain([0.0, f32::INFINITY, 1.003_906_3, 1.011_718_8, -1e-30]).collect();
    for [rows, columns] in [[5, 16], [16, 5]] {
        let found = on.run(|device: &mut Device| {
            let (from, to) = (device.upload(&x), device.room::<u16>(rows * pitch(columns)));
            device.run(&elementwise::to_bf16(to, from, rows, columns));
            device.download::<u16>(to, rows * pitch(columns))
        });
        assert_eq!(dense(&found, columns), narrow(&x));
    }
}

super::on_devices! {
    activations_backward,
    dropout_has_the_same_masks,
    conversion_rounds_to_nearest_even,
}
