//! Mapped roles, and what becomes of a mapping when its role does.
//!
//! Owns the rows of agd.role_map from the mapping to its end. Promises that a mapping never passes to a role that was not meant:
//! in a running cluster a role is known by its number, and while it is mapped PostgreSQL refuses to drop it, so that nobody
//! else gets that number; across a dump and a restore it is known by its name, which is written down with the mapping and
//! kept up to date, and a mapping counts there only once both agree ([`super::mapping`], `agd.resume()`). That a mapping was
//! taken away, and why, is recorded. Never decides which role is meant where number and name disagree.
#![allow(unsafe_code)] // catalog look-ups, parse nodes

use super::{Mode, mapping};
use crate::error::{self, Error, Result};
use crate::event::{self, MAX_CAUSE_BYTES, Record};
use crate::fmgr::{argument, definer_function};
use crate::guard::own;
use crate::guard::place;
use crate::{home, identity, query, transaction};
use pgrx::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::CStr;

thread_local! {
    /// What this transaction wants to be taken away by `agd.resume()`: names, and why.
    static TO_UNMAP: RefCell<BTreeMap<String, String>> = const { RefCell::new(BTreeMap::new()) };
    /// ALTER ROLE … RENAME is running.
    static RENAMING: Cell<bool> = const { Cell::new(false) };
}

/// The transaction is over.
pub fn transaction_ended() {
    RENAMING.set(false);
    if TO_UNMAP.with_borrow(|names| !names.is_empty()) {
        TO_UNMAP.take();
    }
}

/// Maps a role. False: it is mapped already. The very mapping once more makes sure that it is tied, and under its name.
pub(super) fn map(oid: pg_sys::Oid, role: &str, tenant: Option<&str>, mode: Mode) -> Result<bool> {
    let mapped = own::writing(|| {
        Spi::get_one_with_args::<bool>(
            "WITH made AS (INSERT INTO agd.role_map (role, tenant, mode, role_name) VALUES ($1::oid::regrole, $2, $3, $4)
                           ON CONFLICT DO NOTHING RETURNING true AS made)
             SELECT COALESCE((SELECT made FROM made), false)",
            &[oid.into(), tenant.into(), mode.name().into(), role.into()],
        )
    })?;
    if mapped != Some(true) {
        return Ok(false);
    }
    tie(role)?;
    Ok(true)
}

/// While it has this privilege, the role cannot be dropped.
fn tie(role: &str) -> Result<()> {
    Ok(Spi::run(&format!("GRANT USAGE ON TYPE agd.mapped_role TO {}", spi::quote_identifier(role)))?)
}

fn untie(role: &str) -> Result<()> {
    Ok(Spi::run(&format!("REVOKE ALL ON TYPE agd.mapped_role FROM {}", spi::quote_identifier(role)))?)
}

/// A row of agd.role_map.
struct Row {
    oid: pg_sys::Oid,
    /// What it was called when that was last written down.
    stored: Option<String>,
    /// What the role of that number is called; None: there is none.
    present: Option<String>,
    tenant: Option<String>,
    mode: String,
}

impl Row {
    fn is_settled(&self) -> bool {
        self.present.is_some() && self.stored == self.present
    }

    /// What it is called in messages and in the record.
    fn shown(&self) -> String {
        self.stored.clone().unwrap_or_else(|| format!("(role {})", self.oid.to_u32()))
    }
}

fn rows() -> Result<Vec<Row>> {
    query::write_kept(
        "SELECT m.role::oid, m.role_name, r.rolname::text, m.tenant, m.mode
           FROM agd.role_map m LEFT JOIN pg_catalog.pg_roles r ON r.oid = m.role ORDER BY m.role_name, m.role",
        &[],
        |rows| {
            rows.map(|row| {
                Ok(Row {
                    oid: row.get(1)?.unwrap_or(pg_sys::InvalidOid),
                    stored: row.get(2)?,
                    present: row.get(3)?,
                    tenant: row.get(4)?,
                    mode: row.get::<String>(5)?.unwrap_or_default(),
                })
            })
            .collect()
        },
    )
}

definer_function!(agd_unmap_role, pg_finfo_agd_unmap_role, answer_unmap);

/// `agd.unmap_role(role, reason)`
fn answer_unmap(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.unmap_role(role name, reason text).
    let (role, reason) = unsafe { (argument::<&CStr>(call, 0), argument::<String>(call, 1)) };
    let role = role.map(|role| role.to_string_lossy());
    unmap(role.as_deref(), reason.as_deref()).map(|()| pg_sys::Datum::from(0))
}

fn unmap(role: Option<&str>, reason: Option<&str>) -> Result<()> {
    error::forbid_read_only(c"agd.unmap_role()");
    let reason = reason.map(str::trim).filter(|reason| !reason.is_empty());
    let (Some(role), Some(reason)) = (role, reason) else {
        return Err(Error::BadArgument {
            message: "a role and a reason must be given".into(),
            hint: "The reason is recorded: SELECT agd.unmap_role('acme_app', 'acme has left').".into(),
        });
    };
    if reason.len() > MAX_CAUSE_BYTES {
        return Err(Error::BadArgument {
            message: format!("a reason of {} bytes is too long", reason.len()),
            hint: format!("At most {MAX_CAUSE_BYTES} bytes."),
        });
    }
    let rows = rows()?;
    if home::is_elsewhere()? {
        // Nothing is recorded here yet. What is settled is not in the way of agd.resume().
        let known = rows.iter().any(|row| !row.is_settled() && row.shown() == role);
        if !known {
            return Err(Error::WrongState {
                message: format!(
                    "the record in this database was not resumed, and no mapping of \"{role}\" is in the way"
                ),
                hint: "SELECT agd.resume(), then agd.unmap_role().".into(),
            });
        }
        TO_UNMAP.with_borrow_mut(|names| names.insert(role.to_owned(), reason.to_owned()));
        notice!("agd.resume() in this transaction takes the mapping of \"{role}\" away");
        return Ok(());
    }
    home::ensure()?;
    // By its name now, or else, where the role is gone, by the one that was written down.
    let found = rows.iter().find(|row| row.present.as_deref() == Some(role));
    let found = found.or_else(|| rows.iter().find(|row| row.present.is_none() && row.shown() == role));
    match found {
        Some(row) => take_away(row, reason),
        None => Err(Error::WrongState {
            message: format!("role \"{role}\" is not mapped"),
            hint: "SELECT * FROM agd.role_map shows every mapping.".into(),
        }),
    }
}

fn take_away(row: &Row, reason: &str) -> Result<()> {
    own::writing(|| Spi::run_with_args("DELETE FROM agd.role_map WHERE role = $1::oid::regrole", &[row.oid.into()]))?;
    if let Some(present) = &row.present {
        untie(present)?;
    }
    let (tenant, mode) = (row.tenant.as_deref().unwrap_or("-"), &row.mode);
    let body = format!(
        "role={} tenant={tenant} mode={mode} reason={reason}",
        row.present.clone().unwrap_or_else(|| row.shown())
    );
    event::insert(&Record { relation: Some("agd.role_map"), body: Some(&body), ..Record::of("UNMAP") })?;
    Ok(())
}

// ------------------------------------------------------------------------------------------------- agd.resume()

/// Before a record is resumed: every mapping is of a role that has both the number and the name, or this transaction wants it
/// taken away. 55000 otherwise, with the names.
pub fn check_before_resume() -> Result<()> {
    let wanted = TO_UNMAP.with_borrow(|names| names.keys().cloned().collect::<Vec<_>>());
    let lost: Vec<String> =
        rows()?.iter().filter(|row| !row.is_settled()).map(Row::shown).filter(|name| !wanted.contains(name)).collect();
    let Some(first) = lost.first() else { return Ok(()) };
    Err(Error::WrongState {
        message: format!("agd.role_map maps roles that are not the ones here: {}", lost.join(", ")),
        hint: format!(
            "They were dropped, or renamed in another database, before the dump was taken: whoever has their number now is not \
             meant. Take each away, in one transaction: BEGIN; SELECT agd.unmap_role('{}', 'its role is gone'); SELECT agd.resume(); \
             COMMIT. Then agd.map_role() maps whoever is meant.",
            first.replace('\'', "''")
        ),
    })
}

/// After the record is at home here: takes away what this transaction wanted, and ties the others' roles.
pub fn settle_after_resume() -> Result<()> {
    let wanted = TO_UNMAP.take();
    for row in rows()? {
        match (&row.present, wanted.get(&row.shown())) {
            (Some(present), _) if row.is_settled() => tie(present)?,
            (_, Some(reason)) => take_away(&row, reason)?,
            (_, None) => {}
        }
    }
    Ok(())
}

// ------------------------------------------------------------------------------------------------- utility statements

/// Before DROP OWNED: it would take the privilege away that keeps a mapped role from being dropped. AG002.
///
/// # Safety
/// The node is a DropOwnedStmt.
pub unsafe fn before_drop_owned(statement: *mut pg_sys::DropOwnedStmt) -> Result<()> {
    if place::extension() == pg_sys::InvalidOid {
        return Ok(());
    }
    // SAFETY: the list's cells are RoleSpecs; catalog look-ups.
    let roles: Vec<pg_sys::Oid> = unsafe {
        pgrx::PgList::<pg_sys::RoleSpec>::from_pg((*statement).roles)
            .iter_ptr()
            .map(|role| pg_sys::get_rolespec_oid(role, true))
            // Whoever may not is told so by PostgreSQL, and nothing else.
            .filter(|role| *role != pg_sys::InvalidOid && pg_sys::has_privs_of_role(pg_sys::GetUserId(), *role))
            .collect()
    };
    for role in roles {
        if mapping(role)?.is_some() {
            let name = transaction::user_name(role);
            return Err(Error::TamperingRefused {
                message: format!("DROP OWNED BY \"{name}\" is refused: the role is mapped to a tenant"),
                hint: format!(
                    "Take the mapping away first; the reason is recorded: SELECT agd.unmap_role('{}', 'why').",
                    name.replace('\'', "''")
                ),
            });
        }
    }
    Ok(())
}

/// Before ALTER ROLE … RENAME.
pub fn before_rename() {
    RENAMING.set(true);
}

/// After a utility statement.
pub fn after_utility() -> Result<()> {
    // SAFETY: reads the transaction's state.
    if RENAMING.replace(false) && unsafe { pg_sys::IsTransactionState() } && place::extension() != pg_sys::InvalidOid {
        // The new name must be visible.
        // SAFETY: inside a transaction.
        unsafe { pg_sys::CommandCounterIncrement() };
        identity::always_as_owner(follow)?;
    }
    Ok(())
}

/// Writes down what mapped roles are called now: with the rights of agd's owner.
fn follow() -> Result<()> {
    // Where the record is not resumed, number and name are compared before anybody believes either. Before the first event there
    // is nothing to follow that the first event would not tell of.
    if !home::is_here()? || rows()?.iter().all(|row| row.present.is_none() || row.is_settled()) {
        return Ok(());
    }
    home::ensure()?;
    own::writing(|| {
        Spi::run(
            "UPDATE agd.role_map m SET role_name = r.rolname FROM pg_catalog.pg_roles r
              WHERE r.oid = m.role AND m.role_name IS DISTINCT FROM r.rolname",
        )
    })?;
    Ok(())
}
