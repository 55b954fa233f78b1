//! The settings a background process of agd runs under: the server's, whatever a database or a role says.
//!
//! Owns what is pinned before the worker connects. Promises that nothing that `ALTER DATABASE … SET` or `ALTER ROLE … SET`
//! can carry ends the worker, blinds it or makes it somebody else: every setting that a session may change is pinned at
//! the server's own value, and those that can harm at the value that cannot. It has to be done before the connection is
//! made, whose own transaction already runs under the database's settings: `transaction_timeout = '1ms'` ends it.
//! Never touches what only the server's files can set; a reload that changes what is pinned counts from the next start.
#![allow(unsafe_code)] // the table of settings is reached through raw structures

use pgrx::pg_sys;
use std::ffi::{CStr, c_int};

/// What would harm also as the server's own default. As autovacuum's workers do it, and then some.
const HARMLESS: [(&CStr, &CStr); 22] = [
    // What is integrated may be published, so it must be on disk.
    (c"synchronous_commit", c"on"),
    (c"search_path", c"pg_catalog, pg_temp"),
    (c"quote_all_identifiers", c"off"),
    (c"transform_null_equals", c"off"),
    (c"application_name", c"agd worker"),
    (c"role", c"none"),
    (c"default_transaction_isolation", c"read committed"),
    (c"default_transaction_read_only", c"off"),
    (c"default_transaction_deferrable", c"off"),
    (c"statement_timeout", c"0"),
    (c"lock_timeout", c"0"),
    (c"transaction_timeout", c"0"),
    (c"idle_in_transaction_session_timeout", c"0"),
    (c"idle_session_timeout", c"0"),
    (c"zero_damaged_pages", c"off"),
    (c"session_replication_role", c"origin"),
    (c"restrict_nonsystem_relation_kind", c""),
    (c"exit_on_error", c"off"),
    (c"force_parallel_mode", c"off"),
    (c"debug_parallel_query", c"off"),
    (c"stats_fetch_consistency", c"none"),
    (c"jit", c"off"),
];

/// Pins them. Called before the process connects.
pub fn pin() {
    // SAFETY: the table of settings is complete, and names and values are C strings that PostgreSQL copies.
    unsafe {
        for setting in settable() {
            let value = pg_sys::GetConfigOption(setting, true, false);
            if !value.is_null() {
                set(setting, value);
            }
        }
        for (name, value) in HARMLESS {
            if !pg_sys::GetConfigOption(name.as_ptr(), true, false).is_null() {
                set(name.as_ptr(), value.as_ptr());
            }
        }
    }
}

/// Nothing of lower rank replaces it, and a database's or role's settings are of lower rank. What cannot be set like this,
/// for whatever reason, stays as it is.
unsafe fn set(name: *const std::ffi::c_char, value: *const std::ffi::c_char) {
    // SAFETY: the caller's names and values are C strings.
    unsafe {
        pg_sys::set_config_option(
            name,
            value,
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_OVERRIDE,
            pg_sys::GucAction::GUC_ACTION_SET,
            true,
            pg_sys::DEBUG2 as c_int,
            false,
        );
    }
}

/// The names of all settings that a session can change. (The encoding is the database's, and set while connecting.)
unsafe fn settable() -> Vec<*const std::ffi::c_char> {
    // SAFETY: as many entries as PostgreSQL says, each of which begins with the common part.
    unsafe {
        #[cfg(feature = "pg15")]
        let (all, number) = (pg_sys::get_guc_variables(), pg_sys::GetNumConfigOptions());
        #[cfg(not(feature = "pg15"))]
        let (all, number) = {
            let mut number = 0;
            (pg_sys::get_guc_variables(&mut number), number)
        };
        (0..usize::try_from(number).unwrap_or_default())
            .map(|index| &**all.add(index))
            .filter(|setting| {
                matches!(setting.context, pg_sys::GucContext::PGC_USERSET | pg_sys::GucContext::PGC_SUSET)
                    && setting.flags & pg_sys::GUC_DISALLOW_IN_FILE as c_int == 0
                    && CStr::from_ptr(setting.name) != c"client_encoding"
            })
            .map(|setting| setting.name)
            .collect()
    }
}

/// After the connection: the process is the bootstrap superuser, whatever the settings just said.
pub fn be_oneself() {
    // SAFETY: changes this process's own user; nothing of a session was done yet.
    unsafe {
        let oneself = pg_sys::Oid::from(pg_sys::BOOTSTRAP_SUPERUSERID);
        if pg_sys::GetSessionUserId() != oneself || pg_sys::GetUserId() != oneself {
            pg_sys::SetSessionAuthorization(oneself, true);
            pg_sys::SetCurrentRoleId(pg_sys::InvalidOid, true);
        }
    }
}
