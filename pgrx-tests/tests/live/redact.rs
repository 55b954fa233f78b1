//! Redacted columns: the value is nowhere in the record, and what stands in its place still tells a change.

use agd_live_tests::record::{anchor, events, expect_each_event_in_one_leaf, expect_verified};
use agd_live_tests::{Cluster, Watch, expect_hint, expect_sqlstate};
use hmac::{Hmac, KeyInit as _, Mac as _};
use postgres::Client;
use sha2::Sha256;
use std::collections::HashSet;
use std::sync::OnceLock;

fn set_up(stem: &str, setup: &str) -> Watch {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    Watch::new(CLUSTER.get_or_init(|| Cluster::builder().start().unwrap()), stem, setup).unwrap()
}

/// What no test may find anywhere in the record: it is in every value that is redacted.
const SECRET: &str = "Zq7secret";

/// The record's tables, their TOAST tables and indexes, the entries, and what agd tells: nowhere is the secret.
#[track_caller]
fn expect_nowhere(client: &mut Client) {
    client.batch_execute("CHECKPOINT").unwrap();
    let files = client
        .query(
            "WITH record AS (
               SELECT oid, reltoastrelid FROM pg_class WHERE relnamespace = 'agd'::regnamespace AND relkind = 'r'
             ), files AS (
               SELECT oid FROM record UNION SELECT reltoastrelid FROM record WHERE reltoastrelid <> 0
               UNION SELECT indexrelid FROM pg_index WHERE indrelid IN (SELECT oid FROM record)
             )
             SELECT oid::regclass::text, position(convert_to($1, 'UTF8') IN pg_read_binary_file(pg_relation_filepath(oid))) FROM files",
            &[&SECRET],
        )
        .unwrap();
    assert!(files.len() > 20, "the record has only {} files", files.len());
    for row in files {
        assert_eq!(row.get::<_, i32>(1), 0, "the secret is in {}", row.get::<_, String>(0));
    }
    anchor(client);
    let entries: Vec<String> = client
        .query("SELECT convert_from(e.entry, 'UTF8') FROM agd.log l, agd.entries(l.origin, 0, l.size) e", &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(!entries.is_empty());
    let told: Vec<String> =
        client.query("SELECT v::text FROM agd.events v", &[]).unwrap().iter().map(|row| row.get(0)).collect();
    for text in entries.iter().chain(&told) {
        assert!(!text.contains(SECRET), "{text}");
    }
}

/// A column of every image after a write, in order.
fn images_of(client: &mut Client, table: &str, column: &str) -> Vec<Option<String>> {
    let query = format!(
        "SELECT new->>'{column}' FROM agd.events
          WHERE guard_id = agd.guard_id('{table}') AND new IS NOT NULL AND action NOT IN ('DDL', 'GUARD')
          ORDER BY committed_at, split_part(event_id, '-', 2)::int"
    );
    client.query(query.as_str(), &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

const PEOPLE: &str = "CREATE TABLE people (id int PRIMARY KEY, name text, ssn text, card jsonb);
    INSERT INTO people VALUES (1, 'ann', 'Zq7secret 1', '{\"n\": \"Zq7secret\"}'), (2, 'bob', NULL, NULL);
    SELECT agd.guard('people', redact => '{ssn,card}');";

#[test]
fn a_redacted_value_is_nowhere_in_the_record() {
    let mut g = set_up("nowhere", PEOPLE);
    g.run("INSERT INTO people VALUES (3, 'cy', 'Zq7secret 1', '\"Zq7secret\"'), (4, 'di', 'Zq7secret 1', NULL)");
    g.run("UPDATE people SET ssn = 'Zq7secret 2' WHERE id = 3; UPDATE people SET name = 'dee' WHERE id = 4");
    g.run("UPDATE people SET id = 30 WHERE id = 3; UPDATE people SET ssn = repeat('Zq7secret', 5000) WHERE id = 4");
    g.run(
        "INSERT INTO people VALUES (1, 'ann', 'Zq7secret 9', NULL) ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn",
    );
    g.run("BEGIN; SAVEPOINT s; INSERT INTO people VALUES (5, 'ed', 'Zq7secret', NULL); ROLLBACK TO s; COMMIT");
    g.run("DELETE FROM people WHERE id = 2");
    expect_sqlstate(g.batch_execute("TRUNCATE people"), "AG002");
    expect_sqlstate(g.batch_execute("INSERT INTO people VALUES (1, 'x', 'Zq7secret', NULL)"), "23505");
    expect_nowhere(&mut g);
    // Whether anything is found at all shows on a table that is not redacted.
    let problems: Vec<String> = g.column("SELECT problem FROM agd.verify_table('people')");
    assert_eq!(problems, [""; 0]);
    assert!(events(&mut g, "people").iter().any(|event| event.new.as_deref().is_some_and(|new| new.contains("dee"))));
    expect_each_event_in_one_leaf(&mut g);
    expect_verified(&mut g);
    g.run("CREATE TABLE open (id int PRIMARY KEY, v text); SELECT agd.guard('open'); INSERT INTO open VALUES (1, 'Zq7secret')");
    let found: i64 = g.one("SELECT count(*) FROM agd.event e WHERE e::text LIKE '%Zq7secret%'");
    assert_eq!(found, 1);
}

#[test]
fn the_digest_tells_a_change_and_nothing_else() {
    let mut g = set_up("digest", PEOPLE);
    g.run("INSERT INTO people VALUES (3, 'cy', 'Zq7secret 1', NULL); UPDATE people SET name = 'cyd' WHERE id = 3");
    g.run("UPDATE people SET ssn = 'Zq7secret 2' WHERE id = 3; UPDATE people SET ssn = 'Zq7secret 1' WHERE id = 3");
    g.run("UPDATE people SET ssn = NULL WHERE id = 3");
    let digests = images_of(&mut g, "people", "ssn");
    let [ann, bob, inserted, renamed, changed, back, gone] = digests.as_slice() else { panic!("{digests:?}") };
    assert_eq!((bob, gone), (&None, &None), "NULL stays null");
    assert_eq!(inserted, renamed, "an untouched value stays the same");
    assert_eq!(inserted, back, "the same value of the same row is the same again");
    assert_ne!(inserted, changed);
    assert_ne!(inserted, ann, "equal values of two rows do not show as equal");
    for digest in [ann, inserted, changed] {
        let hex = digest.as_deref().unwrap().strip_prefix("hmac-sha256:").unwrap();
        assert!(hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{hex}");
    }
    // Exactly what the documentation says, so that whoever holds the key can check a value.
    let key: Vec<u8> = g.one("SELECT key FROM agd.redaction_key WHERE guard_id = agd.guard_id('people')");
    assert_eq!(key.len(), 32);
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
    for part in ["ssn", "{\"id\":1}", "\"Zq7secret 1\""] {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part.as_bytes());
    }
    let expected: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(ann.as_deref(), Some(format!("hmac-sha256:{expected}").as_str()));
    // History and reconciliation see the digests, old and new.
    let history: Vec<String> = g.column(
        "SELECT concat_ws(' ', action, left(old->>'ssn', 12), left(new->>'ssn', 12)) FROM agd.history('people', '{\"id\": 3}')",
    );
    assert_eq!(
        history,
        [
            "INSERT hmac-sha256:",
            "UPDATE hmac-sha256: hmac-sha256:",
            "UPDATE hmac-sha256: hmac-sha256:",
            "UPDATE hmac-sha256: hmac-sha256:",
            "UPDATE hmac-sha256:",
        ]
    );
    assert_eq!(g.column::<String>("SELECT problem FROM agd.verify_table('people')"), [""; 0]);
    // A change past the gate shows, and does not tell the value. (Past the gate: the trigger is switched off in the
    // catalog, which sessions that begin later go by.)
    let switch = |g: &mut Watch, state: &str| {
        g.run(&format!(
            "SET allow_system_table_mods = on;
             UPDATE pg_trigger SET tgenabled = '{state}' WHERE tgrelid = 'people'::regclass AND tgname LIKE '~agd%'"
        ));
    };
    switch(&mut g, "D");
    let mut past = g.database().connect().unwrap();
    past.batch_execute("UPDATE people SET ssn = 'Zq7secret 3' WHERE id = 1").unwrap();
    switch(&mut g, "A");
    let problems: Vec<String> =
        g.column("SELECT concat_ws(' ', row_key->>'id', problem) FROM agd.verify_table('people')");
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].starts_with("1 row differs from its last record in ssn: recorded \"hmac-sha256:"),
        "{problems:?}"
    );
    assert!(!problems[0].contains(SECRET));
}

#[test]
fn what_cannot_be_redacted_is_refused_and_the_table_is_as_it_was() {
    let mut g = set_up(
        "badredact",
        "CREATE TABLE t (tenant text, id int, ssn text, made text GENERATED ALWAYS AS (ssn || '!') STORED, gone text, PRIMARY KEY (tenant, id));
         ALTER TABLE t DROP COLUMN gone; SELECT agd.create_tenant('acme');
         CREATE TABLE u (owner text, id int PRIMARY KEY, ssn text)",
    );
    let state = "SELECT (SELECT count(*) FROM pg_trigger WHERE tgrelid IN ('t'::regclass, 'u'::regclass)) + (SELECT count(*) FROM agd.guarded_table)
                      + (SELECT count(*) FROM agd.redaction_key) + (SELECT count(*) FROM agd.event WHERE relation NOT LIKE 'agd.%')";
    for (call, hint) in [
        ("agd.guard('t', redact => '{ssn,nosuch}')", "columns of the table"),
        ("agd.guard('t', redact => '{ssn,gone}')", "columns of the table"),
        ("agd.guard('t', redact => '{ctid}')", "columns of the table"),
        ("agd.guard('t', redact => '{SSN}')", "columns of the table"),
        ("agd.guard('t', redact => '{ssn,NULL}')", "NULL"),
        ("agd.guard('t', redact => '{ssn,ssn}')", "once"),
        ("agd.guard('t', redact => '{made}')", "computed from"),
        ("agd.guard('t', redact => '{id}')", "key"),
        ("agd.guard('t', tenant_column => 'tenant', redact => '{tenant}')", "key"),
        ("agd.guard('u', tenant_column => 'owner', redact => '{ssn,owner}')", "tenant"),
    ] {
        let error = expect_sqlstate(g.batch_execute(&format!("SELECT {call}")), "22023");
        expect_hint(&error, hint);
        assert_eq!(g.one::<i64>(state), 0, "after {call}");
    }
    for call in ["agd.guard('t', redact => NULL)", "agd.guard('u', redact => '{}')"] {
        g.run(&format!("SELECT {call}"));
    }
    assert_eq!(g.one::<i64>("SELECT count(*) FROM agd.redaction_key"), 0);
    // Nobody is shown a key.
    g.run("CREATE ROLE badredact_reader IN ROLE agd_platform, agd_auditor, agd_publisher, agd_tenant; SET ROLE badredact_reader");
    expect_sqlstate(g.batch_execute("SELECT * FROM agd.redaction_key"), "42501");
    g.run("RESET ROLE");
}

/// The digest of a value does not depend on the session, and every type's value reconciles.
#[test]
fn every_type_is_redacted_alike_in_every_session() {
    let mut g = set_up(
        "types",
        "CREATE TYPE mood AS ENUM ('fine');
         CREATE TABLE v (id int PRIMARY KEY, b bool, i int, f float8, n numeric, c char(8), by bytea, d date, ts timestamptz, iv interval, j json, jb jsonb,
           ia int[], r tstzrange, e mood, m money, tz timetz, \"odd \"\" name\" text);
         SELECT agd.guard('v', redact => ARRAY['b', 'i', 'f', 'n', 'c', 'by', 'd', 'ts', 'iv', 'j', 'jb', 'ia', 'r', 'e', 'm', 'tz', 'odd \" name']::name[])",
    );
    let values = "true, 42, 0.1::float8 + 0.2, 1.10, 'pad', '\\x00ff', '2024-02-29', '2024-02-29 23:59:59.999999+05:45', '1 mon 2 days 03:04:05', '{\"a\" : 1}',
                  '[1, null]', '{1,NULL}', '[2024-01-01 00:00+00,)', 'fine', 12.34, '12:00+05:45', 'Zq7secret'";
    for (id, session) in [
        "SET DateStyle = 'ISO, YMD'",
        "SET DateStyle = 'SQL, DMY'; SET TimeZone = 'Asia/Kathmandu'; SET IntervalStyle = 'iso_8601'; SET extra_float_digits = -15; SET bytea_output = 'escape'",
        "SET DateStyle = 'German'; SET search_path = ''",
    ]
    .into_iter()
    .enumerate()
    {
        g.run(session);
        g.run(&format!("INSERT INTO public.v VALUES ({id}, {values}); UPDATE public.v SET id = id WHERE id = {id}"));
    }
    g.run("RESET ALL; INSERT INTO v (id) VALUES (9)");
    assert_eq!(g.column::<String>("SELECT problem FROM agd.verify_table('v')"), [""; 0]);
    let plain: Vec<String> = g.column(
        "SELECT DISTINCT key FROM agd.events, jsonb_each(new) WHERE guard_id = agd.guard_id('v') AND action <> 'GUARD' AND new IS NOT NULL
            AND key <> 'id' AND value <> 'null' AND (jsonb_typeof(value) <> 'string' OR value #>> '{}' !~ '^hmac-sha256:[0-9a-f]{64}$')",
    );
    assert_eq!(plain, [""; 0]);
    // One digest a column, row and value: what is written twice shows once.
    let digests: Vec<String> = g.column(
        "SELECT value #>> '{}' FROM agd.events, jsonb_each(new) WHERE guard_id = agd.guard_id('v') AND action = 'INSERT' AND value #>> '{}' LIKE 'hmac%'",
    );
    assert_eq!(digests.len(), 3 * 17);
    assert_eq!(digests.iter().collect::<HashSet<_>>().len(), 3 * 17);
    expect_nowhere(&mut g);
    let body: String = g.one("SELECT body FROM agd.events WHERE action = 'GUARD'");
    assert!(body.ends_with("redact=b,i,f,n,c,by,d,ts,iv,j,jb,ia,r,e,m,tz,\"odd \"\" name\""), "{body}");
}

#[test]
fn partitions_are_redacted_by_name() {
    let mut g = set_up(
        "redparts",
        "CREATE TABLE p (id int, kind text, ssn text, PRIMARY KEY (id, kind)) PARTITION BY LIST (kind);
         CREATE TABLE p_a PARTITION OF p FOR VALUES IN ('a');
         CREATE TABLE p_b (junk int, ssn text, more int, kind text NOT NULL, id int NOT NULL, PRIMARY KEY (id, kind));
         ALTER TABLE p_b DROP COLUMN junk, DROP COLUMN more; ALTER TABLE p ATTACH PARTITION p_b FOR VALUES IN ('b');
         INSERT INTO p VALUES (1, 'a', 'Zq7secret 1'), (1, 'b', 'Zq7secret 1');
         CREATE TABLE p_c (ssn text, id int NOT NULL, kind text NOT NULL, PRIMARY KEY (id, kind)); INSERT INTO p_c VALUES ('Zq7secret 7', 7, 'c');
         SELECT agd.guard('p', redact => '{ssn}')",
    );
    g.run("INSERT INTO p VALUES (2, 'a', 'Zq7secret 2'), (3, 'b', 'Zq7secret 3'); INSERT INTO p_b (id, kind, ssn) VALUES (4, 'b', 'Zq7secret 4')");
    // A row that moves is the same row to its digest only if its key is: here the key changes.
    g.run("UPDATE p SET kind = 'b' WHERE id = 2; UPDATE p SET ssn = 'Zq7secret 5' WHERE id = 3; DELETE FROM p WHERE id = 4");
    g.run("ALTER TABLE p ATTACH PARTITION p_c FOR VALUES IN ('c'); UPDATE p SET ssn = ssn || '!' WHERE kind = 'c'");
    g.run("CREATE TABLE p_d PARTITION OF p FOR VALUES IN ('d'); INSERT INTO p_d VALUES (8, 'd', 'Zq7secret 8')");
    assert_eq!(g.column::<String>("SELECT problem FROM agd.verify_table('p')"), [""; 0]);
    let digests: HashSet<String> = images_of(&mut g, "p", "ssn").into_iter().map(Option::unwrap).collect();
    assert!(digests.iter().all(|digest| digest.starts_with("hmac-sha256:")), "{digests:?}");
    assert_eq!(digests.len(), 10, "each row and value its own digest");
    expect_nowhere(&mut g);
    expect_verified(&mut g);
}

#[test]
fn a_column_that_cannot_be_redacted_any_more_is_not_recorded_in_plain() {
    let mut g = set_up("renamed", PEOPLE);
    let mut other = g.database().connect().unwrap();
    other.batch_execute("INSERT INTO people VALUES (10, 'x', 'Zq7secret', NULL)").unwrap();
    let insert = "INSERT INTO people VALUES (11, 'y', 'Zq7secret', NULL)";
    // DDL that would do so is refused.
    for ddl in [
        "ALTER TABLE people RENAME COLUMN ssn TO national_id",
        "ALTER TABLE people DROP COLUMN card",
        "UPDATE people SET ssn = id; ALTER TABLE people DROP CONSTRAINT people_pkey, ADD PRIMARY KEY (ssn)",
    ] {
        expect_sqlstate(g.batch_execute(ddl), "AG002");
    }
    // Somebody goes past DDL, straight to the catalog: the gate looks itself.
    let rename = |from: &str, to: &str| {
        format!(
            "SET allow_system_table_mods = on;
             UPDATE pg_attribute SET attname = '{to}' WHERE attrelid = 'people'::regclass AND attname = '{from}'"
        )
    };
    g.run(&rename("ssn", "national_id"));
    for client in [&mut *g, &mut other] {
        let error = expect_sqlstate(client.batch_execute(insert), "55000");
        assert!(error.message().contains("\"ssn\"") && error.message().contains("not there"), "{}", error.message());
        expect_hint(&error, "agd.unguard");
    }
    g.run(&rename("national_id", "ssn"));
    other.batch_execute(insert).unwrap();
    // Without its key a table is written no more; with a new guard it has a new one.
    let before = images_of(&mut g, "people", "ssn");
    g.run("DELETE FROM agd.redaction_key");
    let mut fresh = g.database().connect().unwrap();
    let error = expect_sqlstate(fresh.batch_execute("UPDATE people SET name = 'z'"), "55000");
    expect_hint(&error, "new key");
    g.run("SELECT agd.unguard('people', 'its key was deleted'); SELECT agd.guard('people', redact => '{ssn,card}')");
    fresh.batch_execute("UPDATE people SET name = 'z'").unwrap();
    let after = images_of(&mut g, "people", "ssn");
    assert!(
        after.iter().flatten().all(|digest| !before.iter().flatten().any(|old| old == digest)),
        "the same key again"
    );
    assert_eq!(g.column::<String>("SELECT problem FROM agd.verify_table('people')"), [""; 0]);
    expect_nowhere(&mut g);
}
