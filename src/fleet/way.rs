//! The way to a fleet's row, for the platform: a tenant's open transaction does not keep it from sealing.
//!
//! Owns what happens to whoever stands in it. A transaction that has signed, countersigned, amended or sealed a fleet holds its
//! row until it ends, which is the tenant's to decide; PostgreSQL lets nobody break such a lock. Promises that who acts for
//! the platform waits no longer than [`PATIENCE`], which commits under way do not need: then the session in the way is ended,
//! as by pg_terminate_backend(), and what it did not commit is rolled back. Never ends a session of the platform's own people or of a
//! superuser, nor anything but a client's session: these are waited for.

use super::is_fleet_id;
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
           FROM agd.tenant_agent_fleet f
                JOIN pg_catalog.pg_locks l
                  ON l.locktype = 'transactionid' AND l.granted AND l.mode = 'ExclusiveLock' AND l.transactionid = f.xmax
                JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid AND a.backend_type = 'client backend'
                JOIN pg_catalog.pg_roles r ON r.oid = a.usesysid
          WHERE f.fleet_id = $1 AND NOT r.rolsuper AND NOT pg_catalog.pg_has_role(r.oid, 'agd_platform', 'USAGE')
            AND a.pid <> pg_catalog.pg_backend_pid()
          LIMIT 1",
        &[fleet_id.into()],
        |rows| {
            if rows.is_empty() {
                return Ok(None);
            }
            let (pid, role) = rows.first().get_two::<i32, String>()?;
            Ok(pid.zip(role))
        },
    )
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
