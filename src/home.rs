//! Where this database's record is at home: which server and which database may add to it.
//!
//! Owns agd.home, the numbers that transactions are recorded under, what a restore may load, and `agd.resume()`.
//! Promises: a record is added to only where agd.home says it is at home, so a copy of it (a dump restored, a database
//! used as a template, an upgraded cluster) is closed until `agd.resume()` found it whole; rows of the record are loaded
//! only into a database that has none of its own, by a superuser, and never again after that; no number of a
//! transaction is ever used twice. A record that was found not to have what was published is closed here, too, until
//! [`crate::incarnation`] opens it again.
//!
//! That the record is open is known to all from shared memory, where [`Held::close`] takes it away. That is done in the commit
//! of the transaction that closes, never before ([`crate::log::reports`]): whoever then asks agd.home waits for the rest of
//! that commit, and so does the worker before it takes its snapshot; a transaction that was already recording asks once
//! more before it commits. So no open transaction keeps the others from writing, whatever it has reported. So nothing that comes later is committed, but what is being
//! committed at that very moment, and what was prepared before. That does no harm: it is recorded whole, waits for
//! integration as everything else that was not integrated, and goes into the next incarnation's logs.
//!
//! agd.home is not dumped. A restored database therefore has a home that nobody lives in yet, whatever was loaded.
//!
//! A transaction is recorded under its full id plus a base. The base is 0 until a record moves to a server whose
//! transaction ids are behind: then `agd.resume()` raises it. All of agd's tables hold recorded numbers, the snapshot of
//! the sequencer included; only this module and [`crate::log::sequencer`] ever see the server's own.
#![allow(unsafe_code)] // reads agd.home without SQL, takes locks, asks for the server's identity

use crate::catalog::{Columns, Relation, catalog, has_rows, scan, text};
use crate::error::{self, Error, OrRaise, Result};
use crate::event::{self, Record};
use crate::fmgr::definer_function;
use crate::guard::baseline::record_baseline;
use crate::guard::define::uuid_of;
use crate::guard::relation::qualified_name;
use crate::log::{storage, verify};
use crate::query::{self, At};
use crate::shmem::{self, Database};
use crate::tenant::role;
use crate::{backend, fleet, identity, settings};
use agd_core::{Checkpoint, name};
use pgrx::prelude::*;
use std::cell::Cell;
use std::sync::atomic::Ordering;

/// Recorded numbers stay below this: PostgreSQL's pg_snapshot holds no number of 2^63 or more.
const MAX_BASE: u64 = 1 << 62;

/// The one row of agd.home.
struct Home {
    /// The platform log's origin, chosen at CREATE EXTENSION; None: the default of the database that records first.
    log_name: Option<String>,
    /// Which server; None: nothing was recorded here yet.
    system_identifier: Option<String>,
    /// Which of its databases.
    database: pg_sys::Oid,
    /// What is added to a transaction's id.
    base: u64,
    /// What was published and is not in the record, as a checkpoint; None: the record is open.
    diverged: Option<String>,
    /// This very transaction wrote the row.
    uncommitted: bool,
}

impl Home {
    fn is_here(&self) -> bool {
        self.system_identifier.as_deref() == Some(&system_identifier()) && self.database == this_database()
    }

    /// There is a record, and it is not at home here.
    fn is_elsewhere(&self) -> Result<bool> {
        Ok(!self.is_here() && (self.system_identifier.is_some() || holds_a_record()?))
    }

    /// Why nothing is added to the record here, if so it is.
    fn problem(&self) -> Option<Error> {
        if !self.is_here() {
            return Some(not_resumed());
        }
        self.diverged.as_deref().filter(|_| !RESUMING.get()).map(closed)
    }
}

thread_local! {
    /// This transaction resumes a record, closed or not: that it says so is recorded.
    static RESUMING: Cell<bool> = const { Cell::new(false) };
}

/// The transaction is over.
pub fn transaction_ended() {
    RESUMING.set(false);
}

fn system_identifier() -> String {
    // SAFETY: fixed at initdb.
    unsafe { pg_sys::GetSystemIdentifier() }.to_string()
}

fn this_database() -> pg_sys::Oid {
    // SAFETY: a plain global of this process.
    unsafe { pg_sys::MyDatabaseId }
}

/// Reads agd.home without SQL: any writer may need it. The latest committed state, and what this transaction did itself.
fn read() -> Result<Home> {
    let relation = Relation::open(catalog()?.home, pg_sys::AccessShareLock);
    let mut columns = Columns::default();
    let mut found = None;
    scan(&relation, None, std::ptr::null_mut(), &mut [], |tuple| {
        columns.deform(tuple, relation.descriptor());
        // SAFETY: the column types of agd.home (sql/45_home.sql); a tuple has a header.
        unsafe {
            found = Some(Home {
                log_name: columns.get(1).map(|value| text(value).map(str::to_owned)).transpose()?,
                system_identifier: columns.get(2).map(|value| text(value).map(str::to_owned)).transpose()?,
                database: columns.get(3).map_or(pg_sys::InvalidOid, |oid| pg_sys::Oid::from(oid.value() as u32)),
                base: columns.get(5).map_or(0, |value| value.value() as u64),
                diverged: columns.get(6).map(|value| text(value).map(str::to_owned)).transpose()?,
                uncommitted: pg_sys::TransactionIdIsCurrentTransactionId((*(*tuple).t_data).t_choice.t_heap.t_xmin),
            });
        }
        Ok(())
    })?;
    found.ok_or_else(|| Error::Corrupted {
        message: "the row of agd.home is gone".into(),
        hint: "It was deleted outside of agd. Keep this database as it is, and restore it from a backup.".into(),
    })
}

/// A loader and the worker hold RowExclusiveLock to their transaction's end, whoever decides that the record is at home
/// here, closed or open ShareRowExclusiveLock: neither acts on what the other is about to change.
fn lock(mode: u32) -> Result<()> {
    let home = catalog()?.home;
    // SAFETY: a lock on a table that the extension has; PostgreSQL lets go of it when the transaction ends.
    unsafe { pg_sys::LockRelationOid(home, mode as pg_sys::LOCKMODE) };
    Ok(())
}

/// Lets go of a lock that turned out not to be needed.
fn unlock(mode: u32) -> Result<()> {
    let home = catalog()?.home;
    // SAFETY: taken by lock() in this transaction.
    unsafe { pg_sys::UnlockRelationOid(home, mode as pg_sys::LOCKMODE) };
    Ok(())
}

/// Is anything recorded, whoever recorded it where?
fn holds_a_record() -> Result<bool> {
    let catalog = catalog()?;
    for table in [catalog.sequencer, catalog.log, catalog.transaction, catalog.event] {
        if has_rows(table)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn not_resumed() -> Error {
    Error::WrongState {
        message: "the record in this database comes from another server or database, and was not resumed".into(),
        hint: "When the restore or the upgrade is complete: SELECT agd.resume(). It checks that the record is whole, \
               and goes on with it here. Until then nothing is written to guarded tables."
            .into(),
    }
}

/// AG003: this was published, and is not part of the record.
pub fn closed(diverged: &str) -> Error {
    let published = Checkpoint::parse(diverged).map_or_else(
        |_| "a checkpoint".into(),
        |published| format!("the checkpoint of {} at size {}", published.origin, published.size),
    );
    Error::NotAContinuation {
        message: format!("the record is closed: {published} was published, and is not part of it"),
        hint: "Published history was lost. Restore a backup that has it; or keep what is left and go on in new logs, which \
               say what was lost: SELECT agd.new_incarnation('why')."
            .into(),
    }
}

// ------------------------------------------------------------------------------------- the numbers of transactions

/// The number that a transaction of this server is recorded under. 55000 where the record is not at home.
///
/// The first event of a database makes its home; until that is committed, a rollback to a savepoint may undo it, and the
/// number does not stand for good (false).
pub fn recorded_id(full_xact_id: u64) -> Result<(u64, bool)> {
    match shmem::this_database_if_any().and_then(Database::xact_id_base) {
        Some(base) => Ok((base + full_xact_id, true)),
        None => Ok((settled_base()? + full_xact_id, false)),
    }
}

/// Once per database and start of the server, and for every attempt while the record is not open here.
#[cold]
fn settled_base() -> Result<u64> {
    // What this transaction wrote itself, it wrote under a lock that it still holds; that may be asked for each event.
    let home = read()?;
    if home.uncommitted && home.system_identifier.is_some() {
        return home.problem().map_or(Ok(home.base), Err);
    }
    // Whoever closes the record is waited for, and waits: what is kept here stays true until he takes it away.
    lock(pg_sys::RowExclusiveLock)?;
    let mut home = read()?;
    if home.system_identifier.is_none() {
        unlock(pg_sys::RowExclusiveLock)?;
        home = settle()?;
        lock(pg_sys::RowExclusiveLock)?;
    }
    if let Some(problem) = home.problem() {
        return Err(problem);
    }
    // What this transaction wrote may be rolled back: nobody else may see it.
    if !home.uncommitted && home.diverged.is_none() {
        shmem::this_database()?.keep_xact_id_base(home.base);
    }
    unlock(pg_sys::RowExclusiveLock)?;
    Ok(home.base)
}

/// A transaction that has recorded something is about to commit. AG003 when the record was closed since.
pub fn check_at_commit() -> Result<()> {
    if shmem::this_database_if_any().and_then(Database::xact_id_base).is_none() {
        settled_base()?;
    }
    Ok(())
}

/// Makes this database the record's home: its first event is about to be recorded. That is always done by one of agd's
/// own functions, with the rights of agd's owner.
fn settle() -> Result<Home> {
    lock(pg_sys::ShareRowExclusiveLock)?;
    let home = read()?;
    if home.system_identifier.is_some() {
        // Somebody else was faster. The worker need not wait for this transaction.
        unlock(pg_sys::ShareRowExclusiveLock)?;
        return read();
    }
    if holds_a_record()? {
        return Err(not_resumed());
    }
    let log_name = match home.log_name {
        Some(chosen) => chosen,
        None => {
            let database = query::one::<String>("SELECT pg_catalog.current_database()::text", &[])?.unwrap_or_default();
            // SAFETY: the system identifier is fixed at initdb.
            name::default_log_name(unsafe { pg_sys::GetSystemIdentifier() }, &database)
        }
    };
    storage::create_log(&log_name, None, 1, None)?;
    storage::writing(|| {
        // Everything from this transaction on: its own number is not in its own snapshot's list, so the list cannot be
        // used.
        Spi::run_with_args(
            "INSERT INTO agd.sequencer (integrated, last_stamp, system_identifier)
             SELECT (x || ':' || x || ':')::pg_catalog.pg_snapshot, pg_catalog.clock_timestamp(), $1
               FROM pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot()) AS x",
            &[system_identifier().into()],
        )
    })?;
    move_in(&log_name, 0)?;
    // What somebody put into agd's own tables before there was a record is told now.
    for (guard_id, oid) in own_guards()? {
        record_baseline(&qualified_name(oid), oid, uuid_of(&guard_id)?, fleet::table(oid).flatten())?;
    }
    read()
}

/// The guards of agd's own tables: id and table.
fn own_guards() -> Result<Vec<(String, pg_sys::Oid)>> {
    Ok(Spi::connect(|client| {
        client
            .select(
                "SELECT g.guard_id::text, g.relation::oid
                   FROM agd.every_guard g JOIN pg_catalog.pg_class c ON c.oid = g.relation
                  WHERE c.relnamespace = 'agd'::regnamespace ORDER BY g.relation::oid",
                None,
                &[],
            )?
            .map(|row| {
                Ok::<_, pgrx::spi::Error>((
                    row.get::<String>(1)?.unwrap_or_default(),
                    row.get::<pg_sys::Oid>(2)?.unwrap_or(pg_sys::InvalidOid),
                ))
            })
            .collect::<std::result::Result<Vec<_>, _>>()
    })?)
}

/// Makes this database the record's home if nothing was recorded here yet: agd's own functions do so before they write
/// agd's own tables, so that no first row of theirs passes for one that a restore loads. 55000 where a record is that was
/// not resumed.
pub fn ensure() -> Result<()> {
    recorded_id(backend::transaction_id()).map(drop)
}

fn move_in(log_name: &str, base: u64) -> Result<()> {
    storage::writing(|| {
        Spi::run_with_args(
            "UPDATE agd.home SET log_name = $1, system_identifier = $2, database = $3, timeline = $4, xact_id_base = $5",
            &[
                log_name.into(),
                system_identifier().into(),
                this_database().into(),
                timeline().into(),
                base.cast_signed().into(),
            ],
        )
    })?;
    Ok(())
}

/// This server and this database, as receipts name them.
pub fn identity() -> String {
    format!("{}/{}", system_identifier(), this_database().to_u32())
}

/// 55000 when the record is not at home here.
pub fn must_be_here() -> Result<()> {
    if read()?.is_here() { Ok(()) } else { Err(not_resumed()) }
}

/// The timeline that this server writes: another one after each promotion and each recovery to a point in time.
fn timeline() -> i32 {
    // SAFETY: asked only where WAL can be written.
    (unsafe { pg_sys::GetWALInsertionTimeLine() }).cast_signed()
}

/// The number under which the present transaction records, if it has an id.
pub fn present_id() -> Result<Option<u64>> {
    let home = read()?;
    Ok(backend::transaction_id_if_any().filter(|_| home.is_here()).map(|id| home.base + id))
}

/// The first number, as transactions are recorded here, that the active snapshot cannot see; None: the record is not at
/// home here.
pub fn snapshot_end() -> Result<Option<u64>> {
    let home = read()?;
    let end = query::rows(At::Active, "SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())")?;
    let end = end.first().and_then(|row| row.first()?.as_deref()?.parse::<u64>().ok());
    Ok(end.filter(|_| home.is_here()).map(|end| home.base + end))
}

/// This database's name for those who issue tokens: that of its platform log, whatever its incarnation. 55000 where the
/// record is not at home: what is good for a database is not good for a copy of it.
pub fn audience() -> Result<String> {
    let home = read()?;
    if !home.is_here() {
        return Err(not_resumed());
    }
    let log_name = home.log_name.ok_or_else(|| Error::Internal("agd: a record without a name".into()))?;
    Ok(name::split_incarnation(&log_name).0.to_owned())
}

// ------------------------------------------------------------------------------------------------- for the worker

/// What the sequencer must know of the home, as of its snapshot.
pub struct Residence {
    /// What is added to a transaction's id.
    pub base: u64,
    /// The timeline that the record was last written on, when it is another one now.
    pub earlier_timeline: Option<i32>,
}

/// Before the worker takes the snapshot of a pass: keeps the record open until its transaction ends, where it is open.
pub fn hold() -> Result<()> {
    // Not while it is being made a home, which may take as long as somebody's transaction: there is nothing to do yet.
    if read()?.problem().is_none() {
        lock(pg_sys::RowExclusiveLock)?;
    }
    Ok(())
}

/// None: the record is not at home here, or closed, or there is none yet. There is nothing to integrate then.
pub fn residence() -> Result<Option<Residence>> {
    let found = query::kept(
        "SELECT h.xact_id_base, h.timeline
           FROM agd.home h WHERE h.system_identifier = $1 AND h.database = $2 AND h.diverged IS NULL",
        &[system_identifier().into(), this_database().into()],
        |mut rows| rows.next().map(|row| Ok((row.get::<i64>(1)?, row.get::<i32>(2)?))).transpose(),
    )?;
    Ok(found.map(|(base, earlier)| Residence {
        base: base.unwrap_or_default().cast_unsigned(),
        earlier_timeline: earlier.filter(|earlier| *earlier != timeline()),
    }))
}

/// Remembers the timeline that the server writes now. Returns what the log says about it.
pub fn change_timeline(earlier: i32) -> Result<String> {
    let timeline = timeline();
    storage::writing(|| Spi::run_with_args("UPDATE agd.home SET timeline = $1", &[timeline.into()]))?;
    Ok(format!("timeline={timeline} previous={earlier}"))
}

/// Is the record at home here? If not, nothing was recorded yet, or a restore is under way, however far it has come: with
/// several sessions it brings guards, triggers and the record in any order.
pub fn is_here() -> Result<bool> {
    Ok(read()?.is_here())
}

/// Is there a record that is not at home here?
pub fn is_elsewhere() -> Result<bool> {
    read()?.is_elsewhere()
}

/// 55000 when there is a record that is not at home here, AG003 when it is closed.
pub fn check() -> Result<()> {
    let home = read()?;
    if home.is_elsewhere()? {
        return Err(not_resumed());
    }
    home.diverged.as_deref().map_or(Ok(()), |diverged| Err(closed(diverged)))
}

/// How many tables are guarded here, and in a few words what the record holds. A copy whose record was not resumed guards
/// nothing of its own.
pub fn summary() -> Result<(u64, String)> {
    let found = query::kept(
        "SELECT CASE WHEN h.system_identifier = $1 AND h.database = $2
                     THEN (SELECT pg_catalog.count(*) FROM agd.guarded_table) ELSE 0 END,
                l.origin, c.tree_size, pg_catalog.encode(c.root_hash, 'base64')
           FROM agd.home h
                LEFT JOIN LATERAL (SELECT n.log_id, n.origin FROM agd.log n
                                    WHERE n.tenant IS NULL ORDER BY n.incarnation DESC LIMIT 1) l ON true
                LEFT JOIN LATERAL (SELECT k.tree_size, k.root_hash FROM agd.checkpoint k
                                    WHERE k.log_id = l.log_id ORDER BY k.tree_size DESC LIMIT 1) c ON true",
        &[system_identifier().into(), this_database().into()],
        |mut rows| {
            let columns = |row: pgrx::spi::SpiHeapTupleData<'_>| {
                Ok((row.get::<i64>(1)?, row.get::<String>(2)?, row.get::<i64>(3)?, row.get::<String>(4)?))
            };
            rows.next().map(columns).transpose()
        },
    )?;
    let Some((guards, origin, size, root)) = found else { return Ok((0, String::new())) };
    let text = match (origin, size, root) {
        (None, ..) => "nothing was recorded".into(),
        (Some(origin), Some(size), Some(root)) => {
            format!("origin {origin}, newest checkpoint of the platform log at size {size} with root {root}")
        }
        (Some(origin), ..) => format!("origin {origin}, not anchored yet"),
    };
    Ok((guards.unwrap_or_default().cast_unsigned(), text))
}

// ------------------------------------------------------------------------------------------------ closing and opening

/// The record, and nobody else changes what agd.home says of it until this transaction ends.
pub struct Held(Home);

/// Waits for whoever adds to the record's logs or changes its home. 55000 when the record is not at home here.
pub fn hold_alone() -> Result<Held> {
    lock(pg_sys::ShareRowExclusiveLock)?;
    let home = read()?;
    if home.is_here() { Ok(Held(home)) } else { Err(not_resumed()) }
}

impl Held {
    /// What was published and is not in the record; None: the record is open.
    pub fn diverged(&self) -> Result<Option<Checkpoint>> {
        let parse = |diverged: &String| {
            Checkpoint::parse(diverged).map_err(|_| Error::Corrupted {
                message: "agd.home says of the record that it is closed, and not why".into(),
                hint: "agd.home was changed outside of agd. agd publish can report what was published once more, when \
                       the column diverged is empty."
                    .into(),
            })
        };
        self.0.diverged.as_ref().map(parse).transpose()
    }

    /// What is added to a transaction's id.
    pub fn base(&self) -> u64 {
        self.0.base
    }

    /// Closes the record: this was published, and is not part of it.
    pub fn close(&self, published: &Checkpoint) -> Result<()> {
        // Who does not find it there asks agd.home, and waits for this transaction.
        shmem::this_database()?.forget_xact_id_base();
        storage::writing(|| {
            Spi::run_with_args(
                "UPDATE agd.home SET diverged = $1, diverged_at = pg_catalog.clock_timestamp()",
                &[published.to_string().into()],
            )
        })?;
        log!("agd: {}", closed(&published.to_string()).for_the_record().1);
        Ok(())
    }

    /// Opens it again, under another name.
    pub fn open(&self, log_name: &str) -> Result<()> {
        storage::writing(|| {
            Spi::run_with_args(
                "UPDATE agd.home SET log_name = $1, diverged = NULL, diverged_at = NULL",
                &[log_name.into()],
            )
        })?;
        Ok(())
    }
}

// ---------------------------------------------------------------------------------------------------- for a restore

/// May rows of the record be inserted as they are? A superuser's restore may, into a database that has recorded nothing
/// of its own and was not resumed. From a first true to the end of the transaction nobody else can change that.
pub fn may_load() -> Result<bool> {
    // Once it is known that the record is at home here, that stays so.
    if shmem::this_database()?.xact_id_base().is_some() {
        return Ok(false);
    }
    if !identity::both(identity::is_superuser) {
        return Ok(false);
    }
    lock(pg_sys::RowExclusiveLock)?;
    Ok(read()?.system_identifier.is_none())
}

/// `agd.prepare_home()`: keeps the platform log's name, where agd.log_name chooses one; part of CREATE EXTENSION.
#[pg_extern(sql = false)]
fn prepare_home() {
    prepare().or_raise();
}

fn prepare() -> Result<()> {
    let log_name = settings::log_name();
    if let Some(log_name) = &log_name {
        name::validate_log_name(log_name).map_err(|problem| Error::BadArgument {
            message: format!("\"{log_name}\" cannot be a log's name: {problem}"),
            hint:
                "SET agd.log_name = 'example.com/orders' before CREATE EXTENSION agd; characters a-z, 0-9, '.', '/', \
                   '-'."
                    .into(),
        })?;
    }
    storage::writing(|| {
        Spi::run_with_args("INSERT INTO agd.home (log_name) VALUES ($1)", &[log_name.into()]).map_err(Error::from)
    })
}

definer_function!(agd_resume, pg_finfo_agd_resume, |_call| resume().map(|()| pg_sys::Datum::from(0)));

/// `agd.resume()`: goes on with a record that comes from elsewhere, once it is found whole.
fn resume() -> Result<()> {
    error::forbid_read_only(c"agd.resume()");
    let database = shmem::this_database()?;
    lock(pg_sys::ShareRowExclusiveLock)?;
    let home = read()?;
    if home.is_here() || home.system_identifier.is_none() && !holds_a_record()? {
        // The worker need not wait for this transaction.
        unlock(pg_sys::ShareRowExclusiveLock)?;
        notice!("the record of this database is at home here: there is nothing to resume");
        return Ok(());
    }
    // The statement's own snapshot may be older than the load that the lock waited for.
    // SAFETY: popped below; on an error PostgreSQL drops it.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot()) };
    let loaded = home.system_identifier.is_none();
    let log_name = check_record(loaded)?;
    let base = next_base(home.base)?;
    // SAFETY: pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };

    RESUMING.set(true);
    let previous = query::one::<String>("SELECT system_identifier FROM agd.sequencer", &[])?.unwrap_or_default();
    move_in(&log_name, base)?;
    storage::writing(|| {
        Spi::run_with_args("UPDATE agd.sequencer SET system_identifier = $1", &[system_identifier().into()])
    })?;
    // The clock's floor may have been restored before these rows were loaded.
    database.clock_restored.store(false, Ordering::Release);
    event::insert(&Record {
        body: Some(&format!("system_identifier={} previous={previous} xact_id_base={base}", system_identifier())),
        ..Record::of("RESUME")
    })?;
    role::settle_after_resume()
}

/// The record is whole, or an error says what is missing. Returns the platform log's origin.
fn check_record(loaded: bool) -> Result<String> {
    let incomplete = |what: String, hint: &str| Error::WrongState { message: what, hint: hint.into() };
    let platform = storage::newest_platform_log()?;
    let (Some(platform), true) = (platform, has_rows(catalog()?.sequencer)?) else {
        return Err(incomplete(
            "the restore is not complete: agd.log or agd.sequencer has no row".into(),
            "Restore the whole database, agd's tables included, into a new one; then call agd.resume().",
        ));
    };
    let open = query::one::<String>(
        "SELECT pg_catalog.string_agg(pg_catalog.format('%s (%s)', c.relation, c.detail), ', ')
           FROM agd.coverage() c WHERE c.guarded AND NOT c.intact",
        &[],
    )?;
    if let Some(open) = open {
        return Err(incomplete(
            format!("guards are not intact: {open}"),
            "Complete the restore (pg_restore --section=post-data brings triggers and policies), then call agd.resume() \
             again. SELECT * FROM agd.coverage() shows each table.",
        ));
    }
    let strange = query::one::<String>(
        "SELECT pg_catalog.string_agg(DISTINCT tg.tgrelid::regclass::text, ', ')
           FROM pg_catalog.pg_trigger tg
          WHERE tg.tgfoid = 'agd.record_write()'::regprocedure
            AND NOT EXISTS (SELECT FROM agd.every_guard g
                             WHERE pg_catalog.encode(tg.tgargs, 'escape') = g.guard_id::text || '\\000')",
        &[],
    )?;
    if let Some(strange) = strange {
        return Err(incomplete(
            format!("agd.guarded_table does not know the guards of {strange}"),
            "The rows of agd.guarded_table were not all restored: restore the whole database into a new one; then call \
             agd.resume().",
        ));
    }
    let unknown = query::one::<String>(
        "SELECT pg_catalog.string_agg(DISTINCT w.tenant, ', ')
           FROM (SELECT l.tenant FROM agd.log l UNION ALL SELECT m.tenant FROM agd.role_map m
                 UNION ALL SELECT k.tenant FROM agd.tenant_key k
                 UNION ALL SELECT f.tenant FROM agd.tenant_agent_fleet f) w
          WHERE w.tenant IS NOT NULL AND NOT EXISTS (SELECT FROM agd.tenant t WHERE t.tenant = w.tenant)",
        &[],
    )?;
    if let Some(unknown) = unknown {
        return Err(incomplete(
            format!("agd.tenant does not know {unknown}"),
            "The rows of agd.tenant were not all restored: restore the whole database into a new one; then call \
             agd.resume().",
        ));
    }
    role::check_before_resume()?;
    // Loaded rows are believed from the first on; after an upgrade agd.verified tells how far they were verified before.
    if let Some(problem) = verify::first_problem(loaded)? {
        return Err(Error::NotAContinuation {
            message: format!("the record is not whole: {problem}"),
            hint: "Something that was anchored is missing or was changed. Restore a backup that has it; SELECT * FROM \
                   agd.verify(full_scan => true) tells more, and agd verify STORE what was published."
                .into(),
        });
    }
    Ok(platform.origin)
}

/// The base from now on: every transaction that runs now or later gets a number beyond all that were recorded. It is left
/// alone where it gives that already, as after pg_upgrade, which carries the transaction ids along.
fn next_base(present: u64) -> Result<u64> {
    let newest = query::one::<i64>(
        "SELECT GREATEST(pg_catalog.pg_snapshot_xmax(s.integrated)::text::bigint,
                         (SELECT e.xact_id::text::bigint FROM agd.event e ORDER BY e.xact_id DESC LIMIT 1),
                         (SELECT t.xact_id::text::bigint FROM agd.transaction t ORDER BY t.xact_id DESC LIMIT 1))
           FROM agd.sequencer s",
        &[],
    )?
    .unwrap_or_default()
    .cast_unsigned();
    // Not this transaction's own id: an older one that is still running may write as soon as this one has committed.
    let oldest_running =
        query::one::<i64>("SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text::bigint", &[])?
            .unwrap_or_default()
            .cast_unsigned();
    let base = present.max((newest + 1).saturating_sub(oldest_running));
    if base >= MAX_BASE {
        return Err(Error::LimitExceeded {
            message: format!("no numbers are left for transactions: {newest} was recorded"),
            hint: "No server reaches such a number by itself: the record was changed outside of agd.".into(),
        });
    }
    Ok(base)
}
