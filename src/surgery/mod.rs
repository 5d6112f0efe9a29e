//! Surgery: G = J J^T, weights w from it, and one fused pass that turns w^T J into new parameters.

pub mod balance;
pub mod blocks;
pub mod buffers;
pub mod conflict;
#[cfg(test)]
mod device_tests;
pub mod gram;
pub mod large;
pub mod ledger;
pub mod methods;
pub mod request;
pub mod spread;
pub mod update;
