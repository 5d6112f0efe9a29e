//! How far a stream, an event or the host has come: what is over by then, and what time it is.

/// A point in the order of all streams.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// The newest operation of each stream that is known to be over, and 0 for those not listed.
    pub places: Vec<u32>,
    /// Nanoseconds of the device's virtual time.
    pub nanos: u64,
}

impl Clock {
    /// Follows `other` too.
    pub fn join(&mut self, other: &Self) {
        self.reach(other.places.len());
        self.places.iter_mut().zip(&other.places).for_each(|(own, &other)| *own = (*own).max(other));
        self.nanos = self.nanos.max(other.nanos);
    }

    /// Goes on to operation `place` of a stream, which takes so long.
    pub fn advance(&mut self, stream: usize, place: u32, nanos: u64) {
        self.reach(stream + 1);
        self.places[stream] = place;
        self.nanos += nanos;
    }

    fn reach(&mut self, streams: usize) {
        if self.places.len() < streams {
            self.places.resize(streams, 0);
        }
    }
}
