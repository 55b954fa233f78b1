//! Steps 1 and 2: the extension; tenants, tables and their guards.

use crate::failure::{Result, expect, expect_equal};
use crate::scene::{DATABASE, LOG_NAME, Scene, Session, column};
use crate::terminal::grouped;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The guarded tables. A partitioned table counts as one.
pub const GUARDED: [&str; 6] =
    ["orders", "order_lines", "pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history"];

/// Orders that each tenant has before its tables are guarded, with three lines each.
const ORDERS_BEFORE: i64 = 50;

/// Step 1.
pub fn install(scene: &Scene<'_>) -> Result<()> {
    let terminal = scene.terminal;
    terminal.say(
        "A new cluster with shared_preload_libraries = 'agd', fsync on, no TCP port. The log name is the name under \
         which this database's evidence will be known; it is chosen once.",
    );
    scene.session_in("postgres", "postgres")?.run(&format!("CREATE DATABASE {DATABASE};"))?;
    let mut session = scene.session("postgres")?;
    session.run(&format!("SET agd.log_name = '{LOG_NAME}';"))?;
    session.run("CREATE EXTENSION agd;")?;
    let server: String = session.value("SELECT current_setting('server_version')")?;
    let version: String = session.value("SELECT extversion FROM pg_extension WHERE extname = 'agd'")?;
    terminal.figures(&[("PostgreSQL", server), ("agd", version)]);
    Ok(())
}

/// Step 2. `scale` is pgbench's: 100,000 accounts each.
pub fn guard_tables(scene: &Scene<'_>, scale: u32) -> Result<()> {
    let terminal = scene.terminal;
    let mut session = scene.session("postgres")?;
    terminal.say(
        "Each tenant gets a login role. Whoever logs in as acme_app is bound to tenant acme: there is no call to make \
         and no setting that SQL could change.",
    );
    for (tenant, role) in [("acme", "acme_app"), ("globex", "globex_app")] {
        session.run(&format!("SELECT agd.create_tenant('{tenant}');"))?;
        session.run(&format!("CREATE ROLE {role} LOGIN IN ROLE agd_tenant;"))?;
        session.run(&format!("SELECT agd.map_role('{role}', '{tenant}');"))?;
    }
    // A database's logs begin with its first event, and these were the first.
    let origin: String = session.value("SELECT origin FROM agd.log WHERE tenant IS NULL")?;
    expect_equal("the platform log's name", LOG_NAME, &origin)?;

    session.pause();
    terminal.say("The tenants share tables: orders is partitioned by tenant, order_lines follows it by cascade.");
    session.run(
        "CREATE TABLE orders (
             tenant   text NOT NULL DEFAULT agd.current_tenant(),
             order_no int  NOT NULL,
             customer text NOT NULL,
             status   text NOT NULL DEFAULT 'new',
             PRIMARY KEY (tenant, order_no)
         ) PARTITION BY LIST (tenant);
         CREATE TABLE orders_acme   PARTITION OF orders FOR VALUES IN ('acme');
         CREATE TABLE orders_globex PARTITION OF orders FOR VALUES IN ('globex');
         CREATE TABLE order_lines (
             tenant   text NOT NULL DEFAULT agd.current_tenant(),
             order_no int  NOT NULL,
             line     int  NOT NULL,
             item     text NOT NULL,
             quantity int  NOT NULL,
             price    numeric(10,2) NOT NULL,
             PRIMARY KEY (tenant, order_no, line),
             FOREIGN KEY (tenant, order_no) REFERENCES orders ON DELETE CASCADE
         );
         GRANT SELECT, INSERT, UPDATE, DELETE ON orders, order_lines TO agd_tenant;",
    )?;
    session.quiet(&format!(
        "INSERT INTO orders (tenant, order_no, customer)
           SELECT tenant, order_no, 'customer ' || order_no
             FROM unnest('{{acme,globex}}'::text[]) tenant, generate_series(1, {ORDERS_BEFORE}) order_no;
         INSERT INTO order_lines SELECT tenant, order_no, line, 'item ' || line, line, 9.90 * line
           FROM orders, generate_series(1, 3) line"
    ))?;
    terminal.say(&format!(
        "They hold {ORDERS_BEFORE} orders of each tenant already. Guarding a table that has rows records a baseline, \
         one event a row, so that table and log can be compared from the first day. tenant_column sends each row's \
         events to its tenant's own log, and puts a wall of row-level security between the tenants.",
    ));
    session.pause();
    session.run(
        "SELECT agd.guard('orders',      tenant_column => 'tenant');
         SELECT agd.guard('order_lines', tenant_column => 'tenant');",
    )?;

    terminal.say(&format!("Beside them pgbench's tables, scale {scale}; their events go to the platform's log."));
    session.pause();
    let arguments = ["-i", "-q", "-s", &scale.to_string()];
    terminal.command(&format!("pgbench {} {DATABASE}", arguments.join(" ")));
    let made = scene.cluster.pgbench(DATABASE, &arguments)?;
    expect("pgbench -i succeeds", made.success, &made.stderr)?;
    session.refused("SELECT agd.guard('pgbench_history');", "55000")?;
    terminal.say(
        "pgbench_history has no primary key, and a record must be able to name its row. An identity column gives it \
         one, and pgbench does not notice.",
    );
    session.run("ALTER TABLE pgbench_history ADD id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY;")?;
    let start = Instant::now();
    session.run("SELECT agd.guard('pgbench_accounts');")?;
    let seconds = start.elapsed().as_secs_f64();
    for table in ["pgbench_branches", "pgbench_tellers", "pgbench_history"] {
        session.run(&format!("SELECT agd.guard('{table}');"))?;
    }
    baseline(&mut session, scene)?;
    // Fewer than 256 may wait for more to come, or for their time.
    session.wait_for(
        "the worker to catch up",
        Duration::from_secs(300),
        "SELECT events_waiting < 256 FROM agd.stat",
    )?;
    terminal.say(&format!(
        "Every row has its record. For the {} rows of pgbench_accounts that took {seconds:.1} s, in which readers went \
         on and writers waited; {:.1} s after it began, the worker had put the records of all tables into the logs.",
        grouped(u64::from(scale) * 100_000),
        start.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Every row has a BASELINE event, and every guard is intact.
fn baseline(session: &mut Session<'_>, scene: &Scene<'_>) -> Result<()> {
    session.pause();
    let counted =
        session.query("SELECT relation, count(*) FROM agd.events WHERE action = 'BASELINE' GROUP BY relation;")?;
    let mut events: HashMap<String, i64> = HashMap::new();
    for row in &counted {
        events.insert(column(row, 0)?, column(row, 1)?);
    }
    let mut table = Vec::new();
    for name in GUARDED {
        let rows: i64 = session.value(&format!("SELECT count(*) FROM {name}"))?;
        let events = events.get(&format!("public.{name}")).copied().unwrap_or_default();
        expect_equal(&format!("baseline events of {name}"), rows, events)?;
        table.push(vec![name.to_owned(), grouped(rows), grouped(events)]);
    }
    scene.terminal.table(&["guarded table", "rows", "baseline events"], &table);
    expect_intact(session)?;
    Ok(())
}

/// `agd.coverage()` says of every table of the database that it is guarded and that its guard is intact. How many.
pub fn expect_intact(session: &mut Session<'_>) -> Result<usize> {
    let rows = session.rows("SELECT relation::text, guarded, intact, detail FROM agd.coverage()", &[])?;
    for row in &rows {
        let (relation, guarded, intact): (String, bool, bool) = (column(row, 0)?, column(row, 1)?, column(row, 2)?);
        let detail: String = column(row, 3)?;
        expect(
            "agd.coverage(): every table guarded, every guard intact",
            guarded && intact,
            format!("{relation}: {detail}"),
        )?;
    }
    // The partitions are listed beside their root, and agd's own tables of tenants, roles, keys, guards and fleets with the others.
    expect_equal("tables in agd.coverage()", GUARDED.len() + 2 + 11, rows.len())?;
    Ok(rows.len())
}
