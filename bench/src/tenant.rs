//! Reading through the policy that `agd.guard(…, tenant_column => …)` makes, next to one written by hand; and what it costs
//! to bind a transaction.

use crate::report::Section;
use crate::server::{self, Session};
use crate::stats::{figure, grouped, median, ratios, raw, spread};
use crate::turns::{self, Variant};
use crate::{Bench, Result};
use agd_live_tests::Cluster;
use agd_live_tests::token::Issuer;
use std::time::{Duration, Instant};

const TENANTS: u32 = 10;
/// The login role of tenant t1.
const ROLE: &str = "bench_tenant";

const BY_HAND: &str = "by_hand";
const GUARDED: &str = "guarded";

/// Tables of these sizes; the first as one that fits into a few pages.
fn sizes(bench: &Bench) -> [u32; 2] {
    [1_000, bench.options.pick(10_000_000, 50_000)]
}

pub fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let cluster = server::start("agd")?;
    Session::open(&cluster, "postgres")?.run(&format!("CREATE ROLE {ROLE} LOGIN"))?;
    server::create_database(&cluster, BY_HAND, None)?;
    let mut session = Session::open(&cluster, BY_HAND)?;
    for rows in sizes(bench) {
        bench.progress(&format!("tenant: {} rows", grouped(u64::from(rows))));
        session.run(&format!(
            "CREATE TABLE orders_{rows} (id int PRIMARY KEY, tenant text NOT NULL, customer int, amount numeric(12,2), note text);
             INSERT INTO orders_{rows} SELECT g, 't' || g % {TENANTS}, g % 1000, g / 100.0, 'order ' || g
               FROM generate_series(1, {rows}) g;
             CREATE INDEX ON orders_{rows} (tenant, id);
             GRANT SELECT ON orders_{rows} TO {ROLE}"
        ))?;
        session.run(&format!("VACUUM ANALYZE orders_{rows}"))?;
    }
    session.run("CHECKPOINT")?;
    drop(session);
    server::create_database(&cluster, GUARDED, Some(BY_HAND))?;

    let mut session = Session::open(&cluster, BY_HAND)?;
    session.run(&format!("ALTER ROLE {ROLE} SET app.tenant = 't1'"))?;
    for rows in sizes(bench) {
        // The sub-select is what one is advised to write: the setting is then read once a query, not once a row.
        session.run(&format!(
            "ALTER TABLE orders_{rows} ENABLE ROW LEVEL SECURITY;
             CREATE POLICY wall ON orders_{rows} USING (tenant = (SELECT current_setting('app.tenant')))"
        ))?;
    }
    let mut session = Session::open(&cluster, GUARDED)?;
    session.run("CREATE EXTENSION agd")?;
    for tenant in 0..TENANTS {
        session.run(&format!("SELECT agd.create_tenant('t{tenant}')"))?;
    }
    session.run(&format!("SELECT agd.map_role('{ROLE}', 't1'); GRANT agd_tenant TO {ROLE}"))?;
    for rows in sizes(bench) {
        session.run(&format!("SELECT agd.guard('orders_{rows}', tenant_column => 'tenant', baseline => false)"))?;
    }
    session.anchor()?;
    Ok(vec![reading(bench, &cluster)?, writing(bench, &cluster)?, binding(bench, &cluster)?])
}

fn reading(bench: &Bench, cluster: &Cluster) -> Result<Section> {
    let each = Duration::from_secs(bench.options.pick(5, 1));
    let rounds = bench.options.rounds();
    let mut section = Section::new(
        "tenant",
        "A tenant's SELECT, microseconds a query",
        &["rows", "", "policy by hand", "agd", "speed, of the one by hand", "goal"],
    );
    for rows in sizes(bench) {
        for database in [BY_HAND, GUARDED] {
            // Both must show the same rows, or they do not do the same work.
            let count = format!("SELECT count(*) FROM orders_{rows}");
            let seen: i64 = cluster.client(ROLE, database)?.query_one(&count, &[])?.try_get(0)?;
            if seen != i64::from(rows / TENANTS) {
                return Err(format!("{database}: the tenant sees {seen} rows, not {}", rows / TENANTS).into());
            }
        }
        for (name, query, keyed) in [
            ("one row by its key", format!("SELECT * FROM orders_{rows} WHERE id = $1"), true),
            ("the newest 50 rows", format!("SELECT * FROM orders_{rows} ORDER BY id DESC LIMIT 50"), false),
            ("a sum over all of the tenant's rows", format!("SELECT count(*), sum(amount) FROM orders_{rows}"), false),
        ] {
            let variants = [BY_HAND, GUARDED]
                .map(|database| Variant::new(move || Ok(cluster.client(ROLE, database)?), query.as_str()));
            // Rows of the tenant t1, all over the table.
            let row = |number: usize| (number as u64 * 7_919 % u64::from(rows / TENANTS)) as i32 * TENANTS as i32 + 1;
            let [by_hand, guarded] = turns::take(&variants, rounds, each, |number| keyed.then(|| row(number)))?;
            section.rows.push(vec![
                grouped(u64::from(rows)),
                name.to_owned(),
                figure(median(&by_hand)),
                figure(median(&guarded)),
                spread(&ratios(&by_hand, &guarded)),
                "≥ 0.98".into(),
            ]);
            section.raw[format!("{rows} rows / {name} / by_hand / us")] = raw(&by_hand);
            section.raw[format!("{rows} rows / {name} / agd / us")] = raw(&guarded);
            bench.progress(&format!("tenant: {} rows, {name}", grouped(u64::from(rows))));
        }
    }
    section.notes.push(format!(
        "{TENANTS} tenants, index on (tenant, id), prepared statements, unix socket; the two take turns query by query, medians of \
         {rounds} rounds of {} s. By hand: `USING (tenant = (SELECT current_setting('app.tenant')))`.",
        each.as_secs()
    ));
    Ok(section)
}

/// What a binding by role adds to a write: one row of a guarded table without tenants, the same with a policy written by
/// hand, and one row of a table of tenants by a role that is mapped to its tenant.
fn writing(bench: &Bench, cluster: &Cluster) -> Result<Section> {
    const ROWS: usize = 1_000;
    let each = Duration::from_secs(bench.options.pick(5, 1));
    let rounds = bench.options.rounds();
    let mut session = Session::open(cluster, GUARDED)?;
    session.run(&format!(
        "CREATE ROLE bench_unbound LOGIN;
         ALTER ROLE bench_unbound SET synchronous_commit = off;
         ALTER ROLE {ROLE} SET synchronous_commit = off;
         CREATE TABLE free (id int PRIMARY KEY, tenant text NOT NULL, v int);
         INSERT INTO free SELECT g, 't1', 0 FROM generate_series(0, {ROWS} - 1) g;
         CREATE TABLE by_hand (LIKE free INCLUDING ALL);
         INSERT INTO by_hand SELECT * FROM free;
         ALTER ROLE bench_unbound SET app.tenant = 't1';
         ALTER TABLE by_hand ENABLE ROW LEVEL SECURITY;
         CREATE POLICY wall ON by_hand USING (tenant = (SELECT current_setting('app.tenant')));
         CREATE TABLE owned (LIKE free INCLUDING ALL);
         INSERT INTO owned SELECT * FROM free;
         GRANT SELECT, UPDATE ON free, by_hand, owned TO {ROLE}, bench_unbound;
         SELECT agd.guard('free', baseline => false), agd.guard('by_hand', baseline => false),
                agd.guard('owned', tenant_column => 'tenant', baseline => false)"
    ))?;
    let variants = [("bench_unbound", "free"), ("bench_unbound", "by_hand"), (ROLE, "owned")].map(|(role, table)| {
        Variant::new(move || Ok(cluster.client(role, GUARDED)?), format!("UPDATE {table} SET v = v + 1 WHERE id = $1"))
    });
    let [without, by_hand, with] = turns::take(&variants, rounds, each, |number| Some((number * 7_919 % ROWS) as i32))?;
    session.anchor()?;
    bench.progress("tenant: writes");
    let mut section = Section::new(
        "tenant_write",
        "Binding by role: UPDATE of one row, microseconds a transaction",
        &["", "median", "× no policy", "× policy by hand"],
    );
    for (name, times) in [
        ("guarded, no policy", &without),
        ("guarded, policy by hand", &by_hand),
        ("guarded with tenant_column, role mapped to the tenant", &with),
    ] {
        let of = |base| spread(&ratios(times, base));
        section.rows.push(vec![name.into(), figure(median(times)), of(&without), of(&by_hand)]);
        section.raw[format!("{name} / us")] = raw(times);
    }
    section.notes.push(format!(
        "One client each, taking turns transaction by transaction, prepared statements, medians of {rounds} rounds of {} s. \
         Both with synchronous_commit = off: the disk would hide what there is to be seen.",
        each.as_secs()
    ));
    Ok(section)
}

/// `agd.bind()` and `agd.enter()` at the beginning of a transaction, next to a query that does nothing.
fn binding(bench: &Bench, cluster: &Cluster) -> Result<Section> {
    let times: usize = bench.options.pick(2_000, 200);
    let mut session = Session::open(cluster, GUARDED)?;
    session.run(
        "CREATE ROLE bench_token LOGIN IN ROLE agd_tenant; CREATE ROLE bench_word LOGIN IN ROLE agd_tenant;
         SELECT agd.map_role('bench_token', NULL, 'token'), agd.map_role('bench_word', NULL, 'asserted')",
    )?;
    let issuer = Issuer::new(&mut cluster.client("postgres", GUARDED)?, "t1", "bench");
    let mut measured: Vec<(&str, Vec<f64>)> = Vec::new();
    for (name, role, query) in [
        ("a query that does nothing", "bench_token", "SELECT length($1)::text"),
        ("agd.bind(token)", "bench_token", "SELECT agd.bind($1)"),
        ("agd.enter(tenant)", "bench_word", "SELECT agd.enter($1)"),
    ] {
        let mut client = cluster.client(role, GUARDED)?;
        let statement = client.prepare(query)?;
        let mut took = Vec::new();
        for number in 0..times + times / 10 {
            let argument = if role == "bench_word" { "t1".to_owned() } else { issuer.token(role, "bench") };
            client.batch_execute("BEGIN")?;
            let began = Instant::now();
            client.query_one(&statement, &[&argument])?;
            let microseconds = began.elapsed().as_secs_f64() * 1e6;
            client.batch_execute("COMMIT")?;
            if number >= times / 10 {
                took.push(microseconds);
            }
        }
        bench.progress(&format!("tenant: {name}"));
        measured.push((name, took));
    }
    let base = median(&measured[0].1);
    let mut section = Section::new(
        "tenant_binding",
        "Binding a transaction, microseconds a call",
        &["", "median, with its round trip", "more than a query that does nothing", "goal"],
    );
    for (name, took) in &measured {
        let more = median(took) - base;
        section.rows.push(vec![
            (*name).to_owned(),
            figure(median(took)),
            if *name == measured[0].0 { String::new() } else { figure(more) },
            if *name == "agd.bind(token)" { "≤ 150".into() } else { String::new() },
        ]);
        section.raw[format!("{name} / us")] = raw(took);
    }
    section.notes.push(format!("{times} transactions each, a new token for each, prepared statements, unix socket."));
    Ok(section)
}
