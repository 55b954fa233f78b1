//! The launcher, and one worker per database that has the extension.
//!
//! Owns when the sequencer runs (at 256 waiting events, by age, or on request) and when fleets are swept. Promises that a
//! worker that dies is started again, that one database has one worker at most, and that a quiet database is left asleep.
//! Never does the sequencer's work itself, never touches the network.
#![allow(unsafe_code)] // background workers are registered and run through raw structures

use crate::error::{Error, OrRaise, Result};
use crate::fleet::sweep;
use crate::log::sequencer::{self, Tails};
use crate::shmem::{self, Database};
use crate::{backend, catalog, denied, fault, home, settings};
use pgrx::prelude::*;
use std::ffi::{CStr, c_char, c_int, c_long};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Full tiles are due at once, but not more often than this: each pass commits.
const PASS_INTERVAL: Duration = Duration::from_millis(100);
/// How long refused attempts rest when the record is not at home here, before the worker looks again.
const NOT_AT_HOME: Duration = Duration::from_secs(5);
/// So many waiting events make a pass due whatever the interval.
const MANY_EVENTS: i64 = 1 << 16;
/// A worker that failed is started again after this; after twice as long when it fails again, and so on to 64 times.
const RESTART_DELAY: Duration = Duration::from_secs(1);

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
    // Which databases have the extension shows only inside them: one short visit each.
    for database in connectable_databases() {
        if !start_worker(database) {
            break;
        }
        sleep(Some(Duration::from_millis(20)));
    }
    loop {
        let mut again = None;
        let mut present = None;
        for (oid, database) in shmem::databases() {
            if !database.wanted.load(Ordering::Acquire) || database.worker_pid.load(Ordering::Acquire) != 0 {
                continue;
            }
            if !present.get_or_insert_with(connectable_databases).contains(&oid) {
                database.release();
                continue;
            }
            again = Some(RESTART_DELAY);
            if database.held_until.load(Ordering::Acquire) > backend::now() {
                continue;
            }
            let starts = database.starts.fetch_add(1, Ordering::AcqRel).min(6);
            let delay = RESTART_DELAY.as_micros() as i64;
            database.held_until.store(backend::now() + (delay << starts), Ordering::Release);
            start_worker(oid);
        }
        sleep(again);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn launcher_exits(_code: c_int, _argument: pg_sys::Datum) {
    shmem::set_launcher_latch(std::ptr::null_mut());
}

fn connectable_databases() -> Vec<pg_sys::Oid> {
    let body = || {
        let relation = catalog::Relation::open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock);
        let mut databases = Vec::new();
        catalog::scan(&relation, None, std::ptr::null_mut(), &mut [], |tuple| {
            // SAFETY: a tuple of pg_database begins with its fixed part.
            let database = unsafe { &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>() };
            if database.datallowconn {
                databases.push(database.oid);
            }
            Ok(())
        })?;
        Ok(databases)
    };
    in_transaction(false, || with_snapshot(body), |_| {})
}

/// False: no worker process is to be had now.
fn start_worker(database: pg_sys::Oid) -> bool {
    let mut worker =
        background_worker(&format!("agd worker for database {}", database.to_u32()), "agd worker", "agd_worker_main");
    worker.bgw_main_arg = pg_sys::Datum::from(database);
    // SAFETY: the structure is copied; no handle is wanted. The launcher is told when the worker ends.
    unsafe {
        worker.bgw_notify_pid = pg_sys::MyProcPid;
        let registered = pg_sys::RegisterDynamicBackgroundWorker(&mut worker, std::ptr::null_mut());
        if !registered {
            log!("agd: no background worker is free for database {}: raise max_worker_processes", database.to_u32());
        }
        registered
    }
}

// --------------------------------------------------------------------------------------------------------- the worker

/// A worker's main function; the argument is its database's oid.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn agd_worker_main(argument: pg_sys::Datum) {
    install_signal_handlers();
    let oid = pg_sys::Oid::from(argument.value() as u32);
    // SAFETY: connects as the bootstrap superuser.
    unsafe { pg_sys::BackgroundWorkerInitializeConnectionByOid(oid, pg_sys::InvalidOid, 0) };
    if !extension_installed() {
        if let Some(database) = shmem::existing(oid) {
            database.wanted.store(false, Ordering::Release);
        }
        return;
    }
    let database = shmem::database(oid).or_raise();
    // SAFETY: this process's own pid and latch; settings of this process alone.
    unsafe {
        if !database.attach_worker(pg_sys::MyProcPid, pg_sys::MyLatch) {
            return;
        }
        pg_sys::before_shmem_exit(Some(worker_exits), argument);
        // What is integrated may be published, so it must be on disk whatever the session's default is.
        for (name, value) in [
            (c"synchronous_commit", c"on"),
            (c"search_path", c"pg_catalog, pg_temp"),
            (c"quote_all_identifiers", c"off"),
            (c"application_name", c"agd worker"),
            (c"default_transaction_read_only", c"off"),
            (c"statement_timeout", c"0"),
            (c"lock_timeout", c"0"),
        ] {
            pg_sys::SetConfigOption(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
        }
    }
    database.wanted.store(false, Ordering::Release);
    let now = Instant::now();
    Worker { database, timer: Some(now), last_pass: None, last_drain: None, next_sweep: Some(now) }.run();
    // The extension was dropped: nothing to restart for, and nothing to tell.
    denied::clear(database);
    database.wanted.store(false, Ordering::Release);
    unsafe {
        // SAFETY: this process's own pid.
        database.detach_worker(pg_sys::MyProcPid);
    }
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

fn extension_installed() -> bool {
    // SAFETY: a catalog look-up, which takes a snapshot of its own.
    in_transaction(false, || unsafe { pg_sys::get_extension_oid(c"agd".as_ptr(), true) } != pg_sys::InvalidOid, |_| {})
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

impl Worker {
    fn run(mut self) {
        // What was committed before this worker started is taken up at once; its tails follow by age.
        if !self.passes(false) {
            return;
        }
        loop {
            let ticket = self.database.newest_request();
            let requested = ticket > self.database.completed();
            // Refused attempts before the pass, so that who asked for one finds in it what was refused before.
            let denied = denied::pending(self.database, requested);
            let pause = self.last_drain.map_or(Duration::ZERO, |last| PASS_INTERVAL.saturating_sub(last.elapsed()));
            if denied && (requested || pause.is_zero()) && !self.drain(requested) {
                return;
            }
            let until_drain =
                denied::pending(self.database, false).then_some(pause).or_else(|| denied::pending_in(self.database));
            if self.next_sweep.is_some_and(|at| at <= Instant::now()) && !self.sweep() {
                return;
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
                    return;
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
        let mut platform = false;
        loop {
            let waiting = self.database.waiting.load(Ordering::Acquire);
            let own = self.database.waiting_own();
            let tails = Tails { all: all_tails, platform };
            let Some(outcome) = self.work(c"agd: integrating events", true, || sequencer::pass(tails), |_| {}) else {
                return false;
            };
            // A commit is counted after it became visible: all that was counted before the pass is integrated now, and
            // what was counted in vain goes with it. What the pass saw before it was counted is below zero for a moment,
            // as are events of before a restart.
            let taken = waiting.max(outcome.events as i64);
            let left = self.database.waiting.fetch_sub(taken, Ordering::AcqRel) - taken;
            if left < 0 {
                let _ = self.database.waiting.compare_exchange(left, 0, Ordering::AcqRel, Ordering::Acquire);
            }
            self.database.own_integrated(own);
            self.database.waiting_is_known();
            self.database.add_unpublished(outcome.platform_anchors as i64);
            self.database.broadcast();
            self.database.integrated.fetch_add(outcome.events, Ordering::AcqRel);
            self.database.starts.store(0, Ordering::Release);
            platform = outcome.anchored_tail;
            if outcome.events > 0 {
                // There may be a mint among them.
                self.next_sweep = Some(Instant::now());
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
        true
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

/// Is this statement one that [`before_utility`] must see?
///
/// # Safety
/// `node` is a utility statement's parse node.
pub unsafe fn concerns_a_database(node: *mut pg_sys::Node) -> bool {
    // SAFETY: the tag tells the node's type.
    unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_DropdbStmt | pg_sys::NodeTag::T_CreatedbStmt => true,
            pg_sys::NodeTag::T_RenameStmt => {
                (*node.cast::<pg_sys::RenameStmt>()).renameType == pg_sys::ObjectType::OBJECT_DATABASE
            }
            _ => false,
        }
    }
}

/// DROP, RENAME and copy of a database fail while anybody is connected to it: the worker leaves first.
///
/// # Safety
/// `node` is a utility statement's parse node.
pub unsafe fn before_utility(node: *mut pg_sys::Node) {
    // SAFETY: the tag tells the node's type; strings in parse nodes are C strings or null.
    let name = unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_DropdbStmt => (*node.cast::<pg_sys::DropdbStmt>()).dbname,
            pg_sys::NodeTag::T_RenameStmt
                if (*node.cast::<pg_sys::RenameStmt>()).renameType == pg_sys::ObjectType::OBJECT_DATABASE =>
            {
                (*node.cast::<pg_sys::RenameStmt>()).subname
            }
            pg_sys::NodeTag::T_CreatedbStmt => template_of((*node.cast::<pg_sys::CreatedbStmt>()).options),
            _ => return,
        }
    };
    if name.is_null() {
        return;
    }
    // SAFETY: catalog look-ups inside the statement's transaction.
    let database = unsafe {
        let oid = pg_sys::get_database_oid(name, true);
        let owner = oid != pg_sys::InvalidOid && backend::owns(pg_sys::GetUserId(), pg_sys::DatabaseRelationId, oid);
        if !owner {
            return;
        }
        shmem::existing(oid)
    };
    if let Some(database) = database {
        send_away(database);
    }
}

/// # Safety
/// `options` is a list of DefElem nodes or null.
unsafe fn template_of(options: *mut pg_sys::List) -> *mut c_char {
    // SAFETY: list cells of CREATE DATABASE's options are DefElem nodes.
    unsafe {
        let options = pgrx::PgList::<pg_sys::DefElem>::from_pg(options);
        for option in options.iter_ptr() {
            if CStr::from_ptr((*option).defname) == c"template" && !(*option).arg.is_null() {
                return pg_sys::defGetString(option);
            }
        }
    }
    std::ptr::null_mut()
}

fn send_away(database: &Database) {
    unsafe extern "C" {
        fn kill(pid: c_int, signal: c_int) -> c_int;
    }
    database.held_until.store(backend::now() + 10_000_000, Ordering::Release);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        let pid = database.worker_pid.load(Ordering::Acquire);
        if pid == 0 {
            // The process leaves the process array a moment after it detached.
            // SAFETY: sleeps.
            unsafe { pg_sys::pg_usleep(20_000) };
            return;
        }
        // SAFETY: the pid is that of our own worker, which detaches before it ends.
        unsafe { kill(pid, pg_sys::SIGTERM as c_int) };
        // SAFETY: sleeps.
        unsafe { pg_sys::pg_usleep(10_000) };
        pgrx::check_for_interrupts!();
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
        name!(worker_pid, Option<i32>),
        name!(failures, i64),
        name!(last_failure, Option<String>),
        name!(denied, i64),
        name!(denied_lost, i64),
    ),
> {
    let database = shmem::this_database().or_raise();
    let pid = database.worker_pid.load(Ordering::Acquire);
    let failures = database.failures();
    let (denied, denied_lost) = denied::counts(database);
    TableIterator::once((
        database.recorded.load(Ordering::Acquire) as i64,
        database.voided.load(Ordering::Acquire) as i64,
        database.integrated.load(Ordering::Acquire) as i64,
        database.waiting.load(Ordering::Acquire).max(0),
        (pid != 0).then_some(pid),
        failures as i64,
        (failures > 0).then(|| database.message()),
        denied as i64,
        denied_lost as i64,
    ))
}
