//! The tables of gradient surgery and loss balancing. Parameters of a method are keys beside `method`, made from the
//! registries; each acts with the methods that take it, and its default is the method's own.

use serde_json::{Map, Value};

use crate::choices::choices;
use crate::config::keys::{Bounds, Default, Key, Kind};
use crate::config::table::table;
use crate::ops::storage::Storage;
use crate::surgery::balance;
use crate::surgery::methods::Granularity;
use crate::surgery::methods::params::{self, Param, Range};
use crate::surgery::methods::registry;

/// Keys whose value decides which other keys of their table act.
pub const METHOD_KEYS: [&str; 2] = ["surgery.method", "balance.method"];

table! {
    /// Makes one update of the tasks' private gradients.
    pub struct Surgery = SURGERY {
        /// `taskloom methods` describes each, with the defaults of its parameters.
        method: String = "pcgrad" in Kind::one_of(names(METHOD_KEYS[0]));
        /// The part of the encoder that is settled at once: `layer` and `tensor` give each its own Gram matrix and weights.
        granularity: Granularity = "model";
        /// Numbers of the tasks' kept gradients (J): `bf16` halves its dense part; rows of an embedding table stay f32, as does
        /// the one row of methods that keep none apart.
        storage: Storage = "f32";
        /// `native` is the scale of the method's reference.
        scale: Scale = "native";
        /// `own`: a head takes its own unweighted gradient.
        heads: HeadGradients = "own";
    }
    with fields {
        /// The method's own parameters, all of them.
        #[serde(flatten)]
        pub params: Map<String, Value>,
    }
    with keys parameters(METHOD_KEYS[0]);
}

choices! {
    /// On which scale a method's update is applied.
    pub enum Scale {
        /// The reference's own.
        Native = "native",
        Sum = "sum",
        Mean = "mean",
    }
}

choices! {
    pub enum HeadGradients { Own = "own", Weighted = "weighted" }
}

table! {
    /// Scales losses before surgery.
    pub struct Balance = BALANCE {
        /// `equal`: losses keep their own scale. The task's `weight` applies with every method.
        method: String = "equal" in Kind::one_of(names(METHOD_KEYS[1]));
    }
    with fields {
        /// The method's own parameters, all of them.
        #[serde(flatten)]
        pub params: Map<String, Value>,
    }
    with keys parameters(METHOD_KEYS[1]);
    later ["weights"]
}

/// The values of a method's key, each with its parameters, in the order of the registry.
fn methods(key: &str) -> Vec<(&'static str, &'static [Param])> {
    if key == METHOD_KEYS[0] {
        registry::DESCRIPTORS.iter().map(|method| (method.name, method.params)).collect()
    } else {
        balance::registry::DESCRIPTORS.iter().map(|balancer| (balancer.name, balancer.params)).collect()
    }
}

fn names(key: &str) -> Vec<&'static str> {
    methods(key).into_iter().map(|(name, _)| name).collect()
}

/// The parameters of a method.
pub fn params_of(key: &str, method: &str) -> &'static [Param] {
    methods(key).into_iter().find(|(name, _)| *name == method).map_or(&[], |(_, params)| params)
}

/// One key per name of a parameter, for all methods that have it.
fn parameters(key: &'static str) -> Vec<Key> {
    let all: Vec<_> =
        methods(key).into_iter().flat_map(|(method, params)| params.iter().map(move |param| (method, param))).collect();
    let mut keys: Vec<Key> = Vec::new();
    for (_, param) in &all {
        if keys.iter().any(|key| key.name == param.name) {
            continue;
        }
        let same: Vec<_> = all.iter().filter(|(_, other)| other.name == param.name).copied().collect();
        let takers: Vec<_> = same.iter().map(|(method, _)| *method).collect();
        keys.push(Key::new(param.name, Kind::from(param.kind), Default::Absent, doc(&same)).only(key, takers));
    }
    keys
}

/// What the methods say of their parameters of one name, each thing once.
fn doc(params: &[(&str, &Param)]) -> String {
    let mut docs: Vec<(&str, Vec<String>)> = Vec::new();
    for (method, param) in params {
        let method = format!("`{method}`");
        match docs.iter_mut().find(|(doc, _)| *doc == param.doc) {
            Some((_, methods)) => methods.push(method),
            None => docs.push((param.doc, vec![method])),
        }
    }
    if let [(doc, _)] = docs[..] {
        let mut letters = doc.chars();
        return letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).chain(['.']).collect();
    }
    let sayings: Vec<_> = docs.iter().map(|(doc, methods)| format!("{}: {doc}", methods.join(", "))).collect();
    sayings.join("; ") + "."
}

impl From<params::Kind> for Kind {
    fn from(kind: params::Kind) -> Kind {
        match kind {
            params::Kind::Number { range: Range::NonNegative, .. } => Kind::Float(Bounds::NON_NEGATIVE),
            params::Kind::Number { range: Range::Positive, .. } => Kind::Float(Bounds::POSITIVE),
            params::Kind::Number { range: Range::Unit, .. } => Kind::Float(Bounds::UNIT),
            params::Kind::Number { range: Range::BelowOne, .. } => Kind::Float(Bounds::UNIT_OPEN),
            params::Kind::Count { least, most, .. } => Kind::Int(least as i64, most as i64),
            params::Kind::Choice { options, .. } => Kind::one_of(options),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_one_name_are_of_one_kind() {
        for (key, section) in METHOD_KEYS.into_iter().zip([&SURGERY, &BALANCE]) {
            for (method, params) in methods(key) {
                for param in params {
                    let kind = &section.find(param.name).unwrap().kind;
                    assert_eq!(*kind, Kind::from(param.kind), "{method}.{}", param.name);
                }
            }
        }
    }
}
