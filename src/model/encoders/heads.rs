//! The heads over a fused group: which of its parts are computed at once, and what computes them.

use std::ops::Range;

use crate::machine::tape::Tape;
use crate::machine::tensor::Tensor;
use crate::model::network::{Network, Part};
use crate::model::spec::HeadKind;
use crate::ops::heads::{Head, HeadsBackward, HeadsForward};
use crate::ops::unit_rows::{UnitRowsBackward, UnitRowsForward};

/// Neighbouring parts whose heads are computed at once: some linear layers, or one head of another kind.
pub struct HeadRows<'a> {
    pub parts: &'a [Part],
    /// Of the first part in the group.
    pub number: usize,
    /// Of the head rows, of all logits, and of the masked tokens.
    pub rows: Range<usize>,
    pub logits: Range<usize>,
    pub masked: Range<usize>,
}

impl<'a> HeadRows<'a> {
    /// Of a group whose parts have these head rows, and so many logits in each.
    pub fn of_group(
        network: &Network,
        parts: &'a [Part],
        part_rows: &[Range<usize>],
        logits_of_row: impl Fn(&Part) -> usize,
    ) -> Vec<Self> {
        let kind = |part: &Part| network.spec.heads[part.task].kind;
        let (mut number, mut logits, mut masked) = (0, 0, 0);
        let own = |parts: &'a [Part]| {
            let starts = [logits, masked];
            let ranges = &part_rows[number..number + parts.len()];
            for (part, rows) in parts.iter().zip(ranges) {
                logits += rows.len() * logits_of_row(part);
                masked += if kind(part) == HeadKind::Mlm { rows.len() } else { 0 };
            }
            let rows = ranges[0].start..ranges[parts.len() - 1].end;
            let found = Self { parts, number, rows, logits: starts[0]..logits, masked: starts[1]..masked };
            number += parts.len();
            found
        };
        parts.chunk_by(|a, b| kind(a).is_linear() && kind(b).is_linear()).map(own).collect()
    }

    pub fn kind(&self, network: &Network) -> HeadKind {
        network.spec.heads[self.parts[0].task].kind
    }

    /// From the group's `hidden` to its `logits`: unit vectors where texts are compared.
    pub fn forward(
        &self,
        tape: &mut Tape,
        network: &Network,
        part_rows: &[Range<usize>],
        values: Tensor,
        [logits, hidden]: [Tensor; 2],
    ) {
        let (logits, hidden) = (logits.range(self.logits.clone()), hidden.rows(self.rows.clone()));
        if self.kind(network) == HeadKind::Similarity {
            return tape.push(UnitRowsForward { out: logits.as_rows(hidden.rows, hidden.columns), x: hidden });
        }
        tape.push(HeadsForward { logits, hidden, heads: self.heads(network, part_rows, values, &[]) });
    }

    /// Gradients of [`HeadRows::forward`]: `dhidden`, and those of the heads by part of the group.
    pub fn backward(
        &self,
        tape: &mut Tape,
        network: &Network,
        part_rows: &[Range<usize>],
        (values, gradients): (Tensor, &[Tensor]),
        [dhidden, dlogits, hidden]: [Tensor; 3],
    ) {
        let dlogits = dlogits.range(self.logits.clone());
        let [dhidden, hidden] = [dhidden, hidden].map(|whole| whole.rows(self.rows.clone()));
        if self.kind(network) == HeadKind::Similarity {
            return tape.push(UnitRowsBackward { dx: dhidden, dout: dlogits.as_rows(hidden.rows, hidden.columns), x: hidden });
        }
        tape.push(HeadsBackward { dhidden, dlogits, hidden, heads: self.heads(network, part_rows, values, gradients) });
    }

    fn heads(&self, network: &Network, part_rows: &[Range<usize>], values: Tensor, gradients: &[Tensor]) -> Vec<Head> {
        let own = |(part, number): (&Part, usize)| {
            let rows = &part_rows[number];
            let rows = rows.start - self.rows.start..rows.end - self.rows.start;
            head(network, part, rows, values, gradients.get(number).copied().unwrap_or(Tensor::NONE))
        };
        self.parts.iter().zip(self.number..).map(own).collect()
    }
}

/// The output layer of a part over `rows`, counted from the first of its operation; `gradient` may be none.
fn head(network: &Network, part: &Part, rows: Range<usize>, values: Tensor, gradient: Tensor) -> Head {
    let (weight, bias) = network.table.head(part.task);
    Head {
        rows,
        outputs: network.spec.heads[part.task].outputs,
        weight: values.range(weight.range()),
        bias: values.range(bias.range()),
        gradient,
        first: part.first && part.batch == 0,
    }
}
