//! The commit of a round on dense parameters: one pass over J combines its rows and steps.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::adamw::{Group, Rule, Step, combine_and_step};
use super::chunks::Chunks;
use super::column_rule::How;
use super::gram::{jacobian_rows, narrow, stride};
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch, Work};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::Tensor;

/// Parameters of one space and their moments, (P) f32 each.
#[derive(Clone, Copy, Debug)]
pub struct ParameterState {
    pub values: Tensor,
    pub first: Tensor,
    /// None under SGD.
    pub second: Tensor,
    /// (P) bf16 copy for a device's products, or none.
    pub copy: Tensor,
}

/// Neighbouring columns that move alike.
#[derive(Clone, Debug)]
pub struct Columns {
    pub range: Range<usize>,
    /// Which set of weights they take.
    pub set: usize,
    /// Weight decay applies.
    pub decay: bool,
}

/// d from the rows of J, then the optimizer's step.
pub struct Update<'a> {
    pub state: ParameterState,
    /// (P) of each row.
    pub jacobian: Vec<Tensor>,
    pub columns: Vec<Columns>,
    pub how: How<'a>,
    /// For columns with weight decay; the others have none.
    pub step: Step,
    /// (1) u32: nothing moves unless it is 0; none where it always does.
    pub halted: Tensor,
}

/// What all parameters of a step share, as `Rates` of kernels/update.cuh.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Rates {
    rule: i32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    correction1: f32,
    correction2: f32,
    momentum: f32,
}

impl From<Rule> for Rates {
    fn from(rule: Rule) -> Self {
        match rule {
            Rule::AdamW { beta1, beta2, eps, correction1, correction2 } => {
                Self { rule: 0, beta1, beta2, eps, correction1, correction2, momentum: 0.0 }
            }
            Rule::Sgd { momentum } => Self { rule: 1, momentum, ..Self::zeroed() },
        }
    }
}

/// For groups of parameters that take these steps: what is common to them, and rate and weight decay of each.
pub(super) fn rates_tables(steps: &[Step]) -> [Bytes; 2] {
    let groups: Vec<[f32; 2]> = steps.iter().map(|step| [step.lr, step.weight_decay]).collect();
    [bytes_of(&[Rates::from(steps[0].rule)]), bytes_of(&groups)]
}

impl Update<'_> {
    /// With weight decay, and without.
    fn steps(&self) -> [Step; 2] {
        [self.step, Step { weight_decay: 0.0, ..self.step }]
    }

    fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.columns.iter().map(|own| own.range.start as u64..own.range.end as u64)
    }
}

impl Op for Update<'_> {
    fn name(&self) -> &'static str {
        "update"
    }

    fn operands(&self) -> Operands {
        let ParameterState { values, first, second, copy } = self.state;
        let mut operands = Operands::new([self.how.weights(), self.halted], [values, first, second, copy]);
        operands.reads.extend(self.jacobian.iter().filter(|row| !row.is_none()));
        operands
    }

    fn work(&self) -> Work {
        // Parameters and moments are read as well.
        let ParameterState { values, first, second, .. } = self.state;
        Work { bytes: self.operands().bytes() + Operands::new([values, first, second], []).bytes(), operations: 0 }
    }

    fn host(&self, memory: &HostMemory) {
        let ParameterState { values, first, second, .. } = self.state;
        let (steps, rows) = (self.steps(), self.jacobian.len());
        let part = |tensor: Tensor, range: &Range<usize>| {
            memory.write::<f32>(if tensor.is_none() { tensor } else { tensor.range(range.clone()) })
        };
        for Columns { range, set, decay } in &self.columns {
            let group = Group { values: part(values, range), first: part(first, range), second: part(second, range) };
            let how = self.how.combine(memory, set * rows..(set + 1) * rows, range.start as u64);
            combine_and_step(group, &jacobian_rows(memory, &self.jacobian, range.clone()), how, &steps[usize::from(!decay)]);
        }
    }

    /// Chunks, with the set and the rates of each; rates, and those of a rule.
    fn tables(&self) -> Vec<Bytes> {
        let chunks = Chunks::new(self.ranges(), Chunks::UPDATE_LENGTH);
        let of = |number: fn(&Columns) -> u32| {
            bytes_of(&chunks.ranges.iter().map(|&range| number(&self.columns[range as usize])).collect::<Vec<u32>>())
        };
        let mut tables = chunks.tables().to_vec();
        tables.extend([of(|own| own.set as u32), of(|own| u32::from(!own.decay))]);
        tables.extend(rates_tables(&self.steps()));
        if let How::Columns(rule) = &self.how {
            tables.extend(rule.tables());
        }
        tables
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let &[firsts, lengths, sets, groups, rates, group_rates, ref rule_tables @ ..] = tables else {
            unreachable!("six tables and more")
        };
        let ParameterState { values, first, second, copy } = self.state;
        let (chunks, count, stride) =
            (Chunks::count(self.ranges(), Chunks::UPDATE_LENGTH), self.jacobian.len(), stride(&self.jacobian));
        assert!(stride.is_multiple_of(4), "rows of J begin at multiples of 16 bytes");
        let base = self.jacobian.first().map_or(0, |row| row.at);
        let state = |launch: Launch| launch.addresses([values.at, first.at, second.at, copy.at, base]).long(stride).int(count);
        let launch =
            match &self.how {
                How::Weights(weights) => state(Launch::line("update_weights", chunks, 256)).addresses([
                    weights.at,
                    rates,
                    group_rates,
                    firsts,
                    lengths,
                    sets,
                    groups,
                ]),
                How::Columns(rule) => rule
                    .arguments(state(rule.launch("update_columns", chunks, count)), rule_tables)
                    .addresses([rates, group_rates, firsts, lengths, groups]),
            };
        vec![launch.int(narrow(&self.jacobian)).addresses([self.halted.at]).into()]
    }
}

#[cfg(test)]
mod cases {
    use super::*;
    use crate::machine::tensor::DType;
    use crate::ops::testing::{On, Place, noise, on_devices};

    const ADAM: Rule = Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, correction1: 0.19, correction2: 0.002 };

    /// Two groups with their own weights and rates; where they meet, no vector begins. Once a halted round changes nothing.
    fn update_matches(on: On, tasks: usize, width: usize, rule: Rule, dtype: DType) {
        let stride = width.next_multiple_of(4);
        let square = |values: Vec<f32>| values.iter().map(|x| x * x).collect::<Vec<f32>>();
        on.compare(|place: &mut Place| {
            let all = place.jacobian(&noise(tasks * stride, 7), stride, dtype);
            let state = ParameterState {
                values: place.f32(&noise(width, 8), width),
                first: place.f32(&noise(width, 9), width),
                second: match rule {
                    Rule::AdamW { .. } => place.f32(&square(noise(width, 10)), width),
                    Rule::Sgd { .. } => Tensor::NONE,
                },
                copy: Tensor::NONE,
            };
            let cut = width / 2 + 1;
            let weights = place.f32(&noise(2 * tasks, 11), tasks);
            let row = |task: usize| Tensor { columns: width, ..all.rows(task..task + 1) };
            let update = |halted: Tensor| Update {
                state,
                jacobian: (0..tasks).map(row).collect(),
                columns: vec![
                    Columns { range: 0..cut, set: 0, decay: false },
                    Columns { range: cut..width, set: 1, decay: true },
                ],
                how: How::Weights(weights),
                step: Step { rule, lr: 0.01, weight_decay: 0.1 },
                halted,
            };
            place.run(&update(Tensor::NONE));
            if place.is_device() {
                let halted = place.words(&[1]);
                place.run(&update(halted));
            }
            let moved = [("values", state.values), ("first moments", state.first), ("second moments", state.second)];
            moved.into_iter().filter(|(_, own)| !own.is_none()).map(|(what, own)| place.found(what, own)).collect()
        });
    }

    fn adamw_in_vectors(on: On) {
        update_matches(on, 3, 2_048, ADAM, DType::F32);
    }

    fn adamw_ragged(on: On) {
        update_matches(on, 8, 1_333, ADAM, DType::F32);
        update_matches(on, 8, 1_333, ADAM, DType::Bf16);
    }

    fn sgd(on: On) {
        update_matches(on, 2, 700, Rule::Sgd { momentum: 0.9 }, DType::Bf16);
    }

    /// The copy is that of the moved values.
    fn the_copy_is_made_on_the_way(on: On) {
        let width = 1_001;
        let found = on.run(|device| {
            let place = &mut Place::on(device);
            let row = |place: &mut Place, id: u32| place.f32(&noise(width, id), width);
            let values = row(place, 8);
            let copy = place.room(1, width, DType::Bf16);
            let first = row(place, 9);
            let update = Update {
                state: ParameterState { values, first, second: Tensor::NONE, copy },
                jacobian: vec![row(place, 7)],
                columns: vec![Columns { range: 0..width, set: 0, decay: true }],
                how: How::Weights(place.f32(&[1.0], 1)),
                step: Step { rule: Rule::Sgd { momentum: 0.0 }, lr: 0.5, weight_decay: 0.0 },
                halted: Tensor::NONE,
            };
            place.run(&update);
            // Without padding: its rows are those of the parameters.
            let copy = Tensor { rows: 1, columns: width, ld: width, ..copy };
            [place.found("values", values).values, place.raw_bf16(copy)]
        });
        let expected: Vec<f64> = found[0].iter().map(|&x| half::bf16::from_f64(x).to_f64()).collect();
        assert_eq!(found[1], expected);
    }

    on_devices! {
        adamw_in_vectors,
        adamw_ragged,
        sgd,
        the_copy_is_made_on_the_way,
    }
}
