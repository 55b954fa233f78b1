//! Variants that take turns query by query.
//!
//! Owns the measurement of short queries on a machine that others use too: whatever slows it down for a while slows all
//! variants alike, so that the ratio of their medians within a round says what one costs beside the other.

use crate::Result;
use crate::stats::median;
use postgres::types::ToSql;
use postgres::{Client, Statement};
use std::time::{Duration, Instant};

/// One variant: a session, and the query that it runs.
pub struct Variant {
    client: Client,
    query: Statement,
}

impl Variant {
    /// # Errors
    /// What the server says of the query.
    pub fn new(mut client: Client, query: &str) -> Result<Self> {
        let query = client.prepare(query)?;
        Ok(Self { client, query })
    }

    fn time(&mut self, arguments: &[&(dyn ToSql + Sync)]) -> Result<f64> {
        let begin = Instant::now();
        self.client.query(&self.query, arguments)?;
        Ok(begin.elapsed().as_secs_f64() * 1e6)
    }
}

/// Microseconds a query of each variant: the median of each of `rounds`, which last `each` together for all variants.
///
/// # Errors
/// What the server says.
pub fn take<const N: usize>(
    variants: &mut [Variant; N],
    rounds: usize,
    each: Duration,
    mut argument: impl FnMut(usize) -> Option<i32>,
) -> Result<[Vec<f64>; N]> {
    let mut medians = [const { Vec::new() }; N];
    let mut number = 0;
    // The first round warms up.
    for round in 0..=rounds {
        let mut times = [const { Vec::new() }; N];
        let begin = Instant::now();
        while begin.elapsed() < each {
            let argument = argument(number);
            let arguments: Vec<&(dyn ToSql + Sync)> = argument.iter().map(|value| value as _).collect();
            for turn in 0..N {
                // Whoever comes first finds colder caches: that is each of them in turn.
                let variant = (turn + number) % N;
                times[variant].push(variants[variant].time(&arguments)?);
            }
            number += 1;
        }
        if round > 0 {
            for (medians, times) in medians.iter_mut().zip(&times) {
                medians.push(median(times));
            }
        }
    }
    Ok(medians)
}
