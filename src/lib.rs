//! agd, audit-gated discipline for PostgreSQL: no audit record, no write.
//!
//! Follow one write through five files: `guard/trigger.rs` (the gate records and confirms the row), `event.rs` (the
//! record goes into the heap), `transaction.rs` (the transaction's record closes it at commit), `log/sequencer.rs` (the
//! worker turns what became visible into leaves and anchors), `log/verify.rs` (anybody recomputes it). And one DDL
//! statement through three: `guard/touched.rs` (what it touches), `guard/protect.rs` (refused or not), `guard/ddl_event.rs`.
//!
//! The pure parts (formats, trees, proofs) are in the crate `agd-core`; SQL objects are in `sql/`.

use pgrx::prelude::*;

mod append;
mod backend;
mod catalog;
mod ceiling;
mod denied;
mod error;
mod event;
mod fault;
mod fleet;
mod fmgr;
mod guard;
mod home;
mod identity;
mod incarnation;
mod install;
mod log;
mod memory;
mod nesting;
mod query;
mod replication;
mod settings;
mod shmem;
mod stamp;
mod tenant;
mod transaction;
mod worker;

::pgrx::pg_module_magic!(name = c"agd", version = c"0.1.0");

extension_sql_file!("../sql/00_schema.sql", name = "schema", bootstrap);
extension_sql_file!("../sql/10_tenant.sql", name = "tenant", requires = ["schema"]);
extension_sql_file!("../sql/20_event.sql", name = "event", requires = ["tenant"]);
extension_sql_file!("../sql/25_fleet_tables.sql", name = "fleet_tables", requires = ["event"]);
extension_sql_file!("../sql/27_log_key.sql", name = "log_key", requires = ["fleet_tables"]);
extension_sql_file!("../sql/30_guard.sql", name = "guard", requires = ["log_key"]);
extension_sql_file!("../sql/35_protect.sql", name = "protect", requires = ["guard"]);
extension_sql_file!("../sql/37_wall.sql", name = "wall", requires = ["protect"]);
extension_sql_file!("../sql/40_log.sql", name = "log", requires = ["wall"]);
extension_sql_file!("../sql/45_home.sql", name = "home", requires = ["log"]);
extension_sql_file!("../sql/50_views.sql", name = "views", requires = ["home"]);
extension_sql_file!("../sql/60_verify_table.sql", name = "verify_table", requires = ["views"]);
extension_sql_file!("../sql/70_fleet.sql", name = "fleet", requires = ["verify_table"]);
extension_sql_file!("../sql/80_own_tables.sql", name = "own_tables", requires = ["fleet"]);
extension_sql_file!("../sql/85_settings.sql", name = "settings", requires = ["own_tables"]);
extension_sql_file!("../sql/90_grants.sql", name = "grants", requires = ["settings"], finalize);

/// Called once when the library is loaded. Raises 55000 unless that happens through shared_preload_libraries.
#[allow(unsafe_code)] // reads and sets process globals
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // SAFETY: a global that the postmaster sets while it loads the preloaded libraries.
    if !unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        shmem::not_preloaded().raise();
    }
    // Backtraces would travel to clients as error details, paths of the build included. Every backend inherits this.
    // SAFETY: the postmaster has one thread while it loads libraries.
    unsafe {
        std::env::remove_var("RUST_BACKTRACE");
        std::env::remove_var("RUST_LIB_BACKTRACE");
    }
    settings::init();
    install::init();
    shmem::init();
    catalog::init();
    guard::relation::init();
    guard::touched::init();
    transaction::init();
    nesting::init();
    worker::init();
}

#[cfg(any(test, feature = "pg_test"))]
mod pg_tests;

#[cfg(test)]
pub mod pg_test {
    //! What `cargo pgrx test` asks for.

    /// Nothing to set up.
    pub fn setup(_options: Vec<&str>) {}

    /// The library must be preloaded.
    #[must_use]
    pub fn postgresql_conf_options() -> Vec<&'static str> {
        vec!["shared_preload_libraries = 'agd'"]
    }
}
