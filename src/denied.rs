//! Refused attempts: what the gate said no to, kept although the refused transaction rolls back.
//!
//! Owns a ring of slots in shared memory for each database, and the way from there into the log. Who refuses says what was
//! attempted ([`attempted`]); [`record`], called where every error of agd becomes PostgreSQL's, puts it into the ring; the
//! worker turns each slot into a DENIED event in a transaction of its own ([`drain`]). Promises that an attempt is either
//! an event or counted as lost, exactly once; that a refusal never waits, neither for the worker nor for another refusal;
//! and that one database's refusals never push out another's, because each has a ring of its own, nor one role's another's
//! for long, because each has a quota. Never keeps a value of a row: what stands here goes into the log, and from there where
//! nobody can take it back.
//!
//! Whose log: that of the tenant that the session was bound to, and the platform's where it was bound to none; a token that does
//! not bind stands in the log of the tenant whose key it names. What was about another tenant than one's own stands in the
//! platform's as well, which alone names that tenant, if there is one. So nobody writes into another's log by being refused, nobody learns from his own what others have, and the platform knows who tried
//! what against whom.
//!
//! Shared memory does not outlive the server: what a crash finds in the ring is lost, as documented.
//!
//! What counts as refused: whatever the gate's own trigger functions raise (the write, the TRUNCATE or the commit was on
//! its way and agd stopped it), every token and every word that did not bind, and AG002, AG004 and 53400 wherever they are
//! raised. A bad argument to one of agd's functions is
//! no attempt on data, and an error of PostgreSQL's own (a privilege, a policy, a constraint, a cancel) is not agd's.
#![allow(unsafe_code)] // slots in shared memory are written by hand

use crate::error::{Error, Result};
use crate::event::{self, Record};
use crate::shmem::{self, Database};
use crate::{backend, catalog, home, identity, settings, tenant, transaction};
use pgrx::pg_sys;
use std::cell::RefCell;
use std::sync::atomic::{AtomicI64, AtomicPtr, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// Slots of one database's ring. The worker empties it at most ten times a second, so this also bounds how fast refusals
/// can grow a log: somebody who is refused in a loop fills the ring, and is counted.
const SLOTS: usize = 128;
/// Bytes of a slot: room for every name at its full length, and a message.
const SLOT_SIZE: usize = 1280;
/// Bytes of a slot before its texts: ticket, time, SQLSTATE and who is told, guard.
const HEADER: usize = 8 + 8 + 8 + 1 + 16;
/// Longest texts: a name (addresses and commands are shorter); two quoted names and what stands between; a quoted,
/// schema-qualified name.
const NAME: usize = 63;
const NAMES: usize = 2 * (2 * NAME + 2) + 4;
const QUALIFIED: usize = 2 * (2 * NAME + 2) + 1;

/// Attempts of one role in one database that are told one by one in a minute; further ones are counted.
const QUOTA: u32 = 120;
/// Quotas that are kept. Roles whose numbers meet share one.
const QUOTAS: usize = 4096;
/// How often the log says how many were counted, microseconds. Whoever asks for an anchor is told at once.
const OVERFLOW_INTERVAL: i64 = 60_000_000;

// A slot's states. Who finds it free makes it its own, fills it and hands it over. A backend that vanished in between,
// which PostgreSQL answers with a restart of all shared memory, would cost that one slot and block nobody.
const FREE: u8 = 0;
const WRITING: u8 = 1;
const READY: u8 = 2;

/// What is shared of one database's ring, but for the slots' contents.
#[repr(C)]
struct Ring {
    /// Numbers the attempts: the worker puts them in this order.
    next: AtomicU64,
    /// Attempts that found no free slot, since the server started.
    lost: AtomicU64,
    /// How many of them the log tells of.
    lost_recorded: AtomicU64,
    /// When it was last told, microseconds since 2000-01-01.
    lost_told_at: AtomicI64,
    /// Attempts recorded, since the server started.
    recorded: AtomicU64,
    states: [AtomicU8; SLOTS],
}

/// How many attempts each role made in its minute: see [`within_quota`].
#[repr(C)]
struct Quotas {
    /// In which minute, and how many in it.
    taken: [AtomicU64; QUOTAS],
    /// Nobody can choose roles that share a quota with a certain other one.
    seed: AtomicU64,
}

/// The contents of one ring's slots.
type Slots = [[u8; SLOT_SIZE]; SLOTS];

static SHARED_QUOTAS: AtomicPtr<Quotas> = AtomicPtr::new(std::ptr::null_mut());

/// All rings, then all slots, one for each database that can use agd. Only the rings are initialised, so slots that are
/// never used cost no memory.
static SHARED: AtomicPtr<Ring> = AtomicPtr::new(std::ptr::null_mut());

/// Bytes of shared memory to be reserved.
pub fn shared_size() -> usize {
    rings_size() + size_of::<Quotas>()
}

fn rings_size() -> usize {
    settings::max_databases() * (size_of::<Ring>() + size_of::<Slots>())
}

/// Finds or makes the rings. Called from the start-up hook of shared memory, in the postmaster.
pub fn attach() {
    // SAFETY: ShmemInitStruct returns as many bytes as it is asked for, maximally aligned; all-zero bytes are valid rings
    // and quotas. No backend exists yet.
    unsafe {
        let mut found = false;
        let shared = pg_sys::ShmemInitStruct(c"agd denied".as_ptr(), rings_size(), &mut found).cast::<Ring>();
        if !found {
            std::ptr::write_bytes(shared, 0, settings::max_databases());
        }
        SHARED.store(shared, Ordering::Release);
        let quotas = pg_sys::ShmemInitStruct(c"agd quotas".as_ptr(), size_of::<Quotas>(), &mut found).cast::<Quotas>();
        if !found {
            std::ptr::write_bytes(quotas, 0, 1);
            let mut seed = [0u8; 8];
            // Without randomness the seed is known; nothing else depends on it.
            let _ = pg_sys::pg_strong_random(seed.as_mut_ptr().cast(), seed.len());
            (*quotas).seed = AtomicU64::new(u64::from_ne_bytes(seed));
        }
        SHARED_QUOTAS.store(quotas, Ordering::Release);
    }
}

/// The ring of a database's slot in [`shmem`].
#[derive(Clone, Copy)]
struct Handle {
    ring: &'static Ring,
    slots: *mut Slots,
}

fn ring_of(database: &Database) -> Option<Handle> {
    let shared = SHARED.load(Ordering::Acquire);
    let number = database.number()?;
    if shared.is_null() {
        return None;
    }
    // SAFETY: published by attach(), mapped for the life of the process; `number` is below agd.max_databases. Slots are only
    // reached by address: who owns one follows from its state.
    unsafe {
        let slots = shared.add(settings::max_databases()).cast::<Slots>();
        Some(Handle { ring: &*shared.add(number), slots: slots.add(number) })
    }
}

// ------------------------------------------------------------------------------------------------------- the refusal

/// What was attempted.
#[derive(Clone, Debug, Default)]
pub struct Attempt {
    /// INSERT, UPDATE, DELETE, TRUNCATE, or the command's tag.
    pub action: Option<String>,
    /// Schema-qualified name.
    pub relation: Option<String>,
    /// The guard that refused.
    pub guard_id: Option<[u8; 16]>,
    /// The tenant whose row it was about, as the row or the caller has it; [`ANOTHER`]: some other than the caller's.
    pub tenant: Option<String>,
    /// Who is bound to nobody tried it, and that tenant is told of it, not the platform: the tenant follows from what was
    /// found, not from what was said.
    pub concerned_is_told: bool,
    /// The database that it was about; None: the one where it was attempted.
    pub database: Option<pg_sys::Oid>,
}

thread_local! {
    static ATTEMPT: RefCell<Option<Attempt>> = const { RefCell::new(None) };
}

/// Says what the error that is about to be raised refuses. To be called on the way out with that error, and only then.
/// What an inner call said is completed, not replaced.
pub fn attempted(attempt: Attempt) {
    ATTEMPT.with_borrow_mut(|present| {
        *present = Some(match present.take() {
            None => attempt,
            Some(inner) => Attempt {
                action: inner.action.or(attempt.action),
                relation: inner.relation.or(attempt.relation),
                guard_id: inner.guard_id.or(attempt.guard_id),
                tenant: inner.tenant.or(attempt.tenant),
                concerned_is_told: inner.concerned_is_told || attempt.concerned_is_told,
                database: inner.database.or(attempt.database),
            },
        });
    });
}

/// An error of PostgreSQL's own came instead.
pub fn forget_attempt() {
    ATTEMPT.take();
}

/// Not the caller's tenant, and it is not for him to know whether there is one. No tenant has such a name.
pub const ANOTHER: &str = "?";

/// The same for the one thing that only the inner code knows: whose row it is.
pub fn concerning(tenant: Option<&str>, error: Error) -> Error {
    if let Some(tenant) = tenant {
        attempted(Attempt { tenant: Some(tenant.to_owned()), ..Attempt::default() });
    }
    error
}

/// The transaction's record cannot be written, so nothing of it is committed.
pub fn at_commit(error: Error) -> Error {
    attempted(Attempt { action: Some("COMMIT".into()), ..Attempt::default() });
    error
}

/// An error of agd's is about to become PostgreSQL's: is it a refusal, then it goes into the ring.
///
/// Looks names up and so may raise an error itself, as making the message did: the statement is refused all the same.
pub fn record(error: &Error) {
    let attempt = ATTEMPT.take();
    if attempt.is_none() && !error.always_refuses() {
        return;
    }
    let attempt = attempt.unwrap_or_default();
    // SAFETY: reads the state of this process.
    if unsafe { !pg_sys::IsTransactionState() || pg_sys::RecoveryInProgress() } {
        return;
    }
    let database = match attempt.database {
        Some(oid) => shmem::existing(oid),
        None => this_database(),
    };
    let Some(database) = database else { return };
    // In maintenance it is not the session that tries.
    let who = if identity::is_restricted() { identity::current_user() } else { backend::session_user() };
    // SAFETY: a process global.
    if !within_quota(unsafe { pg_sys::MyDatabaseId }, who) {
        if let Some(Handle { ring, .. }) = ring_of(database) {
            ring.lost.fetch_add(1, Ordering::AcqRel);
        }
        database.wake_worker();
        return;
    }
    let (session_user, role) = (transaction::session_user_name(), transaction::role_name());
    let bound = tenant::last_tenant().or_else(|| tenant::bound_tenant().ok().flatten());
    // What is longer than a tenant's name is none, and cut short it might become one.
    let concerned = attempt.tenant.map(|tenant| if tenant.len() <= NAME { tenant } else { ANOTHER.into() });
    let application = event::application_name();
    let client = event::client_address();
    let (sqlstate, message) = error.for_the_record();
    push(
        database,
        sqlstate,
        attempt.concerned_is_told,
        attempt.guard_id,
        [
            &session_user,
            &role,
            bound.as_deref().unwrap_or_default(),
            concerned.as_deref().unwrap_or_default(),
            attempt.action.as_deref().unwrap_or_default(),
            client.as_deref().unwrap_or_default(),
            attempt.relation.as_deref().unwrap_or_default(),
            &message,
            application.as_deref().unwrap_or_default(),
        ],
    );
    database.wake_worker();
}

/// Does a role have one of its minute's attempts left? Takes it.
fn within_quota(database: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    let quotas = SHARED_QUOTAS.load(Ordering::Acquire);
    if quotas.is_null() {
        return true;
    }
    // SAFETY: published by attach(), mapped for the life of the process, atomics.
    let (quotas, seed) = unsafe { (&(*quotas).taken, (*quotas).seed.load(Ordering::Relaxed)) };
    // The finish of SplitMix64: numbers of roles follow each other, places must not.
    let mut place = seed ^ (u64::from(database.to_u32()) << 32 | u64::from(role.to_u32()));
    for (shift, factor) in [(30, 0xbf58_476d_1ce4_e5b9), (27, 0x94d0_49bb_1331_11eb), (31, 1)] {
        place = (place ^ (place >> shift)).wrapping_mul(factor);
    }
    let minute = (backend::now() / 60_000_000) as u32;
    let take = |known: u64| {
        let (then, taken) = ((known >> 32) as u32, known as u32);
        let taken = if then == minute { taken } else { 0 };
        (taken < QUOTA).then_some(u64::from(minute) << 32 | u64::from(taken + 1))
    };
    quotas[place as usize % QUOTAS].fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok()
}

/// Where the attempts of this database go; None: it has no record, so there is nothing to tell them to.
fn this_database() -> Option<&'static Database> {
    if let Some(database) = shmem::this_database_if_any() {
        return Some(database);
    }
    if !catalog::is_installed() {
        return None;
    }
    // SAFETY: a process global.
    let oid = unsafe { pg_sys::MyDatabaseId };
    if home::is_elsewhere().unwrap_or(true) { shmem::spare(oid) } else { shmem::database(oid).ok() }
}

/// How long each text of a slot may be, in the order in which they stand. The names always fit in full; the message is cut
/// where it repeats several of full length, and an application's name where there is no more room.
const TEXTS: [usize; 9] = [NAME, NAMES, NAME, NAME, NAME, NAME, QUALIFIED, SLOT_SIZE, SLOT_SIZE];

/// Fills a free slot, or counts the attempt as lost. Neither allocates nor waits.
fn push(database: &Database, sqlstate: [u8; 5], is_told: bool, guard_id: Option<[u8; 16]>, texts: [&str; 9]) {
    let Some(Handle { ring, slots }) = ring_of(database) else { return };
    let at = backend::now();
    let ticket = ring.next.fetch_add(1, Ordering::AcqRel);
    let first = (ticket % SLOTS as u64) as usize;
    for step in 0..SLOTS {
        let index = (first + step) % SLOTS;
        let state = &ring.states[index];
        if state.compare_exchange(FREE, WRITING, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            continue;
        }
        // SAFETY: the slot is this backend's own until its state says READY.
        let slot = unsafe { &mut (*slots)[index] };
        let mut writer = Writer { slot, at: 0 };
        writer.bytes(&ticket.to_ne_bytes());
        writer.bytes(&at.to_ne_bytes());
        let mut padded = [0; 8];
        padded[..5].copy_from_slice(&sqlstate);
        padded[5] = u8::from(is_told);
        writer.bytes(&padded);
        writer.bytes(&[u8::from(guard_id.is_some())]);
        writer.bytes(&guard_id.unwrap_or_default());
        for (text, longest) in texts.into_iter().zip(TEXTS) {
            writer.text(text, longest);
        }
        state.store(READY, Ordering::Release);
        return;
    }
    ring.lost.fetch_add(1, Ordering::AcqRel);
}

struct Writer<'a> {
    slot: &'a mut [u8; SLOT_SIZE],
    at: usize,
}

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        let end = (self.at + bytes.len()).min(SLOT_SIZE);
        self.slot[self.at..end].copy_from_slice(&bytes[..end - self.at]);
        self.at = end;
    }

    /// A length and as much of the text as there is room for; what follows always has room for its own length.
    fn text(&mut self, text: &str, longest: usize) {
        let room = (SLOT_SIZE - self.at).saturating_sub(2 * TEXTS.len());
        let text = &text[..text.floor_char_boundary(longest.min(room))];
        self.bytes(&(text.len() as u16).to_ne_bytes());
        self.bytes(text.as_bytes());
    }
}

// -------------------------------------------------------------------------------------------------------- the worker

/// One slot's contents.
#[derive(Debug, PartialEq, Eq)]
struct Denial {
    ticket: u64,
    at: i64,
    sqlstate: String,
    concerned_is_told: bool,
    guard_id: Option<[u8; 16]>,
    texts: [String; 9],
}

impl Denial {
    /// None: these bytes are no slot that [`push`] wrote.
    fn read(slot: &[u8; SLOT_SIZE]) -> Option<Denial> {
        let (header, mut rest) = slot.split_at_checked(HEADER)?;
        let mut texts: [String; 9] = Default::default();
        for text in &mut texts {
            let (length, after) = rest.split_first_chunk::<2>()?;
            let (bytes, after) = after.split_at_checked(usize::from(u16::from_ne_bytes(*length)))?;
            *text = String::from_utf8_lossy(bytes).into_owned();
            rest = after;
        }
        Some(Denial {
            ticket: u64::from_ne_bytes(header[..8].try_into().ok()?),
            at: i64::from_ne_bytes(header[8..16].try_into().ok()?),
            sqlstate: String::from_utf8_lossy(&header[16..21]).into_owned(),
            concerned_is_told: header[21] != 0,
            guard_id: if header[24] == 0 { None } else { Some(header[25..41].try_into().ok()?) },
            texts,
        })
    }

    /// Inserts the event, or the two of them.
    fn insert(&self) -> Result<()> {
        let [_, _, bound, concerned, ..] = &self.texts;
        let given = |text: &'_ String| (!text.is_empty()).then(|| text.clone());
        let (bound, concerned) = (given(bound), given(concerned));
        let about_another = concerned.is_some() && concerned != bound;
        if bound.is_some() {
            self.insert_into(bound.as_deref(), None)?;
        }
        // Two or one, whether the other tenant exists or not: the numbers of events tell nothing.
        if bound.is_none() || about_another {
            // What is no tenant's name may be any value of a row.
            let named = match concerned {
                Some(concerned) if tenant::exists(&concerned)? => Some(concerned),
                _ => None,
            };
            if bound.is_none() && self.concerned_is_told && named.is_some() {
                return self.insert_into(named.as_deref(), None);
            }
            self.insert_into(None, named)?;
        }
        Ok(())
    }

    fn insert_into(&self, log: Option<&str>, concerned: Option<String>) -> Result<()> {
        let [session_user, role, bound, _, action, client, relation, message, application] = &self.texts;
        let given = |text: &'_ String| (!text.is_empty()).then(|| text.clone());
        // Keys in the order of RFC 8785, as in entries.
        let body = object(&[
            ("application_name", given(application)),
            ("at", Some(agd_core::entry::time_text(self.at.saturating_add(crate::log::record::EPOCH_DIFFERENCE)))),
            ("attempted", given(action)),
            ("bound_tenant", given(bound)),
            ("client_addr", given(client)),
            ("concerned_tenant", concerned),
            ("message", given(message)),
            ("session_user_name", given(session_user)),
            ("sqlstate", Some(self.sqlstate.clone())),
        ]);
        event::insert_as(
            &Record {
                tenant: log,
                relation: given(relation).as_deref(),
                guard_id: self.guard_id,
                body: Some(&body),
                ..Record::of("DENIED")
            },
            given(role).as_deref(),
        )?;
        Ok(())
    }
}

/// A JSON object of the members that are there.
fn object(members: &[(&str, Option<String>)]) -> String {
    let mut out = vec![b'{'];
    for (name, value) in members {
        let Some(value) = value else { continue };
        if out.len() > 1 {
            out.push(b',');
        }
        crate::guard::write_string(&mut out, name.as_bytes());
        out.push(b':');
        crate::guard::write_string(&mut out, value.as_bytes());
    }
    out.push(b'}');
    String::from_utf8_lossy(&out).into_owned()
}

/// Is there anything for [`drain`] to do now?
pub fn pending(database: &Database, requested: bool) -> bool {
    ring_of(database).is_some_and(|Handle { ring, .. }| {
        ring.overflow_due_in(requested).is_some_and(|left| left.is_zero())
            || ring.states.iter().any(|state| state.load(Ordering::Acquire) == READY)
    })
}

/// How long until there is, if nothing more comes; None: not then either.
pub fn pending_in(database: &Database) -> Option<Duration> {
    ring_of(database)?.ring.overflow_due_in(false)
}

impl Ring {
    /// How long until the log has to say how many attempts were counted; None: it has said so.
    fn overflow_due_in(&self, requested: bool) -> Option<Duration> {
        if self.lost.load(Ordering::Acquire) == self.lost_recorded.load(Ordering::Acquire) {
            return None;
        }
        // Not far in the future if the clock was set back.
        let since = backend::now().saturating_sub(self.lost_told_at.load(Ordering::Acquire)).max(0);
        let left = if requested { 0 } else { OVERFLOW_INTERVAL.saturating_sub(since).max(0) };
        Some(Duration::from_micros(left.unsigned_abs()))
    }
}

/// What of the ring [`drain`] turned into events, to be forgotten when they are committed, and only then.
pub struct Drained {
    slots: Vec<usize>,
    lost: Option<u64>,
}

/// Turns what the ring holds into events, in the present transaction. `requested`: somebody waits for an anchor.
pub fn drain(database: &Database, requested: bool) -> Result<Drained> {
    let mut drained = Drained { slots: Vec::new(), lost: None };
    let Some(Handle { ring, slots }) = ring_of(database) else { return Ok(drained) };
    drained.slots = (0..SLOTS).filter(|&index| ring.states[index].load(Ordering::Acquire) == READY).collect();
    // SAFETY: a slot that is READY is the worker's own until it is FREE again.
    let mut denials: Vec<Denial> =
        drained.slots.iter().filter_map(|&index| Denial::read(unsafe { &(*slots)[index] })).collect();
    denials.sort_unstable_by_key(|denial| denial.ticket);
    for denial in &denials {
        denial.insert()?;
    }
    if ring.overflow_due_in(requested).is_some_and(|left| left.is_zero()) {
        let lost = ring.lost.load(Ordering::Acquire);
        let unrecorded = lost.wrapping_sub(ring.lost_recorded.load(Ordering::Acquire));
        drained.lost = Some(lost);
        event::insert(&Record {
            body: Some(&object(&[("lost", Some(unrecorded.to_string()))])),
            ..Record::of("DENIED.OVERFLOW")
        })?;
    }
    Ok(drained)
}

/// Makes room again: what [`drain`] recorded is committed. Neither allocates nor fails, so that no attempt is recorded
/// twice.
pub fn forget(database: &Database, drained: &Drained) {
    let Some(Handle { ring, .. }) = ring_of(database) else { return };
    ring.recorded.fetch_add(drained.slots.len() as u64, Ordering::AcqRel);
    if let Some(lost) = drained.lost {
        ring.lost_recorded.store(lost, Ordering::Release);
        ring.lost_told_at.store(backend::now(), Ordering::Release);
    }
    for &index in &drained.slots {
        ring.states[index].store(FREE, Ordering::Release);
    }
}

/// Forgets what the ring holds: the database, or the extension in it, is gone.
pub fn clear(database: &Database) {
    if let Some(Handle { ring, .. }) = ring_of(database) {
        for state in &ring.states {
            let _ = state.compare_exchange(READY, FREE, Ordering::AcqRel, Ordering::Relaxed);
        }
        for counter in [&ring.lost, &ring.lost_recorded, &ring.recorded] {
            counter.store(0, Ordering::Release);
        }
        ring.lost_told_at.store(0, Ordering::Release);
    }
}

/// Attempts recorded, and attempts that were only counted (no quota left, or the ring full), since the server started.
pub fn counts(database: &Database) -> (u64, u64) {
    ring_of(database).map_or((0, 0), |Handle { ring, .. }| {
        (ring.recorded.load(Ordering::Acquire), ring.lost.load(Ordering::Acquire))
    })
}
