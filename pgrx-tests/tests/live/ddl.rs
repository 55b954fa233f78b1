//! DDL on guarded tables and on agd itself: what would open a hole is refused and leaves everything as it was; what is
//! permitted is recorded, and the guard still holds.

use agd_live_tests::record::{anchor, expect_verified, reconcile};
use agd_live_tests::{Cluster, Watch, expect_hint, expect_sqlstate};
use postgres::Client;
use std::sync::OnceLock;

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::builder().start().unwrap())
}

/// Everything there is, as far as a guard can depend on it.
const CATALOGS: &str = "
    SELECT string_agg(line, E'\\n' ORDER BY line) FROM (
      SELECT format('relation %s %s %s %s %s %s', c.oid, c.relname, c.relkind, c.relpersistence, c.relrowsecurity, c.relforcerowsecurity)
        FROM pg_class c WHERE c.relnamespace IN ('public'::regnamespace, 'agd'::regnamespace) AND c.relkind NOT IN ('i', 'S')
      UNION ALL SELECT format('column %s %s %s', attrelid, attname, atttypid) FROM pg_attribute WHERE attrelid >= 16384
      UNION ALL SELECT format('trigger %s %s %s', tgrelid, tgname, tgenabled) FROM pg_trigger
      UNION ALL SELECT format('policy %s %s %s', polrelid, polname, polqual) FROM pg_policy
      UNION ALL SELECT format('rule %s %s', ev_class, rulename) FROM pg_rewrite
      UNION ALL SELECT format('parent %s %s', inhrelid, inhparent) FROM pg_inherits
      UNION ALL SELECT format('event trigger %s %s', evtname, evtenabled) FROM pg_event_trigger
      UNION ALL SELECT format('function %s %s %s', oid::regprocedure, proowner, prosrc) FROM pg_proc WHERE oid >= 16384
      UNION ALL SELECT format('member %s %s', classid, objid) FROM pg_depend WHERE deptype = 'e') l(line)";

/// A database whose guarded tables belong to an ordinary role: `t`, `orders` (of tenants), `p` (partitioned). The owner is no
/// tenant's: such a one does no DDL on `orders`.
struct Scene {
    g: Watch,
    owner: Client,
    owner_name: String,
    tenant: Client,
    tenant_name: String,
}

impl Scene {
    fn new(stem: &str) -> Self {
        let mut g = Watch::new(cluster(), stem, "SELECT agd.create_tenant('acme')").unwrap();
        let owner_name = format!("{}_owner", g.database().name());
        let tenant_name = format!("{}_tenant", g.database().name());
        cluster().create_role(&owner_name, "").unwrap();
        cluster().create_role(&tenant_name, "").unwrap();
        g.run(&format!("GRANT CREATE ON SCHEMA public TO {owner_name}"));
        let mut owner = g.database().connect_as(&owner_name).unwrap();
        owner
            .batch_execute(
                "CREATE TABLE t (id int PRIMARY KEY, v text);
                 CREATE TABLE orders (tenant text, id int, v text, PRIMARY KEY (tenant, id));
                 CREATE TABLE p (k int, id int, v text, PRIMARY KEY (k, id)) PARTITION BY LIST (k);
                 CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
                 CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2) PARTITION BY RANGE (id);
                 CREATE TABLE p2a PARTITION OF p2 FOR VALUES FROM (0) TO (100);
                 CREATE TABLE plain (id int PRIMARY KEY, v text);
                 CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$",
            )
            .unwrap();
        owner.batch_execute(&format!("GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO {tenant_name}")).unwrap();
        g.run(&format!(
            "SELECT agd.map_role('{tenant_name}', 'acme'), agd.guard('t'), agd.guard('orders', tenant_column => 'tenant'), agd.guard('p')"
        ));
        let mut tenant = g.database().connect_as(&tenant_name).unwrap();
        owner
            .batch_execute("INSERT INTO t VALUES (1, 'a'), (2, 'b'); INSERT INTO p VALUES (1, 1, 'a'), (2, 2, 'b')")
            .unwrap();
        tenant.batch_execute("INSERT INTO orders VALUES ('acme', 1, 'a'), ('acme', 2, 'b')").unwrap();
        let mut scene = Self { g, owner, owner_name, tenant, tenant_name };
        for table in ["t", "orders", "p"] {
            scene.g.news(table);
        }
        scene
    }

    /// Runs `sql`, by the owner of the tables or by the superuser; it must be refused, and leave no trace.
    #[track_caller]
    fn refuses(&mut self, as_superuser: bool, sql: &str, state: &str, hint: &str) {
        let before: String = self.g.one(CATALOGS);
        let (events, rows): (i64, i64) = (self.g.one(EVENTS), self.g.one(ROWS));
        let outcome = if as_superuser { self.g.batch_execute(sql) } else { self.owner.batch_execute(sql) };
        assert!(outcome.is_err(), "{sql} is allowed");
        let error = expect_sqlstate(outcome, state);
        expect_hint(&error, hint);
        self.g.batch_execute("ROLLBACK; SET client_min_messages = error").unwrap();
        self.owner.batch_execute("ROLLBACK; SET client_min_messages = error").unwrap();
        assert_eq!(self.g.one::<String>(CATALOGS), before, "{sql} was refused and left something");
        assert_eq!((self.g.one::<i64>(EVENTS), self.g.one::<i64>(ROWS)), (events, rows), "{sql}");
        self.expect_guarded();
    }

    /// Every guard is intact, and a write is recorded.
    #[track_caller]
    fn expect_guarded(&mut self) {
        let open: Vec<String> =
            self.g.column("SELECT format('%s: %s', relation, detail) FROM agd.coverage() WHERE guarded AND NOT intact");
        assert_eq!(open, [""; 0]);
        self.owner.batch_execute("UPDATE t SET v = v; UPDATE p SET v = v").unwrap_or_else(|error| panic!("{error:?}"));
        self.tenant.batch_execute("UPDATE orders SET v = v").unwrap_or_else(|error| panic!("{error:?}"));
        for (table, rows) in [("t", 2), ("orders", 2), ("p", 2)] {
            assert_eq!(self.g.tally(table), (0, rows, 0), "{table}");
        }
    }

    /// What is recorded as DDL from here on, as `table: what`.
    #[track_caller]
    fn ddl(&mut self) -> Vec<String> {
        self.g.column(
            "SELECT format('%s: %s', relation, body) FROM agd.events WHERE action = 'DDL'
              ORDER BY committed_at, split_part(event_id, '-', 2)::int",
        )
    }
}

/// Not those that the worker writes at its own time.
const EVENTS: &str = "SELECT count(*) FROM agd.event WHERE action NOT IN ('CHECKPOINT', 'GUARD.STATE', 'DENIED')";
const ROWS: &str = "SELECT (SELECT count(*) FROM t) + (SELECT count(*) FROM orders) + (SELECT count(*) FROM p)";

#[test]
fn a_statement_that_opens_a_guard_is_refused() {
    let mut s = Scene::new("opens");
    for sql in [
        "ALTER TABLE t DISABLE TRIGGER \"~agd_record\"",
        "ALTER TABLE t DISABLE TRIGGER \"~agd_confirm\"",
        "ALTER TABLE t DISABLE TRIGGER \"~agd_truncate\"",
        "ALTER TABLE t DISABLE TRIGGER USER",
        "ALTER TABLE t ENABLE TRIGGER \"~agd_record\"",
        "ALTER TABLE t ENABLE REPLICA TRIGGER \"~agd_record\"",
        "ALTER TRIGGER \"~agd_record\" ON t RENAME TO later",
        "DROP TRIGGER \"~agd_record\" ON t",
        "DROP TRIGGER \"~agd_truncate\" ON p1",
        "ALTER TABLE p1 DISABLE TRIGGER USER",
        "ALTER TABLE ONLY p2a DISABLE TRIGGER \"~agd_record\"",
        "CREATE OR REPLACE TRIGGER \"~agd_record\" BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()",
        "CREATE OR REPLACE TRIGGER \"~agd_truncate\" BEFORE TRUNCATE ON t EXECUTE FUNCTION f()",
        "ALTER TABLE orders DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE orders NO FORCE ROW LEVEL SECURITY",
        "DROP POLICY agd_tenant ON orders",
        "ALTER POLICY agd_tenant ON orders USING (true)",
        "ALTER POLICY agd_tenant ON orders USING (tenant = (SELECT agd.current_tenant()) OR v = 'x')",
        "ALTER POLICY agd_tenant ON orders WITH CHECK (true)",
        "ALTER POLICY agd_tenant ON orders TO pg_monitor",
        "ALTER POLICY agd_tenant ON orders RENAME TO other",
        "ALTER TABLE orders RENAME tenant TO owner",
        "ALTER TABLE orders DROP COLUMN tenant CASCADE",
        "ALTER TABLE t RENAME id TO ident",
        "ALTER TABLE p RENAME COLUMN id TO ident",
        "ALTER TABLE t DROP COLUMN id",
        "ALTER TABLE t DROP CONSTRAINT t_pkey",
        "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (v)",
        "ALTER TABLE t ALTER id TYPE text",
        "ALTER TABLE t ALTER id TYPE bigint USING id + 1000",
        "ALTER TABLE t SET UNLOGGED",
        "CREATE RULE r AS ON DELETE TO t DO INSTEAD NOTHING",
        "CREATE TABLE heir () INHERITS (t)",
        "ALTER TABLE t INHERIT plain",
        "DROP TABLE t",
        "DROP TABLE IF EXISTS plain, t CASCADE",
        "DROP TABLE p",
        "DROP TABLE p1",
        "DROP TABLE p2a",
        "DROP TABLE p2 CASCADE",
        "DROP OWNED BY CURRENT_USER CASCADE",
        // In a function, in a block, and after a caught error.
        "DO $$ BEGIN ALTER TABLE t DISABLE TRIGGER USER; UPDATE t SET v = 'x'; ALTER TABLE t ENABLE ALWAYS TRIGGER \"~agd_record\"; END $$",
        "DO $$ BEGIN BEGIN EXECUTE 'ALTER TABLE nosuch ADD c int'; EXCEPTION WHEN undefined_table THEN NULL; END;
                     EXECUTE 'ALTER TABLE t DISABLE TRIGGER USER'; END $$",
        "BEGIN; SAVEPOINT a; ALTER TABLE t ADD c int; ROLLBACK TO a; ALTER TABLE t DISABLE TRIGGER USER",
    ] {
        s.refuses(false, sql, "AG002", "record");
    }
    // The policy depends on the column: PostgreSQL itself.
    s.refuses(false, "ALTER TABLE orders DROP COLUMN tenant", "2BP01", "");
    s.refuses(false, "DROP TABLE p1", "AG002", "ALTER TABLE public.p DETACH PARTITION public.p1");
    s.refuses(false, "DROP TABLE p2a", "AG002", "ALTER TABLE public.p2 DETACH PARTITION public.p2a");
    for sql in [
        "DROP SCHEMA public CASCADE",
        "DROP FUNCTION agd.record_write() CASCADE",
        "DROP EXTENSION agd CASCADE",
        "DROP EXTENSION agd",
        "ALTER TABLE t DISABLE TRIGGER ALL",
        "SET session_replication_role = replica; ALTER TABLE t DISABLE TRIGGER USER",
    ] {
        // A function of the extension is PostgreSQL's own to protect.
        s.refuses(true, sql, if sql.contains("DROP FUNCTION") { "2BP01" } else { "AG002" }, "");
    }
    s.g.run("RESET session_replication_role");
    anchor(&mut s.g);
    expect_verified(&mut s.g);
}

/// A table that becomes the partition of another one would be guarded under a root that is not registered.
#[test]
fn a_guarded_table_cannot_become_a_partition() {
    let mut s = Scene::new("below");
    s.owner.batch_execute("CREATE TABLE above (id int, v text, PRIMARY KEY (id)) PARTITION BY LIST (id)").unwrap();
    s.refuses(false, "ALTER TABLE above ATTACH PARTITION t DEFAULT", "AG002", "agd.unguard('public.t'");
}

/// With the event triggers gone, the hooks alone refuse and record.
#[test]
fn the_hooks_hold_without_the_event_triggers() {
    let mut s = Scene::new("lines");
    let off =
        "SET allow_system_table_mods = on; UPDATE pg_event_trigger SET evtenabled = 'D' WHERE evtname LIKE 'agd%'";
    s.g.run(off);
    s.owner = s.g.database().connect_as(&s.owner_name).unwrap();
    for sql in [
        "ALTER TABLE t DISABLE TRIGGER USER",
        "ALTER TABLE orders NO FORCE ROW LEVEL SECURITY",
        "ALTER POLICY agd_tenant ON orders USING (true)",
        "CREATE RULE r AS ON DELETE TO t DO INSTEAD NOTHING",
        "DROP TABLE t",
        "DROP TABLE p1",
    ] {
        s.refuses(false, sql, "AG002", "");
    }
    s.owner
        .batch_execute("ALTER TABLE t ADD c int; CREATE INDEX ON t (c); GRANT SELECT ON t TO PUBLIC; ALTER TABLE p DETACH PARTITION p1")
        .unwrap();
    assert_eq!(
        s.ddl(),
        [
            "public.t: ALTER TABLE public.t",
            "public.t: CREATE INDEX public.t",
            "public.t: GRANT public.t",
            "public.p: ALTER TABLE public.p"
        ]
    );
    assert_eq!(s.g.briefs("p").len(), 1, "the row that left with p1");
    let left: i64 = s.g.one("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'p1'::regclass");
    assert_eq!(left, 0);
}

#[test]
fn what_agd_is_made_of_is_changed_by_agd_alone() {
    let mut s = Scene::new("own");
    for sql in [
        "ALTER TABLE agd.event DISABLE TRIGGER refuse_write",
        "ALTER TABLE agd.event DISABLE TRIGGER ALL",
        "ALTER TABLE agd.transaction ENABLE TRIGGER refuse_write",
        "DROP TRIGGER refuse_write ON agd.event",
        "CREATE TRIGGER mine BEFORE INSERT ON agd.log FOR EACH ROW EXECUTE FUNCTION f()",
        "CREATE RULE r AS ON UPDATE TO agd.log DO INSTEAD NOTHING",
        "ALTER TABLE agd.event ADD COLUMN c int",
        "ALTER TABLE agd.event DROP COLUMN salt",
        "ALTER TABLE agd.event RENAME COLUMN salt TO pepper",
        "ALTER TABLE agd.event RENAME TO other",
        "ALTER TABLE agd.event SET SCHEMA public",
        "ALTER TABLE agd.event SET UNLOGGED",
        "ALTER TABLE agd.event DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE agd.event NO FORCE ROW LEVEL SECURITY",
        "ALTER TABLE agd.guarded_table DROP CONSTRAINT guarded_table_relation_key",
        "CREATE UNIQUE INDEX ON agd.event (at)",
        "CREATE INDEX CONCURRENTLY ON agd.event (at)",
        "DROP INDEX agd.tile_of_one",
        "DROP INDEX CONCURRENTLY agd.tile_of_one",
        "CREATE TABLE heir () INHERITS (agd.event)",
        "CREATE TABLE agd.mine (i int)",
        "ALTER TABLE agd.event OWNER TO pg_monitor",
        "ALTER FUNCTION agd.record_write() OWNER TO pg_monitor",
        "ALTER FUNCTION agd.record_write() RENAME TO other",
        "ALTER FUNCTION agd.guard_problems(regclass) SECURITY INVOKER",
        "CREATE OR REPLACE FUNCTION agd.record_write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$",
        "CREATE OR REPLACE VIEW agd.anchors AS SELECT * FROM agd.anchors",
        "ALTER SCHEMA agd RENAME TO other",
        "ALTER SCHEMA agd OWNER TO pg_monitor",
        "ALTER EVENT TRIGGER agd_sql_drop DISABLE",
        "ALTER EVENT TRIGGER agd_ddl_command_end ENABLE",
        "ALTER EVENT TRIGGER agd_ddl_command_end RENAME TO other",
        "ALTER EXTENSION agd DROP EVENT TRIGGER agd_sql_drop",
        "ALTER EXTENSION agd DROP TABLE agd.event",
    ] {
        s.refuses(true, sql, "AG002", "DROP EXTENSION agd");
    }
    // What an administrator may do with any table.
    s.g.run("ALTER TABLE agd.event SET (autovacuum_enabled = off); ALTER TABLE agd.event RESET (autovacuum_enabled)");
    s.g.run("REINDEX TABLE agd.event; ANALYZE agd.event; COMMENT ON TABLE agd.event IS 'the record'");
    s.g.run("VACUUM FULL agd.event");
    s.g.run("REINDEX TABLE CONCURRENTLY agd.event");
    s.g.run("CREATE TABLE notes (tenant text REFERENCES agd.tenant); DROP TABLE notes");
    s.g.run(
        "CREATE FUNCTION ev() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN END $$;
         CREATE EVENT TRIGGER mine ON ddl_command_end EXECUTE FUNCTION ev(); ALTER EVENT TRIGGER mine DISABLE; DROP EVENT TRIGGER mine",
    );
    s.expect_guarded();
}

/// What only removes problems passes: pg_restore makes the triggers one by one on a table that is registered already.
#[test]
fn a_statement_that_mends_a_guard_passes() {
    let mut s = Scene::new("mends");
    s.g.run(
        "SET allow_system_table_mods = on;
         UPDATE pg_trigger SET tgenabled = 'D' WHERE tgrelid = 't'::regclass AND tgname IN ('~agd_record', '~agd_confirm');
         UPDATE pg_class SET relforcerowsecurity = false WHERE oid = 'orders'::regclass",
    );
    let mut owner = s.g.database().connect_as(&s.owner_name).unwrap();
    // One that leaves the problem as it is, one that mends the half of it, one that adds another.
    let error = expect_sqlstate(owner.batch_execute("ALTER TABLE t ADD c int"), "AG002");
    assert!(error.message().contains("its guard is not intact: trigger \"~agd_confirm\""), "{}", error.message());
    expect_hint(&error, "SELECT agd.unguard('public.t', 'why')");
    owner.batch_execute("ALTER TABLE t ENABLE ALWAYS TRIGGER \"~agd_confirm\"").unwrap();
    // What defines nothing goes on.
    owner.batch_execute("VACUUM FULL t").unwrap();
    expect_sqlstate(owner.batch_execute("ALTER TABLE t DISABLE TRIGGER \"~agd_truncate\""), "AG002");
    owner
        .batch_execute(
            "ALTER TABLE t ENABLE ALWAYS TRIGGER \"~agd_record\"; ALTER TABLE orders FORCE ROW LEVEL SECURITY",
        )
        .unwrap();
    s.expect_guarded();
}

/// A session whose snapshot is older than the guard must not get past it.
#[test]
fn an_old_snapshot_does_not_hide_a_guard() {
    let mut s = Scene::new("oldsnap");
    s.owner
        .batch_execute(
            "CREATE TABLE q (k int PRIMARY KEY) PARTITION BY LIST (k); CREATE TABLE q1 (k int PRIMARY KEY); INSERT INTO q1 VALUES (1)",
        )
        .unwrap();
    s.owner.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t").unwrap();
    s.g.run("SELECT agd.guard('plain'), agd.guard('q')");
    expect_sqlstate(s.owner.batch_execute("ALTER TABLE plain DISABLE TRIGGER USER"), "AG002");
    s.owner.batch_execute("ROLLBACK").unwrap();
    s.owner.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t").unwrap();
    s.g.run("SELECT agd.unguard('q', 'again'), agd.guard('q')");
    s.owner.batch_execute("ALTER TABLE q ATTACH PARTITION q1 FOR VALUES IN (1); COMMIT").unwrap();
    assert_eq!(s.g.briefs("q"), ["BASELINE 1"]);
    // Nor may it guard what cannot be guarded any more.
    s.g.run("CREATE TABLE ruled (id int PRIMARY KEY)");
    let mut old = s.g.database().connect().unwrap();
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t").unwrap();
    s.g.run("CREATE RULE r AS ON DELETE TO ruled DO INSTEAD NOTHING");
    let error = expect_sqlstate(old.batch_execute("SELECT agd.guard('ruled')"), "55000");
    assert!(error.message().contains("rule"), "{}", error.message());
    old.batch_execute("ROLLBACK").unwrap();
    s.expect_guarded();
}

/// Partitions made in other ways than by CREATE TABLE and ALTER TABLE alone.
#[test]
fn a_partition_within_another_statement_is_guarded() {
    let mut s = Scene::new("within");
    s.g.run(
        "CREATE SCHEMA parts CREATE TABLE p7 PARTITION OF public.p FOR VALUES IN (7) CREATE TABLE other (id int);
         DO $$ BEGIN EXECUTE 'CREATE TABLE p8 PARTITION OF p FOR VALUES IN (8)'; INSERT INTO p VALUES (8, 1, 'x'); END $$;
         INSERT INTO parts.p7 VALUES (7, 1, 'y')",
    );
    assert_eq!(s.g.tally("p"), (2, 0, 0));
    assert_eq!(s.ddl(), ["public.p: CREATE TABLE parts.p7", "public.p: CREATE TABLE public.p8"]);
    expect_sqlstate(s.g.batch_execute("TRUNCATE parts.p7"), "AG002");
    // A table that brings along what no guarded one may have.
    s.owner
        .batch_execute("CREATE TABLE bad (LIKE p INCLUDING ALL); CREATE RULE r AS ON DELETE TO bad DO INSTEAD NOTHING")
        .unwrap();
    expect_sqlstate(s.owner.batch_execute("ALTER TABLE p ATTACH PARTITION bad FOR VALUES IN (9)"), "AG002");
    let attached: bool = s.g.one("SELECT relispartition FROM pg_class WHERE relname = 'bad'");
    assert!(!attached);
    s.g.run("DELETE FROM p WHERE k IN (7, 8)");
    s.g.news("p");
    s.expect_guarded();
}

#[test]
fn permitted_ddl_is_recorded() {
    let mut s = Scene::new("recorded");
    let role = s.owner_name.clone();
    let database = s.g.database().name().to_owned();
    s.g.run(&format!("GRANT CREATE ON DATABASE {database} TO {role}"));
    let cases = [
        ("ALTER TABLE t ADD c int DEFAULT 7", "t: ALTER TABLE public.t"),
        ("ALTER TABLE t RENAME c TO d", "t: ALTER TABLE public.t.d"),
        ("ALTER TABLE t DROP COLUMN d", "t: ALTER TABLE public.t"),
        ("CREATE INDEX t_v ON t (v)", "t: CREATE INDEX public.t_v"),
        ("DROP INDEX t_v", "t: DROP INDEX public.t_v"),
        ("CREATE INDEX CONCURRENTLY t_w ON t (v)", "t: CREATE INDEX public.t_w"),
        ("ALTER TABLE t ADD CONSTRAINT short CHECK (length(v) < 100)", "t: ALTER TABLE public.t"),
        (
            "CREATE TRIGGER mine BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION f()",
            "t: CREATE TRIGGER mine on public.t",
        ),
        ("DROP TRIGGER mine ON t", "t: DROP TRIGGER mine on public.t"),
        ("CREATE POLICY more ON orders USING (true)", "orders: CREATE POLICY more on public.orders"),
        ("DROP POLICY agd_base ON orders", "orders: DROP POLICY agd_base on public.orders"),
        ("COMMENT ON COLUMN t.v IS 'four'", "t: COMMENT public.t.v"),
        ("GRANT SELECT ON t, plain TO PUBLIC", "t: GRANT public.t"),
        ("REVOKE ALL ON t FROM PUBLIC", "t: REVOKE public.t"),
        ("ALTER TABLE t ALTER v SET STORAGE EXTERNAL", "t: ALTER TABLE public.t"),
        ("ALTER TABLE t SET (fillfactor = 70)", "t: ALTER TABLE public.t"),
        ("ALTER TABLE p1 ALTER v SET DEFAULT 'x'", "p: ALTER TABLE public.p1"),
        ("CREATE TABLE p3 PARTITION OF p FOR VALUES IN (3)", "p: CREATE TABLE public.p3"),
        ("ALTER TABLE t RENAME TO tt", "tt: ALTER TABLE public.tt"),
        ("ALTER TABLE tt RENAME TO t", "t: ALTER TABLE public.t"),
        ("DO $$ BEGIN ALTER TABLE t ADD e int; END $$", "t: ALTER TABLE public.t"),
        ("CREATE STATISTICS stat ON v, e FROM t", "t: CREATE STATISTICS public.stat"),
        ("ALTER STATISTICS stat SET STATISTICS 50", "t: ALTER STATISTICS public.stat"),
        ("DROP STATISTICS stat", "t: DROP STATISTICS public.stat"),
        ("CREATE PUBLICATION feed FOR TABLE plain, t", "t: CREATE PUBLICATION public.t"),
        ("ALTER PUBLICATION feed DROP TABLE t", "t: ALTER PUBLICATION public.t in publication feed"),
        ("ALTER PUBLICATION feed ADD TABLE ONLY p", "p: ALTER PUBLICATION public.p in publication feed"),
        ("DROP PUBLICATION feed", "p: DROP PUBLICATION public.p"),
    ];
    let mut seen = s.ddl().len();
    assert_eq!(seen, 0, "{:?}", s.ddl());
    for (sql, expected) in cases {
        s.owner.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let all = s.ddl();
        assert_eq!(all[seen..], [format!("public.{expected}")], "after: {sql}");
        seen = all.len();
        let statement: Option<String> = s.g.one(
            "SELECT new->>'statement' FROM agd.events WHERE action = 'DDL' ORDER BY committed_at DESC, split_part(event_id, '-', 2)::int DESC LIMIT 1",
        );
        let statement = statement.unwrap();
        assert!(sql.contains(&statement), "{statement}");
    }
    // The record itself may be published: nothing of it changes.
    s.g.run(
        "CREATE PUBLICATION own FOR TABLE agd.event; ALTER PUBLICATION own ADD TABLE agd.tile; DROP PUBLICATION own",
    );
    assert_eq!(s.ddl().len(), seen);
    // Who did it stands with it, and other tables leave nothing.
    let who: Vec<String> = s.g.column("SELECT DISTINCT session_user_name FROM agd.events WHERE action = 'DDL'");
    assert_eq!(who, [role]);
    s.owner
        .batch_execute(
            "ALTER TABLE plain ADD c int; CREATE TABLE refers (id int REFERENCES t); DROP TABLE refers; CREATE TEMP TABLE tt (LIKE t);
             VACUUM FULL t",
        )
        .unwrap_err();
    s.owner
        .batch_execute("ALTER TABLE plain ADD c int; CREATE TABLE refers (id int REFERENCES t); DROP TABLE refers; CREATE TEMP TABLE tt (LIKE t)")
        .unwrap();
    s.owner.batch_execute("VACUUM FULL t").unwrap();
    assert_eq!(s.ddl().len(), seen);
    // A statement of any length, as far as it is kept; what it says is in the log as a digest alone.
    let long = format!("COMMENT ON TABLE t IS '{}'", "é".repeat(50_000));
    s.owner.batch_execute(&long).unwrap();
    let kept: i32 = s.g.one("SELECT octet_length(new->>'statement') FROM agd.events WHERE new ? 'length'");
    assert!((65_000..=65_536).contains(&kept), "{kept}");
    s.g.news("t");
    s.g.news("p");
    s.expect_guarded();
    anchor(&mut s.g);
    expect_verified(&mut s.g);
}

#[test]
fn a_detached_partition_takes_its_rows_out_on_the_record() {
    let mut s = Scene::new("detach");
    s.owner.batch_execute("INSERT INTO p VALUES (1, 5, 'c'), (2, 6, 'd')").unwrap();
    s.g.news("p");
    let error = expect_sqlstate(s.owner.batch_execute("ALTER TABLE p DETACH PARTITION p1 CONCURRENTLY"), "0A000");
    expect_hint(&error, "without CONCURRENTLY");
    let stranger = format!("{}_stranger", s.g.database().name());
    cluster().create_role(&stranger, "").unwrap();
    let mut stranger = s.g.database().connect_as(&stranger).unwrap();
    expect_sqlstate(stranger.batch_execute("ALTER TABLE p DETACH PARTITION p1"), "42501");
    s.owner.batch_execute("BEGIN; ALTER TABLE p DETACH PARTITION p1; ROLLBACK").unwrap();
    assert_eq!(s.g.briefs("p"), [""; 0]);

    s.owner.batch_execute("ALTER TABLE p DETACH PARTITION p1").unwrap();
    let gone = s.g.news("p");
    assert!(gone.len() == 2 && gone.iter().all(|event| event.action == "DELETE" && event.new.is_none()), "{gone:?}");
    assert_eq!(gone[1].old.as_deref(), Some(r#"{"k": 1, "v": "c", "id": 5}"#));
    let bodies: Vec<String> = s.g.column("SELECT DISTINCT body FROM agd.events WHERE action = 'DELETE'");
    assert_eq!(bodies, ["partition public.p1 detached"]);
    reconcile(&mut s.g, "p", &["k", "id"]);

    // With everything below it; the rest of the tree goes on.
    s.owner
        .batch_execute("ALTER TABLE p DETACH PARTITION p2; CREATE TABLE p4 PARTITION OF p FOR VALUES IN (4)")
        .unwrap();
    assert_eq!(s.g.tally("p"), (0, 0, 2));
    s.owner.batch_execute("INSERT INTO p VALUES (4, 1, 'new')").unwrap();
    assert_eq!(s.g.tally("p"), (1, 0, 0));
    let bound: Vec<String> = s.g.column(
        "SELECT format('%s %s', tgrelid::regclass, tgname) FROM pg_trigger WHERE tgrelid IN ('p1'::regclass, 'p2'::regclass, 'p2a'::regclass)",
    );
    assert_eq!(bound, [""; 0], "what was detached is a plain table");
    s.owner.batch_execute("TRUNCATE p1; INSERT INTO p2 VALUES (2, 9, 'free'); DROP TABLE p2; DROP TABLE p1").unwrap();
    assert_eq!(s.g.briefs("p"), [""; 0]);
    // And back again.
    s.owner
        .batch_execute(
            "CREATE TABLE back (LIKE p INCLUDING ALL); INSERT INTO back VALUES (1, 5, 'c'); ALTER TABLE p ATTACH PARTITION back FOR VALUES IN (1)",
        )
        .unwrap();
    assert_eq!(s.g.news("p").iter().map(|event| event.action.as_str()).collect::<Vec<_>>(), ["BASELINE"]);
    reconcile(&mut s.g, "p", &["k", "id"]);
    anchor(&mut s.g);
    expect_verified(&mut s.g);
}

#[test]
fn a_partition_of_tenants_is_detached_by_who_may_write_them() {
    let mut s = Scene::new("detachwall");
    s.owner
        .batch_execute(
            "CREATE TABLE w (tenant text, id int, PRIMARY KEY (tenant, id)) PARTITION BY LIST (tenant);
             CREATE TABLE w1 PARTITION OF w FOR VALUES IN ('acme')",
        )
        .unwrap();
    s.g.run("SELECT agd.guard('w', tenant_column => 'tenant', require_cause => true)");
    s.g.run(&format!("GRANT INSERT ON w TO {}", s.tenant_name));
    s.tenant.batch_execute("BEGIN; SELECT agd.set_cause('first'); INSERT INTO w VALUES ('acme', 1); COMMIT").unwrap();
    s.g.news("w");
    expect_sqlstate(s.owner.batch_execute("ALTER TABLE w DETACH PARTITION w1"), "AG005");
    s.owner.batch_execute("BEGIN; SELECT agd.set_cause('moved'); ALTER TABLE w DETACH PARTITION w1; COMMIT").unwrap();
    let gone = s.g.news("w");
    assert!(gone.len() == 1 && gone[0].action == "DELETE" && gone[0].tenant.as_deref() == Some("acme"), "{gone:?}");
    let policies: i64 = s.g.one("SELECT count(*) FROM pg_policy WHERE polrelid = 'w1'::regclass");
    let closed: bool = s.g.one("SELECT relrowsecurity FROM pg_class WHERE oid = 'w1'::regclass");
    assert_eq!((policies, closed), (0, true), "access stays closed until somebody decides");
}

/// A trigger taken off a partition by somebody who goes past DDL: no later partition may paint over it.
#[test]
fn a_lost_trigger_is_not_silently_made_again() {
    let mut s = Scene::new("lost");
    s.g.run(
        "SET allow_system_table_mods = on; ALTER TABLE p1 ADD CHECK (id < 1000);
         DELETE FROM pg_depend WHERE classid = 'pg_trigger'::regclass AND objid IN
           (SELECT oid FROM pg_trigger WHERE tgrelid = 'p1'::regclass AND tgname = '~agd_truncate');
         DELETE FROM pg_trigger WHERE tgrelid = 'p1'::regclass AND tgname = '~agd_truncate'",
    );
    let error = expect_sqlstate(s.owner.batch_execute("CREATE TABLE p3 PARTITION OF p FOR VALUES IN (3)"), "AG002");
    expect_hint(&error, "agd.coverage()");
    assert_eq!(s.g.briefs("p"), [""; 0], "no baseline was recorded again");
    let open: Vec<String> = s.g.column("SELECT relation::text FROM agd.coverage() WHERE guarded AND NOT intact");
    assert_eq!(open, ["p1"]);
}

#[test]
fn a_rewrite_that_can_change_values_is_recorded_row_by_row() {
    let mut s = Scene::new("rewrite");
    s.owner
        .batch_execute("ALTER TABLE t ALTER v TYPE varchar USING 'forged ' || v; ALTER TABLE t ADD made timestamptz DEFAULT clock_timestamp()")
        .unwrap();
    let again = s.g.news("t");
    assert!(again.len() == 4 && again.iter().all(|event| event.action == "BASELINE"), "{again:?}");
    assert_eq!(again[0].new.as_deref(), Some(r#"{"v": "forged a", "id": 1}"#));
    assert!(again[3].new.as_deref().unwrap().contains("made"));
    // On all partitions, and of tenants each in its own log.
    s.owner
        .batch_execute("ALTER TABLE p ALTER v TYPE jsonb USING to_jsonb(v); ALTER TABLE orders ALTER id TYPE bigint")
        .unwrap();
    assert_eq!(s.g.news("p").len(), 2);
    let orders = s.g.news("orders");
    assert!(orders.len() == 2 && orders.iter().all(|event| event.tenant.as_deref() == Some("acme")), "{orders:?}");
    // No value changes: nothing is recorded again.
    s.owner
        .batch_execute("ALTER TABLE t ALTER v TYPE text; ALTER TABLE t ADD c int; ALTER TABLE t SET (fillfactor = 80)")
        .unwrap();
    s.owner.batch_execute("VACUUM FULL t").unwrap();
    s.owner.batch_execute("CLUSTER t USING t_pkey").unwrap();
    s.owner.batch_execute("REINDEX TABLE t").unwrap();
    assert_eq!(s.g.briefs("t"), [""; 0]);
    for table in ["t", "p", "orders"] {
        assert_eq!(
            s.g.column::<String>(&format!("SELECT problem FROM agd.verify_table('{table}')")),
            [""; 0],
            "{table}"
        );
    }
    s.expect_guarded();
    anchor(&mut s.g);
    expect_verified(&mut s.g);
}

/// Whatever is done to the table, its next write is recorded under its present name.
#[test]
fn a_guard_goes_with_its_table() {
    let mut s = Scene::new("moves");
    let other = format!("{}_other", s.g.database().name());
    cluster().create_role(&other, "").unwrap();
    s.g.run(&format!("CREATE SCHEMA elsewhere AUTHORIZATION {}; GRANT {other} TO {}", s.owner_name, s.owner_name));
    s.g.run(&format!("GRANT CREATE ON SCHEMA public, elsewhere TO {other}"));
    s.g.run(&format!("GRANT CREATE ON DATABASE \"{}\" TO {}", s.g.database().name(), s.owner_name));
    let mut name = "public.t";
    for (sql, now) in [
        ("ALTER TABLE t RENAME TO \"T t\"", "public.\"T t\""),
        ("ALTER TABLE \"T t\" SET SCHEMA elsewhere", "elsewhere.\"T t\""),
        ("ALTER TABLE elsewhere.\"T t\" RENAME TO u", "elsewhere.u"),
        ("ALTER SCHEMA elsewhere RENAME TO there", "there.u"),
        ("ALTER TABLE there.u SET (fillfactor = 60)", "there.u"),
        ("VACUUM FULL there.u", "there.u"),
        ("CLUSTER there.u USING t_pkey", "there.u"),
        ("REINDEX TABLE there.u", "there.u"),
        ("REINDEX TABLE CONCURRENTLY there.u", "there.u"),
        ("ALTER TABLE there.u SET TABLESPACE pg_default", "there.u"),
        ("ALTER TABLE there.u CLUSTER ON t_pkey", "there.u"),
        ("ALTER TABLE there.u REPLICA IDENTITY FULL", "there.u"),
        ("CREATE TABLE copied AS SELECT * FROM there.u", "there.u"),
        ("CREATE TABLE liked (LIKE there.u INCLUDING ALL)", "there.u"),
        ("GRANT ALL ON there.u TO PUBLIC", "there.u"),
    ] {
        s.owner.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        name = now;
        s.owner.batch_execute(&format!("UPDATE {now} SET v = v WHERE id = 1")).unwrap();
        assert_eq!(s.g.briefs(now), ["UPDATE 1"], "after {sql}");
        let recorded: String =
            s.g.one("SELECT relation FROM agd.events WHERE action = 'UPDATE' ORDER BY committed_at DESC LIMIT 1");
        assert_eq!(recorded, now);
        reconcile(&mut s.g, now, &["id"]);
    }
    s.owner.batch_execute(&format!("ALTER TABLE {name} OWNER TO {other}")).unwrap();
    let mut new_owner = s.g.database().connect_as(&other).unwrap();
    s.g.run(&format!("GRANT USAGE ON SCHEMA there TO {other}"));
    new_owner.batch_execute(&format!("UPDATE {name} SET v = v WHERE id = 1")).unwrap();
    assert_eq!(s.g.briefs(name), ["UPDATE 1"]);
    expect_sqlstate(new_owner.batch_execute(&format!("ALTER TABLE {name} DISABLE TRIGGER USER")), "AG002");
    // The copies are plain tables.
    s.owner.batch_execute("DELETE FROM copied; DELETE FROM liked; DROP TABLE copied, liked").unwrap();
    let open: Vec<String> = s.g.column("SELECT relation::text FROM agd.coverage() WHERE guarded AND NOT intact");
    assert_eq!(open, [""; 0]);
}

/// DDL on a table that nobody guards must not wait for one that somebody does.
#[test]
fn ddl_elsewhere_waits_for_no_guarded_table() {
    let mut s = Scene::new("ddlwaits");
    let mut other = s.g.database().connect().unwrap();
    let mut holding = other.transaction().unwrap();
    holding.batch_execute("LOCK TABLE t, orders, p, p1, p2, p2a IN ACCESS EXCLUSIVE MODE").unwrap();
    s.owner
        .batch_execute(
            "SET lock_timeout = '2s'; ALTER TABLE plain ADD c int; CREATE INDEX ON plain (c); CREATE TABLE fresh (id int PRIMARY KEY);
             CREATE TABLE kid () INHERITS (fresh); DROP TABLE fresh CASCADE; GRANT SELECT ON plain TO PUBLIC",
        )
        .unwrap();
    // Nor on one partition for another.
    holding.rollback().unwrap();
    let mut holding = other.transaction().unwrap();
    holding.batch_execute("LOCK TABLE p2a IN ACCESS EXCLUSIVE MODE").unwrap();
    s.owner.batch_execute("ALTER TABLE p1 SET (fillfactor = 70)").unwrap();
    holding.rollback().unwrap();
    s.expect_guarded();
}

/// On 17 a superuser can switch event triggers off.
#[test]
fn event_triggers_off_changes_nothing() {
    let mut s = Scene::new("evoff");
    if s.g.version() < 170_000 {
        // Not a setting there; replication's role is, and must not switch agd's off.
        s.g.run("SET session_replication_role = replica; ALTER TABLE t ADD c int; RESET session_replication_role");
    } else {
        s.g.run("SET event_triggers = off; ALTER TABLE t ADD c int");
        s.refuses(true, "ALTER TABLE t DISABLE TRIGGER USER", "AG002", "agd.unguard");
    }
    assert_eq!(s.ddl(), ["public.t: ALTER TABLE public.t"]);
}

/// A type that changes under a table changes what its rows say, without a write.
#[test]
fn a_type_of_a_guarded_column_keeps_its_meaning() {
    let mut s = Scene::new("types");
    s.owner
        .batch_execute(
            "CREATE TYPE mood AS ENUM ('open', 'paid'); CREATE TYPE pair AS (a int, b mood); CREATE DOMAIN moods AS mood[];
             CREATE TYPE free AS ENUM ('x'); CREATE TABLE shape (a int, b text);
             CREATE TABLE typed (id int PRIMARY KEY, p pair, m moods, s shape[]);
             INSERT INTO typed VALUES (1, (1, 'open'), '{open}', ARRAY[ROW(1, 'x')::shape])",
        )
        .unwrap();
    s.g.run("SELECT agd.guard('typed')");
    for sql in [
        "ALTER TYPE mood RENAME VALUE 'open' TO 'closed'",
        "ALTER TYPE pair RENAME ATTRIBUTE a TO c CASCADE",
        "ALTER TYPE pair ADD ATTRIBUTE c int CASCADE",
        "ALTER TYPE pair DROP ATTRIBUTE a CASCADE",
        "ALTER TABLE shape RENAME a TO c",
        "ALTER TABLE shape DROP COLUMN a",
        "ALTER TABLE shape ADD COLUMN c int",
    ] {
        s.refuses(false, sql, "AG002", "agd.unguard('public.typed'");
    }
    s.owner
        .batch_execute(
            "ALTER TYPE mood ADD VALUE 'late'; ALTER TYPE free RENAME VALUE 'x' TO 'y'; ALTER TYPE mood RENAME TO temper; DROP TYPE free;
             ALTER TABLE plain RENAME v TO w; ALTER TABLE plain ADD v text",
        )
        .unwrap();
    assert_eq!(s.g.column::<String>("SELECT problem FROM agd.verify_table('typed')"), [""; 0]);
}
