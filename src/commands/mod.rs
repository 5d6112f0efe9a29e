//! One file per subcommand, each a few calls long.

pub mod bench;
