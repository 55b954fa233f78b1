//! Work on several threads, results in order.
//!
//! Owns how pieces of work (a log's tiles, its checkpoints) are shared out: who looks at which one, how far ahead of the
//! slowest the others may run, and how many threads there are for all logs together. Promises that results come in their order, and that no more than a few of
//! them wait for a thread. It knows nothing of what the work is.

use std::ops::ControlFlow;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

/// Results that a thread may have waiting.
const AHEAD: usize = 4;

/// Pieces after which a log looks again whether there are more threads to be had: the work of about a second.
const SEGMENT: u64 = 4096;

/// Less than this is not worth a thread.
const WORTH: u64 = 16;

/// The threads that no log has.
#[derive(Debug)]
pub struct Threads {
    idle: AtomicUsize,
}

impl Threads {
    /// So many, all idle.
    pub fn new(count: usize) -> Self {
        Self { idle: AtomicUsize::new(count) }
    }

    /// Takes up to `wanted` of them; returns how many.
    pub fn take(&self, wanted: usize) -> usize {
        let taken = |idle: usize| idle.min(wanted);
        let before = self.idle.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |idle| Some(idle - taken(idle)));
        before.map_or(0, taken)
    }

    /// Gives some back.
    pub fn give(&self, count: usize) {
        self.idle.fetch_add(count, Ordering::Relaxed);
    }
}

/// Does `work` on every number of a range, on this thread and as many others as are idle, and hands the results to `take` in
/// order. Returns the first number whose result `take` did not want to be followed by another.
pub fn ordered<T: Send>(
    threads: &Threads,
    range: Range<u64>,
    work: impl Fn(u64) -> T + Sync,
    mut take: impl FnMut(u64, T) -> ControlFlow<()>,
) -> Option<u64> {
    let mut start = range.start;
    while start < range.end {
        let segment = start..range.end.min(start.saturating_add(SEGMENT));
        start = segment.end;
        let wanted = usize::try_from((segment.end - segment.start) / WORTH).unwrap_or(usize::MAX);
        let helpers = threads.take(wanted);
        let stopped = match helpers {
            0 => alone(segment, &work, &mut take),
            // This thread only takes results; the work is that of the helpers and of one more in its place.
            _ => together(helpers + 1, segment, &work, &mut take),
        };
        threads.give(helpers);
        if stopped.is_some() {
            return stopped;
        }
    }
    None
}

fn alone<T>(
    mut range: Range<u64>,
    work: &impl Fn(u64) -> T,
    take: &mut impl FnMut(u64, T) -> ControlFlow<()>,
) -> Option<u64> {
    range.find(|number| take(*number, work(*number)).is_break())
}

fn together<T: Send>(
    count: usize,
    range: Range<u64>,
    work: &(impl Fn(u64) -> T + Sync),
    take: &mut impl FnMut(u64, T) -> ControlFlow<()>,
) -> Option<u64> {
    std::thread::scope(|scope| {
        let receivers: Vec<Receiver<T>> = (0..count)
            .map(|first| {
                let (sender, receiver) = sync_channel(AHEAD);
                let own = range.clone().skip(first).step_by(count);
                scope.spawn(move || {
                    for number in own {
                        // Nobody wants it: the pass has ended early.
                        if sender.send(work(number)).is_err() {
                            return;
                        }
                    }
                });
                receiver
            })
            .collect();
        for (number, receiver) in range.zip(receivers.iter().cycle()) {
            // A thread sends each of its results, unless it panicked; then the scope panics as well.
            let Ok(result) = receiver.recv() else { return Some(number) };
            if take(number, result).is_break() {
                return Some(number);
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_whatever_the_number_of_threads() {
        for threads in [0, 1, 2, 7] {
            let pool = Threads::new(threads);
            let mut got = Vec::new();
            let stopped = ordered(
                &pool,
                5..10_000,
                |number| number * 2,
                |number, double| {
                    got.push((number, double));
                    ControlFlow::Continue(())
                },
            );
            assert_eq!(stopped, None);
            assert!(got.iter().copied().eq((5..10_000).map(|number| (number, number * 2))));
            assert_eq!(pool.take(usize::MAX), threads, "all are given back");
        }
    }

    #[test]
    fn a_pass_that_ends_early_leaves_nothing_behind() {
        for threads in [0, 3] {
            let pool = Threads::new(threads);
            let mut last = 0;
            let stopped = ordered(
                &pool,
                0..1_000_000,
                |number| number,
                |number, _| {
                    last = number;
                    if number == 700 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                },
            );
            assert_eq!((stopped, last), (Some(700), 700));
            assert_eq!(pool.take(usize::MAX), threads);
        }
    }
}
