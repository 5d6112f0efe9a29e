//! Products on devices against the host.

use super::products::LARGE;
use super::*;
use crate::ops::testing::{Found, On, Place, coarse_noise, noise, on_devices};

/// The same launch with large tiles, whatever the size; biases have no tiles.
fn large(mut launch: Launch, [m, n]: [usize; 2]) -> Launch {
    let Some(name) = ["gemm_forward", "gemm_input", "gemm_weight"].into_iter().find(|name| launch.kernel.starts_with(name))
    else {
        return launch;
    };
    let [x, y, _] = LARGE.grid(m, n);
    launch.kernel = name;
    launch.grid = [x as u32, y as u32, launch.grid[2]];
    launch.threads = LARGE.threads;
    launch.shared(LARGE.shared())
}

/// Which kernel computes a product: the one that the card's size asks for, and on a Hopper card the portable one as well; large
/// tiles of the portable kernel; or the Hopper tile of this number in the list of all.
#[derive(Clone, Copy)]
enum With {
    Own,
    Large,
    Tile(usize),
}

const TILES: Range<usize> = 0..5;

/// Against the host; the output is (m x n).
fn compare(on: On, with: With, size: [usize; 2], case: impl Fn(&mut Place) -> Vec<Found>) {
    match with {
        With::Own if on.card().hopper => {
            on.compare(&case);
            on.compare_as(Card::PLAIN, &|launch| launch, case);
        }
        With::Own => on.compare(case),
        With::Large => on.compare_as(Card::PLAIN, &move |launch| large(launch, size), case),
        With::Tile(_) => on.compare(case),
    }
}

/// A product by the Hopper tile of this number, and otherwise itself.
struct Tiled<O>(O, With);

trait Product: Op {
    /// (m, n, segments)
    fn size(&self) -> ([usize; 2], usize);

    fn launch(&self, tile: HopperTile, tables: &[Address]) -> Launch;
}

impl Product for LinearForward {
    fn size(&self) -> ([usize; 2], usize) {
        ([self.out.rows, self.out.columns], 1)
    }

    fn launch(&self, tile: HopperTile, _: &[Address]) -> Launch {
        self.on_hopper(tile)
    }
}

impl Product for LinearInputBackward {
    fn size(&self) -> ([usize; 2], usize) {
        ([self.out.rows, self.out.columns], 1)
    }

    fn launch(&self, tile: HopperTile, _: &[Address]) -> Launch {
        self.on_hopper(tile)
    }
}

impl Product for LinearWeightBackward {
    fn size(&self) -> ([usize; 2], usize) {
        ([self.dout.columns, self.x.columns], self.jacobian.merged().len())
    }

    fn launch(&self, tile: HopperTile, tables: &[Address]) -> Launch {
        self.on_hopper(tile, tables)
    }
}

impl<O: Product> Op for Tiled<O> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn operands(&self) -> Operands {
        self.0.operands()
    }

    fn host(&self, memory: &HostMemory) {
        self.0.host(memory);
    }

    fn tables(&self) -> Vec<Bytes> {
        self.0.tables()
    }

    fn device(&self, card: &Card, tables: &[Address]) -> Vec<Command> {
        let mut commands = self.0.device(card, tables);
        if let With::Tile(number) = self.1 {
            let (size, segments) = self.0.size();
            // Few multiprocessors, so that each block has several tiles.
            let few = Card { multiprocessors: 2, ..*card };
            commands[0] = self.0.launch(HopperTile::all(&few, size, segments)[number], tables).into();
        }
        commands
    }
}

struct Case {
    m: usize,
    n: usize,
    k: usize,
    activation: Activation,
    /// Columns of the residual, 0 for none.
    residual: usize,
    with: With,
}

impl Case {
    fn residual(&self, place: &mut Place, id: u32) -> Tensor {
        let values = coarse_noise(self.m * self.residual, id);
        if values.is_empty() { Tensor::NONE } else { place.narrow(&values, self.residual) }
    }
}

fn forward(on: On, case: &Case) {
    let &Case { m, n, k, activation, with, .. } = case;
    compare(on, with, [m, n], |place| {
        let op = LinearForward {
            out: place.room(m, n, DType::Bf16),
            pre: if activation == Activation::None { Tensor::NONE } else { place.room(m, n, DType::Bf16) },
            x: place.narrow(&coarse_noise(m * k, 0), k),
            weight: place.narrow(&coarse_noise(n * k, 1), k),
            bias: place.f32(&noise(n, 2), n),
            activation,
            residual: case.residual(place, 3),
        };
        place.run(&Tiled(op, with));
        let wide = LinearForward { out: place.padded_room(m, n), pre: Tensor::NONE, residual: Tensor::NONE, ..op };
        if activation == Activation::None {
            place.run(&Tiled(wide, with));
        }
        let written = [("out", op.out), ("pre", op.pre)].into_iter().filter(|(_, tensor)| !tensor.is_none());
        let mut found: Vec<Found> = written.map(|(what, tensor)| place.found(what, tensor)).collect();
        if activation == Activation::None {
            found.push(place.found("out in f32", wide.out));
        }
        found
    });
}

fn forward_small_ragged(on: On) {
    forward(on, &Case { m: 65, n: 70, k: 40, activation: Activation::Gelu, residual: 30, with: With::Own });
}

fn forward_small_padded(on: On) {
    // The residual is wider than the output.
    forward(on, &Case { m: 3, n: 7, k: 13, activation: Activation::Tanh, residual: 13, with: With::Own });
}

fn forward_small_many_steps(on: On) {
    forward(on, &Case { m: 16, n: 24, k: 200, activation: Activation::None, residual: 24, with: With::Own });
}

fn forward_large_ragged(on: On) {
    forward(on, &Case { m: 130, n: 40, k: 72, activation: Activation::Relu, residual: 0, with: With::Large });
}

fn input(on: On, case: &Case) {
    let &Case { m, n, k, activation, with, .. } = case;
    compare(on, with, [m, n], |place| {
        let (dout, weight) = (place.narrow(&coarse_noise(m * k, 4), k), place.narrow(&coarse_noise(k * n, 5), n));
        let (pre, residual) = (place.narrow(&coarse_noise(m * n, 6), n), case.residual(place, 7));
        let pre = if activation == Activation::None { Tensor::NONE } else { pre };
        let outs = [("dx", place.room(m, n, DType::Bf16)), ("dx in f32", place.padded_room(m, n))];
        for (_, out) in outs {
            let op = LinearInputBackward { out, dout, weight, residual, pre, activation };
            // In f32 no Hopper kernel multiplies by slopes.
            let with = if out.dtype == DType::F32 && !pre.is_none() { With::Own } else { with };
            place.run(&Tiled(op, with));
        }
        outs.map(|(what, out)| place.found(what, out)).into()
    });
}

fn input_small_ragged(on: On) {
    input(on, &Case { m: 66, n: 72, k: 48, activation: Activation::Gelu, residual: 20, with: With::Own });
}

fn input_small_padded(on: On) {
    input(on, &Case { m: 5, n: 9, k: 33, activation: Activation::None, residual: 0, with: With::Own });
}

fn input_large_ragged(on: On) {
    input(on, &Case { m: 20, n: 264, k: 40, activation: Activation::Gelu, residual: 0, with: With::Large });
}

/// Three segments, one empty and one that adds; their rows of J begin at odd places.
fn weight(on: On, outputs: usize, inputs: usize, with: With, dtype: DType) {
    let (rows, width) = (90, outputs * (inputs + 1));
    let stride = width + 1;
    let (dout, x, before) = (coarse_noise(rows * outputs, 8), coarse_noise(rows * inputs, 9), noise(3 * stride, 10));
    compare(on, with, [outputs, inputs], |place| {
        let all = place.jacobian(&before, stride, dtype);
        let segment = |(row, (rows, write)): (usize, (Range<usize>, Write))| {
            let row = Tensor { columns: width, ..all.rows(row..row + 1) };
            Segment { rows, row, write }
        };
        let segments = [(0..37, Write::Replace), (37..37, Write::Replace), (37..90, Write::Add)];
        let segments = segments.into_iter().enumerate().map(segment).collect();
        let jacobian = JacobianRows { segments, added: false, staging: place.staging(width, dtype) };
        let (dout, x) = (place.narrow(&dout, outputs), place.narrow(&x, inputs));
        // Partial sums of biases where rows of dout are whole vectors.
        let partials =
            if outputs.is_multiple_of(8) { place.scratch(bias_partials(rows, 3, outputs), DType::F32) } else { Tensor::NONE };
        place.run(&Tiled(LinearWeightBackward { dout, x, jacobian, columns: 0..width, partials }, with));
        vec![place.found("weight gradients", all)]
    });
}

fn weight_small(on: On) {
    weight(on, 72, 40, With::Own, DType::F32);
    weight(on, 72, 40, With::Own, DType::Bf16);
}

fn weight_small_padded(on: On) {
    weight(on, 5, 67, With::Own, DType::F32);
    weight(on, 5, 67, With::Own, DType::Bf16);
}

fn weight_large(on: On) {
    weight(on, 136, 16, With::Large, DType::F32);
}

/// All segments add to one row.
fn weight_of_one_row(on: On) {
    let (rows, outputs, inputs) = (30, 6, 10);
    let width = outputs * (inputs + 1);
    on.compare(|place: &mut Place| {
        let row = place.f32(&noise(width, 11), width);
        let segments = [(0..12, Write::Replace), (12..30, Write::Add)];
        let segments = segments.into_iter().map(|(rows, write)| Segment { rows, row, write }).collect();
        let jacobian = JacobianRows { segments, added: true, staging: Tensor::NONE };
        let (dout, x) = (coarse_noise(rows * outputs, 8), coarse_noise(rows * inputs, 9));
        let (dout, x) = (place.narrow(&dout, outputs), place.narrow(&x, inputs));
        place.run(&LinearWeightBackward { dout, x, jacobian, columns: 0..width, partials: Tensor::NONE });
        vec![place.found("weight gradients", row)]
    });
}

fn hopper_tiles(on: On) {
    for number in TILES.filter(|_| on.card().hopper) {
        let with = With::Tile(number);
        forward(on, &Case { m: 300, n: 200, k: 520, activation: Activation::None, residual: 30, with });
        forward(on, &Case { m: 65, n: 264, k: 40, activation: Activation::Gelu, residual: 0, with });
        input(on, &Case { m: 300, n: 72, k: 328, activation: Activation::None, residual: 20, with });
        for activation in [Activation::Gelu, Activation::Relu, Activation::Tanh] {
            input(on, &Case { m: 140, n: 200, k: 40, activation, residual: 0, with });
        }
        weight(on, 264, 200, with, DType::F32);
        weight(on, 5, 67, with, DType::Bf16);
    }
}

on_devices! {
    hopper_tiles,
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
    weight_of_one_row,
}
