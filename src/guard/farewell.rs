//! DROP EXTENSION agd, by who may, when nothing is guarded any more: the whole record goes with it.
//!
//! Owns what is said then, to whoever did it and in the server's log: how much is lost, and what of it was published, which
//! stays where it was carried. Never refuses.
#![allow(unsafe_code)] // calls a function by its oid

use crate::error::Result;
use crate::guard::relation::own_function;
use crate::transaction;
use pgrx::prelude::*;

/// What there is to lose. Before the statement: afterwards nobody knows.
pub fn compose() -> Result<String> {
    // SAFETY: agd.last_words() takes nothing and returns text; the function manager switches user and settings.
    let words = unsafe {
        let value = pg_sys::OidFunctionCall0Coll(own_function(c"last_words"), pg_sys::InvalidOid);
        String::from_datum(value, false)
    };
    Ok(words.unwrap_or_default())
}

/// It is gone.
pub fn say(words: &str) {
    let who = transaction::session_user_name();
    ereport!(PgLogLevel::LOG, PgSqlErrorCode::ERRCODE_WARNING, format!("agd: {who} dropped the extension: {words}"));
    ereport!(
        PgLogLevel::WARNING,
        PgSqlErrorCode::ERRCODE_WARNING,
        format!("the record is dropped with the extension: {words}"),
        "Until the transaction is committed, ROLLBACK keeps it."
    );
}
