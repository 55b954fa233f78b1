//! DDL as an attack, by the roles that may do DDL: the tables' owner, the database's owner, a tenant with tables of its own,
//! a stranger. Rows and values that come in without a write, policies that change unseen, functions that a statement runs over
//! everybody's rows.

use agd_live_tests::record::{anchor, expect_verified, failed_checks};
use agd_live_tests::{Cluster, Watch, expect_hint, expect_sqlstate};
use postgres::Client;
use std::sync::OnceLock;

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::builder().start().unwrap())
}

/// `t` and the partitioned `p` are guarded, `orders` behind the wall too; all are `{owner}`'s. `{acme}` and `{globex}` are
/// tenants, `{dbo}` owns the database, `{stranger}` may connect. None is a superuser.
struct Scene {
    g: Watch,
    owner: Client,
    acme: Client,
}

impl Scene {
    fn new(stem: &str) -> Self {
        let g = Watch::new(cluster(), stem, "SELECT agd.create_tenant('acme'); SELECT agd.create_tenant('globex')")
            .unwrap();
        let name = g.database().name().to_owned();
        for (role, options) in [
            ("owner", ""),
            ("dbo", ""),
            ("stranger", ""),
            ("acme", "IN ROLE agd_tenant"),
            ("globex", "IN ROLE agd_tenant"),
        ] {
            cluster().create_role(&format!("{name}_{role}"), options).unwrap();
        }
        let owner = g.database().connect_as(&format!("{name}_owner")).unwrap();
        let acme = g.database().connect_as(&format!("{name}_acme")).unwrap();
        let mut scene = Self { g, owner, acme };
        scene.superuser(&format!(
            "ALTER DATABASE \"{name}\" OWNER TO {{dbo}}; GRANT CREATE ON SCHEMA public TO {{owner}}, {{acme}}, {{globex}}, {{dbo}};
             SELECT agd.map_role('{name}_acme', 'acme'), agd.map_role('{name}_globex', 'globex')"
        ));
        scene
            .owner
            .batch_execute(
                "CREATE TABLE t (id int PRIMARY KEY, balance int);
                 CREATE TABLE p (k int, id int, v text, PRIMARY KEY (k, id)) PARTITION BY LIST (k);
                 CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
                 CREATE TABLE orders (tenant text, id int, v text, PRIMARY KEY (tenant, id));
                 CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$",
            )
            .unwrap();
        scene.superuser(
            "SELECT agd.guard('t'), agd.guard('p'), agd.guard('orders', tenant_column => 'tenant');
             GRANT ALL ON orders TO {acme}, {globex};
             INSERT INTO t VALUES (1, 10), (2, 20), (3, 30); INSERT INTO p VALUES (1, 1, 'a');
             INSERT INTO orders VALUES ('acme', 1, 'of acme'), ('globex', 1, 'of globex')",
        );
        for table in ["t", "p", "orders"] {
            scene.g.news(table);
        }
        scene
    }

    /// `{role}` stands for the name of a role of this scene.
    fn sql(&self, text: &str) -> String {
        let name = self.g.database().name();
        ["owner", "dbo", "stranger", "acme", "globex"]
            .iter()
            .fold(text.to_owned(), |text, role| text.replace(&format!("{{{role}}}"), &format!("{name}_{role}")))
    }

    #[track_caller]
    fn superuser(&mut self, text: &str) {
        let sql = self.sql(text);
        self.g.run(&sql);
    }

    fn login(&self, role: &str) -> Client {
        self.g.database().connect_as(&self.sql(&format!("{{{role}}}"))).unwrap()
    }

    #[track_caller]
    fn owner(&mut self, text: &str) {
        let sql = self.sql(text);
        if let Err(error) = self.owner.batch_execute(&sql) {
            panic!("{sql}: {error:?}");
        }
    }

    /// The owner is refused, with this state and a hint that has these words.
    #[track_caller]
    fn owner_is_refused(&mut self, text: &str, state: &str, hint: &str) -> String {
        let sql = self.sql(text);
        let outcome = self.owner.batch_execute(&sql);
        assert!(outcome.is_err(), "{sql} is allowed");
        let error = expect_sqlstate(outcome, state);
        expect_hint(&error, hint);
        self.owner.batch_execute("ROLLBACK").unwrap();
        error.message().to_owned()
    }

    #[track_caller]
    fn expect_intact(&mut self) {
        let open: Vec<String> =
            self.g.column("SELECT format('%s: %s', relation, detail) FROM agd.coverage() WHERE guarded AND NOT intact");
        assert_eq!(open, [""; 0]);
    }
}

// ------------------------------------------------------------------------------------------------------ rows come in

#[test]
fn an_attached_table_is_recorded_whatever_it_brings_along() {
    let mut s = Scene::new("brings");
    let id: String = s.g.one(
        "SELECT encode(tgargs, 'escape') FROM pg_trigger WHERE tgrelid = 'p'::regclass AND tgname = '~agd_record'",
    );
    let id = id.trim_end_matches("\\000").to_owned();
    // What it brings along, on which table, and how it is dropped.
    for (number, (brings, dropped)) in [
        (
            "CREATE TRIGGER \"~agd_truncate\" BEFORE TRUNCATE ON x EXECUTE FUNCTION agd.refuse_truncate('{id}');
          ALTER TABLE x ENABLE ALWAYS TRIGGER \"~agd_truncate\"",
            "DROP TRIGGER \"~agd_truncate\" ON public.x",
        ),
        (
            "CREATE TRIGGER \"~agd_truncate\" AFTER TRUNCATE ON x EXECUTE FUNCTION f()",
            "DROP TRIGGER \"~agd_truncate\" ON public.x",
        ),
        (
            "CREATE TRIGGER \"~agd_other\" BEFORE TRUNCATE ON x EXECUTE FUNCTION f()",
            "DROP TRIGGER \"~agd_other\" ON public.x",
        ),
        (
            "CREATE TRIGGER mine BEFORE TRUNCATE ON x EXECUTE FUNCTION agd.refuse_truncate('{id}')",
            "DROP TRIGGER mine ON public.x",
        ),
        (
            "CREATE TRIGGER mine AFTER INSERT ON x FOR EACH ROW EXECUTE FUNCTION agd.confirm_write('{id}')",
            "DROP TRIGGER mine ON public.x",
        ),
        ("CREATE POLICY agd_tenant ON x USING (true)", "DROP POLICY agd_tenant ON public.x"),
        ("CREATE POLICY agd_base ON x USING (true)", "DROP POLICY agd_base ON public.x"),
    ]
    .into_iter()
    .enumerate()
    {
        let k = number + 10;
        s.owner(&format!(
            "CREATE TABLE x (LIKE p INCLUDING ALL); INSERT INTO x VALUES ({k}, 1, 'brought'), ({k}, 2, 'along')"
        ));
        let brings = brings.replace("{id}", &id);
        match brings.split_once("agd.") {
            // A trigger on a function of agd's is refused where it is made. One may stand from before that was so.
            Some((_, call)) => {
                s.owner_is_refused(&brings, "AG002", "DROP TRIGGER");
                let (function, argument) = call.split_once('(').unwrap();
                let call = format!("agd.{function}({}", argument.split_inclusive(')').next().unwrap());
                s.owner(&brings.replace(&call, "f()"));
                s.g.run(&format!(
                    "SET allow_system_table_mods = on;
                     UPDATE pg_trigger x SET tgfoid = 'agd.{function}()'::regprocedure, tgnargs = 1, tgargs = own.tgargs
                       FROM pg_trigger own
                      WHERE x.tgrelid = 'x'::regclass AND own.tgrelid = 'p'::regclass AND own.tgname = '~agd_truncate'"
                ));
            }
            None => s.owner(&brings),
        }
        let attach = format!("ALTER TABLE p ATTACH PARTITION x FOR VALUES IN ({k})");
        let message = s.owner_is_refused(&attach, "AG002", dropped);
        assert!(message.starts_with("public.x cannot become a partition of the guarded table public.p"), "{message}");
        s.owner_is_refused(&format!("DO $$ BEGIN EXECUTE '{attach}'; END $$"), "AG002", dropped);
        assert_eq!(s.g.briefs("p"), [""; 0], "{brings}");
        // The hint works as it stands.
        s.owner(&format!("{dropped}; {attach}; ALTER TABLE x RENAME TO x{k}"));
        assert_eq!(s.g.news("p").iter().filter(|event| event.action == "BASELINE").count(), 2, "{brings}");
    }
    // Those that PostgreSQL clones cannot be there beforehand at all.
    s.owner(
        "CREATE TABLE x (LIKE p INCLUDING ALL);
         CREATE TRIGGER \"~agd_record\" BEFORE INSERT OR UPDATE OR DELETE ON x FOR EACH ROW EXECUTE FUNCTION f()",
    );
    expect_sqlstate(s.owner.batch_execute("ALTER TABLE p ATTACH PARTITION x FOR VALUES IN (30)"), "42710");
    s.owner("DROP TABLE x");
    // Further down, and where a whole tree comes.
    s.owner(
        "CREATE TABLE x (LIKE p INCLUDING ALL) PARTITION BY RANGE (id); CREATE TABLE x1 PARTITION OF x FOR VALUES FROM (0) TO (10);
         INSERT INTO x VALUES (30, 1, 'deep'); CREATE TRIGGER \"~agd_truncate\" BEFORE TRUNCATE ON x1 EXECUTE FUNCTION f()",
    );
    s.owner_is_refused("ALTER TABLE p ATTACH PARTITION x FOR VALUES IN (30)", "AG002", "ON public.x1");
    s.owner("DROP TRIGGER \"~agd_truncate\" ON x1; ALTER TABLE p ATTACH PARTITION x FOR VALUES IN (30)");
    assert_eq!(s.g.news("p").iter().map(|event| event.action.as_str()).collect::<Vec<_>>(), ["BASELINE"]);
    s.expect_intact();
    assert_eq!(s.g.column::<String>("SELECT problem FROM agd.verify_table('p')"), [""; 0]);
}

#[test]
fn what_was_attached_once_is_new_when_it_comes_again() {
    let mut s = Scene::new("again");
    s.owner("CREATE TABLE x (LIKE p INCLUDING ALL); INSERT INTO x VALUES (5, 1, 'first')");
    let values = |s: &mut Scene| -> Vec<String> {
        s.g.news("p").iter().filter_map(|event| event.new.clone().filter(|_| event.action == "BASELINE")).collect()
    };
    // In one transaction, in one block, and after a rollback to a savepoint.
    s.owner(
        "BEGIN; ALTER TABLE p ATTACH PARTITION x FOR VALUES IN (5); ALTER TABLE p DETACH PARTITION x;
         UPDATE x SET v = 'second'; ALTER TABLE p ATTACH PARTITION x FOR VALUES IN (5); COMMIT",
    );
    assert_eq!(values(&mut s).len(), 2);
    s.owner(
        "DO $$ BEGIN ALTER TABLE p DETACH PARTITION x; UPDATE x SET v = 'third'; ALTER TABLE p ATTACH PARTITION x FOR VALUES IN (5);
                     ALTER TABLE p DETACH PARTITION x; UPDATE x SET v = 'fourth'; ALTER TABLE p ATTACH PARTITION x FOR VALUES IN (5); END $$",
    );
    let recorded = values(&mut s);
    assert!(recorded.len() == 2 && recorded[1].contains("fourth"), "{recorded:?}");
    s.owner("ALTER TABLE p DETACH PARTITION x");
    s.g.news("p");
    s.owner(
        "BEGIN; SAVEPOINT a; ALTER TABLE p ATTACH PARTITION x FOR VALUES IN (5); ROLLBACK TO a; UPDATE x SET v = 'fifth';
         ALTER TABLE p ATTACH PARTITION x FOR VALUES IN (5); COMMIT",
    );
    let recorded = values(&mut s);
    assert!(recorded.len() == 1 && recorded[0].contains("fifth"), "{recorded:?}");
    // Unguarded and guarded anew within one transaction, by the platform and the owner together: a superuser.
    s.superuser(
        "BEGIN; SELECT agd.unguard('p', 'moves'); ALTER TABLE p DETACH PARTITION x; UPDATE x SET v = 'sixth'; SELECT agd.guard('p');
         ALTER TABLE p ATTACH PARTITION x FOR VALUES IN (5); COMMIT",
    );
    let recorded = values(&mut s);
    assert!(recorded.iter().any(|image| image.contains("sixth")), "{recorded:?}");
    // By hand the function does nothing.
    s.g.run("SELECT agd.complete_partitions(); DO $$ BEGIN PERFORM agd.complete_partitions(); END $$");
    assert_eq!(values(&mut s), [""; 0]);
    s.expect_intact();
    assert_eq!(s.g.column::<String>("SELECT problem FROM agd.verify_table('p')"), [""; 0]);
    anchor(&mut s.g);
    expect_verified(&mut s.g);
}

/// Rows that a write could not have brought in come in by no ATTACH either.
#[test]
fn rows_of_no_tenant_are_not_attached() {
    let mut s = Scene::new("strange");
    s.owner(
        "CREATE TABLE w (tenant text, id int, PRIMARY KEY (tenant, id)) PARTITION BY LIST (tenant);
             CREATE TABLE x (LIKE w INCLUDING ALL); INSERT INTO x VALUES ('nobody', 1)",
    );
    s.superuser("SELECT agd.guard('w', tenant_column => 'tenant')");
    expect_sqlstate(s.owner.batch_execute("ALTER TABLE w ATTACH PARTITION x DEFAULT"), "42501");
    s.owner("UPDATE x SET tenant = 'acme'; ALTER TABLE w ATTACH PARTITION x DEFAULT");
    let news = s.g.news("w");
    assert!(news.len() == 1 && news[0].action == "BASELINE" && news[0].tenant.as_deref() == Some("acme"), "{news:?}");
    let binding: String =
        s.g.one("SELECT DISTINCT binding FROM agd.events WHERE action = 'BASELINE' AND relation = 'public.w'");
    assert_eq!(binding, "bypass");
}

// ---------------------------------------------------------------------------------------------------- values come in

#[test]
fn a_value_that_becomes_part_of_the_record_is_recorded() {
    let mut s = Scene::new("values");
    s.owner(
        "CREATE DOMAIN seven AS int DEFAULT 7; CREATE DOMAIN seven_too AS seven; CREATE DOMAIN plain_domain AS int;
             CREATE TYPE mood AS ENUM ('good', 'bad')",
    );
    // The rows of `t` that a statement records again; more often than it must, where a table is stored anew.
    let cases = [
        (
            "ALTER TABLE t ADD COLUMN g int GENERATED ALWAYS AS (CASE WHEN id = 2 THEN 999999 ELSE balance END) STORED",
            3,
        ),
        ("ALTER TABLE t ALTER g DROP EXPRESSION", 3),
        ("ALTER TABLE t RENAME balance TO old", 0),
        ("ALTER TABLE t DROP COLUMN old", 0),
        ("ALTER TABLE t RENAME g TO balance", 0),
        ("ALTER TABLE t ADD c1 int DEFAULT 7", 3),
        ("ALTER TABLE t ADD c2 seven", 3),
        ("ALTER TABLE t ADD c3 seven_too", 3),
        ("ALTER TABLE t ADD c4 int GENERATED BY DEFAULT AS IDENTITY", 3),
        ("ALTER TABLE t ADD c5 serial", 3),
        ("ALTER TABLE t ADD c6 float8 DEFAULT random()", 3),
        ("ALTER TABLE t ADD c7 timestamptz DEFAULT now()", 3),
        ("ALTER TABLE t ADD c8 int[] DEFAULT '{1}', ADD c9 int", 3),
        ("DO $$ BEGIN ALTER TABLE t ADD c10 int DEFAULT 10; END $$", 3),
        ("ALTER TABLE t ADD g1 int GENERATED ALWAYS AS (id * 2) STORED, ADD c11 text", 3),
        ("ALTER TABLE t ALTER g1 DROP EXPRESSION, ALTER c11 TYPE varchar USING 'forged'", 3),
        ("ALTER TABLE t ALTER c11 TYPE text, ALTER c11 SET DEFAULT 'later'", 0),
        ("ALTER TABLE t ALTER c11 TYPE text USING c11 || id", 3),
        ("ALTER TABLE t ALTER c10 TYPE plain_domain", 3),
        ("ALTER TABLE t ADD c12 mood DEFAULT 'good', DROP COLUMN c1", 3),
        // Nothing stands there but NULL, which is in no image; and what leaves every value as it is.
        ("ALTER TABLE t ADD c13 int, ADD c14 mood, ADD c15 plain_domain", 0),
        ("ALTER TABLE t ADD c16 int DEFAULT NULL", 0),
        ("ALTER TABLE t ALTER c13 SET DEFAULT 5", 0),
        ("ALTER TABLE t ALTER c13 ADD GENERATED BY DEFAULT AS IDENTITY", 0),
        ("ALTER TABLE t SET LOGGED", 0),
        ("ALTER TABLE t CLUSTER ON t_pkey", 0),
        ("CLUSTER t", 0),
        ("VACUUM FULL t", 0),
    ];
    for (sql, recorded) in cases {
        // An identity needs a column that is NOT NULL.
        if sql.contains("c13 ADD GENERATED") {
            s.owner("UPDATE t SET c13 = id; ALTER TABLE t ALTER c13 DROP DEFAULT, ALTER c13 SET NOT NULL");
            s.g.news("t");
        }
        s.owner(sql);
        let news = s.g.news("t");
        assert!(news.len() == recorded && news.iter().all(|event| event.action == "BASELINE"), "{sql}: {news:?}");
        if sql == "ALTER TABLE t ALTER g DROP EXPRESSION" {
            assert!(news.iter().any(|event| event.new.as_deref().unwrap().contains("999999")), "{news:?}");
        }
    }
    // On every partition, and of tenants' rows each in its own log.
    s.owner("ALTER TABLE p ADD g text GENERATED ALWAYS AS (v || '!') STORED; ALTER TABLE p ALTER g DROP EXPRESSION");
    assert_eq!(s.g.news("p").iter().map(|event| event.action.as_str()).collect::<Vec<_>>(), ["BASELINE"; 2]);
    s.owner("ALTER TABLE orders ADD c int DEFAULT 7");
    let news = s.g.news("orders");
    let tenants: Vec<_> = news.iter().map(|event| event.tenant.clone().unwrap()).collect();
    assert!(tenants.len() == 2 && tenants.contains(&"acme".into()) && tenants.contains(&"globex".into()), "{news:?}");
    // A typed table's column comes with its type.
    s.owner("CREATE TYPE pair AS (id int, v text); CREATE TABLE typed OF pair (PRIMARY KEY (id)); INSERT INTO typed VALUES (1, 'x')");
    s.g.run("SELECT agd.guard('typed')");
    s.g.news("typed");
    s.owner("ALTER TYPE pair ALTER ATTRIBUTE v TYPE varchar(1) CASCADE, ADD ATTRIBUTE w int CASCADE");
    assert_eq!(s.g.briefs("typed"), ["BASELINE 1"]);
    s.expect_intact();
    for table in ["p", "orders"] {
        let problems = s.g.column::<String>(&format!("SELECT problem FROM agd.verify_table('{table}')"));
        assert_eq!(problems, [""; 0], "{table}");
    }
    anchor(&mut s.g);
    expect_verified(&mut s.g);
}

/// The row would be lost with the old copy of the table, and its record stay.
#[test]
fn a_function_within_ddl_does_not_write_the_very_table() {
    let mut s = Scene::new("within_ddl");
    s.owner(
        "CREATE FUNCTION sneak(i int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.t VALUES (i + 100, 0); RETURN i; END $$;
         CREATE FUNCTION still(i int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN PERFORM public.sneak(i); RETURN i; END $$;
         CREATE FUNCTION sneak_u(i int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN UPDATE t SET balance = 0 WHERE id = i; RETURN i; END $$;
         CREATE FUNCTION sneak_p(i int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN UPDATE p1 SET v = 'x'; RETURN i; END $$;
         CREATE FUNCTION elsewhere(i int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO t VALUES (i + 1000, 0); RETURN i; END $$;
         CREATE DOMAIN d AS int; CREATE TABLE with_d (id int PRIMARY KEY, v d); INSERT INTO with_d VALUES (1, 1)",
    );
    s.g.run("SELECT agd.guard('with_d')");
    for sql in [
        "ALTER TABLE t ALTER balance TYPE bigint USING sneak(id)",
        "ALTER TABLE t ADD c int DEFAULT sneak_u(1)",
        "ALTER TABLE t ADD CHECK (sneak(id) > 0)",
        "CREATE INDEX ON t (still(id))",
        "ALTER TABLE p ALTER v TYPE text USING sneak_p(id)::text",
        "ALTER TABLE p1 ADD CHECK (sneak_p(id) > 0)",
        "DO $$ BEGIN EXECUTE 'ALTER TABLE t ALTER balance TYPE bigint USING sneak(id)'; END $$",
    ] {
        // An index is built by nobody, and nobody writes.
        let (state, hint) = if sql.starts_with("CREATE INDEX") { ("42501", "") } else { ("55000", "before the") };
        s.owner_is_refused(sql, state, hint);
        assert_eq!((s.g.briefs("t"), s.g.briefs("p")), (vec![], vec![]), "{sql}");
    }
    // Another table may be written, and the same one before and after.
    s.owner("ALTER DOMAIN d ADD CHECK (elsewhere(VALUE) > 0)");
    s.owner("BEGIN; INSERT INTO t VALUES (50, 0); ALTER TABLE t ADD c int; INSERT INTO t VALUES (51, 0); COMMIT");
    assert_eq!(s.g.tally("t"), (3, 0, 0));
    assert_eq!(s.g.column::<String>("SELECT problem FROM agd.verify_table('t')"), [""; 0]);
}

// ------------------------------------------------------------------------------------------------------ policies

const OTHER_POLICIES: [&str; 7] = [
    "USING (true)",
    "WITH CHECK (true)",
    "USING (tenant = (SELECT agd.current_tenant()) OR true)",
    "USING (tenant = (SELECT agd.current_tenant() WHERE false)) ",
    "USING (tenant = (SELECT current_tenant()))",
    "USING (v = (SELECT agd.current_tenant()))",
    "USING (tenant OPERATOR(public.=) (SELECT agd.current_tenant()))",
];

#[test]
fn no_setting_hides_a_changed_policy() {
    let mut s = Scene::new("blind");
    s.owner(
        "CREATE FUNCTION current_tenant() RETURNS text LANGUAGE sql AS $$ SELECT 'globex' $$;
         CREATE FUNCTION always(text, text) RETURNS boolean LANGUAGE sql AS $$ SELECT true $$;
         CREATE OPERATOR = (LEFTARG = text, RIGHTARG = text, FUNCTION = always)",
    );
    for setting in [
        "quote_all_identifiers = on",
        "search_path = public, agd, pg_catalog",
        "standard_conforming_strings = off",
        "debug_print_parse = on",
        "transform_null_equals = on",
        "row_security = off",
    ] {
        for policy in OTHER_POLICIES {
            let sql = format!("BEGIN; SET LOCAL {setting}; ALTER POLICY agd_tenant ON public.orders {policy}");
            s.owner_is_refused(&sql, "AG002", "agd.unguard('public.orders'");
        }
        // What it is may be said again, under whatever setting, and is no change.
        s.owner(&format!(
            "BEGIN; SET LOCAL {setting}; ALTER POLICY agd_tenant ON public.orders USING (public.orders.tenant OPERATOR(pg_catalog.=) (SELECT agd.current_tenant())); COMMIT"
        ));
        s.expect_intact();
    }
    let of_globex: Vec<String> =
        s.acme.query("SELECT v FROM orders", &[]).unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(of_globex, ["of acme"]);
    anchor(&mut s.g);
    expect_verified(&mut s.g);
}

#[test]
fn every_kind_of_tenant_column_has_its_policy() {
    let mut s = Scene::new("kinds");
    for (number, kind) in [
        "text",
        "varchar",
        "varchar(70)",
        "uuid",
        "bigint",
        "integer",
        "text COLLATE \"POSIX\"",
        "varchar COLLATE \"C\"",
    ]
    .iter()
    .enumerate()
    {
        s.owner(&format!("CREATE TABLE k{number} (gone int, id int, \"who's\" {kind}, PRIMARY KEY (id, \"who's\")); ALTER TABLE k{number} DROP gone"));
        s.superuser(&format!("SELECT agd.guard('k{number}', tenant_column => 'who''s')"));
        s.owner(&format!("ALTER TABLE k{number} ADD c int; ALTER TABLE k{number} RENAME c TO d"));
        s.owner_is_refused(&format!("ALTER POLICY agd_tenant ON k{number} USING (true)"), "AG002", "agd.unguard");
        s.owner_is_refused(&format!("ALTER POLICY agd_tenant ON k{number} USING (d IS NULL)"), "AG002", "agd.unguard");
    }
    s.expect_intact();
    // Asked under a lock on the table, by the worker and anybody: it does not wait.
    let mut holding = s.login("owner");
    holding.batch_execute("BEGIN; LOCK TABLE orders, k0, k3 IN ACCESS EXCLUSIVE MODE").unwrap();
    s.g.run("SET lock_timeout = '5s'");
    s.expect_intact();
    holding.batch_execute("ROLLBACK").unwrap();
}

/// Past all DDL, in PostgreSQL's catalogs: agd.verify() says so, and nothing is built upon it.
#[test]
fn a_policy_changed_in_the_catalogs_is_found_and_mended() {
    let mut s = Scene::new("catalogs");
    s.owner(
        "CREATE TABLE decoy (tenant text, id int, v text); CREATE POLICY open ON decoy USING (true) WITH CHECK (true)",
    );
    s.g.run(
        "SET allow_system_table_mods = on;
         UPDATE pg_policy p SET polqual = d.polqual FROM pg_policy d WHERE p.polname = 'agd_tenant' AND d.polname = 'open'",
    );
    anchor(&mut s.g);
    let (failed, _) = failed_checks(&mut s.g).unwrap();
    assert!(failed.iter().any(|check| check.contains("guards")), "{failed:?}");
    let mut fresh = s.login("owner");
    for sql in [
        "ALTER TABLE orders ADD c int",
        "CREATE INDEX ON orders (v)",
        "CREATE POLICY more ON orders USING (true)",
        "ALTER POLICY agd_tenant ON orders USING (v IS NOT NULL)",
        "GRANT SELECT ON orders TO PUBLIC",
    ] {
        let error = expect_sqlstate(fresh.batch_execute(sql), "AG002");
        expect_hint(&error, "");
        assert!(error.message().contains("is not intact: the restrictive policy"), "{sql}: {}", error.message());
    }
    // What mends it passes.
    fresh.batch_execute("ALTER POLICY agd_tenant ON orders USING (tenant = (SELECT agd.current_tenant()))").unwrap();
    fresh.batch_execute("ALTER TABLE orders ADD c int").unwrap();
    s.expect_intact();
}

// ------------------------------------------------------------------------------------------- tenants that own tables

#[test]
fn a_tenants_session_does_no_ddl_on_a_walled_table() {
    let mut s = Scene::new("mapped");
    // Acme owns a walled table, and a function that counts how often it is called: a sequence does not roll back.
    s.acme
        .batch_execute(
            "CREATE SEQUENCE calls;
             CREATE FUNCTION peek(v text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('public.calls'); RETURN v; END $$;
             CREATE FUNCTION peek() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('public.calls'); RETURN NEW; END $$;
             CREATE DOMAIN note AS text;
             CREATE TABLE w (tenant text, id int, v note, PRIMARY KEY (tenant, id)) PARTITION BY LIST (tenant);
             CREATE TABLE w1 PARTITION OF w DEFAULT; CREATE INDEX w1_v ON w1 (peek(v)); CREATE STATISTICS st ON id, v FROM w1;
             CREATE TABLE x (LIKE w INCLUDING ALL); INSERT INTO x VALUES ('globex', 5, 'planted')",
        )
        .unwrap();
    s.superuser("SELECT agd.guard('w', tenant_column => 'tenant'); INSERT INTO w VALUES ('globex', 1, 'secret'), ('acme', 1, 'own')");
    s.g.news("w");
    s.superuser("SELECT setval('calls', 1, false); GRANT {owner} TO {acme}");
    let everything = [
        "ALTER TABLE w1 ALTER v TYPE text USING peek(v)",
        "ALTER TABLE w ALTER v TYPE text USING 'forged'",
        "ALTER TABLE w ADD CHECK (peek(v) <> '')",
        "ALTER TABLE w1 ADD CHECK (peek(v) <> '')",
        "ALTER TABLE w ADD c text DEFAULT peek('x')",
        "ALTER TABLE w ADD c int",
        "ALTER TABLE w RENAME v TO u",
        "ALTER TABLE w SET SCHEMA pg_temp",
        "ALTER TABLE w ATTACH PARTITION x FOR VALUES IN ('globex')",
        "ALTER TABLE w DETACH PARTITION w1",
        "CREATE TABLE w2 PARTITION OF w FOR VALUES IN ('other')",
        "CREATE INDEX ON w (peek(v))",
        "CREATE INDEX CONCURRENTLY ON w1 (peek(v))",
        "CREATE STATISTICS st2 ON peek(v), id FROM w1",
        "ALTER STATISTICS st SET STATISTICS 10",
        "DROP STATISTICS st",
        "CREATE TRIGGER tell BEFORE INSERT ON w FOR EACH ROW EXECUTE FUNCTION peek()",
        "CREATE POLICY tell ON w USING (peek(v) <> '')",
        "ALTER POLICY agd_base ON w USING (peek(v) <> '')",
        "DROP POLICY agd_base ON w",
        "DROP INDEX w1_v",
        "CREATE RULE r AS ON UPDATE TO w DO ALSO SELECT peek(old.v)",
        "CLUSTER w1 USING w1_pkey",
        "VACUUM FULL w1",
        "ANALYZE w1",
        "ANALYZE",
        "REINDEX TABLE w1",
        "REINDEX INDEX w1_v",
        "GRANT SELECT ON w TO PUBLIC",
        "ALTER TABLE w OWNER TO {owner}",
        "ALTER DOMAIN note ADD CHECK (peek(VALUE) <> '')",
        "DO $$ BEGIN ALTER TABLE w1 ALTER v TYPE text USING peek(v); END $$",
    ];
    let mut attempts: Vec<String> = everything.map(str::to_owned).to_vec();
    // In the name of the owner that it is a member of.
    attempts.push("SET ROLE {owner}; ALTER TABLE orders ALTER v TYPE text USING public.peek(v)".into());
    attempts.push("SET ROLE {owner}; CREATE INDEX ON orders (public.peek(v))".into());
    attempts.push("ALTER TABLE orders ALTER v TYPE text USING public.peek(v)".into());
    for sql in attempts {
        let sql = s.sql(&sql);
        let outcome = s.acme.batch_execute(&sql);
        assert!(outcome.is_err(), "{sql} is allowed");
        let error = expect_sqlstate(outcome, "42501");
        assert!(error.message().contains("is not for a tenant's session"), "{sql}: {}", error.message());
        expect_hint(&error, "mapped to no tenant");
        s.acme.batch_execute("ROLLBACK; RESET ROLE").unwrap();
        let called: bool = s.g.one("SELECT is_called FROM calls");
        assert!(!called, "{sql} called a function for rows");
        assert_eq!((s.g.briefs("w"), s.g.briefs("orders")), (vec![], vec![]), "{sql}");
    }
    // The refused attempts are told.
    anchor(&mut s.g);
    let told: i64 = s
        .g
        .one("SELECT count(*) FROM agd.events WHERE action = 'DENIED' AND body LIKE '%not for a tenant''s session%'");
    assert!(told > 0, "{told}");
    // Its own tables that nobody walls are its own business.
    s.acme
        .batch_execute("ALTER TABLE x ADD c int; CREATE INDEX ON x (v); DROP TABLE x; COMMENT ON TABLE w IS 'ours'")
        .unwrap();
    // Of a function of acme's that somebody else calls it is acme that acts.
    s.acme
        .batch_execute(
            "CREATE FUNCTION do_it() RETURNS void SECURITY DEFINER LANGUAGE plpgsql AS $$ BEGIN ALTER TABLE public.w ADD by_definer int; END $$",
        )
        .unwrap();
    expect_sqlstate(s.owner.batch_execute("SELECT do_it()"), "42501");
    // And whoever owns the tables and is nobody's goes on as before.
    s.owner("CREATE FUNCTION see(v text) RETURNS text LANGUAGE sql AS $$ SELECT v $$; ALTER TABLE orders ALTER v TYPE varchar USING see(v) || ''; CREATE INDEX ON orders (v)");
    assert_eq!(s.g.news("orders").len(), 2);
    s.expect_intact();
}

/// Who binds each transaction is a tenant's session too, bound or not yet.
#[test]
fn who_binds_does_no_ddl_on_a_walled_table() {
    let mut s = Scene::new("binders");
    s.superuser("CREATE TABLE w (tenant text, id int, PRIMARY KEY (tenant, id)); SELECT agd.guard('w', tenant_column => 'tenant')");
    for (role, mode) in [("app", "token"), ("agent", "asserted")] {
        let name = format!("{}_{role}", s.g.database().name());
        cluster().create_role(&name, "").unwrap();
        s.g.run(&format!("SELECT agd.map_role('{name}', NULL, '{mode}')"));
        // The owner of the table is given up to it by a superuser, in two ways.
        for give in [
            format!("ALTER TABLE w OWNER TO {name}"),
            s.sql(&format!("ALTER TABLE w OWNER TO {{owner}}; GRANT {{owner}} TO {name}")),
        ] {
            s.g.run(&give);
            let mut client = s.g.database().connect_as(&name).unwrap();
            expect_sqlstate(client.batch_execute("ALTER TABLE w ADD c int"), "42501");
            if mode == "asserted" {
                expect_sqlstate(
                    client.batch_execute("BEGIN; SELECT agd.enter('acme', 'somebody'); ALTER TABLE w ADD c int"),
                    "42501",
                );
            }
        }
    }
    s.expect_intact();
}

/// A domain's constraint is asked of every row, and no privilege on the table is needed.
#[test]
fn a_domains_owner_is_not_shown_a_walled_table() {
    let mut s = Scene::new("domains");
    let mut stranger = s.login("stranger");
    s.superuser("CREATE SCHEMA lair AUTHORIZATION {stranger}; GRANT USAGE ON SCHEMA lair TO PUBLIC");
    stranger
        .batch_execute(
            "CREATE DOMAIN lair.note AS text; CREATE SEQUENCE lair.calls;
             CREATE FUNCTION lair.peek(v text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('lair.calls'); RETURN true; END $$",
        )
        .unwrap();
    s.owner("CREATE TABLE w (tenant text, id int, v lair.note, PRIMARY KEY (tenant, id))");
    s.superuser("SELECT agd.guard('w', tenant_column => 'tenant'); INSERT INTO w VALUES ('globex', 1, 'secret')");
    for sql in [
        "ALTER DOMAIN lair.note ADD CHECK (lair.peek(VALUE))",
        "ALTER DOMAIN lair.note ADD CONSTRAINT later CHECK (lair.peek(VALUE)) NOT VALID; ALTER DOMAIN lair.note VALIDATE CONSTRAINT later",
    ] {
        let error = expect_sqlstate(stranger.batch_execute(sql), "42501");
        assert!(error.message().contains("public.w"), "{}", error.message());
    }
    let called: bool = s.g.one("SELECT is_called FROM lair.calls");
    assert!(!called);
    // Its default is its owner's business, and of no row that is there.
    stranger.batch_execute("ALTER DOMAIN lair.note SET DEFAULT 'x'").unwrap();
}

#[test]
fn a_mapped_owner_is_told_of() {
    let mut s = Scene::new("owners");
    let gaps = |s: &mut Scene| -> Vec<String> {
        let prefix = s.sql("{owner}").trim_end_matches("owner").to_owned();
        let gaps =
            s.g.column::<String>("SELECT gap FROM agd.wall_gaps('orders') WHERE gap LIKE '%mapped to a tenant%'");
        gaps.into_iter().map(|gap| gap.replace(&prefix, "").replace("public.", "").chars().take(60).collect()).collect()
    };
    assert_eq!(gaps(&mut s), [""; 0]);
    s.superuser("CREATE ROLE {owner}_step; GRANT {owner} TO {owner}_step; GRANT {owner}_step TO {acme}");
    assert_eq!(gaps(&mut s), ["acme, which is mapped to a tenant, is a member of owner or c"]);
    s.superuser("REVOKE {owner}_step FROM {acme}; DROP ROLE {owner}_step; ALTER TABLE orders OWNER TO {globex}");
    assert_eq!(gaps(&mut s), ["orders is owned by globex, which is mapped to a tenant"]);
    let warned =
        s.g.database()
            .psql("SELECT agd.unguard('orders', 'again'); SELECT agd.guard('orders', tenant_column => 'tenant')")
            .unwrap();
    assert!(
        warned.stderr.contains("which is mapped to a tenant") && warned.stderr.contains("OWNER TO"),
        "{}",
        warned.stderr
    );
    s.superuser("ALTER TABLE orders OWNER TO {owner}; ALTER ROLE {acme} CREATEROLE");
    let expected = usize::from(s.g.version() < 160_000);
    assert_eq!(gaps(&mut s).len(), expected, "CREATEROLE is as good as membership until 16");
    s.superuser("ALTER ROLE {acme} NOCREATEROLE");
}

// ------------------------------------------------------------------------------------------------------------ types

#[test]
fn a_row_type_in_use_keeps_its_shape() {
    let mut s = Scene::new("shapes");
    s.owner(
        "CREATE TABLE base (a int, b text); CREATE TABLE child () INHERITS (base); CREATE TABLE grandchild (c int) INHERITS (child);
         CREATE TYPE pair AS (a int, b text); CREATE TABLE typed OF pair;
         CREATE TABLE parent (k int, b text) PARTITION BY LIST (k); CREATE TABLE part PARTITION OF parent FOR VALUES IN (1);
         CREATE VIEW seen AS SELECT a FROM base; CREATE TYPE outer_pair AS (p pair); CREATE DOMAIN many AS outer_pair[];
         CREATE TYPE span AS (a int); CREATE TYPE spans AS RANGE (SUBTYPE = int); CREATE TABLE free (a int); CREATE TABLE free_child () INHERITS (free);
         CREATE TABLE u1 (id int PRIMARY KEY, c grandchild, y typed, q part[], s seen, m many, r spans);
         INSERT INTO u1 VALUES (1, ROW(1, 'x', 2), ROW(1, 'y'), ARRAY[ROW(1, 'z')::part], ROW(1), ARRAY[ROW(ROW(1, 'w'))::outer_pair])",
    );
    s.g.run("SELECT agd.guard('u1')");
    s.g.news("u1");
    let before: String = s.g.one("SELECT u1::text FROM u1");
    for sql in [
        "ALTER TABLE base DROP COLUMN b",
        "ALTER TABLE base ADD COLUMN n int",
        "ALTER TABLE base RENAME COLUMN b TO c2",
        "ALTER TABLE child ADD COLUMN n int",
        "ALTER TYPE pair DROP ATTRIBUTE b CASCADE",
        "ALTER TYPE pair ADD ATTRIBUTE n int CASCADE",
        "ALTER TYPE pair RENAME ATTRIBUTE b TO c CASCADE",
        "ALTER TABLE parent ADD COLUMN n int",
        "ALTER TABLE parent DROP COLUMN b",
        "ALTER TABLE parent RENAME COLUMN b TO c",
        "CREATE OR REPLACE VIEW seen AS SELECT a, b FROM base",
        "ALTER VIEW seen RENAME COLUMN a TO z",
        "ALTER TABLE grandchild DROP COLUMN c",
        "DO $$ BEGIN EXECUTE 'ALTER TABLE base DROP COLUMN b'; END $$",
        "BEGIN; ALTER TABLE base RENAME COLUMN b TO tmp; ALTER TABLE base RENAME COLUMN tmp TO b",
        "CREATE TYPE deep AS (p pair); DROP DOMAIN many CASCADE; ALTER TABLE u1 ADD d deep; ALTER TYPE pair ADD ATTRIBUTE n int",
    ] {
        s.owner_is_refused(sql, "AG002", "agd.unguard('public.u1'");
        assert_eq!(s.g.one::<String>("SELECT u1::text FROM u1"), before, "{sql}");
    }
    // What leaves the row type as it is, and what nobody guarded uses.
    s.owner(
        "ALTER TABLE base ALTER b SET STATISTICS 10, ALTER b SET DEFAULT 'x', ALTER b SET NOT NULL, ALTER b SET STORAGE EXTERNAL;
         ALTER TABLE base ALTER b DROP NOT NULL; ALTER TABLE free DROP COLUMN a; ALTER TABLE free ADD n int;
         ALTER TABLE u1 ADD later int; ALTER TABLE base ADD CHECK (a < 100); ALTER TYPE spans RENAME TO spans2",
    );
    assert_eq!(s.g.column::<String>("SELECT problem FROM agd.verify_table('u1')"), [""; 0]);
}

// ------------------------------------------------------------------------------------------------- the extension itself

#[test]
fn the_extension_goes_by_who_may_and_with_a_word() {
    let mut s = Scene::new("farewell");
    for role in ["stranger", "dbo", "owner", "acme"] {
        let mut client = s.login(role);
        for sql in ["DROP EXTENSION agd", "DROP EXTENSION agd CASCADE", "DROP EXTENSION IF EXISTS agd, agd"] {
            let error = expect_sqlstate(client.batch_execute(sql), "42501");
            assert_eq!(error.message(), "must be owner of extension agd", "{role}: {sql}");
            assert_eq!((error.hint(), error.detail()), (None, None));
        }
    }
    let psql = |s: &Scene, sql: &str| s.g.database().psql(sql).unwrap();
    let refused = psql(&s, "DROP EXTENSION agd");
    assert!(
        refused.stderr.contains("AG002")
            || refused.stderr.contains("is guarded")
            || refused.stderr.contains("are guarded"),
        "{}",
        refused.stderr
    );
    s.g.run("SELECT agd.unguard(relation, 'the end') FROM agd.guarded_table");
    let undone = psql(&s, "BEGIN; DROP EXTENSION agd; ROLLBACK");
    assert!(undone.stderr.contains("the record is dropped with the extension: events: "), "{}", undone.stderr);
    let events: i64 = s.g.one("SELECT count(*) FROM agd.event");
    let gone = psql(&s, "DROP EXTENSION agd");
    assert!(gone.success && gone.stderr.contains("nothing of them was published"), "{}", gone.stderr);
    let told: i64 = gone.stderr.split("events: ").nth(1).unwrap().split(';').next().unwrap().parse().unwrap();
    assert!(told >= events, "{told} of {events}");
    assert!(cluster().log().contains("agd: postgres dropped the extension: events: "));
}
