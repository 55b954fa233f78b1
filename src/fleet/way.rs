//! The way to a fleet's row, for the platform: a tenant's open transaction does not keep it from sealing.
//!
//! Owns what happens to whoever stands in it. A transaction that has signed, countersigned, amended or sealed a fleet holds its
//! row until it ends, which is the tenant's to decide; PostgreSQL lets nobody break such a lock. Promises that who acts for
//! the platform waits no longer than [`PATIENCE`], which commits under way do not need: then the session in the way is ended,
//! as by pg_terminate_backend(), and what it did not commit is rolled back. Never ends a session of the platform's own people or of a
//! superuser, nor anything but a client's session: these are waited for.

use super::is_fleet_id;
use crate::catalog::{Relation, catalog, scan, scan_key, to_varlena};
use crate::error::Result;
use crate::query::write_kept;
use crate::tenant;
use pgrx::pg_sys;
use std::time::{Duration, Instant};

/// How long a tenant's transaction is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Locks the fleet's row, or leaves it to the caller to wait for whoever may hold it.
pub(super) fn clear(fleet_id: &str) -> Result<()> {
    if !is_fleet_id(fleet_id) || !tenant::is_platform() {
        return Ok(());
    }
    let began = Instant::now();
    loop {
        pgrx::check_for_interrupts!();
        let locked = write_kept(
            "SELECT FROM agd.tenant_agent_fleet f WHERE f.fleet_id = $1 FOR UPDATE SKIP LOCKED",
            &[fleet_id.into()],
            |rows| Ok(!rows.is_empty()),
        )?;
        if locked {
            return Ok(());
        }
        let in_the_way = holder(fleet_id)?;
        let Some((pid, role)) = in_the_way else { return Ok(()) };
        if began.elapsed() >= PATIENCE {
            end(pid, &role, fleet_id)?;
        }
        wait();
    }
}

/// The tenant's session that holds the row, and its role. None: nobody, or somebody who is waited for.
fn holder(fleet_id: &str) -> Result<Option<(i32, String)>> {
    write_kept(
        "SELECT a.pid, a.usename::text
           FROM pg_catalog.unnest($2::text[]) h (xid)
                JOIN agd.tenant_agent_fleet f ON f.fleet_id = $1
                JOIN pg_catalog.pg_locks l
                  ON l.locktype = 'transactionid' AND l.granted AND l.mode = 'ExclusiveLock' AND l.transactionid::text = h.xid
                JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid AND a.backend_type = 'client backend'
                JOIN pg_catalog.pg_roles r ON r.oid = a.usesysid
          WHERE NOT r.rolsuper AND NOT pg_catalog.pg_has_role(r.oid, 'agd_platform', 'USAGE')
            AND a.pid <> pg_catalog.pg_backend_pid()
          LIMIT 1",
        &[fleet_id.into(), holders(fleet_id)?.into()],
        |rows| {
            if rows.is_empty() {
                return Ok(None);
            }
            let (pid, role) = rows.first().get_two::<i32, String>()?;
            Ok(pid.zip(role))
        },
    )
}

/// The transactions that hold the row, each by its topmost one: what a released savepoint has locked is its parent's.
#[allow(unsafe_code)] // a tuple's header, and what PostgreSQL knows of its xmax
fn holders(fleet_id: &str) -> Result<Vec<String>> {
    let catalog = catalog()?;
    let relation = Relation::open(catalog.tenant_agent_fleet, pg_sys::AccessShareLock);
    let mut keys = [scan_key(1, pg_sys::BTEqualStrategyNumber, pg_sys::F_TEXTEQ, to_varlena(fleet_id.as_bytes()))];
    keys[0].sk_collation = pg_sys::C_COLLATION_OID;
    let mut found = Vec::new();
    scan(&relation, Some(catalog.tenant_agent_fleet_pkey), std::ptr::null_mut(), &mut keys, |tuple| {
        // SAFETY: a tuple has a header. Members of a multixact are copied for the caller; none is asked for whose transaction
        // is older than any that runs.
        unsafe {
            let header = (*tuple).t_data;
            let xmax = (*header).t_choice.t_heap.t_xmax;
            let mut xids = Vec::new();
            if u32::from((*header).t_infomask) & pg_sys::HEAP_XMAX_INVALID != 0 {
                return Ok(());
            }
            if u32::from((*header).t_infomask) & pg_sys::HEAP_XMAX_IS_MULTI != 0 {
                let mut members = std::ptr::null_mut();
                let count = pg_sys::GetMultiXactIdMembers(xmax, &mut members, false, false);
                xids.extend((0..count.max(0) as usize).map(|member| (*members.add(member)).xid));
            } else {
                xids.push(xmax);
            }
            for xid in xids {
                if pg_sys::TransactionIdIsInProgress(xid) {
                    found.push(pg_sys::SubTransGetTopmostTransaction(xid).into_inner().to_string());
                }
            }
        }
        Ok(())
    })?;
    Ok(found)
}

fn end(pid: i32, role: &str, fleet_id: &str) -> Result<()> {
    write_kept("SELECT pg_catalog.pg_terminate_backend($1)", &[pid.into()], |_| Ok(()))?;
    pgrx::warning!(
        "the session {pid} of \"{role}\" was ended: its open transaction kept fleet {fleet_id} from being sealed"
    );
    Ok(())
}

#[allow(unsafe_code)] // sleeps
fn wait() {
    let events = (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32;
    // SAFETY: this process's own latch; whoever set it is answered by the next check for interrupts.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events, LOOK_AGAIN.as_millis() as _, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
}
