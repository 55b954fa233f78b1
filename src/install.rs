//! What a server and a database must have before the extension can be installed.

use crate::error::{Error, OrRaise, Result};
use crate::{shmem, transaction};
use pgrx::prelude::*;

/// `agd.check_installation()`, called by the installation script.
#[pg_extern(sql = false)]
fn check_installation() {
    check().or_raise();
}

#[allow(unsafe_code)] // reads the database's encoding
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
