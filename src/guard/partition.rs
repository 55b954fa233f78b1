//! Partitions made or attached after their table was guarded.
//!
//! Row triggers are cloned by PostgreSQL; this owns the rest: the TRUNCATE trigger, the wall, and the baseline of what an
//! attached table brings along. Runs within the statement that adds the partition, or that statement fails. What is new
//! follows from the partition trees before the statement and after it, never from what a table brings along: one that has
//! something of agd's already is refused.
#![allow(unsafe_code)] // reads parse nodes, calls a function by its oid

use crate::error::{Error, OrRaise, Result};
use crate::guard::baseline::record_arrival;
use crate::guard::define::{guard_member, uuid_of};
use crate::guard::examine::{check_storage, check_tenant_column};
use crate::guard::relation::{own_function, qualified_name};
use crate::guard::{place, touched};
use crate::identity::always_as_owner;
use crate::query::{self, At};
use crate::{backend, home};
use pgrx::prelude::*;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::ffi::CStr;

thread_local! {
    /// The partitions that this transaction saw to: the command that was current then, and the subtransaction. A statement
    /// asks more than once, and so does one in which another ran.
    static COMPLETED: RefCell<BTreeMap<u32, (pg_sys::CommandId, u32)>> = const { RefCell::new(BTreeMap::new()) };
}

/// The transaction is over.
pub fn transaction_ended() {
    COMPLETED.with_borrow_mut(BTreeMap::clear);
}

/// What was done in it, and in what it had within it, is undone.
pub fn subtransaction_rolled_back(subtransaction: u32) {
    COMPLETED.with_borrow_mut(|completed| completed.retain(|_, (_, by)| *by < subtransaction));
}

/// It leaves its tree: should it come back, it is new.
pub fn forget(member: pg_sys::Oid) {
    COMPLETED.with_borrow_mut(|completed| completed.remove(&member.to_u32()));
}

/// Was this partition seen to since the command with this number?
pub fn is_completed(member: pg_sys::Oid, since: pg_sys::CommandId) -> bool {
    COMPLETED.with_borrow(|completed| completed.get(&member.to_u32()).is_some_and(|(command, _)| *command >= since))
}

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

/// Catalog rows alone: pg_partition_tree would wait for locks on guarded tables that this has nothing to do with.
const TREE: &str = "WITH RECURSIVE tree (guard_id, root, oid, level) AS (
       SELECT g.guard_id, g.relation::oid, g.relation::oid, 0
         FROM agd.guarded_table g JOIN pg_catalog.pg_class r ON r.oid = g.relation AND r.relkind = 'p'
       UNION ALL
       SELECT t.guard_id, t.root, i.inhrelid, t.level + 1
         FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
     )";

/// The same, for who is agd's owner already.
pub fn complete() -> Result<()> {
    // Where no statement runs nothing can be new.
    let Some(before @ At::Before(first_command)) = touched::before_running() else { return Ok(()) };
    let members = query::rows(
        At::Now,
        &format!(
            "{TREE}
             SELECT t.guard_id, t.root, t.oid,
                    EXISTS (SELECT FROM pg_catalog.pg_trigger tg WHERE tg.tgrelid = t.oid AND tg.tgname = '~agd_truncate')
               FROM tree t ORDER BY t.level, t.oid"
        ),
    )?;
    let known = query::rows(before, &format!("{TREE} SELECT t.guard_id, t.root, t.oid FROM tree t"))?;
    let known: HashSet<_> =
        known.iter().filter_map(|row| Some((row.first()?.as_deref()?, row.get(2)?.as_deref()?))).collect();
    let mut new = Vec::new();
    for row in &members {
        let [Some(guard_id), Some(root), Some(member), Some(has_trigger)] = row.as_slice() else { continue };
        let (Ok(root_oid), Ok(oid)) = (root.parse(), member.parse()) else { continue };
        let (root_oid, oid, has_trigger) =
            (pg_sys::Oid::from_u32(root_oid), pg_sys::Oid::from_u32(oid), has_trigger == "t");
        if known.contains(&(guard_id.as_str(), member.as_str())) {
            if !has_trigger {
                warn_of_lost_trigger(root_oid, oid);
            }
        } else if !is_completed(oid, first_command) {
            new.push((guard_id, root_oid, oid, has_trigger));
        }
    }
    // A restore brings tables, triggers and guards back in any order; agd.resume() judges the whole.
    if new.is_empty() || !home::is_here()? && new.iter().all(|(.., has_trigger)| *has_trigger) {
        return Ok(());
    }
    home::check()?;
    for (guard_id, root, member, _) in new {
        // SAFETY: reads the transaction's state.
        let command = unsafe { pg_sys::GetCurrentCommandId(false) };
        let seen = (command, backend::subtransaction());
        COMPLETED.with_borrow_mut(|completed| completed.insert(member.to_u32(), seen));
        take_in(guard_id, root, member)?;
    }
    Ok(())
}

/// One that was in the tree before this statement is not new: somebody took its trigger away. To record its rows again would
/// paint over what was done to them meanwhile.
fn warn_of_lost_trigger(root: pg_sys::Oid, member: pg_sys::Oid) {
    pgrx::ereport!(
        pgrx::PgLogLevel::WARNING,
        pgrx::PgSqlErrorCode::ERRCODE_WARNING,
        format!(
            "{}, a partition of the guarded table {}, has lost the trigger \"~agd_truncate\"",
            qualified_name(member),
            qualified_name(root)
        ),
        "Somebody went past agd: SELECT * FROM agd.coverage() shows what else, agd.verify_table() what was done."
    );
}

/// Guards one new partition, and records each row that is in it.
fn take_in(guard_id: &str, root: pg_sys::Oid, member: pg_sys::Oid) -> Result<()> {
    let (name, root_name) = (qualified_name(member), qualified_name(root));
    // What was cloned from the parent has a parent of its own.
    let stray = query::rows(
        At::Now,
        &format!(
            "SELECT 'trigger', pg_catalog.quote_ident(tg.tgname)
               FROM pg_catalog.pg_trigger tg JOIN pg_catalog.pg_proc f ON f.oid = tg.tgfoid
              WHERE tg.tgrelid = '{0}'::pg_catalog.oid AND tg.tgparentid = 0
                AND (pg_catalog.starts_with(tg.tgname::text, '~agd')
                     OR f.pronamespace = (SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname = 'agd'))
             UNION ALL
             SELECT 'policy', pg_catalog.quote_ident(p.polname) FROM pg_catalog.pg_policy p
              WHERE p.polrelid = '{0}'::pg_catalog.oid AND pg_catalog.starts_with(p.polname::text, 'agd_')
              ORDER BY 1, 2",
            member.to_u32()
        ),
    )?;
    if let Some([Some(kind), Some(what)]) = stray.first().map(Vec::as_slice) {
        return Err(Error::TamperingRefused {
            message: format!(
                "{name} cannot become a partition of the guarded table {root_name}: it has the {kind} {what} already, which \
                 agd alone makes"
            ),
            hint: format!("Drop it first: DROP {} {what} ON {name}.", kind.to_uppercase()),
        });
    }
    let found = query::rows(
        At::Now,
        &format!(
            "SELECT g.tenant_column, c.relrowsecurity, c.relpersistence, c.relkind = 'p' OR COALESCE(a.amname = 'heap', false)
               FROM agd.guarded_table g
                    JOIN pg_catalog.pg_class c ON c.oid = '{}'::pg_catalog.oid
                    LEFT JOIN pg_catalog.pg_am a ON a.oid = c.relam
              WHERE g.relation = '{}'::pg_catalog.oid",
            member.to_u32(),
            root.to_u32()
        ),
    )?;
    let Some(row) = found.first() else { return Ok(()) };
    let text = |column: usize| row.get(column).and_then(Option::as_deref);
    let tenant_column = text(0);
    check_storage(&name, text(2).unwrap_or_default(), text(3) == Some("t"))?;
    let tenant_type = tenant_column.map(|column| check_tenant_column(root, &root_name, column)).transpose()?;
    guard_member(member, guard_id, tenant_column.zip(tenant_type.as_deref()), text(1) == Some("t"))?;
    record_arrival(root, member, uuid_of(guard_id)?, tenant_column)
}
