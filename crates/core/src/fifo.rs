//! A queue whose memory follows its length: it grows and shrinks by segments, and is never copied as a whole.
//!
//! A `VecDeque` doubles: five million intents of 16 bytes would hold, and while it grows copy, up to twice what they need.

use std::collections::{TryReserveError, VecDeque};

/// Items of a segment.
const SEGMENT: usize = 4096;

/// First in, first out.
#[derive(Debug)]
pub(crate) struct Fifo<T> {
    segments: VecDeque<VecDeque<T>>,
    length: usize,
}

impl<T> Default for Fifo<T> {
    fn default() -> Self {
        Fifo { segments: VecDeque::new(), length: 0 }
    }
}

impl<T> Fifo<T> {
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// One more at the end; an error when there is no memory, and then nothing is changed.
    pub(crate) fn try_push(&mut self, item: T) -> Result<(), TryReserveError> {
        match self.segments.back_mut() {
            Some(segment) if segment.len() < SEGMENT => {
                segment.try_reserve(1)?;
                segment.push_back(item);
            }
            _ => {
                let mut segment = VecDeque::new();
                segment.try_reserve(1)?;
                segment.push_back(item);
                self.segments.try_reserve(1)?;
                self.segments.push_back(segment);
            }
        }
        self.length += 1;
        Ok(())
    }

    pub(crate) fn first(&self) -> Option<&T> {
        self.segments.front()?.front()
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        let segment = self.segments.front_mut()?;
        let item = segment.pop_front()?;
        self.length -= 1;
        // The last segment stays for what comes next: a query of one row after another allocates nothing.
        if segment.is_empty() && self.segments.len() > 1 {
            self.segments.pop_front();
        }
        Some(item)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.segments.iter().flatten()
    }

    /// Takes out the first `count` items.
    pub(crate) fn take(&mut self, count: usize) -> impl Iterator<Item = T> {
        let mut left = count;
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            self.pop()
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The same as a `VecDeque`, whatever is pushed and popped in whatever order, across segments.
        #[test]
        fn behaves_like_a_vecdeque(steps in prop::collection::vec((any::<bool>(), 1usize..3000), 1..20)) {
            let (mut fifo, mut model) = (Fifo::default(), VecDeque::new());
            let mut next = 0u32;
            for (push, count) in steps {
                if push {
                    for _ in 0..count {
                        fifo.try_push(next).unwrap();
                        model.push_back(next);
                        next += 1;
                    }
                } else {
                    prop_assert_eq!(fifo.take(count).collect::<Vec<_>>(), model.drain(..count.min(model.len())).collect::<Vec<_>>());
                }
                prop_assert_eq!(fifo.len(), model.len());
                prop_assert_eq!(fifo.is_empty(), model.is_empty());
                prop_assert_eq!(fifo.first(), model.front());
                prop_assert!(fifo.iter().eq(model.iter()));
            }
        }
    }

    /// No more than a segment beyond what the items need, growing or shrinking.
    #[test]
    fn memory_follows_the_length() {
        let mut fifo = Fifo::default();
        let room = |fifo: &Fifo<u64>| fifo.segments.iter().map(VecDeque::capacity).sum::<usize>();
        for item in 0..200_000u64 {
            fifo.try_push(item).unwrap();
            assert!(room(&fifo) <= fifo.len() + SEGMENT);
        }
        while fifo.pop().is_some() {
            assert!(room(&fifo) <= fifo.len() + 2 * SEGMENT);
        }
    }
}
