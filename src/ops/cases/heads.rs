//! kernels/heads.cu and kernels/loss.cu against ops::heads and ops::loss.

use super::super::heads::{Gradient, Segment, heads_backward, heads_forward};
use super::super::launch::heads::{self, HeadSegment, Loss, LossSegment, Segments};
use super::super::launch::pitch;
use super::super::loss::{binary_cross_entropy, cross_entropy, squared_error};
use super::{Device, On, assert_close, assert_near, coarse_noise, dense, noise, operand};

const WIDTH: usize = 41;
/// (rows, outputs) of each task.
const TASKS: [(usize, usize); 3] = [(5, 3), (9, 1), (4, 40)];

/// Segments end to end, and how many rows, logits and parameters they have.
fn segments() -> (Vec<HeadSegment>, usize, usize, usize) {
    let (mut row, mut logit, mut value) = (0, 0, 0);
    let mut found = Vec::new();
    for (task, (rows, outputs)) in TASKS.into_iter().enumerate() {
        found.push(HeadSegment {
            start: row as u32,
            end: (row + rows) as u32,
            outputs: outputs as u32,
            task: task as u32,
            weight: value as u64,
            bias: (value + outputs * WIDTH) as u64,
            logits: logit as u64,
        });
        row += rows;
        logit += rows * outputs;
        value += outputs * (WIDTH + 1);
    }
    (found, row, logit, value)
}

fn heads_forward_and_backward(on: On) {
    let (table, rows, logits, values) = segments();
    let (hidden, parameters, dlogits) = (coarse_noise(rows * WIDTH, 0), noise(values, 1), noise(logits, 2));
    let parts = |segment: &HeadSegment| (segment.weight as usize, segment.bias as usize, segment.outputs as usize);
    let cpu: Vec<Segment> = table
        .iter()
        .map(|segment| {
            let (weight, bias, outputs) = parts(segment);
            let rows = segment.start as usize..segment.end as usize;
            Segment { rows, outputs, weight: &parameters[weight..bias], bias: &parameters[bias..bias + outputs] }
        })
        .collect();
    let mut expected = vec![0.0; logits];
    heads_forward(&mut expected, &hidden, WIDTH, &cpu);
    let (mut dhidden, mut gradients) = (vec![0.0; rows * WIDTH], noise(values, 3));
    let before = gradients.clone();
    {
        let mut rest = &mut gradients[..];
        let mut own = Vec::new();
        for segment in &table {
            let (weight, bias, outputs) = parts(segment);
            let (head, tail) = rest.split_at_mut(bias + outputs - weight);
            let (weight, bias) = head.split_at_mut(outputs * WIDTH);
            own.push(Gradient { weight, bias });
            rest = tail;
        }
        heads_backward(&mut dhidden, &mut own, &dlogits, &hidden, WIDTH, &cpu);
    }
    let (found, found_hidden, found_gradients) = on.run(|device: &mut Device| {
        let segments = Segments { at: device.upload(&table), count: table.len(), rows };
        let (hidden, parameters) = (device.upload(&operand(&hidden, WIDTH)), device.upload(&parameters));
        let [out, dhidden] = [device.room::<f32>(logits), device.room::<u16>(rows * pitch(WIDTH))];
        device.run(&heads::forward(out, hidden, parameters, segments, WIDTH));
        let (dlogits, gradients, add) = (device.upload(&dlogits), device.upload(&before), device.upload(&[1u32; 3]));
        device.run(&heads::input(dhidden, dlogits, parameters, segments, WIDTH));
        device.run(&heads::weight(gradients, dlogits, hidden, segments, add, WIDTH, 40));
        (device.download(out, logits), device.download::<u16>(dhidden, rows * pitch(WIDTH)), device.download(gradients, values))
    });
    assert_close(&found, &expected, 1e-5, "logits");
    assert_near(&dense(&found_hidden, WIDTH), &dhidden, "dhidden");
    assert_close(&found_gradients, &gradients, 1e-5, "head gradients");
}

fn losses_of_every_kind(on: On) {
    let (table, rows, logits, _) = segments();
    let x = noise(logits, 4);
    let classes = [2u32, 0, 1, 1, 2];
    let mut regression = noise(9, 5);
    regression[3] = f32::NAN;
    let labels: Vec<f32> = (0..160).map(|i| if i % 7 == 0 { f32::NAN } else { (i % 2) as f32 }).collect();
    let mut expected = vec![0.0; logits];
    let (first, rest) = expected.split_at_mut(15);
    let (second, third) = rest.split_at_mut(9);
    let sums = [
        cross_entropy(first, &x[..15], &classes, 3, 0.1, 0.5 * 2.0),
        squared_error(second, &x[15..24], &regression, 0.25 * 3.0),
        binary_cross_entropy(third, &x[24..], &labels, 2.0 * 0.5),
    ];
    let kinds = [(Loss::CrossEntropy, 0.5, 0), (Loss::SquaredError, 0.25, 5), (Loss::BinaryCrossEntropy, 2.0, 14)];
    let own: Vec<LossSegment> = table
        .iter()
        .zip(kinds)
        .map(|(head, (loss, scale, targets))| LossSegment {
            start: head.start,
            end: head.end,
            outputs: head.outputs,
            loss: loss as u32,
            task: head.task,
            scale,
            logits: head.logits,
            targets,
        })
        .collect();
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    let targets: Vec<u32> = classes.iter().copied().chain(bits(&regression)).chain(bits(&labels)).collect();
    let (found, found_sums) = on.run(|device: &mut Device| {
        let segments = Segments { at: device.upload(&own), count: 3, rows };
        let [dlogits, row_losses] = [device.room::<f32>(logits), device.room::<f64>(rows)];
        let (x, targets) = (device.upload(&x), device.upload(&targets));
        let (factors, total, add) =
            (device.upload(&[2.0f32, 3.0, 0.5]), device.upload(&[10.0f64; 3]), device.upload(&[1u32, 0, 1]));
        device.run(&heads::loss_rows(dlogits, row_losses, x, targets, segments, 0.1, factors));
        device.run(&heads::loss_sums(total, row_losses, segments, add));
        (device.download::<f32>(dlogits, logits), device.download::<f64>(total, 3))
    });
    assert_close(&found, &expected, 1e-5, "dlogits");
    for (found, expected) in found_sums.iter().zip([10.0 + sums[0], sums[1], 10.0 + sums[2]]) {
        assert!((found - expected).abs() < 1e-12 * expected, "{found} for {expected}");
    }
}

super::on_devices! {
    heads_forward_and_backward,
    losses_of_every_kind,
}
