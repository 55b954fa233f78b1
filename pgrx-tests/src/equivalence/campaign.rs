//! Many programs on several connections.
//!
//! Owns the databases that programs run in, and the sum of what ran. Promises that every seed asked for was run, or that a
//! failure is returned; the failure of the smallest seed that can be had again, shrunk. Also has agd verify each database's
//! whole log before it is dropped.

use super::run::{Arena, Sabotage, Tally, Verdict};
use super::script::Program;
use super::shrink::shrink;
use super::{ledger, program, value};
use crate::record::failed_checks;
use crate::{Cluster, Error, Result, TestDb};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Programs that share a database, one after the other. Few enough that reading all its events stays cheap.
const PROGRAMS_PER_DATABASE: u64 = 60;

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// The first seed.
    pub first_seed: u64,
    /// How many programs.
    pub programs: u64,
    /// Connections at a time, each with its twin.
    pub connections: u64,
    /// What is done behind the gate's back.
    pub sabotage: Sabotage,
}

/// What ran.
#[derive(Debug, Default)]
pub struct Report {
    /// Programs that ran to their end.
    pub programs: u64,
    /// Statements of all kinds, on the guarded side.
    pub tally: Tally,
}

/// A program on which the sides differ.
#[derive(Debug)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// How they differ, after shrinking.
    pub difference: String,
    /// The shrunk program.
    pub program: Program,
    /// The shrunk program for psql.
    pub script: String,
}

/// How a campaign ended.
pub type Outcome = std::result::Result<Report, Failure>;

struct Shared {
    next: AtomicU64,
    stop: AtomicBool,
    report: Mutex<Report>,
    failures: Mutex<Vec<(u64, String)>>,
}

impl Campaign {
    /// Runs it on `cluster`, whose `max_prepared_transactions` is not 0.
    ///
    /// # Errors
    /// When something other than the two sides' agreement is at fault: no server, a program whose tables PostgreSQL does
    /// not make.
    pub fn run(&self, cluster: &Cluster) -> Result<Outcome> {
        let shared = Shared {
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            report: Mutex::default(),
            failures: Mutex::default(),
        };
        let major = major(cluster)?;
        let done: Vec<Result<()>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.connections)
                .map(|number| {
                    let shared = &shared;
                    scope.spawn(move || {
                        let done = self.work(cluster, major, number, shared);
                        if done.is_err() {
                            shared.stop.store(true, Ordering::Relaxed);
                        }
                        done
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err(Error::new("a thread of the campaign panicked"))))
                .collect()
        });
        let mut failures = shared.failures.into_inner().map_err(|e| Error::doing("reading the failures", e))?;
        failures.sort();
        // When one program crashes the server, others fail with it: the first that fails alone is the one.
        for (seed, difference) in &failures {
            if let Some(failure) = self.again(cluster, major, *seed)? {
                return Ok(Err(failure));
            }
            eprintln!("seed {seed} differed beside others and does not alone: {difference}");
        }
        done.into_iter().collect::<Result<Vec<()>>>()?;
        if let Some((seed, difference)) = failures.into_iter().next() {
            let program = program(seed, major);
            let script = program.script();
            return Ok(Err(Failure { seed, difference, program, script }));
        }
        shared.report.into_inner().map(Ok).map_err(|e| Error::doing("reading the report", e))
    }

    fn arena(&self, database: &TestDb<'_>) -> Result<Arena> {
        let config = database.cluster().config("postgres", database.name());
        Arena::new(config, database.name(), self.sabotage.clone())
    }

    fn work(&self, cluster: &Cluster, major: u32, connection: u64, shared: &Shared) -> Result<()> {
        loop {
            let database = database(cluster, &format!("equivalence{connection}"))?;
            let mut arena = self.arena(&database)?;
            for _ in 0..PROGRAMS_PER_DATABASE {
                let number = shared.next.fetch_add(1, Ordering::Relaxed);
                if number >= self.programs || shared.stop.load(Ordering::Relaxed) {
                    drop(arena);
                    return verify(&database);
                }
                let seed = self.first_seed.wrapping_add(number);
                match arena.run(&program(seed, major)).map_err(|e| Error::doing(&format!("seed {seed}"), e))? {
                    Verdict::Same(tally) => {
                        let mut report = shared.report.lock().map_err(|e| Error::doing("reporting", e))?;
                        report.programs += 1;
                        for (kind, counts) in tally {
                            let sum = report.tally.entry(kind).or_default();
                            *sum = (sum.0 + counts.0, sum.1 + counts.1);
                        }
                    }
                    Verdict::Different(difference) => {
                        shared.stop.store(true, Ordering::Relaxed);
                        let mut failures = shared.failures.lock().map_err(|e| Error::doing("reporting", e))?;
                        failures.push((seed, difference));
                        return Ok(());
                    }
                    Verdict::Unusable(why) => {
                        let script = program(seed, major).script();
                        return Err(Error::new(format!("seed {seed} makes no tables: {why}\n{script}")));
                    }
                }
            }
            drop(arena);
            verify(&database)?;
        }
    }

    /// Runs one seed alone. Some: the sides differ, and on this program.
    fn again(&self, cluster: &Cluster, major: u32, seed: u64) -> Result<Option<Failure>> {
        let database = database(cluster, "shrink")?;
        let mut arena = self.arena(&database)?;
        let program = program(seed, major);
        let Verdict::Different(difference) = arena.run(&program)? else { return Ok(None) };
        let (program, difference) = shrink(&mut arena, program, difference)?;
        let script = program.script();
        Ok(Some(Failure { seed, difference, program, script }))
    }
}

fn database<'c>(cluster: &'c Cluster, stem: &str) -> Result<TestDb<'c>> {
    let database = cluster.agd_database(stem)?;
    let sql = format!("{}{}", value::TYPES, ledger::WATCHER);
    database.connect()?.batch_execute(&sql).map_err(|e| Error::doing("making types", format!("{e:?}")))?;
    Ok(database)
}

/// What was recorded in all programs of a database is one log, which must hold.
fn verify(database: &TestDb<'_>) -> Result<()> {
    let mut client = database.connect()?;
    client.batch_execute("SELECT agd.anchor()").map_err(|e| Error::doing("agd.anchor()", format!("{e:?}")))?;
    let (failed, _) = failed_checks(&mut client).map_err(|e| Error::doing("agd.verify()", format!("{e:?}")))?;
    if failed.is_empty() { Ok(()) } else { Err(Error::new(format!("agd.verify() found {failed:#?}"))) }
}

fn major(cluster: &Cluster) -> Result<u32> {
    let row = cluster
        .superuser()?
        .query_one("SELECT current_setting('server_version_num')::int / 10000", &[])
        .map_err(|e| Error::doing("asking for the version", format!("{e:?}")))?;
    u32::try_from(row.get::<_, i32>(0)).map_err(|e| Error::doing("reading the version", e))
}
