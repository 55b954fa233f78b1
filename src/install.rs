//! What a server and a database must have before the extension can be installed, and the label of agd's roles.
//!
//! Promises that only a superuser labels a role for agd: so a label says that an installation, or an administrator who knows,
//! took the role for what it is. Labels on anything else are refused.
#![allow(unsafe_code)] // registers the provider of a security label, reads the database's encoding

use crate::error::{self, Error, OrRaise, Result};
use crate::{backend, shmem, transaction};
use pgrx::prelude::*;
use std::ffi::{CStr, c_char};

/// `agd.check_installation()`, called by the installation script.
#[pg_extern(sql = false)]
fn check_installation() {
    check().or_raise();
}

fn check() -> Result<()> {
    shmem::this_database()?.forget_record();
    // SAFETY: reads a property of the connected database.
    let encoding = unsafe { pg_sys::GetDatabaseEncoding() };
    if encoding != pg_sys::pg_enc::PG_UTF8 as i32 {
        return Err(Error::Unsupported {
            message: "agd needs a database with the encoding UTF8".into(),
            hint:
                "Entries are UTF-8, so that they hash to the same bytes everywhere. CREATE DATABASE … ENCODING 'UTF8' \
                   TEMPLATE template0."
                    .into(),
        });
    }
    transaction::note_extension_created();
    Ok(())
}

/// Makes the library the provider of the security label `agd`. Called once from `_PG_init`.
pub fn init() {
    // SAFETY: PostgreSQL copies the name and keeps the pointer to a static function.
    unsafe { register_label_provider(c"agd".as_ptr(), Some(check_label)) };
}

type CheckLabel = unsafe extern "C-unwind" fn(*const pg_sys::ObjectAddress, *const c_char);

unsafe extern "C-unwind" {
    fn register_label_provider(provider: *const c_char, hook: Option<CheckLabel>);
}

/// SECURITY LABEL FOR agd.
unsafe extern "C-unwind" fn check_label(object: *const pg_sys::ObjectAddress, label: *const c_char) {
    // SAFETY: PostgreSQL calls this with an object and a C string or NULL; the frame has nothing to drop.
    unsafe { error::entry(|| may_label(&*object, label)) }
}

/// # Safety
/// The label is a C string or NULL.
unsafe fn may_label(object: &pg_sys::ObjectAddress, label: *const c_char) -> Result<()> {
    // SAFETY: catalog look-ups.
    if !unsafe { pg_sys::superuser_arg(backend::outer_user()) && pg_sys::superuser() } {
        return Err(Error::NotAllowed {
            message: "only a superuser labels a role for agd".into(),
            hint: "The label says that the role is agd's own, whoever made it.".into(),
        });
    }
    // SAFETY: passed on from the caller.
    let says_agd = label.is_null() || unsafe { CStr::from_ptr(label) } == c"agd";
    if object.classId == pg_sys::AuthIdRelationId && says_agd {
        return Ok(());
    }
    Err(Error::BadArgument {
        message: "the label agd is for agd's roles, and says 'agd'".into(),
        hint: "SECURITY LABEL FOR agd ON ROLE agd_platform IS 'agd'; or IS NULL.".into(),
    })
}
