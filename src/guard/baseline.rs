//! The baseline: what was in a table before it was guarded, one event per row, so that it can be reconciled with its log
//! from the first day.
#![allow(unsafe_code)] // scans the table directly

use crate::catalog::{Columns, Relation, Scratch, scan};
use crate::error::{Error, Result};
use crate::event::{self, Record};
use crate::guard::relation::{qualified_name, row_format};
use crate::tenant;
use pgrx::prelude::*;

/// One BASELINE event per row that is there. The lock keeps writers out, so the newest snapshot sees all there is.
pub fn record_baseline(name: &str, member: pg_sys::Oid, guard_id: [u8; 16], tenant_column: Option<&str>) -> Result<()> {
    let relation = Relation::open(member, pg_sys::AccessShareLock);
    // SAFETY: an open relation.
    if unsafe { (*(*relation.0).rd_rel).relkind } as u8 == b'p' {
        return Ok(());
    }
    let format = row_format(relation.0)?;
    let mut columns = Columns::default();
    let mut recorded = 0u64;
    let mut told = std::time::Instant::now();
    let scratch = Scratch::new();
    // SAFETY: registered until the scan is over; on an error the resource owner lets go of it.
    let snapshot = unsafe { pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot()) };
    scan(&relation, None, snapshot, &mut [], |tuple| {
        pgrx::check_for_interrupts!();
        columns.deform(tuple, relation.descriptor());
        scratch.with(|| {
            let tenant = match tenant_column {
                None => None,
                Some(column) => Some(format.text_of(&columns, column).ok_or_else(|| Error::BadArgument {
                    message: format!("a row of {name} has no tenant: column \"{column}\" is null"),
                    hint: "Give every row a tenant before the table is guarded.".into(),
                })?),
            };
            if let Some(tenant) = &tenant {
                tenant::check_baseline_row(tenant, name)?;
            }
            event::insert(&Record {
                action: "BASELINE",
                tenant: tenant.as_deref(),
                relation: Some(name),
                guard_id: Some(guard_id),
                row_key: Some(format.key(&columns)),
                old: None,
                new: Some(format.image(&columns)),
                body: None,
            })
        })?;
        recorded += 1;
        if told.elapsed().as_secs() >= 5 {
            notice!("agd.guard: {recorded} rows of {} recorded so far", qualified_name(member));
            told = std::time::Instant::now();
        }
        Ok(())
    })?;
    // SAFETY: registered above.
    unsafe { pg_sys::UnregisterSnapshot(snapshot) };
    Ok(())
}
