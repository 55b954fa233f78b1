//! Putting a table behind the gate, and taking it out.
//!
//! Owns what `agd.guard()` and `agd.unguard()` do. Promises all or nothing: a table is guarded whole, its partitions
//! included, with its baseline recorded under the same lock, or it is as it was. Never guards what the gate could not
//! record in full.
#![allow(unsafe_code)] // locks and scans of the table to be guarded

use crate::catalog::{Columns, Relation, Scratch, scan};
use crate::error::{Error, OrRaise, Result};
use crate::event::{self, Record};
use crate::guard::relation::{parse_uuid, primary_key, qualified_name, row_format};
use crate::tenant;
use pgrx::prelude::*;
use std::ffi::CString;

/// `agd.guard(relation, tenant_column, redact, require_cause, on_truncate, baseline)`
#[pg_extern(sql = false)]
fn guard(
    relation: Option<pg_sys::Oid>,
    tenant_column: Option<&std::ffi::CStr>,
    redact: Option<pgrx::Array<'_, &std::ffi::CStr>>,
    require_cause: Option<bool>,
    on_truncate: Option<&str>,
    baseline: Option<bool>,
) {
    let options = || -> Result<()> {
        if redact.is_some_and(|columns| columns.iter().count() > 0) {
            return Err(Error::Unsupported {
                message: "redacting columns is not supported yet".into(),
                hint: "Leave redact empty. Row images stay readable by the table's tenant and by superusers only."
                    .into(),
            });
        }
        let tenant_column = tenant_column
            .map(|name| name.to_str().map(str::to_owned))
            .transpose()
            .map_err(|_| Error::Internal("agd: a column name is not UTF-8".into()))?;
        let on_truncate = on_truncate.unwrap_or("refuse");
        if !matches!(on_truncate, "refuse" | "record") {
            return Err(Error::BadArgument {
                message: format!("on_truncate cannot be \"{on_truncate}\""),
                hint: "'refuse' (the default) or 'record'.".into(),
            });
        }
        guard_table(
            relation,
            tenant_column.as_deref(),
            require_cause.unwrap_or(false),
            on_truncate,
            baseline.unwrap_or(true),
        )
    };
    options().or_raise();
}

/// `agd.unguard(relation, reason)`
#[pg_extern(sql = false)]
fn unguard(relation: Option<pg_sys::Oid>, reason: Option<&str>) {
    unguard_table(relation, reason).or_raise();
}

/// What the catalogs say of a table.
struct Table {
    oid: pg_sys::Oid,
    /// Schema-qualified, quoted where needed.
    name: String,
    partitioned: bool,
    row_security: bool,
    /// The table itself and every partition, all levels.
    tree: Vec<pg_sys::Oid>,
}

fn given(relation: Option<pg_sys::Oid>) -> Result<pg_sys::Oid> {
    relation.ok_or_else(|| Error::BadArgument {
        message: "no table given".into(),
        hint: "SELECT agd.guard('public.orders').".into(),
    })
}

fn lock(oid: pg_sys::Oid) {
    // SAFETY: waits for writers to finish and keeps new ones out; readers go on. Kept until the transaction ends.
    unsafe { pg_sys::LockRelationOid(oid, pg_sys::ShareRowExclusiveLock as pg_sys::LOCKMODE) };
}

/// Reads and checks a table that is to be guarded.
fn examine(oid: pg_sys::Oid) -> Result<Table> {
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
        let root = Spi::get_one_with_args::<String>(
            "SELECT pg_catalog.pg_partition_root($1::oid::regclass)::text",
            &[oid.into()],
        )?
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
    let already = Spi::get_one_with_args::<bool>(
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
    Ok(Table { oid, tree: tree(oid, &name, partitioned)?, name, partitioned, row_security })
}

fn check_storage(name: &str, persistence: &str, is_heap: bool) -> Result<()> {
    let problem = match (persistence, is_heap) {
        ("t", _) => ("it is temporary", "A record must outlive what it records. Use a permanent table."),
        ("u", _) => ("it is unlogged: a crash would empty it and keep its records", "ALTER TABLE … SET LOGGED."),
        (_, false) => ("its access method is not heap", "ALTER TABLE … SET ACCESS METHOD heap."),
        _ => return Ok(()),
    };
    Err(Error::Unsupported { message: format!("{name} cannot be guarded: {}", problem.0), hint: problem.1.into() })
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

fn check_tenant_column(oid: pg_sys::Oid, name: &str, column: &str) -> Result<String> {
    let type_name = Spi::connect(|client| {
        let rows = client.select(
            "SELECT pg_catalog.format_type(a.atttypid, NULL), a.attgenerated <> ''
               FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = $1 AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped",
            Some(1),
            &[oid.into(), column.into()],
        )?;
        if rows.is_empty() {
            return Ok::<_, pgrx::spi::Error>((None, None));
        }
        rows.first().get_two::<String, bool>()
    })?;
    let (Some(type_name), generated) = type_name else {
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
    Ok(type_name)
}

fn guard_table(
    relation: Option<pg_sys::Oid>,
    tenant_column: Option<&str>,
    require_cause: bool,
    on_truncate: &str,
    baseline: bool,
) -> Result<()> {
    let table = examine(given(relation)?)?;
    primary_key(Relation::open(table.oid, pg_sys::AccessShareLock).0)?;
    let tenant_type = tenant_column.map(|column| check_tenant_column(table.oid, &table.name, column)).transpose()?;
    if on_truncate == "record" && (table.partitioned || tenant_column.is_some()) {
        return Err(Error::Unsupported {
            message: format!("TRUNCATE of {} cannot be recorded", table.name),
            hint: "It would empty partitions or tenants one by one without saying which. Use on_truncate => 'refuse'."
                .into(),
        });
    }
    let guard_id = Spi::get_one_with_args::<String>(
        "INSERT INTO agd.guarded_table (guard_id, relation, tenant_column, require_cause, on_truncate)
         VALUES (pg_catalog.gen_random_uuid(), $1::oid::regclass, $2, $3, $4) RETURNING guard_id::text",
        &[table.oid.into(), tenant_column.into(), require_cause.into(), on_truncate.into()],
    )?
    .ok_or_else(|| Error::Internal("agd: a guard got no id".into()))?;

    // Row triggers on the root are cloned to its partitions, present and future; statement triggers are not.
    let root = &table.name;
    Spi::run(&format!(
        "CREATE TRIGGER \"~agd_record\" BEFORE INSERT OR UPDATE OR DELETE ON {root}
           FOR EACH ROW EXECUTE FUNCTION agd.record_write('{guard_id}');
         CREATE TRIGGER \"~agd_confirm\" AFTER INSERT OR UPDATE OR DELETE ON {root}
           FOR EACH ROW EXECUTE FUNCTION agd.confirm_write('{guard_id}');
         ALTER TABLE {root} ENABLE ALWAYS TRIGGER \"~agd_record\";
         ALTER TABLE {root} ENABLE ALWAYS TRIGGER \"~agd_confirm\""
    ))?;
    for &member in &table.tree {
        guard_member(member, &guard_id, tenant_column.zip(tenant_type.as_deref()), table.row_security)?;
    }
    let uuid = uuid_of(&guard_id)?;
    event::insert(&Record {
        action: "GUARD",
        tenant: None,
        relation: Some(&table.name),
        guard_id: Some(uuid),
        row_key: None,
        old: None,
        new: None,
        body: Some(&format!(
            "tenant_column={} require_cause={require_cause} on_truncate={on_truncate}",
            tenant_column.unwrap_or("-")
        )),
    })?;
    if baseline {
        for &member in &table.tree {
            record_baseline(&table.name, member, uuid, tenant_column)?;
        }
    }
    Ok(())
}

/// Row-level security on one table: the restrictive policy, and a permissive base where nothing was restricted before.
fn build_wall(name: &str, column: &str, type_name: &str, had_row_security: bool) -> Result<()> {
    // SAFETY: quote_identifier returns a C string that lives in the current memory context.
    let column = unsafe {
        let plain = CString::new(column).map_err(|_| Error::Internal("agd: a column name holds NUL".into()))?;
        std::ffi::CStr::from_ptr(pg_sys::quote_identifier(plain.as_ptr())).to_string_lossy().into_owned()
    };
    // The cast is on the scalar side, so that an index on the column serves the policy.
    let own = format!("{column} = (SELECT agd.current_tenant())::{type_name}");
    Spi::run(&format!(
        "CREATE POLICY agd_tenant ON {name} AS RESTRICTIVE FOR ALL USING ({own}) WITH CHECK ({own});
         ALTER TABLE {name} ENABLE ROW LEVEL SECURITY;
         ALTER TABLE {name} FORCE ROW LEVEL SECURITY"
    ))?;
    if !had_row_security {
        Spi::run(&format!("CREATE POLICY agd_base ON {name} AS PERMISSIVE FOR ALL USING (true) WITH CHECK (true)"))?;
    }
    Ok(())
}

/// One BASELINE event per row that is there. The lock keeps writers out, so the newest snapshot sees all there is.
fn record_baseline(name: &str, member: pg_sys::Oid, guard_id: [u8; 16], tenant_column: Option<&str>) -> Result<()> {
    let relation = Relation::open(member, pg_sys::AccessShareLock);
    // SAFETY: an open relation.
    if unsafe { (*(*relation.0).rd_rel).relkind } as u8 == b'p' {
        return Ok(());
    }
    let format = row_format(relation.0)?;
    let mut columns = Columns::default();
    let mut recorded = 0u64;
    let mut told = std::time::Instant::now();
    let scratch = Scratch::new();
    // SAFETY: registered until the scan is over; on an error the resource owner lets go of it.
    let snapshot = unsafe { pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot()) };
    scan(&relation, None, snapshot, &mut [], |tuple| {
        pgrx::check_for_interrupts!();
        columns.deform(tuple, relation.descriptor());
        scratch.with(|| {
            let tenant = match tenant_column {
                None => None,
                Some(column) => Some(format.text_of(&columns, column).ok_or_else(|| Error::BadArgument {
                    message: format!("a row of {name} has no tenant: column \"{column}\" is null"),
                    hint: "Give every row a tenant before the table is guarded.".into(),
                })?),
            };
            if let Some(tenant) = &tenant {
                tenant::check_baseline_row(tenant, name)?;
            }
            event::insert(&Record {
                action: "BASELINE",
                tenant: tenant.as_deref(),
                relation: Some(name),
                guard_id: Some(guard_id),
                row_key: Some(format.key(&columns)),
                old: None,
                new: Some(format.image(&columns)),
                body: None,
            })
        })?;
        recorded += 1;
        if told.elapsed().as_secs() >= 5 {
            notice!("agd.guard: {recorded} rows of {} recorded so far", qualified_name(member));
            told = std::time::Instant::now();
        }
        Ok(())
    })?;
    // SAFETY: registered above.
    unsafe { pg_sys::UnregisterSnapshot(snapshot) };
    Ok(())
}

/// A partition was made or attached: is this such a statement?
///
/// # Safety
/// `node` is a utility statement's parse node.
pub unsafe fn adds_a_partition(node: *mut pg_sys::Node) -> bool {
    // SAFETY: the tag tells the node's type; an ALTER TABLE's cells are AlterTableCmd nodes.
    unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_CreateStmt => !(*node.cast::<pg_sys::CreateStmt>()).partbound.is_null(),
            pg_sys::NodeTag::T_AlterTableStmt => {
                let commands =
                    pgrx::PgList::<pg_sys::AlterTableCmd>::from_pg((*node.cast::<pg_sys::AlterTableStmt>()).cmds);
                commands.iter_ptr().any(|command| (*command).subtype == pg_sys::AlterTableType::AT_AttachPartition)
            }
            _ => false,
        }
    }
}

/// Calls `agd.complete_partitions()`, which runs as agd's owner whoever made the partition.
pub fn after_partition_added() -> Result<()> {
    // SAFETY: catalog look-ups; the function takes no argument and returns void. The function manager switches user and
    // search_path as its definition says.
    unsafe {
        if pg_sys::get_extension_oid(c"agd".as_ptr(), true) == pg_sys::InvalidOid {
            return Ok(());
        }
        let mut name = pgrx::PgList::<pg_sys::Node>::new();
        for part in [c"agd", c"complete_partitions"] {
            name.push(pg_sys::makeString(pg_sys::pstrdup(part.as_ptr())).cast());
        }
        let function = pg_sys::LookupFuncName(name.into_pg(), 0, std::ptr::null(), false);
        // The new partition must be visible to it.
        pg_sys::CommandCounterIncrement();
        pg_sys::OidFunctionCall0Coll(function, pg_sys::InvalidOid);
    }
    Ok(())
}

/// `agd.complete_partitions()`: gives new partitions of guarded tables what is not cloned from the root (the TRUNCATE
/// trigger, the wall), and records the rows that an attached table brings along.
#[pg_extern(sql = false)]
fn complete_partitions() {
    complete().or_raise();
}

fn complete() -> Result<()> {
    let incomplete = Spi::connect(|client| {
        client
            .select(
                "SELECT g.guard_id::text, g.relation::oid, g.tenant_column, c.oid, c.relrowsecurity,
                        c.relpersistence::text, c.relkind = 'p' OR a.amname = 'heap'
                   FROM agd.guarded_table g
                        CROSS JOIN LATERAL pg_catalog.pg_partition_tree(g.relation) t
                        JOIN pg_catalog.pg_class c ON c.oid = t.relid
                        LEFT JOIN pg_catalog.pg_am a ON a.oid = c.relam
                  WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_trigger tg
                                     WHERE tg.tgrelid = c.oid AND tg.tgname = '~agd_truncate')
                  ORDER BY t.level, c.oid",
                None,
                &[],
            )?
            .map(|row| {
                Ok::<_, pgrx::spi::Error>((
                    row.get::<String>(1)?.unwrap_or_default(),
                    row.get::<pg_sys::Oid>(2)?.unwrap_or(pg_sys::InvalidOid),
                    row.get::<String>(3)?,
                    row.get::<pg_sys::Oid>(4)?.unwrap_or(pg_sys::InvalidOid),
                    row.get::<bool>(5)?.unwrap_or_default(),
                    row.get::<String>(6)?.unwrap_or_default(),
                    row.get::<bool>(7)?.unwrap_or_default(),
                ))
            })
            .collect::<std::result::Result<Vec<_>, _>>()
    })?;
    for (guard_id, root, tenant_column, member, row_security, persistence, is_heap) in incomplete {
        let root_name = qualified_name(root);
        check_storage(&qualified_name(member), &persistence, is_heap)?;
        let tenant_type =
            tenant_column.as_deref().map(|column| check_tenant_column(root, &root_name, column)).transpose()?;
        guard_member(member, &guard_id, tenant_column.as_deref().zip(tenant_type.as_deref()), row_security)?;
        record_baseline(&root_name, member, uuid_of(&guard_id)?, tenant_column.as_deref())?;
    }
    Ok(())
}

/// What is made for each table of the tree by itself: statement triggers and policies are not cloned to partitions.
fn guard_member(
    member: pg_sys::Oid,
    guard_id: &str,
    tenant: Option<(&str, &str)>,
    had_row_security: bool,
) -> Result<()> {
    let name = qualified_name(member);
    Spi::run(&format!(
        "CREATE TRIGGER \"~agd_truncate\" BEFORE TRUNCATE ON {name}
           FOR EACH STATEMENT EXECUTE FUNCTION agd.refuse_truncate('{guard_id}');
         ALTER TABLE {name} ENABLE ALWAYS TRIGGER \"~agd_truncate\""
    ))?;
    match tenant {
        Some((column, type_name)) => build_wall(&name, column, type_name, had_row_security),
        None => Ok(()),
    }
}

fn uuid_of(guard_id: &str) -> Result<[u8; 16]> {
    CString::new(guard_id)
        .ok()
        .and_then(|text| parse_uuid(&text))
        .ok_or_else(|| Error::Internal("agd: a guard's id is not a uuid".into()))
}

fn unguard_table(relation: Option<pg_sys::Oid>, reason: Option<&str>) -> Result<()> {
    let oid = given(relation)?;
    let reason = reason.map(str::trim).filter(|reason| !reason.is_empty()).ok_or_else(|| Error::BadArgument {
        message: "a reason must be given".into(),
        hint: "It is recorded: SELECT agd.unguard('public.orders', 'moved to the archive').".into(),
    })?;
    if reason.len() > event::MAX_CAUSE_BYTES {
        return Err(Error::BadArgument {
            message: format!("a reason of {} bytes is too long", reason.len()),
            hint: format!("At most {} bytes.", event::MAX_CAUSE_BYTES),
        });
    }
    lock(oid);
    let name = qualified_name(oid);
    let guard_id = Spi::connect_mut(|client| {
        client
            .update(
                "DELETE FROM agd.guarded_table WHERE relation = $1::oid::regclass
                 RETURNING guard_id::text, tenant_column IS NOT NULL",
                None,
                &[oid.into()],
            )?
            .next()
            .map(|row| Ok::<_, pgrx::spi::Error>((row.get::<String>(1)?, row.get::<bool>(2)?)))
            .transpose()
    })?;
    let Some((Some(guard_id), has_wall)) = guard_id else {
        return Err(Error::WrongState {
            message: format!("{name} is not guarded"),
            hint: "SELECT * FROM agd.coverage() shows what is.".into(),
        });
    };
    let members = Spi::connect(|client| {
        client
            .select(
                "SELECT $1::oid UNION SELECT relid::oid FROM pg_catalog.pg_partition_tree($1::oid::regclass)",
                None,
                &[oid.into()],
            )?
            .map(|row| row.get::<pg_sys::Oid>(1).map(|oid| oid.unwrap_or(pg_sys::InvalidOid)))
            .collect::<std::result::Result<Vec<_>, _>>()
    })?;
    Spi::run(&format!(
        "DROP TRIGGER IF EXISTS \"~agd_record\" ON {name};
         DROP TRIGGER IF EXISTS \"~agd_confirm\" ON {name}"
    ))?;
    for member in members {
        let member = qualified_name(member);
        Spi::run(&format!("DROP TRIGGER IF EXISTS \"~agd_truncate\" ON {member}"))?;
        if has_wall == Some(true) {
            // Without the restrictive policy the permissive base would open the table to all: it goes too, and row-level
            // security stays on, so that access stays closed until somebody decides.
            Spi::run(&format!(
                "DROP POLICY IF EXISTS agd_tenant ON {member}; DROP POLICY IF EXISTS agd_base ON {member}"
            ))?;
        }
    }
    let uuid = CString::new(guard_id.as_str()).ok().and_then(|text| parse_uuid(&text));
    event::insert(&Record {
        action: "UNGUARD",
        tenant: None,
        relation: Some(&name),
        guard_id: uuid,
        row_key: None,
        old: None,
        new: None,
        body: Some(reason),
    })?;
    Ok(())
}
