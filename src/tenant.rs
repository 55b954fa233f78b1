//! Who is writing: tenants, the roles mapped to them, and the tenant this session is bound to.
//!
//! Owns agd.tenant and agd.role_map and their answers on the hot path. Promises: the bound tenant follows from the
//! authenticated role alone, never from a setting that SQL can change; a tenant once created stays. Never trusts a row's
//! tenant column without comparing it with the binding.
#![allow(unsafe_code)] // reads identities and index entries through the backend

use crate::catalog::{Columns, Relation, catalog, scan, scan_key, text};
use crate::error::{self, Error, OrRaise, Result};
use crate::fmgr::{argument, c_function};
use crate::{backend, home, transaction};
use pgrx::prelude::*;
use std::cell::RefCell;
use std::collections::HashSet;

#[derive(Default)]
struct Cached {
    /// The session user asked about, and its tenant.
    binding: Option<(pg_sys::Oid, Option<String>)>,
    /// Tenants known to exist. They are never removed, so a positive answer stays true until a rollback.
    known: HashSet<String>,
}

thread_local! {
    static CACHED: RefCell<Cached> = RefCell::new(Cached::default());
}

/// Drops what is remembered: a table of ours changed.
pub fn forget_cached() {
    CACHED.with_borrow_mut(|cached| *cached = Cached::default());
}

/// The transaction ended: what it may have created and rolled back is forgotten.
pub fn transaction_ended() {
    CACHED.with_borrow_mut(|cached| cached.known.clear());
}

/// The tenant that the authenticated role is mapped to.
pub fn bound_tenant() -> Result<Option<String>> {
    tenant_of(backend::session_user())
}

/// The tenant that a role is mapped to.
pub fn tenant_of(user: pg_sys::Oid) -> Result<Option<String>> {
    let remembered = CACHED.with_borrow(|cached| match &cached.binding {
        Some((of, tenant)) if *of == user => Some(tenant.clone()),
        _ => None,
    });
    if let Some(tenant) = remembered {
        return Ok(tenant);
    }
    let catalog = catalog()?;
    let relation = Relation::open(catalog.role_map, pg_sys::AccessShareLock);
    let mut keys = [scan_key(1, pg_sys::BTEqualStrategyNumber, pg_sys::F_OIDEQ, pg_sys::Datum::from(user))];
    let mut columns = Columns::default();
    let mut tenant = None;
    scan(&relation, Some(catalog.role_map_pkey), std::ptr::null_mut(), &mut keys, |tuple| {
        columns.deform(tuple, relation.descriptor());
        if let Some(value) = columns.get(1) {
            // SAFETY: agd.role_map.tenant is text.
            tenant = Some(unsafe { text(value) }?.to_owned());
        }
        Ok(())
    })?;
    CACHED.with_borrow_mut(|cached| cached.binding = Some((user, tenant.clone())));
    Ok(tenant)
}

/// The gate's own check of a row's tenant: it must exist, and it must be the bound one unless the writer is above
/// the wall, which is then noted. 42501 otherwise.
pub fn check_row(tenant: &str, relation: pg_sys::Oid, relation_name: &str) -> Result<()> {
    match bound_tenant()? {
        Some(bound) if bound == tenant => return Ok(()),
        Some(bound) => {
            return Err(Error::TenantRefused {
                message: format!(
                    "a row of tenant \"{tenant}\" in {relation_name} is not for tenant \"{bound}\" to write"
                ),
                hint: format!("This session is bound to tenant \"{bound}\" and writes only its rows."),
                recorded: format!("a row of another tenant in {relation_name} is not for tenant \"{bound}\" to write"),
            });
        }
        None => {}
    }
    if !above_the_wall(relation) {
        let message = format!("{relation_name} belongs to tenants, and this session is bound to none");
        return Err(Error::TenantRefused {
            recorded: message.clone(),
            message,
            hint: "Map the login role to its tenant: SELECT agd.map_role('the_role', 'the_tenant').".into(),
        });
    }
    if !exists(tenant)? {
        return Err(Error::TenantRefused {
            message: format!("there is no tenant \"{tenant}\""),
            hint: format!("Create it first: SELECT agd.create_tenant('{tenant}')."),
            recorded: format!("a row of {relation_name} names a tenant that does not exist"),
        });
    }
    transaction::note_bypass();
    Ok(())
}

/// A row that is there already when its table is guarded: its tenant must exist. 42501 otherwise.
pub fn check_baseline_row(tenant: &str, relation_name: &str) -> Result<()> {
    if exists(tenant)? {
        return Ok(());
    }
    Err(Error::NotAllowed {
        message: format!("{relation_name} holds rows of \"{tenant}\", and there is no such tenant"),
        hint: format!("Create it first: SELECT agd.create_tenant('{tenant}')."),
    })
}

/// A superuser, a role with BYPASSRLS, or the table's owner.
fn above_the_wall(relation: pg_sys::Oid) -> bool {
    let user = backend::outer_user();
    // SAFETY: catalog look-ups by oid.
    (unsafe { pg_sys::superuser_arg(user) || pg_sys::has_bypassrls_privilege(user) })
        || backend::owns(user, pg_sys::RelationRelationId, relation)
}

/// Is there such a tenant?
pub fn exists(tenant: &str) -> Result<bool> {
    if CACHED.with_borrow(|cached| cached.known.contains(tenant)) {
        return Ok(true);
    }
    let catalog = catalog()?;
    let relation = Relation::open(catalog.tenant, pg_sys::AccessShareLock);
    let mut keys =
        [scan_key(1, pg_sys::BTEqualStrategyNumber, pg_sys::F_TEXTEQ, crate::catalog::to_varlena(tenant.as_bytes()))];
    keys[0].sk_collation = pg_sys::C_COLLATION_OID;
    let mut found = false;
    scan(&relation, Some(catalog.tenant_pkey), std::ptr::null_mut(), &mut keys, |_| {
        found = true;
        Ok(())
    })?;
    if found {
        CACHED.with_borrow_mut(|cached| cached.known.insert(tenant.to_owned()));
    }
    Ok(found)
}

fn check_name(tenant: &str) -> Result<()> {
    agd_core::name::validate_tenant(tenant).map_err(|problem| Error::BadArgument {
        message: format!("\"{tenant}\" cannot be a tenant's name: {problem}"),
        hint: "1 to 63 characters of a-z, 0-9, _ and -, beginning and ending with a letter or digit.".into(),
    })
}

c_function!(agd_create_tenant, pg_finfo_agd_create_tenant, answer_create);

/// `agd.create_tenant(tenant, display_name)`
fn answer_create(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.create_tenant(tenant text, display_name text).
    let (tenant, display_name) = unsafe { (argument::<String>(call, 0), argument::<String>(call, 1)) };
    create(tenant.as_deref(), display_name.as_deref()).map(|()| pg_sys::Datum::from(0))
}

fn create(tenant: Option<&str>, display_name: Option<&str>) -> Result<()> {
    error::forbid_read_only(c"agd.create_tenant()");
    home::ensure()?;
    let tenant = tenant.ok_or_else(|| Error::BadArgument {
        message: "a tenant needs a name".into(),
        hint: "SELECT agd.create_tenant('acme').".into(),
    })?;
    check_name(tenant)?;
    let created = Spi::get_one_with_args::<bool>(
        "WITH made AS (INSERT INTO agd.tenant (tenant, display_name) VALUES ($1, $2)
                       ON CONFLICT DO NOTHING RETURNING true AS made)
         SELECT COALESCE((SELECT made FROM made), false)",
        &[tenant.into(), display_name.into()],
    )?;
    if created != Some(true) {
        return Err(Error::Exists {
            message: format!("tenant \"{tenant}\" exists already"),
            hint: "SELECT * FROM agd.tenant shows them all.".into(),
        });
    }
    Ok(())
}

c_function!(agd_map_role, pg_finfo_agd_map_role, answer_map);

/// `agd.map_role(role, tenant, mode)`
fn answer_map(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.map_role(role name, tenant text, mode text).
    let (role, tenant, mode) =
        unsafe { (argument::<&std::ffi::CStr>(call, 0), argument::<String>(call, 1), argument::<String>(call, 2)) };
    let role = role.map(|role| role.to_string_lossy());
    map(role.as_deref(), tenant.as_deref(), mode.as_deref()).map(|()| pg_sys::Datum::from(0))
}

fn map(role: Option<&str>, tenant: Option<&str>, mode: Option<&str>) -> Result<()> {
    error::forbid_read_only(c"agd.map_role()");
    home::ensure()?;
    let (Some(role), Some(tenant), Some(mode)) = (role, tenant, mode) else {
        return Err(Error::BadArgument {
            message: "role, tenant and mode must be given".into(),
            hint: "SELECT agd.map_role('acme_app', 'acme').".into(),
        });
    };
    if mode != "role" {
        return Err(Error::Unsupported {
            message: format!("mode \"{mode}\" is not supported"),
            hint: "This version knows the mode 'role': the authenticated role is the tenant's.".into(),
        });
    }
    let (oid, is_superuser) = Spi::connect(|client| {
        let rows = client.select(
            "SELECT oid, rolsuper OR rolbypassrls FROM pg_catalog.pg_roles WHERE rolname = $1",
            Some(1),
            &[role.into()],
        )?;
        if rows.is_empty() {
            return Ok::<_, pgrx::spi::Error>((None, None));
        }
        rows.first().get_two::<pg_sys::Oid, bool>()
    })?;
    let Some(oid) = oid else {
        return Err(Error::BadArgument {
            message: format!("role \"{role}\" does not exist"),
            hint: format!("Create it first: CREATE ROLE {role} LOGIN."),
        });
    };
    if is_superuser == Some(true) {
        return Err(Error::BadArgument {
            message: format!("role \"{role}\" stands above row-level security and cannot be a tenant's"),
            hint: "Map a role that is neither superuser nor BYPASSRLS.".into(),
        });
    }
    if !exists(tenant)? {
        return Err(Error::BadArgument {
            message: format!("there is no tenant \"{tenant}\""),
            hint: format!("Create it first: SELECT agd.create_tenant('{tenant}')."),
        });
    }
    let mapped = Spi::get_one_with_args::<bool>(
        "WITH made AS (INSERT INTO agd.role_map (role, tenant, mode) VALUES ($1::oid::regrole, $2, $3)
                       ON CONFLICT DO NOTHING RETURNING true AS made)
         SELECT COALESCE((SELECT made FROM made), false)",
        &[oid.into(), tenant.into(), mode.into()],
    )?;
    if mapped != Some(true) {
        return Err(Error::Exists {
            message: format!("role \"{role}\" is mapped to a tenant already"),
            hint: "One role belongs to one tenant. SELECT * FROM agd.role_map shows which.".into(),
        });
    }
    Ok(())
}

/// `agd.current_tenant()`: the tenant this session is bound to, NULL when it is bound to none.
#[pg_extern(sql = false)]
fn current_tenant() -> Option<String> {
    bound_tenant().or_raise()
}

/// `agd.current_principal()`: who acts for the tenant, NULL when the session is bound to none.
#[pg_extern(sql = false)]
fn current_principal() -> Option<String> {
    bound_tenant().or_raise().map(|_| transaction::session_user_name())
}

/// `agd.may_read(tenant)`: every header for members of agd_platform and agd_auditor, its own for a tenant.
#[pg_extern(sql = false)]
pub fn may_read(tenant: Option<&str>) -> bool {
    outer_user_is_member_of(c"agd_platform") || outer_user_is_member_of(c"agd_auditor") || is_bound_to(tenant)
}

/// `agd.may_read_payload(tenant)`: row images are for the tenant itself and for superusers.
#[pg_extern(sql = false)]
pub fn may_read_payload(tenant: Option<&str>) -> bool {
    // SAFETY: a catalog look-up.
    is_bound_to(tenant) || unsafe { pg_sys::superuser_arg(backend::outer_user()) }
}

/// `agd.is_publisher()`: members of agd_publisher see every anchor.
#[pg_extern(sql = false)]
pub fn is_publisher() -> bool {
    outer_user_is_member_of(c"agd_publisher")
}

fn is_bound_to(tenant: Option<&str>) -> bool {
    tenant.is_some() && bound_tenant().or_raise().as_deref() == tenant
}

fn outer_user_is_member_of(role: &std::ffi::CStr) -> bool {
    // SAFETY: catalog look-ups; an unknown role has no members.
    unsafe {
        let role = pg_sys::get_role_oid(role.as_ptr(), true);
        role != pg_sys::InvalidOid && pg_sys::has_privs_of_role(backend::outer_user(), role)
    }
}
