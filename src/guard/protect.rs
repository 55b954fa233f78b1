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
use crate::guard::baseline::record_baseline;
use crate::guard::place::{self, Guard, class, is_own, parent_of, place_of};
use crate::guard::relation::qualified_name;
use crate::guard::touched::{self, Frame, with_running};
use crate::guard::trigger::NOT_MADE_BY_AGD;
use crate::guard::{ddl_event, detach, partition};
use crate::home;
use crate::identity::always_as_owner;
use crate::query::{self, At};
use crate::tenant::role;
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
        for command in pgrx::PgList::<pg_sys::AlterTableCmd>::from_pg((*statement).cmds).iter_ptr() {
            may_change_values |= matches!((*command).subtype, Kind::AT_AddColumn | Kind::AT_AlterColumnType);
            changes_row_type |=
                matches!((*command).subtype, Kind::AT_AddColumn | Kind::AT_DropColumn | Kind::AT_AlterColumnType);
            if (*command).subtype == Kind::AT_AlterColumnType && !(*command).def.is_null() {
                has_using |= !(*(*command).def.cast::<pg_sys::ColumnDef>()).raw_default.is_null();
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
            frame.detached = detached;
        });
        Ok(())
    }
}

/// ALTER TYPE … RENAME ATTRIBUTE, and the same for a table that is the type of another one's column. What a column of a
/// guarded table is called from now on is noted: its images have another name for it.
unsafe fn before_rename(statement: *mut pg_sys::RenameStmt) -> Result<()> {
    use pg_sys::ObjectType::{OBJECT_ATTRIBUTE, OBJECT_COLUMN};
    // SAFETY: a rename of a column or attribute names a relation, and two names.
    unsafe {
        if matches!((*statement).renameType, OBJECT_ATTRIBUTE | OBJECT_COLUMN) && !(*statement).relation.is_null() {
            let target = detach::named((*statement).relation);
            if target != pg_sys::InvalidOid {
                refuse_change_of_type(pg_sys::get_rel_type_id(target))?;
                let [before, after] = [(*statement).subname, (*statement).newname]
                    .map(|name| CStr::from_ptr(name).to_string_lossy().into_owned());
                with_running(|frame| frame.renamed.push((target.to_u32(), before, after)));
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
    if !drops_agd {
        return Ok(());
    }
    refuse_while_guarded()?;
    with_running(|frame| frame.own_permitted = true);
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
        Some(frame) => conclude(frame),
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
    // SAFETY: a catalog look-up.
    if frame.own && unsafe { pg_sys::get_namespace_oid(c"agd".as_ptr(), true) } == pg_sys::InvalidOid {
        return Err(own_refused(&frame.tag_name(), "the schema agd"));
    }
    Ok(frame.own || !frame.guards.is_empty() || !frame.calling.is_empty())
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
    // VACUUM, CLUSTER and their kind define nothing.
    // SAFETY: looks the tag up in a table of constants.
    if frame.tag.is_none_or(|tag| unsafe { pg_sys::command_tag_event_trigger_ok(tag) }) {
        for touched in frame.guards.values().filter(|touched| touched.is_about_it) {
            ddl_event::record(frame, &touched.guard)?;
        }
    }
    for (guard, member) in rewritten {
        let name = qualified_name(guard.root);
        record_baseline(&name, member, guard.id, guard.tenant_column.as_deref())?;
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
        let before = members(guard.root, frame.before())?;
        for oid in before.keys() {
            let leaves = frame.detached.as_ref().is_some_and(|detached| detached.members.contains(oid));
            if !after.contains_key(oid) && !leaves {
                return Err(refused(&format!("the partition {} would leave without a record", qualified_name(*oid))));
            }
        }
        let problems = new_problems(frame, guard)?;
        if let Some((member, problem)) = problems.first() {
            let place = if *member == guard.root { String::new() } else { format!("{}: ", qualified_name(*member)) };
            return Err(refused(&format!("{place}{problem}")));
        }
        let mut changed = Vec::new();
        for (oid, shape) in &after {
            if let Some(old) = before.get(oid)
                && shape.is_leaf
                && shape.may_differ_from(old, frame.may_change_values)
            {
                changed.push(*oid);
            }
        }
        if let (Some(old), Some(new)) = (before.get(&guard.root), after.get(&guard.root)) {
            if !old.key.is_empty() && old.key != new.key {
                return Err(refused(&format!("its rows are recorded under the primary key ({})", old.key)));
            }
            let reads_the_same = old.key_types == new.key_types || !frame.has_using && only_integers_differ(old, new);
            if !changed.is_empty() && !reads_the_same {
                return Err(refused("the values of its primary key would change without a record"));
            }
        }
        rewritten.extend(changed.into_iter().map(|oid| (guard.clone(), oid)));
    }
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

/// Problems that a guard has and did not have before the statement.
fn new_problems(frame: &Frame, guard: &Guard) -> Result<Vec<(pg_sys::Oid, String)>> {
    let looked_at: Vec<String> = frame.relations.iter().map(u32::to_string).collect();
    let query = format!(
        "SELECT w.relation::oid, w.problem FROM agd.guard_problems('{}'::oid, '{{{}}}') w ORDER BY 1, 2",
        guard.root.to_u32(),
        looked_at.join(",")
    );
    let problems = |at| -> Result<Vec<(pg_sys::Oid, String)>> {
        let rows = query::rows(at, &query)?;
        let texts = rows.iter().map(|row| row.get(1).cloned().flatten().unwrap_or_default());
        Ok(query::oids(&rows, 0).into_iter().zip(texts).collect())
    };
    let mut found = problems(At::Now)?;
    if !found.is_empty() {
        let known: HashSet<(pg_sys::Oid, String)> = problems(frame.before())?.into_iter().collect();
        found.retain(|problem| !known.contains(problem));
    }
    Ok(found)
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
    /// Attribute number, type.
    types: BTreeMap<String, u32>,
    /// The columns of its primary key, and their types.
    key: String,
    key_types: String,
}

const TEXT: u32 = 25;
const VARCHAR: u32 = 1043;

impl Shape {
    /// Its rows are stored anew by a command that may change values, or read as another type.
    fn may_differ_from(&self, old: &Shape, may_change_values: bool) -> bool {
        let is_rewritten = self.file != old.file;
        let is_text = |oid: u32| matches!(oid, TEXT | VARCHAR);
        let reads_otherwise = self.types.iter().any(|(column, new)| {
            // Between text and varchar nothing changes unless it is rewritten.
            old.types.get(column).is_some_and(|old| old != new && (is_rewritten || !(is_text(*old) && is_text(*new))))
        });
        reads_otherwise || is_rewritten && may_change_values
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
                    (SELECT string_agg(a.attnum || ':' || a.atttypid, ',') FROM pg_catalog.pg_attribute a
                      WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''),
                    k.names, k.types
               FROM tree t
                    JOIN pg_catalog.pg_class c ON c.oid = t.oid
                    LEFT JOIN LATERAL (
                      SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY o.at) AS names,
                             string_agg(a.atttypid::text, ',' ORDER BY o.at) AS types
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
            let types = text(3)
                .split(',')
                .filter_map(|pair| pair.split_once(':'))
                .filter_map(|(column, oid)| Some((column.to_owned(), oid.parse().ok()?)))
                .collect();
            (oid, Shape { is_leaf: text(1) == "r", file: text(2), types, key: text(4), key_types: text(5) })
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
