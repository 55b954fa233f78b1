//! What a fleet's agents are told: goals and memory scope, for one fleet's agents.
//!
//! Owns the columns goals and memory_scope of agd.fleet_agent after the mint, and the digest of all of them in the fleet's row,
//! which both signers sign. Promises that they change together, while the fleet is pending and not signed, and never after;
//! and that a memory scope names its tenant, fleet and role itself, whatever it is set to.
#![allow(unsafe_code)] // is called by the function manager as it is

use super::sign::lock;
use super::template::{STANDARD, STANDARD_ROLES, check_name, check_scope};
use super::{missing, must_be, told, writing};
use crate::error::{self, Error, Result};
use crate::fmgr::{argument, definer_function, json_text};
use crate::query::{count_kept, kept, write_kept};
use crate::{ceiling, denied};
use agd_core::fleet::lifecycle::Event;
use agd_core::fleet::{Agent, context_digest};
use pgrx::pg_sys;
use pgrx::spi::SpiTupleTable;

/// The longest goals or memory scope, as JSON text.
const MAX_BYTES: usize = 64 << 10;

/// What a new fleet's agents are told, as a query. $1 fleet, $2 tenant, $3 template, $4 its version.
///
/// The first fleets of the standard template may be minted before it is recorded (src/fleet/template.rs).
pub(super) fn of_template() -> String {
    let standard = STANDARD_ROLES.replace('\'', "''");
    format!(
        "SELECT r.key AS role, COALESCE(r.value -> 'goals', '[]') AS goals,
        COALESCE(r.value -> 'memory_scope', '{{}}')
          || pg_catalog.jsonb_build_object('tenant', $2::text, 'fleet', $1::text, 'role', r.key) AS memory_scope
   FROM (SELECT t.roles FROM agd.fleet_template t WHERE t.template = $3::text AND t.version = $4::int
         UNION ALL
         SELECT '{standard}'::jsonb
          WHERE $3::text = '{STANDARD}' AND $4::int = 1
            AND NOT EXISTS (SELECT FROM agd.fleet_template t WHERE t.template = $3::text AND t.version = $4::int)) t,
        pg_catalog.jsonb_each(t.roles) r"
    )
}

/// Agents from rows of role, goals and memory scope, all text.
pub(super) fn read_agents(rows: SpiTupleTable<'_>) -> Result<Vec<Agent>> {
    rows.map(|row| {
        let text = |column: usize| -> Result<String> { Ok(row.get::<String>(column)?.unwrap_or_default()) };
        Ok(Agent { role: text(1)?, goals: text(2)?, memory_scope: text(3)? })
    })
    .collect()
}

const AGENTS: &str = "SELECT a.role, a.goals::text, a.memory_scope::text FROM agd.fleet_agent a WHERE a.fleet_id = $1";

/// What a fleet's agents are told, as the calling query sees it.
pub(super) fn of(fleet_id: &str) -> Result<Vec<Agent>> {
    kept(AGENTS, &[fleet_id.into()], read_agents)
}

definer_function!(agd_set_agent_context, pg_finfo_agd_set_agent_context, answer_set);

/// `agd.set_agent_context(fleet_id, role, goals, memory_scope)`
fn answer_set(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.set_agent_context(fleet_id text, role text, goals jsonb, memory_scope jsonb).
    let (fleet_id, role, goals, scope) =
        unsafe { (argument::<String>(call, 0), argument::<String>(call, 1), json_text(call, 2), json_text(call, 3)) };
    told("SET AGENT CONTEXT", set(fleet_id.as_deref(), role.as_deref(), goals.as_deref(), scope.as_deref()))?;
    Ok(pg_sys::Datum::from(0))
}

fn set(fleet_id: Option<&str>, role: Option<&str>, goals: Option<&str>, scope: Option<&str>) -> Result<()> {
    error::forbid_read_only(c"agd.set_agent_context()");
    let (Some(fleet_id), Some(role)) = (fleet_id, role) else {
        return Err(missing("fleet_id and role", "agd.set_agent_context(fleet_id, 'writer', '[\"writes\"]')"));
    };
    if goals.is_none() && scope.is_none() {
        return Err(missing("goals or memory_scope", "agd.set_agent_context(fleet_id, 'writer', '[\"writes\"]')"));
    }
    if [goals, scope].into_iter().flatten().any(|text| text.len() > MAX_BYTES) {
        return Err(Error::BadArgument {
            message: "goals and memory_scope have at most 64 KiB each".into(),
            hint: "Name a document instead of quoting it.".into(),
        });
    }
    check_name(role)?;
    scope.map_or(Ok(()), check_scope)?;
    let fleet = lock(fleet_id)?;
    let concerning = |error| denied::concerning(Some(&fleet.tenant), error);
    ceiling::check()?;
    fleet.step(Event::Amend, fleet.now())?;
    writing(|| {
        let changed = count_kept(
            "UPDATE agd.fleet_agent
                SET goals = COALESCE($3::jsonb, goals),
                    memory_scope = COALESCE($4::jsonb
                      || pg_catalog.jsonb_build_object('tenant', tenant, 'fleet', fleet_id, 'role', role), memory_scope)
              WHERE fleet_id = $1 AND role = $2",
            &[fleet.id.as_str().into(), role.into(), goals.into(), scope.into()],
        )?;
        if changed == 0 {
            return Err(concerning(Error::BadArgument {
                message: format!("fleet {} has no agent \"{role}\"", fleet.id),
                hint: "SELECT role FROM agd.fleet_agents shows a fleet's agents.".into(),
            }));
        }
        // With what was just written.
        let digest = context_digest(&write_kept(AGENTS, &[fleet.id.as_str().into()], read_agents)?);
        let told = count_kept(
            "UPDATE agd.tenant_agent_fleet SET context_digest = $2
              WHERE fleet_id = $1 AND state = 'pending' AND signed_at IS NULL",
            &[fleet.id.as_str().into(), digest.to_vec().into()],
        )?;
        must_be("a fleet whose agents are told something else", 1, told)
    })
}
