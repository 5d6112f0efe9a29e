//! Many runs of one configuration: `taskloom sweep`.
//!
//! [`points`] says which, [`trial`] what a run folder holds of each, [`halving`] who goes on, [`pool`] runs them as processes of
//! their own, [`ranking`] puts them in order. Read [`run`] first.

mod child;
mod folder;
mod halving;
mod log;
mod points;
mod pool;
mod ranking;
mod run;
mod summary;
mod trial;

pub use folder::SweepFolder;
pub use points::{Point, points};
pub use ranking::Status;
pub use run::{End, Options, run};
pub use summary::Summary;
pub use trial::{Trial, trials};
