//! Shared memory: the commit-stamp clock and one slot per database that uses agd.
//!
//! Owns what backends and workers must share: the strictly increasing clock, the count of events that wait for
//! integration, the requests to the worker and its answers. Promises that every field is an atomic, so that nothing here
//! can block or fail inside a commit callback. Never holds anything that a restart may not lose: the clock's floor and
//! the counts are rebuilt from the tables.
#![allow(unsafe_code)] // shared memory is laid out by hand and reached through one raw pointer

use crate::error::{Error, Result};
use crate::log::verify::progress;
use crate::tenant::{share, used};
use crate::{backend, denied, settings};
use pgrx::{pg_guard, pg_sys};
use std::cell::Cell;
use std::ffi::c_long;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// A short text in shared memory. Who reads while it is written gets a mix of two texts at worst.
#[repr(C)]
pub struct Text<const SIZE: usize> {
    length: AtomicU32,
    bytes: [AtomicU8; SIZE],
}

impl<const SIZE: usize> Text<SIZE> {
    /// Replaces it, cut to what there is room for. Neither allocates nor fails.
    pub fn set(&self, text: &str) {
        let bytes = &text.as_bytes()[..text.floor_char_boundary(SIZE)];
        self.length.store(0, Ordering::Release);
        for (slot, byte) in self.bytes.iter().zip(bytes) {
            slot.store(*byte, Ordering::Relaxed);
        }
        self.length.store(bytes.len() as u32, Ordering::Release);
    }

    /// A copy of it.
    pub fn get(&self) -> String {
        let length = self.length.load(Ordering::Acquire) as usize;
        let bytes: Vec<u8> = self.bytes.iter().take(length).map(|byte| byte.load(Ordering::Relaxed)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// What one database's backends and worker share.
#[repr(C)]
pub struct Database {
    /// The database's oid; 0: this slot is free.
    oid: AtomicU32,
    /// The worker's process id; 0: no worker runs.
    pub worker_pid: AtomicI32,
    /// The worker's latch, null while no worker runs.
    worker_latch: AtomicPtr<pg_sys::Latch>,
    /// Somebody needs a worker here: the launcher starts one.
    pub wanted: AtomicBool,
    /// No worker is started before this time (microseconds since 2000-01-01): the last one has just ended.
    pub held_until: AtomicI64,
    /// The process whose statement needs the database free of connections; 0: none. The worker leaves if it is true.
    pub leave_for: AtomicI32,
    /// How many tables are guarded, plus 1, when the worker last counted; 0: not since the server started.
    guards: AtomicU64,
    /// Starts of the worker since its last good pass: each doubles the wait before the next.
    pub starts: AtomicU32,
    /// The clock's floor was restored from this database's tables since the server started.
    pub clock_restored: AtomicBool,
    /// What is added to a transaction's id when it is recorded, plus 1; 0: not known since the server started.
    xact_id_base: AtomicU64,
    /// Committed (or prepared) events that the worker has not integrated yet.
    pub waiting: AtomicI64,
    /// Those of them that the worker recorded itself (refusals, checkpoints, guard states): no ceiling counts them.
    waiting_own: AtomicI64,
    /// Are those in `waiting` that were committed before the server started? 0: no; 1: somebody counts them; 2: yes.
    waiting_restored: AtomicU32,
    /// Anchors of the platform log that are not published, at most; one more than that number. 0: not known.
    unpublished: AtomicI64,
    /// Writers wait for integration: a pass is due.
    hurry: AtomicBool,
    /// Passes asked for through agd.anchor().
    requested: AtomicU64,
    /// The newest request that a finished pass covers.
    completed: AtomicU64,
    /// Passes that failed.
    failures: AtomicU64,
    /// Workers that ended for another reason: a signal, a timeout, a connection that was refused.
    ends: AtomicU64,
    /// Events recorded by committed transactions since the server started.
    pub recorded: AtomicU64,
    /// Records withdrawn because their write did not happen, since the server started.
    pub voided: AtomicU64,
    /// Events integrated since the server started.
    pub integrated: AtomicU64,
    /// Since when events wait that were not integrated yet (microseconds since 2000-01-01); 0: none do.
    waiting_since: AtomicI64,
    /// Since when no worker has done a pass that it should have done; 0: all is well.
    stopped_since: AtomicI64,
    /// Wakes callers of agd.anchor().
    answered: pg_sys::ConditionVariable,
    message: Text<256>,
    /// Origin, size and newest anchor of the record, as the worker last saw it.
    pub record: Text<512>,
}

/// So many databases that cannot be visited are told apart from the others.
const UNVISITED: usize = 64;

#[repr(C)]
struct Shared {
    clock: AtomicI64,
    launcher_latch: AtomicPtr<pg_sys::Latch>,
    /// The database whose first visit has just shown whether it has the extension; 0: none.
    visited: AtomicU32,
    /// Every database that was there when the launcher started was visited, but for those in `unvisited`.
    all_visited: AtomicBool,
    /// Databases that could not be visited yet; 0: none.
    unvisited: [AtomicU32; UNVISITED],
}

/// As many as agd.max_databases says.
static DATABASES: AtomicPtr<Database> = AtomicPtr::new(std::ptr::null_mut());
static SHARED: AtomicPtr<Shared> = AtomicPtr::new(std::ptr::null_mut());
static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

/// Reserves the shared memory. Called once, in the postmaster, from `_PG_init`.
pub fn init() {
    // SAFETY: _PG_init runs single-threaded in the postmaster; hooks are chained as PostgreSQL asks for.
    unsafe {
        PREVIOUS_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request);
        PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(startup);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn request() {
    // SAFETY: called by the postmaster in its shmem-request phase, the only place where this is allowed.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST {
            pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| previous());
        }
        pg_sys::RequestAddinShmemSpace(size_of::<Shared>());
        pg_sys::RequestAddinShmemSpace(size_of::<Database>() * settings::max_databases());
        pg_sys::RequestAddinShmemSpace(denied::shared_size());
        pg_sys::RequestAddinShmemSpace(progress::SHARED_SIZE);
        pg_sys::RequestAddinShmemSpace(share::shared_size());
        pg_sys::RequestAddinShmemSpace(used::shared_size());
        used::request();
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn startup() {
    // SAFETY: ShmemInitStruct returns as many bytes as it is asked for, maximally aligned; all-zero bytes are valid (atomics
    // and arrays of them) but for the condition variables, which are initialised here, once, before any backend exists.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP {
            pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| previous());
        }
        let mut found = false;
        let shared = pg_sys::ShmemInitStruct(c"agd".as_ptr(), size_of::<Shared>(), &mut found).cast::<Shared>();
        if !found {
            std::ptr::write_bytes(shared, 0, 1);
        }
        let number = settings::max_databases();
        let databases = pg_sys::ShmemInitStruct(c"agd databases".as_ptr(), size_of::<Database>() * number, &mut found)
            .cast::<Database>();
        if !found {
            std::ptr::write_bytes(databases, 0, number);
            for index in 0..number {
                pg_sys::ConditionVariableInit(&raw mut (*databases.add(index)).answered);
            }
        }
        DATABASES.store(databases, Ordering::Release);
        SHARED.store(shared, Ordering::Release);
        denied::attach();
        progress::attach();
        share::attach();
        used::attach();
    }
}

fn shared() -> Result<&'static Shared> {
    let shared = SHARED.load(Ordering::Acquire);
    if shared.is_null() {
        return Err(not_preloaded());
    }
    // SAFETY: the pointer was published by startup() and stays mapped for the life of the process; all fields that
    // change are atomics.
    Ok(unsafe { &*shared })
}

/// Every slot; none when the library is not preloaded.
fn slots() -> &'static [Database] {
    let databases = DATABASES.load(Ordering::Acquire);
    if databases.is_null() {
        return &[];
    }
    // SAFETY: published by startup() with room for so many, which does not change while the server runs; mapped for the
    // life of the process. All fields that change are atomics.
    unsafe { std::slice::from_raw_parts(databases, settings::max_databases()) }
}

/// The one error for "the library is not in shared_preload_libraries".
pub fn not_preloaded() -> Error {
    Error::WrongState {
        message: "agd is not loaded by shared_preload_libraries".into(),
        hint: "Add agd to shared_preload_libraries in postgresql.conf, for example \
               shared_preload_libraries = 'agd', and restart the server."
            .into(),
    }
}

/// The slot of the database this backend is connected to, claimed if it has none yet. For databases that have the
/// extension and a record of their own: slots are few, and a database that needs none must not take one.
pub fn this_database() -> Result<&'static Database> {
    // SAFETY: MyDatabaseId is a plain global of this process.
    let oid = unsafe { pg_sys::MyDatabaseId };
    if let Some(mine) = this_database_if_any() {
        return Ok(mine);
    }
    database(oid)
}

/// The slot of the database this backend is connected to, if it has one.
pub fn this_database_if_any() -> Option<&'static Database> {
    thread_local! {
        static MINE: Cell<Option<&'static Database>> = const { Cell::new(None) };
    }
    // SAFETY: MyDatabaseId is a plain global of this process.
    let oid = unsafe { pg_sys::MyDatabaseId };
    // A slot may have been given to another database since.
    if let Some(mine) = MINE.get()
        && mine.oid.load(Ordering::Acquire) == oid.to_u32()
    {
        return Some(mine);
    }
    let found = existing(oid)?;
    MINE.set(Some(found));
    Some(found)
}

/// The slot of a database, claimed if it has none yet. 53400-like exhaustion is reported as a wrong state.
pub fn database(oid: pg_sys::Oid) -> Result<&'static Database> {
    shared()?;
    claim(oid, slots()).ok_or_else(|| Error::WrongState {
        message: format!("{} databases of this server use agd already (agd.max_databases)", settings::max_databases()),
        hint:
            "Raise agd.max_databases and restart the server; or drop the extension, or databases, that are not needed."
                .into(),
    })
}

/// The same for a database whose record comes from elsewhere and was not resumed: whoever may copy databases can make many
/// of them. They share one half of the slots; None: that half is taken.
pub fn spare(oid: pg_sys::Oid) -> Option<&'static Database> {
    let slots = slots();
    claim(oid, &slots[..slots.len().div_ceil(2)])
}

fn claim(oid: pg_sys::Oid, among: &'static [Database]) -> Option<&'static Database> {
    let wanted = oid.to_u32();
    if wanted == 0 {
        return None;
    }
    if let Some(slot) = existing(oid) {
        return Some(slot);
    }
    // From the end: the first half is left to those who have nothing else.
    for slot in among.iter().rev() {
        match slot.oid.compare_exchange(0, wanted, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return Some(slot),
            Err(present) if present == wanted => return Some(slot),
            Err(_) => {}
        }
    }
    None
}

/// The slot of a database if it has one.
pub fn existing(oid: pg_sys::Oid) -> Option<&'static Database> {
    let wanted = oid.to_u32();
    slots().iter().find(|slot| wanted != 0 && slot.oid.load(Ordering::Acquire) == wanted)
}

/// Every claimed slot, with its database's oid.
pub fn databases() -> impl Iterator<Item = (pg_sys::Oid, &'static Database)> {
    slots()
        .iter()
        .map(|slot| (slot.oid.load(Ordering::Acquire), slot))
        .filter(|(oid, _)| *oid != 0)
        .map(|(oid, slot)| (pg_sys::Oid::from(oid), slot))
}

// ---------------------------------------------------------------------------------------------------------- the clock

/// The next commit stamp: microseconds since PostgreSQL's epoch, larger than every stamp drawn before.
///
/// `max(last + 1, now)` by compare-and-swap, so that a wall clock that steps back cannot reorder commits.
pub fn next_stamp() -> Result<i64> {
    let clock = &shared()?.clock;
    let now = backend::now();
    let mut last = clock.load(Ordering::Acquire);
    loop {
        let next = now.max(last + 1);
        match clock.compare_exchange_weak(last, next, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return Ok(next),
            Err(seen) => last = seen,
        }
    }
}

/// Raises the clock's floor: no stamp at or below it is drawn any more.
pub fn raise_clock(floor: i64) -> Result<()> {
    shared()?.clock.fetch_max(floor, Ordering::AcqRel);
    Ok(())
}

// ----------------------------------------------------------------------------------------------- launcher and workers

/// The launcher announces where it can be woken; null when it ends.
pub fn set_launcher_latch(latch: *mut pg_sys::Latch) {
    if let Ok(shared) = shared() {
        shared.launcher_latch.store(latch, Ordering::Release);
    }
}

/// Wakes the launcher, if one runs.
pub fn wake_launcher() {
    if let Ok(shared) = shared() {
        wake(&shared.launcher_latch);
    }
}

/// A first visit has shown whether this database has the extension.
pub fn visited(oid: pg_sys::Oid) {
    if let Ok(shared) = shared() {
        shared.visited.store(oid.to_u32(), Ordering::Release);
    }
}

/// Was it this database that was visited last?
pub fn was_visited(oid: pg_sys::Oid) -> bool {
    shared().is_ok_and(|shared| shared.visited.load(Ordering::Acquire) == oid.to_u32())
}

/// Is it known of this database, which has no slot, that it has not the extension? Of those that were there when the
/// launcher started a visit shows it.
pub fn was_looked_into(oid: pg_sys::Oid) -> bool {
    shared().is_ok_and(|shared| {
        shared.all_visited.load(Ordering::Acquire)
            && shared.unvisited.iter().all(|unvisited| unvisited.load(Ordering::Acquire) != oid.to_u32())
    })
}

/// The launcher has tried to visit every database, and could not visit these.
pub fn set_unvisited(databases: &[pg_sys::Oid]) {
    if let Ok(shared) = shared() {
        for (index, slot) in shared.unvisited.iter().enumerate() {
            slot.store(databases.get(index).map_or(0, |oid| oid.to_u32()), Ordering::Release);
        }
        shared.all_visited.store(databases.len() <= UNVISITED, Ordering::Release);
    }
}

/// Does the launcher run?
pub fn launcher_runs() -> bool {
    shared().is_ok_and(|shared| !shared.launcher_latch.load(Ordering::Acquire).is_null())
}

fn wake(latch: &AtomicPtr<pg_sys::Latch>) {
    let latch = latch.load(Ordering::Acquire);
    if !latch.is_null() {
        // SAFETY: a process latch lives in shared memory for the server's whole life; setting the latch of a process
        // that has just ended, or of its successor, is harmless.
        unsafe { pg_sys::SetLatch(latch) };
    }
}

impl Database {
    /// What is added to a transaction's id, once it is known that the record is at home here.
    pub fn xact_id_base(&self) -> Option<u64> {
        self.xact_id_base.load(Ordering::Acquire).checked_sub(1)
    }

    /// The record is at home here, and that is committed.
    pub fn keep_xact_id_base(&self, base: u64) {
        self.xact_id_base.store(base + 1, Ordering::Release);
    }

    /// Whether the record is open here is asked of agd.home from now on.
    pub fn forget_xact_id_base(&self) {
        self.xact_id_base.store(0, Ordering::Release);
    }

    /// What is known of the record is read afresh from the tables: the extension is being installed (again).
    pub fn forget_record(&self) {
        self.forget_xact_id_base();
        self.clock_restored.store(false, Ordering::Release);
    }

    /// Which of the slots this is.
    pub fn number(&self) -> Option<usize> {
        slots().iter().position(|slot| std::ptr::eq(slot, self))
    }

    /// How many tables are guarded here; None: that is not known, or something was recorded since it was counted.
    pub fn guards(&self) -> Option<u64> {
        let waits = self.waiting.load(Ordering::Acquire) > 0;
        self.guards_when_counted().filter(|_| !waits)
    }

    /// How many there were when the worker last counted.
    pub fn guards_when_counted(&self) -> Option<u64> {
        self.guards.load(Ordering::Acquire).checked_sub(1)
    }

    /// What was counted may not be true any more.
    pub fn forget_guards(&self) {
        self.guards.store(0, Ordering::Release);
    }

    /// The worker has counted.
    pub fn set_guards(&self, guards: u64) {
        self.guards.store(guards.saturating_add(1), Ordering::Release);
    }

    /// The database is gone: its slot is free again.
    pub fn release(&self) {
        denied::clear(self);
        self.wanted.store(false, Ordering::Release);
        self.forget_record();
        self.held_until.store(0, Ordering::Release);
        self.leave_for.store(0, Ordering::Release);
        self.guards.store(0, Ordering::Release);
        self.message.set("");
        self.record.set("");
        self.failures.store(0, Ordering::Release);
        self.ends.store(0, Ordering::Release);
        self.starts.store(0, Ordering::Release);
        self.waiting.store(0, Ordering::Release);
        self.waiting_own.store(0, Ordering::Release);
        self.waiting_since.store(0, Ordering::Release);
        self.stopped_since.store(0, Ordering::Release);
        self.waiting_restored.store(0, Ordering::Release);
        self.unpublished.store(0, Ordering::Release);
        self.hurry.store(false, Ordering::Release);
        for counter in [&self.recorded, &self.voided, &self.integrated] {
            counter.store(0, Ordering::Release);
        }
        self.oid.store(0, Ordering::Release);
    }

    /// A worker takes this database. False: another one has it.
    pub fn attach_worker(&self, pid: i32, latch: *mut pg_sys::Latch) -> bool {
        if self.worker_pid.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return false;
        }
        self.worker_latch.store(latch, Ordering::Release);
        true
    }

    /// The worker leaves, if it is the one that is attached.
    pub fn detach_worker(&self, pid: i32) {
        if self.worker_pid.load(Ordering::Acquire) == pid {
            self.stops();
            self.worker_latch.store(std::ptr::null_mut(), Ordering::Release);
            self.worker_pid.store(0, Ordering::Release);
            self.broadcast();
        }
    }

    /// Is this process the worker?
    pub fn is_worker(&self) -> bool {
        // SAFETY: a process global.
        self.worker_pid.load(Ordering::Acquire) == unsafe { pg_sys::MyProcPid }
    }

    /// Wakes the worker, or asks the launcher for one.
    pub fn wake_worker(&self) {
        if self.worker_pid.load(Ordering::Acquire) == 0 {
            self.wanted.store(true, Ordering::Release);
            wake_launcher();
        } else {
            wake(&self.worker_latch);
        }
    }

    /// Adds committed events to those that wait, and wakes the worker when there is something to do for it: the first
    /// event after a quiet time starts its age timer, and each full tile's worth is due at once.
    pub fn add_waiting(&self, events: i64) {
        let before = self.waiting.fetch_add(events, Ordering::AcqRel);
        if before <= 0 {
            let _ = self.waiting_since.compare_exchange(0, backend::now(), Ordering::AcqRel, Ordering::Acquire);
        }
        let due = before <= 0 || before < 256 && before + events >= 256;
        if due || self.worker_pid.load(Ordering::Acquire) == 0 {
            self.wake_worker();
        }
    }

    /// The same for what the worker recorded itself.
    pub fn add_waiting_own(&self, events: i64) {
        self.waiting_own.fetch_add(events, Ordering::AcqRel);
        self.add_waiting(events);
    }

    /// How many events of the worker's own wait. It asks before a pass, which integrates all of them.
    pub fn waiting_own(&self) -> i64 {
        self.waiting_own.load(Ordering::Acquire)
    }

    /// A pass has integrated so many of them.
    pub fn own_integrated(&self, events: i64) {
        self.waiting_own.fetch_sub(events, Ordering::AcqRel);
    }

    /// Committed events that wait and that somebody else than the worker recorded.
    pub fn waiting_of_others(&self) -> i64 {
        // This order: an event that comes in between is counted at worst, never left out.
        let own = self.waiting_own.load(Ordering::Acquire);
        self.waiting.load(Ordering::Acquire).saturating_sub(own)
    }

    /// Writers wait for integration: asks for a pass that anchors no tails.
    pub fn hurry_worker(&self) {
        self.hurry.store(true, Ordering::Release);
        self.wake_worker();
    }

    /// Do writers wait for integration?
    pub fn in_hurry(&self) -> bool {
        self.hurry.load(Ordering::Acquire)
    }

    /// A pass begins, which is what they wait for.
    pub fn hurries(&self) {
        self.hurry.store(false, Ordering::Release);
    }

    /// Adds what was committed before the server started to the waiting events, once. False: another backend is at it.
    pub fn restore_waiting(&self, count: impl FnOnce() -> Result<i64>) -> Result<bool> {
        struct Undo<'a>(Option<&'a AtomicU32>);
        impl Drop for Undo<'_> {
            fn drop(&mut self) {
                if let Some(state) = self.0 {
                    state.store(0, Ordering::Release);
                }
            }
        }
        match self.waiting_restored.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                let mut undo = Undo(Some(&self.waiting_restored));
                // A commit is counted after it became visible: what is counted by now is among what is found. What is
                // committed meanwhile may count twice, until the worker's next pass.
                let counted = self.waiting.load(Ordering::Acquire);
                let found = count()?;
                self.waiting.fetch_add(found - counted, Ordering::AcqRel);
                undo.0 = None;
                self.waiting_restored.store(2, Ordering::Release);
                Ok(true)
            }
            Err(state) => Ok(state == 2),
        }
    }

    /// A pass has integrated all that was visible to it: nothing of before the server's start is left to be counted.
    pub fn waiting_is_known(&self) {
        let _ = self.waiting_restored.compare_exchange(0, 2, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The worker anchored the platform log.
    pub fn add_unpublished(&self, anchors: i64) {
        let _ = self.unpublished.fetch_update(Ordering::AcqRel, Ordering::Acquire, |known| {
            (known > 0).then(|| known.saturating_add(anchors))
        });
    }

    /// None: at most `max` anchors are unpublished, or there is no limit (0). Else what was seen, for
    /// [`Database::set_unpublished`]: there may be more.
    pub fn unpublished_above(&self, max: i64) -> Option<i64> {
        let seen = self.unpublished.load(Ordering::Acquire);
        (max > 0 && (seen == 0 || seen > max.saturating_add(1))).then_some(seen)
    }

    /// What the tables say, unless the worker anchored since `seen`.
    pub fn set_unpublished(&self, seen: i64, anchors: i64) {
        let _ = self.unpublished.compare_exchange(seen, anchors + 1, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Asks for a pass; the ticket is covered once [`Database::completed`] reaches it.
    pub fn request_pass(&self) -> u64 {
        let ticket = self.requested.fetch_add(1, Ordering::AcqRel) + 1;
        self.wake_worker();
        ticket
    }

    /// The newest request so far: read before a pass takes its snapshot.
    pub fn newest_request(&self) -> u64 {
        self.requested.load(Ordering::Acquire)
    }

    /// The newest request that is answered.
    pub fn completed(&self) -> u64 {
        self.completed.load(Ordering::Acquire)
    }

    /// How many passes have failed.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Acquire)
    }

    /// A pass that began after `ticket` was given out has been committed.
    pub fn complete(&self, ticket: u64) {
        self.completed.fetch_max(ticket, Ordering::AcqRel);
        self.broadcast();
    }

    /// No worker does what is to be done, from now on if not already.
    fn stops(&self) {
        let _ = self.stopped_since.compare_exchange(0, backend::now(), Ordering::AcqRel, Ordering::Acquire);
    }

    /// A pass is done, or there is nothing to be done here.
    pub fn works(&self) {
        self.stopped_since.store(0, Ordering::Release);
    }

    /// Since when none works although it should.
    pub fn stopped_since(&self) -> Option<i64> {
        Some(self.stopped_since.load(Ordering::Acquire)).filter(|since| *since != 0)
    }

    /// Since when events wait to be integrated.
    pub fn waiting_since(&self) -> Option<i64> {
        Some(self.waiting_since.load(Ordering::Acquire)).filter(|since| *since != 0)
    }

    /// All events that waited when `began` was taken are integrated, and so many were committed since.
    pub fn waits_no_longer(&self, began: i64, left: i64) {
        let since = if left > 0 { began } else { 0 };
        self.waiting_since.store(since, Ordering::Release);
        // Committed between the two: it is counted, and its time is not known to the microsecond.
        if since == 0 && self.waiting.load(Ordering::Acquire) > 0 {
            let _ = self.waiting_since.compare_exchange(0, began, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// A pass failed, or no worker can be had: whoever waits for one gets the message.
    pub fn fail(&self, message: &str) {
        self.stops();
        self.message.set(message);
        self.failures.fetch_add(1, Ordering::AcqRel);
        self.broadcast();
    }

    /// The worker ended, and this is why.
    pub fn ended(&self, why: &str) {
        self.message.set(why);
        self.ends.fetch_add(1, Ordering::AcqRel);
    }

    /// How often the worker ended for a reason that was no failure of a pass.
    pub fn ends(&self) -> u64 {
        self.ends.load(Ordering::Acquire)
    }

    /// Why the last failed pass failed, or the last worker ended.
    pub fn message(&self) -> String {
        self.message.get()
    }

    /// Wakes whoever waits for an answer.
    pub fn broadcast(&self) {
        // SAFETY: the condition variable was initialised at start-up and lives in shared memory.
        unsafe { pg_sys::ConditionVariableBroadcast((&raw const self.answered).cast_mut()) };
    }

    /// Sleeps until the worker answers something or a second has passed. Interruptible.
    pub fn wait_for_answer(&self, done: impl Fn() -> bool) {
        self.wait_for_answer_within(Duration::from_secs(1), done);
    }

    /// Sleeps until the worker answers something or the time has passed. Interruptible.
    pub fn wait_for_answer_within(&self, limit: Duration, done: impl Fn() -> bool) {
        let milliseconds = limit.as_millis().clamp(1, 3_600_000) as c_long;
        // SAFETY: the documented pattern for condition variables: prepare, test, sleep, cancel.
        unsafe {
            let variable = (&raw const self.answered).cast_mut();
            pg_sys::ConditionVariablePrepareToSleep(variable);
            if !done() {
                pg_sys::ConditionVariableTimedSleep(variable, milliseconds, pg_sys::PG_WAIT_EXTENSION);
            }
            pg_sys::ConditionVariableCancelSleep();
        }
    }
}
