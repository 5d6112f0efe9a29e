//! Which exit code an error means.

use std::fmt;
use std::io::{self, ErrorKind};

/// The run stopped because of a failed task or an anomaly, not because of what the user asked for.
#[derive(Debug)]
pub struct Stopped(pub String);

impl fmt::Display for Stopped {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Stopped {}

/// Nobody reads the results any more, as with `| head -1`: no reason to say anything.
#[derive(Debug)]
pub struct ClosedPipe;

impl fmt::Display for ClosedPipe {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("stdout is closed")
    }
}

impl std::error::Error for ClosedPipe {}

pub const DONE: u8 = 0;
/// Bad usage, configuration or data.
pub const BAD_INPUT: u8 = 2;
/// Stopped by a failed task, an anomaly or a failed write.
pub const STOPPED: u8 = 3;
/// Interrupted after a checkpoint.
pub const INTERRUPTED: u8 = 130;

/// 0 for a [`ClosedPipe`], 3 where a [`Stopped`] or a full disk lies in the chain, else 2.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| cause.is::<ClosedPipe>()) {
        return DONE;
    }
    let is_full = |error: &io::Error| matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
    let stops = |cause: &(dyn std::error::Error + 'static)| cause.is::<Stopped>() || cause.downcast_ref().is_some_and(is_full);
    if error.chain().any(stops) { STOPPED } else { BAD_INPUT }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anomaly_is_not_the_users_fault() {
        assert_eq!(exit_code(&anyhow::Error::new(Stopped("loss is NaN".into())).context("task a")), STOPPED);
        assert_eq!(exit_code(&anyhow::anyhow!("no such file")), BAD_INPUT);
        let full = io::Error::from(ErrorKind::StorageFull);
        assert_eq!(exit_code(&anyhow::Error::new(full).context("cannot write config.toml")), STOPPED);
        assert_eq!(exit_code(&anyhow::Error::new(ClosedPipe).context("stdin, line 3")), DONE);
    }
}
