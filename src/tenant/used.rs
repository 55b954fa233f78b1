//! Tokens that were used: a token binds once.
//!
//! Owns the set of used token ids in shared memory, which a ROLLBACK cannot undo, and the clock by which tokens end.
//! Promises that an id is accepted once while it is remembered; that it is remembered until its token has expired; that
//! when there is no room the next token is refused, not an old one forgotten; that one tenant's tokens never take more than
//! a quarter of any block of places, so that three tenants together cannot keep a fourth from binding; and that a token
//! that may have been used before the memory began (the server started, or recovered from a crash, or was promoted) is
//! refused for having been issued before. The clock never steps back while the server runs, so a token that has expired
//! stays expired.
//!
//! Nothing is known of what another server of the same database remembers: a token can be used once on the primary and once
//! on each standby, where it can only read.
#![allow(unsafe_code)] // a table in shared memory, under a lock of PostgreSQL's

use crate::error::{Error, Result};
use crate::{backend, settings};
use agd_core::token::CLOCK_SKEW;
use pgrx::pg_sys;
use sha2::{Digest as _, Sha256};
use std::sync::atomic::{AtomicI64, AtomicPtr, Ordering};

/// Places lie in blocks of this many.
const BLOCK: usize = 64;
/// In one block so many are one tenant's at most: a quarter.
const SHARE: usize = BLOCK / 4;
/// An id may stand in so many blocks. All of them are looked at each time (12 kB). Until nine tenths of its share are taken, a
/// tenant's new id finds a place with near certainty.
const WAYS: usize = 8;

/// What is remembered of a token. Both words come from SHA-256 and the secret: nobody can aim at another's.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Key {
    tenant: u64,
    id: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Entry {
    key: Key,
    /// Seconds since 1970: its token is not valid any more. 0: a free place.
    expires_at: u64,
}

#[repr(C)]
struct Memory {
    /// Microseconds since 2000-01-01: when this memory was made.
    began: i64,
    /// … since when this server takes writes. 0: not yet.
    writable: AtomicI64,
    /// The latest time that was seen.
    latest: AtomicI64,
    /// Makes keys and places unpredictable.
    secret: [u8; 32],
    capacity: usize,
    lock: *mut pg_sys::LWLock,
    /// `capacity` of them.
    entries: [Entry; 0],
}

static MEMORY: AtomicPtr<Memory> = AtomicPtr::new(std::ptr::null_mut());
const TRANCHE: &std::ffi::CStr = c"agd tokens";

/// Bytes of shared memory.
pub fn shared_size() -> usize {
    size_of::<Memory>() + settings::max_live_tokens() * size_of::<Entry>()
}

/// Asks for the lock. Called from the shared-memory request hook.
pub fn request() {
    // SAFETY: allowed in that hook.
    unsafe { pg_sys::RequestNamedLWLockTranche(TRANCHE.as_ptr(), 1) };
}

/// Takes the memory. Called from the shared-memory start-up hook: at the start, and after a crash.
pub fn attach() {
    // SAFETY: the memory is as large as was requested, and filled before any backend exists.
    unsafe {
        let mut found = false;
        let memory = pg_sys::ShmemInitStruct(TRANCHE.as_ptr(), shared_size(), &mut found).cast::<Memory>();
        if !found {
            std::ptr::write_bytes(memory.cast::<u8>(), 0, shared_size());
            (*memory).began = backend::now();
            (*memory).capacity = settings::max_live_tokens();
            (*memory).lock = &raw mut (*pg_sys::GetNamedLWLockTranche(TRANCHE.as_ptr())).lock;
            let secret = &raw mut (*memory).secret;
            if !pg_sys::pg_strong_random(secret.cast(), size_of_val(&*secret)) {
                Error::Internal("agd: no random numbers to be had from the operating system".into()).raise();
            }
        }
        MEMORY.store(memory, Ordering::Release);
    }
}

fn memory() -> Option<&'static Memory> {
    // SAFETY: null, or as attach() took it; what changes outside of the lock is atomic.
    unsafe { MEMORY.load(Ordering::Acquire).as_ref() }
}

/// Microseconds since 2000-01-01, never less than before: the clock of tokens.
pub fn now() -> i64 {
    let now = backend::now();
    memory().map_or(now, |memory| {
        // Written to once a second at most: every backend reads it all the time.
        let latest = memory.latest.load(Ordering::Relaxed);
        if now - latest >= 1_000_000 {
            memory.latest.fetch_max(now, Ordering::AcqRel).max(now)
        } else {
            now.max(latest)
        }
    })
}

/// The server takes writes from now on. Called by the launcher, which starts when recovery has ended.
pub fn note_writable() {
    if let Some(memory) = memory() {
        // A launcher that was started anew has nothing to say.
        let _ = memory.writable.compare_exchange(0, backend::now(), Ordering::AcqRel, Ordering::Acquire);
    }
}

/// Tokens issued in this second (since 1970) or before may have been used where nobody remembers it here.
pub fn issued_after() -> Result<u64> {
    let began = memory().and_then(|memory| {
        // SAFETY: reads a flag in shared memory.
        if unsafe { pg_sys::RecoveryInProgress() } {
            return Some(memory.began);
        }
        Some(memory.writable.load(Ordering::Acquire)).filter(|writable| *writable != 0)
    });
    let began = began.ok_or_else(|| Error::WrongState {
        message: "agd's launcher has not started yet".into(),
        hint: "Try again in a moment. If it never starts, raise max_worker_processes and restart the server.".into(),
    })?;
    // An issuer whose clock runs ahead may have dated a token that was used then as late as this.
    Ok(unix_seconds(began).saturating_add(CLOCK_SKEW))
}

/// Whole seconds since 1970 of microseconds since 2000-01-01.
pub fn unix_seconds(micros: i64) -> u64 {
    u64::try_from(micros.saturating_add(crate::log::record::EPOCH_DIFFERENCE).div_euclid(1_000_000)).unwrap_or_default()
}

/// Remembers a tenant's token that is about to bind. False: it was used already. 53400 when there is no room for it.
///
/// The one thing in a transaction that its end does not undo.
pub fn remember(tenant: &str, kid: &str, token_id: &str, expires_at: u64) -> Result<bool> {
    let memory = MEMORY.load(Ordering::Acquire);
    if memory.is_null() {
        return Err(crate::shmem::not_preloaded());
    }
    let now = unix_seconds(now());
    // SAFETY: attach() filled the fixed part, which nobody changes; a process global.
    let (secret, capacity, lock, database) =
        unsafe { ((*memory).secret, (*memory).capacity, (*memory).lock, pg_sys::MyDatabaseId) };
    let whose = Sha256::new().chain_update(secret).chain_update(database.to_u32().to_be_bytes());
    let [owner, ..] = words(whose.clone().chain_update([1]).chain_update(tenant));
    let id = whose.chain_update([2]).chain_update((kid.len() as u64).to_be_bytes()).chain_update(kid);
    let [id, at, ..] = words(id.chain_update(token_id));
    let (key, blocks) = (Key { tenant: owner, id }, blocks(capacity, at));

    // SAFETY: the lock is PostgreSQL's own; nothing between can raise. The entries lie behind the fixed part.
    let outcome = unsafe {
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        let entries = std::slice::from_raw_parts_mut((&raw mut (*memory).entries).cast::<Entry>(), capacity);
        let outcome = place(entries, &blocks, Entry { key, expires_at }, now);
        pg_sys::LWLockRelease(lock);
        outcome
    };
    outcome.ok_or_else(|| Error::OverCeiling {
        message: format!("agd cannot remember another used token of tenant \"{tenant}\""),
        hint: format!(
            "A used token is remembered until it expires, and one tenant's take at most a quarter of \
             agd.max_live_tokens ({capacity}). Issue tokens that live shorter (agd.token_max_lifetime), or raise \
             agd.max_live_tokens and restart the server."
        ),
    })
}

fn words(digest: Sha256) -> [u64; 4] {
    let digest = digest.finalize();
    std::array::from_fn(|word| u64::from_ne_bytes(std::array::from_fn(|byte| digest[8 * word + byte])))
}

/// The first places of the blocks in which an id may stand: always the same.
fn blocks(capacity: usize, id: u64) -> [usize; WAYS] {
    let all = (capacity / BLOCK) as u64;
    std::array::from_fn(|way| (mix(id.wrapping_add(way as u64)) % all) as usize * BLOCK)
}

/// Spreads what differs little (the last step of SplitMix64).
fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Some(true): it was put there; Some(false): it was there; None: there is no place. Of the blocks that have one for its
/// tenant, it takes one with the fewest of the tenant's; among these, one with the fewest of all.
fn place(entries: &mut [Entry], blocks: &[usize], new: Entry, now: u64) -> Option<bool> {
    let mut best: Option<((usize, usize), usize)> = None;
    for &first in blocks {
        let (mut own, mut taken, mut free) = (0, 0, None);
        for (index, entry) in entries.iter().enumerate().skip(first).take(BLOCK) {
            if entry.expires_at <= now {
                free = Some(index);
            } else if entry.key == new.key {
                return Some(false);
            } else {
                (own, taken) = (own + usize::from(entry.key.tenant == new.key.tenant), taken + 1);
            }
        }
        let load = (own, taken);
        if let Some(index) = free
            && own < SHARE
            && best.is_none_or(|(least, _)| load < least)
        {
            best = Some((load, index));
        }
    }
    let (_, index) = best?;
    entries[index] = new;
    Some(true)
}

#[cfg(any(test, feature = "pg_test"))]
pub mod trial {
    //! The set without a server, for tests.

    use super::{BLOCK, Entry, Key, SHARE, blocks, place, words};
    use sha2::{Digest as _, Sha256};

    const FREE: Entry = entry(0, 0, 0);

    const fn entry(tenant: u64, id: u64, expires_at: u64) -> Entry {
        Entry { key: Key { tenant, id }, expires_at }
    }

    /// A set of so many places.
    pub struct Set(Vec<Entry>);

    impl Set {
        /// An empty one.
        pub fn new(capacity: usize) -> Self {
            Self(vec![FREE; capacity])
        }

        /// Does the tenant's n-th id, of a token that never expires, find a place, with places as SHA-256 gives them?
        pub fn takes(&mut self, tenant: u64, n: u64) -> bool {
            let [id, at, ..] = words(Sha256::new().chain_update(tenant.to_be_bytes()).chain_update(n.to_be_bytes()));
            let blocks = blocks(self.0.len(), at);
            place(&mut self.0, &blocks, entry(tenant, id, 2), 1) == Some(true)
        }
    }

    /// A place is given again when its token has expired, and not before.
    pub fn expiring() -> [Option<bool>; 6] {
        let mut entries: [Entry; BLOCK] = std::array::from_fn(|place| entry(place as u64, 9, 99));
        entries[5] = FREE;
        [(1, 10, 5), (1, 10, 9), (2, 20, 9), (2, 20, 10), (1, 30, 19), (1, 30, 20)]
            .map(|(id, expires_at, now)| place(&mut entries, &[0], entry(1, id, expires_at), now))
    }

    /// So many of one tenant's and of a second one's find a place in a block; and then a third one's.
    pub fn in_one_block() -> ([usize; 2], Option<bool>) {
        let mut entries = [FREE; BLOCK];
        let mut fill = |tenant| {
            (0..2 * SHARE as u64).filter(|&id| place(&mut entries, &[0], entry(tenant, id, 2), 1) == Some(true)).count()
        };
        let filled = [fill(1), fill(2)];
        (filled, place(&mut entries, &[0], entry(3, 0, 2), 1))
    }
}
