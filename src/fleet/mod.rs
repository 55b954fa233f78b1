//! Fleets: mint, sign, countersign, seal, and what becomes of a fleet that nobody countersigns.
//!
//! Owns agd.tenant_agent_fleet and the five tables around it. Promises that they are written by agd's own functions alone,
//! behind the gate; that a stored state follows on another only as [`agd_core::fleet::lifecycle`] lets it; that each change
//! is one transaction, with every number of rows it must change counted; and that what was refused leaves a DENIED event and
//! nothing else. Never decides a state itself and never keeps a private key.
//!
//! Concurrency: whoever changes fleets locks their rows in tenant_agent_fleet first, by id, and then looks at the clock; rows of
//! the other tables are changed only under that lock. So a fleet's changes come one after the other, and two statements
//! cannot wait for each other. What lies in different statements of one transaction, its author orders.

pub mod acting;
mod context;
mod last;
mod mint;
pub mod pending;
mod seal;
mod sign;
mod signer;
pub mod sweep;
mod template;
mod verify;
mod way;

use crate::catalog::Columns;
use crate::denied::{self, Attempt};
use crate::error::{Error, Result};
use crate::guard::place;
use crate::guard::relation::Guarded;
use crate::log::record::EPOCH_DIFFERENCE;
use crate::log::storage::corrupted;
use crate::{backend, tenant};
use agd_core::fleet::lifecycle::{self, Event, State};
use agd_core::fleet::{Statement, Vector};
use agd_core::intent::Operation;
use agd_core::merkle::Hash;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys;
use pgrx::spi::SpiHeapTupleData;
use std::cell::Cell;
use std::ffi::CStr;

/// The tables, by name, and whether their rows belong to tenants. The same list: agd.every_guard, sql/30_guard.sql.
const TABLES: [(&CStr, bool); 6] = [
    (c"signer", false),
    (c"fleet_template", false),
    (c"tenant_agent_fleet", true),
    (c"fleet_agent", true),
    (c"countersign_request", true),
    (c"fleet_signature", true),
];

/// Is it one of the tables of fleets? Some: and the column that names a row's tenant, if it has one.
#[allow(unsafe_code)] // a catalog look-up
pub fn table(relation: pg_sys::Oid) -> Option<Option<&'static str>> {
    if !place::is_own(relation) {
        return None;
    }
    // SAFETY: a catalog look-up; the result is a C string, or NULL for what is gone.
    let name = unsafe {
        let name = pg_sys::get_rel_name(relation);
        if name.is_null() {
            return None;
        }
        CStr::from_ptr(name)
    };
    TABLES.iter().find(|(table, _)| *table == name).map(|(_, of_tenants)| of_tenants.then_some("tenant"))
}

thread_local! {
    static WRITING: Cell<bool> = const { Cell::new(false) };
}

/// Runs statements of agd's own on the tables of fleets.
fn writing<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            WRITING.set(false);
        }
    }
    pending::written();
    WRITING.set(true);
    let _reset = Reset;
    body()
}

/// The gate asks of each row that is written: AG002 unless it is one of agd's own functions that writes, and a fleet's state
/// may follow on the one it has.
pub fn check_write(guard: &Guarded, operation: Operation, old: &Columns, new: &Columns) -> Result<()> {
    if table(guard.root).is_none() {
        return Ok(());
    }
    let refuse = |message: String| {
        Error::TamperingRefused {
        message,
        hint: "Fleets are changed by agd.mint_tenant_fleet(), agd.set_agent_context(), agd.sign_fleet(), \
               agd.countersign_fleets() and agd.seal_tenant_fleet(); signers by agd.register_signer() and agd.revoke_signer(). \\df agd.* shows them all."
            .into(),
    }
    };
    if !WRITING.get() || operation == Operation::Delete {
        return Err(refuse(format!("{} is written by agd's own functions alone", guard.name)));
    }
    if operation != Operation::Update || !guard.name.ends_with(".tenant_agent_fleet") {
        return Ok(());
    }
    let value = |row: &Columns, column: &str| guard.format.text_of(row, column).unwrap_or_default();
    if value(old, "fleet_id") != value(new, "fleet_id") || value(old, "tenant") != value(new, "tenant") {
        return Err(refuse("a fleet keeps its name".into()));
    }
    if !value(old, "signed_at").is_empty() && value(old, "context_digest") != value(new, "context_digest") {
        return Err(refuse("what a fleet's agents are told does not change once it is signed".into()));
    }
    let (from, to) = (value(old, "state"), value(new, "state"));
    if lifecycle::may_follow(&from, &to) {
        return Ok(());
    }
    Err(refuse(format!("a fleet that is {from} does not become {to}")))
}

/// What a call that is refused was about to do, for the log of refused attempts.
fn told<T>(action: &str, result: Result<T>) -> Result<T> {
    result.inspect_err(|error| {
        if !matches!(error, Error::Internal(_) | Error::Corrupted { .. }) {
            denied::attempted(Attempt {
                action: Some(action.into()),
                relation: Some("agd.tenant_agent_fleet".into()),
                ..Attempt::default()
            });
        }
    })
}

/// The same for a call that only reads: another tenant's fleet is an attempt, a misspelt id is not.
fn told_of_reading<T>(action: &str, result: Result<T>) -> Result<T> {
    match result {
        Err(error @ Error::NotAllowed { .. }) => told(action, Err(error)),
        other => other,
    }
}

/// The tenant itself, and the platform for every tenant. 42501 otherwise.
fn must_act_for(tenant: &str) -> Result<()> {
    if tenant::may_act_for(tenant)? {
        return Ok(());
    }
    let error = Error::NotAllowed {
        message: "this session may not act for that tenant's fleets".into(),
        hint: "A tenant's role acts for its own fleets, members of agd_platform for all.".into(),
    };
    Err(denied::concerning(Some(tenant), error))
}

fn no_such_fleet(fleet_id: &str) -> Error {
    if !tenant::may_read(None) {
        // The same as for another tenant's fleet, also in the log.
        let error = Error::NotAllowed {
            message: "this session may not act for that tenant's fleets".into(),
            hint: "A tenant's role acts for its own fleets, members of agd_platform for all.".into(),
        };
        return denied::concerning(Some(denied::ANOTHER), error);
    }
    let shown = if is_fleet_id(fleet_id) { format!(" {fleet_id}") } else { " of that id".into() };
    Error::BadArgument {
        message: format!("there is no fleet{shown}"),
        hint: "A fleet's id has 16 hexadecimal digits: SELECT fleet_id FROM agd.fleets.".into(),
    }
}

fn is_fleet_id(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn missing(what: &str, example: &str) -> Error {
    Error::BadArgument { message: format!("{what} must be given"), hint: format!("SELECT {example}.") }
}

/// A fleet's row. Times are microseconds since 2000-01-01.
struct Fleet {
    id: String,
    digest: Vec<u8>,
    tenant: String,
    template: String,
    version: u32,
    cause: String,
    generation: u32,
    origin: String,
    agents: usize,
    state: State,
    minted_at: i64,
    deadline: i64,
    /// Of what its agents are told.
    context_digest: Vec<u8>,
    /// The latest time that the row tells of.
    latest: i64,
}

/// What [`Fleet::read`] reads.
const COLUMNS: &str =
    "f.fleet_id, f.digest, f.tenant, f.template, f.template_version, f.cause_snapshot, f.generation, f.origin,
     f.agents, f.state, f.minted_at, f.countersign_deadline, f.signed_at, f.activated_at,
     f.context_digest";

impl Fleet {
    fn read(row: &SpiHeapTupleData<'_>) -> Result<Fleet> {
        let text = |column: usize| -> Result<String> { Ok(row.get::<String>(column)?.unwrap_or_default()) };
        let number = |column: usize| -> Result<u32> {
            Ok(row.get::<i32>(column)?.and_then(|number| u32::try_from(number).ok()).unwrap_or_default())
        };
        let time = |column: usize| -> Result<Option<i64>> {
            Ok(row.get::<TimestampWithTimeZone>(column)?.map(TimestampWithTimeZone::into_inner))
        };
        let (minted_at, deadline) = (time(11)?.unwrap_or_default(), time(12)?.unwrap_or_default());
        let (signed_at, activated_at) = (time(13)?, time(14)?);
        let id = text(1)?;
        let state = match text(10)?.as_str() {
            "pending" => State::Pending { signed: signed_at.is_some(), deadline },
            "active" => State::Active,
            "sealed" => State::Sealed,
            "cancelled" => State::Cancelled,
            _ => return Err(corrupted(format!("fleet {id} is in no state that there is"))),
        };
        Ok(Fleet {
            id,
            digest: row.get(2)?.unwrap_or_default(),
            tenant: text(3)?,
            template: text(4)?,
            version: number(5)?,
            cause: text(6)?,
            generation: number(7)?,
            origin: text(8)?,
            agents: number(9)? as usize,
            state,
            minted_at,
            deadline,
            context_digest: row.get(15)?.unwrap_or_default(),
            latest: [Some(minted_at), signed_at, activated_at].into_iter().flatten().max().unwrap_or_default(),
        })
    }

    /// The time, for this fleet: it does not run back behind what has happened to it already.
    fn now(&self) -> i64 {
        backend::now().max(self.latest)
    }

    /// The state after an event at an instant. 55000 when it cannot happen.
    fn step(&self, event: Event, now: i64) -> Result<State> {
        lifecycle::step(self.state, event, now).map_err(|denied| {
            let action = match event {
                Event::Amend => "tell its agents something else",
                Event::Sign => "be signed",
                Event::Countersign => "be countersigned",
                Event::Seal => "be sealed",
                Event::Expire => "expire",
            };
            let error = Error::WrongState {
                message: format!("fleet {} cannot {action}: {denied}", self.id),
                hint: match denied {
                    lifecycle::Denied::NotSigned => {
                        "First its coordinator: SELECT agd.sign_fleet(fleet_id, signer, signature).".into()
                    }
                    lifecycle::Denied::TooLate | lifecycle::Denied::Sealed | lifecycle::Denied::Cancelled => {
                        "It stays as it is. Mint the next generation: SELECT agd.mint_tenant_fleet(tenant, cause)."
                            .into()
                    }
                    _ => "SELECT * FROM agd.fleets shows each fleet's state.".into(),
                },
            };
            denied::concerning(Some(&self.tenant), error)
        })
    }

    fn vector(&self) -> Result<Vector> {
        Vector::new(&self.tenant, &self.template, self.version, &self.cause, self.generation)
            .map_err(|problem| corrupted(format!("fleet {}: {problem}", self.id)))
    }

    /// What its coordinator signs. XX001 where the row is not the fleet that its id names.
    fn statement(&self) -> Result<Statement> {
        let vector = self.vector()?;
        if vector.fleet_id() != self.id {
            return Err(corrupted(format!("fleet {} does not have the id of its vector", self.id)));
        }
        let context = Hash::try_from(self.context_digest.as_slice())
            .map_err(|_| corrupted(format!("fleet {}: what its agents are told has no digest", self.id)))?;
        Ok(Statement {
            origin: self.origin.clone(),
            vector,
            minted_at: self.minted_at.saturating_add(EPOCH_DIFFERENCE),
            deadline: self.deadline.saturating_add(EPOCH_DIFFERENCE),
            context,
        })
    }
}

/// A point in time as a parameter of a statement.
fn timestamp(micros: i64) -> Result<TimestampWithTimeZone> {
    TimestampWithTimeZone::try_from(micros).map_err(|_| Error::Internal(format!("agd: {micros} is no time")))
}

/// A statement has to change so many rows, and did change so many.
fn must_be(what: &str, wanted: usize, changed: usize) -> Result<()> {
    if wanted == changed {
        return Ok(());
    }
    Err(corrupted(format!("{what}: {changed} rows, not {wanted}")))
}
