//! Variants that take turns query by query.
//!
//! Owns the measurement of short queries on a machine that others use too: whatever slows it down for a while slows all
//! variants alike, so that the ratio of their medians within a round says what one costs beside the other.
//!
//! Sessions are opened anew several times a round. Where a session's memory happens to lie decides how well it fits into
//! the processor's caches: up to a fifth of such a query's time, the same one way or the other as long as the session
//! lives, with the same number of instructions.

use crate::Result;
use crate::stats::median;
use postgres::types::ToSql;
use postgres::{Client, Statement};
use std::time::{Duration, Instant};

/// How often a round opens a session for each variant.
const SESSIONS: u32 = 20;
/// Queries of a new session that do not count: its caches are empty, and PostgreSQL plans the first five anew.
const WARMING: usize = 20;

/// One variant: where its sessions come from, and the query that they run.
pub struct Variant<'a> {
    connect: Box<dyn Fn() -> Result<Client> + 'a>,
    query: String,
}

impl<'a> Variant<'a> {
    pub fn new(connect: impl Fn() -> Result<Client> + 'a, query: impl Into<String>) -> Self {
        Self { connect: Box::new(connect), query: query.into() }
    }

    fn open(&self) -> Result<Session> {
        let mut client = (self.connect)()?;
        let query = client.prepare(&self.query)?;
        Ok(Session { client, query })
    }
}

struct Session {
    client: Client,
    query: Statement,
}

impl Session {
    /// Microseconds.
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
    variants: &[Variant<'_>; N],
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
            let mut sessions = Vec::with_capacity(N);
            for variant in variants {
                sessions.push(variant.open()?);
            }
            let (mut warming, mut counted) = (WARMING, 0);
            let opened = Instant::now();
            while counted == 0 || opened.elapsed() < each / SESSIONS {
                let argument = argument(number);
                let arguments: Vec<&(dyn ToSql + Sync)> = argument.iter().map(|value| value as _).collect();
                for turn in 0..N {
                    // Whoever comes first finds colder caches: that is each of them in turn.
                    let variant = (turn + number) % N;
                    let took = sessions[variant].time(&arguments)?;
                    if warming == 0 {
                        times[variant].push(took);
                    }
                }
                number += 1;
                if warming == 0 {
                    counted += 1;
                } else {
                    // A query that takes long by itself is warm after the first.
                    warming = if opened.elapsed() < each / 10 { warming - 1 } else { 0 };
                }
            }
        }
        if round > 0 {
            for (medians, times) in medians.iter_mut().zip(&times) {
                medians.push(median(times));
            }
        }
    }
    Ok(medians)
}
