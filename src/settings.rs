//! Settings under `agd.`.
//!
//! Owns their names, ranges and defaults. Promises that no setting decides who somebody is or whether a write is
//! recorded: they tune, nothing more.

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::ffi::CString;

static ANCHOR_MAX_AGE: GucSetting<i32> = GucSetting::<i32>::new(10_000);
static LOG_NAME: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);

/// Defines the settings and reserves the prefix. Called once from `_PG_init`.
#[allow(unsafe_code)] // one call without a safe form
pub fn init() {
    GucRegistry::define_int_guc(
        c"agd.anchor_max_age",
        c"Events wait at most this long for an anchor.",
        c"A log is anchored at every 256 events, and its tail when the oldest event in it is older than this.",
        &ANCHOR_MAX_AGE,
        100,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_string_guc(
        c"agd.log_name",
        c"The platform log's origin; read once, by CREATE EXTENSION agd.",
        c"Default: agd-<system identifier>/<database>. Characters a-z, 0-9, '.', '/' and '-'.",
        &LOG_NAME,
        GucContext::Suset,
        GucFlags::default(),
    );
    // SAFETY: reserves the prefix, so that a misspelt setting is an error.
    unsafe { pgrx::pg_sys::MarkGUCPrefixReserved(c"agd".as_ptr()) };
}

/// agd.anchor_max_age in microseconds.
pub fn anchor_max_age() -> i64 {
    i64::from(ANCHOR_MAX_AGE.get()) * 1000
}

/// agd.log_name, None when it is not set.
pub fn log_name() -> Option<String> {
    LOG_NAME.get().and_then(|name| name.into_string().ok()).filter(|name| !name.is_empty())
}
