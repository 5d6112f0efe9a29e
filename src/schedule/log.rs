//! What the dispatcher did, in order: hashed always, kept where asked for.

use super::Nanos;
use super::task::State;

/// One step of the dispatcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub at: Nanos,
    pub task: u32,
    pub what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A job became known.
    Submit,
    /// A quantum began on a lane with so many bytes of scratch.
    Start {
        lane: u32,
        bytes: u64,
    },
    /// It ended.
    End {
        lane: u32,
    },
    State {
        from: State,
        to: State,
    },
    /// The task was admitted and keeps so many bytes.
    Admit {
        bytes: u64,
    },
    /// It gave them back.
    Dismiss {
        bytes: u64,
    },
    /// It had to wait for an operation on the same blocks; both write.
    WriteWrite,
    /// One of them reads.
    ReadWrite,
    /// A gradient this many commits old came to be committed.
    Causal {
        staleness: u32,
    },
}

/// Hash of all entries, and the entries themselves if they are kept.
#[derive(Clone, Debug, Default)]
pub struct Log {
    hash: Fnv,
    kept: Option<Vec<Entry>>,
}

/// FNV-1a over 64-bit words: equal logs have equal hashes, different ones different hashes but for rare chance.
#[derive(Clone, Copy, Debug)]
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, word: u64) {
        // The rotation carries high bits down, which a multiplication alone never does.
        self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(29);
    }
}

impl Log {
    pub fn keep(&mut self) {
        self.kept = Some(Vec::new());
    }

    pub fn add(&mut self, at: Nanos, task: u32, what: What) {
        let (kind, value) = match what {
            What::Submit => (0, 0),
            What::Start { lane, bytes } => (1, bytes.wrapping_mul(64) ^ u64::from(lane)),
            What::End { lane } => (2, u64::from(lane)),
            What::State { from, to } => (3, 8 * from as u64 + to as u64),
            What::Admit { bytes } => (4, bytes),
            What::Dismiss { bytes } => (5, bytes),
            What::WriteWrite => (6, 0),
            What::ReadWrite => (7, 0),
            What::Causal { staleness } => (8, u64::from(staleness)),
        };
        self.hash.add(at);
        self.hash.add(u64::from(task) << 8 | kind);
        self.hash.add(value);
        if let Some(kept) = &mut self.kept {
            kept.push(Entry { at, task, what });
        }
    }

    /// Entries so far, if they are kept.
    pub fn entries(&self) -> &[Entry] {
        self.kept.as_deref().unwrap_or(&[])
    }

    pub fn hash(&self) -> u64 {
        self.hash.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_time_and_content_count() {
        let hash = |entries: &[(Nanos, u32, What)]| {
            let mut log = Log::default();
            entries.iter().for_each(|&(at, task, what)| log.add(at, task, what));
            log.hash()
        };
        let (a, b) = ((1, 0, What::Submit), (1, 1, What::Submit));
        let hashes = [hash(&[a, b]), hash(&[b, a]), hash(&[a]), hash(&[(2, 0, What::Submit)]), hash(&[(1, 0, What::ReadWrite)])];
        for (position, one) in hashes.iter().enumerate() {
            assert!(hashes[..position].iter().all(|other| other != one));
        }
    }
}
