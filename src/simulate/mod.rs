//! The dispatcher over a virtual clock: seeded costs, arrivals and faults in place of a device.

mod machine;
mod report;
mod rounds;
mod run;
mod workload;

pub use report::{ClassReport, Quantiles, Report, Samples};
pub use run::{Simulation, Span, simulate};
pub use workload::{Arrival, Cost, Faults, Mode, SimTask, Workload};
