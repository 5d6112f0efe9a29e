//! The dispatcher on synthetic tasks, their costs, arrivals and faults drawn by a seed: over a virtual clock, or on any other
//! executor, whose quanta then take the time that was drawn.

mod machine;
mod report;
mod rounds;
mod run;
mod workload;

pub use machine::{Drawn, Machine};
pub use report::{ClassReport, Quantiles, Report, Samples};
pub use run::{Simulation, Span, simulate};
pub use workload::{Arrival, Cost, Faults, Mode, SimTask, Workload};
