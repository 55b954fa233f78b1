//! May this table be guarded? What the catalogs say of it, checked under the lock that keeps writers out.
//!
//! Promises that what the gate could not record in full is refused here, with the reason and what to do about it.
#![allow(unsafe_code)] // takes a lock

use crate::error::{Error, Result};
use crate::guard::relation::qualified_name;
use crate::query;
use pgrx::prelude::*;

/// What the catalogs say of a table.
pub struct Table {
    /// Its oid.
    pub oid: pg_sys::Oid,
    /// Schema-qualified, quoted where needed.
    pub name: String,
    /// It has partitions.
    pub partitioned: bool,
    /// Row-level security was on before.
    pub row_security: bool,
    /// The table itself and every partition, all levels.
    pub tree: Vec<pg_sys::Oid>,
}

/// Waits for writers to finish and keeps new ones out; readers go on. Kept until the transaction ends.
pub fn lock(oid: pg_sys::Oid) {
    // SAFETY: takes a heavyweight lock, interruptibly.
    unsafe { pg_sys::LockRelationOid(oid, pg_sys::ShareRowExclusiveLock as pg_sys::LOCKMODE) };
}

/// Reads and checks a table that is to be guarded.
pub fn examine(oid: pg_sys::Oid) -> Result<Table> {
    lock(oid);
    let name = qualified_name(oid);
    let unsupported = |what: &str, hint: &str| {
        Err(Error::Unsupported { message: format!("{name} cannot be guarded: {what}"), hint: hint.into() })
    };
    let found = Spi::connect(|client| {
        let rows = client.select(
            "SELECT c.relkind::text, c.relpersistence::text, n.nspname::text, c.relispartition, c.relrowsecurity,
                    EXISTS (SELECT FROM pg_catalog.pg_inherits i
                             WHERE (i.inhparent = c.oid AND c.relkind <> 'p')
                                OR (i.inhrelid = c.oid AND NOT c.relispartition)),
                    EXISTS (SELECT FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid),
                    c.relam = (SELECT a.oid FROM pg_catalog.pg_am a WHERE a.amname = 'heap') OR c.relkind = 'p'
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
              WHERE c.oid = $1",
            Some(1),
            &[oid.into()],
        )?;
        if rows.is_empty() {
            return Ok::<_, pgrx::spi::Error>(None);
        }
        let row = rows.first();
        Ok(Some((
            row.get::<String>(1)?.unwrap_or_default(),
            row.get::<String>(2)?.unwrap_or_default(),
            row.get::<String>(3)?.unwrap_or_default(),
            row.get::<bool>(4)?.unwrap_or_default(),
            row.get::<bool>(5)?.unwrap_or_default(),
            row.get::<bool>(6)?.unwrap_or_default(),
            row.get::<bool>(7)?.unwrap_or_default(),
            row.get::<bool>(8)?.unwrap_or_default(),
        )))
    })?;
    let Some((kind, persistence, schema, is_partition, row_security, inherits, has_rules, is_heap)) = found else {
        return Err(Error::BadArgument {
            message: format!("there is no table with oid {}", oid.to_u32()),
            hint: "Name a table: SELECT agd.guard('public.orders').".into(),
        });
    };
    match kind.as_str() {
        "r" | "p" => {}
        "v" => return unsupported("it is a view", "Guard the tables under the view."),
        "m" => return unsupported("it is a materialized view", "Guard the tables it is made from."),
        "f" => return unsupported("it is a foreign table", "Guard it where it lives."),
        _ => return unsupported("it is not a table", "Only tables and partitioned tables can be guarded."),
    }
    if matches!(schema.as_str(), "pg_catalog" | "information_schema" | "pg_toast") {
        return unsupported("it is a system table", "Only tables of users can be guarded.");
    }
    if schema == "agd" {
        return unsupported("it is agd's own", "agd protects its own tables by itself.");
    }
    if is_partition {
        let root = query::one::<String>("SELECT pg_catalog.pg_partition_root($1::oid::regclass)::text", &[oid.into()])?
            .unwrap_or_default();
        return unsupported(
            "it is a partition",
            &format!("Guard the partitioned table, which guards all of its partitions: SELECT agd.guard('{root}')."),
        );
    }
    if inherits {
        return unsupported(
            "it is part of an inheritance tree",
            "Use declarative partitioning, or guard tables that stand alone.",
        );
    }
    if has_rules {
        return unsupported("it has rules, which can rewrite a write to something else", "Drop the rules.");
    }
    check_storage(&name, &persistence, is_heap)?;
    let already = query::one::<bool>(
        "SELECT EXISTS (SELECT FROM agd.guarded_table WHERE relation = $1::oid::regclass)",
        &[oid.into()],
    )?;
    if already == Some(true) {
        return Err(Error::Exists {
            message: format!("{name} is guarded already"),
            hint: "To change how, agd.unguard() it first; the reason is recorded.".into(),
        });
    }
    let partitioned = kind == "p";
    let tree = tree(oid, &name, partitioned)?;
    check_triggers(&name, &tree)?;
    Ok(Table { oid, tree, name, partitioned, row_security })
}

/// Temporary, unlogged and non-heap tables cannot be guarded (0A000).
pub fn check_storage(name: &str, persistence: &str, is_heap: bool) -> Result<()> {
    let problem = match (persistence, is_heap) {
        ("t", _) => ("it is temporary", "A record must outlive what it records. Use a permanent table."),
        ("u", _) => ("it is unlogged: a crash would empty it and keep its records", "ALTER TABLE … SET LOGGED."),
        (_, false) => ("its access method is not heap", "ALTER TABLE … SET ACCESS METHOD heap."),
        _ => return Ok(()),
    };
    Err(Error::Unsupported { message: format!("{name} cannot be guarded: {}", problem.0), hint: problem.1.into() })
}

/// No trigger of the tree may fire between the gate and the write (0A000): it could change the row, or write it itself,
/// which would then stand in the log before what it came after. And none may be there already that has the name of one of
/// the gate's or calls its functions (55000): a guard is made of triggers that agd made, and of those alone.
fn check_triggers(name: &str, tree: &[pg_sys::Oid]) -> Result<()> {
    refuse_ours(name, tree)?;
    let late = Spi::connect(|client| {
        // BEFORE … FOR EACH ROW, and BEFORE TRUNCATE, in the order in which PostgreSQL fires them.
        let rows = client.select(
            "SELECT tg.tgrelid, tg.tgname::text, pg_catalog.quote_ident(tg.tgname) FROM pg_catalog.pg_trigger tg
              WHERE tg.tgrelid = ANY ($1) AND tg.tgname > '~agd_record' AND tg.tgenabled <> 'D'
                AND (tg.tgtype & 3 = 3 OR tg.tgtype & 34 = 34 AND tg.tgname > '~agd_truncate')
              ORDER BY pg_catalog.array_position($1, tg.tgrelid), tg.tgname",
            Some(1),
            &[tree.to_vec().into()],
        )?;
        if rows.is_empty() {
            return Ok::<_, pgrx::spi::Error>((None, None, None));
        }
        rows.first().get_three::<pg_sys::Oid, String, String>()
    })?;
    let (Some(relation), Some(trigger), Some(quoted)) = late else { return Ok(()) };
    let relation = qualified_name(relation);
    Err(Error::Unsupported {
        message: format!("{name} cannot be guarded: the trigger \"{trigger}\" of {relation} would fire after the gate"),
        hint: format!(
            "Triggers fire in the order of their names, and the gate is the last. Give it a name that sorts before \
             \"~agd_record\": ALTER TRIGGER {quoted} ON {relation} RENAME TO …"
        ),
    })
}

fn refuse_ours(name: &str, tree: &[pg_sys::Oid]) -> Result<()> {
    let ours = Spi::connect(|client| {
        let rows = client.select(
            "SELECT tg.tgrelid, tg.tgname::text, pg_catalog.quote_ident(tg.tgname)
               FROM pg_catalog.pg_trigger tg JOIN pg_catalog.pg_proc f ON f.oid = tg.tgfoid
              WHERE tg.tgrelid = ANY ($1)
                AND (tg.tgname IN ('~agd_record', '~agd_confirm', '~agd_truncate')
                     OR f.pronamespace = 'agd'::regnamespace)
              ORDER BY pg_catalog.array_position($1, tg.tgrelid), tg.tgname",
            Some(1),
            &[tree.to_vec().into()],
        )?;
        if rows.is_empty() {
            return Ok::<_, pgrx::spi::Error>((None, None, None));
        }
        rows.first().get_three::<pg_sys::Oid, String, String>()
    })?;
    let (Some(relation), Some(trigger), Some(quoted)) = ours else { return Ok(()) };
    let relation = qualified_name(relation);
    Err(Error::WrongState {
        message: format!("{name} cannot be guarded: {relation} has a trigger \"{trigger}\" that passes for agd's"),
        hint: format!("agd.guard() makes its triggers itself: DROP TRIGGER {quoted} ON {relation}, and call it again."),
    })
}

/// The table and its partitions, each locked and fit to be guarded.
fn tree(oid: pg_sys::Oid, name: &str, partitioned: bool) -> Result<Vec<pg_sys::Oid>> {
    if !partitioned {
        return Ok(vec![oid]);
    }
    let members = Spi::connect(|client| {
        client
            .select(
                "SELECT c.oid, c.relkind::text, c.relpersistence::text,
                        c.relkind = 'p' OR c.relam = (SELECT a.oid FROM pg_catalog.pg_am a WHERE a.amname = 'heap')
                   FROM pg_catalog.pg_partition_tree($1::oid::regclass) t JOIN pg_catalog.pg_class c ON c.oid = t.relid
                  ORDER BY t.level, c.oid",
                None,
                &[oid.into()],
            )?
            .map(|row| {
                Ok::<_, pgrx::spi::Error>((
                    row.get::<pg_sys::Oid>(1)?.unwrap_or(pg_sys::InvalidOid),
                    row.get::<String>(2)?.unwrap_or_default(),
                    row.get::<String>(3)?.unwrap_or_default(),
                    row.get::<bool>(4)?.unwrap_or_default(),
                ))
            })
            .collect::<std::result::Result<Vec<_>, _>>()
    })?;
    let mut tree = Vec::new();
    for (member, kind, persistence, is_heap) in members {
        lock(member);
        let partition = qualified_name(member);
        if kind == "f" {
            return Err(Error::Unsupported {
                message: format!("{name} cannot be guarded: its partition {partition} is a foreign table"),
                hint: "Detach it.".into(),
            });
        }
        check_storage(&partition, &persistence, is_heap)?;
        tree.push(member);
    }
    Ok(tree)
}

/// The tenant column must exist, be no generated one, and have a type that a tenant's name casts to. Returns the type.
pub fn check_tenant_column(oid: pg_sys::Oid, name: &str, column: &str) -> Result<String> {
    let type_name = Spi::connect(|client| {
        let rows = client.select(
            "SELECT pg_catalog.format_type(a.atttypid, NULL), a.attgenerated <> '',
                    EXISTS (SELECT FROM pg_catalog.pg_collation n WHERE n.oid = a.attcollation AND NOT n.collisdeterministic)
               FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = $1 AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped",
            Some(1),
            &[oid.into(), column.into()],
        )?;
        if rows.is_empty() {
            return Ok::<_, pgrx::spi::Error>((None, None, None));
        }
        rows.first().get_three::<String, bool, bool>()
    })?;
    let (Some(type_name), generated, several_spellings) = type_name else {
        return Err(Error::BadArgument {
            message: format!("{name} has no column \"{column}\""),
            hint: "tenant_column names the column that holds each row's tenant.".into(),
        });
    };
    if generated == Some(true) {
        return Err(Error::BadArgument {
            message: format!("column \"{column}\" of {name} is generated"),
            hint: "The gate sees a row before generated columns are computed. Name a plain column.".into(),
        });
    }
    if !matches!(type_name.as_str(), "text" | "character varying" | "uuid" | "bigint" | "integer") {
        return Err(Error::BadArgument {
            message: format!("column \"{column}\" of {name} has the type {type_name}"),
            hint: "A tenant column is text, varchar, uuid, bigint or integer.".into(),
        });
    }
    if several_spellings == Some(true) {
        return Err(Error::BadArgument {
            message: format!("column \"{column}\" of {name} has a nondeterministic collation"),
            hint: "Under it the names of two tenants may be equal. Give the column a deterministic one: COLLATE \"C\"."
                .into(),
        });
    }
    Ok(type_name)
}
