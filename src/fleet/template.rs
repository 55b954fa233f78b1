//! Templates: the organisation that each fleet is an instance of.
//!
//! Owns agd.fleet_template. Promises that a version never changes, so that a fleet's vector says what it was made from, and
//! that each role's memory scope names its tenant, fleet and role itself. The standard template (coordinator, writer,
//! gate-keeper, engineer) is recorded like any other, by the transaction that first mints a fleet from it: on its way into the
//! commit, so that nobody's open transaction keeps others from minting.
#![allow(unsafe_code)] // is called by the function manager as it is

use super::{missing, pending, timestamp, told, writing};
use crate::catalog::{Relation, named, scan, scan_key, to_varlena};
use crate::error::{self, Error, Result};
use crate::fmgr::{argument, definer_function, json_text};
use crate::identity;
use crate::query::{count_kept, write_kept};
use crate::{backend, home};
use pgrx::pg_sys;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// The template that is there without anybody's making one.
pub(super) const STANDARD: &str = "standard";
/// Its roles.
pub(super) const STANDARD_ROLES: &str = r#"{
    "coordinator": {"goals": ["coordinates the fleet, and signs for it"]},
    "writer": {"goals": ["writes on the tenant's behalf"]},
    "gate-keeper": {"goals": ["judges what the others want to do, before it is done"]},
    "engineer": {"goals": ["builds and mends what the tenant runs"]}
}"#;

/// How many roles it has.
const STANDARD_AGENTS: usize = 4;

/// Largest template, as JSON text.
const MAX_BYTES: usize = 64 << 10;

/// The newest version of a template, and how many roles it has.
pub fn newest(template: &str) -> Result<Option<(u32, usize)>> {
    let found = look_up(template)?;
    if found.is_some() || template != STANDARD {
        return Ok(found);
    }
    pending::template_is_missing();
    Ok(Some((1, STANDARD_AGENTS)))
}

/// On the way into the commit of a transaction that needs it: records the standard template if nobody has.
pub(super) fn record_standard() -> Result<()> {
    let relation = Relation::open(named(c"fleet_template")?, pg_sys::AccessShareLock);
    let equal = |attribute, function, value| scan_key(attribute, pg_sys::BTEqualStrategyNumber, function, value);
    let mut keys = [
        equal(1, pg_sys::F_TEXTEQ, to_varlena(STANDARD.as_bytes())),
        equal(2, pg_sys::F_INT4EQ, pg_sys::Datum::from(1)),
    ];
    keys[0].sk_collation = pg_sys::C_COLLATION_OID;
    let mut found = false;
    // By the latest committed state: the transaction's own may be older.
    scan(&relation, Some(named(c"fleet_template_pkey")?), std::ptr::null_mut(), &mut keys, |_| {
        found = true;
        Ok(())
    })?;
    if !found {
        // Nothing is open for queries any more, and the present user has no privilege here.
        // SAFETY: inside a transaction that can still fail.
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
        // Somebody else may be committing it: then this waits, and both have the same one.
        identity::always_as_owner(|| insert(STANDARD, 1, STANDARD_ROLES))?;
        // SAFETY: pushed above.
        unsafe {
            pg_sys::PopActiveSnapshot();
            pg_sys::CommandCounterIncrement();
        }
    }
    Ok(())
}

fn look_up(template: &str) -> Result<Option<(u32, usize)>> {
    write_kept(
        "SELECT t.version, (SELECT pg_catalog.count(*) FROM pg_catalog.jsonb_object_keys(t.roles))
           FROM agd.fleet_template t WHERE t.template = $1 ORDER BY t.version DESC LIMIT 1",
        &[template.into()],
        |rows| {
            if rows.is_empty() {
                return Ok(None);
            }
            let (version, roles) = rows.first().get_two::<i32, i64>()?;
            Ok(version.zip(roles).map(|(version, roles)| (version.unsigned_abs(), roles as usize)))
        },
    )
}

/// How many rows were written: 0 when the version is there already.
fn insert(template: &str, version: i32, roles: &str) -> Result<usize> {
    let now = timestamp(backend::now())?;
    writing(|| {
        count_kept(
            "INSERT INTO agd.fleet_template (template, version, roles, created_at) VALUES ($1, $2, $3::jsonb, $4)
             ON CONFLICT DO NOTHING",
            &[template.into(), version.into(), roles.into(), now.into()],
        )
    })
}

/// 22023 unless it can be a template's name, or a role's.
pub fn check_name(name: &str) -> Result<()> {
    agd_core::name::validate_tenant(name).map_err(|_| Error::BadArgument {
        message: "that is no name for a template or a role".into(),
        hint: "1 to 63 characters of a-z, 0-9, _ and -, beginning and ending with a letter or digit.".into(),
    })
}

definer_function!(agd_create_template, pg_finfo_agd_create_template, answer_create);

/// `agd.create_template(template, roles)`
fn answer_create(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.create_template(template text, roles jsonb).
    let (template, roles) = unsafe { (argument::<String>(call, 0), json_text(call, 1)) };
    let version = told("CREATE TEMPLATE", create(template.as_deref(), roles.as_deref()))?;
    Ok(pg_sys::Datum::from(version))
}

fn create(template: Option<&str>, roles: Option<&str>) -> Result<i32> {
    error::forbid_read_only(c"agd.create_template()");
    let (Some(template), Some(roles)) = (template, roles) else {
        return Err(missing(
            "template and roles",
            "agd.create_template('research', '{\"coordinator\": {}, \"reader\": {}}')",
        ));
    };
    check_name(template)?;
    check_roles(roles)?;
    home::ensure()?;
    let version = newest(template)?.map_or(1, |(version, _)| version.cast_signed().saturating_add(1));
    if insert(template, version, roles)? == 0 {
        return Err(Error::Exists {
            message: format!("version {version} of template \"{template}\" has just been made by somebody else"),
            hint: "Look at it, and call again if another version is wanted.".into(),
        });
    }
    Ok(version)
}

fn check_roles(roles: &str) -> Result<()> {
    let bad = |message: &str| {
        Error::BadArgument {
        message: message.into(),
        hint: "{\"coordinator\": {\"goals\": [\"…\"], \"memory_scope\": {\"namespace\": \"…\"}}, …}: up to 64 roles; goals and \
               memory_scope may be left out, and memory_scope's tenant, fleet and role are agd's."
            .into(),
    }
    };
    if roles.len() > MAX_BYTES {
        return Err(bad("a template has at most 64 KiB"));
    }
    // Values stay unread: jsonb has numbers that no type here has.
    type Object = BTreeMap<String, Box<RawValue>>;
    let object: Object = serde_json::from_str(roles).map_err(|_| bad("roles must be a JSON object"))?;
    if object.is_empty() || object.len() > 64 {
        return Err(bad("a template has 1 to 64 roles"));
    }
    for (role, context) in &object {
        check_name(role)?;
        let context: Object = serde_json::from_str(context.get()).map_err(|_| bad("each role is a JSON object"))?;
        if context.keys().any(|key| key != "goals" && key != "memory_scope") {
            return Err(bad("a role has goals and a memory_scope, and nothing else"));
        }
        context.get("memory_scope").map_or(Ok(()), |scope| check_scope(scope.get()))?;
    }
    Ok(())
}

/// 22023 unless it can be a memory scope.
pub fn check_scope(scope: &str) -> Result<()> {
    let bad = |message: &str| Error::BadArgument {
        message: message.into(),
        hint: "{\"namespace\": \"…\"}, for example; tenant, fleet and role are set by agd.".into(),
    };
    // Values stay unread: jsonb has numbers that no type here has.
    let scope: BTreeMap<String, Box<RawValue>> =
        serde_json::from_str(scope).map_err(|_| bad("a memory_scope is a JSON object"))?;
    if ["tenant", "fleet", "role"].iter().any(|own| scope.contains_key(*own)) {
        return Err(bad("a memory_scope does not say whose it is"));
    }
    Ok(())
}
