//! Putting a table behind the gate, and taking it out.
//!
//! Owns what `agd.guard()` and `agd.unguard()` do. Promises all or nothing: a table is guarded whole, its partitions
//! included, with its baseline recorded under the same lock, or it is as it was. Never guards what the gate could not
//! record in full.
#![allow(unsafe_code)] // reads relation flags, quotes identifiers

use crate::catalog::Relation;
use crate::error::{self, Error, Result};
use crate::event::{self, Image, Record};
use crate::fmgr::{argument, definer_function};
use crate::guard::baseline::record_baseline;
use crate::guard::ddl_event;
use crate::guard::examine::{Table, check_tenant_column, examine, lock};
use crate::guard::redact;
use crate::guard::relation::{parse_uuid, primary_key, qualified_name};
use crate::guard::touched::permitted;
use crate::home;
use crate::query::{self, At};
use agd_core::chain;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use std::cell::Cell;
use std::ffi::CString;

definer_function!(agd_guard, pg_finfo_agd_guard, answer_guard);

/// `agd.guard(relation, tenant_column, redact, require_cause, on_truncate, baseline)`
fn answer_guard(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.guard(relation regclass, tenant_column name, redact name[], require_cause boolean,
    // on_truncate text, baseline boolean).
    let (relation, tenant_column, redact, require_cause, on_truncate, baseline) = unsafe {
        (
            argument::<pg_sys::Oid>(call, 0),
            argument::<&std::ffi::CStr>(call, 1),
            argument::<pgrx::Array<'_, &std::ffi::CStr>>(call, 2),
            argument::<bool>(call, 3),
            argument::<String>(call, 4),
            argument::<bool>(call, 5),
        )
    };
    let tenant_column = tenant_column
        .map(|name| name.to_str().map(str::to_owned))
        .transpose()
        .map_err(|_| Error::Internal("agd: a column name is not UTF-8".into()))?;
    let on_truncate = on_truncate.as_deref().unwrap_or("refuse");
    if !matches!(on_truncate, "refuse" | "record") {
        return Err(Error::BadArgument {
            message: format!("on_truncate cannot be \"{on_truncate}\""),
            hint: "'refuse' (the default) or 'record'.".into(),
        });
    }
    guard_table(
        relation,
        tenant_column.as_deref(),
        redact,
        require_cause.unwrap_or(false),
        on_truncate,
        baseline.unwrap_or(true),
    )?;
    Ok(pg_sys::Datum::from(0))
}

definer_function!(agd_unguard, pg_finfo_agd_unguard, answer_unguard);

/// `agd.unguard(relation, reason)`
fn answer_unguard(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.unguard(relation regclass, reason text).
    let (relation, reason) = unsafe { (argument::<pg_sys::Oid>(call, 0), argument::<String>(call, 1)) };
    unguard_table(relation, reason.as_deref()).map(|()| pg_sys::Datum::from(0))
}

fn given(relation: Option<pg_sys::Oid>) -> Result<pg_sys::Oid> {
    relation.ok_or_else(|| Error::BadArgument {
        message: "no table given".into(),
        hint: "SELECT agd.guard('public.orders').".into(),
    })
}

fn guard_table(
    relation: Option<pg_sys::Oid>,
    tenant_column: Option<&str>,
    redact: Option<pgrx::Array<'_, &std::ffi::CStr>>,
    require_cause: bool,
    on_truncate: &str,
    baseline: bool,
) -> Result<()> {
    error::forbid_read_only(c"agd.guard()");
    home::ensure()?;
    let table = examine(given(relation)?)?;
    let key = primary_key(Relation::open(table.oid, pg_sys::AccessShareLock).0)?;
    let tenant_type = tenant_column.map(|column| check_tenant_column(table.oid, &table.name, column)).transpose()?;
    let redact = redact::check(table.oid, &table.name, redact, tenant_column, &key)?;
    if on_truncate == "record" && (table.partitioned || tenant_column.is_some()) {
        return Err(Error::Unsupported {
            message: format!("TRUNCATE of {} cannot be recorded", table.name),
            hint: "It would empty partitions or tenants one by one without saying which. Use on_truncate => 'refuse'."
                .into(),
        });
    }
    let guard_id = writing(|| {
        Ok(Spi::get_one_with_args::<String>(
            "INSERT INTO agd.guarded_table (guard_id, relation, tenant_column, require_cause, on_truncate, redact)
             VALUES (pg_catalog.gen_random_uuid(), $1::oid::regclass, $2, $3, $4, $5) RETURNING guard_id::text",
            &[table.oid.into(), tenant_column.into(), require_cause.into(), on_truncate.into(), redact.clone().into()],
        )?)
    })?
    .ok_or_else(|| Error::Internal("agd: a guard got no id".into()))?;
    if !redact.is_empty() {
        redact::make_key(&guard_id)?;
    }

    // Row triggers on the root are cloned to its partitions, present and future; statement triggers are not.
    let root = &table.name;
    run(&format!(
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
    expect_intact(&table)?;
    let uuid = uuid_of(&guard_id)?;
    // What a verifier needs to follow each row: whether the rows that are there now are recorded, and what columns they have.
    let mut payload = format!("{{\"baseline\":{baseline},\"columns\":").into_bytes();
    chain::write_changes(&ddl_event::first_columns(table.oid)?, &mut payload);
    payload.push(b'}');
    event::insert(&Record {
        relation: Some(&table.name),
        guard_id: Some(uuid),
        new: Some(Image::Json(&payload)),
        body: Some(&format!(
            "tenant_column={} require_cause={require_cause} on_truncate={on_truncate} redact={}",
            tenant_column.unwrap_or("-"),
            if redact.is_empty() {
                "-".into()
            } else {
                redact.iter().map(|column| quoted(column)).collect::<Result<Vec<_>>>()?.join(",")
            }
        )),
        ..Record::of("GUARD")
    })?;
    if baseline {
        for &member in &table.tree {
            record_baseline(&table.name, member, uuid, tenant_column)?;
        }
    }
    if tenant_column.is_some() {
        warn_of_gaps(&table)?;
    }
    Ok(())
}

thread_local! {
    static WRITING: Cell<bool> = const { Cell::new(false) };
}

/// Runs a statement of agd's own on agd.guarded_table.
fn writing<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            WRITING.set(false);
        }
    }
    WRITING.set(true);
    let _reset = Reset;
    body()
}

/// The gate asks of each row of agd.guarded_table that is written: AG002 unless it is `agd.guard()` or `agd.unguard()` that
/// does. A row less, and a table is guarded no more, with no word of it.
pub fn check_write() -> Result<()> {
    if WRITING.get() {
        return Ok(());
    }
    Err(Error::TamperingRefused {
        message: "agd.guarded_table is written by agd's own functions alone".into(),
        hint: "SELECT agd.guard('public.orders'), or SELECT agd.unguard('public.orders', 'why').".into(),
    })
}

/// What the table's own definition leaves open in its wall, and PostgreSQL does not let a policy close.
fn warn_of_gaps(table: &Table) -> Result<()> {
    let query = format!("SELECT w.gap, w.remedy FROM agd.wall_gaps('{}'::oid) w", table.oid.to_u32());
    for row in query::rows(At::Now, &query)? {
        if let [Some(gap), Some(remedy)] = row.as_slice() {
            ErrorReport::new(PgSqlErrorCode::ERRCODE_WARNING, format!("{}: {gap}", table.name), "agd.guard")
                .set_hint(remedy.clone())
                .report(PgLogLevel::WARNING);
        }
    }
    Ok(())
}

/// What [`examine`] saw may be as old as the transaction's snapshot (REPEATABLE READ); this looks at what is there now.
fn expect_intact(table: &Table) -> Result<()> {
    let query = format!("SELECT w.relation, w.problem FROM agd.guard_problems('{}'::oid) w", table.oid.to_u32());
    match query::rows(At::Now, &query)?.into_iter().next().as_deref() {
        Some([relation, problem]) => Err(Error::WrongState {
            message: format!(
                "{} cannot be guarded: {}: {}",
                table.name,
                relation.as_deref().unwrap_or_default(),
                problem.as_deref().unwrap_or_default()
            ),
            hint: "Mend that and call it again. If it was not so when this transaction began, the table was changed since: \
                   roll back and try again."
                .into(),
        }),
        _ => Ok(()),
    }
}

/// What is made for each table of the tree by itself: statement triggers and policies are not cloned to partitions.
pub fn guard_member(
    member: pg_sys::Oid,
    guard_id: &str,
    tenant: Option<(&str, &str)>,
    had_row_security: bool,
) -> Result<()> {
    let name = qualified_name(member);
    run(&format!(
        "CREATE TRIGGER \"~agd_truncate\" BEFORE TRUNCATE ON {name}
           FOR EACH STATEMENT EXECUTE FUNCTION agd.refuse_truncate('{guard_id}');
         ALTER TABLE {name} ENABLE ALWAYS TRIGGER \"~agd_truncate\""
    ))?;
    match tenant {
        Some((column, type_name)) => build_wall(&name, column, type_name, had_row_security),
        None => Ok(()),
    }
}

/// Takes away again what [`guard_member`] made.
pub fn unguard_member(member: pg_sys::Oid, has_wall: bool) -> Result<()> {
    let name = qualified_name(member);
    run(&format!("DROP TRIGGER IF EXISTS \"~agd_truncate\" ON {name}"))?;
    if has_wall {
        // Without the restrictive policy the permissive base would open the table to all: it goes too, and row-level
        // security stays on, so that access stays closed until somebody decides.
        run(&format!("DROP POLICY IF EXISTS agd_tenant ON {name}; DROP POLICY IF EXISTS agd_base ON {name}"))?;
    }
    Ok(())
}

/// Statements of agd's own: they make and remove guards, so nobody judges them.
fn run(statements: &str) -> Result<()> {
    Ok(permitted(|| Spi::run(statements))?)
}

/// Row-level security on one table: the restrictive policy, and a permissive base where nothing was restricted before.
fn build_wall(name: &str, column: &str, type_name: &str, had_row_security: bool) -> Result<()> {
    let column = quoted(column)?;
    // The cast is on the scalar side, so that an index on the column serves the policy.
    let own = format!("{column} = (SELECT agd.current_tenant())::{type_name}");
    run(&format!(
        "CREATE POLICY agd_tenant ON {name} AS RESTRICTIVE FOR ALL USING ({own}) WITH CHECK ({own});
         ALTER TABLE {name} ENABLE ROW LEVEL SECURITY;
         ALTER TABLE {name} FORCE ROW LEVEL SECURITY"
    ))?;
    if !had_row_security {
        run(&format!("CREATE POLICY agd_base ON {name} AS PERMISSIVE FOR ALL USING (true) WITH CHECK (true)"))?;
    }
    Ok(())
}

/// An identifier as SQL needs it.
fn quoted(name: &str) -> Result<String> {
    let plain = CString::new(name).map_err(|_| Error::Internal("agd: a column name holds NUL".into()))?;
    // SAFETY: quote_identifier returns a C string that lives in the current memory context, or its argument.
    let quoted = unsafe { std::ffi::CStr::from_ptr(pg_sys::quote_identifier(plain.as_ptr())) };
    Ok(quoted.to_string_lossy().into_owned())
}

/// The 16 bytes of a guard's id.
pub fn uuid_of(guard_id: &str) -> Result<[u8; 16]> {
    CString::new(guard_id)
        .ok()
        .and_then(|text| parse_uuid(&text))
        .ok_or_else(|| Error::Internal("agd: a guard's id is not a uuid".into()))
}

fn unguard_table(relation: Option<pg_sys::Oid>, reason: Option<&str>) -> Result<()> {
    error::forbid_read_only(c"agd.unguard()");
    home::ensure()?;
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
    let guard_id = writing(|| {
        Ok(Spi::connect_mut(|client| {
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
        })?)
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
    run(&format!(
        "DROP TRIGGER IF EXISTS \"~agd_record\" ON {name};
         DROP TRIGGER IF EXISTS \"~agd_confirm\" ON {name}"
    ))?;
    for member in members {
        unguard_member(member, has_wall == Some(true))?;
    }
    let uuid = CString::new(guard_id.as_str()).ok().and_then(|text| parse_uuid(&text));
    event::insert(&Record { relation: Some(&name), guard_id: uuid, body: Some(reason), ..Record::of("UNGUARD") })?;
    Ok(())
}
