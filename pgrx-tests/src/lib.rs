//! Throw-away PostgreSQL clusters for tests, and the assertions those tests share.
//!
//! A [`Cluster`] is a real server: its own data directory, its own unix socket, no TCP port, any number of connections
//! as ordinary roles, crashes and standbys. Everything a test makes lies in one scratch directory, and a small reaper
//! process removes it and stops the server however the test process ends: normally, by a panic, or by `kill -9`.
//!
//! The binaries come from the environment variable `AGD_PG_BIN` (the `bin` directory of one PostgreSQL installation into
//! which the extension is installed). PostgreSQL refuses to run as root, so a test that runs as root starts its servers as
//! `postgres` if that user exists, else as `nobody`.

mod backup;
mod check;
mod cluster;
mod database;
pub mod equivalence;
mod error;
pub mod fleet;
mod os;
pub mod pooler;
pub mod proof;
pub mod publishing;
pub mod record;
mod scratch;
pub mod token;
pub mod wall;
mod watch;

pub use check::{eventually, expect_hint, expect_sqlstate};
pub use cluster::{Builder, Cluster, Output, Stop};
pub use database::{Tamperer, TestDb};
pub use error::{Error, Result};
pub use watch::Watch;

/// Has a session run in parallel workers whatever may, however small. (PostgreSQL 16 renamed the first setting.)
pub const FORCE_PARALLEL: &str =
    "SELECT set_config(name, 'on', false) FROM pg_settings WHERE name IN ('debug_parallel_query', 'force_parallel_mode');
     SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
     SET max_parallel_workers_per_gather = 2";
