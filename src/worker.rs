//! The launcher, and one worker per database that has the extension.
//!
//! Owns when the sequencer runs (at 256 waiting events, by age, or on request) and when fleets are swept. Promises that a
//! worker that dies is started again, that one database has one worker at most, that a quiet database is left asleep, and
//! that a worker that cannot live leaves word why. Never does the sequencer's work itself, never touches the network.
#![allow(unsafe_code)] // background workers are registered and run through raw structures

pub mod databases;
mod pinned;

use crate::error::{Error, OrRaise, Result};
use crate::fleet::sweep;
use crate::log::sequencer::{self, Tails};
use crate::shmem::{self, Database};
use crate::{backend, catalog, denied, fault, home, settings};
use pgrx::prelude::*;
use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_int, c_long};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Full tiles are due at once, but not more often than this: each pass commits.
const PASS_INTERVAL: Duration = Duration::from_millis(100);
/// How long refused attempts rest when the record is not at home here, before the worker looks again.
const NOT_AT_HOME: Duration = Duration::from_secs(5);
/// So many waiting events make a pass due whatever the interval.
const MANY_EVENTS: i64 = 1 << 16;
/// A worker that failed is started again after this; after twice as long when it fails again, and so on to 64 times.
const RESTART_DELAY: Duration = Duration::from_secs(1);
/// Databases that could not be visited are tried again after this.
const BETWEEN_VISITS: Duration = Duration::from_secs(2);
/// A visit that takes longer than this is made again later.
const LONGEST_VISIT: Duration = Duration::from_secs(5);
/// What pg_database says instead of a limit of connections where a DROP DATABASE has begun.
const INVALID: i32 = -2;

fn write_name(target: &mut [c_char], name: &str) {
    let length = target.len() - 1;
    for (slot, byte) in target.iter_mut().zip(name.bytes().take(length).chain([0])) {
        *slot = byte as c_char;
    }
}

fn background_worker(name: &str, kind: &str, function: &str) -> pg_sys::BackgroundWorker {
    let mut worker = pg_sys::BackgroundWorker {
        bgw_flags: (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION) as c_int,
        bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished,
        bgw_restart_time: pg_sys::BGW_NEVER_RESTART as c_int,
        ..Default::default()
    };
    write_name(&mut worker.bgw_name, name);
    write_name(&mut worker.bgw_type, kind);
    write_name(&mut worker.bgw_library_name, "agd");
    write_name(&mut worker.bgw_function_name, function);
    worker
}

/// Registers the launcher. Called once, in the postmaster, from `_PG_init`.
pub fn init() {
    // A cluster that pg_upgrade is at work on must stay as it is.
    // SAFETY: a global that the postmaster sets from its command line.
    if unsafe { pg_sys::IsBinaryUpgrade } {
        return;
    }
    let mut launcher = background_worker("agd launcher", "agd launcher", "agd_launcher_main");
    launcher.bgw_restart_time = 5;
    // SAFETY: called while shared_preload_libraries is processed; the structure is copied.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut launcher) };
}

unsafe extern "C-unwind" {
    // PostgreSQL's own handlers, as the C functions that they are.
    fn die(signal: c_int);
    #[link_name = "SignalHandlerForConfigReload"]
    fn reload(signal: c_int);
}

fn install_signal_handlers() {
    // SAFETY: `die` and the reload handler are PostgreSQL's own; interrupts are then served at safe points.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        {
            pg_sys::pqsignal(pg_sys::SIGTERM as c_int, Some(die));
            pg_sys::pqsignal(pg_sys::SIGHUP as c_int, Some(reload));
        }
        #[cfg(feature = "pg18")]
        {
            pg_sys::pqsignal_be(pg_sys::SIGTERM as c_int, Some(die));
            pg_sys::pqsignal_be(pg_sys::SIGHUP as c_int, Some(reload));
        }
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// Sleeps until woken or until the time is up (None: no limit), then serves interrupts and re-reads settings if asked to.
fn sleep(limit: Option<Duration>) {
    // SAFETY: the process latch is this process's own.
    unsafe {
        let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH;
        if limit.is_some() {
            events |= pg_sys::WL_TIMEOUT;
        }
        let timeout = limit.map_or(-1, |limit| limit.as_millis().clamp(1, 3_600_000) as c_long);
        pg_sys::WaitLatch(pg_sys::MyLatch, events as c_int, timeout, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
        pgrx::check_for_interrupts!();
        if pg_sys::ConfigReloadPending != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// One transaction of a background process, with one snapshot for all of it or one for each statement. `committed`
/// follows the commit before anything can fail or be interrupted.
fn in_transaction<T>(one_snapshot: bool, body: impl FnOnce() -> T, committed: impl FnOnce(&T)) -> T {
    // SAFETY: the pattern of every background worker; an error ends the process.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        if one_snapshot {
            pg_sys::XactIsoLevel = pg_sys::XACT_REPEATABLE_READ as c_int;
        }
        let result = body();
        fault::point().or_raise();
        pg_sys::CommitTransactionCommand();
        committed(&result);
        fault::point().or_raise();
        pg_sys::pgstat_report_stat(true);
        result
    }
}

/// Runs `body` under a snapshot, in a transaction.
fn with_snapshot<T>(body: impl FnOnce() -> Result<T>) -> T {
    // SAFETY: pushed and popped in pairs; an error ends the process.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let result = body().or_raise();
        pg_sys::PopActiveSnapshot();
        result
    }
}

// ------------------------------------------------------------------------------------------------------- the launcher

/// The launcher's main function.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn agd_launcher_main(_argument: pg_sys::Datum) {
    install_signal_handlers();
    // It is started when recovery has ended.
    crate::tenant::used::note_writable();
    // SAFETY: connects to no database: shared catalogs only.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0);
        shmem::set_launcher_latch(pg_sys::MyLatch);
        pg_sys::before_shmem_exit(Some(launcher_exits), pg_sys::Datum::from(0));
    }
    let mut visits = Visits::begin();
    loop {
        let mut again = visits.go_on();
        let mut present = None;
        for (oid, database) in shmem::databases() {
            if !database.wanted.load(Ordering::Acquire) || database.worker_pid.load(Ordering::Acquire) != 0 {
                continue;
            }
            let find = |present: &[Present]| present.iter().find(|database| database.oid == oid).copied();
            // It may have been made since the list was. What is gone is gone for good.
            let found = find(present.get_or_insert_with(present_databases))
                .or_else(|| find(present.insert(present_databases())));
            let Some(found) = found else {
                database.release();
                continue;
            };
            again = Some(again.map_or(RESTART_DELAY, |sooner| sooner.min(RESTART_DELAY)));
            let held = database.held_until.load(Ordering::Acquire) > backend::now();
            if held || !found.whole || databases::is_kept_free(oid) {
                continue;
            }
            let starts = database.starts.fetch_add(1, Ordering::AcqRel).min(6);
            let delay = RESTART_DELAY.as_micros() as i64;
            database.held_until.store(backend::now() + (delay << starts), Ordering::Release);
            match start_worker(oid) {
                // SAFETY: the handle is this process's own copy.
                Some(handle) => unsafe { pg_sys::pfree(handle.cast()) },
                None => database.fail(NO_PROCESS),
            }
        }
        sleep(again);
    }
}

/// Why no worker runs, when none can be started.
const NO_PROCESS: &str = "no background worker process is free: raise max_worker_processes";

/// Which databases have the extension shows only inside them: one short visit each when the launcher starts, one after the
/// other. Those that cannot be visited now are tried again until they can, or are gone.
struct Visits {
    due: VecDeque<pg_sys::Oid>,
    failed: Vec<pg_sys::Oid>,
    under_way: Option<(pg_sys::Oid, *mut pg_sys::BackgroundWorkerHandle, Instant)>,
}

impl Visits {
    fn begin() -> Visits {
        Visits {
            due: present_databases().iter().map(|database| database.oid).collect(),
            failed: Vec::new(),
            under_way: None,
        }
    }

    /// When to go on; None: all are visited.
    fn go_on(&mut self) -> Option<Duration> {
        loop {
            if let Some((oid, handle, since)) = self.under_way {
                let seen = shmem::was_visited(oid)
                    || shmem::existing(oid).is_some_and(|slot| slot.worker_pid.load(Ordering::Acquire) != 0);
                // SAFETY: the handle is this process's own copy, freed once.
                let over = unsafe {
                    let mut pid = 0;
                    let status = pg_sys::GetBackgroundWorkerPid(handle, &mut pid);
                    let over =
                        seen || status == pg_sys::BgwHandleStatus::BGWH_STOPPED || since.elapsed() > LONGEST_VISIT;
                    if over {
                        pg_sys::pfree(handle.cast());
                    }
                    over
                };
                if !over {
                    return Some(Duration::from_millis(20));
                }
                self.under_way = None;
                // It may have been seen between the two questions.
                if !seen && !shmem::was_visited(oid) {
                    self.failed.push(oid);
                }
            }
            let Some(oid) = self.due.pop_front() else {
                shmem::set_unvisited(&self.failed);
                self.due.extend(self.failed.drain(..));
                return if self.due.is_empty() { None } else { Some(BETWEEN_VISITS) };
            };
            if !present_databases().iter().any(|database| database.oid == oid && database.whole) {
                continue;
            }
            if databases::is_kept_free(oid) {
                self.failed.push(oid);
                continue;
            }
            match start_worker(oid) {
                Some(handle) => self.under_way = Some((oid, handle, Instant::now())),
                None => {
                    // Nor is there a process for the others.
                    self.failed.push(oid);
                    self.failed.extend(self.due.drain(..));
                }
            }
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn launcher_exits(_code: c_int, _argument: pg_sys::Datum) {
    shmem::set_launcher_latch(std::ptr::null_mut());
}

/// A database that pg_database has.
#[derive(Clone, Copy)]
struct Present {
    oid: pg_sys::Oid,
    /// It is not being dropped, nor was it left in the middle of that.
    whole: bool,
}

/// Every database, whether or not it accepts connections: agd's worker goes where autovacuum's do.
fn present_databases() -> Vec<Present> {
    let body = || {
        let relation = catalog::Relation::open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock);
        let mut databases = Vec::new();
        catalog::scan(&relation, None, std::ptr::null_mut(), &mut [], |tuple| {
            // SAFETY: a tuple of pg_database begins with its fixed part.
            let database = unsafe { &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>() };
            databases.push(Present { oid: database.oid, whole: database.datconnlimit != INVALID });
            Ok(())
        })?;
        Ok(databases)
    };
    in_transaction(false, || with_snapshot(body), |_| {})
}

/// None: no worker process is to be had now.
fn start_worker(database: pg_sys::Oid) -> Option<*mut pg_sys::BackgroundWorkerHandle> {
    let mut worker =
        background_worker(&format!("agd worker for database {}", database.to_u32()), "agd worker", "agd_worker_main");
    worker.bgw_main_arg = pg_sys::Datum::from(database);
    // SAFETY: the structure is copied; the handle lives until it is freed. The launcher is told when the worker ends.
    unsafe {
        worker.bgw_notify_pid = pg_sys::MyProcPid;
        let mut handle = std::ptr::null_mut();
        let before = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        let registered = pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle);
        pg_sys::MemoryContextSwitchTo(before);
        if !registered {
            log!("agd: no worker can be started for database {}: {NO_PROCESS}", database.to_u32());
        }
        registered.then_some(handle)
    }
}

// --------------------------------------------------------------------------------------------------------- the worker

/// A worker's main function; the argument is its database's oid.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn agd_worker_main(argument: pg_sys::Datum) {
    install_signal_handlers();
    let oid = pg_sys::Oid::from(argument.value() as u32);
    DATABASE.set(oid);
    pinned::pin();
    // SAFETY: connects as the bootstrap superuser, also where others may not connect. The hook is this process's own.
    unsafe {
        PREVIOUS_LOG = pg_sys::emit_log_hook;
        pg_sys::emit_log_hook = Some(leave_word);
        pg_sys::BackgroundWorkerInitializeConnectionByOid(oid, pg_sys::InvalidOid, pg_sys::BGWORKER_BYPASS_ALLOWCONN);
    }
    pinned::be_oneself();
    let found = slot(oid);
    shmem::visited(oid);
    let Some(database) = found else { return };
    // SAFETY: this process's own pid and latch.
    unsafe {
        if !database.attach_worker(pg_sys::MyProcPid, pg_sys::MyLatch) {
            return;
        }
        pg_sys::before_shmem_exit(Some(worker_exits), argument);
    }
    database.wanted.store(false, Ordering::Release);
    let now = Instant::now();
    let worker = Worker { database, timer: Some(now), last_pass: None, last_drain: None, next_sweep: Some(now) };
    if worker.run() == End::MadeWay {
        // The launcher sends another one when the database may be connected to again.
        return;
    }
    // The extension was dropped: nothing to restart for, and nothing to tell.
    denied::clear(database);
    database.wanted.store(false, Ordering::Release);
    database.works();
    database.set_guards(0);
    database.record.set("");
    unsafe {
        // SAFETY: this process's own pid.
        database.detach_worker(pg_sys::MyProcPid);
    }
}

thread_local! {
    /// The database of this worker.
    static DATABASE: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::InvalidOid) };
    /// The error that ends this worker is told already.
    static TOLD: Cell<bool> = const { Cell::new(false) };
}

static mut PREVIOUS_LOG: pg_sys::emit_log_hook_type = None;

/// What ends the worker goes into the server's log; agd.stat shows it, too. Neither allocates nor fails: it is called for
/// every message of this process, in whatever state it is.
unsafe extern "C-unwind" fn leave_word(message: *mut pg_sys::ErrorData) {
    // SAFETY: PostgreSQL's hook gives a message that is alive; the text is a C string or null.
    unsafe {
        if (*message).elevel >= PgLogLevel::ERROR as c_int
            && !(*message).message.is_null()
            && !TOLD.replace(true)
            && let Some(database) = shmem::existing(DATABASE.get())
            && let Ok(text) = CStr::from_ptr((*message).message).to_str()
        {
            database.ended(text);
        }
        if let Some(previous) = PREVIOUS_LOG {
            previous(message);
        }
    }
}

/// The slot of a database that has the extension. None: it has not, or it is one of too many copies.
fn slot(oid: pg_sys::Oid) -> Option<&'static Database> {
    let home = in_transaction(false, || hold_extension().then(|| with_snapshot(home::is_elsewhere)), |_| {});
    let Some(is_elsewhere) = home else {
        if let Some(database) = shmem::existing(oid) {
            database.wanted.store(false, Ordering::Release);
            database.set_guards(0);
        }
        return None;
    };
    if is_elsewhere { shmem::spare(oid) } else { Some(shmem::database(oid).or_raise()) }
}

#[pg_guard]
unsafe extern "C-unwind" fn worker_exits(_code: c_int, argument: pg_sys::Datum) {
    if let Some(database) = shmem::existing(pg_sys::Oid::from(argument.value() as u32)) {
        // SAFETY: this process's own pid.
        let pid = unsafe { pg_sys::MyProcPid };
        if database.worker_pid.load(Ordering::Acquire) == pid {
            database.wanted.store(true, Ordering::Release);
            database.detach_worker(pid);
            shmem::wake_launcher();
        }
    }
}

/// Holds the extension until the transaction ends: DROP EXTENSION locks it before anything that belongs to it, so it waits
/// here, and does not meet half of a pass. False: the extension is gone.
fn hold_extension() -> bool {
    // SAFETY: catalog look-ups and a lock, inside a transaction.
    unsafe {
        let find = || pg_sys::get_extension_oid(c"agd".as_ptr(), true);
        let extension = find();
        if extension == pg_sys::InvalidOid {
            return false;
        }
        pg_sys::LockDatabaseObject(
            pg_sys::ExtensionRelationId,
            extension,
            0,
            pg_sys::AccessShareLock as pg_sys::LOCKMODE,
        );
        find() == extension
    }
}

struct Worker {
    database: &'static Database,
    /// Since when something waits for an anchor; None: nothing does.
    timer: Option<Instant>,
    last_pass: Option<Instant>,
    last_drain: Option<Instant>,
    /// When fleets that missed their window are to be cancelled; None: nothing is pending, as far as is known.
    next_sweep: Option<Instant>,
}

/// Why a worker ends in peace.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The extension is gone.
    Gone,
    /// A statement needs the database free of connections.
    MadeWay,
}

impl Worker {
    fn run(mut self) -> End {
        // What was committed before this worker started is taken up at once; its tails follow by age.
        if !self.passes(false) || !self.count() {
            return End::Gone;
        }
        loop {
            if self.database.leave_for.load(Ordering::Acquire) != 0 {
                match self.finish() {
                    None => return End::Gone,
                    Some(true) => return End::MadeWay,
                    Some(false) => {}
                }
            }
            let ticket = self.database.newest_request();
            let requested = ticket > self.database.completed();
            // Refused attempts before the pass, so that who asked for one finds in it what was refused before.
            let denied = denied::pending(self.database, requested);
            let pause = self.last_drain.map_or(Duration::ZERO, |last| PASS_INTERVAL.saturating_sub(last.elapsed()));
            if denied && (requested || pause.is_zero()) && !self.drain(requested) {
                return End::Gone;
            }
            let until_drain =
                denied::pending(self.database, false).then_some(pause).or_else(|| denied::pending_in(self.database));
            if self.next_sweep.is_some_and(|at| at <= Instant::now()) && !self.sweep() {
                return End::Gone;
            }
            let waiting = self.database.waiting.load(Ordering::Acquire);
            if waiting > 0 {
                self.timer.get_or_insert_with(Instant::now);
            }
            let age_left = self.timer.map(|since| max_age().saturating_sub(since.elapsed()));
            let by_age = age_left.is_some_and(|left| left.is_zero());
            let pause = self.last_pass.map_or(Duration::ZERO, |last| PASS_INTERVAL.saturating_sub(last.elapsed()));
            let full = waiting >= 256 && (pause.is_zero() || waiting >= MANY_EVENTS);
            let hurry = self.database.in_hurry();
            if requested || by_age || full || hurry && pause.is_zero() {
                self.database.hurries();
                if !self.passes(requested || by_age) {
                    return End::Gone;
                }
                if requested {
                    self.database.complete(ticket);
                }
                continue;
            }
            let until_pass = if waiting >= 256 || hurry { Some(pause) } else { age_left };
            let until_sweep = self.next_sweep.map(|at| at.saturating_duration_since(Instant::now()));
            sleep([until_pass, until_drain, until_sweep].into_iter().flatten().min());
        }
    }

    /// One pass, and those that take up what a pass recorded itself. False: the extension is gone.
    fn passes(&mut self, all_tails: bool) -> bool {
        let (mut platform, mut counted) = (false, true);
        loop {
            let (waiting, began) = (self.database.waiting.load(Ordering::Acquire), backend::now());
            let own = self.database.waiting_own();
            let tails = Tails { all: all_tails, platform };
            let Some(outcome) = self.work(c"agd: integrating events", true, || sequencer::pass(tails), |_| {}) else {
                return false;
            };
            // A commit is counted after it became visible: all that was counted before the pass is integrated now, and
            // what was counted in vain goes with it. What the pass saw before it was counted is below zero for a moment,
            // as are events of before a restart.
            if outcome.events > 0 {
                self.database.forget_guards();
            }
            let taken = waiting.max(outcome.events as i64);
            let left = self.database.waiting.fetch_sub(taken, Ordering::AcqRel) - taken;
            if left < 0 {
                let _ = self.database.waiting.compare_exchange(left, 0, Ordering::AcqRel, Ordering::Acquire);
            }
            self.database.own_integrated(own);
            self.database.waits_no_longer(began, left);
            self.database.works();
            self.database.waiting_is_known();
            self.database.add_unpublished(outcome.platform_anchors as i64);
            self.database.broadcast();
            self.database.integrated.fetch_add(outcome.events, Ordering::AcqRel);
            self.database.starts.store(0, Ordering::Release);
            platform = outcome.anchored_tail;
            if outcome.events > 0 {
                // There may be a mint among them.
                self.next_sweep = Some(Instant::now());
                counted = false;
            }
            if !(outcome.recorded && (all_tails || outcome.anchored_tail)) {
                if all_tails {
                    self.timer = None;
                } else if outcome.events > 0 {
                    self.timer.get_or_insert_with(Instant::now);
                }
                break;
            }
        }
        self.last_pass = Some(Instant::now());
        counted || self.count()
    }

    /// Keeps in mind what a DROP DATABASE would take with it. False: the extension is gone.
    fn count(&self) -> bool {
        let counted = |(guards, record): &(u64, String)| {
            self.database.set_guards(*guards);
            self.database.record.set(record);
            self.database.broadcast();
        };
        self.work(c"agd: counting guards", false, home::summary, counted).is_some()
    }

    /// A statement asks the worker to leave. If it holds the lock that keeps everybody out, all that is due is done first:
    /// nobody can add to it meanwhile. True: now leave; false: nobody needs the database any more; None: the extension is gone.
    fn finish(&mut self) -> Option<bool> {
        // SAFETY: a process global.
        let oid = unsafe { pg_sys::MyDatabaseId };
        if databases::is_kept_free(oid) {
            if denied::pending(self.database, true) && !self.drain(true) {
                return None;
            }
            if self.next_sweep.is_some_and(|at| at <= Instant::now()) && !self.sweep() {
                return None;
            }
            if !self.passes(true) || !self.count() {
                return None;
            }
            if databases::is_kept_free(oid) {
                let pid = self.database.leave_for.swap(0, Ordering::AcqRel);
                log!("agd: the worker leaves database {}, which process {pid} needs free of connections", oid.to_u32());
                return Some(true);
            }
        }
        self.database.leave_for.store(0, Ordering::Release);
        Some(false)
    }

    /// Records refused attempts. False: the extension is gone.
    fn drain(&mut self, requested: bool) -> bool {
        let database = self.database;
        let drain = || {
            // Until the record is resumed here nothing is added to it: the attempts stay where they are.
            if home::check().is_ok() { denied::drain(database, requested).map(Some) } else { Ok(None) }
        };
        let committed = |drained: &Option<denied::Drained>| {
            if let Some(drained) = drained {
                denied::forget(database, drained);
            }
        };
        let drained = self.work(c"agd: recording refused attempts", false, drain, committed);
        let pause = if matches!(drained, Some(None)) { NOT_AT_HOME } else { Duration::ZERO };
        self.last_drain = Some(Instant::now() + pause);
        drained.is_some()
    }

    /// Cancels fleets that have missed their window, and learns when the next one does. False: the extension is gone.
    fn sweep(&mut self) -> bool {
        let due = || {
            // Until the record is resumed here nothing is added to it.
            Ok(sweep::due_in()?.map(|left| if home::check().is_ok() { left } else { NOT_AT_HOME }))
        };
        let mut next = self.work(c"agd: looking for missed countersign windows", false, due, |_| {});
        if next == Some(Some(Duration::ZERO)) {
            let cancel = || sweep::sweep();
            match self.work(c"agd: cancelling fleets", false, cancel, |_| {}) {
                None => next = None,
                // What somebody else is at will be his to cancel, or is looked at again.
                Some(more) => next = Some(Some(if more { Duration::ZERO } else { PASS_INTERVAL })),
            }
        }
        self.next_sweep = next.flatten().map(|left| Instant::now() + left);
        next.is_some()
    }

    /// One transaction of the worker's; None: the extension is gone.
    fn work<T>(
        &self,
        activity: &CStr,
        one_snapshot: bool,
        body: impl FnOnce() -> Result<T>,
        committed: impl Fn(&T),
    ) -> Option<T> {
        // SAFETY: the activity text is copied.
        unsafe {
            pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, activity.as_ptr());
        }
        let database = self.database;
        let body = || {
            hold_extension().then(|| {
                home::hold().or_raise();
                with_snapshot(body)
            })
        };
        let transaction = || in_transaction(one_snapshot, body, |result| result.iter().for_each(committed));
        let outcome = PgTryBuilder::new(std::panic::AssertUnwindSafe(transaction))
            .catch_others(|caught| {
                // Told to whoever waits, then raised again: the process ends and is started anew.
                let message = match &caught {
                    pg_sys::panic::CaughtError::PostgresError(report)
                    | pg_sys::panic::CaughtError::ErrorReport(report)
                    | pg_sys::panic::CaughtError::RustPanic { ereport: report, .. } => report.message().to_owned(),
                };
                database.fail(&message);
                TOLD.set(true);
                caught.rethrow()
            })
            .execute();
        // SAFETY: as above.
        unsafe { pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null()) };
        outcome
    }
}

fn max_age() -> Duration {
    Duration::from_micros(settings::anchor_max_age() as u64)
}

// ------------------------------------------------------------------------------------------------ from other backends

/// Asks the worker for a pass over everything committed so far, tails included, and waits for it.
pub fn integrate_now(database: &'static Database) -> Result<()> {
    // SAFETY: reads the server's state.
    if unsafe { pg_sys::RecoveryInProgress() } {
        return Err(Error::WrongState {
            message: "a standby cannot integrate events".into(),
            hint: "Call agd.anchor() on the primary.".into(),
        });
    }
    let failures = database.failures();
    let ticket = database.request_pass();
    let mut no_worker_since: Option<Instant> = None;
    loop {
        pgrx::check_for_interrupts!();
        if database.completed() >= ticket {
            return Ok(());
        }
        if database.failures() != failures {
            return Err(Error::WrongState {
                message: format!("the agd worker could not integrate: {}", database.message()),
                hint: "Writes go on and are recorded. The server's log tells more; the worker tries again by itself."
                    .into(),
            });
        }
        if database.worker_pid.load(Ordering::Acquire) == 0 {
            database.wake_worker();
            if no_worker_since.get_or_insert_with(Instant::now).elapsed() > Duration::from_secs(15) {
                return Err(Error::WrongState {
                    message: "no agd worker runs for this database".into(),
                    hint: "The server's log tells why; often max_worker_processes is too small.".into(),
                });
            }
        } else {
            no_worker_since = None;
        }
        database.wait_for_answer(|| database.completed() >= ticket || database.failures() != failures);
    }
}

/// `agd.worker_status()`
#[allow(clippy::type_complexity)] // the shape of the SQL function
#[pg_extern(sql = false)]
fn worker_status() -> TableIterator<
    'static,
    (
        name!(recorded, i64),
        name!(voided, i64),
        name!(integrated, i64),
        name!(waiting, i64),
        name!(waiting_since, Option<TimestampWithTimeZone>),
        name!(worker_pid, Option<i32>),
        name!(stopped_since, Option<TimestampWithTimeZone>),
        name!(failures, i64),
        name!(last_failure, Option<String>),
        name!(denied, i64),
        name!(denied_lost, i64),
        name!(closed, Option<String>),
        name!(launcher, bool),
    ),
> {
    // Whoever only looks takes no slot.
    let database = shmem::this_database_if_any();
    let count = |count: fn(&Database) -> &AtomicU64| {
        database.map_or(0, |database| count(database).load(Ordering::Acquire).cast_signed())
    };
    let time = |since: Option<i64>| since.and_then(|since| TimestampWithTimeZone::try_from(since).ok());
    let failures = database.map_or(0, |database| database.failures() + database.ends());
    let (denied, denied_lost) = database.map_or((0, 0), denied::counts);
    TableIterator::once((
        count(|database| &database.recorded),
        count(|database| &database.voided),
        count(|database| &database.integrated),
        database.map_or(0, |database| database.waiting.load(Ordering::Acquire).max(0)),
        time(database.and_then(Database::waiting_since)),
        database.map(|database| database.worker_pid.load(Ordering::Acquire)).filter(|pid| *pid != 0),
        time(database.and_then(Database::stopped_since)),
        failures.cast_signed(),
        database.filter(|_| failures > 0).map(Database::message),
        denied.cast_signed(),
        denied_lost.cast_signed(),
        home::check().err().map(|error| error.for_the_record().1),
        shmem::launcher_runs(),
    ))
}
