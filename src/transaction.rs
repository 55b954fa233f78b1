//! The present transaction as agd sees it: what it recorded, who acts and why, and the record that closes it.
//!
//! Owns the backend-local state between the first audited write and the end of the transaction. Promises: an audited
//! transaction that commits or is prepared has exactly one row in agd.transaction, with its commit stamp and the number
//! of its events; when that row cannot be written nothing commits; nothing survives the transaction. Never does anything
//! that can fail once the commit has happened.
#![allow(unsafe_code)] // transaction callbacks and the backend's identity are raw PostgreSQL calls

use crate::error::{self, Error, OrRaise, Result};
use crate::fleet::acting;
use crate::guard::{partition, touched};
use crate::log::reports;
use crate::{
    backend, catalog, ceiling, denied, event, fleet, home, identity, memory, nesting, replication, shmem, stamp, tenant,
};
use agd_core::intent::{Intent, Intents, NoMemory, Operation, Void};
use pgrx::prelude::*;
use std::cell::RefCell;

/// How a transaction came by its tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// No tenant is involved.
    None,
    /// The authenticated role is mapped to the tenant.
    Role,
    /// The transaction presented a token that a tenant's key signed.
    Token,
    /// A role that is trusted with it said which tenant.
    Asserted,
    /// A superuser or owner wrote tenant rows without being bound.
    Bypass,
    /// The transaction came from another server by logical replication.
    Replication,
}

impl Binding {
    fn name(self) -> &'static str {
        match self {
            Binding::None => "none",
            Binding::Role => "role",
            Binding::Token => "token",
            Binding::Asserted => "asserted",
            Binding::Bypass => "bypass",
            Binding::Replication => "replication",
        }
    }
}

/// Events of one subtransaction that stand.
struct Live {
    subtransaction: u32,
    events: i64,
}

/// All causes that a transaction may still fall back to.
const MAX_CAUSES_BYTES: usize = 1 << 20;

struct Cause {
    subtransaction: u32,
    text: String,
}

/// Who acts, as of the first event of the transaction.
#[derive(Clone)]
struct Identity {
    session_user: pg_sys::Oid,
    session_user_name: String,
    /// Who logged in, where SET SESSION AUTHORIZATION made the session another's.
    logged_in: Option<String>,
    /// The outer user and the current one.
    role: (pg_sys::Oid, pg_sys::Oid),
    role_name: String,
}

#[derive(Default)]
struct State {
    next_n: i32,
    live: Vec<Live>,
    intents: Intents,
    voided: u64,
    causes: Vec<Cause>,
    identity: Option<Identity>,
    bypass: bool,
    /// The nesting level at which each open subtransaction began.
    levels: Vec<(u32, u32)>,
    /// The transaction record is written: no event may follow.
    sealed: bool,
    /// What the record said, for the shared counters after the commit.
    recorded: i64,
    created_extension: bool,
    /// A tenant's log is closed: the worker anchors it at once.
    log_closed: bool,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::new(State::default());
}

fn with<T>(body: impl FnOnce(&mut State) -> T) -> T {
    STATE.with_borrow_mut(body)
}

/// Registers the transaction callbacks. Called once from `_PG_init`.
pub fn init() {
    // SAFETY: the callbacks are static functions; PostgreSQL keeps the pointers for the life of the process.
    unsafe {
        pg_sys::RegisterXactCallback(Some(transaction_event), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(subtransaction_event), std::ptr::null_mut());
    }
}

/// Takes the next number of an event in this transaction, and who acts where that is another than at the first event (SET
/// ROLE in between, or somebody's function). 54000 beyond 2^31 - 1; 55000 once the record is sealed, or for a second session user.
pub fn next_event() -> Result<(i32, Option<String>)> {
    let (session_user, role) = (backend::session_user(), identity::acting());
    with(|state| {
        if state.sealed {
            return Err(Error::WrongState {
                message: "a guarded table was written after the transaction's record was closed".into(),
                hint: "Another extension writes in its commit callback. Let it write earlier, or unguard that table."
                    .into(),
            });
        }
        let identity = state.identity.get_or_insert_with(|| Identity {
            session_user,
            session_user_name: user_name(session_user),
            // SAFETY: reads a user id.
            logged_in: Some(unsafe { pg_sys::GetAuthenticatedUserId() })
                .filter(|&user| user != session_user && user != pg_sys::InvalidOid)
                .map(user_name),
            role,
            role_name: names(role),
        });
        if identity.session_user != session_user {
            return Err(Error::WrongState {
                message: format!(
                    "this transaction has recorded events of the session user \"{}\"",
                    identity.session_user_name
                ),
                hint: "A transaction has one session user. Commit before SET SESSION AUTHORIZATION.".into(),
            });
        }
        let other_role = (identity.role != role).then(|| names(role));
        let n = state.next_n;
        state.next_n = n.checked_add(1).ok_or_else(|| Error::LimitExceeded {
            message: "one transaction cannot record more than 2147483647 events".into(),
            hint: "Split the work into several transactions.".into(),
        })?;
        Ok((n, other_role))
    })
}

/// An event was inserted: it counts towards this transaction.
pub fn event_recorded() {
    let current = backend::subtransaction();
    with(|state| state.count(current, 1));
}

impl State {
    fn count(&mut self, subtransaction: u32, events: i64) {
        match self.live.last_mut() {
            Some(live) if live.subtransaction == subtransaction => live.events += events,
            _ => self.live.push(Live { subtransaction, events }),
        }
    }

    fn set_cause(&mut self, subtransaction: u32, text: String) {
        // What was set in it before is replaced.
        self.causes.retain(|cause| cause.subtransaction < subtransaction);
        self.causes.push(Cause { subtransaction, text });
    }

    /// A subtransaction ended well: what it did is its parent's, so that there are never more counts and causes than
    /// subtransactions are open.
    fn merge(&mut self, subtransaction: u32, parent: u32) {
        self.levels.retain(|(open, _)| *open < subtransaction);
        let mut events = None;
        while let Some(inner) = self.live.pop_if(|live| live.subtransaction >= subtransaction) {
            events = Some(events.unwrap_or(0) + inner.events);
        }
        if let Some(events) = events {
            self.count(parent, events);
        }
        if let Some(cause) = self.causes.pop_if(|cause| cause.subtransaction >= subtransaction) {
            self.set_cause(parent, cause.text);
        }
    }
}

/// Remembers that a row was recorded and must be confirmed.
///
/// 53200 where there is no memory: 16 bytes for each row that a statement writes, until it has been written.
pub fn expect_write(relation: pg_sys::Oid, operation: Operation, fingerprint: u64, place: (u32, u16)) -> Result<()> {
    let (level, current) = (nesting::level(), backend::subtransaction());
    let intent = Intent { fingerprint, block: place.0, offset: place.1 };
    remembered(|state| state.intents.add(level, relation.to_u32(), operation, current, intent))
}

fn remembered<T>(body: impl FnOnce(&mut State) -> std::result::Result<T, NoMemory>) -> Result<T> {
    memory::fallible(|| with(body)).map_err(|NoMemory| {
        Error::OutOfMemory("agd: no memory for the rows that this statement has recorded and not written yet".into())
    })
}

/// The row was written, and it is the one recorded first of those that wait. False: look with [`confirm_write`].
pub fn confirm_first(relation: pg_sys::Oid, operation: Operation, fingerprint: u64) -> bool {
    with(|state| state.intents.confirm_first(nesting::level(), relation.to_u32(), operation, fingerprint))
}

/// The row was written; these are the fingerprints it may have been recorded by. False: what was written is not what was
/// recorded.
pub fn confirm_write(relation: pg_sys::Oid, operation: Operation, fingerprints: [u64; 2]) -> Result<bool> {
    let mut voids = Vec::new();
    let confirmed = remembered(|state| {
        state.intents.confirm(nesting::level(), relation.to_u32(), operation, fingerprints, &mut voids)
    })?;
    withdraw(&voids);
    Ok(confirmed)
}

/// Did this transaction record anything that stands?
pub fn has_events() -> bool {
    with(|state| state.live.iter().any(|live| live.events > 0))
}

/// Has the query that ends left anything to be done? (The cheap question at the end of every query.)
pub fn must_end_query() -> bool {
    with(|state| !state.intents.is_empty())
}

/// A query or COPY of this nesting level ended.
pub fn query_ended(level: u32, triggers_belong_to_caller: bool) -> Result<()> {
    if triggers_belong_to_caller {
        return remembered(|state| state.intents.hand_up(level));
    }
    let mut voids = Vec::new();
    remembered(|state| state.intents.end_query(level, &mut voids))?;
    withdraw(&voids);
    Ok(())
}

fn withdraw(voids: &[Void]) {
    if voids.is_empty() {
        return;
    }
    event::delete(voids);
    with(|state| {
        state.voided += voids.len() as u64;
        for void in voids {
            // Where that subtransaction has ended, the one around it counts.
            if let Some(live) = state.live.iter_mut().rev().find(|live| live.subtransaction <= void.subtransaction) {
                live.events -= 1;
            }
        }
    });
}

/// A cause was set (the cheap question on the hot path).
pub fn has_cause() -> bool {
    with(|state| !state.causes.is_empty())
}

/// Sets the cause of this transaction. One transaction has one cause: another one after events were recorded under the
/// first is refused (55000).
fn keep_cause(text: String) -> Result<()> {
    let current = backend::subtransaction();
    with(|state| {
        if let Some(present) = state.causes.last()
            && present.text != text
            && state.live.iter().any(|live| live.events > 0)
        {
            return Err(Error::WrongState {
                message: "this transaction has recorded events under another cause".into(),
                hint: "Commit first: a transaction has one cause.".into(),
            });
        }
        let kept: usize = state.causes.iter().map(|cause| cause.text.len()).sum();
        if kept + text.len() > MAX_CAUSES_BYTES {
            return Err(Error::LimitExceeded {
                message: format!(
                    "the causes of this transaction's open savepoints have more than {MAX_CAUSES_BYTES} bytes"
                ),
                hint: "Set the cause once, before the savepoints: a transaction has one cause.".into(),
            });
        }
        state.set_cause(current, text);
        Ok(())
    })
}

/// A superuser or owner wrote a tenant's row without being bound to the tenant.
pub fn note_bypass() {
    with(|state| state.bypass = true);
}

/// A LOG.CLOSE event was recorded: the worker takes it up as soon as it is committed.
pub fn note_log_closed() {
    with(|state| state.log_closed = true);
}

/// CREATE EXTENSION agd ran in this transaction: the launcher looks for new work when it commits.
pub fn note_extension_created() {
    with(|state| state.created_extension = true);
}

/// `agd.set_cause(cause)`
#[pg_extern(sql = false)]
fn set_cause(cause: Option<&str>) {
    let set = || -> Result<()> {
        identity::must_be_somebody("agd.set_cause()")?;
        let cause = cause.map(str::trim).filter(|cause| !cause.is_empty()).ok_or_else(|| Error::BadArgument {
            message: "a cause cannot be empty".into(),
            hint: "Say why the change is made: SELECT agd.set_cause('ticket 4711: wrong address').".into(),
        })?;
        if cause.len() > event::MAX_CAUSE_BYTES {
            return Err(Error::BadArgument {
                message: format!("a cause of {} bytes is too long", cause.len()),
                hint: format!("At most {} bytes. Name the document instead of quoting it.", event::MAX_CAUSE_BYTES),
            });
        }
        keep_cause(cause.to_owned())
    };
    set().or_raise();
}

/// A role's name.
pub fn user_name(oid: pg_sys::Oid) -> String {
    // SAFETY: GetUserNameFromId returns a palloc'd C string, or NULL with noerr for a role that was dropped meanwhile.
    unsafe {
        let name = pg_sys::GetUserNameFromId(oid, true);
        if name.is_null() {
            format!("(dropped role {})", oid.to_u32())
        } else {
            std::ffi::CStr::from_ptr(name).to_string_lossy().into_owned()
        }
    }
}

/// The name of the role that authenticated this session (or SET SESSION AUTHORIZATION chose).
pub fn session_user_name() -> String {
    user_name(backend::session_user())
}

/// The name of the role that acts: the session user, or what SET ROLE chose. Within a SECURITY DEFINER function, and in what
/// else runs as somebody else: `app as owner`.
pub fn role_name() -> String {
    names(identity::acting())
}

/// One name as it is, or both, quoted where SQL would: what reads like two names is two names.
fn names((outer, current): (pg_sys::Oid, pg_sys::Oid)) -> String {
    const AS: &str = " as ";
    let name = user_name(outer);
    if current == outer {
        return if name.contains(AS) { quoted(&name) } else { name };
    }
    format!("{}{AS}{}", quoted(&name), quoted(&user_name(current)))
}

fn quoted(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if !name.is_empty() && !name.as_bytes()[0].is_ascii_digit() && name.bytes().all(plain) {
        return name.to_owned();
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Withdraws what was never written, then closes the transaction with its record and its commit stamp.
fn close() -> Result<()> {
    let mut voids = Vec::new();
    remembered(|state| state.intents.end_query(0, &mut voids))?;
    withdraw(&voids);

    let (events, cause, identity, bypass) = with(|state| {
        let events: i64 = state.live.iter().map(|live| live.events).sum();
        let cause = state.causes.last().map(|cause| cause.text.clone());
        (events, cause, state.identity.clone(), state.bypass)
    });
    if events == 0 {
        return Ok(());
    }
    // DROP EXTENSION in this very transaction took the record along, and whoever may do that needs no telling.
    if !catalog::is_installed() {
        return Ok(());
    }
    home::check_at_commit()?;
    let events = i32::try_from(events).map_err(|_| Error::Internal("agd: more events than numbers".into()))?;
    let identity = identity.ok_or_else(|| Error::Internal("agd: events of nobody".into()))?;
    let mut told = tenant::told(identity.session_user, &identity.session_user_name)?;
    // Before the stamp is drawn: its seal's is then smaller, and seen here, or larger.
    let fleet = told.as_mut().and_then(|told| told.fleet.take());
    if let Some(fleet) = &fleet {
        acting::hold(&fleet.id, &fleet.tenant)?;
    }
    let origin = replication::origin();
    let binding = match (&origin, &told, bypass) {
        (Some(_), ..) => Binding::Replication,
        (None, Some(told), _) => told.binding,
        (None, None, true) => Binding::Bypass,
        (None, None, false) => Binding::None,
    };
    let record = event::TransactionRecord {
        stamp: stamp::draw()?,
        events,
        // Who stands behind the session user: the subscription, whom a token or the role's word names, the superuser who
        // became another, the tenant's role.
        principal: match told {
            _ if origin.is_some() => origin,
            Some(told) if told.binding != Binding::Role => Some(told.principal),
            told => identity.logged_in.or(told.map(|told| told.principal)),
        },
        session_user_name: identity.session_user_name,
        role_name: identity.role_name,
        fleet_id: fleet.map(|fleet| fleet.id),
        cause,
        binding: binding.name(),
        application_name: event::application_name(),
        client_addr: event::client_address(),
    };
    event::insert_transaction(&record)?;
    with(|state| {
        state.sealed = true;
        state.recorded = i64::from(events);
    });
    Ok(())
}

/// What no SQL can bring about: for tests.
#[cfg(any(test, feature = "pg_test"))]
pub mod extremes {
    use super::{Result, close, with};

    /// Closes the transaction's record before its end, as if a pre-commit callback of another extension came after agd's.
    pub fn close_early() -> Result<()> {
        close()
    }

    /// Sets the number of the next event: nobody records 2^31 events to see what happens then.
    pub fn skip_to(n: i32) {
        with(|state| state.next_n = n);
    }
}

fn forget() -> State {
    with(std::mem::take)
}

unsafe extern "C-unwind" fn transaction_event(what: pg_sys::XactEvent::Type, _argument: *mut std::ffi::c_void) {
    if memory::is_ending() {
        // The roll-back of a session that gets no memory.
        tenant::share::clear();
        return;
    }
    // SAFETY: PostgreSQL calls this; the frame has nothing to drop.
    unsafe { error::entry(|| on_transaction_event(what)) }
}

fn on_transaction_event(what: pg_sys::XactEvent::Type) -> Result<()> {
    match what {
        pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT | pg_sys::XactEvent::XACT_EVENT_PRE_PREPARE => {
            tenant::leftover::before_commit()?;
            if what == pg_sys::XactEvent::XACT_EVENT_PRE_PREPARE {
                fleet::pending::before_prepare()?;
                reports::before_prepare()?;
            }
            fleet::pending::before_commit().map_err(denied::at_commit)?;
            if with(|state| !state.live.is_empty()) {
                close().map_err(denied::at_commit)?;
            }
            event::close();
            // Last: whoever closes the record keeps everybody waiting for what is left of this commit.
            reports::before_commit()?;
        }
        pg_sys::XactEvent::XACT_EVENT_COMMIT | pg_sys::XactEvent::XACT_EVENT_PREPARE => {
            let state = forget();
            fleet::pending::transaction_ended();
            tenant::role::transaction_ended();
            partition::transaction_ended();
            ceiling::transaction_ended();
            home::transaction_ended();
            reports::transaction_ended();
            tenant::transaction_ended();
            if (state.recorded > 0 || state.voided > 0 || state.created_extension)
                && let Ok(database) = shmem::this_database()
            {
                use std::sync::atomic::Ordering::Relaxed;
                database.voided.fetch_add(state.voided, Relaxed);
                if state.recorded > 0 {
                    database.recorded.fetch_add(state.recorded as u64, Relaxed);
                    // A prepared transaction's events can be integrated when it is committed, not before.
                    if what == pg_sys::XactEvent::XACT_EVENT_COMMIT {
                        if database.is_worker() {
                            database.add_waiting_own(state.recorded);
                        } else {
                            database.add_waiting(state.recorded);
                        }
                    }
                }
                if state.created_extension {
                    database.wake_worker();
                }
                if state.log_closed {
                    database.hurry_worker();
                }
            } else if what == pg_sys::XactEvent::XACT_EVENT_COMMIT
                && replication::may_have_committed_prepared()
                && let Some(database) = shmem::this_database_if_any()
            {
                database.add_waiting(1);
            }
        }
        pg_sys::XactEvent::XACT_EVENT_ABORT => {
            forget();
            event::rolled_back();
            nesting::return_to(0);
            identity::transaction_rolled_back();
            fleet::pending::transaction_ended();
            tenant::role::transaction_ended();
            ceiling::transaction_ended();
            home::transaction_ended();
            reports::transaction_ended();
            touched::return_to(0);
            partition::transaction_ended();
            tenant::transaction_ended();
        }
        _ => {}
    }
    Ok(())
}

#[pg_guard]
unsafe extern "C-unwind" fn subtransaction_event(
    what: pg_sys::SubXactEvent::Type,
    subtransaction: pg_sys::SubTransactionId,
    parent: pg_sys::SubTransactionId,
    _argument: *mut std::ffi::c_void,
) {
    if memory::is_ending() {
        return;
    }
    // Subtransaction numbers only grow, and one that is still open has a smaller number than everything inside it: what
    // a rolled-back subtransaction did, committed children included, is what carries its number or a larger one.
    match what {
        pg_sys::SubXactEvent::SUBXACT_EVENT_START_SUB => {
            with(|state| state.levels.push((subtransaction, nesting::level())));
        }
        pg_sys::SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => {
            with(|state| state.merge(subtransaction, parent));
        }
        pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB => with(|state| {
            // An error jumped out of whatever ran inside.
            if let Some((_, level)) = state.levels.iter().find(|(open, _)| *open == subtransaction) {
                nesting::return_to(*level);
                touched::return_to(*level);
            }
            state.levels.retain(|(open, _)| *open < subtransaction);
            state.live.retain(|live| live.subtransaction < subtransaction);
            state.causes.retain(|cause| cause.subtransaction < subtransaction);
            state.intents.abort_subtransaction(subtransaction);
            tenant::subtransaction_rolled_back(subtransaction);
            fleet::pending::subtransaction_rolled_back(subtransaction);
            partition::subtransaction_rolled_back(subtransaction);
            reports::subtransaction_rolled_back(subtransaction);
        }),
        _ => {}
    }
}
