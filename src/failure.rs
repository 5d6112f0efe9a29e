//! Which exit code an error means.

use std::fmt;

/// The run stopped because of a failed task or an anomaly, not because of what the user asked for.
#[derive(Debug)]
pub struct Stopped(pub String);

impl fmt::Display for Stopped {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Stopped {}

/// Bad usage, configuration or data.
pub const BAD_INPUT: u8 = 2;
/// Stopped by a failed task or an anomaly.
pub const STOPPED: u8 = 3;
/// Interrupted after a checkpoint.
pub const INTERRUPTED: u8 = 130;

/// 3 where a [`Stopped`] lies in the chain, else 2.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| cause.is::<Stopped>()) { STOPPED } else { BAD_INPUT }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anomaly_is_not_the_users_fault() {
        assert_eq!(exit_code(&anyhow::Error::new(Stopped("loss is NaN".into())).context("task a")), STOPPED);
        assert_eq!(exit_code(&anyhow::anyhow!("no such file")), BAD_INPUT);
    }
}
