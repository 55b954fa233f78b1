//! Who is writing: tenants, the roles mapped to them, and the tenant that a transaction is bound to.
//!
//! Owns agd.tenant and agd.role_map and their answers on the hot path. Promises: the bound tenant follows from the
//! authenticated role, from a signed token or from the word of a role that was trusted with it, never from a setting that
//! SQL can change; in a security-restricted operation, and within a function of another tenant's role, it is none; a tenant
//! once created stays. Never trusts a row's tenant column without comparing it with the binding.
//!
//! How a transaction is bound is in [`bind`], what it is bound to in [`binding`], how parallel workers know in [`share`];
//! what becomes of a mapping when its role does is in [`role`], keys are in [`key`], tokens that were used in [`used`], and what a session must not carry along in [`leftover`].
#![allow(unsafe_code)] // reads identities and index entries through the backend

mod bind;
mod binding;
mod key;
pub mod leftover;
pub mod role;
pub mod share;
pub mod used;

pub use binding::{check as check_binding, is_worker as is_parallel_worker, last_tenant, subtransaction_rolled_back};

use crate::catalog::{Columns, Relation, catalog, scan, scan_key, text};
use crate::error::{self, Error, OrRaise, Result};
use crate::fmgr::{self, argument, c_function, definer_function};
use crate::guard::own;
use crate::{backend, home, identity, transaction};
use pgrx::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;

/// How a login role comes by its tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is the tenant's: whoever authenticates as it is bound, with no call.
    Role,
    /// Each transaction presents a token.
    Token,
    /// Each transaction says it, and is believed.
    Asserted,
}

impl Mode {
    const ALL: [Mode; 3] = [Mode::Role, Mode::Token, Mode::Asserted];

    /// As agd.role_map has it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Role => "role",
            Mode::Token => "token",
            Mode::Asserted => "asserted",
        }
    }
}

/// A row of agd.role_map.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// None: any (but not for [`Mode::Role`]).
    pub tenant: Option<String>,
    /// How.
    pub mode: Mode,
}

/// So many tenants are remembered.
const MAX_KNOWN: usize = 4096;

#[derive(Default)]
struct Cached {
    /// The users asked about, and their mappings: the session user, and whose functions it calls.
    mappings: Vec<(pg_sys::Oid, Option<Mapping>)>,
    /// Tenants known to exist. They are never removed, so a positive answer stays true until a rollback.
    known: HashSet<String>,
}

/// So many mappings are remembered.
const MAPPINGS: usize = 8;

thread_local! {
    static CACHED: RefCell<Cached> = RefCell::new(Cached::default());
    /// Grows whenever a table of ours may have changed.
    static GENERATION: Cell<u64> = const { Cell::new(0) };
}

/// Drops what is remembered: a table of ours changed.
pub fn forget_cached() {
    GENERATION.set(GENERATION.get().wrapping_add(1));
    CACHED.with_borrow_mut(|cached| *cached = Cached::default());
}

/// The same number as before: no table of ours has changed since.
fn generation() -> u64 {
    GENERATION.get()
}

/// The transaction ended: what it may have created and rolled back is forgotten, and it is bound to nobody.
pub fn transaction_ended() {
    binding::transaction_ended();
    CACHED.with_borrow_mut(|cached| cached.known.clear());
}

/// The tenant that this transaction is bound to, by its token or its word, or else by its login role; None where whoever acts
/// is nobody (src/identity.rs). An error when the binding does not stand any more.
pub fn bound_tenant() -> Result<Option<String>> {
    if identity::is_restricted() {
        return Ok(None);
    }
    let Some(tenant) = sessions_tenant()? else { return Ok(None) };
    Ok(if runs_for_another(&tenant)? { None } else { Some(tenant) })
}

/// The same wherever the session is now.
fn sessions_tenant() -> Result<Option<String>> {
    if let Some(tenant) = binding::tenant()? {
        return Ok(Some(tenant));
    }
    Ok(role_tenant(mapping(backend::session_user())?))
}

/// Is the current user mapped, and not as this tenant's own login role? Within a function of another tenant's, or of a login
/// role that binds to one or to any, the session is nobody.
fn runs_for_another(tenant: &str) -> Result<bool> {
    let current = identity::current_user();
    if current == backend::session_user() {
        return Ok(false);
    }
    Ok(mapping(current)?.is_some_and(|mapping| role_tenant(Some(mapping)).as_deref() != Some(tenant)))
}

fn role_tenant(mapping: Option<Mapping>) -> Option<String> {
    mapping.filter(|mapping| mapping.mode == Mode::Role).and_then(|mapping| mapping.tenant)
}

/// Does this session act for a tenant: is it bound, or is the role that logged in, the role that SET ROLE chose, or `user`
/// mapped to one, in whatever mode? Such a session is never above the wall.
pub fn acts_for_one(user: pg_sys::Oid) -> Result<bool> {
    if binding::tenant()?.is_some() {
        return Ok(true);
    }
    let mut roles = vec![backend::session_user(), backend::outer_user(), user];
    roles.dedup();
    for role in roles {
        if mapping(role)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// May this session see every row of a walled table, whose it may be?
pub fn is_above_the_wall(relation: pg_sys::Oid, user: pg_sys::Oid) -> Result<bool> {
    Ok(above_the_wall(relation) && !acts_for_one(user)?)
}

/// What a transaction's record says of its binding.
pub struct Told {
    /// role, token or asserted.
    pub binding: transaction::Binding,
    /// Who acted.
    pub principal: String,
    /// For which fleet: its id and its tenant's.
    pub fleet: Option<ActingFleet>,
}

/// The fleet that a transaction is bound to.
pub struct ActingFleet {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub tenant: String,
}

/// How the transaction of this session user is bound; None: to nobody.
pub fn told(session_user: pg_sys::Oid, session_user_name: &str) -> Result<Option<Told>> {
    let told = binding::for_the_record(|binding| Told {
        binding: match binding.strength() {
            binding::Strength::Token => transaction::Binding::Token,
            binding::Strength::Asserted => transaction::Binding::Asserted,
        },
        principal: binding.principal.clone(),
        fleet: binding.fleet().map(|id| ActingFleet { id: id.to_owned(), tenant: binding.tenant.clone() }),
    })?;
    if told.is_some() {
        return Ok(told);
    }
    Ok(role_tenant(mapping(session_user)?).map(|_| Told {
        binding: transaction::Binding::Role,
        principal: session_user_name.to_owned(),
        fleet: None,
    }))
}

/// The fleet that the present transaction is bound to, as its record will tell of it.
pub fn acting_fleet() -> Result<Option<ActingFleet>> {
    let acting = binding::for_the_record(|binding| {
        binding.fleet().map(|id| ActingFleet { id: id.to_owned(), tenant: binding.tenant.clone() })
    })?;
    Ok(acting.flatten())
}

/// How a role is mapped; None: it is not.
pub fn mapping(user: pg_sys::Oid) -> Result<Option<Mapping>> {
    let remembered = CACHED
        .with_borrow(|cached| cached.mappings.iter().find(|(of, _)| *of == user).map(|(_, mapping)| mapping.clone()));
    if let Some(mapping) = remembered {
        return Ok(mapping);
    }
    let catalog = catalog()?;
    let relation = Relation::open(catalog.role_map, pg_sys::AccessShareLock);
    let mut keys = [scan_key(1, pg_sys::BTEqualStrategyNumber, pg_sys::F_OIDEQ, pg_sys::Datum::from(user))];
    let mut columns = Columns::default();
    let (mut found, mut is_named) = (None, false);
    let generation = generation();
    scan(&relation, Some(catalog.role_map_pkey), std::ptr::null_mut(), &mut keys, |tuple| {
        columns.deform(tuple, relation.descriptor());
        // SAFETY: tenant and mode of agd.role_map are text.
        let (tenant, mode) = unsafe {
            (columns.get(1).map(|value| text(value)).transpose()?, columns.get(2).map(|value| text(value)).transpose()?)
        };
        let mode = Mode::ALL.into_iter().find(|known| Some(known.name()) == mode);
        let mode = mode.ok_or_else(|| Error::Corrupted {
            message: "agd.role_map holds a mode that agd does not know".into(),
            hint: "It was changed outside of agd, or by a newer version of it.".into(),
        })?;
        // SAFETY: role_name of agd.role_map is text.
        let name = columns.get(3).map(|value| unsafe { text(value) }).transpose()?;
        found = Some(Mapping { tenant: tenant.map(str::to_owned), mode });
        is_named = name == Some(transaction::user_name(user).as_str());
        Ok(())
    })?;
    // A record that was loaded here and is not resumed knows roles by their names alone: a number may be anybody's by now.
    if found.is_some() && !is_named && !home::is_here()? {
        found = None;
    }
    if self::generation() == generation {
        CACHED.with_borrow_mut(|cached| {
            cached.mappings.truncate(MAPPINGS - 1);
            cached.mappings.insert(0, (user, found.clone()));
        });
    }
    Ok(found)
}

/// The gate's own check of a row's tenant: it must exist, and it must be the bound one unless the writer is above
/// the wall, which is then noted. 42501 otherwise.
pub fn check_row(tenant: &str, relation: pg_sys::Oid, relation_name: &str) -> Result<()> {
    let runs_for_another = runs_for_another(tenant)?;
    if !runs_for_another && binding::is_bound_to(tenant)? == Some(true) {
        return Ok(());
    }
    if let Some(bound) = sessions_tenant()? {
        if bound == tenant && !runs_for_another {
            return Ok(());
        }
        if bound == tenant {
            return Err(Error::TenantRefused {
                message: format!("a row of tenant \"{tenant}\" in {relation_name} is not for another tenant's function to write"),
                hint: "Within a SECURITY DEFINER function of another tenant's role a session is bound to nobody. Write the \
                       row outside of it."
                    .into(),
                recorded: format!("a row of {relation_name} is not for another tenant's function to write"),
            });
        }
        return Err(Error::TenantRefused {
            message: format!("a row of tenant \"{tenant}\" in {relation_name} is not for tenant \"{bound}\" to write"),
            hint: format!("This session is bound to tenant \"{bound}\" and writes only its rows."),
            recorded: format!("a row of another tenant in {relation_name} is not for tenant \"{bound}\" to write"),
        });
    }
    // A role that binds is never above the wall, whatever it owns.
    let mapping = mapping(backend::session_user())?;
    if mapping.is_some() || !above_the_wall(relation) {
        let message = format!("{relation_name} belongs to tenants, and this session is bound to none");
        let hint = match mapping.map(|mapping| mapping.mode) {
            Some(Mode::Token) => "Bind the transaction first: SELECT agd.bind($1), with a token.",
            Some(Mode::Asserted) => "Bind the transaction first: SELECT agd.enter('the_tenant', 'who acts').",
            _ => "Map the login role to its tenant: SELECT agd.map_role('the_role', 'the_tenant').",
        };
        return Err(Error::TenantRefused { recorded: message.clone(), message, hint: hint.into() });
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

/// A superuser, a role with BYPASSRLS, or the table's owner: the outer user and the current one. A superuser's session is not
/// above the wall within somebody's function, nor is somebody's session within a superuser's.
fn above_the_wall(relation: pg_sys::Oid) -> bool {
    let above = |user| {
        // SAFETY: catalog look-ups by oid.
        (unsafe { pg_sys::superuser_arg(user) || pg_sys::has_bypassrls_privilege(user) })
            || backend::owns(user, pg_sys::RelationRelationId, relation)
    };
    above(backend::outer_user()) && above(identity::current_user())
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
        CACHED.with_borrow_mut(|cached| {
            // Rows of very many tenants in one transaction: some are looked up again.
            if cached.known.len() >= MAX_KNOWN {
                cached.known.clear();
            }
            cached.known.insert(tenant.to_owned());
        });
    }
    Ok(found)
}

fn check_name(tenant: &str) -> Result<()> {
    agd_core::name::validate_tenant(tenant).map_err(|problem| Error::BadArgument {
        message: format!("\"{tenant}\" cannot be a tenant's name: {problem}"),
        hint: "1 to 63 characters of a-z, 0-9, _ and -, beginning and ending with a letter or digit.".into(),
    })
}

definer_function!(agd_create_tenant, pg_finfo_agd_create_tenant, answer_create);

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
    let created = own::writing(|| {
        Spi::get_one_with_args::<bool>(
            "WITH made AS (INSERT INTO agd.tenant (tenant, display_name) VALUES ($1, $2)
                       ON CONFLICT DO NOTHING RETURNING true AS made)
         SELECT COALESCE((SELECT made FROM made), false)",
            &[tenant.into(), display_name.into()],
        )
    })?;
    if created != Some(true) {
        return Err(Error::Exists {
            message: format!("tenant \"{tenant}\" exists already"),
            hint: "SELECT * FROM agd.tenant shows them all.".into(),
        });
    }
    Ok(())
}

definer_function!(agd_map_role, pg_finfo_agd_map_role, answer_map);

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
    let (Some(role), Some(mode)) = (role, mode) else {
        return Err(Error::BadArgument {
            message: "role and mode must be given".into(),
            hint: "SELECT agd.map_role('acme_app', 'acme').".into(),
        });
    };
    let mode = Mode::ALL.into_iter().find(|known| known.name() == mode).ok_or_else(|| Error::BadArgument {
        message: format!("there is no mode \"{mode}\""),
        hint:
            "'role': it is the tenant's. 'token': each transaction presents one. 'asserted': each transaction says it."
                .into(),
    })?;
    if mode == Mode::Role && tenant.is_none() {
        return Err(Error::BadArgument {
            message: "a role of mode 'role' belongs to one tenant, and none is given".into(),
            hint: "SELECT agd.map_role('acme_app', 'acme'). With mode 'token' or 'asserted', NULL means any tenant."
                .into(),
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
    if agd_core::token::validate_principal(role).is_err() {
        return Err(Error::BadArgument {
            message: "this role's name holds characters that are not seen as what they are".into(),
            hint: "It would be recorded as who acts. ALTER ROLE … RENAME TO a name without controls, invisible characters and \
                   those that turn the direction of text."
                .into(),
        });
    }
    if is_superuser == Some(true) {
        return Err(Error::BadArgument {
            message: format!("role \"{role}\" stands above row-level security and cannot be a tenant's"),
            hint: "Map a role that is neither superuser nor BYPASSRLS.".into(),
        });
    }
    if let Some(tenant) = tenant
        && !exists(tenant)?
    {
        return Err(Error::BadArgument {
            message: format!("there is no tenant \"{tenant}\""),
            hint: format!("Create it first: SELECT agd.create_tenant('{tenant}')."),
        });
    }
    if role::map(oid, role, tenant, mode)? {
        return Ok(());
    }
    Err(Error::Exists {
        message: format!("role \"{role}\" is mapped already"),
        hint: "One role is mapped once. SELECT * FROM agd.role_map shows how; agd.unmap_role() takes it away.".into(),
    })
}

c_function!(agd_current_tenant, pg_finfo_agd_current_tenant, answer_tenant);

/// `agd.current_tenant()`: the tenant this transaction is bound to, NULL when it is bound to none.
fn answer_tenant(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    let tenant = bound_tenant()?;
    // SAFETY: this is the call.
    Ok(unsafe { fmgr::answer(call, tenant.as_deref().and_then(fmgr::text)) })
}

c_function!(agd_current_principal, pg_finfo_agd_current_principal, answer_principal);

/// `agd.current_principal()`: who acts for the tenant, NULL when the transaction is bound to none.
fn answer_principal(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    let principal = match bound_tenant()? {
        Some(_) => Some(binding::present()?.map_or_else(transaction::session_user_name, |present| present.principal)),
        None => None,
    };
    // SAFETY: this is the call.
    Ok(unsafe { fmgr::answer(call, principal.as_deref().and_then(fmgr::text)) })
}

c_function!(agd_current_scopes, pg_finfo_agd_current_scopes, answer_scopes);

/// `agd.current_scopes()`: what the token allows, NULL where no token does.
fn answer_scopes(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    let scopes = match bound_tenant()? {
        Some(_) => binding::with(|binding| binding.proof.as_ref().and_then(|proof| proof.scopes.clone()))?.flatten(),
        None => None,
    };
    // SAFETY: this is the call.
    Ok(unsafe { fmgr::answer(call, scopes.and_then(pgrx::IntoDatum::into_datum)) })
}

c_function!(agd_current_fleet, pg_finfo_agd_current_fleet, answer_fleet);

/// `agd.current_fleet()`: the fleet that acts, NULL where no token names one.
fn answer_fleet(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    let fleet = bound_fleet()?;
    // SAFETY: this is the call.
    Ok(unsafe { fmgr::answer(call, fleet.as_deref().and_then(fmgr::text)) })
}

/// The fleet that this transaction is bound to.
pub fn bound_fleet() -> Result<Option<String>> {
    if bound_tenant()?.is_none() {
        return Ok(None);
    }
    Ok(binding::with(|binding| binding.fleet().map(str::to_owned))?.flatten())
}

c_function!(agd_may_read, pg_finfo_agd_may_read, answer_may_read);

/// `agd.may_read(tenant)`
fn answer_may_read(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.may_read(tenant text).
    let tenant = unsafe { argument::<String>(call, 0) };
    may_see(tenant.as_deref()).map(pg_sys::Datum::from)
}

c_function!(agd_may_read_payload, pg_finfo_agd_may_read_payload, answer_may_read_payload);

/// `agd.may_read_payload(tenant)`
fn answer_may_read_payload(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.may_read_payload(tenant text).
    let tenant = unsafe { argument::<String>(call, 0) };
    may_read_payload(tenant.as_deref()).map(pg_sys::Datum::from)
}

/// `agd.may_read_payload(tenant)`: row images are for the tenant itself and for superusers.
pub fn may_read_payload(tenant: Option<&str>) -> Result<bool> {
    may(identity::is_superuser, tenant)
}

/// `agd.may_read(tenant)`: every header for members of agd_platform and agd_auditor, its own for a tenant.
pub fn may_read(tenant: Option<&str>) -> bool {
    may_see(tenant).or_raise()
}

fn may_see(tenant: Option<&str>) -> Result<bool> {
    may(|user| identity::is_member(user, c"agd_platform") || identity::is_member(user, c"agd_auditor"), tenant)
}

/// May this session act for a tenant: members of agd_platform for every one, a tenant for itself.
pub fn may_act_for(tenant: &str) -> Result<bool> {
    may(|user| identity::is_member(user, c"agd_platform"), Some(tenant))
}

/// Is this session a member of agd_platform?
pub fn is_platform() -> bool {
    identity::both(|user| identity::is_member(user, c"agd_platform"))
}

/// `agd.is_publisher()`: members of agd_publisher see every anchor.
#[pg_extern(sql = false)]
pub fn is_publisher() -> bool {
    identity::both(|user| identity::is_member(user, c"agd_publisher"))
}

/// May the outer user and the current one, each by its own right or as the tenant? Nobody may anything.
fn may(by_right: impl Fn(pg_sys::Oid) -> bool, tenant: Option<&str>) -> Result<bool> {
    if identity::is_restricted() {
        return Ok(false);
    }
    let (outer, current) = (backend::outer_user(), identity::current_user());
    let is_bound = tenant.is_some() && bound_tenant()?.as_deref() == tenant;
    if !is_bound && !by_right(outer) {
        return Ok(false);
    }
    if current == outer || by_right(current) || is_bound && current == backend::session_user() {
        return Ok(true);
    }
    // Whose function it is must be the tenant, too, by its login role.
    Ok(tenant.is_some() && role_tenant(mapping(current)?).as_deref() == tenant)
}
