//! What a quantum waited for before it began.

/// The last thing that held it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// Others were before it in the policy's order; in training also the packing of its batch.
    Turn,
    /// Every lane was busy.
    Lane,
    /// Bytes of the device, to be admitted or for a quantum.
    Bytes,
    /// A quantum that wrote what it reads, or used what it writes.
    Block,
    /// It had failed, and was to be tried again only later.
    Backoff,
    /// The gradients of the others that commit with it.
    Gradients,
}

impl WaitReason {
    /// As traces call it.
    pub fn name(self) -> &'static str {
        match self {
            WaitReason::Turn => "turn",
            WaitReason::Lane => "lane",
            WaitReason::Bytes => "bytes",
            WaitReason::Block => "block",
            WaitReason::Backoff => "backoff",
            WaitReason::Gradients => "gradients",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::access::Operation;
    use crate::schedule::dispatcher::{Dispatcher, Job, Settings};
    use crate::schedule::retry::Status;
    use crate::schedule::task::Spec;

    const BYTES: u64 = 6;

    fn dispatcher(lanes: usize, device: u64, tasks: usize, persistent: u64) -> Dispatcher {
        let spec = Spec { persistent, scratch: BYTES, ..Spec::new("t", 1) };
        Dispatcher::new(Settings { lanes, device, ..Settings::default() }, vec![spec; tasks], 1).unwrap()
    }

    /// Submits a job of each task, in order.
    fn submit(dispatcher: &mut Dispatcher, operations: &[Operation]) {
        for (task, &operation) in operations.iter().enumerate() {
            dispatcher.submit(task, Job { operation, blocks: 1, release: 0, cost: 1, bytes: BYTES }, 0);
        }
    }

    /// Of the tasks that begin now, in order.
    fn begin(dispatcher: &mut Dispatcher, now: u64) -> Vec<WaitReason> {
        std::iter::from_fn(|| dispatcher.next(now)).map(|started| started.waited_for).collect()
    }

    #[test]
    fn a_quantum_says_what_held_it_back() {
        use Operation::{Commit, Gradient};
        use WaitReason::{Backoff, Block, Bytes, Lane, Turn};
        // (lanes, bytes of the device, bytes a task keeps, operations); reasons of the first, and after each of these has ended.
        let cases = [
            (1, 0, 0, &[Gradient, Gradient][..], [&[Turn][..], &[Lane]]),
            (2, 10, 0, &[Gradient, Gradient], [&[Turn], &[Bytes]]),
            (2, 0, 0, &[Gradient, Commit, Gradient], [&[Turn], &[Block]]),
            (3, 10, 3, &[Gradient, Gradient], [&[Turn], &[Bytes]]),
        ];
        for (lanes, device, persistent, operations, [first, second]) in cases {
            let mut dispatcher = dispatcher(lanes, device, operations.len(), persistent);
            submit(&mut dispatcher, operations);
            assert_eq!(begin(&mut dispatcher, 0), first, "{operations:?}");
            dispatcher.complete(0, 1, Status::Ok, 1);
            dispatcher.finish(0, 1);
            assert_eq!(begin(&mut dispatcher, 1), second, "{operations:?}");
        }
        let mut again = dispatcher(1, 0, 1, 0);
        submit(&mut again, &[Gradient]);
        assert_eq!(begin(&mut again, 0), [Turn]);
        again.complete(0, 1, Status::Crashed, 1);
        let later = again.wakes_at().expect("it is tried again");
        assert_eq!(begin(&mut again, later), [Backoff]);
    }
}
