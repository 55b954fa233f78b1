//! The binding of each backend where its parallel workers can read it.
//!
//! Owns one slot in shared memory for each process that can lead a parallel query. Promises that a worker sees what its
//! leader is bound to, or nothing, never a mix and never another's: only the leader writes its slot, it does so outside of
//! parallel queries, and a reader that meets a change looks again. This is what makes agd.current_tenant() PARALLEL SAFE.
#![allow(unsafe_code)] // slots in shared memory

use super::binding::{self, Binding, Present};
use super::used;
use crate::backend;
use crate::error::{Error, Result};
use pgrx::pg_sys;
use std::sync::atomic::{AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};

/// A tenant's name has at most 63 bytes, a principal at most 128 characters.
const TENANT_WORDS: usize = 8;
const PRINCIPAL_WORDS: usize = 64;
const WORDS: usize = TENANT_WORDS + PRINCIPAL_WORDS;

const UNBOUND: u32 = 0;
const BOUND: u32 = 1;
const LOST: u32 = 2;

#[repr(C)]
struct Slot {
    /// Odd: it is being written.
    version: AtomicU32,
    state: AtomicU32,
    session_user: AtomicU32,
    /// Bytes of the tenant's name, and above 16 bits those of the principal's.
    lengths: AtomicU32,
    /// 1: a materialized view's query runs, which is the session's own (src/identity.rs).
    own_query: AtomicU32,
    /// 0: never.
    expires_at: AtomicI64,
    text: [AtomicU64; WORDS],
}

static SLOTS: AtomicPtr<Slot> = AtomicPtr::new(std::ptr::null_mut());

fn count() -> usize {
    // SAFETY: fixed before shared memory is requested.
    usize::try_from(unsafe { pg_sys::MaxBackends }).unwrap_or_default()
}

/// Bytes of shared memory.
pub fn shared_size() -> usize {
    count() * size_of::<Slot>()
}

/// Takes the memory. Called from the shared-memory start-up hook.
pub fn attach() {
    // SAFETY: the memory is as large as was requested; all-zero bytes are valid slots, and are written before any backend
    // exists.
    unsafe {
        let mut found = false;
        let slots = pg_sys::ShmemInitStruct(c"agd bindings".as_ptr(), shared_size(), &mut found).cast::<Slot>();
        if !found {
            std::ptr::write_bytes(slots, 0, count());
        }
        SLOTS.store(slots, Ordering::Release);
    }
}

fn slot(index: Option<usize>) -> Option<&'static Slot> {
    let slots = SLOTS.load(Ordering::Acquire);
    let index = index.filter(|index| *index < count() && !slots.is_null())?;
    // SAFETY: within the memory that attach() took, which is mapped for the life of the process; all fields are atomics.
    Some(unsafe { &*slots.add(index) })
}

/// The place of this process among those that can lead a query.
fn own() -> Option<usize> {
    // SAFETY: process globals.
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    let number = unsafe { pg_sys::MyBackendId } - 1;
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    // SAFETY: as above.
    let number = unsafe { pg_sys::MyProcNumber };
    usize::try_from(number).ok()
}

/// The place of the process that this parallel worker works for.
fn leader() -> Option<usize> {
    // SAFETY: process globals, set before a worker runs anything.
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    let number = unsafe { pg_sys::ParallelLeaderBackendId } - 1;
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    // SAFETY: as above.
    let number = unsafe { pg_sys::ParallelLeaderProcNumber };
    usize::try_from(number).ok()
}

fn write(state: u32, fill: impl FnOnce(&Slot)) {
    let Some(slot) = slot(own()) else { return };
    slot.version.fetch_add(1, Ordering::AcqRel);
    fence(Ordering::Release);
    slot.state.store(state, Ordering::Relaxed);
    fill(slot);
    slot.version.fetch_add(1, Ordering::Release);
}

/// Shows the binding to workers to come.
pub fn publish(binding: &Binding) {
    write(BOUND, |slot| {
        let (tenant, principal) = (binding.tenant.as_bytes(), binding.principal.as_bytes());
        slot.session_user.store(binding.session_user.to_u32(), Ordering::Relaxed);
        slot.lengths.store(tenant.len() as u32 | (principal.len() as u32) << 16, Ordering::Relaxed);
        slot.expires_at.store(binding.proof.as_ref().map_or(0, |proof| proof.expires_at), Ordering::Relaxed);
        for (words, bytes) in [(&slot.text[..TENANT_WORDS], tenant), (&slot.text[TENANT_WORDS..], principal)] {
            for (word, bytes) in words.iter().zip(bytes.chunks(8)) {
                let mut padded = [0; 8];
                padded[..bytes.len()].copy_from_slice(bytes);
                word.store(u64::from_ne_bytes(padded), Ordering::Relaxed);
            }
        }
    });
}

/// The binding was rolled back.
pub fn lose() {
    write(LOST, |_| ());
}

/// There is no binding any more, and no query of the session's own.
pub fn clear() {
    write(UNBOUND, |slot| slot.own_query.store(0, Ordering::Release));
}

/// Shows whether a query that the session runs in a restricted operation is its own.
pub fn show_own_query(is_own: bool) {
    if let Some(slot) = slot(own()) {
        slot.own_query.store(u32::from(is_own), Ordering::Release);
    }
}

/// The same of the leader of this parallel worker.
pub fn leader_runs_own_query() -> bool {
    slot(leader()).is_some_and(|slot| slot.own_query.load(Ordering::Acquire) == 1)
}

/// What the leader of this parallel worker is bound to; None: nothing but its login role speaks, which workers share.
pub fn leaders() -> Result<Option<Present>> {
    let slot = slot(leader()).ok_or_else(|| Error::Internal("agd: a parallel worker without a leader".into()))?;
    loop {
        let before = slot.version.load(Ordering::Acquire);
        let state = slot.state.load(Ordering::Relaxed);
        let session_user = slot.session_user.load(Ordering::Relaxed);
        let lengths = slot.lengths.load(Ordering::Relaxed);
        let expires_at = slot.expires_at.load(Ordering::Relaxed);
        let text: [[u8; 8]; WORDS] = std::array::from_fn(|word| slot.text[word].load(Ordering::Relaxed).to_ne_bytes());
        fence(Ordering::Acquire);
        if before % 2 == 1 || slot.version.load(Ordering::Relaxed) != before {
            pgrx::check_for_interrupts!();
            std::hint::spin_loop();
            continue;
        }
        if state == UNBOUND {
            return Ok(None);
        }
        if state == LOST {
            return Err(binding::lost());
        }
        if session_user != backend::session_user().to_u32() {
            return Err(binding::another_session_user());
        }
        if expires_at != 0 && used::now() >= expires_at {
            return Err(binding::expired());
        }
        let text = text.as_flattened();
        let read = |from: usize, length: usize| text.get(from..from + length).map(String::from_utf8_lossy);
        let tenant = read(0, (lengths & 0xffff) as usize);
        let principal = read(8 * TENANT_WORDS, (lengths >> 16) as usize);
        let (Some(tenant), Some(principal)) = (tenant, principal) else {
            return Err(Error::Internal("agd: a shared binding is longer than its slot".into()));
        };
        return Ok(Some(Present { tenant: tenant.into_owned(), principal: principal.into_owned() }));
    }
}
