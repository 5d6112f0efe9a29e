//! Operations on rows of numbers: one file per op, each with its CPU body and its tests.
//!
//! The CPU bodies are f32 and are the oracle for every other device. Reductions have a fixed order that depends on shapes
//! alone, never on threads or on what else is in the batch, so equal inputs give equal bytes.

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod bandwidth;
pub mod buckets;
pub mod chunks;
pub mod column_rule;
pub mod dropout;
pub mod embedding_bag;
pub mod gather;
pub mod gemm;
pub mod gram;
pub mod heads;
pub mod jacobian_rows;
pub mod layer_norm;
pub mod linear;
pub mod loss;
pub mod pair_loss;
pub mod philox;
pub mod pooling;
pub mod row_gradients;
pub mod row_index;
pub mod row_pass;
pub mod row_update;
pub mod simd;
pub mod solve;
pub mod storage;
#[cfg(test)]
pub mod testing;
pub mod token_dropout;
pub mod token_embedding;
pub mod unit_rows;
pub mod update;
pub mod vocabulary_loss;
