//! Every balancer by its name.

use serde_json::{Map, Value};

use super::super::methods::params::{Param, Params, hint};
use super::{Balancer, dwa, equal, famo, gls, imtl_l, rlw, si, stch, uw};

/// What `taskloom methods` prints of a balancer, and how to make one.
#[derive(Clone, Copy)]
pub struct Descriptor {
    pub name: &'static str,
    /// One line of plain text.
    pub formula: &'static str,
    pub params: &'static [Param],
    pub reference: &'static str,
    /// From checked parameters and the run's number of tasks.
    pub(super) build: fn(&Params, usize) -> Box<dyn Balancer>,
}

pub const DESCRIPTORS: &[Descriptor] = &[
    equal::DESCRIPTOR,
    uw::DESCRIPTOR,
    dwa::DESCRIPTOR,
    rlw::DESCRIPTOR,
    gls::DESCRIPTOR,
    si::DESCRIPTOR,
    stch::DESCRIPTOR,
    famo::DESCRIPTOR,
    imtl_l::DESCRIPTOR,
];

/// The descriptor of `name`, or an error that suggests the nearest one.
pub fn find(name: &str) -> Result<&'static Descriptor, String> {
    DESCRIPTORS.iter().find(|descriptor| descriptor.name == name).ok_or_else(|| {
        let names: Vec<&str> = DESCRIPTORS.iter().map(|descriptor| descriptor.name).collect();
        format!("no loss balancer {name:?}{}", hint(name, &names))
    })
}

/// Makes balancer `name` for a run of `tasks` tasks. Errors: unknown name, unknown or bad parameter, no task.
pub fn build(name: &str, params: &Map<String, Value>, tasks: usize) -> Result<Box<dyn Balancer>, String> {
    let descriptor = find(name)?;
    if tasks == 0 {
        return Err(format!("{name} needs at least one task"));
    }
    Ok((descriptor.build)(&Params::check(name, descriptor.params, params)?, tasks))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{LOSSES, round};
    use super::super::{Balancer, Losses};
    use super::*;

    fn advance(balancer: &mut dyn Balancer, rounds: std::ops::Range<usize>) -> Vec<Vec<f64>> {
        let mut all = Vec::new();
        for at in rounds {
            let seen = Losses { round: at as u64, epoch: at as u64 / 2, ..round(&LOSSES[at % 4]) };
            all.push(balancer.factors(&seen).factors);
            balancer.after_step(&Losses { losses: &LOSSES[(at + 1) % 4], ..seen });
        }
        all
    }

    #[test]
    fn a_restored_balancer_goes_on_as_if_nothing_had_happened() {
        for descriptor in DESCRIPTORS {
            let fresh = || build(descriptor.name, &Map::new(), 3).expect(descriptor.name);
            let mut original = fresh();
            assert_eq!(original.name(), descriptor.name);
            advance(original.as_mut(), 0..12);
            let text = original.state().to_string();
            let mut restored = fresh();
            restored.restore(&serde_json::from_str(&text).expect("JSON")).expect(descriptor.name);
            assert_eq!(restored.state().to_string(), text);
            assert_eq!(advance(restored.as_mut(), 12..18), advance(original.as_mut(), 12..18), "{}", descriptor.name);
        }
    }

    #[test]
    fn any_finite_losses_give_finite_factors() {
        for descriptor in DESCRIPTORS {
            let mut balancer = build(descriptor.name, &Map::new(), 3).expect(descriptor.name);
            for (at, losses) in [[0.0; 3], [-1.0, 1e300, 1.0], [1e-300; 3], [1e300; 3], [1.0; 3]].iter().enumerate() {
                let seen = Losses { epoch: 2 * at as u64, ..round(losses) };
                let factors = balancer.factors(&seen).factors;
                assert!(factors.iter().all(|factor| factor.is_finite()), "{} {losses:?}", descriptor.name);
                balancer.after_step(&seen);
            }
        }
    }

    #[test]
    fn misspellings_are_named_and_corrected() {
        let fault = |name: &str| build(name, &Map::new(), 2).err().expect("a fault");
        assert_eq!(fault("fano"), r#"no loss balancer "fano"; did you mean "famo"?"#);
        assert_eq!(fault("eqal"), r#"no loss balancer "eqal"; did you mean "equal"?"#);
    }
}
