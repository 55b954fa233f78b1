//! The rows of a table, recorded without being written: the baseline, what was in a table before it was guarded, so that
//! it can be reconciled with its log from the first day; what DDL may have changed; and what leaves with a partition that is
//! detached. One event per row.
#![allow(unsafe_code)] // scans the table directly

use crate::catalog::{Columns, Relation, Scratch, scan};
use crate::error::{Error, Result};
use crate::event::{self, Image, Record};
use crate::guard::relation::{qualified_name, row_format};
use crate::tenant;
use agd_core::chain;
use pgrx::prelude::*;

/// One BASELINE event per row that is there. The lock keeps writers out, so the newest snapshot sees all there is.
pub fn record_baseline(name: &str, member: pg_sys::Oid, guard_id: [u8; 16], tenant_column: Option<&str>) -> Result<()> {
    let check = |tenant: &str| tenant::check_baseline_row(tenant, name);
    record_rows(name, member, guard_id, tenant_column, check, None)
}

/// The same for rows that come into the guarded table `root` with a partition: whoever brings them must be allowed to write
/// their tenant's rows.
pub fn record_arrival(
    root: pg_sys::Oid,
    member: pg_sys::Oid,
    guard_id: [u8; 16],
    tenant_column: Option<&str>,
) -> Result<()> {
    record_as_written(root, member, guard_id, tenant_column, None)
}

/// The same for rows that were recorded before, and that DDL may have changed: each event says so, because it continues its
/// row's chain and begins none.
pub fn record_again(
    root: pg_sys::Oid,
    member: pg_sys::Oid,
    guard_id: [u8; 16],
    tenant_column: Option<&str>,
) -> Result<()> {
    record_as_written(root, member, guard_id, tenant_column, Some(("BASELINE", chain::RECORDED_AGAIN)))
}

fn record_as_written(
    root: pg_sys::Oid,
    member: pg_sys::Oid,
    guard_id: [u8; 16],
    tenant_column: Option<&str>,
    told: Option<(&str, &str)>,
) -> Result<()> {
    let name = qualified_name(root);
    let check = |tenant: &str| tenant::check_row(tenant, root, &name);
    record_rows(&name, member, guard_id, tenant_column, check, told)
}

/// One DELETE event per row that is there: it leaves the guarded table `root`, as `body` says. Whoever makes it leave must
/// be allowed to write its tenant's rows.
pub fn record_departure(
    root: pg_sys::Oid,
    member: pg_sys::Oid,
    guard_id: [u8; 16],
    tenant_column: Option<&str>,
    body: &str,
) -> Result<()> {
    let name = qualified_name(root);
    let check = |tenant: &str| tenant::check_row(tenant, root, &name);
    record_rows(&name, member, guard_id, tenant_column, check, Some(("DELETE", body)))
}

fn record_rows(
    name: &str,
    member: pg_sys::Oid,
    guard_id: [u8; 16],
    tenant_column: Option<&str>,
    check_tenant: impl Fn(&str) -> Result<()>,
    told: Option<(&str, &str)>,
) -> Result<()> {
    let relation = Relation::open(member, pg_sys::AccessShareLock);
    // SAFETY: an open relation.
    if unsafe { (*(*relation.0).rd_rel).relkind } as u8 == b'p' {
        return Ok(());
    }
    let format = row_format(relation.0)?;
    let mut columns = Columns::default();
    let mut recorded = 0u64;
    let mut noticed = std::time::Instant::now();
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
                check_tenant(tenant)?;
            }
            let image = Image::Row(&format, &columns);
            let (action, body) = told.map_or(("BASELINE", None), |(action, body)| (action, Some(body)));
            let departs = action == "DELETE";
            event::insert(&Record {
                action,
                tenant: tenant.as_deref(),
                relation: Some(name),
                guard_id: Some(guard_id),
                row_key: Some(Image::Key(&format, &columns)),
                old: departs.then_some(image),
                new: (!departs).then_some(image),
                body,
            })
        })?;
        recorded += 1;
        if noticed.elapsed().as_secs() >= 5 {
            notice!("agd: {recorded} rows of {} recorded so far", qualified_name(member));
            noticed = std::time::Instant::now();
        }
        Ok(())
    })?;
    // SAFETY: registered above.
    unsafe { pg_sys::UnregisterSnapshot(snapshot) };
    Ok(())
}
