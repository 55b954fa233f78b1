//! Redacted columns: recorded as a digest only.
//!
//! Owns what stands in a row image where a redacted column's value would: `hmac-sha256:` and 64 hex digits over the
//! column's name, the row's key and the value as the image would have written it, under the guard's own random key. So a
//! change of the value shows and the present row can be checked against the record, while nobody without the key can find
//! a value by trying all there are, and equal values in two rows do not show as equal. NULL stays null. Promises that a
//! value of a redacted column is in no image: when a column cannot be found any more, or became part of the key, the row
//! is refused. Never decides which columns these are: agd.guarded_table says it.
#![allow(unsafe_code)] // reads agd's tables by column type

use crate::catalog::{Columns, Relation, catalog, named, scan, scan_key, varlena};
use crate::error::{Error, Result};
use crate::log::storage;
use hmac::{Hmac, KeyInit as _, Mac as _};
use pgrx::FromDatum as _;
use pgrx::prelude::*;
use sha2::Sha256;
use std::collections::HashSet;

/// Bytes of a guard's key.
const KEY_SIZE: usize = 32;

/// What is redacted in a table's images.
pub struct Redaction {
    columns: Vec<String>,
    keyed: Hmac<Sha256>,
}

impl Redaction {
    /// The redaction of the guard whose root this table is; None: it is not guarded, or nothing is redacted.
    pub fn of(root: pg_sys::Oid) -> Result<Option<Self>> {
        let table = Relation::open(catalog()?.guarded_table, pg_sys::AccessShareLock);
        let mut keys = [scan_key(2, pg_sys::BTEqualStrategyNumber, pg_sys::F_OIDEQ, pg_sys::Datum::from(root))];
        let mut row = Columns::default();
        let mut found = None;
        scan(&table, Some(named(c"guarded_table_relation_key")?), std::ptr::null_mut(), &mut keys, |tuple| {
            row.deform(tuple, table.descriptor());
            // SAFETY: the column types of agd.guarded_table (sql/30_guard.sql): a uuid is 16 bytes by reference, redact is
            // text[].
            unsafe {
                let mut guard_id = [0u8; 16];
                if let Some(value) = row.get(0) {
                    guard_id.copy_from_slice(std::slice::from_raw_parts(value.cast_mut_ptr::<u8>(), 16));
                }
                let columns = row.get(7).and_then(|value| Vec::<String>::from_datum(value, false)).unwrap_or_default();
                found = Some((guard_id, columns));
            }
            Ok(())
        })?;
        match found {
            Some((guard_id, columns)) if !columns.is_empty() => {
                Ok(Some(Redaction { columns, keyed: stored_key(guard_id)? }))
            }
            _ => Ok(None),
        }
    }

    /// The names of the redacted columns.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// What is written in a value's place, as a JSON string. `key` and `value` are JSON as the image writes them.
    pub fn write(&self, out: &mut Vec<u8>, column: &str, key: &[u8], value: &[u8]) {
        let mut mac = self.keyed.clone();
        for part in [column.as_bytes(), key, value] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        out.extend_from_slice(b"\"hmac-sha256:");
        out.extend_from_slice(hex::encode(mac.finalize().into_bytes()).as_bytes());
        out.push(b'"');
    }
}

fn stored_key(guard_id: [u8; 16]) -> Result<Hmac<Sha256>> {
    let table = Relation::open(named(c"redaction_key")?, pg_sys::AccessShareLock);
    let mut keys =
        [scan_key(1, pg_sys::BTEqualStrategyNumber, pg_sys::F_UUID_EQ, pg_sys::Datum::from(guard_id.as_ptr()))];
    let mut row = Columns::default();
    let mut keyed = None;
    scan(&table, Some(named(c"redaction_key_pkey")?), std::ptr::null_mut(), &mut keys, |tuple| {
        row.deform(tuple, table.descriptor());
        // SAFETY: key is bytea.
        keyed = row.get(1).and_then(|value| Hmac::new_from_slice(unsafe { varlena(value) }).ok());
        Ok(())
    })?;
    keyed.ok_or_else(|| Error::WrongState {
        message: "the key of this table's redacted columns is gone".into(),
        hint: "Without it a row can neither be recorded nor compared. agd.unguard() the table and guard it again: it gets \
               a new key."
            .into(),
    })
}

/// Makes and stores the key of a new guard.
pub fn make_key(guard_id: &str) -> Result<()> {
    let mut key = [0u8; KEY_SIZE];
    // SAFETY: fills the buffer; false means that the operating system has no randomness to give.
    if !unsafe { pg_sys::pg_strong_random(key.as_mut_ptr().cast(), key.len()) } {
        return Err(Error::Internal("agd: no random numbers to be had from the operating system".into()));
    }
    storage::writing(|| {
        Spi::run_with_args(
            "INSERT INTO agd.redaction_key (guard_id, key) VALUES ($1::uuid, $2)",
            &[guard_id.into(), key.as_slice().into()],
        )
    })?;
    Ok(())
}

/// The columns that `agd.guard(redact => …)` names, checked. 22023 for what cannot be redacted.
pub fn check(
    oid: pg_sys::Oid,
    table: &str,
    named: Option<pgrx::Array<'_, &std::ffi::CStr>>,
    tenant_column: Option<&str>,
    key_attributes: &[i16],
) -> Result<Vec<String>> {
    let wrong = |message: String, hint: &str| Err(Error::BadArgument { message, hint: hint.into() });
    let mut columns: Vec<String> = Vec::new();
    let mut seen = HashSet::new();
    for column in named.iter().flat_map(pgrx::Array::iter) {
        let Some(column) = column.map(std::ffi::CStr::to_string_lossy) else {
            return wrong("a redacted column has no name".into(), "redact => '{ssn,card}', without NULL.");
        };
        let attribute = Spi::connect(|client| {
            let rows = client.select(
                "SELECT a.attnum, a.attgenerated <> '' FROM pg_catalog.pg_attribute a
                  WHERE a.attrelid = $1 AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped",
                Some(1),
                &[oid.into(), column.as_ref().into()],
            )?;
            if rows.is_empty() { Ok((None, None)) } else { rows.first().get_two::<i16, bool>() }
        })?;
        match attribute {
            (Some(number), _) if key_attributes.contains(&number) => {
                return wrong(
                    format!("column \"{column}\" is part of the primary key of {table}"),
                    "A record names the row it is about by its key, in plain. Give the table a key that tells nothing.",
                );
            }
            (Some(_), _) if tenant_column == Some(column.as_ref()) => {
                return wrong(
                    format!("column \"{column}\" names each row's tenant in {table}"),
                    "The tenant decides whose log a record goes to. It cannot be redacted.",
                );
            }
            (Some(_), Some(false)) => {}
            (Some(_), _) => {
                return wrong(
                    format!("column \"{column}\" of {table} is generated"),
                    "Generated columns are not recorded at all. Redact the columns that it is computed from.",
                );
            }
            (None, _) => {
                return wrong(format!("{table} has no column \"{column}\""), "redact names columns of the table.");
            }
        }
        if !seen.insert(column.to_string()) {
            return wrong(format!("column \"{column}\" is named twice"), "Name each redacted column once.");
        }
        columns.push(column.into_owned());
    }
    Ok(columns)
}
