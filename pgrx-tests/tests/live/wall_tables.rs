//! The wall, attack by attack: every shape of table, every way to be bound, ordinary roles over real connections.

use agd_live_tests::record::{anchor, expect_verified};
use agd_live_tests::wall::{By, SHAPES, Session, Shape, Wall, column, run};
use agd_live_tests::{Cluster, expect_sqlstate};
use std::sync::OnceLock;

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::builder().start().unwrap())
}

fn each(wall: &Wall, mut test: impl FnMut(&Shape, By, Session<'_>)) {
    for shape in SHAPES {
        for by in By::ALL {
            test(&shape, by, wall.session(by, shape.tenants[0]));
        }
    }
}

#[test]
fn what_is_read_is_ones_own() {
    let wall = Wall::new(cluster(), "reads", "CREATE SCHEMA lair; GRANT ALL ON SCHEMA lair TO PUBLIC");
    // A function that tells what it is given, so cheap that the planner would like to call it first.
    let mut superuser = wall.superuser();
    run(
        &mut superuser,
        "CREATE TABLE lair.seen (v text); GRANT ALL ON lair.seen TO PUBLIC;
         CREATE FUNCTION lair.tell(v text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN INSERT INTO lair.seen VALUES (v); RETURN true; END $$",
    );
    each(&wall, |shape, by, mut session| {
        let Shape { table, tenants: [own, other], .. } = shape;
        let context = format!("{table} {by:?}");
        for from in [(*table).to_owned(), format!("{table}_view"), format!("(TABLE {table}) AS whole")] {
            let seen = session.column(&format!("SELECT DISTINCT tenant::text FROM {from}"));
            assert_eq!(seen, [*own], "{context} {from}");
            let others = session.column(&format!("SELECT v FROM {from} WHERE tenant::text = '{other}' OR v = 'none'"));
            assert_eq!(others, [""; 0], "{context} {from}");
            // Qualifiers that show what they are given, or fail on it, come after the wall.
            let told =
                session.column(&format!("SELECT DISTINCT tenant::text FROM {from} WHERE lair.tell(tenant::text)"));
            assert_eq!(told, [*own], "{context} {from}");
            let count = session.column(&format!(
                "SELECT count(*)::text FROM {from} WHERE 1 / (CASE WHEN tenant::text = '{other}' THEN 0 ELSE 1 END) = 1"
            ));
            assert_eq!(count, ["3"], "{context} {from}");
        }
        // A SECURITY DEFINER function of the table's owner, for whom policies count as well.
        assert_eq!(session.column(&format!("SELECT * FROM {table}_peek()")), [*own], "{context}");
        if *table == "parts" {
            assert_eq!(session.column("SELECT count(*)::text FROM parts_rest"), ["0"], "{context}");
        }
        // COPY, and a lock on rows that one cannot see.
        session.begin();
        // Of a partitioned table whose policies apply, PostgreSQL copies the table alone, which has no rows.
        let copy = if *table == "parts" { "COPY (TABLE parts) TO STDOUT" } else { &format!("COPY {table} TO STDOUT") };
        let copied = std::io::read_to_string(session.copy_out(copy).unwrap()).unwrap();
        assert!(copied.lines().count() == 3 && !copied.contains(other), "{context}: {copied}");
        let locked = session.column(&format!("SELECT v FROM {table} WHERE tenant::text = '{other}' FOR UPDATE"));
        assert_eq!(locked, [""; 0], "{context}");
        // Switching row security off is an error, not a way out.
        expect_sqlstate(session.within(&format!("SET LOCAL row_security = off; SELECT * FROM {table}")), "42501");
        // What statistics say of columns is not for those to whom policies apply.
        assert_eq!(session.column(&format!("SELECT attname::text FROM pg_stats WHERE tablename = '{table}'")), [""; 0]);
    });
    let seen = column(&mut superuser, "SELECT DISTINCT v FROM lair.seen ORDER BY 1");
    assert_eq!(seen, ["7", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "acme"]);
}

#[test]
fn what_is_written_is_ones_own() {
    let wall = Wall::new(cluster(), "writes", "");
    let mut superuser = wall.superuser();
    let mut refused = 0;
    each(&wall, |shape, by, mut session| {
        let Shape { table, tenants: [own, other], .. } = shape;
        let context = format!("{table} {by:?}");
        let mut attempts = vec![
            format!("INSERT INTO {table} VALUES ('{other}', 10, 'x')"),
            format!("INSERT INTO {table}_view VALUES ('{other}', 10, 'x')"),
            format!("INSERT INTO {table} VALUES ('{own}', 10, 'x'), ('{other}', 10, 'x')"),
            format!("INSERT INTO {table} VALUES ('{other}', 1, 'x') ON CONFLICT DO NOTHING"),
            format!("INSERT INTO {table} VALUES ('{other}', 1, 'x') ON CONFLICT (tenant, id) DO UPDATE SET v = 'y'"),
            format!(
                "INSERT INTO {table} VALUES ('{own}', 1, 'x') ON CONFLICT (tenant, id) DO UPDATE SET tenant = '{other}'"
            ),
            format!("UPDATE {table} SET tenant = '{other}' WHERE id = 1"),
            format!("UPDATE {table}_view SET tenant = '{other}', v = 'smuggled'"),
            format!("WITH moved AS (UPDATE {table} SET tenant = '{other}' RETURNING *) SELECT * FROM moved"),
            format!(
                "MERGE INTO {table} t USING (SELECT 1) s ON false WHEN NOT MATCHED THEN INSERT VALUES ('{other}', 10, 'x')"
            ),
            format!(
                "MERGE INTO {table} t USING (SELECT 1) s ON t.id = 1 WHEN MATCHED THEN UPDATE SET tenant = '{other}'"
            ),
            // With the rights of a superuser, for whom policies do not count: the gate looks on its own.
            format!("SELECT {table}_put('{other}', 10)"),
        ];
        if *table == "parts" {
            attempts.push("INSERT INTO parts_rest VALUES ('globex', 10, 'x')".into());
            attempts.push("UPDATE parts_acme SET tenant = 'globex' WHERE id = 1".into());
        }
        for sql in &attempts {
            let error = match session.within(sql) {
                Ok(()) => panic!("{context}: {sql} is allowed"),
                Err(error) => error.as_db_error().unwrap().clone(),
            };
            // A leaf's own bounds may speak first.
            let allowed: &[&str] = if sql.contains("parts_acme") { &["42501", "23514"] } else { &["42501"] };
            assert!(allowed.contains(&error.code().code()), "{context}: {sql}: {error:?}");
            refused += 1;
        }
        // What is not seen is not touched.
        session.begin();
        for sql in [
            format!("UPDATE {table} SET v = 'x' WHERE tenant::text = '{other}'"),
            format!("DELETE FROM {table} WHERE tenant::text = '{other}'"),
            format!("DELETE FROM {table}_view WHERE tenant::text = '{other}'"),
        ] {
            assert_eq!(session.execute(&sql, &[]).unwrap(), 0, "{context}: {sql}");
        }
        expect_sqlstate(session.within(&format!("TRUNCATE {table}")), "AG002");
        // One's own works, through each of the ways.
        session
            .within(&format!("INSERT INTO {table} VALUES ('{own}', 20, 'own'); SELECT {table}_put('{own}', 21)"))
            .unwrap();
        session
            .within(&format!("UPDATE {table}_view SET v = 'mine' WHERE id >= 20; DELETE FROM {table} WHERE id >= 20"))
            .unwrap();
    });
    assert!(refused >= 216, "{refused}");
    for Shape { table, .. } in SHAPES {
        let rows = column(
            &mut superuser,
            &format!("SELECT DISTINCT concat_ws(' ', v, count(*)) FROM {table} GROUP BY tenant, v"),
        );
        assert_eq!(rows, ["seed 3"], "{table}");
        assert_eq!(
            column(&mut superuser, &format!("SELECT problem FROM agd.verify_table('{table}')")),
            [""; 0],
            "{table}"
        );
    }
    anchor(&mut superuser);
    expect_verified(&mut superuser);
}

/// Nobody who binds stands above the wall, whatever it owns; and who is bound to nobody reads and writes nothing.
#[test]
fn who_is_not_bound_is_nobody() {
    let wall = Wall::new(cluster(), "nobody", "GRANT {0}_owner TO {0}_app, {0}_agent");
    for role in ["app", "agent"] {
        let mut client = wall.login(role);
        for Shape { table, tenants: [own, _], .. } in SHAPES {
            assert_eq!(column(&mut client, &format!("SELECT v FROM {table}")), [""; 0], "{role} {table}");
            assert_eq!(column(&mut client, "SELECT agd.current_tenant()"), ["NULL"]);
            assert_eq!(column(&mut client, "SELECT agd.current_principal()"), ["NULL"]);
            // Row security refuses what is written directly, the gate what is written with an owner's or superuser's rights.
            for sql in
                [format!("INSERT INTO {table} VALUES ('{own}', 30, 'x')"), format!("SELECT {table}_put('{own}', 30)")]
            {
                expect_sqlstate(client.batch_execute(&sql), "42501");
            }
            expect_sqlstate(
                client.batch_execute(
                    &wall.sql(&format!("BEGIN; SET LOCAL ROLE {{0}}_owner; SELECT {table}_put('{own}', 30)")),
                ),
                "42501",
            );
            run(&mut client, "ROLLBACK");
        }
        assert_eq!(column(&mut client, "SELECT event_id FROM agd.events"), [""; 0]);
    }
    let mut superuser = wall.superuser();
    assert_eq!(column(&mut superuser, "SELECT v FROM plain WHERE v <> 'seed'"), [""; 0]);
}

/// A number or a uuid has one spelling that is a tenant's name, or a policy would take one tenant for another.
#[test]
fn a_number_or_uuid_is_one_tenant() {
    let wall = Wall::new(cluster(), "spelling", "");
    let mut superuser = wall.superuser();
    for name in [
        "007",
        "0x7",
        "0o7",
        "0b111",
        "0_7",
        "a0eebc999c0b4ef8bb6d6bb9bd380a11",
        "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11",
    ] {
        expect_sqlstate(superuser.execute("SELECT agd.create_tenant($1)", &[&name]), "22023");
        expect_sqlstate(superuser.execute("INSERT INTO agd.tenant (tenant) VALUES ($1)", &[&name]), "23514");
    }
    // A tenant whose name is no number reads nothing from a table of numbers: it is an error, not a match.
    let mut acme = wall.session(By::Role, "acme");
    expect_sqlstate(acme.within("SELECT * FROM numbers"), "22P02");
    expect_sqlstate(acme.within("SELECT * FROM uuids"), "22P02");
    // A collation under which two names are one is refused, also later. A PostgreSQL that was built without ICU lets nobody
    // make one: there the catalog is told.
    let icu = "CREATE COLLATION loose (provider = icu, locale = 'und-u-ka-shifted', deterministic = false)";
    if let Err(error) = superuser.batch_execute(icu) {
        expect_sqlstate(Err::<(), _>(error), "0A000");
        run(
            &mut superuser,
            "CREATE COLLATION loose (provider = libc, locale = 'C');
             UPDATE pg_collation SET collisdeterministic = false WHERE collname = 'loose'",
        );
    }
    run(&mut superuser, "CREATE TABLE loosely (tenant text COLLATE loose, id int, PRIMARY KEY (tenant, id))");
    expect_sqlstate(superuser.batch_execute("SELECT agd.guard('loosely', tenant_column => 'tenant')"), "22023");
    expect_sqlstate(superuser.batch_execute("ALTER TABLE plain ALTER COLUMN tenant TYPE text COLLATE loose"), "0A000");
}

/// What PostgreSQL itself tells, and agd cannot stop: agd.guard() warns, agd.wall_gaps() shows it at any time.
#[test]
fn what_the_tables_own_definition_leaves_open_is_told() {
    let wall = Wall::new(
        cluster(),
        "gaps",
        "CREATE TABLE open (id int PRIMARY KEY, tenant text, code text UNIQUE, v text);
         CREATE TABLE child (tenant text, id int, open_id int REFERENCES open, PRIMARY KEY (tenant, id));
         INSERT INTO open VALUES (1, 'acme', 'a', 'secret-a'), (2, 'globex', 'g', 'secret-g');
         CREATE VIEW everything AS SELECT * FROM open; CREATE VIEW walled WITH (security_invoker = 1) AS SELECT * FROM open;
         CREATE VIEW of_owner AS SELECT * FROM open; ALTER VIEW of_owner OWNER TO {0}_owner; GRANT SELECT ON open TO {0}_owner;
         CREATE MATERIALIZED VIEW frozen AS SELECT * FROM open;
         GRANT ALL ON open, child, everything, walled, of_owner, frozen TO PUBLIC",
    );
    let warned = wall.database.psql("SELECT agd.guard('open', tenant_column => 'tenant')").unwrap();
    let warnings: Vec<_> = warned.stderr.lines().filter(|line| line.contains("WARNING")).collect();
    assert!(warned.success && warnings.len() == 5, "{warnings:#?}");
    assert!(warned.stderr.contains("HINT:  make the tenant column part of it"), "{}", warned.stderr);
    let quiet = wall.database.psql("SELECT agd.guard('child', tenant_column => 'tenant')").unwrap();
    assert!(quiet.success && !quiet.stderr.contains("WARNING"), "{}", quiet.stderr);
    let mut superuser = wall.superuser();
    let told = column(&mut superuser, "SELECT left(replace(gap, 'public.', ''), 38) FROM agd.wall_gaps('open')");
    assert_eq!(
        told,
        [
            "foreign key child_open_id_fkey of chil",
            "materialized view frozen holds rows of",
            "unique index open_code_key does not ha",
            "unique index open_pkey does not have t",
            "view everything is read with the right",
        ]
    );
    assert_eq!(column(&mut superuser, "SELECT DISTINCT relation::text FROM agd.wall_gaps()"), ["open"]);
    // What is told is so: this is what a tenant learns there.
    let mut acme = wall.session(By::Role, "acme");
    expect_sqlstate(acme.within("INSERT INTO open VALUES (2, 'acme', 'x', 'x')"), "23505");
    acme.within("INSERT INTO open VALUES (3, 'acme', 'x', 'x')").unwrap();
    acme.within("INSERT INTO child VALUES ('acme', 1, 2)").unwrap();
    expect_sqlstate(acme.within("INSERT INTO child VALUES ('acme', 2, 99)"), "23503");
    assert_eq!(acme.column("SELECT v FROM everything WHERE tenant = 'globex'"), ["secret-g"]);
    assert_eq!(acme.column("SELECT v FROM frozen WHERE tenant = 'globex'"), ["secret-g"]);
    // And what is not told is not.
    for view in ["open", "walled", "of_owner"] {
        assert_eq!(acme.column(&format!("SELECT v FROM {view} WHERE tenant = 'globex'")), [""; 0], "{view}");
    }
    // With the tenant column in every key there is nothing to be learnt.
    let quiet = column(&mut superuser, "SELECT gap FROM agd.wall_gaps('plain')");
    assert_eq!(quiet, [""; 0]);
    acme.within("INSERT INTO plain SELECT 'acme', id + 100, v FROM plain").unwrap();
    expect_sqlstate(acme.within("INSERT INTO plain VALUES ('globex', 1, 'taken')"), "42501");
    expect_sqlstate(acme.within("INSERT INTO plain VALUES ('globex', 77, 'free')"), "42501");
}

/// A plan that was made for one tenant is no plan for another: prepared, generic, in a function.
#[test]
fn a_plan_is_not_a_tenants() {
    let wall = Wall::new(
        cluster(),
        "plans",
        "CREATE FUNCTION own() RETURNS text LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN (SELECT string_agg(DISTINCT tenant, ',') FROM plain); END $$",
    );
    for (role, enter) in [("app", true), ("agent", false)] {
        let mut client = wall.login(role);
        run(&mut client, "SET plan_cache_mode = force_generic_plan; PREPARE q AS SELECT DISTINCT tenant FROM plain");
        let statement = client.prepare("SELECT DISTINCT tenant FROM plain WHERE id > $1").unwrap();
        for tenant in ["acme", "globex", "acme", "globex", "acme", "globex", "acme"] {
            let bind = if enter {
                format!("SELECT agd.bind('{}')", wall.token(tenant))
            } else {
                format!("SELECT agd.enter('{tenant}')")
            };
            run(&mut client, &format!("BEGIN; {bind}"));
            assert_eq!(column(&mut client, "EXECUTE q"), [tenant]);
            let rows = client.query(&statement, &[&0]).unwrap();
            assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<String>>(), [tenant]);
            assert_eq!(column(&mut client, "SELECT own()"), [tenant]);
            run(&mut client, "COMMIT");
            assert_eq!(column(&mut client, "EXECUTE q"), [""; 0]);
            assert_eq!(column(&mut client, "SELECT own()"), ["NULL"]);
        }
    }
}

/// The index on the tenant column serves the policy.
#[test]
fn the_policy_uses_the_index() {
    let wall = Wall::new(cluster(), "indexed", "");
    for shape in SHAPES {
        for by in By::ALL {
            let mut session = wall.session(by, shape.tenants[0]);
            session.begin();
            run(&mut session, "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off");
            let plan = column(&mut session, &format!("EXPLAIN (COSTS off) SELECT * FROM {}", shape.table)).join("\n");
            assert!(plan.contains("Index Scan") && plan.contains("Index Cond: ("), "{shape:?} {by:?}: {plan}");
            assert!(plan.contains("InitPlan"), "{plan}");
        }
    }
}
