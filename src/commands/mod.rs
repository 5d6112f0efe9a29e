//! One file per subcommand, each a few calls long.

pub mod bench;
pub mod bench_kernels;
pub mod bench_schedule;
pub mod bench_surgery;
pub mod check;
pub mod eval;
pub mod export;
pub mod methods;
pub mod plan;
pub mod predict;
pub mod simulate;
pub mod surgery;
pub mod train;
