//! One file per subcommand, each a few calls long.

pub mod bench;
pub mod check;
pub mod eval;
pub mod plan;
pub mod predict;
pub mod train;
