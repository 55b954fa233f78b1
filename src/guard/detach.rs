//! DETACH PARTITION takes rows out of a guarded table: each is recorded as deleted, before the partition leaves.
//!
//! Owns what happens around that statement. Promises that the rows recorded are the rows that leave: they are read under
//! the locks that DETACH takes, and no partition leaves a guarded tree in any other way.
#![allow(unsafe_code)] // parse nodes, locks, look-ups of names

use crate::backend;
use crate::error::{Error, Result};
use crate::guard::baseline::record_departure;
use crate::guard::define::unguard_member;
use crate::guard::partition;
use crate::guard::place::{Guard, guard_of, parent_of};
use crate::guard::relation::qualified_name;
use crate::query::{self, At};
use crate::transaction;
use pgrx::pg_sys;

/// What leaves a guarded tree.
pub struct Detached {
    /// The partition, and its own partitions.
    pub members: Vec<pg_sys::Oid>,
    has_wall: bool,
}

/// Before ALTER TABLE … DETACH PARTITION: locks, checks, and records each row that is about to leave.
///
/// # Safety
/// `statement` is a valid parse node.
pub unsafe fn before(statement: *mut pg_sys::AlterTableStmt) -> Result<Option<Detached>> {
    use pg_sys::AlterTableType as Kind;
    // SAFETY: the cells are AlterTableCmd nodes; a DETACH has a PartitionCmd and is alone in its statement.
    unsafe {
        let commands = pgrx::PgList::<pg_sys::AlterTableCmd>::from_pg((*statement).cmds);
        let Some(command) = commands
            .iter_ptr()
            .find(|command| matches!((**command).subtype, Kind::AT_DetachPartition | Kind::AT_DetachPartitionFinalize))
        else {
            return Ok(None);
        };
        let detach = (*command).def.cast::<pg_sys::PartitionCmd>();
        let Some((parent, guard)) = guarded((*statement).relation)? else { return Ok(None) };
        let name = qualified_name(guard.root);
        if (*detach).concurrent || (*command).subtype == Kind::AT_DetachPartitionFinalize {
            return Err(Error::Unsupported {
                message: format!("a partition of the guarded table {name} cannot be detached concurrently"),
                hint: "Its rows are recorded as they leave, under a lock: DETACH PARTITION without CONCURRENTLY."
                    .into(),
            });
        }
        // As DETACH itself does it: the parent first. Whoever may not detach is told so by PostgreSQL.
        if !backend::owns(pg_sys::GetUserId(), pg_sys::RelationRelationId, parent) {
            return Ok(None);
        }
        pg_sys::LockRelationOid(parent, pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE);
        let partition = named((*detach).name);
        if partition == pg_sys::InvalidOid || parent_of(partition, At::Now)? != Some(parent) {
            return Ok(None);
        }
        pg_sys::LockRelationOid(partition, pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE);
        // It may have been unguarded, or guarded anew, while this waited.
        let Some(guard) = guard_of(parent, At::Now)? else { return Ok(None) };
        if guard.require_cause && !transaction::has_cause() {
            return Err(Error::CauseRequired { relation: name });
        }
        let members = tree(partition)?;
        let body = format!("partition {} detached", qualified_name(partition));
        for &member in &members {
            pg_sys::LockRelationOid(member, pg_sys::ShareRowExclusiveLock as pg_sys::LOCKMODE);
            record_departure(guard.root, member, guard.id, guard.tenant_column.as_deref(), &body)?;
        }
        Ok(Some(Detached { members, has_wall: guard.tenant_column.is_some() }))
    }
}

/// After it: what is not cloned from the root, and so did not go with the clones, goes too.
pub fn tidy(detached: &Detached) -> Result<()> {
    detached.members.iter().try_for_each(|&member| {
        partition::forget(member);
        unguard_member(member, detached.has_wall)
    })
}

/// The table a statement names, if it is guarded.
unsafe fn guarded(name: *mut pg_sys::RangeVar) -> Result<Option<(pg_sys::Oid, Guard)>> {
    // SAFETY: passed on to the caller.
    let relation = unsafe { named(name) };
    Ok(guard_of(relation, At::Now)?.map(|guard| (relation, guard)))
}

/// The relation that a name stands for now. InvalidOid: none.
///
/// # Safety
/// `name` is a valid parse node.
pub unsafe fn named(name: *mut pg_sys::RangeVar) -> pg_sys::Oid {
    // SAFETY: passed on to the caller; no lock, no error for a name that stands for nothing.
    unsafe {
        pg_sys::RangeVarGetRelidExtended(
            name,
            pg_sys::NoLock as pg_sys::LOCKMODE,
            pg_sys::RVROption::RVR_MISSING_OK,
            None,
            std::ptr::null_mut(),
        )
    }
}

/// A table and its partitions, the table first.
fn tree(oid: pg_sys::Oid) -> Result<Vec<pg_sys::Oid>> {
    let rows = query::rows(
        At::Now,
        &format!(
            "WITH RECURSIVE tree (oid, level) AS (
               SELECT '{0}'::pg_catalog.oid, 0
               UNION ALL
               SELECT i.inhrelid, t.level OPERATOR(pg_catalog.+) 1
                 FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent OPERATOR(pg_catalog.=) t.oid
             )
             SELECT oid FROM tree ORDER BY level, oid",
            oid.to_u32()
        ),
    )?;
    Ok(query::oids(&rows, 0))
}
