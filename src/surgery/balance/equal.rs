//! Equal weighting: c_t = 1. No parameters.

use super::registry::Descriptor;
use super::{Balancer, Factors, Losses};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "equal",
    formula: "c_t = 1",
    params: &[],
    reference: "the plain sum of the losses",
    build: |_, _| Box::new(Equal),
};

struct Equal;

impl Balancer for Equal {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn factors(&mut self, round: &Losses) -> Factors {
        Factors::ok(vec![1.0; round.losses.len()])
    }
}
