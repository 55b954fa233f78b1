//! Settings under `agd.`.
//!
//! Owns their names, ranges and defaults. Promises that no setting decides who somebody is or whether a write is
//! recorded: they tune, nothing more.

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::ffi::CString;
use std::time::Duration;

static ANCHOR_MAX_AGE: GucSetting<i32> = GucSetting::<i32>::new(10_000);
static MAX_UNSEQUENCED_EVENTS: GucSetting<i32> = GucSetting::<i32>::new(0);
static MAX_UNPUBLISHED_ANCHORS: GucSetting<i32> = GucSetting::<i32>::new(0);
static CEILING_WAIT: GucSetting<i32> = GucSetting::<i32>::new(5_000);
static TOKEN_MAX_LIFETIME: GucSetting<i32> = GucSetting::<i32>::new(LONGEST_TOKEN);
static MAX_LIVE_TOKENS: GucSetting<i32> = GucSetting::<i32>::new(524_288);
static MAX_DATABASES: GucSetting<i32> = GucSetting::<i32>::new(128);
static LOG_NAME: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);

/// What no setting exceeds, in seconds.
const LONGEST_TOKEN: i32 = agd_core::token::MAX_LIFETIME as i32;

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
    GucRegistry::define_int_guc(
        c"agd.max_unsequenced_events",
        c"Guarded writes wait, then fail, while more committed events than this wait to be integrated; 0: no limit.",
        c"Asked before a transaction's first guarded write. See agd.ceiling_wait.",
        &MAX_UNSEQUENCED_EVENTS,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"agd.max_unpublished_anchors",
        c"Guarded writes wait, then fail, while more anchors of the platform log than this are unpublished; 0: no limit.",
        c"Counts anchors newer than the newest one that a publisher has reported. See agd.ceiling_wait.",
        &MAX_UNPUBLISHED_ANCHORS,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"agd.ceiling_wait",
        c"How long a guarded write waits while a ceiling is exceeded.",
        c"Then it fails with SQLSTATE 53400.",
        &CEILING_WAIT,
        0,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"agd.token_max_lifetime",
        c"Tokens whose exp is further than this from their iat are refused.",
        c"Never more than an hour. The shorter tokens live, the fewer have to be remembered. See agd.max_live_tokens.",
        &TOKEN_MAX_LIFETIME,
        1,
        LONGEST_TOKEN,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_int_guc(
        c"agd.max_live_tokens",
        c"So many used tokens are remembered until they expire; 24 bytes of shared memory each.",
        c"One tenant's take at most a quarter. While there is no room, agd.bind() fails with SQLSTATE 53400.",
        &MAX_LIVE_TOKENS,
        4_096,
        1 << 26,
        GucContext::Postmaster,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"agd.max_databases",
        c"So many databases of this server can use agd; 132 kB of shared memory each, most of it untouched until needed.",
        c"Half of them at most go to copies of databases whose record was not resumed.",
        &MAX_DATABASES,
        1,
        8_192,
        GucContext::Postmaster,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"agd.log_name",
        c"The platform log's origin; read once, by CREATE EXTENSION agd.",
        c"Default: agd-<system identifier>/<database>, as of the first event. Characters a-z, 0-9, '.', '/' and '-'.",
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

/// agd.max_unsequenced_events; 0: no limit.
pub fn max_unsequenced_events() -> i64 {
    i64::from(MAX_UNSEQUENCED_EVENTS.get())
}

/// agd.max_unpublished_anchors; 0: no limit.
pub fn max_unpublished_anchors() -> i64 {
    i64::from(MAX_UNPUBLISHED_ANCHORS.get())
}

/// agd.ceiling_wait.
pub fn ceiling_wait() -> Duration {
    Duration::from_millis(CEILING_WAIT.get().unsigned_abs().into())
}

/// agd.token_max_lifetime in seconds.
pub fn token_max_lifetime() -> u64 {
    u64::from(TOKEN_MAX_LIFETIME.get().unsigned_abs())
}

/// agd.max_live_tokens.
pub fn max_live_tokens() -> usize {
    MAX_LIVE_TOKENS.get().unsigned_abs() as usize
}

/// agd.max_databases.
pub fn max_databases() -> usize {
    MAX_DATABASES.get().unsigned_abs() as usize
}

/// agd.log_name, None when it is not set.
pub fn log_name() -> Option<String> {
    LOG_NAME.get().and_then(|name| name.into_string().ok()).filter(|name| !name.is_empty())
}
