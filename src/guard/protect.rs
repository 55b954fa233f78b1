//! Guarded tables, and agd's own objects, against DDL.
//!
//! Owns the decisions: what is refused at once, what is compared when a statement ends, and what is recorded. Promises that
//! no statement leaves a guard with a problem that it did not have before, whatever the statement is: what counts is what
//! the catalogs say before and after, not a list of commands. `agd.unguard()` is the way out. Never mends a guard.
//!
//! Two lines of defence come to the same judgement: the library's hooks (here and in [`super::touched`]) and the event
//! triggers of sql/35_protect.sql, which also know every object that a statement made, changed or dropped.
#![allow(unsafe_code)] // parse nodes, calls a function by its oid

use crate::denied::{self, Attempt};
use crate::error::{Error, Result};
use crate::fmgr::c_function;
use crate::guard::baseline::record_again;
use crate::guard::place::{self, Guard, class, is_own, parent_of, place_of};
use crate::guard::relation::qualified_name;
use crate::guard::touched::{self, Frame, Touched, with_running};
use crate::guard::trigger::NOT_MADE_BY_AGD;
use crate::guard::{ddl_event, detach, farewell, partition};
use crate::identity::always_as_owner;
use crate::query::{self, At};
use crate::tenant::role;
use crate::{backend, home, tenant};
use pgrx::pg_extern;
use pgrx::pg_sys;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{CStr, c_char, c_int};

/// Before a utility statement runs.
///
/// # Safety
/// The arguments are those of a ProcessUtility hook, at the statement's nesting level.
pub unsafe fn before_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    context: pg_sys::ProcessUtilityContext::Type,
) -> Result<()> {
    // SAFETY: passed on from the caller; the tag tells the node's type.
    unsafe {
        touched::statement_begins(statement, query, context);
        let node = (*statement).utilityStmt;
        before_work(node)?;
        match (*node).type_ {
            pg_sys::NodeTag::T_AlterTableStmt => before_alter_table(node.cast()),
            pg_sys::NodeTag::T_GrantStmt => before_grant(node.cast()),
            pg_sys::NodeTag::T_CreatePublicationStmt => {
                before_create_publication(node.cast());
                Ok(())
            }
            pg_sys::NodeTag::T_IndexStmt => before_index(node.cast()),
            pg_sys::NodeTag::T_DropStmt
                if (*node.cast::<pg_sys::DropStmt>()).removeType == pg_sys::ObjectType::OBJECT_EXTENSION =>
            {
                before_drop_extension(node.cast())
            }
            pg_sys::NodeTag::T_RenameStmt
                if (*node.cast::<pg_sys::RenameStmt>()).renameType == pg_sys::ObjectType::OBJECT_ROLE =>
            {
                role::before_rename();
                Ok(())
            }
            pg_sys::NodeTag::T_RenameStmt => before_rename(node.cast()),
            pg_sys::NodeTag::T_LockStmt => before_lock(node.cast()),
            pg_sys::NodeTag::T_DropOwnedStmt => role::before_drop_owned(node.cast()),
            pg_sys::NodeTag::T_CreatePolicyStmt => before_create_policy(node.cast()),
            pg_sys::NodeTag::T_AlterEnumStmt => before_alter_enum(node.cast()),
            pg_sys::NodeTag::T_CreateExtensionStmt => {
                permit_own((*node.cast::<pg_sys::CreateExtensionStmt>()).extname);
                Ok(())
            }
            // ALTER EXTENSION … UPDATE; ADD and DROP are another statement.
            pg_sys::NodeTag::T_AlterExtensionStmt => {
                permit_own((*node.cast::<pg_sys::AlterExtensionStmt>()).extname);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// What a statement names to work through it: it may call functions for every row there is.
#[derive(Default)]
struct Work {
    tables: Vec<pg_sys::Oid>,
    /// Those above are not named by it, nor need they be the caller's own: they have a column of a type that it names.
    by_type: bool,
    /// Every table of the database that the caller may maintain.
    everything: bool,
    /// It defines something, and leaves the rows alone.
    only_defines: bool,
}

/// Before a statement that can call functions for rows of a guarded table (USING, DEFAULT, CHECK, an index's expression), or
/// that leaves such calls behind (a trigger, a policy): a tenant's session could be shown everybody's rows by them.
unsafe fn before_work(node: *mut pg_sys::Node) -> Result<()> {
    // SAFETY: passed on from the caller.
    let (work, references) = unsafe { (work_of(node)?, references_of(node)) };
    if !references.is_empty()
        && let Some(user) = with_running(|frame| frame.user)
    {
        refuse_references(references.into_iter(), user)?;
    }
    if work.tables.is_empty() && !work.everything {
        return Ok(());
    }
    let Some((user, what)) = with_running(|frame| (frame.user, frame.tag_name())) else { return Ok(()) };
    let mut guards = Vec::new();
    for table in work.tables {
        if table != pg_sys::InvalidOid
            && !is_own(table)
            && let Some(guard) = place::guard_of(place::table_of(table), At::Now)?
        {
            guards.push(guard);
        }
    }
    if work.everything && place::extension() != pg_sys::InvalidOid && tenant::acts_for_one(user)? {
        let mut roots = Vec::new();
        place::each_guarded(|root| roots.push(root))?;
        for root in roots.into_iter().filter(|root| backend::may_maintain(user, *root)) {
            guards.extend(place::guard_of(root, At::Now)?);
        }
    }
    for guard in &guards {
        if guard.tenant_column.is_some()
            && (tenant::acts_for_one(user)? || work.by_type && !tenant::is_above_the_wall(guard.root, user)?)
        {
            return Err(not_for_tenants(&what, guard));
        }
    }
    if !work.only_defines {
        with_running(|frame| guards.iter().for_each(|guard| frame.begin_work_on(guard.root)));
    }
    Ok(())
}

/// # Safety
/// `node` is a valid parse node of a utility statement.
unsafe fn work_of(node: *mut pg_sys::Node) -> Result<Work> {
    use pg_sys::NodeTag::*;
    // SAFETY: the tag tells the node's type; lists hold what the grammar puts into them.
    unsafe {
        let on = |name: *mut pg_sys::RangeVar| Work {
            tables: if name.is_null() { Vec::new() } else { vec![detach::named(name)] },
            everything: name.is_null(),
            ..Work::default()
        };
        let defines = |name: *mut pg_sys::RangeVar| Work { everything: false, only_defines: true, ..on(name) };
        Ok(match (*node).type_ {
            T_AlterTableStmt => on((*node.cast::<pg_sys::AlterTableStmt>()).relation),
            T_IndexStmt => on((*node.cast::<pg_sys::IndexStmt>()).relation),
            T_ClusterStmt => on((*node.cast::<pg_sys::ClusterStmt>()).relation),
            // REINDEX SCHEMA, DATABASE and SYSTEM name no table.
            T_ReindexStmt => on((*node.cast::<pg_sys::ReindexStmt>()).relation),
            T_VacuumStmt => {
                let named = pgrx::PgList::<pg_sys::VacuumRelation>::from_pg((*node.cast::<pg_sys::VacuumStmt>()).rels);
                let tables = named.iter_ptr().filter(|one| !(**one).relation.is_null());
                Work {
                    tables: tables.map(|one| detach::named((*one).relation)).collect(),
                    everything: named.is_empty(),
                    ..Work::default()
                }
            }
            // A new partition takes rows out of the default one's bounds: those are looked through.
            T_CreateStmt if !(*node.cast::<pg_sys::CreateStmt>()).partbound.is_null() => {
                let parents = (*node.cast::<pg_sys::CreateStmt>()).inhRelations;
                on(pgrx::PgList::<pg_sys::RangeVar>::from_pg(parents).get_ptr(0).unwrap_or(std::ptr::null_mut()))
            }
            T_CreateTrigStmt => defines((*node.cast::<pg_sys::CreateTrigStmt>()).relation),
            T_RuleStmt => defines((*node.cast::<pg_sys::RuleStmt>()).relation),
            T_CreatePolicyStmt => defines((*node.cast::<pg_sys::CreatePolicyStmt>()).table),
            T_AlterPolicyStmt => defines((*node.cast::<pg_sys::AlterPolicyStmt>()).table),
            T_RenameStmt => defines((*node.cast::<pg_sys::RenameStmt>()).relation),
            T_AlterObjectSchemaStmt => defines((*node.cast::<pg_sys::AlterObjectSchemaStmt>()).relation),
            T_CreateStatsStmt => {
                let tables = pgrx::PgList::<pg_sys::Node>::from_pg((*node.cast::<pg_sys::CreateStatsStmt>()).relations);
                let named = tables.iter_ptr().filter(|node| (**node).type_ == T_RangeVar);
                let tables = named.map(|name| detach::named(name.cast())).collect();
                Work { tables, only_defines: true, ..Work::default() }
            }
            // A domain's new constraint is asked for every value of it there is, whoever owns the table.
            T_AlterDomainStmt
                if matches!((*node.cast::<pg_sys::AlterDomainStmt>()).subtype as u8, b'C' | b'V' | b'O') =>
            {
                let name = pg_sys::makeTypeNameFromNameList((*node.cast::<pg_sys::AlterDomainStmt>()).typeName);
                let domain = pg_sys::LookupTypeNameOid(std::ptr::null_mut(), name, true);
                let tables = place::tables_with(domain)?.into_iter().map(pg_sys::Oid::from_u32).collect();
                Work { tables, by_type: true, ..Work::default() }
            }
            _ => Work::default(),
        })
    }
}

/// The tables that the foreign keys of a statement point to.
///
/// # Safety
/// `node` is a valid parse node of a utility statement.
unsafe fn references_of(node: *mut pg_sys::Node) -> Vec<pg_sys::Oid> {
    use pg_sys::NodeTag::{T_AlterTableStmt, T_ColumnDef, T_Constraint, T_CreateStmt};
    // SAFETY: the tag tells the node's type; lists hold what the grammar puts into them.
    unsafe {
        let mut parts: Vec<*mut pg_sys::Node> = match (*node).type_ {
            T_CreateStmt => {
                let elements = (*node.cast::<pg_sys::CreateStmt>()).tableElts;
                pgrx::PgList::<pg_sys::Node>::from_pg(elements).iter_ptr().collect()
            }
            T_AlterTableStmt => {
                let commands = (*node.cast::<pg_sys::AlterTableStmt>()).cmds;
                let commands = pgrx::PgList::<pg_sys::AlterTableCmd>::from_pg(commands);
                commands.iter_ptr().map(|command| (*command).def).collect()
            }
            _ => Vec::new(),
        };
        let mut found = Vec::new();
        while let Some(part) = parts.pop() {
            if part.is_null() {
                continue;
            }
            match (*part).type_ {
                T_ColumnDef => {
                    let constraints = (*part.cast::<pg_sys::ColumnDef>()).constraints;
                    parts.extend(pgrx::PgList::<pg_sys::Node>::from_pg(constraints).iter_ptr());
                }
                T_Constraint if !(*part.cast::<pg_sys::Constraint>()).pktable.is_null() => {
                    found.push(detach::named((*part.cast::<pg_sys::Constraint>()).pktable));
                }
                _ => {}
            }
        }
        found
    }
}

/// 42501 for a foreign key to a walled table by who is not above its wall: PostgreSQL checks it as the table's owner, without
/// row-level security, calls the casts of the key's own type meanwhile, and lets it tell and hold other tenants' rows.
fn refuse_references(tables: impl Iterator<Item = pg_sys::Oid>, user: pg_sys::Oid) -> Result<()> {
    for table in tables {
        if table == pg_sys::InvalidOid || is_own(table) {
            continue;
        }
        let Some(guard) = place::guard_of(table, At::Now)?.filter(|guard| guard.tenant_column.is_some()) else {
            continue;
        };
        if tenant::is_above_the_wall(guard.root, user)? {
            continue;
        }
        let name = qualified_name(guard.root);
        denied::attempted(Attempt {
            action: Some("FOREIGN KEY".into()),
            relation: Some(name.clone()),
            guard_id: Some(guard.id),
            ..Attempt::default()
        });
        return Err(Error::NotAllowed {
            message: format!("a foreign key to {name} is for its owner alone to make: it holds rows of all tenants"),
            hint: "Make it as the table's owner, logged in as a role that is mapped to no tenant.".into(),
        });
    }
    Ok(())
}

/// 42501 for who would lock a table of agd's against its writers.
///
/// # Safety
/// A valid parse node.
unsafe fn before_lock(statement: *mut pg_sys::LockStmt) -> Result<()> {
    // SAFETY: the relations are RangeVars.
    unsafe {
        if (*statement).mode <= pg_sys::AccessShareLock as i32 {
            return Ok(());
        }
        let named = pgrx::PgList::<pg_sys::RangeVar>::from_pg((*statement).relations);
        let own = named.iter_ptr().map(|name| detach::named(name)).find(|table| is_own(*table));
        let Some(own) = own else { return Ok(()) };
        match with_running(|frame| frame.user) {
            Some(user) if !pg_sys::superuser_arg(user) => Err(Error::NotAllowed {
                message: format!(
                    "{} is not for this role to lock: every guarded write would wait",
                    qualified_name(own)
                ),
                hint: "LOCK TABLE … IN ACCESS SHARE MODE, as pg_dump does, holds nobody up.".into(),
            }),
            _ => Ok(()),
        }
    }
}

/// 42501: a tenant's session does no DDL on a table that holds everybody's rows, whoever owns it.
fn not_for_tenants(what: &str, guard: &Guard) -> Error {
    let name = qualified_name(guard.root);
    let message =
        format!("{what} on the guarded table {name} is not for a tenant's session: it holds rows of all tenants");
    denied::attempted(Attempt {
        action: Some(what.to_owned()),
        relation: Some(name),
        guard_id: Some(guard.id),
        ..Attempt::default()
    });
    Error::TenantRefused {
        recorded: message.clone(),
        message,
        hint: "Do this as the table's owner, logged in as a role that is mapped to no tenant.".into(),
    }
}

/// The script of agd itself may make and change what is agd's own.
unsafe fn permit_own(extension: *const c_char) {
    // SAFETY: a parse node's C string, or null.
    if !extension.is_null() && unsafe { CStr::from_ptr(extension) } == c"agd" {
        with_running(|frame| frame.own_permitted = true);
    }
}

/// Not every change that ALTER TABLE makes is reported by the object-access hook: its target counts as touched.
unsafe fn before_alter_table(statement: *mut pg_sys::AlterTableStmt) -> Result<()> {
    use pg_sys::AlterTableType as Kind;
    // SAFETY: the cells are AlterTableCmd nodes; a column's definition is a ColumnDef.
    unsafe {
        let target = detach::named((*statement).relation);
        let (mut may_change_values, mut has_using, mut changes_row_type) = (false, false, false);
        let mut retyped = Vec::new();
        for command in pgrx::PgList::<pg_sys::AlterTableCmd>::from_pg((*statement).cmds).iter_ptr() {
            // What stores every row anew as it is. Of anything else the comparison at the statement's end decides.
            may_change_values |= !matches!(
                (*command).subtype,
                Kind::AT_SetLogged | Kind::AT_SetUnLogged | Kind::AT_SetAccessMethod | Kind::AT_SetTableSpace
            );
            changes_row_type |=
                matches!((*command).subtype, Kind::AT_AddColumn | Kind::AT_DropColumn | Kind::AT_AlterColumnType);
            if (*command).subtype == Kind::AT_AlterColumnType && !(*command).def.is_null() {
                let by_expression = !(*(*command).def.cast::<pg_sys::ColumnDef>()).raw_default.is_null();
                has_using |= by_expression;
                if !(*command).name.is_null() {
                    let name = CStr::from_ptr((*command).name).to_string_lossy().into_owned();
                    retyped.push((target.to_u32(), name, by_expression));
                }
            }
        }
        if changes_row_type && target != pg_sys::InvalidOid {
            refuse_change_of_type(pg_sys::get_rel_type_id(target))?;
        }
        let detached = match with_running(|_| ()) {
            Some(()) => detach::before(statement)?,
            None => None,
        };
        with_running(|frame| {
            if target != pg_sys::InvalidOid {
                frame.note(class::RELATION, target);
            }
            frame.may_change_values = may_change_values;
            frame.has_using = has_using;
            frame.retyped = retyped;
            frame.detached = detached;
        });
        Ok(())
    }
}

/// ALTER TYPE … RENAME ATTRIBUTE, and the same for a table that is the type of another one's column.
unsafe fn before_rename(statement: *mut pg_sys::RenameStmt) -> Result<()> {
    use pg_sys::ObjectType::{OBJECT_ATTRIBUTE, OBJECT_COLUMN};
    // SAFETY: a rename of a column or attribute names a relation, and two names.
    unsafe {
        if matches!((*statement).renameType, OBJECT_ATTRIBUTE | OBJECT_COLUMN) && !(*statement).relation.is_null() {
            let target = detach::named((*statement).relation);
            if target != pg_sys::InvalidOid {
                refuse_change_of_type(pg_sys::get_rel_type_id(target))?;
            }
        }
    }
    Ok(())
}

/// ALTER TYPE … RENAME VALUE: every row that has the value says something else from then on.
unsafe fn before_alter_enum(statement: *mut pg_sys::AlterEnumStmt) -> Result<()> {
    // SAFETY: the name is a list of strings; a type that is not there is PostgreSQL's to report.
    unsafe {
        if !(*statement).oldVal.is_null() {
            let name = pg_sys::makeTypeNameFromNameList((*statement).typeName);
            refuse_change_of_type(pg_sys::LookupTypeNameOid(std::ptr::null_mut(), name, true))?;
        }
    }
    Ok(())
}

/// The values of a guarded table would read otherwise than they were recorded, without a write.
fn refuse_change_of_type(changed: pg_sys::Oid) -> Result<()> {
    if changed == pg_sys::InvalidOid || with_running(|_| ()).is_none() {
        return Ok(());
    }
    refuse_if_guarded_uses(changed)
}

/// Columns of a relation were made, changed or dropped, by whatever command: directly, or through inheritance, a typed table,
/// a view. Is a guarded table's column made of its row type, its rows would read otherwise than recorded.
fn refuse_reshaped(frame: &Frame) -> Result<()> {
    for relation in frame.reshaped.iter().map(|relation| pg_sys::Oid::from_u32(*relation)) {
        // SAFETY: a catalog look-up; a relation that is gone has no type.
        let row_type = unsafe { pg_sys::get_rel_type_id(relation) };
        if row_type == pg_sys::InvalidOid || place::tables_with(row_type)?.is_empty() {
            continue;
        }
        let before = place::shape_of(relation, frame.before())?;
        if !before.is_empty() && before != place::shape_of(relation, At::Now)? {
            refuse_if_guarded_uses(row_type)?;
        }
    }
    Ok(())
}

fn refuse_if_guarded_uses(changed: pg_sys::Oid) -> Result<()> {
    for table in place::tables_with(changed)? {
        if let Some(guard) = place::guard_of(pg_sys::Oid::from(table), At::Now)? {
            let name = qualified_name(guard.root);
            return Err(tampering(
                format!(
                    "the guarded table {name} has a column of this type: its rows would read otherwise than recorded"
                ),
                &name,
            ));
        }
    }
    Ok(())
}

/// GRANT and REVOKE are reported by nobody: the tables they name count as touched.
unsafe fn before_grant(statement: *mut pg_sys::GrantStmt) -> Result<()> {
    use pg_sys::GrantTargetType::{ACL_TARGET_ALL_IN_SCHEMA, ACL_TARGET_OBJECT};
    // SAFETY: the objects are RangeVars, or the names of schemas.
    unsafe {
        if (*statement).objtype != pg_sys::ObjectType::OBJECT_TABLE {
            return Ok(());
        }
        let mut tables = Vec::new();
        match (*statement).targtype {
            ACL_TARGET_OBJECT => {
                for name in pgrx::PgList::<pg_sys::RangeVar>::from_pg((*statement).objects).iter_ptr() {
                    tables.push(detach::named(name));
                }
            }
            ACL_TARGET_ALL_IN_SCHEMA => {
                let mut schemas = HashSet::new();
                for name in pgrx::PgList::<pg_sys::String>::from_pg((*statement).objects).iter_ptr() {
                    schemas.insert(pg_sys::get_namespace_oid((*name).sval, true));
                }
                place::each_guarded(|root| {
                    if schemas.contains(&pg_sys::get_rel_namespace(root)) {
                        tables.push(root);
                    }
                })?;
            }
            _ => {}
        }
        with_running(|frame| {
            for table in tables {
                if table != pg_sys::InvalidOid && !is_own(table) {
                    frame.note(class::RELATION, table);
                }
            }
        });
        Ok(())
    }
}

/// CREATE PUBLICATION reports the publication and not its tables, as ALTER PUBLICATION does: those it names count as touched.
unsafe fn before_create_publication(statement: *mut pg_sys::CreatePublicationStmt) {
    // SAFETY: the objects are PublicationObjSpecs; those that are tables have a RangeVar.
    let tables: Vec<pg_sys::Oid> = unsafe {
        pgrx::PgList::<pg_sys::PublicationObjSpec>::from_pg((*statement).pubobjects)
            .iter_ptr()
            .filter(|object| !(**object).pubtable.is_null())
            .map(|object| detach::named((*(*object).pubtable).relation))
            .collect()
    };
    with_running(|frame| {
        for table in tables.into_iter().filter(|table| *table != pg_sys::InvalidOid && !is_own(*table)) {
            frame.note(class::RELATION, table);
        }
    });
}

/// A dump brings policies along although they are the extension's (PostgreSQL holds that there are no such). The restore then
/// makes one that is there: the old one goes first, and the comparison at the statement's end sees whether the new one is the
/// same.
unsafe fn before_create_policy(statement: *mut pg_sys::CreatePolicyStmt) -> Result<()> {
    // SAFETY: a valid parse node; its name is a C string.
    let table = unsafe {
        if CStr::from_ptr((*statement).policy_name) != c"agd_readers" {
            return Ok(());
        }
        detach::named((*statement).table)
    };
    if table == pg_sys::InvalidOid || !is_own(table) || with_running(|_| ()).is_none() {
        return Ok(());
    }
    let drop = format!("DROP POLICY IF EXISTS agd_readers ON {}", qualified_name(table));
    Ok(touched::permitted(|| pgrx::Spi::run(&drop))?)
}

/// CREATE INDEX CONCURRENTLY commits on its way: on a table of agd's own it is refused before it begins.
unsafe fn before_index(statement: *mut pg_sys::IndexStmt) -> Result<()> {
    // SAFETY: a valid parse node.
    unsafe {
        if (*statement).concurrent && is_own(detach::named((*statement).relation)) {
            return Err(own_refused("CREATE INDEX CONCURRENTLY", "one of its tables"));
        }
    }
    Ok(())
}

/// DROP EXTENSION agd is allowed when nothing is guarded any more.
unsafe fn before_drop_extension(statement: *mut pg_sys::DropStmt) -> Result<()> {
    // SAFETY: the objects are names.
    let drops_agd = unsafe {
        pgrx::PgList::<pg_sys::String>::from_pg((*statement).objects)
            .iter_ptr()
            .any(|name| CStr::from_ptr((*name).sval) == c"agd")
    };
    // Whoever may not drop it is told so by PostgreSQL, and of no guarded table.
    let may_drop = |user| backend::owns(user, pg_sys::ExtensionRelationId, place::extension());
    if !drops_agd
        || place::extension() == pg_sys::InvalidOid
        || with_running(|frame| may_drop(frame.user)) != Some(true)
    {
        return Ok(());
    }
    refuse_while_guarded()?;
    let last_words = farewell::compose()?;
    with_running(|frame| {
        frame.own_permitted = true;
        frame.last_words = Some(last_words);
    });
    Ok(())
}

fn refuse_while_guarded() -> Result<()> {
    let mut guarded = Vec::new();
    place::each_guarded(|root| {
        if !is_own(root) {
            guarded.push(qualified_name(root));
        }
    })?;
    guarded.sort();
    match guarded.first() {
        None => Ok(()),
        Some(first) => Err(Error::TamperingRefused {
            message: match guarded.len() {
                1 => format!("the extension agd cannot be dropped: {first} is guarded"),
                number => format!("the extension agd cannot be dropped: {first} and {} more are guarded", number - 1),
            },
            hint: format!(
                "Take every table out first, which is recorded: SELECT agd.unguard('{}', 'why').",
                first.replace('\'', "''")
            ),
        }),
    }
}

/// An object is about to be dropped: what guards a table is not, nor a guarded table itself.
pub fn dropping(class: u32, object: pg_sys::Oid, part: c_int, flags: c_int) -> Result<()> {
    with_running(|frame| refuse_drop(frame, class, object, part, flags)).unwrap_or(Ok(()))
}

fn refuse_drop(frame: &mut Frame, class: u32, object: pg_sys::Oid, part: c_int, flags: c_int) -> Result<()> {
    if class == class::RELATION && part != 0 {
        frame.reshaped.insert(object.to_u32());
    }
    if class == class::EXTENSION && object == place::extension() {
        return if frame.own_permitted { Ok(()) } else { Err(own_refused("This statement", "the extension itself")) };
    }
    let Some(place) = place_of(class, object, At::Now)? else {
        // A function of agd's cannot be dropped without the extension: PostgreSQL sees to that.
        return Ok(());
    };
    // What PostgreSQL drops for its own purposes: the copy of a table it has rewritten, an old index it has rebuilt.
    let is_internal = flags & pg_sys::PERFORM_DELETION_INTERNAL as c_int != 0;
    if is_own(place.relation) {
        if frame.own_permitted {
            return Ok(());
        }
        // Of an index the comparison at the statement's end decides: one made for reports may come and go.
        if class == class::RELATION && !is_internal && !is_index(object) {
            let what =
                if part == 0 { qualified_name(object) } else { format!("a column of {}", qualified_name(object)) };
            return Err(own_refused("DROP", &what));
        }
    }
    let Some(guard) = frame.note_relation(place.relation, !place.is_internal, At::Now)? else { return Ok(()) };
    let name = qualified_name(guard.root);
    if class == class::RELATION && !is_index(object) {
        if part == 0 {
            return Err(drop_refused(&guard, object)?);
        }
        return match column_name(object, part) {
            Some(column) if guard.tenant_column.as_deref() == Some(&column) => Err(tampering(
                format!(
                    "column \"{column}\" of the guarded table {name} cannot be dropped: it names each row's tenant"
                ),
                &name,
            )),
            _ => Ok(()),
        };
    }
    let leaves = frame.detached.as_ref().is_some_and(|detached| detached.members.contains(&place.relation));
    let what = match (class, &place.name) {
        (class::TRIGGER, Some(trigger)) if trigger.starts_with("~agd_") && !leaves => format!("trigger \"{trigger}\""),
        (class::POLICY, Some(policy)) if policy == "agd_tenant" && guard.tenant_column.is_some() && !leaves => {
            format!("policy \"{policy}\"")
        }
        _ => return Ok(()),
    };
    // DROP TABLE, DROP SCHEMA and their kind come to the trigger before they come to the table.
    match frame.tag {
        Some(
            pg_sys::CommandTag::CMDTAG_DROP_TRIGGER
            | pg_sys::CommandTag::CMDTAG_DROP_POLICY
            | pg_sys::CommandTag::CMDTAG_ALTER_TABLE,
        ) => Err(tampering(format!("{what} guards {} and cannot be dropped", qualified_name(place.relation)), &name)),
        _ => Err(drop_refused(&guard, place.relation)?),
    }
}

fn is_index(relation: pg_sys::Oid) -> bool {
    // SAFETY: a catalog look-up.
    matches!(unsafe { pg_sys::get_rel_relkind(relation) } as u8, b'i' | b'I')
}

fn column_name(relation: pg_sys::Oid, number: c_int) -> Option<String> {
    // SAFETY: a catalog look-up; NULL where there is no such column.
    unsafe {
        let name = pg_sys::get_attname(relation, i16::try_from(number).ok()?, true);
        (!name.is_null()).then(|| CStr::from_ptr(name).to_string_lossy().into_owned())
    }
}

fn drop_refused(guard: &Guard, object: pg_sys::Oid) -> Result<Error> {
    let (root, name) = (qualified_name(guard.root), qualified_name(object));
    if object == guard.root {
        return Ok(tampering(
            format!("{name} is guarded and cannot be dropped: its rows would go without a record"),
            &root,
        ));
    }
    let parent = parent_of(object, At::Now)?.map_or_else(|| root.clone(), qualified_name);
    Ok(Error::TamperingRefused {
        message: format!("{name} is a partition of the guarded table {root} and cannot be dropped"),
        hint: format!(
            "Detach it first, which records each row that leaves: ALTER TABLE {parent} DETACH PARTITION {name}."
        ),
    })
}

fn tampering(message: String, root: &str) -> Error {
    Error::TamperingRefused {
        message,
        hint: format!(
            "Take the table out first; the reason is recorded: SELECT agd.unguard('{}', 'why').",
            root.replace('\'', "''")
        ),
    }
}

fn own_refused(what: &str, object: &str) -> Error {
    Error::TamperingRefused {
        message: format!("{what} is refused: it would change {object}, which is agd's own"),
        hint: "What agd is made of is changed by its own upgrade alone, and removed by DROP EXTENSION agd.".into(),
    }
}

/// After a utility statement.
pub fn after_utility(level: u32) -> Result<()> {
    role::after_utility()?;
    match touched::statement_ends(level) {
        Some(mut frame) => {
            let last_words = frame.last_words.take().filter(|_| place::extension() == pg_sys::InvalidOid);
            last_words.iter().for_each(|last_words| farewell::say(last_words));
            conclude(frame)
        }
        None => Ok(()),
    }
}

thread_local! {
    /// What `agd.check_ddl()` is to judge, and what it found: pgrx would not carry agd's own SQLSTATEs through.
    static PENDING: RefCell<Option<Frame>> = const { RefCell::new(None) };
    static VERDICT: RefCell<Result<()>> = const { RefCell::new(Ok(())) };
}

/// Judges a statement that is over, if it touched anything guarded.
fn conclude(mut frame: Frame) -> Result<()> {
    if touched::is_off() || place::extension() == pg_sys::InvalidOid {
        return Ok(());
    }
    // What the statement made must be visible.
    // SAFETY: inside a transaction.
    unsafe { pg_sys::CommandCounterIncrement() };
    if !settle(&mut frame)? {
        return Ok(());
    }
    PENDING.set(Some(frame));
    VERDICT.set(Ok(()));
    partition::call_as_owner(c"check_ddl");
    VERDICT.replace(Ok(()))
}

/// Finds out what a statement touched. False: nothing to judge.
fn settle(frame: &mut Frame) -> Result<bool> {
    frame.resolve()?;
    refuse_reshaped(frame)?;
    // SAFETY: a catalog look-up.
    if frame.own && unsafe { pg_sys::get_namespace_oid(c"agd".as_ptr(), true) } == pg_sys::InvalidOid {
        return Err(own_refused(&frame.tag_name(), "the schema agd"));
    }
    Ok(frame.own || !frame.guards.is_empty() || !frame.calling.is_empty() || !frame.references.is_empty())
}

/// `agd.check_ddl()`: judges what [`conclude`] left for it, as agd's owner.
#[pg_extern(sql = false)]
fn check_ddl() {
    if let Some(frame) = PENDING.take() {
        VERDICT.set(always_as_owner(|| judge(&frame)));
    }
}

/// Refuses the statement, or records it.
fn judge(frame: &Frame) -> Result<()> {
    if let Some(detached) = &frame.detached {
        detach::tidy(detached)?;
    }
    let rewritten = refuse(frame)?;
    if !home::is_here()? {
        return Ok(());
    }
    refuse_unrecorded(frame)?;
    if frame.defines() {
        for touched in frame.guards.values() {
            let columns = ddl_event::columns(frame, touched.guard.root)?;
            if touched.is_about_it || !columns.is_empty() {
                ddl_event::record(frame, &touched.guard, &columns)?;
            }
        }
    }
    for (guard, member) in rewritten {
        record_again(guard.root, member, guard.id, guard.tenant_column.as_deref())?;
    }
    Ok(())
}

/// Refuses a statement that leaves a guard, or agd itself, worse than it found it. Returns the tables whose rows it may
/// have changed.
fn refuse(frame: &Frame) -> Result<Vec<(Guard, pg_sys::Oid)>> {
    if frame.own && !frame.own_permitted {
        refuse_own(frame)?;
    }
    let mut rewritten = Vec::new();
    // A restore brings back triggers, policies and indexes, with several sessions at once, and perhaps before the record
    // itself. Nothing is written to guarded tables before agd.resume(), which judges the whole when it is complete.
    if !home::is_here()? {
        refuse_calling(frame, true)?;
        return Ok(rewritten);
    }
    for touched in frame.guards.values() {
        let guard = &touched.guard;
        let name = qualified_name(guard.root);
        let refused = |what: &str| {
            tampering(format!("{} on the guarded table {name} is refused: {what}", frame.tag_name()), &name)
        };
        let after = members(guard.root, At::Now)?;
        if after.is_empty() {
            continue; // unguarded meanwhile, by agd.unguard()
        }
        if guard.tenant_column.is_some()
            && touched.is_about_it
            && !matches!(
                frame.tag,
                Some(pg_sys::CommandTag::CMDTAG_COMMENT | pg_sys::CommandTag::CMDTAG_SECURITY_LABEL)
            )
            && frame.acts_for_a_tenant()?
        {
            return Err(not_for_tenants(&frame.tag_name(), guard));
        }
        let before = members(guard.root, frame.before())?;
        for oid in before.keys() {
            let leaves = frame.detached.as_ref().is_some_and(|detached| detached.members.contains(oid));
            if !after.contains_key(oid) && !leaves {
                return Err(refused(&format!("the partition {} would leave without a record", qualified_name(*oid))));
            }
        }
        let told = |(member, problem): &(u32, String)| {
            let member = pg_sys::Oid::from_u32(*member);
            let place = if member == guard.root { String::new() } else { format!("{}: ", qualified_name(member)) };
            format!("{place}{problem}")
        };
        let problems = problems(guard, At::Now)?;
        if !problems.is_empty() {
            let known = self::problems(guard, frame.before())?;
            if let Some(new) = problems.difference(&known).next() {
                return Err(refused(&told(new)));
            }
            // It has the problems that it had: a statement that mends none of them is not to build on them.
            if let Some(problem) = problems.first()
                && touched.is_about_it
                && frame.defines()
                && problems.len() == known.len()
            {
                return Err(Error::TamperingRefused {
                    message: format!(
                        "{} on the guarded table {name} is refused: its guard is not intact: {}",
                        frame.tag_name(),
                        told(problem)
                    ),
                    hint: format!(
                        "Until it is mended, only what mends it is done to the table: SELECT * FROM agd.coverage() WHERE \
                         NOT intact shows all that is wrong. Or take the table out, which is recorded, and guard it anew: \
                         SELECT agd.unguard('{}', 'why').",
                        name.replace('\'', "''")
                    ),
                });
            }
        }
        let mut changed = Vec::new();
        for (oid, shape) in &after {
            if let Some(old) = before.get(oid)
                && shape.is_leaf
                && shape.may_differ_from(old, frame.may_store_other_values())
            {
                changed.push(*oid);
            }
        }
        if let (Some(old), Some(new)) = (before.get(&guard.root), after.get(&guard.root)) {
            if !old.key.is_empty() && (&old.key, &old.key_numbers) != (&new.key, &new.key_numbers) {
                return Err(refused(&format!("its rows are recorded under the primary key ({})", old.key)));
            }
            let by_expression = frame.retyped.iter().any(|(of, name, by_expression)| {
                *by_expression && after.contains_key(&pg_sys::Oid::from_u32(*of)) && new.key_names.contains(name)
            });
            let reads_the_same = !by_expression
                && (old.key_types == new.key_types || !frame.has_using && only_integers_differ(old, new));
            if !changed.is_empty() && !reads_the_same {
                return Err(refused("the values of its primary key would change without a record"));
            }
        }
        rewritten.extend(changed.into_iter().map(|oid| (guard.clone(), oid)));
    }
    refuse_references(frame.references.iter().map(|table| pg_sys::Oid::from_u32(*table)), frame.user)?;
    // Last: what it does to a guard's own triggers has been told more precisely.
    refuse_calling(frame, false)?;
    Ok(rewritten)
}

/// A trigger that calls a function of agd's is agd's own and stands where its guard is, or is refused, on whatever table it
/// is: its calls would count for nothing (src/guard/trigger.rs), and nobody who means well makes one. While a record is
/// restored it is enough that it looks like agd's: which guards there are `agd.resume()` asks.
fn refuse_calling(frame: &Frame, restoring: bool) -> Result<()> {
    if frame.calling.is_empty() {
        return Ok(());
    }
    let triggers: Vec<String> = frame.calling.iter().map(u32::to_string).collect();
    let rows = query::rows(
        At::Now,
        &format!(
            "SELECT tg.tgrelid, tg.tgname,
                    (tg.tgname, f.proname, tg.tgtype) IN (('~agd_record', 'record_write', 31),
                                                          ('~agd_confirm', 'confirm_write', 29),
                                                          ('~agd_truncate', 'refuse_truncate', 34))
                    AND tg.tgqual IS NULL AND tg.tgattr::text = '' AND tg.tgconstraint = 0 AND NOT tg.tgdeferrable
                    AND tg.tgoldtable IS NULL AND tg.tgnewtable IS NULL AND tg.tgnargs = 1,
                    tg.tgenabled, pg_catalog.encode(tg.tgargs, 'escape')
               FROM pg_catalog.pg_trigger tg JOIN pg_catalog.pg_proc f ON f.oid = tg.tgfoid
              WHERE tg.oid = ANY ('{{{}}}'::pg_catalog.oid[])
              ORDER BY tg.tgname",
            triggers.join(",")
        ),
    )?;
    let relations = query::oids(&rows, 0);
    for (row, relation) in rows.iter().zip(relations) {
        let [_, Some(name), Some(shape), Some(enabled), Some(argument)] = row.as_slice() else { continue };
        let serves_its_guard = || -> Result<bool> {
            let guard = place::guard_of(relation, At::Now)?;
            let given: String = argument.chars().filter(|c| *c != '-').collect();
            Ok(enabled == "A" && guard.is_some_and(|guard| given == format!("{}\\000", hex::encode(guard.id))))
        };
        if shape != "t" || !restoring && !serves_its_guard()? {
            let table = qualified_name(relation);
            denied::attempted(Attempt {
                action: Some(frame.tag_name()),
                relation: Some(table.clone()),
                ..Attempt::default()
            });
            return Err(Error::TamperingRefused {
                message: format!(
                    "{} is refused: the trigger \"{name}\" of {table} would call a function of agd's and is not agd's own",
                    frame.tag_name()
                ),
                hint: NOT_MADE_BY_AGD.into(),
            });
        }
    }
    Ok(())
}

/// A partition that came in and was not seen to, by whatever way: its rows stand in no record.
fn refuse_unrecorded(frame: &Frame) -> Result<()> {
    for Touched { guard, .. } in frame.guards.values() {
        let before = members(guard.root, frame.before())?;
        if before.is_empty() {
            continue; // guarded by this very statement
        }
        for oid in members(guard.root, At::Now)?.into_keys() {
            if !before.contains_key(&oid) && !partition::is_completed(oid, frame.first_command) {
                let (name, root) = (qualified_name(oid), qualified_name(guard.root));
                return Err(tampering(
                    format!("{name} would become part of the guarded table {root} without a record of its rows"),
                    &root,
                ));
            }
        }
    }
    Ok(())
}

/// What is wrong with a guard: table and problem.
fn problems(guard: &Guard, at: At) -> Result<BTreeSet<(u32, String)>> {
    let query = format!("SELECT w.relation::oid, w.problem FROM agd.guard_problems('{}'::oid) w", guard.root.to_u32());
    let rows = query::rows(at, &query)?;
    let texts = rows.iter().map(|row| row.get(1).cloned().flatten().unwrap_or_default());
    Ok(query::oids(&rows, 0).into_iter().map(pg_sys::Oid::to_u32).zip(texts).collect())
}

/// agd's own objects must be after the statement what they were before it.
fn refuse_own(frame: &Frame) -> Result<()> {
    const QUERY: &str = "SELECT o.object, o.definition FROM agd.own_objects() o";
    let objects = |at| -> Result<BTreeSet<(String, String)>> {
        Ok(query::rows(at, QUERY)?
            .into_iter()
            .filter_map(|row| {
                let mut columns = row.into_iter();
                Some((columns.next()??, columns.next()?.unwrap_or_default()))
            })
            .collect())
    };
    let (before, after) = (objects(frame.before())?, objects(At::Now)?);
    match before.symmetric_difference(&after).next() {
        Some((object, _)) => Err(own_refused(&frame.tag_name(), object)),
        None => Ok(()),
    }
}

/// A member of a guarded tree, as far as it tells whether its rows can have changed.
struct Shape {
    is_leaf: bool,
    file: String,
    /// The columns that are recorded, by number.
    columns: BTreeMap<i16, Column>,
    /// Those that are not, since they follow from the others.
    generated: BTreeSet<i16>,
    /// The columns of its primary key, and their types.
    key: String,
    key_types: String,
    /// Their numbers, and their names as they are.
    key_numbers: String,
    key_names: Vec<String>,
}

/// A column that is recorded.
struct Column {
    type_id: u32,
    /// Rows that were stored before it was there have a value for it all the same.
    has_missing: bool,
}

const TEXT: u32 = 25;
const VARCHAR: u32 = 1043;

impl Shape {
    /// Its rows are stored anew by a command that may change values, or read as another type.
    fn may_differ_from(&self, old: &Shape, may_change_values: bool) -> bool {
        let is_rewritten = self.file != old.file;
        let is_text = |oid: u32| matches!(oid, TEXT | VARCHAR);
        self.columns.iter().any(|(number, new)| match old.columns.get(number) {
            // Between text and varchar nothing changes unless it is rewritten.
            Some(old) => {
                old.type_id != new.type_id && (is_rewritten || !(is_text(old.type_id) && is_text(new.type_id)))
                    || new.has_missing && !old.has_missing
            }
            // It became recorded: it was generated, so that no image has what stands there, or it is new. A new one that is
            // NULL in every row is so in every image too, since it is in none.
            None => new.has_missing || old.generated.contains(number),
        }) || is_rewritten && may_change_values
    }
}

/// Where two primary keys differ in type, both have an integer: its text is the same.
fn only_integers_differ(old: &Shape, new: &Shape) -> bool {
    let is_integer = |oid: &str| matches!(oid, "20" | "21" | "23");
    old.key_types.split(',').zip(new.key_types.split(',')).all(|(a, b)| a == b || is_integer(a) && is_integer(b))
}

/// The tables of a guarded tree as of the given state. Empty: not guarded.
fn members(root: pg_sys::Oid, at: At) -> Result<HashMap<pg_sys::Oid, Shape>> {
    let rows = query::rows(
        at,
        &format!(
            "WITH RECURSIVE tree (oid) AS (
               SELECT g.relation::oid FROM agd.guarded_table g WHERE g.relation = '{}'::oid
               UNION ALL
               SELECT i.inhrelid
                 FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
                      JOIN pg_catalog.pg_class p ON p.oid = t.oid AND p.relkind = 'p'
             )
             SELECT t.oid, c.relkind, c.relfilenode,
                    (SELECT string_agg(a.attnum || ':' || a.atttypid || ':' || a.atthasmissing || ':' || a.attgenerated::text, ',')
                       FROM pg_catalog.pg_attribute a
                      WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped),
                    k.names, k.types, k.numbers, k.bare
               FROM tree t
                    JOIN pg_catalog.pg_class c ON c.oid = t.oid
                    LEFT JOIN LATERAL (
                      SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY o.at) AS names,
                             string_agg(a.atttypid::text, ',' ORDER BY o.at) AS types,
                             string_agg(a.attnum::text, ',' ORDER BY o.at) AS numbers,
                             string_agg(a.attname::text, E'\n' ORDER BY o.at) AS bare
                        FROM pg_catalog.pg_index x
                             CROSS JOIN LATERAL unnest(x.indkey) WITH ORDINALITY AS o(attnum, at)
                             JOIN pg_catalog.pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = o.attnum
                       WHERE x.indrelid = t.oid AND x.indisprimary AND o.at <= x.indnkeyatts) k ON true",
            root.to_u32()
        ),
    )?;
    let oids = query::oids(&rows, 0);
    Ok(oids
        .into_iter()
        .zip(rows)
        .map(|(oid, row)| {
            let text = |column: usize| row.get(column).cloned().flatten().unwrap_or_default();
            let (mut columns, mut generated) = (BTreeMap::new(), BTreeSet::new());
            let listed = text(3);
            for column in listed.split(',') {
                let mut parts = column.split(':');
                let mut part = || parts.next().unwrap_or_default();
                let (number, type_id, has_missing, generation) = (part(), part(), part(), part());
                let (Ok(number), Ok(type_id)) = (number.parse(), type_id.parse()) else { continue };
                if generation.is_empty() {
                    columns.insert(number, Column { type_id, has_missing: has_missing == "true" });
                } else {
                    generated.insert(number);
                }
            }
            let (is_leaf, file) = (text(1) == "r", text(2));
            let key_names = text(7).split('\n').map(str::to_owned).collect();
            let (key, key_types, key_numbers) = (text(4), text(5), text(6));
            (oid, Shape { is_leaf, file, columns, generated, key, key_types, key_numbers, key_names })
        })
        .collect())
}

c_function!(agd_ddl_command_end, pg_finfo_agd_ddl_command_end, |call| always_as_owner(|| ddl_command_end(call)));
c_function!(agd_sql_drop, pg_finfo_agd_sql_drop, |call| always_as_owner(|| sql_drop(call)));

/// # Safety
/// `call` comes from the function manager.
unsafe fn ddl_command_end(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: passed on to the caller.
    let node = unsafe { parse_tree(call, c"ddl_command_end") }?;
    with_running(Frame::work_is_done);
    if let Some(frame) = touched::take_running() {
        // SAFETY: the node of the statement that ends.
        if unsafe { partition::adds_a_partition(node) } {
            partition::complete()?;
        }
        command_ended(frame)?;
    }
    Ok(pg_sys::Datum::from(0))
}

/// # Safety
/// `call` comes from the function manager.
unsafe fn sql_drop(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: passed on to the caller.
    unsafe { parse_tree(call, c"sql_drop") }?;
    if with_running(|_| ()).is_some() {
        dropped()?;
    }
    Ok(pg_sys::Datum::from(0))
}

/// The parse node that an event trigger is called for, on its own event.
unsafe fn parse_tree(call: pg_sys::FunctionCallInfo, event: &CStr) -> Result<*mut pg_sys::Node> {
    // SAFETY: context is null or points to a node whose first field is its tag; an event has a name.
    unsafe {
        let context = (*call).context;
        let data = context.cast::<pg_sys::EventTriggerData>();
        if context.is_null()
            || (*context).type_ != pg_sys::NodeTag::T_EventTriggerData
            || CStr::from_ptr((*data).event) != event
            || (*data).parsetree.is_null()
        {
            return Err(Error::WrongState {
                message: "this function works only as an event trigger of agd's own".into(),
                hint: "CREATE EXTENSION agd makes them.".into(),
            });
        }
        Ok((*data).parsetree)
    }
}

/// A statement that supports event triggers has run: what it did is known object by object.
fn command_ended(mut frame: Frame) -> Result<()> {
    let rows = query::rows(
        At::Now,
        "SELECT d.classid, d.objid, d.command_tag, d.object_identity FROM pg_catalog.pg_event_trigger_ddl_commands() d",
    )?;
    for row in &rows {
        let [Some(class), Some(object), Some(tag), Some(identity)] = row.as_slice() else { continue };
        let (Ok(class), Ok(object)) = (class.parse(), object.parse()) else { continue };
        let object = pg_sys::Oid::from_u32(object);
        frame.note(class, object);
        if let Some(place) = place_of(class, object, At::Now)?
            && let Some(guard) = frame.note_relation(place.relation, true, At::Now)?
        {
            frame.named.push((guard.root.to_u32(), format!("{tag} {identity}")));
        }
    }
    if settle(&mut frame)? { judge(&frame) } else { Ok(()) }
}

/// A statement dropped something: it is refused if a guard lacks it.
fn dropped() -> Result<()> {
    let rows = query::rows(
        At::Now,
        "SELECT d.classid, d.objid, d.original, d.object_identity FROM pg_catalog.pg_event_trigger_dropped_objects() d",
    )?;
    let Some(before) = touched::before_running() else { return Ok(()) };
    let mut found = Vec::new();
    for row in &rows {
        let [Some(class), Some(object), Some(original), Some(identity)] = row.as_slice() else { continue };
        let (Ok(class), Ok(object)) = (class.parse(), object.parse()) else { continue };
        if let Some(place) = place_of(class, pg_sys::Oid::from_u32(object), before)? {
            found.push((place, original == "t", identity));
        }
    }
    with_running(|frame| {
        for (place, original, identity) in found {
            let guard = frame.note_relation(place.relation, !place.is_internal, before)?;
            if let Some(guard) = guard
                && original
            {
                frame.dropped.push((guard.root.to_u32(), identity.clone()));
            }
        }
        refuse(frame).map(drop)
    })
    .unwrap_or(Ok(()))
}
