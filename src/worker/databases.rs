//! Statements that need a database free of connections: DROP, RENAME, SET TABLESPACE, and CREATE from it as a template.
//!
//! Owns how the worker gets out of their way, and that a database with guarded tables is dropped by a superuser alone.
//! Promises: the worker leaves only while the statement holds the lock that keeps everybody out of the database, and only
//! when nobody but the worker is in its way, so that no vain attempt costs the record anything; before it leaves it has
//! done all that was due, tails included, so that a record nobody can write to is complete while no worker is there. It
//! comes back when the lock is let go of. Never decides whether a statement is allowed: that PostgreSQL does, after this.
#![allow(unsafe_code)] // parse nodes, locks and the user are reached through raw structures

use crate::denied::{self, Attempt};
use crate::error::{Error, Result};
use crate::shmem::{self, Database};
use crate::{backend, transaction};
use pgrx::prelude::*;
use std::cell::RefCell;
use std::ffi::{CStr, c_char};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// PostgreSQL waits this long for others to leave, and so does this.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the statement waits for the worker to finish what is due.
const FINISHING: Duration = Duration::from_secs(60);

/// What a statement wants of a database.
#[derive(Clone, Copy)]
enum Wish {
    Drop { force: bool },
    Rename { to: *const c_char },
    Copy { to: *const c_char },
    Move { tablespace: *const c_char },
}

thread_local! {
    /// The database that the present statement drops, and its name.
    static DROPPED: RefCell<Option<(pg_sys::Oid, String)>> = const { RefCell::new(None) };
}

/// Is this statement one that [`before_utility`] must see?
///
/// # Safety
/// `node` is a utility statement's parse node.
pub unsafe fn concerned_by(node: *mut pg_sys::Node) -> bool {
    // SAFETY: the tag tells the node's type.
    unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_DropdbStmt | pg_sys::NodeTag::T_CreatedbStmt | pg_sys::NodeTag::T_AlterDatabaseStmt => {
                true
            }
            pg_sys::NodeTag::T_RenameStmt => {
                (*node.cast::<pg_sys::RenameStmt>()).renameType == pg_sys::ObjectType::OBJECT_DATABASE
            }
            _ => false,
        }
    }
}

/// Which database, and what for. None: nothing to do with connections.
///
/// # Safety
/// As [`concerned_by`], which was true.
unsafe fn wish(node: *mut pg_sys::Node) -> Option<(*const c_char, Wish)> {
    // SAFETY: the tag tells the node's type; strings in parse nodes are C strings or null.
    unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_DropdbStmt => {
                let node = &*node.cast::<pg_sys::DropdbStmt>();
                Some((node.dbname, Wish::Drop { force: option(node.options, c"force").is_some() }))
            }
            pg_sys::NodeTag::T_RenameStmt => {
                let node = &*node.cast::<pg_sys::RenameStmt>();
                Some((node.subname, Wish::Rename { to: node.newname }))
            }
            pg_sys::NodeTag::T_CreatedbStmt => {
                let node = &*node.cast::<pg_sys::CreatedbStmt>();
                let template = match option(node.options, c"template") {
                    Some(option) if !(*option).arg.is_null() => pg_sys::defGetString(option),
                    _ => c"template1".as_ptr().cast_mut(),
                };
                Some((template, Wish::Copy { to: node.dbname }))
            }
            pg_sys::NodeTag::T_AlterDatabaseStmt => {
                let node = &*node.cast::<pg_sys::AlterDatabaseStmt>();
                let option = option(node.options, c"tablespace").filter(|option| !(**option).arg.is_null())?;
                Some((node.dbname, Wish::Move { tablespace: pg_sys::defGetString(option) }))
            }
            _ => None,
        }
    }
}

/// # Safety
/// `options` is a list of DefElem nodes or null.
unsafe fn option(options: *mut pg_sys::List, name: &CStr) -> Option<*mut pg_sys::DefElem> {
    // SAFETY: as the caller says.
    unsafe {
        let options = pgrx::PgList::<pg_sys::DefElem>::from_pg(options);
        options.iter_ptr().find(|option| CStr::from_ptr((**option).defname) == name)
    }
}

/// Gets the worker out of the way of a statement that PostgreSQL will let through, as far as that can be told before.
///
/// # Safety
/// `node` is a utility statement's parse node, of which [`concerned_by`] is true.
pub unsafe fn before_utility(node: *mut pg_sys::Node, top_level: bool) -> Result<()> {
    DROPPED.take();
    // SAFETY: the node is what the caller says; catalog look-ups and a lock, inside the statement's transaction.
    unsafe {
        if pg_sys::RecoveryInProgress() || pg_sys::XactReadOnly {
            return Ok(());
        }
        let Some((name, wish)) = wish(node) else { return Ok(()) };
        // The others do not run inside a transaction block, and PostgreSQL says so.
        if !matches!(wish, Wish::Rename { .. }) && (!top_level || pg_sys::IsInTransactionBlock(true)) {
            return Ok(());
        }
        let oid = if name.is_null() { pg_sys::InvalidOid } else { pg_sys::get_database_oid(name, true) };
        if oid == pg_sys::InvalidOid || oid == pg_sys::MyDatabaseId && !matches!(wish, Wish::Copy { .. }) {
            return Ok(());
        }
        if !as_superuser(|user| may(user, oid, wish))? {
            return Ok(());
        }
        let dropped = matches!(wish, Wish::Drop { .. });
        let text = CStr::from_ptr(name).to_string_lossy();
        if dropped {
            may_be_dropped(&text, oid)?;
        }
        let Some(database) = shmem::existing(oid) else { return Ok(()) };
        // From here on nobody connects to the database: neither another session nor another worker. PostgreSQL takes the
        // same lock a moment later.
        let lock = if matches!(wish, Wish::Copy { .. }) { pg_sys::ShareLock } else { pg_sys::AccessExclusiveLock };
        pg_sys::LockSharedObject(pg_sys::DatabaseRelationId, oid, 0, lock as pg_sys::LOCKMODE);
        if pg_sys::get_database_oid(name, true) != oid {
            return Ok(());
        }
        make_way(&text, database, oid, matches!(wish, Wish::Drop { force: true }))?;
        if dropped {
            // What was guarded up to now the worker has counted before it left.
            may_be_dropped(&text, oid)?;
            DROPPED.replace(Some((oid, text.into_owned())));
        }
    }
    Ok(())
}

/// The statement went through.
pub fn after_utility() -> Result<()> {
    let Some((oid, name)) = DROPPED.take() else { return Ok(()) };
    if let Some(database) = shmem::existing(oid) {
        let record = database.record.get();
        if record.is_empty() && database.guards_when_counted() == Some(0) {
            // The extension had gone before.
            database.release();
            return Ok(());
        }
        log!(
            "agd: database \"{name}\" was dropped by {} (session user {}), and its record with it: {}",
            transaction::role_name(),
            transaction::session_user_name(),
            if record.is_empty() { "what it held was not looked into" } else { &record }
        );
        // Before the lock is let go of: a database of the same number begins with nothing.
        database.release();
    }
    Ok(())
}

/// Runs `body` with the rights to see every session, and gives it the user who asks. All its SQL must be qualified down to
/// the operators: the search path is still the user's.
fn as_superuser<T>(body: impl FnOnce(pg_sys::Oid) -> Result<T>) -> Result<T> {
    let (mut user, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: put back below; an error that passes here ends the transaction, which puts it back as well.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
        let superuser = pg_sys::Oid::from(pg_sys::BOOTSTRAP_SUPERUSERID);
        pg_sys::SetUserIdAndSecContext(superuser, context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32);
    }
    let result = body(user);
    // SAFETY: as above.
    unsafe { pg_sys::SetUserIdAndSecContext(user, context) };
    result
}

/// PostgreSQL's own checks, those that it makes before it looks who is connected. What it refuses later is refused with the
/// worker gone for the while of the statement, and with nothing left undone.
///
/// # Safety
/// The names in `wish` are C strings; inside a transaction.
unsafe fn may(user: pg_sys::Oid, oid: pg_sys::Oid, wish: Wish) -> Result<bool> {
    // SAFETY: catalog look-ups.
    let owner = unsafe { pg_sys::superuser_arg(user) } || backend::owns(user, pg_sys::DatabaseRelationId, oid);
    let free = |name: *const c_char| {
        // SAFETY: as the caller says.
        unsafe { !name.is_null() && pg_sys::get_database_oid(name, true) == pg_sys::InvalidOid }
    };
    Ok(match wish {
        Wish::Drop { .. } => owner && !is_template(oid)? && !is_replicated(oid)?,
        Wish::Rename { to } => owner && free(to) && may_create(user)?,
        Wish::Copy { to } => free(to) && may_create(user)? && (owner || is_template(oid)?),
        Wish::Move { tablespace } => {
            // SAFETY: as the caller says.
            let to = unsafe { pg_sys::get_tablespace_oid(tablespace, true) };
            owner && to != pg_sys::InvalidOid && may_move(user, oid, to)?
        }
    })
}

fn yes(query: &str, arguments: &[pgrx::datum::DatumWithOid<'_>]) -> Result<bool> {
    Ok(crate::query::one::<bool>(query, arguments)?.unwrap_or(false))
}

fn may_create(user: pg_sys::Oid) -> Result<bool> {
    yes(
        "SELECT r.rolsuper OR r.rolcreatedb FROM pg_catalog.pg_authid r WHERE r.oid OPERATOR(pg_catalog.=) $1",
        &[user.into()],
    )
}

fn is_template(oid: pg_sys::Oid) -> Result<bool> {
    yes("SELECT d.datistemplate FROM pg_catalog.pg_database d WHERE d.oid OPERATOR(pg_catalog.=) $1", &[oid.into()])
}

fn may_move(user: pg_sys::Oid, oid: pg_sys::Oid, tablespace: pg_sys::Oid) -> Result<bool> {
    yes(
        "SELECT d.dattablespace OPERATOR(pg_catalog.<>) $2 AND s.spcname OPERATOR(pg_catalog.<>) 'pg_global'
                AND pg_catalog.has_tablespace_privilege($3, $2, 'CREATE')
           FROM pg_catalog.pg_database d, pg_catalog.pg_tablespace s
          WHERE d.oid OPERATOR(pg_catalog.=) $1 AND s.oid OPERATOR(pg_catalog.=) $2",
        &[oid.into(), tablespace.into(), user.into()],
    )
}

/// Does a subscription of the database, or a slot that somebody reads, keep it from being dropped?
fn is_replicated(oid: pg_sys::Oid) -> Result<bool> {
    let (mut slots, mut active) = (0, 0);
    // SAFETY: counts in shared memory.
    unsafe { pg_sys::ReplicationSlotsCountDBSlots(oid, &mut slots, &mut active) };
    Ok(active > 0
        || yes(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_subscription s WHERE s.subdbid OPERATOR(pg_catalog.=) $1)",
            &[oid.into()],
        )?)
}

// ------------------------------------------------------------------------------------------------ whether it may go

/// AG002 for who is no superuser while the database has guarded tables.
fn may_be_dropped(name: &str, oid: pg_sys::Oid) -> Result<()> {
    // SAFETY: reads who the user is.
    if unsafe { pg_sys::superuser() } {
        return Ok(());
    }
    let Some(database) = shmem::existing(oid) else {
        return if shmem::was_looked_into(oid) { Ok(()) } else { Err(not_known(name)) };
    };
    let began = Instant::now();
    while database.guards().is_none() {
        if began.elapsed() > PATIENCE {
            if database.guards_when_counted().is_some_and(|guards| guards > 0) {
                break;
            }
            return Err(not_known(name));
        }
        database.hurry_worker();
        database.wait_for_answer_within(Duration::from_millis(200), || database.guards().is_some());
        pgrx::check_for_interrupts!();
    }
    if database.guards() == Some(0) {
        return Ok(());
    }
    denied::attempted(Attempt { action: Some("DROP DATABASE".into()), database: Some(oid), ..Attempt::default() });
    Err(Error::TamperingRefused {
        message: format!("database \"{name}\" has guarded tables: their record would go with it"),
        hint:
            "In that database: SELECT agd.unguard(relation, 'why') FROM agd.guarded_table. Or let a superuser drop the \
               database; the server's log then says what went."
                .into(),
    })
}

fn not_known(name: &str) -> Error {
    Error::WrongState {
        message: format!("whether database \"{name}\" has guarded tables is not known yet"),
        hint: "agd's worker has not looked into it since the server was started, or since its last event. Try again in a \
               moment. If it stays like this, the server's log tells why no worker runs; often max_worker_processes is too \
               small."
            .into(),
    }
}

// ------------------------------------------------------------------------------------------------- making way for it

/// Who is connected to a database.
struct Connected {
    workers: i64,
    others: i64,
    /// Those of them that DROP … WITH (FORCE) may not end.
    lasting: i64,
    prepared: i64,
}

fn connected(oid: pg_sys::Oid) -> Result<Connected> {
    // SAFETY: forgets what this transaction saw of the sessions before.
    unsafe { pg_sys::pgstat_clear_backend_activity_snapshot() };
    as_superuser(|user| {
        // Autovacuum's workers PostgreSQL sends away itself.
        let query = "SELECT pg_catalog.count(*) FILTER (WHERE a.worker),
                    pg_catalog.count(*) FILTER (WHERE NOT a.worker),
                    pg_catalog.count(*) FILTER (WHERE NOT a.worker AND NOT a.ours),
                    (SELECT pg_catalog.count(*) FROM pg_catalog.pg_prepared_xact() p
                      WHERE p.dbid OPERATOR(pg_catalog.=) $1)
               FROM (SELECT s.backend_type OPERATOR(pg_catalog.=) 'agd worker' AS worker,
                            me.rolsuper OR r.oid IS NOT NULL AND NOT r.rolsuper
                            AND (pg_catalog.pg_has_role($2, r.oid, 'USAGE')
                                 OR pg_catalog.pg_has_role($2, 'pg_signal_backend', 'USAGE')) AS ours
                       FROM pg_catalog.pg_authid me, pg_catalog.pg_stat_get_activity(NULL) s
                            LEFT JOIN pg_catalog.pg_authid r ON r.oid OPERATOR(pg_catalog.=) s.usesysid
                      WHERE me.oid OPERATOR(pg_catalog.=) $2 AND s.datid OPERATOR(pg_catalog.=) $1
                        AND s.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid()
                        AND s.backend_type OPERATOR(pg_catalog.<>) 'autovacuum worker') a";
        Spi::connect(|client| {
            let row = client.select(query, Some(1), &[oid.into(), user.into()])?.first();
            let number = |column| Ok::<_, Error>(row.get::<i64>(column)?.unwrap_or_default());
            Ok(Connected { workers: number(1)?, others: number(2)?, lasting: number(3)?, prepared: number(4)? })
        })
    })
}

/// Asks the worker to leave once nobody else is in the way, and waits until it is gone. The caller holds the lock.
fn make_way(name: &str, database: &Database, oid: pg_sys::Oid, force: bool) -> Result<()> {
    let began = Instant::now();
    // SAFETY: a process global.
    let me = unsafe { pg_sys::MyProcPid };
    loop {
        let found = connected(oid)?;
        if found.workers == 0 {
            return Ok(());
        }
        let alone = found.prepared == 0 && if force { found.lasting == 0 } else { found.others == 0 };
        if alone {
            database.leave_for.store(me, Ordering::Release);
            database.wake_worker();
            // With FORCE, PostgreSQL ends a worker that does not leave, where the user may.
            if began.elapsed() > if force { PATIENCE } else { FINISHING } {
                return Ok(());
            }
        } else if force || began.elapsed() > PATIENCE {
            // PostgreSQL would say the same, and wait as long once more.
            return if force { Ok(()) } else { Err(in_use(name, &found)) };
        }
        // It leaves the process array a moment after it has detached, and nobody tells.
        let limit = if database.worker_pid.load(Ordering::Acquire) == 0 { 10 } else { 100 };
        database.wait_for_answer_within(Duration::from_millis(limit), || {
            limit > 10 && database.worker_pid.load(Ordering::Acquire) == 0
        });
        pgrx::check_for_interrupts!();
    }
}

fn in_use(name: &str, found: &Connected) -> Error {
    Error::InUse {
        message: format!("database \"{name}\" is being accessed by other users"),
        hint: format!(
            "{} other sessions and {} prepared transactions use it. End them first.",
            found.others, found.prepared
        ),
    }
}

/// Does a statement hold the lock that keeps everybody out of this database?
pub fn is_kept_free(oid: pg_sys::Oid) -> bool {
    let tag = pg_sys::LOCKTAG {
        locktag_field1: 0, // no database's own: an object of the whole server
        locktag_field2: pg_sys::DatabaseRelationId.to_u32(),
        locktag_field3: oid.to_u32(),
        locktag_field4: 0,
        locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    };
    let mut holders = 0;
    // SAFETY: reads the lock table; whoever connects to a database needs this mode. The list is this process's own.
    unsafe {
        let list = pg_sys::GetLockConflicts(&tag, pg_sys::RowExclusiveLock as pg_sys::LOCKMODE, &mut holders);
        pg_sys::pfree(list.cast());
    }
    holders > 0
}
