//! `agd.mint_tenant_fleet()`: one call, one fleet, however many make it at once.
//!
//! Promises that a vector has one live fleet at most, by a unique index; that whoever comes second gets the first's id and
//! leaves no event; and that a fleet comes with its agents and its countersign request or not at all. The same cause again
//! while its fleet is pending or active gives that fleet (REPLAY-SAME); after it was sealed or cancelled, the next generation,
//! which needs signatures of its own, since a statement names its generation.
#![allow(unsafe_code)] // is called by the function manager as it is

use super::{
    COLUMNS, Fleet, acting, context, last, missing, must_act_for, must_be, seal, template, timestamp, told, writing,
};
use crate::error::{self, Error, Result};
use crate::fmgr::{argument, c_function, definer_function, text};
use crate::log::storage::corrupted;
use crate::query::{count_kept, kept, write_kept};
use crate::{backend, ceiling, denied, home, tenant};
use agd_core::cause::{self, CauseError};
use agd_core::fleet::lifecycle::{self, State};
use agd_core::fleet::{Agent, Vector, VectorError, context_digest};
use pgrx::datum::{DatumWithOid, Interval};
use pgrx::pg_sys;

/// How often a mint looks again when others mint and seal the same vector under its eyes.
const ATTEMPTS: usize = 1000;
/// The shortest and the longest window, in microseconds: a millisecond, a year.
const WINDOWS: std::ops::RangeInclusive<i128> = 1_000..=366 * 86_400_000_000;

c_function!(agd_cause_normalised, pg_finfo_agd_cause_normalised, answer_normalised);

/// `agd.cause_normalised(cause)`; NULL gives NULL.
fn answer_normalised(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.cause_normalised(cause text).
    let cause = unsafe { argument::<String>(call, 0) };
    let normalised = cause.map(|cause| normalised(&cause)).transpose()?;
    Ok(answer(call, normalised.as_deref()))
}

/// Answers a call with a text or NULL.
pub(super) fn answer(call: pg_sys::FunctionCallInfo, value: Option<&str>) -> pg_sys::Datum {
    let datum = value.and_then(text);
    // SAFETY: the call is the one being answered.
    unsafe { (*call).isnull = datum.is_none() };
    datum.unwrap_or(pg_sys::Datum::from(0))
}

fn normalised(cause: &str) -> Result<String> {
    cause::normalised(cause).map_err(|problem| Error::BadArgument {
        message: problem.to_string(),
        hint: match problem {
            CauseError::Empty => "Say why this fleet is minted: its id is made of that.".into(),
            CauseError::TooLong => "Name the document instead of quoting it.".into(),
            _ => "A cause is plain text, so that whoever signs it has read all of it. docs/formats.md has the rules."
                .into(),
        },
    })
}

definer_function!(agd_mint_tenant_fleet, pg_finfo_agd_mint_tenant_fleet, answer_mint);

/// `agd.mint_tenant_fleet(tenant, cause, template, countersign_window)`
fn answer_mint(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.mint_tenant_fleet(text, text, text, interval).
    let (tenant, cause, template, window) = unsafe {
        (
            argument::<String>(call, 0),
            argument::<String>(call, 1),
            argument::<String>(call, 2),
            argument::<Interval>(call, 3),
        )
    };
    let window = window.map(|window| window.as_micros());
    let minted = told("MINT FLEET", mint(tenant.as_deref(), cause.as_deref(), template.as_deref(), window))?;
    Ok(answer(call, Some(&minted)))
}

/// What a mint is asked for, and what it was found to be.
struct Wanted<'a> {
    tenant: &'a str,
    template: &'a str,
    version: u32,
    agents: usize,
    cause: String,
    window: i64,
}

fn mint(tenant: Option<&str>, cause: Option<&str>, template: Option<&str>, window: Option<i128>) -> Result<String> {
    error::forbid_read_only(c"agd.mint_tenant_fleet()");
    let (Some(tenant), Some(cause), Some(template), Some(window)) = (tenant, cause, template, window) else {
        return Err(missing(
            "tenant, cause, template and countersign_window",
            "agd.mint_tenant_fleet('acme', 'onboarding of acme')",
        ));
    };
    // What is no tenant's name may be anything: it goes neither into the message nor into the log.
    agd_core::name::validate_tenant(tenant).map_err(|problem| Error::BadArgument {
        message: problem.to_string(),
        hint: "SELECT tenant FROM agd.tenant shows them all.".into(),
    })?;
    must_act_for(tenant)?;
    let concerning = |error| denied::concerning(Some(tenant), error);
    if !tenant::exists(tenant)? {
        return Err(Error::BadArgument {
            message: format!("there is no tenant \"{tenant}\""),
            hint: format!("Create it first: SELECT agd.create_tenant('{tenant}')."),
        });
    }
    template::check_name(template).map_err(concerning)?;
    let cause = normalised(cause).map_err(concerning)?;
    let window = i64::try_from(window).ok().filter(|window| WINDOWS.contains(&i128::from(*window)));
    let window = window.ok_or_else(|| Error::BadArgument {
        message: "that is no countersign window".into(),
        hint: "From a millisecond to a year; by default 24 hours.".into(),
    });
    let window = window.map_err(concerning)?;
    home::ensure()?;
    let (version, agents) = template::newest(template)?.ok_or_else(|| {
        concerning(Error::BadArgument {
            message: format!("there is no template \"{template}\""),
            hint: "SELECT template, version FROM agd.fleet_template; agd.create_template() makes one.".into(),
        })
    })?;
    let wanted = Wanted { tenant, template, version, agents, cause, window };
    for _ in 0..ATTEMPTS {
        if let Some(fleet_id) = wanted.find_or_make()? {
            return Ok(fleet_id);
        }
    }
    Err(Error::WrongState {
        message: "this fleet is minted and ended by others again and again".into(),
        hint: "Try again when they are done.".into(),
    })
}

impl Wanted<'_> {
    fn vector(&self, generation: u32) -> Result<Vector> {
        Vector::new(self.tenant, self.template, self.version, &self.cause, generation).map_err(
            |problem: VectorError| Error::BadArgument {
                message: problem.to_string(),
                hint: "docs/formats.md has the rules.".into(),
            },
        )
    }

    /// The live fleet's id, or a new one's. None: somebody else changed something meanwhile.
    fn find_or_make(&self) -> Result<Option<String>> {
        let family = self.vector(1)?.cause_digest().to_vec();
        let mut found = self.live(&family)?;
        // Not locked: a mint that finds its fleet changes nothing, and must keep nobody from ending it. Whoever is ending it at
        // this moment is waited for, and has ended it then or has not.
        if let Some(fleet) = &found {
            acting::wait_for_seal(&fleet.id)?;
            found = self.live(&family)?;
        }
        if let Some(fleet) = found {
            if lifecycle::at(fleet.state, fleet.now()) != State::Cancelled {
                return Ok(Some(fleet.id));
            }
            // It missed its window, and nobody has written that down. That comes first, in this transaction.
            seal::cancel_missed(&fleet.id)?;
        }
        let generation = next_generation(self, &family)?;
        let vector = self.vector(generation)?;
        Ok(self.insert(&vector, generation, &family)?.then(|| vector.fleet_id()))
    }

    /// The fleet of this vector that is pending or active, as its row says.
    fn live(&self, family: &[u8]) -> Result<Option<Fleet>> {
        write_kept(
            &format!(
                "SELECT {COLUMNS} FROM agd.tenant_agent_fleet f
                  WHERE f.tenant = $1 AND f.template = $2 AND f.template_version = $3 AND f.cause_digest = $4
                    AND f.state IN ('pending', 'active')"
            ),
            &[self.tenant.into(), self.template.into(), self.version.cast_signed().into(), family.to_vec().into()],
            |mut rows| rows.next().map(|row| Fleet::read(&row)).transpose(),
        )
    }

    fn of_template<'a>(&'a self, id: &'a str) -> [DatumWithOid<'a>; 4] {
        [id.into(), self.tenant.into(), self.template.into(), self.version.cast_signed().into()]
    }

    /// What its agents will be told.
    fn agents(&self, id: &str) -> Result<Vec<Agent>> {
        let query = format!("SELECT m.role, m.goals::text, m.memory_scope::text FROM ({}) m", context::of_template());
        // Writes nothing, and yet has to see a template that this transaction has just made.
        write_kept(&query, &self.of_template(id), context::read_agents)
    }

    /// False: another transaction has made it, or another fleet of this vector.
    fn insert(&self, vector: &Vector, generation: u32, family: &[u8]) -> Result<bool> {
        // Agd's own tables know no ceiling; of what tenants add to them as they like, this is the one that grows.
        ceiling::check()?;
        let (id, digest) = (vector.fleet_id(), vector.digest().to_vec());
        let minted_at = backend::now();
        let (minted, deadline) = (timestamp(minted_at)?, timestamp(minted_at.saturating_add(self.window))?);
        let origin = origin()?;
        let told = self.agents(&id)?;
        must_be("agents of a template", self.agents, told.len())?;
        let inserted = writing(|| {
            count_kept(
                "INSERT INTO agd.tenant_agent_fleet
                   (fleet_id, digest, tenant, template, template_version, cause_snapshot, unicode_version, cause_digest,
                    generation, origin, agents, context_digest, state, minted_at, countersign_deadline)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, 'pending', $13, $14)
                 ON CONFLICT DO NOTHING",
                &[
                    id.as_str().into(),
                    digest.clone().into(),
                    self.tenant.into(),
                    self.template.into(),
                    self.version.cast_signed().into(),
                    self.cause.as_str().into(),
                    cause::unicode_version().into(),
                    family.to_vec().into(),
                    generation.cast_signed().into(),
                    origin.into(),
                    (self.agents as i32).into(),
                    context_digest(&told).to_vec().into(),
                    minted.into(),
                    deadline.into(),
                ],
            )
        })?;
        if inserted == 0 {
            return collides(&id, &digest).map(|()| false);
        }
        last::minted(self.tenant);
        writing(|| {
            let agents = count_kept(
                &format!(
                    "INSERT INTO agd.fleet_agent (fleet_id, role, tenant, goals, memory_scope)
                     SELECT $1, m.role, $2, m.goals, m.memory_scope FROM ({}) m",
                    context::of_template()
                ),
                &self.of_template(&id),
            )?;
            must_be("agents of a new fleet", self.agents, agents)?;
            let requests = count_kept(
                "INSERT INTO agd.countersign_request (fleet_id, tenant, requested_at, deadline, state)
                 VALUES ($1, $2, $3, $4, 'open')",
                &[id.as_str().into(), self.tenant.into(), minted.into(), deadline.into()],
            )?;
            must_be("countersign requests of a new fleet", 1, requests)
        })?;
        Ok(true)
    }
}

/// Which database this is: the platform log's origin.
fn origin() -> Result<String> {
    let origin = write_kept(
        "SELECT l.origin FROM agd.log l WHERE l.tenant IS NULL ORDER BY l.incarnation DESC LIMIT 1",
        &[],
        |rows| if rows.is_empty() { Ok(None) } else { Ok(rows.first().get_one::<String>()?) },
    )?;
    origin.ok_or_else(|| corrupted("the platform log is gone"))
}

/// The number of the next fleet of a vector.
fn next_generation(wanted: &Wanted<'_>, family: &[u8]) -> Result<u32> {
    let next = write_kept(
        "SELECT COALESCE(pg_catalog.max(f.generation), 0) + 1 FROM agd.tenant_agent_fleet f
          WHERE f.tenant = $1 AND f.template = $2 AND f.template_version = $3 AND f.cause_digest = $4",
        &[wanted.tenant.into(), wanted.template.into(), wanted.version.cast_signed().into(), family.to_vec().into()],
        |rows| Ok(rows.first().get_one::<i32>()?),
    )?;
    next.and_then(|next| u32::try_from(next).ok()).ok_or_else(|| Error::Internal("agd: no next generation".into()))
}

/// 23505 when an id is another vector's: never a merge.
fn collides(id: &str, digest: &[u8]) -> Result<()> {
    let other = kept(
        "SELECT true FROM agd.tenant_agent_fleet f WHERE f.fleet_id = $1 AND f.digest <> $2",
        &[id.into(), digest.to_vec().into()],
        |rows| Ok(!rows.is_empty()),
    )?;
    if !other {
        return Ok(());
    }
    Err(Error::Exists {
        message: format!("the id {id} is another fleet's: the first 16 digits of two vectors are the same"),
        hint: "Word the cause differently: another cause has another id.".into(),
    })
}
