//! Where a task stands in its data: each pass is a permutation that follows from the seed, so a cursor of two numbers says
//! exactly which examples come next.

use serde::{Deserialize, Serialize};

use crate::ops::philox::{Keyed, Stream, permutation};

/// Passes finished and examples taken from the current one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    pub pass: u64,
    pub position: u64,
}

/// One task's examples in the order in which training draws them.
pub struct ExampleStream {
    seed: u64,
    task: u32,
    len: usize,
    cursor: Cursor,
    /// Permutation of the pass it is labelled with.
    order: Option<(u64, Vec<u32>)>,
}

impl ExampleStream {
    /// `len` examples, at least one.
    pub fn new(seed: u64, task: u32, len: usize, cursor: Cursor) -> Self {
        assert!(len > 0, "a stream needs examples");
        Self { seed, task, len, cursor, order: None }
    }

    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Goes back, or on, to where a cursor stood.
    pub fn seek(&mut self, cursor: Cursor) {
        self.cursor = cursor;
    }

    /// The next `count` examples; a pass that ends inside is followed by the next one.
    pub fn take(&mut self, count: usize) -> Vec<u32> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            let Cursor { pass, position } = self.cursor;
            let order = self.pass_order(pass);
            let end = order.len().min(position as usize + count - taken.len());
            taken.extend_from_slice(&order[position as usize..end]);
            self.cursor =
                if end == self.len { Cursor { pass: pass + 1, position: 0 } } else { Cursor { pass, position: end as u64 } };
        }
        taken
    }

    fn pass_order(&mut self, pass: u64) -> &[u32] {
        if self.order.as_ref().is_none_or(|(known, _)| *known != pass) {
            let random = Keyed::new(self.seed, Stream::Shuffle, pass as u32, self.task, (pass >> 32) as u32);
            self.order = Some((pass, permutation(self.len, random)));
        }
        self.order.as_ref().map_or(&[], |(_, order)| order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_holds_every_example_once() {
        let mut stream = ExampleStream::new(1, 0, 10, Cursor::default());
        let mut seen = stream.take(10);
        assert_eq!(stream.cursor(), Cursor { pass: 1, position: 0 });
        seen.sort_unstable();
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_resumed_stream_goes_on_where_it_stood() {
        let mut whole = ExampleStream::new(1, 3, 7, Cursor::default());
        let all = whole.take(40);
        let mut first = ExampleStream::new(1, 3, 7, Cursor::default());
        let mut parts = first.take(17);
        let mut second = ExampleStream::new(1, 3, 7, first.cursor());
        parts.extend(second.take(23));
        assert_eq!(all, parts);
        assert_eq!(whole.cursor(), second.cursor());
        second.seek(first.cursor());
        assert_eq!(second.take(23), all[17..]);
    }
}
