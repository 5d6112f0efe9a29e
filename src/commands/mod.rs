//! One file per subcommand, each with the options it is typed with.

pub mod bench;
pub mod check;
pub mod eval;
pub mod export;
pub mod methods;
pub mod plan;
pub mod predict;
pub mod schema;
pub mod simulate;
pub mod surgery;
pub mod train;

use std::path::PathBuf;

/// The configuration of a run that is not there yet.
#[derive(clap::Args)]
pub struct ConfigArgs {
    /// Configuration file
    pub config: PathBuf,
    /// Set a key, e.g. --set train.epochs=2; wins over the file and its bases
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}
