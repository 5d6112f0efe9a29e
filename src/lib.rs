pub mod cli;
pub mod commands;
pub mod device;
pub mod failure;
pub mod model;
pub mod ops;
pub mod surgery;
pub mod train;
