//! Logical replication: the subscriber's gate records each row that arrives, once, and says from where; the record itself
//! is never data for another server.

use agd_live_tests::record::{anchor, events, expect_each_event_in_one_leaf, expect_verified, reconcile};
use agd_live_tests::{Cluster, TestDb, eventually, expect_hint, expect_sqlstate};
use postgres::Client;
use std::sync::OnceLock;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

fn publisher() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let sender =
            [("wal_level", "logical"), ("max_prepared_transactions", "10"), ("logical_decoding_work_mem", "64kB")];
        sender.iter().fold(Cluster::builder(), |builder, (name, value)| builder.setting(name, value)).start().unwrap()
    })
}

fn subscriber() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let receiver = [
            ("max_prepared_transactions", "10"),
            ("max_logical_replication_workers", "20"),
            ("wal_retrieve_retry_interval", "100ms"),
            ("agd.anchor_max_age", "1s"),
        ];
        receiver.iter().fold(Cluster::builder(), |builder, (name, value)| builder.setting(name, value)).start().unwrap()
    })
}

/// A database on each side and a session in each.
struct Pair {
    from: Client,
    to: Client,
    // After the sessions, the subscriber first: its subscription must end before the publisher's database is dropped.
    receiver: TestDb<'static>,
    sender: TestDb<'static>,
}

impl Pair {
    fn new(stem: &str, sender_has_agd: bool) -> Self {
        let sender =
            if sender_has_agd { publisher().agd_database(stem).unwrap() } else { publisher().database(stem).unwrap() };
        let receiver = subscriber().agd_database(stem).unwrap();
        Self { from: sender.connect().unwrap(), to: receiver.connect().unwrap(), receiver, sender }
    }

    /// CREATE SUBSCRIPTION to the publication `p`; waits until every table's first copy is done.
    fn subscribe(&mut self, name: &str, options: &str) {
        self.create_subscription(name, options);
        let ready = format!(
            "SELECT count(*) FILTER (WHERE srsubstate = 'r') = count(*) FROM pg_subscription_rel r
               JOIN pg_subscription s ON s.oid = r.srsubid WHERE s.subname = '{name}'"
        );
        eventually("every table was copied", PATIENCE, || self.to.query_one(&ready, &[]).unwrap().get(0));
    }

    fn create_subscription(&mut self, name: &str, options: &str) {
        let sql = format!(
            "CREATE SUBSCRIPTION {name} CONNECTION 'host={} dbname={} user=postgres' PUBLICATION p WITH (slot_name = '{}_{name}', {options})",
            publisher().socket_dir().display(),
            self.sender.name(),
            self.receiver.name(),
        );
        self.to.batch_execute(&sql).unwrap();
    }

    /// Waits until the subscriber has applied all that the publisher has committed.
    fn catch_up(&mut self, name: &str) {
        let here: String = self.from.query_one("SELECT pg_current_wal_lsn()::text", &[]).unwrap().get(0);
        let caught_up = format!(
            "SELECT coalesce(bool_or(confirmed_flush_lsn >= '{here}'::pg_lsn), false) FROM pg_replication_slots
              WHERE slot_name = '{}_{name}'",
            self.receiver.name()
        );
        eventually("the subscriber has caught up", PATIENCE, || self.from.query_one(&caught_up, &[]).unwrap().get(0));
    }

    fn column(&mut self, sql: &str) -> Vec<String> {
        self.to
            .query(sql, &[])
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"))
            .iter()
            .map(|row| row.get(0))
            .collect()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // A subscription that is still there would keep both databases from being dropped.
        let names = self.to.query("SELECT subname::text FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = current_database()", &[]);
        for row in names.unwrap_or_default() {
            let name: String = row.get(0);
            for sql in ["ALTER SUBSCRIPTION # DISABLE", "DROP SUBSCRIPTION #"] {
                if let Err(error) = self.to.batch_execute(&sql.replace('#', &name)) {
                    eprintln!("{sql}: {error}");
                }
            }
        }
    }
}

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

/// Trap: logical replication apply and the first copy of a table. Each row is recorded once, with where it came from;
/// a write of the subscriber's own is not mistaken for one.
#[test]
fn replicated_rows_are_recorded_once_with_their_origin() {
    let mut pair = Pair::new("apply", false);
    pair.from
        .batch_execute(&format!(
            "{TABLE}; INSERT INTO t SELECT i, 'copied' FROM generate_series(1, 5) i; CREATE PUBLICATION p FOR TABLE t"
        ))
        .unwrap();
    pair.to.batch_execute(&format!("{TABLE}; SELECT agd.guard('t')")).unwrap();
    // From 16 on a large transaction can be applied by a process of its own while it is still open.
    let parallel = pair.column("SELECT current_setting('server_version_num')")[0].as_str() >= "160000";
    pair.subscribe("orders_from_paris", if parallel { "streaming = parallel" } else { "streaming = on" });
    for sql in [
        "BEGIN; INSERT INTO t VALUES (6, 'applied'); UPDATE t SET v = 'changed' WHERE id = 1; DELETE FROM t WHERE id = 2; COMMIT",
        "BEGIN; INSERT INTO t VALUES (7, 'never'); ROLLBACK",
        "BEGIN; INSERT INTO t VALUES (8, 'kept'); SAVEPOINT a; INSERT INTO t VALUES (9, 'never'); ROLLBACK TO a; COMMIT",
        // Larger than logical_decoding_work_mem: streamed while it is open, with a subtransaction that is undone.
        "BEGIN; INSERT INTO t SELECT i, repeat('streamed', 20) FROM generate_series(1000, 2999) i; SAVEPOINT a;
         INSERT INTO t SELECT i, repeat('never', 20) FROM generate_series(3000, 3999) i; ROLLBACK TO a; UPDATE t SET id = 60 WHERE id = 6; COMMIT",
    ] {
        pair.from.batch_execute(sql).unwrap();
    }
    pair.catch_up("orders_from_paris");
    pair.to.batch_execute("INSERT INTO t VALUES (100, 'here')").unwrap();
    let recorded = pair.column(
        "SELECT format('%s %s %s %s %s', action, min((row_key->>'id')::int), count(*), binding, coalesce(principal, '-'))
           FROM agd.events WHERE relation = 'public.t' AND action <> 'GUARD'
          GROUP BY action, binding, principal, split_part(event_id, '-', 1) ORDER BY min(committed_at), action COLLATE \"C\"",
    );
    assert_eq!(
        recorded,
        [
            "INSERT 1 5 replication orders_from_paris",
            "DELETE 2 1 replication orders_from_paris",
            "INSERT 6 1 replication orders_from_paris",
            "UPDATE 1 1 replication orders_from_paris",
            "INSERT 8 1 replication orders_from_paris",
            "INSERT 1000 2000 replication orders_from_paris",
            "UPDATE 6 1 replication orders_from_paris",
            "INSERT 100 1 none -",
        ]
    );
    assert_eq!(
        pair.column("SELECT DISTINCT session_user_name FROM agd.events WHERE binding = 'replication'"),
        ["postgres"]
    );
    anchor(&mut pair.to);
    reconcile(&mut pair.to, "t", &["id"]);
    expect_each_event_in_one_leaf(&mut pair.to);
    expect_verified(&mut pair.to);
}

/// Trap: a replicated PREPARE TRANSACTION and COMMIT PREPARED. The latter is no statement of any session: its events are
/// taken up by the worker all the same, without anybody asking.
#[test]
fn replicated_two_phase_commit_is_integrated_by_itself() {
    let mut pair = Pair::new("twophase", false);
    pair.from.batch_execute(&format!("{TABLE}; CREATE PUBLICATION p FOR TABLE t")).unwrap();
    pair.to.batch_execute(&format!("{TABLE}; SELECT agd.guard('t')")).unwrap();
    pair.subscribe("s", "two_phase = true");
    // Until that is agreed between the two, a prepared transaction is sent when it is committed.
    let agreed = "SELECT subtwophasestate::text FROM pg_subscription WHERE subname = 's' AND subtwophasestate = 'e'";
    eventually("two-phase commit is on", PATIENCE, || pair.column(agreed) == ["e"]);
    pair.from.batch_execute("BEGIN; INSERT INTO t VALUES (1, 'prepared'); PREPARE TRANSACTION 'kept'").unwrap();
    pair.from.batch_execute("BEGIN; INSERT INTO t VALUES (2, 'prepared'); PREPARE TRANSACTION 'lost'").unwrap();
    pair.catch_up("s");
    let prepared = "SELECT count(*)::text FROM pg_prepared_xacts WHERE database = current_database()";
    eventually("both are prepared", PATIENCE, || pair.column(prepared) == ["2"]);
    anchor(&mut pair.to);
    assert_eq!(events(&mut pair.to, "t"), []);
    // The worker has nothing to wait for now; what follows must wake it.
    pair.from.batch_execute("COMMIT PREPARED 'kept'").unwrap();
    pair.from.batch_execute("ROLLBACK PREPARED 'lost'").unwrap();
    let leaf = "SELECT count(leaf_index)::text FROM agd.events WHERE relation = 'public.t' AND action = 'INSERT'";
    eventually("the event is in the log", PATIENCE, || pair.column(leaf) == ["1"]);
    pair.catch_up("s");
    assert_eq!(
        pair.column(
            "SELECT binding || ' ' || principal FROM agd.events WHERE relation NOT LIKE 'agd.%' AND action = 'INSERT'"
        ),
        ["replication s"]
    );
    anchor(&mut pair.to);
    reconcile(&mut pair.to, "t", &["id"]);
    expect_each_event_in_one_leaf(&mut pair.to);
    expect_verified(&mut pair.to);
}

/// Trap: rows of tenants that arrive by replication. They go to their tenants' logs; a row of a tenant that the subscriber
/// does not know stops the subscription, and creating the tenant lets it go on.
#[test]
fn replicated_rows_of_tenants_go_to_their_logs() {
    let mut pair = Pair::new("tenants", false);
    let table = "CREATE TABLE o (tenant text, id int, PRIMARY KEY (tenant, id))";
    pair.from
        .batch_execute(&format!("{table}; INSERT INTO o VALUES ('acme', 1); CREATE PUBLICATION p FOR TABLE o"))
        .unwrap();
    pair.to
        .batch_execute(&format!(
            "{table}; SELECT agd.create_tenant('acme'); SELECT agd.guard('o', tenant_column => 'tenant')"
        ))
        .unwrap();
    // From 16 on a subscription acts as each table's owner, whom the wall stops like anybody: it must act as its own.
    subscriber().create_role("orders_owner", "").unwrap();
    pair.to.batch_execute("ALTER TABLE o OWNER TO orders_owner").unwrap();
    let acts_as_owner = pair.column("SELECT current_setting('server_version_num')")[0].as_str() >= "160000";
    pair.subscribe(
        "s",
        if acts_as_owner { "disable_on_error = true, run_as_owner = true" } else { "disable_on_error = true" },
    );
    pair.from.batch_execute("INSERT INTO o VALUES ('acme', 2); INSERT INTO o VALUES ('globex', 1)").unwrap();
    let enabled = "SELECT subenabled::text FROM pg_subscription WHERE subname = 's' AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())";
    eventually("the subscription stopped", PATIENCE, || pair.column(enabled) == ["false"]);
    assert_eq!(pair.column("SELECT tenant FROM o WHERE tenant = 'globex'"), [""; 0]);
    assert!(subscriber().log().contains("there is no tenant \"globex\""), "{}", subscriber().log_tail());
    pair.to.batch_execute("SELECT agd.create_tenant('globex')").unwrap();
    pair.to.batch_execute("ALTER SUBSCRIPTION s ENABLE").unwrap();
    pair.catch_up("s");
    anchor(&mut pair.to);
    let who = pair.column(
        "SELECT format('%s %s %s %s', tenant, row_key->>'id', binding, principal) FROM agd.events WHERE relation = 'public.o' AND action = 'INSERT' ORDER BY 1",
    );
    assert_eq!(who, ["acme 1 replication s", "acme 2 replication s", "globex 1 replication s"]);
    reconcile(&mut pair.to, "o", &["tenant", "id"]);
    expect_each_event_in_one_leaf(&mut pair.to);
    expect_verified(&mut pair.to);
}

/// Trap: the apply worker fires no statement triggers. A superuser's subscription that would write the record, the log or
/// the guards of a database that has agd is refused row by row, whether it copies first or not.
#[test]
fn a_subscription_cannot_write_agds_own_tables() {
    let mut pair = Pair::new("record", true);
    pair.from
        .batch_execute(&format!(
            "{TABLE}; SELECT agd.create_tenant('theirs'); SELECT agd.guard('t'); CREATE PUBLICATION p FOR ALL TABLES"
        ))
        .unwrap();
    // Transaction numbers apart, so that no key of the one record is also one of the other.
    pair.from
        .batch_execute("DO $$ BEGIN FOR i IN 1..300 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$")
        .unwrap();
    pair.to.batch_execute(&format!("{TABLE}; SELECT agd.guard('t')")).unwrap();
    anchor(&mut pair.to);
    // The refusal itself is recorded.
    let state = "SELECT (SELECT count(*) FROM agd.event WHERE action <> 'DENIED')::text || ' ' || (SELECT count(*) FROM agd.tenant)
                        || ' ' || (SELECT count(*) FROM agd.guarded_table) || ' ' || (SELECT count(*) FROM agd.log)";
    let before = pair.column(state);
    // Without a first copy only the apply worker writes; it stops at the first row.
    pair.create_subscription("all_of_it", "copy_data = false, disable_on_error = true");
    let enabled = "SELECT subenabled::text FROM pg_subscription WHERE subname = 'all_of_it'";
    for (write, table) in
        [("INSERT INTO t VALUES (1, 'x')", "agd.event"), ("SELECT agd.create_tenant('more')", "agd.event")]
    {
        let seen = subscriber().log().len();
        pair.from.batch_execute(write).unwrap();
        eventually("the subscription stopped", PATIENCE, || pair.column(enabled) == ["false"]);
        let log = subscriber().log()[seen..].to_owned();
        let target = format!("for replication target relation \"{table}\"");
        assert!(log.contains("ERROR:") && log.contains(&target), "{log}");
        assert_eq!(pair.column(state), before, "after {write}");
        let denied =
            format!("SELECT DISTINCT relation FROM agd.event WHERE action = 'DENIED' AND relation = '{table}'");
        eventually("the refusal is recorded", PATIENCE, || pair.column(&denied) == [table]);
        // Past this transaction, on to the next, once the sender has noticed that nobody listens any more.
        let lsn: String = pair.from.query_one("SELECT pg_current_wal_lsn()::text", &[]).unwrap().get(0);
        let advance = format!("SELECT pg_replication_slot_advance('{}_all_of_it', '{lsn}')", pair.receiver.name());
        eventually("the slot is free", PATIENCE, || pair.from.batch_execute(&advance).is_ok());
        pair.to.batch_execute("ALTER SUBSCRIPTION all_of_it ENABLE").unwrap();
    }
    pair.to.batch_execute("ALTER SUBSCRIPTION all_of_it DISABLE").unwrap();
    pair.to.batch_execute("DROP SUBSCRIPTION all_of_it").unwrap();
    // With a first copy: the tables of agd stay as they are.
    pair.create_subscription("copied", "disable_on_error = true");
    let enabled = "SELECT subenabled::text FROM pg_subscription WHERE subname = 'copied'";
    eventually("the subscription stopped", PATIENCE, || pair.column(enabled) == ["false"]);
    assert_eq!(pair.column("SELECT tenant FROM agd.tenant"), [""; 0]);
    assert_eq!(pair.column("SELECT relation::text FROM agd.guarded_table"), ["t"]);
    expect_verified(&mut pair.to);
    // The guarded publisher is none the worse for it, and goes on.
    pair.from
        .batch_execute("INSERT INTO t VALUES (2, 'y'); UPDATE t SET v = 'z' WHERE id = 1; DELETE FROM t WHERE id = 2")
        .unwrap();
    anchor(&mut pair.from);
    reconcile(&mut pair.from, "t", &["id"]);
    expect_verified(&mut pair.from);
}

/// Every table of agd says no to another server's rows, whatever the row: asked of each by a session with a replication
/// origin, as the apply worker has one.
#[test]
fn every_table_of_agd_refuses_rows_from_another_server() {
    let database = subscriber().agd_database("origin").unwrap();
    let mut client = database.connect().unwrap();
    client
        .batch_execute(
            "CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t'); SELECT agd.create_tenant('acme');
             SELECT pg_replication_origin_create('elsewhere'); SELECT pg_replication_origin_session_setup('elsewhere')",
        )
        .unwrap();
    let tables: Vec<String> = client
        .query("SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'agd'::regnamespace AND relkind IN ('r', 'p') ORDER BY 1", &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(tables.len() >= 11, "{tables:?}");
    for table in &tables {
        for sql in [
            format!("DELETE FROM {table}"),
            format!("TRUNCATE {table} CASCADE"),
            format!("INSERT INTO {table} SELECT * FROM {table}"),
        ] {
            let error = expect_sqlstate(client.batch_execute(&sql), "AG002");
            assert!(error.hint().is_some(), "{sql}");
        }
        let row_triggers: i64 = client
            .query_one(
                "SELECT count(*) FROM pg_trigger WHERE tgrelid = $1::text::regclass AND tgenabled = 'A' AND tgtype = 31 AND tgname = 'refuse_replicated_row'",
                &[table],
            )
            .unwrap()
            .get(0);
        assert_eq!(row_triggers, 1, "{table}: the apply worker fires row triggers alone");
    }
    let error = expect_sqlstate(client.batch_execute("INSERT INTO agd.tenant VALUES ('theirs')"), "AG002");
    expect_hint(&error, "publication");
    // A write to a guarded table under that origin is recorded, and says so.
    client.batch_execute("INSERT INTO t VALUES (1)").unwrap();
    client.batch_execute("SELECT pg_replication_origin_session_reset()").unwrap();
    client.batch_execute("INSERT INTO t VALUES (2)").unwrap();
    let who: Vec<String> = client
        .query("SELECT format('%s %s %s', row_key->>'id', binding, coalesce(principal, '-')) FROM agd.events WHERE relation NOT LIKE 'agd.%' AND action = 'INSERT' ORDER BY 1", &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(who, ["1 replication elsewhere", "2 none -"]);
    client.batch_execute("SELECT pg_replication_origin_drop('elsewhere')").unwrap();
}

/// Trap: since PostgreSQL 16 an apply worker takes the rights of each table's owner, restricted where they are less than its
/// own. What it writes is recorded; what the owner's trigger writes is nobody's, and stops the subscription.
#[test]
fn what_a_tables_owner_has_an_apply_worker_run_is_nobodys() {
    let mut pair = Pair::new("nobodys", false);
    if pair.column("SELECT current_setting('server_version_num')")[0].as_str() < "160000" {
        return;
    }
    subscriber().create_role("nobodys_owner", "").unwrap();
    pair.from.batch_execute(&format!("{TABLE}; CREATE PUBLICATION p FOR TABLE t")).unwrap();
    let setup = "
        CREATE TABLE notes (id int PRIMARY KEY);
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.notes VALUES (NEW.id); RETURN NULL; END $$;
        CREATE TRIGGER tells AFTER INSERT ON t FOR EACH ROW WHEN (NEW.id > 1) EXECUTE FUNCTION note(); ALTER TABLE t ENABLE ALWAYS TRIGGER tells;
        ALTER TABLE t OWNER TO nobodys_owner; ALTER TABLE notes OWNER TO nobodys_owner; ALTER FUNCTION note() OWNER TO nobodys_owner;
        SELECT agd.guard('t'), agd.guard('notes')";
    pair.to.batch_execute(&format!("{TABLE}; {setup}")).unwrap();
    pair.subscribe("s", "run_as_owner = false");
    pair.from.batch_execute("INSERT INTO t VALUES (1, 'applied')").unwrap();
    pair.catch_up("s");
    pair.from.batch_execute("INSERT INTO t VALUES (2, 'stops')").unwrap();
    let refused = "SELECT body FROM agd.events WHERE action = 'DENIED' AND relation = 'public.notes' AND body LIKE '%security-restricted%'";
    eventually("the trigger's write is refused", PATIENCE, || !pair.to.query(refused, &[]).unwrap().is_empty());
    let rows = "SELECT 't ' || id FROM t UNION ALL SELECT 'notes ' || id FROM notes ORDER BY 1";
    assert_eq!(pair.column(rows), ["t 1"]);
    pair.to.batch_execute("ALTER SUBSCRIPTION s SET (run_as_owner = true)").unwrap();
    pair.catch_up("s");
    assert_eq!(pair.column(rows), ["notes 2", "t 1", "t 2"]);
    anchor(&mut pair.to);
    let recorded = "SELECT format('%s %s %s', row_key->>'id', binding, role_name) FROM agd.events WHERE action = 'INSERT' AND relation = 'public.t' ORDER BY 1";
    assert_eq!(pair.column(recorded), ["1 replication postgres", "2 replication postgres"]);
    reconcile(&mut pair.to, "t", &["id"]);
    expect_verified(&mut pair.to);
}
