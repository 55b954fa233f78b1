//! What a second round of attacks found, each run as the role that ran it: functions of the attacked table's owner under
//! agd's rights, functions of other login roles under a tenant's binding, foreign keys to walled tables, locks.

use agd_live_tests::{Cluster, TestDb, expect_sqlstate};
use postgres::Client;
use std::sync::OnceLock;

struct Stage {
    database: TestDb<'static>,
    prefix: &'static str,
}

impl Stage {
    /// Logins `<prefix>_acme`, `_globex` (mapped), `_pool` (any tenant, asserted), `_acmepool` (acme, asserted), `_owner`, `_aud`,
    /// `_writer` (pg_write_all_data), `_stranger`; `{0}` in SQL is the prefix. `orders` is walled, and `_owner`'s.
    fn new(prefix: &'static str) -> Self {
        static CLUSTER: OnceLock<Cluster> = OnceLock::new();
        let cluster = CLUSTER.get_or_init(|| Cluster::builder().start().unwrap());
        let stage = Self { database: cluster.agd_database(prefix).unwrap(), prefix };
        for (role, options) in [
            ("acme", "IN ROLE agd_tenant"),
            ("globex", "IN ROLE agd_tenant"),
            ("pool", "IN ROLE agd_tenant"),
            ("acmepool", "IN ROLE agd_tenant"),
            ("owner", ""),
            ("aud", "IN ROLE agd_auditor"),
            ("writer", "IN ROLE pg_write_all_data"),
            ("stranger", ""),
        ] {
            cluster.create_role(&format!("{prefix}_{role}"), options).unwrap();
        }
        stage.run(
            "superuser",
            "GRANT CREATE ON SCHEMA public TO PUBLIC;
             CREATE TABLE orders (id int PRIMARY KEY, tenant text, v text); ALTER TABLE orders OWNER TO {0}_owner;
             SELECT agd.create_tenant('acme'), agd.create_tenant('globex');
             SELECT agd.guard('orders', tenant_column => 'tenant');
             SELECT agd.map_role('{0}_acme', 'acme'), agd.map_role('{0}_globex', 'globex'),
                    agd.map_role('{0}_pool', NULL, 'asserted'), agd.map_role('{0}_acmepool', 'acme', 'asserted');
             GRANT SELECT, INSERT, UPDATE, DELETE, REFERENCES ON orders TO PUBLIC;
             INSERT INTO orders VALUES (1, 'acme', 'mine'), (2, 'globex', 'theirs');
             CREATE TABLE loot (who text, r text); GRANT ALL ON loot TO PUBLIC",
        );
        stage
    }

    fn login(&self, role: &str) -> Client {
        match role {
            "superuser" => self.database.connect().unwrap(),
            _ => self.database.connect_as(&format!("{}_{role}", self.prefix)).unwrap(),
        }
    }

    fn sql(&self, text: &str) -> String {
        text.replace("{0}", self.prefix)
    }

    #[track_caller]
    fn run(&self, role: &str, sql: &str) {
        let sql = self.sql(sql);
        self.login(role).batch_execute(&sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    #[track_caller]
    fn refused(&self, role: &str, sql: &str, sqlstate: &str) {
        expect_sqlstate(self.login(role).batch_execute(&self.sql(sql)), sqlstate);
    }

    #[track_caller]
    fn one(&self, role: &str, sql: &str) -> String {
        let sql = self.sql(sql);
        let row = self.login(role).query_one(&sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        row.get::<_, Option<String>>(0).unwrap_or_else(|| "NULL".into())
    }
}

#[test]
fn verify_table_runs_nothing_of_the_tables_owner() {
    let stage = Stage::new("second_verify");
    stage.run("owner", "CREATE TABLE ix (id int PRIMARY KEY, v text); INSERT INTO ix VALUES (1, 'a')");
    stage.run(
        "owner",
        "CREATE FUNCTION note() RETURNS void LANGUAGE plpgsql VOLATILE AS $$ BEGIN
           INSERT INTO public.loot VALUES (current_user, 'ran'); END $$;
         CREATE FUNCTION evil(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
           PERFORM public.note(); RETURN 1; END $$",
    );
    stage.run("superuser", "SELECT agd.guard('ix')");
    stage.run(
        "owner",
        "CREATE INDEX ON ix ((public.evil(1))); CREATE INDEX ON ix (v) WHERE public.evil(2) = 1;
         CREATE STATISTICS st ON (public.evil(1) + id), v FROM ix",
    );
    stage.run("superuser", "TRUNCATE loot");
    let problems = "SELECT count(*)::text FROM agd.verify_table('ix')";
    assert_eq!(stage.one("aud", problems), "0");
    assert_eq!(stage.one("superuser", problems), "0");
    assert_eq!(stage.one("superuser", "SELECT count(*)::text FROM loot"), "0", "nothing of the owner's ran");
    if stage.one("superuser", "SELECT (current_setting('server_version_num')::int >= 180000)::text") == "true" {
        stage.run("owner", "ALTER TABLE ix ADD COLUMN bad int GENERATED ALWAYS AS (1 / (id - id)) VIRTUAL");
        assert_eq!(stage.one("aud", problems), "0", "a column that cannot be computed blinds nobody");
    }
    stage.refused("aud", "SELECT * FROM agd.present_rows('ix')", "42501");
}

#[test]
fn a_function_of_another_login_role_finds_nobody_bound() {
    let stage = Stage::new("second_definer");
    for role in ["pool", "acmepool", "acme"] {
        stage.run(
            role,
            &format!(
                "CREATE FUNCTION peek_{role}() RETURNS text LANGUAGE sql SECURITY DEFINER AS
                   $$ SELECT coalesce(agd.current_tenant(), 'nobody') || ' ' || (SELECT count(*) FROM public.orders)
                          || ' ' || (SELECT count(*) FROM agd.events) $$;
                 CREATE FUNCTION put_{role}() RETURNS void LANGUAGE sql SECURITY DEFINER AS
                   $$ INSERT INTO public.orders VALUES (888, 'globex', 'planted') $$"
            ),
        );
        assert_eq!(stage.one("globex", &format!("SELECT peek_{role}()")), "nobody 0 0", "{role}");
        stage.refused("globex", &format!("SELECT put_{role}()"), "42501");
    }
    // An application's own function, of a role that is mapped to nobody, goes on working.
    stage.run(
        "owner",
        "CREATE FUNCTION mine() RETURNS text LANGUAGE sql SECURITY DEFINER AS
           $$ SELECT agd.current_tenant() || ' ' || (SELECT count(*) FROM public.orders) $$",
    );
    assert_eq!(stage.one("globex", "SELECT mine()"), "globex 1");
}

#[test]
fn a_foreign_key_to_a_walled_table_is_its_owners_to_make() {
    let stage = Stage::new("second_reference");
    for role in ["acme", "pool", "stranger"] {
        for sql in [
            "CREATE TABLE child (o int REFERENCES public.orders)",
            "CREATE TABLE child (o int, FOREIGN KEY (o) REFERENCES public.orders ON DELETE CASCADE)",
            "CREATE TABLE child (o int); ALTER TABLE child ADD FOREIGN KEY (o) REFERENCES public.orders NOT VALID",
            "CREATE TABLE child (i int); ALTER TABLE child ADD COLUMN o int REFERENCES public.orders",
            "CREATE TEMPORARY TABLE child (o int REFERENCES public.orders)",
            "CREATE TABLE child (o int); DO $$ BEGIN EXECUTE 'ALTER TABLE child ADD FOREIGN KEY (o) REFERENCES orders'; END $$",
        ] {
            // A temporary table may not point to a permanent one: PostgreSQL's own answer comes later than this one.
            stage.refused(role, sql, "42501");
        }
    }
    stage.run("owner", "CREATE TABLE child (o int REFERENCES public.orders)");
    // Other tables' keys are nobody's business here.
    stage.run("acme", "CREATE TABLE a (i int PRIMARY KEY); CREATE TABLE b (i int REFERENCES a)");
}

#[test]
fn what_belongs_to_agd_is_not_for_others_to_lock() {
    let stage = Stage::new("second_lock");
    for table in ["event", "events", "home", "log", "sequencer", "tenant"] {
        stage.refused("writer", &format!("BEGIN; LOCK TABLE agd.{table} IN ACCESS EXCLUSIVE MODE"), "42501");
        stage.refused("writer", &format!("BEGIN; LOCK TABLE agd.{table} IN ROW EXCLUSIVE MODE"), "42501");
    }
    stage.run("superuser", "BEGIN; LOCK TABLE agd.event IN ACCESS SHARE MODE; COMMIT");
}

#[test]
fn nothing_writes_between_the_truncate_that_is_recorded_and_the_truncate() {
    let stage = Stage::new("second_truncate");
    stage.run(
        "owner",
        "CREATE TABLE tr (id int PRIMARY KEY);
         CREATE FUNCTION put() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO tr VALUES (99); RETURN NULL; END $$",
    );
    stage.run("superuser", "SELECT agd.guard('tr', on_truncate => 'record')");
    let late = "CREATE TRIGGER \"~b\" BEFORE TRUNCATE ON tr FOR EACH STATEMENT EXECUTE FUNCTION put()";
    stage.refused("owner", late, "AG002");
    stage.run("owner", "CREATE TABLE early (id int PRIMARY KEY)");
    stage.run("owner", &late.replace("ON tr", "ON early"));
    stage.refused("superuser", "SELECT agd.guard('early', on_truncate => 'record')", "0A000");
    stage.run("owner", &late.replace("\"~b\"", "a"));
    stage.run("owner", "TRUNCATE tr");
    assert_eq!(stage.one("superuser", "SELECT count(*)::text FROM agd.verify_table('tr')"), "0");
}

#[test]
fn a_key_keeps_its_values_and_its_columns() {
    let stage = Stage::new("second_key");
    stage.run(
        "owner",
        "CREATE TABLE k (id int PRIMARY KEY, v int); INSERT INTO k VALUES (1, 10), (2, 20); CREATE SEQUENCE s",
    );
    stage.run("superuser", "SELECT agd.guard('k')");
    for sql in [
        "ALTER TABLE k ALTER id TYPE int USING 3 - id, ALTER v TYPE int USING v",
        "ALTER TABLE k ALTER id TYPE int USING id + 100",
        "ALTER TABLE k DROP COLUMN id, ADD COLUMN id int DEFAULT nextval('s') PRIMARY KEY",
    ] {
        stage.refused("owner", sql, "AG002");
    }
    stage.run("owner", "ALTER TABLE k ALTER id TYPE bigint");
    assert_eq!(stage.one("superuser", "SELECT count(*)::text FROM agd.verify_table('k')"), "0");
}

#[test]
fn a_domains_owner_learns_nothing_of_nulls_in_a_walled_table() {
    let stage = Stage::new("second_domain");
    stage.run("acme", "CREATE DOMAIN d AS text");
    stage.run("owner", "CREATE TABLE w (id int PRIMARY KEY, tenant text, x d)");
    stage.run("superuser", "SELECT agd.guard('w', tenant_column => 'tenant')");
    stage.refused("acme", "ALTER DOMAIN d SET NOT NULL", "42501");
}
