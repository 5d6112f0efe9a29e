//! In which order ready tasks run: a file for each policy, and its place in [`POLICIES`].

pub mod edf;
pub mod priority;
pub mod rms;
pub mod round_robin;
pub mod weighted;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::deadlines::Late;
use super::queue::Candidate;
use super::task::Spec;

/// Every policy, by the name that is written in a configuration.
pub static POLICIES: &[&Policy] = &[&round_robin::POLICY, &weighted::POLICY, &priority::POLICY, &rms::POLICY, &edf::POLICY];

/// What tells a policy from the others; [`super::queue::Ready`] keeps the order.
#[derive(Debug)]
pub struct Policy {
    pub name: &'static str,
    /// The smallest goes first, then the task that has been ready for longer. A task without a key shares the time of a server
    /// with others like it, by weight.
    pub key: fn(&Candidate) -> Option<u64>,
    /// The key is a task's weighted service so far: that counts, and not which of its jobs is ready.
    pub by_weight: bool,
    /// The server's time is the oldest job's.
    pub serves_oldest: bool,
    /// A task that this policy cannot keep in time beside the others, at this share of the server's.
    pub late: fn(&[Spec], f64) -> Option<Late>,
}

/// Whatever is late is late: no deadline is promised.
pub fn never_late(_: &[Spec], _: f64) -> Option<Late> {
    None
}

impl Policy {
    pub fn find(name: &str) -> Option<&'static Policy> {
        POLICIES.iter().copied().find(|policy| policy.name == name)
    }
}

/// By its name.
impl<'de> Deserialize<'de> for &'static Policy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Policy::find(&name).ok_or_else(|| D::Error::custom(format_args!("\"{name}\" is no policy")))
    }
}

impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_is_found_by_its_name() {
        for policy in POLICIES {
            assert_eq!(Policy::find(policy.name), Some(*policy));
        }
        assert_eq!(Policy::find("lottery"), None);
    }
}
