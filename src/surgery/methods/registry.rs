//! Every method by its name.

use serde_json::{Map, Value};

use super::params::{Param, Params, hint};
use super::{
    Method, Needs, aligned_mtl, cagrad, config, db_mtl, dualproj, excess_mtl, fairgrad, graddrop, gradnorm, gradvac, imtl_g,
    krum, mgda, moco, modo, nash_mtl, pcgrad, sdmgrad, trimmed_mean, uniform, upgrad,
};

type Build = fn(&Params, usize) -> Result<Box<dyn Method>, String>;

/// What `taskloom methods` prints of a method, and how to make one.
#[derive(Clone, Copy)]
pub struct Descriptor {
    pub name: &'static str,
    /// One line of plain text.
    pub formula: &'static str,
    pub needs: Needs,
    /// The update is on the scale of one gradient, as its reference's is: weights that sum to about one. Otherwise it counts
    /// as a sum, also where, as in Nash-MTL and FairGrad, its length follows a rule of its own.
    pub averages: bool,
    pub params: &'static [Param],
    pub reference: &'static str,
    /// From checked parameters and the run's number of tasks.
    pub(super) build: Build,
}

impl Descriptor {
    /// Whether a device that holds the gradients solves it by itself.
    pub fn is_solved_on_device(&self) -> bool {
        // Any number of tasks that no method finds too few.
        build(self.name, &Map::new(), 16).is_ok_and(|method| method.device_solver().is_some())
    }
}

pub const DESCRIPTORS: &[Descriptor] = &[
    uniform::MEAN,
    uniform::SUM,
    pcgrad::DESCRIPTOR,
    gradvac::DESCRIPTOR,
    mgda::DESCRIPTOR,
    upgrad::DESCRIPTOR,
    dualproj::DESCRIPTOR,
    cagrad::DESCRIPTOR,
    nash_mtl::DESCRIPTOR,
    fairgrad::DESCRIPTOR,
    imtl_g::DESCRIPTOR,
    aligned_mtl::DESCRIPTOR,
    config::DESCRIPTOR,
    krum::DESCRIPTOR,
    gradnorm::DESCRIPTOR,
    db_mtl::DESCRIPTOR,
    sdmgrad::DESCRIPTOR,
    modo::DESCRIPTOR,
    graddrop::DESCRIPTOR,
    trimmed_mean::DESCRIPTOR,
    moco::DESCRIPTOR,
    excess_mtl::DESCRIPTOR,
];

/// The descriptor of `name`, or an error that suggests the nearest one.
pub fn find(name: &str) -> Result<&'static Descriptor, String> {
    DESCRIPTORS.iter().find(|descriptor| descriptor.name == name).ok_or_else(|| {
        let names: Vec<&str> = DESCRIPTORS.iter().map(|descriptor| descriptor.name).collect();
        format!("no surgery method {name:?}{}", hint(name, &names))
    })
}

/// Makes method `name` for a run of `tasks` tasks. Errors: unknown name, unknown or bad parameter, too few tasks.
pub fn build(name: &str, params: &Map<String, Value>, tasks: usize) -> Result<Box<dyn Method>, String> {
    let descriptor = find(name)?;
    if tasks == 0 {
        return Err(format!("{name} needs at least one task"));
    }
    (descriptor.build)(&Params::check(name, descriptor.params, params)?, tasks)
}

#[cfg(test)]
mod tests {
    use super::super::params::Kind;
    use super::*;

    fn fault(name: &str, params: &str) -> String {
        build(name, &serde_json::from_str(params).expect("test JSON"), 4).err().expect("a fault")
    }

    #[test]
    fn every_method_builds_with_its_defaults_under_its_own_name() {
        for descriptor in DESCRIPTORS {
            let method = build(descriptor.name, &Map::new(), 4).expect(descriptor.name);
            assert_eq!((method.name(), method.needs()), (descriptor.name, descriptor.needs));
            assert_eq!(method.columnwise().is_some(), descriptor.needs.elementwise, "{}", descriptor.name);
        }
    }

    /// A default outside its own range could not be written down again.
    #[test]
    fn every_default_passes_its_own_check() {
        for descriptor in DESCRIPTORS {
            for param in descriptor.params {
                let default = match param.kind {
                    Kind::Number { default, .. } => Value::from(default),
                    Kind::Count { default, .. } => Value::from(default),
                    Kind::Choice { default, .. } => Value::from(default),
                };
                let given = Map::from_iter([(param.name.to_owned(), default)]);
                assert!(build(descriptor.name, &given, 4).is_ok(), "{}.{}", descriptor.name, param.name);
                assert!(!param.doc.is_empty());
            }
        }
    }

    #[test]
    fn misspellings_are_named_and_corrected() {
        assert_eq!(fault("pcgrd", "{}"), r#"no surgery method "pcgrd"; did you mean "pcgrad"?"#);
        assert!(fault("qqqq", "{}").starts_with(r#"no surgery method "qqqq"; known: mean, sum, pcgrad"#));
        assert_eq!(fault("cagrad", r#"{"C": 1}"#), r#"cagrad has no parameter "C"; did you mean "c"?"#);
        assert_eq!(fault("cagrad", r#"{"zz": 1}"#), r#"cagrad has no parameter "zz"; known: c, rescale, norm_eps"#);
        assert_eq!(fault("mean", r#"{"c": 1}"#), r#"mean has no parameters, found "c""#);
        assert_eq!(
            fault("nash_mtl", r#"{"update_every": 0}"#),
            "nash_mtl: update_every = 0 is not a whole number from 1 to 4294967295"
        );
    }
}
