//! Partitions made or attached after their table was guarded.
//!
//! Row triggers are cloned by PostgreSQL; this owns the rest: the TRUNCATE trigger, the wall, and the baseline of what an
//! attached table brings along. Runs within the statement that adds the partition, or that statement fails.
#![allow(unsafe_code)] // reads parse nodes, calls a function by its oid

use crate::error::{OrRaise, Result};
use crate::guard::baseline::record_baseline;
use crate::guard::define::{guard_member, uuid_of};
use crate::guard::examine::{check_storage, check_tenant_column};
use crate::guard::relation::{own_function, qualified_name};
use crate::guard::{place, touched};
use crate::home;
use crate::identity::always_as_owner;
use crate::query::{self, At};
use pgrx::prelude::*;
use std::collections::HashSet;
use std::ffi::CStr;

/// A partition was made or attached: is this such a statement?
///
/// # Safety
/// `node` is a utility statement's parse node.
pub unsafe fn adds_a_partition(node: *mut pg_sys::Node) -> bool {
    // SAFETY: the tag tells the node's type; an ALTER TABLE's cells are AlterTableCmd nodes.
    unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_CreateStmt => !(*node.cast::<pg_sys::CreateStmt>()).partbound.is_null(),
            // ALTER INDEX … ATTACH PARTITION is of the same kind, and adds none: a restore does it while guards are
            // only half there.
            pg_sys::NodeTag::T_AlterTableStmt
                if (*node.cast::<pg_sys::AlterTableStmt>()).objtype == pg_sys::ObjectType::OBJECT_TABLE =>
            {
                let commands =
                    pgrx::PgList::<pg_sys::AlterTableCmd>::from_pg((*node.cast::<pg_sys::AlterTableStmt>()).cmds);
                commands.iter_ptr().any(|command| (*command).subtype == pg_sys::AlterTableType::AT_AttachPartition)
            }
            _ => false,
        }
    }
}

/// Calls `agd.complete_partitions()`, which takes the rights of agd's owner whoever made the partition.
pub fn after_partition_added() -> Result<()> {
    if place::extension() != pg_sys::InvalidOid {
        // The new partition must be visible to it.
        // SAFETY: inside a transaction.
        unsafe { pg_sys::CommandCounterIncrement() };
        call_as_owner(c"complete_partitions");
    }
    Ok(())
}

/// Calls a function of agd's without arguments that returns void and takes the rights of agd's owner by itself.
pub fn call_as_owner(function: &CStr) {
    // SAFETY: calls a function that is there; the function manager raises for one that is not.
    unsafe { pg_sys::OidFunctionCall0Coll(own_function(function), pg_sys::InvalidOid) };
}

/// `agd.complete_partitions()`: gives new partitions of guarded tables what is not cloned from the root (the TRUNCATE
/// trigger, the wall), and records the rows that an attached table brings along.
#[pg_extern(sql = false)]
fn complete_partitions() {
    always_as_owner(complete).or_raise();
}

/// The same, for who is agd's owner already.
pub fn complete() -> Result<()> {
    // Catalog rows alone: pg_partition_tree would wait for locks on guarded tables that this has nothing to do with.
    const TREE: &str = "WITH RECURSIVE tree (guard_id, oid, level) AS (
           SELECT g.guard_id, g.relation::oid, 0
             FROM agd.guarded_table g JOIN pg_catalog.pg_class r ON r.oid = g.relation AND r.relkind = 'p'
           UNION ALL
           SELECT t.guard_id, i.inhrelid, t.level + 1
             FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
         )";
    let incomplete = query::rows(
        At::Now,
        &format!(
            "{TREE}
             SELECT g.guard_id, g.relation::oid, g.tenant_column, c.oid, c.relrowsecurity, c.relpersistence,
                    c.relkind = 'p' OR COALESCE(a.amname = 'heap', false)
               FROM tree t
                    JOIN agd.guarded_table g ON g.guard_id = t.guard_id
                    JOIN pg_catalog.pg_class c ON c.oid = t.oid
                    LEFT JOIN pg_catalog.pg_am a ON a.oid = c.relam
              WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_trigger tg
                                 WHERE tg.tgrelid = c.oid AND tg.tgname = '~agd_truncate')
              ORDER BY t.level, c.oid"
        ),
    )?;
    if incomplete.is_empty() {
        return Ok(());
    }
    home::check()?;
    // One that was in the tree before this statement is not new: somebody took its trigger away. To record its rows again
    // would paint over what was done to them meanwhile.
    let known: HashSet<pg_sys::Oid> = match touched::before_running() {
        Some(before) => {
            query::oids(&query::rows(before, &format!("{TREE} SELECT oid FROM tree"))?, 0).into_iter().collect()
        }
        None => HashSet::new(),
    };
    let (roots, members) = (query::oids(&incomplete, 1), query::oids(&incomplete, 3));
    for ((row, root), member) in incomplete.iter().zip(roots).zip(members) {
        let text = |column: usize| row.get(column).and_then(Option::as_deref);
        let root_name = qualified_name(root);
        if known.contains(&member) {
            let name = qualified_name(member);
            pgrx::ereport!(
                pgrx::PgLogLevel::WARNING,
                pgrx::PgSqlErrorCode::ERRCODE_WARNING,
                format!("{name}, a partition of the guarded table {root_name}, has lost the trigger \"~agd_truncate\""),
                "Somebody went past agd: SELECT * FROM agd.coverage() shows what else, agd.verify_table() what was done."
            );
            continue;
        }
        let tenant_column = text(2);
        check_storage(&qualified_name(member), text(5).unwrap_or_default(), text(6) == Some("t"))?;
        let tenant_type = tenant_column.map(|column| check_tenant_column(root, &root_name, column)).transpose()?;
        let guard_id = text(0).unwrap_or_default();
        guard_member(member, guard_id, tenant_column.zip(tenant_type.as_deref()), text(4) == Some("t"))?;
        record_baseline(&root_name, member, uuid_of(guard_id)?, tenant_column)?;
    }
    Ok(())
}
