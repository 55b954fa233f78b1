//! Memory that is not to be had.
//!
//! Owns the allocator of everything here that is Rust. Rust ends a process that gets no memory by a signal, and PostgreSQL
//! answers that with a restart of the whole server: everybody's sessions, for one that asked for too much. So what grows
//! by a caller's doing is asked for through [`fallible`] and ends in an error (53200); and where nobody asked that way,
//! the session ends with a FATAL of the same SQLSTATE, as it does for PostgreSQL itself: rolled back, its locks and its
//! place in shared memory given up. Promises that no other session notices. Never unwinds and never jumps: whoever asked is in
//! the middle of something, and never goes on.
//!
//! Nothing is asked for where the session could not end so: in the callbacks of a commit that has happened, and between the
//! taking and the giving back of a lock of shared memory (see there).
#![allow(unsafe_code)] // an allocator; reporting a FATAL

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::{c_char, c_int};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The system's, but for what happens when it has nothing to give.
struct Allocator;

// A test program is linked without PostgreSQL, which alone can end a session.
#[cfg_attr(not(test), global_allocator)]
#[cfg_attr(test, allow(dead_code))]
static ALLOCATOR: Allocator = Allocator;

// SAFETY: everything is the system allocator's; what comes back is its answer, or null where the caller asked to be told.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on to the caller.
        given(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on to the caller.
        given(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: passed on to the caller.
        given(unsafe { System.realloc(memory, layout, size) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: passed on to the caller.
        unsafe { System.dealloc(memory, layout) };
    }
}

#[inline]
fn given(memory: *mut u8) -> *mut u8 {
    if memory.is_null() {
        nothing_to_be_had();
    }
    memory
}

// Of this process, which has one thread that allocates here.
/// How many callers ask to be told.
static FALLIBLE: AtomicU32 = AtomicU32::new(0);
/// How often the end of this session has begun.
static ENDING: AtomicU32 = AtomicU32::new(0);

/// Runs what asks for memory by `try_reserve` and its kin: they are told when there is none.
pub fn fallible<T>(body: impl FnOnce() -> T) -> T {
    struct Told;
    impl Drop for Told {
        fn drop(&mut self) {
            FALLIBLE.store(FALLIBLE.load(Relaxed) - 1, Relaxed);
        }
    }
    FALLIBLE.store(FALLIBLE.load(Relaxed) + 1, Relaxed);
    let _told = Told;
    body()
}

/// Does this session end for want of memory? Then what it holds in Rust is half changed and half borrowed: callbacks of
/// PostgreSQL's leave it alone, and give back only what stands in shared memory.
pub fn is_ending() -> bool {
    ENDING.load(Relaxed) > 0
}

#[cold]
#[inline(never)]
fn nothing_to_be_had() {
    if FALLIBLE.load(Relaxed) == 0 {
        end_session();
    }
}

/// Ends this session. Does not return.
fn end_session() -> ! {
    unsafe extern "C-unwind" {
        fn errstart(elevel: c_int, domain: *const c_char) -> bool;
        fn errcode(sqlstate: c_int) -> c_int;
        fn errmsg(format: *const c_char, ...) -> c_int;
        fn errhint(format: *const c_char, ...) -> c_int;
        fn errfinish(file: *const c_char, line: c_int, function: *const c_char);
    }
    // PostgreSQL goes on with its end where an error interrupts it; but not for ever.
    if ENDING.fetch_add(1, Relaxed) < 3 {
        // SAFETY: what the macro ereport(FATAL, …) expands to. It runs PostgreSQL's own end of a process, from the frame that
        // asked, and does not come back: no frame is left or unwound. PostgreSQL keeps memory for such messages.
        unsafe {
            if errstart(pgrx::PgLogLevel::FATAL as c_int, std::ptr::null()) {
                errcode(pgrx::PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY as c_int);
                errmsg(c"%s".as_ptr(), c"out of memory".as_ptr());
                errhint(
                    c"%s".as_ptr(),
                    c"agd could get no memory: give the server more, or ask for less at a time.".as_ptr(),
                );
            }
            errfinish(c"agd".as_ptr(), 0, std::ptr::null());
        }
    }
    std::process::abort()
}
