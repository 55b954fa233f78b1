//! Every error agd raises, in one place: its SQLSTATE, its message, and a hint that a DBA can act on.
//!
//! Owns the mapping from what went wrong ([`Error`]) to what the client sees. Promises that nothing else in the
//! extension picks a SQLSTATE. Never catches: a failure always ends the statement.
#![allow(unsafe_code)] // raising through ereport: pgrx's own error type cannot carry agd's AG00x states

use crate::denied;
use pgrx::{PgLogLevel, pg_sys};
use std::ffi::{c_char, c_int};

/// What went wrong. The variants are ordered as in the list of SQLSTATEs in the documentation.
#[derive(Clone, Debug)]
pub enum Error {
    /// 42501: the row belongs to another tenant, or the caller may not do this.
    NotAllowed { message: String, hint: String },
    /// 42501: the gate refused a row for its tenant. `recorded` is the message without any value of the row, which is
    /// nobody's tenant if the name is wrong: it goes into the log.
    TenantRefused { message: String, hint: String, recorded: String },
    /// 55000: the library is not preloaded, or an object is not in the state this needs.
    WrongState { message: String, hint: String },
    /// 55006: others use the database.
    InUse { message: String, hint: String },
    /// 22023: an argument that cannot be used.
    BadArgument { message: String, hint: String },
    /// 02000: what was asked for is not there, or not yet, or not for the caller to see.
    NotFound { message: String, hint: String },
    /// 0A000: something agd does not support, refused rather than half-recorded.
    Unsupported { message: String, hint: String },
    /// 23505: it is there already.
    Exists { message: String, hint: String },
    /// 54000: a limit of the record was passed.
    LimitExceeded { message: String, hint: String },
    /// 53400: more waits to be integrated or published than is allowed.
    OverCeiling { message: String, hint: String },
    /// 53200: memory that is not to be had.
    OutOfMemory(String),
    /// AG001: the row that was written is not the row that was recorded.
    NotTheRecordedRow { relation: String },
    /// AG002: somebody tried to change the record itself.
    TamperingRefused { message: String, hint: String },
    /// AG003: the record here is not all that was recorded.
    NotAContinuation { message: String, hint: String },
    /// AG004: a token that does not bind. `recorded` is what the log says, which knows more than the caller is told.
    TokenRefused { message: String, hint: String, recorded: String },
    /// AG004: a signature, or who made it, is not what it must be.
    SignatureRefused { message: String, hint: String },
    /// AG005: the table asks for a cause, and the transaction has none.
    CauseRequired { relation: String },
    /// XX000: a state that agd's own code rules out.
    Internal(String),
    /// XX001: agd's stored state contradicts itself.
    Corrupted { message: String, hint: String },
}

/// The house result type.
pub type Result<T> = std::result::Result<T, Error>;

struct Report {
    sqlstate: &'static [u8; 5],
    message: String,
    hint: Option<String>,
}

impl Error {
    fn report(self) -> Report {
        let plain = |sqlstate, message, hint| Report { sqlstate, message, hint: Some(hint) };
        match self {
            Error::NotAllowed { message, hint } => plain(b"42501", message, hint),
            Error::TenantRefused { message, hint, .. } => plain(b"42501", message, hint),
            Error::WrongState { message, hint } => plain(b"55000", message, hint),
            Error::InUse { message, hint } => plain(b"55006", message, hint),
            Error::BadArgument { message, hint } => plain(b"22023", message, hint),
            Error::NotFound { message, hint } => plain(b"02000", message, hint),
            Error::Unsupported { message, hint } => plain(b"0A000", message, hint),
            Error::Exists { message, hint } => plain(b"23505", message, hint),
            Error::LimitExceeded { message, hint } => plain(b"54000", message, hint),
            Error::OverCeiling { message, hint } => plain(b"53400", message, hint),
            Error::NotTheRecordedRow { relation } => plain(
                b"AG001",
                format!("the row written to {relation} is not the row that was recorded"),
                "A trigger that fires after agd's gate changed the row. Rename that trigger so that it sorts before \
                 \"~agd_record\", or make its change part of the statement."
                    .into(),
            ),
            Error::TamperingRefused { message, hint } => plain(b"AG002", message, hint),
            Error::NotAContinuation { message, hint } => plain(b"AG003", message, hint),
            Error::TokenRefused { message, hint, .. } => plain(b"AG004", message, hint),
            Error::SignatureRefused { message, hint } => plain(b"AG004", message, hint),
            Error::CauseRequired { relation } => plain(
                b"AG005",
                format!("a write to {relation} needs a cause"),
                "Call agd.set_cause('why') earlier in the same transaction.".into(),
            ),
            Error::OutOfMemory(message) => {
                plain(b"53200", message, "Write smaller rows, or give the server more memory.".into())
            }
            Error::Internal(message) => Report { sqlstate: b"XX000", message, hint: None },
            Error::Corrupted { message, hint } => plain(b"XX001", message, hint),
        }
    }

    /// Raises this error as a PostgreSQL ERROR. Does not return; unwinds Rust frames first.
    ///
    /// The way for functions that pgrx guards; those must not raise AG00x states (see [`entry`]).
    pub fn raise(self) -> ! {
        denied::record(&self);
        let prepared = self.report().prepare();
        // SAFETY: the boundary catches the jump and goes on as a Rust unwind.
        unsafe { pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| ereport(prepared)) }
    }

    /// Is it a refused attempt wherever it is raised? (Of the others, those that the gate raises.)
    pub fn always_refuses(&self) -> bool {
        matches!(self, Error::TamperingRefused { .. } | Error::OverCeiling { .. } | Error::TokenRefused { .. })
    }

    /// SQLSTATE and message as they may stand in the log: names of objects and roles, no value of any row.
    pub fn for_the_record(&self) -> ([u8; 5], String) {
        let report = self.clone().report();
        let message = match self {
            Error::TenantRefused { recorded, .. } | Error::TokenRefused { recorded, .. } => recorded.clone(),
            _ => report.message,
        };
        (*report.sqlstate, message)
    }
}

/// Turns an `Err` into a PostgreSQL ERROR.
pub trait OrRaise<T> {
    /// The value, or a raised error.
    fn or_raise(self) -> T;
}

impl<T> OrRaise<T> for Result<T> {
    fn or_raise(self) -> T {
        match self {
            Ok(value) => value,
            Err(error) => error.raise(),
        }
    }
}

impl From<pgrx::spi::Error> for Error {
    fn from(error: pgrx::spi::Error) -> Self {
        Error::Internal(format!("agd: reading its own tables failed: {error}"))
    }
}

/// Raises 25006 on a standby and in a read-only transaction, as PostgreSQL does for its own commands.
pub fn forbid_read_only(function: &std::ffi::CStr) {
    // SAFETY: the name is a C string; the error, if any, goes on as a Rust unwind.
    unsafe { pg_sys::PreventCommandIfReadOnly(function.as_ptr()) };
}

/// What `ereport` needs, in memory that PostgreSQL frees: nothing here is left to be dropped.
#[derive(Clone, Copy)]
struct Prepared {
    sqlstate: c_int,
    message: *const c_char,
    hint: *const c_char,
}

impl Report {
    fn prepare(self) -> Prepared {
        let code = self.sqlstate.iter().rev().fold(0, |code, &byte| (code << 6) + c_int::from((byte - b'0') & 0x3f));
        Prepared {
            sqlstate: code,
            message: palloc_c_string(&self.message),
            hint: self.hint.as_deref().map_or(std::ptr::null(), palloc_c_string),
        }
    }
}

fn palloc_c_string(text: &str) -> *const c_char {
    // SAFETY: palloc gives room for the bytes and the NUL, or raises.
    unsafe {
        let copy = pg_sys::palloc(text.len() + 1).cast::<u8>();
        std::ptr::copy_nonoverlapping(text.as_ptr(), copy, text.len());
        *copy.add(text.len()) = 0;
        copy.cast()
    }
}

unsafe extern "C-unwind" {
    fn errstart(elevel: c_int, domain: *const c_char) -> bool;
    fn errcode(sqlstate: c_int) -> c_int;
    fn errmsg(format: *const c_char, ...) -> c_int;
    fn errhint(format: *const c_char, ...) -> c_int;
    fn errfinish(file: *const c_char, line: c_int, function: *const c_char);
}

/// What the macro `ereport(ERROR, …)` expands to. Jumps.
///
/// # Safety
/// No frame between here and PostgreSQL may have anything left to drop.
unsafe fn ereport(prepared: Prepared) -> ! {
    // SAFETY: the strings are NUL-terminated and alive; errmsg and errhint copy them.
    unsafe {
        if errstart(PgLogLevel::ERROR as c_int, std::ptr::null()) {
            errcode(prepared.sqlstate);
            errmsg(c"%s".as_ptr(), prepared.message);
            if !prepared.hint.is_null() {
                errhint(c"%s".as_ptr(), prepared.hint);
            }
            errfinish(c"agd".as_ptr(), 0, std::ptr::null());
        }
    }
    unreachable!("ereport(ERROR) returned")
}

/// The outermost Rust frame of a function that PostgreSQL calls: runs `body`, and raises its error only when every Rust
/// value is gone.
///
/// pgrx's own guard re-raises errors from a copy that keeps a fixed list of SQLSTATEs and neither constraint names nor
/// context; AG001 would arrive as XX000. So agd's triggers and hooks use this one.
///
/// # Safety
/// To be called as the last expression of an `extern "C-unwind"` function that has nothing to drop.
pub unsafe fn entry<T: Copy>(body: impl FnOnce() -> Result<T>) -> T {
    let guarded = || {
        body().map_err(|error| {
            denied::record(&error);
            error.report().prepare()
        })
    };
    let error = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(guarded)) {
        Ok(Ok(value)) => return value,
        Ok(Err(prepared)) => Ok(prepared),
        Err(payload) => {
            denied::forget_attempt();
            Err(payload)
        }
    };
    match error {
        // SAFETY: `Prepared` has nothing to drop, and the caller vouches for its frame.
        Ok(prepared) => unsafe { ereport(prepared) },
        // A PostgreSQL error that passed through Rust, or a panic: pgrx raises it as it always does.
        // SAFETY: as above.
        Err(payload) => unsafe {
            pg_sys::panic::pgrx_extern_c_guard(move || -> T { std::panic::resume_unwind(payload) })
        },
    }
}
