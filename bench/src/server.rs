//! Throw-away servers with real durability, and sessions that take times.

use crate::Result;
use agd_live_tests::Cluster;
use postgres::Client;
use postgres::types::{FromSql, ToSql};
use std::time::{Duration, Instant};

/// What differs from PostgreSQL's defaults, in every server of the benchmark alike.
///
/// Checkpoints come when the benchmark asks for one and autovacuum not at all: both would fall on whoever has its turn.
const SETTINGS: &[(&str, &str)] = &[
    ("shared_buffers", "512MB"),
    ("checkpoint_timeout", "1h"),
    ("max_wal_size", "16GB"),
    ("autovacuum", "off"),
    ("max_worker_processes", "16"),
];

/// What the report shows.
const SHOWN: &[&str] = &[
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "wal_compression",
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
    "autovacuum",
];

/// A server with `libraries` preloaded.
///
/// # Errors
/// If it does not start.
pub fn start(libraries: &str) -> Result<Cluster> {
    let mut builder = Cluster::builder().durable();
    for (name, value) in SETTINGS {
        builder = builder.setting(name, value);
    }
    Ok(builder.setting("shared_preload_libraries", libraries).start()?)
}

/// The settings that matter, as `name = value` pairs; `server_version` first.
///
/// # Errors
/// What the server says.
pub fn settings(session: &mut Session) -> Result<Vec<(String, String)>> {
    let mut settings = Vec::new();
    for name in ["server_version"].iter().chain(SHOWN) {
        settings.push(((*name).to_owned(), session.one::<String>(&format!("SELECT current_setting('{name}')"))?));
    }
    Ok(settings)
}

/// Creates a database; with a template, as a file-by-file copy of it.
///
/// # Errors
/// What the server says.
pub fn create_database(cluster: &Cluster, name: &str, template: Option<&str>) -> Result<()> {
    let template = template.map_or(String::new(), |from| format!(" TEMPLATE {from} STRATEGY file_copy"));
    Session::open(cluster, "postgres")?.run(&format!("CREATE DATABASE {name}{template}"))
}

/// Runs pgbench for `seconds` and returns its transactions a second.
///
/// # Errors
/// If it fails, or aborts a client.
pub fn pgbench(cluster: &Cluster, database: &str, clients: usize, seconds: u32, more: &[&str]) -> Result<f64> {
    let threads = clients.min(crate::machine::cores());
    let (seconds, clients, threads) = (seconds.to_string(), clients.to_string(), threads.to_string());
    let mut arguments = vec!["--no-vacuum", "-T", &seconds, "-c", &clients, "-j", &threads];
    arguments.extend(more);
    let output = cluster.pgbench(database, &arguments)?;
    let tps = output.stdout.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    match tps {
        Some(tps) if output.success => Ok(tps),
        _ => Err(format!("pgbench in {database}: {}", output.stderr.trim()).into()),
    }
}

/// A session of the superuser.
pub struct Session {
    client: Client,
}

impl Session {
    /// Connects.
    ///
    /// # Errors
    /// What the server says.
    pub fn open(cluster: &Cluster, database: &str) -> Result<Self> {
        Ok(Self { client: cluster.client("postgres", database)? })
    }

    /// Runs statements.
    ///
    /// # Errors
    /// What the server says, with the statement.
    pub fn run(&mut self, sql: &str) -> Result<()> {
        self.client.batch_execute(sql).map_err(|error| told(sql, &error).into())
    }

    /// The time that a statement takes, its commit included.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn time(&mut self, sql: &str) -> Result<Duration> {
        let start = Instant::now();
        self.run(sql)?;
        Ok(start.elapsed())
    }

    /// The first column of every row.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn column<T: for<'a> FromSql<'a>>(&mut self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<T>> {
        let rows = self.client.query(sql, values).map_err(|error| told(sql, &error))?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// The only value of a query.
    ///
    /// # Errors
    /// As [`Session::run`]; or no row came.
    pub fn one<T: for<'a> FromSql<'a>>(&mut self, sql: &str) -> Result<T> {
        self.column(sql, &[])?.pop().ok_or_else(|| format!("{sql}: no row").into())
    }

    /// Integrates and anchors all that waits, so that the worker is idle afterwards.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn anchor(&mut self) -> Result<()> {
        self.run("SELECT pg_catalog.count(*) FROM agd.anchor()")
    }
}

fn told(sql: &str, error: &postgres::Error) -> String {
    let first = sql.trim().lines().next().unwrap_or_default();
    match error.as_db_error() {
        Some(said) => format!("{first}: {} {}", said.code().code(), said.message()),
        None => format!("{first}: {error}"),
    }
}
