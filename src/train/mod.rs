//! Training: the loop, its rounds, evaluation, and what survives a crash.

mod accelerator;
pub mod attempt;
pub mod batch;
pub mod checkpoint;
mod decide;
mod device_plan;
pub mod evaluate;
pub mod faults;
pub mod guard;
pub mod masking;
pub mod metrics;
mod on_device;
pub mod plan;
pub mod prefix;
pub mod pressure;
pub mod rates;
pub mod restore;
pub mod round;
pub mod rules;
pub mod run;
pub mod run_folder;
pub mod session;
mod setbacks;
mod state;
pub mod tokens;
pub mod turns;
