//! How far a verification is, for everybody to see.
//!
//! Owns a small table in shared memory, one slot for each verification that runs, the notices to its own client, and
//! `agd.verifications()`. Promises that a slot is free again when its verification ends, however it ends: with a report,
//! with an error or a cancel, or with its backend. Never holds a verification up: who finds no free slot is not shown.
#![allow(unsafe_code)] // slots in shared memory

use crate::backend;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use std::cell::Cell;
use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// So many verifications of one server are shown at once.
const SLOTS: usize = 64;
/// The client is told as often as this.
const NOTICE_INTERVAL: Duration = Duration::from_secs(5);

/// What a verification is at.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Phase {
    /// Leaves are recomputed from events, log by log.
    Leaves = 0,
    /// Events and transactions are counted against the leaves.
    Completeness = 1,
    /// Something is wrong: what exactly?
    Naming = 2,
}

impl Phase {
    fn name(number: u32) -> &'static str {
        match number {
            0 => "recomputing leaves",
            1 => "counting events",
            _ => "naming what is wrong",
        }
    }
}

/// One verification. A slot is taken by its process id, and shown once its database is set.
#[repr(C)]
struct Slot {
    pid: AtomicI32,
    database: AtomicU32,
    role: AtomicU32,
    full_scan: AtomicBool,
    started_at: AtomicI64,
    log_id: AtomicI32,
    phase: AtomicU32,
    done: AtomicU64,
    total: AtomicU64,
}

#[repr(C)]
struct Shared {
    slots: [Slot; SLOTS],
}

static SHARED: AtomicPtr<Shared> = AtomicPtr::new(std::ptr::null_mut());

/// Bytes of shared memory to be reserved.
pub const SHARED_SIZE: usize = size_of::<Shared>();

/// Finds or makes the slots. Called from the start-up hook of shared memory, in the postmaster.
pub fn attach() {
    // SAFETY: ShmemInitStruct returns SHARED_SIZE bytes, maximally aligned; all-zero bytes are free slots. No backend exists
    // yet.
    unsafe {
        let mut found = false;
        let shared = pg_sys::ShmemInitStruct(c"agd verify".as_ptr(), SHARED_SIZE, &mut found).cast::<Shared>();
        if !found {
            std::ptr::write_bytes(shared, 0, 1);
        }
        SHARED.store(shared, Ordering::Release);
    }
}

fn slots() -> &'static [Slot] {
    let shared = SHARED.load(Ordering::Acquire);
    if shared.is_null() {
        return &[];
    }
    // SAFETY: published by attach(), mapped for the life of the process; every field is an atomic.
    unsafe { &(*shared).slots }
}

fn this_process() -> i32 {
    // SAFETY: a process global.
    unsafe { pg_sys::MyProcPid }
}

fn this_database() -> u32 {
    // SAFETY: a process global.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}

impl Slot {
    fn free(&self) {
        self.database.store(0, Ordering::Release);
        self.pid.store(0, Ordering::Release);
    }
}

/// A backend ends, perhaps in the middle of a verification: nothing unwinds then.
#[pg_guard]
unsafe extern "C-unwind" fn backend_exits(_code: c_int, _argument: pg_sys::Datum) {
    let pid = this_process();
    slots().iter().filter(|slot| slot.pid.load(Ordering::Acquire) == pid).for_each(Slot::free);
}

fn free_at_exit() {
    thread_local! {
        static REGISTERED: Cell<bool> = const { Cell::new(false) };
    }
    if !REGISTERED.replace(true) {
        // SAFETY: a static function, once per process.
        unsafe { pg_sys::before_shmem_exit(Some(backend_exits), pg_sys::Datum::from(0)) };
    }
}

/// A verification that runs. It is shown until this is dropped.
pub struct Progress {
    slot: Option<&'static Slot>,
    done: u64,
    total: u64,
    told: Instant,
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            slot.free();
        }
    }
}

impl Progress {
    /// Begins, with so many leaves to go through.
    pub fn begin(full_scan: bool, total: u64) -> Self {
        free_at_exit();
        let mine =
            |slot: &&Slot| slot.pid.compare_exchange(0, this_process(), Ordering::AcqRel, Ordering::Acquire).is_ok();
        let slot = slots().iter().find(mine);
        if let Some(slot) = slot {
            slot.role.store(backend::outer_user().to_u32(), Ordering::Relaxed);
            slot.full_scan.store(full_scan, Ordering::Relaxed);
            slot.started_at.store(backend::now(), Ordering::Relaxed);
            slot.log_id.store(0, Ordering::Relaxed);
            slot.phase.store(Phase::Leaves as u32, Ordering::Relaxed);
            slot.done.store(0, Ordering::Relaxed);
            slot.total.store(total, Ordering::Relaxed);
            slot.database.store(this_database(), Ordering::Release);
        }
        Progress { slot, done: 0, total, told: Instant::now() }
    }

    /// Goes on with this log.
    pub fn log(&self, log_id: i32) {
        if let Some(slot) = self.slot {
            slot.log_id.store(log_id, Ordering::Relaxed);
        }
    }

    /// Goes on with this.
    pub fn phase(&self, phase: Phase) {
        if let Some(slot) = self.slot {
            slot.log_id.store(0, Ordering::Relaxed);
            slot.phase.store(phase as u32, Ordering::Relaxed);
        }
    }

    /// So many leaves more are done, or found not to be there to be done. Serves interrupts.
    pub fn step(&mut self, leaves: u64) {
        pgrx::check_for_interrupts!();
        self.done += leaves;
        if let Some(slot) = self.slot {
            slot.done.store(self.done, Ordering::Relaxed);
        }
        if self.told.elapsed() >= NOTICE_INTERVAL {
            self.tell();
        }
    }

    /// In between: serves interrupts, tells the client when it is time.
    pub fn still_busy(&mut self) {
        self.step(0);
    }

    fn tell(&mut self) {
        let phase = self.slot.map_or(Phase::Leaves as u32, |slot| slot.phase.load(Ordering::Relaxed));
        notice!(
            "agd.verify: {}: {} of {} leaves ({} %)",
            Phase::name(phase),
            self.done,
            self.total,
            (self.done * 100).checked_div(self.total).unwrap_or(100).min(100)
        );
        self.told = Instant::now();
    }
}

/// `agd.verifications()`
#[allow(clippy::type_complexity)] // the shape of the SQL function
#[pg_extern(sql = false)]
fn verifications() -> TableIterator<
    'static,
    (
        name!(pid, i32),
        name!(role, pg_sys::Oid),
        name!(started_at, Option<TimestampWithTimeZone>),
        name!(full_scan, bool),
        name!(phase, String),
        name!(log_id, Option<i32>),
        name!(leaves_done, i64),
        name!(leaves_total, i64),
    ),
> {
    let mine = this_database();
    let shown = slots().iter().filter(move |slot| slot.database.load(Ordering::Acquire) == mine).map(|slot| {
        let log_id = slot.log_id.load(Ordering::Relaxed);
        (
            slot.pid.load(Ordering::Relaxed),
            pg_sys::Oid::from(slot.role.load(Ordering::Relaxed)),
            TimestampWithTimeZone::try_from(slot.started_at.load(Ordering::Relaxed)).ok(),
            slot.full_scan.load(Ordering::Relaxed),
            Phase::name(slot.phase.load(Ordering::Relaxed)).to_owned(),
            (log_id != 0).then_some(log_id),
            slot.done.load(Ordering::Relaxed) as i64,
            slot.total.load(Ordering::Relaxed) as i64,
        )
    });
    TableIterator::new(shown.collect::<Vec<_>>())
}
