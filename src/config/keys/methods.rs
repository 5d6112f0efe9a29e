//! The tables of gradient surgery and loss balancing. Parameters of a method are keys beside `method`; each acts with
//! the methods that take it, and its default is the method's own.

use super::super::schema::METHOD_KEYS;
use super::kind::{Bounds, Kind};
use super::{Key, Section, key, optional};
use crate::surgery::methods::params::{MOST_COUNT, MOST_STEPS};

/// Names and ranges are those of `surgery::methods::registry`; a test holds the two together.
const SURGERY_METHODS: &[&str] = &[
    "mean",
    "sum",
    "pcgrad",
    "gradvac",
    "mgda",
    "upgrad",
    "dualproj",
    "cagrad",
    "nash_mtl",
    "fairgrad",
    "imtl_g",
    "aligned_mtl",
    "config",
    "krum",
    "gradnorm",
    "db_mtl",
    "sdmgrad",
    "modo",
    "graddrop",
    "trimmed_mean",
    "moco",
    "excess_mtl",
];

const BALANCE_METHODS: &[&str] = &["equal", "uw", "dwa", "rlw", "gls", "si", "stch", "famo", "imtl_l"];

const NON_NEGATIVE: Kind = Kind::Float(Bounds::NON_NEGATIVE);
const POSITIVE: Kind = Kind::Float(Bounds::POSITIVE);
const UNIT: Kind = Kind::Float(Bounds::UNIT);
const FROM_0: Kind = Kind::Int(0, MOST_COUNT as i64);
const FROM_1: Kind = Kind::Int(1, MOST_COUNT as i64);
const STEPS: Kind = Kind::Int(1, MOST_STEPS as i64);

const fn surgery(name: &'static str, kind: Kind, methods: &'static [&'static str], doc: &'static str) -> Key {
    optional(name, kind, doc).only(METHOD_KEYS[0], methods)
}

pub static SURGERY: Section = Section {
    keys: &[
        key(
            "method",
            Kind::one_of(SURGERY_METHODS),
            "\"pcgrad\"",
            "`taskloom methods` describes each, with the defaults of its parameters.",
        ),
        key(
            "granularity",
            Kind::one_of(&["model", "layer", "tensor"]),
            "\"model\"",
            "The part of the encoder that is settled at once: `layer` and `tensor` give each its own Gram matrix and weights.",
        ),
        key(
            "storage",
            Kind::one_of(&["f32", "bf16"]),
            "\"f32\"",
            "Numbers of the tasks' kept gradients (J): `bf16` halves its dense part; rows of an embedding table stay f32, as does the one row of methods that keep none apart.",
        ),
        key("scale", Kind::one_of(&["native", "sum", "mean"]), "\"native\"", "`native` is the scale of the method's reference."),
        key("heads", Kind::one_of(&["own", "weighted"]), "\"own\"", "`own`: a head takes its own unweighted gradient."),
        surgery(
            "order",
            Kind::one_of(&["random", "fixed"]),
            &["pcgrad", "gradvac"],
            "In which order a row visits the others: drawn per row from the run's seed, or 0, 1, ..., T-1.",
        ),
        surgery(
            "beta",
            UNIT,
            &["gradvac", "moco"],
            "How fast the target follows the cosines seen, or the averages the gradients.",
        ),
        surgery("eps", NON_NEGATIVE, &["gradvac"], "Added to the denominators."),
        surgery("epsilon", POSITIVE, &["mgda"], "Step length at which the iteration stops."),
        surgery("max_iters", STEPS, &["mgda"], "Most Frank-Wolfe steps."),
        surgery("norm_eps", NON_NEGATIVE, &["upgrad", "dualproj", "cagrad"], "Below this trace G counts as zero."),
        surgery("reg_eps", POSITIVE, &["upgrad", "dualproj"], "Added to the diagonal of the trace-normalised G."),
        surgery("c", NON_NEGATIVE, &["cagrad"], "Radius of the ball around the mean gradient, in units of its length."),
        surgery("rescale", Kind::one_of(&["none", "1+c2", "1+c"]), &["cagrad"], "What the update is divided by."),
        surgery("max_norm", NON_NEGATIVE, &["nash_mtl"], "Longest update; 0 for no limit."),
        surgery("update_every", FROM_1, &["nash_mtl"], "Rounds from one bargain to the next."),
        surgery("alpha", NON_NEGATIVE, &["fairgrad", "gradnorm"], "How fair, or how strongly slow tasks are favoured."),
        surgery("lr", POSITIVE, &["gradnorm", "sdmgrad"], "Step of the weights, or of the inner iteration."),
        surgery("momentum", Kind::Float(Bounds::UNIT_OPEN), &["sdmgrad"], "Momentum of the inner iteration."),
        surgery("n_iter", STEPS, &["sdmgrad"], "Inner steps per round."),
        surgery("lambda", NON_NEGATIVE, &["sdmgrad"], "Pull toward the mean gradient."),
        surgery("gamma", POSITIVE, &["modo", "moco"], "Step of the weights."),
        surgery("rho", NON_NEGATIVE, &["modo", "moco"], "Pull toward equal weights."),
        surgery("beta_sigma", NON_NEGATIVE, &["moco"], "Decay of `beta` over rounds."),
        surgery("gamma_sigma", NON_NEGATIVE, &["moco"], "Decay of `gamma` over rounds."),
        surgery("robust_step_size", POSITIVE, &["excess_mtl"], "Step of the weights' logarithms."),
        surgery("n_warmup_steps", FROM_0, &["excess_mtl"], "Rounds of equal weights over which baselines are averaged."),
        surgery("scale_mode", Kind::one_of(&["min", "median", "rmse"]), &["aligned_mtl"], "Which eigenvalue gives the length."),
        surgery("byzantine", FROM_0, &["krum"], "Gradients that may be arbitrary."),
        surgery("leak", UNIT, &["graddrop"], "Share of a dropped gradient that passes."),
        surgery("trim", FROM_0, &["trimmed_mean"], "Values dropped at each end."),
        surgery("selected", FROM_1, &["krum"], "Gradients that are averaged."),
    ],
    later: &[],
};

const fn balancing(name: &'static str, kind: Kind, methods: &'static [&'static str], doc: &'static str) -> Key {
    optional(name, kind, doc).only(METHOD_KEYS[1], methods)
}

pub static BALANCE: Section = Section {
    keys: &[
        key(
            "method",
            Kind::one_of(BALANCE_METHODS),
            "\"equal\"",
            "`equal`: losses keep their own scale. The task's `weight` applies with every method.",
        ),
        balancing("lr", POSITIVE, &["uw", "famo", "imtl_l"], "Adam's step for what the balancer learns."),
        balancing("tau", POSITIVE, &["dwa"], "Temperature: large values are more equal."),
        balancing("mu", POSITIVE, &["stch"], "Smoothness: small values follow the worst task alone."),
        balancing("warmup", FROM_0, &["stch"], "Epochs of plain log losses before the reference epoch."),
        balancing("gamma", NON_NEGATIVE, &["famo"], "Decay of the logits."),
    ],
    later: &["weights"],
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::surgery::balance;
    use crate::surgery::methods::params::{self, Param, Range};
    use crate::surgery::methods::registry::DESCRIPTORS;

    fn same_kind(kind: &Kind, param: &Param) -> bool {
        match (kind, param.kind) {
            (Kind::Float(bounds), params::Kind::Number { range, .. }) => {
                *bounds
                    == match range {
                        Range::NonNegative => Bounds::NON_NEGATIVE,
                        Range::Positive => Bounds::POSITIVE,
                        Range::Unit => Bounds::UNIT,
                        Range::BelowOne => Bounds::UNIT_OPEN,
                    }
            }
            (Kind::Int(low, high), params::Kind::Count { least, most, .. }) => [*low as u64, *high as u64] == [least, most],
            (Kind::OneOf { values, .. }, params::Kind::Choice { options, .. }) => *values == options,
            _ => false,
        }
    }

    /// Every parameter of a method is a key of its kind that acts with it, and no key acts with a method that ignores it.
    fn holds(section: &Section, methods: &[&str], params_of: impl Fn(&str) -> &'static [Param]) {
        for &method in methods {
            for param in params_of(method) {
                let key = section.find(param.name).unwrap_or_else(|| panic!("{method}.{} has no key", param.name));
                assert!(key.only.as_ref().is_some_and(|only| only.values.contains(&method)), "{method}.{}", param.name);
                assert!(same_kind(&key.kind, param), "{method}.{}: {:?}", param.name, key.kind);
            }
        }
        for key in section.keys {
            for &method in key.only.iter().flat_map(|only| only.values) {
                assert!(params_of(method).iter().any(|param| param.name == key.name), "{method} ignores {}", key.name);
            }
        }
    }

    #[test]
    fn the_balance_table_takes_what_the_balancers_take() {
        let names: Vec<&str> = balance::registry::DESCRIPTORS.iter().map(|found| found.name).collect();
        assert_eq!(names, BALANCE_METHODS);
        holds(&BALANCE, BALANCE_METHODS, |name| balance::registry::find(name).expect("a balancer").params);
    }

    #[test]
    fn the_surgery_table_takes_what_the_methods_take() {
        let params_of = |name: &str| DESCRIPTORS.iter().find(|found| found.name == name).expect("a method").params;
        holds(&SURGERY, SURGERY_METHODS, params_of);
        let known: Vec<&str> = DESCRIPTORS.iter().map(|found| found.name).collect();
        assert_eq!(SURGERY_METHODS, known);
    }
}
