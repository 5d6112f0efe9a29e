//! Operations on rows of numbers: one file per op, each with its CPU body and its tests.
//!
//! The CPU bodies are f32 and are the oracle for every other device. Reductions have a fixed order that depends on shapes
//! alone, never on threads or on what else is in the batch, so equal inputs give equal bytes.

pub mod activation;
pub mod adamw;
pub mod bandwidth;
#[cfg(all(test, emulated))]
pub mod cases;
pub mod dropout;
pub mod embedding_bag;
pub mod gemm;
pub mod gram;
pub mod heads;
pub mod launch;
pub mod linear;
pub mod loss;
pub mod philox;
pub mod row_gradients;
pub mod simd;
