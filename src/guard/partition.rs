//! Partitions made or attached after their table was guarded.
//!
//! Row triggers are cloned by PostgreSQL; this owns the rest: the TRUNCATE trigger, the wall, and the baseline of what an
//! attached table brings along. Runs within the statement that adds the partition, or that statement fails.
#![allow(unsafe_code)] // reads parse nodes, calls a function by its oid

use crate::error::{OrRaise, Result};
use crate::guard::baseline::record_baseline;
use crate::guard::define::{guard_member, uuid_of};
use crate::guard::examine::{check_storage, check_tenant_column};
use crate::guard::relation::qualified_name;
use pgrx::prelude::*;

/// A partition was made or attached: is this such a statement?
///
/// # Safety
/// `node` is a utility statement's parse node.
pub unsafe fn adds_a_partition(node: *mut pg_sys::Node) -> bool {
    // SAFETY: the tag tells the node's type; an ALTER TABLE's cells are AlterTableCmd nodes.
    unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_CreateStmt => !(*node.cast::<pg_sys::CreateStmt>()).partbound.is_null(),
            pg_sys::NodeTag::T_AlterTableStmt => {
                let commands =
                    pgrx::PgList::<pg_sys::AlterTableCmd>::from_pg((*node.cast::<pg_sys::AlterTableStmt>()).cmds);
                commands.iter_ptr().any(|command| (*command).subtype == pg_sys::AlterTableType::AT_AttachPartition)
            }
            _ => false,
        }
    }
}

/// Calls `agd.complete_partitions()`, which runs as agd's owner whoever made the partition.
pub fn after_partition_added() -> Result<()> {
    // SAFETY: catalog look-ups; the function takes no argument and returns void. The function manager switches user and
    // search_path as its definition says.
    unsafe {
        if pg_sys::get_extension_oid(c"agd".as_ptr(), true) == pg_sys::InvalidOid {
            return Ok(());
        }
        let mut name = pgrx::PgList::<pg_sys::Node>::new();
        for part in [c"agd", c"complete_partitions"] {
            name.push(pg_sys::makeString(pg_sys::pstrdup(part.as_ptr())).cast());
        }
        let function = pg_sys::LookupFuncName(name.into_pg(), 0, std::ptr::null(), false);
        // The new partition must be visible to it.
        pg_sys::CommandCounterIncrement();
        pg_sys::OidFunctionCall0Coll(function, pg_sys::InvalidOid);
    }
    Ok(())
}

/// `agd.complete_partitions()`: gives new partitions of guarded tables what is not cloned from the root (the TRUNCATE
/// trigger, the wall), and records the rows that an attached table brings along.
#[pg_extern(sql = false)]
fn complete_partitions() {
    complete().or_raise();
}

fn complete() -> Result<()> {
    let incomplete = Spi::connect(|client| {
        client
            .select(
                // Catalog rows alone: pg_partition_tree would wait for locks on guarded tables that this has nothing to
                // do with.
                "WITH RECURSIVE tree (guard_id, oid, level) AS (
                   SELECT g.guard_id, g.relation::oid, 0
                     FROM agd.guarded_table g JOIN pg_catalog.pg_class r ON r.oid = g.relation AND r.relkind = 'p'
                   UNION ALL
                   SELECT t.guard_id, i.inhrelid, t.level + 1
                     FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
                 )
                 SELECT g.guard_id::text, g.relation::oid, g.tenant_column, c.oid, c.relrowsecurity,
                        c.relpersistence::text, c.relkind = 'p' OR a.amname = 'heap'
                   FROM tree t
                        JOIN agd.guarded_table g ON g.guard_id = t.guard_id
                        JOIN pg_catalog.pg_class c ON c.oid = t.oid
                        LEFT JOIN pg_catalog.pg_am a ON a.oid = c.relam
                  WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_trigger tg
                                     WHERE tg.tgrelid = c.oid AND tg.tgname = '~agd_truncate')
                  ORDER BY t.level, c.oid",
                None,
                &[],
            )?
            .map(|row| {
                Ok::<_, pgrx::spi::Error>((
                    row.get::<String>(1)?.unwrap_or_default(),
                    row.get::<pg_sys::Oid>(2)?.unwrap_or(pg_sys::InvalidOid),
                    row.get::<String>(3)?,
                    row.get::<pg_sys::Oid>(4)?.unwrap_or(pg_sys::InvalidOid),
                    row.get::<bool>(5)?.unwrap_or_default(),
                    row.get::<String>(6)?.unwrap_or_default(),
                    row.get::<bool>(7)?.unwrap_or_default(),
                ))
            })
            .collect::<std::result::Result<Vec<_>, _>>()
    })?;
    for (guard_id, root, tenant_column, member, row_security, persistence, is_heap) in incomplete {
        let root_name = qualified_name(root);
        check_storage(&qualified_name(member), &persistence, is_heap)?;
        let tenant_type =
            tenant_column.as_deref().map(|column| check_tenant_column(root, &root_name, column)).transpose()?;
        guard_member(member, &guard_id, tenant_column.as_deref().zip(tenant_type.as_deref()), row_security)?;
        record_baseline(&root_name, member, uuid_of(&guard_id)?, tenant_column.as_deref())?;
    }
    Ok(())
}
