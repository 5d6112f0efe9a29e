//! Scale-invariant loss: descend on the sum of the log losses.
//!
//! The "SI" baseline of Navon et al., ICML 2022. c_t = 1 / L_t. No parameters. A loss that is not positive has no
//! logarithm: then the factors are equal, visibly.

use super::registry::Descriptor;
use super::{Balancer, Factors, Losses, not_positive};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "si",
    formula: "c_t = 1/L_t",
    params: &[],
    reference: "Navon et al., Multi-Task Learning as a Bargaining Game, ICML 2022 (baseline)",
    build: |_, _| Box::new(Si),
};

struct Si;

impl Balancer for Si {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn factors(&mut self, round: &Losses) -> Factors {
        match not_positive(DESCRIPTOR.name, round.losses) {
            Some(fault) => Factors::equal(round.losses.len(), fault),
            None => Factors::checked(round.losses.iter().map(|loss| loss.recip()).collect()),
        }
    }
}
