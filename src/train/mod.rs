//! Training: the loop, its rounds, evaluation, and what survives a crash.

pub mod round;
