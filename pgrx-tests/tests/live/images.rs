//! Row images: the text that is hashed is the row, whatever the types, the settings and the table's past.

use agd_live_tests::record::{anchor, expect_verified, reconcile};
use agd_live_tests::{Cluster, Watch};
use std::sync::OnceLock;

fn set_up(stem: &str, setup: &str) -> Watch {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    Watch::new(CLUSTER.get_or_init(|| Cluster::builder().start().unwrap()), stem, setup).unwrap()
}

/// Values at the edges of their types, one row an element.
const VALUES: [&str; 3] = [
    r#"true, -32768, 9223372036854775807, '3.4028235e38', 0.1::float8 + 0.2, '-12345678901234567890.12345678901234567890',
       'pad', 'v', E'q"\\ \t\n\r\x01\x1f \u2028 \U0001F600 </script>', '\x00ff5c22', '4713-01-01 BC', '23:59:60',
       '12:00:00+05:45', '0044-03-15 10:00:00.000001 BC', '2024-02-29 23:59:59.999999+05:45',
       '-1 years 2 mons -3 days 04:05:06.000007', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', '{"a" : 1.10, "a":2}',
       '{"b": [1e40, null, "\u00e9"]}', '{1,NULL,-3}', '{{"a,b","NULL"},{"",NULL}}', '{2024-01-01 00:00+00,infinity}',
       '[2024-01-01 00:00+00,2024-06-01 00:00+00)', '{[1,3),[5,7)}', 'so "so"', ROW(1, '2024-01-01 00:00+00'), 'short', 12.5,
       '10.0.0.0/8', '08:00:2b:01:02:03', B'10101', B'1', '(1.5,0.1)', '((0,0),(0.1,1e300))', '<a b="c">&amp;</a>', 'a & b:*',
       'a:1A b', 12.34, 4294967295, 'public.v', 'x', 'na"me', '$.a[*] ? (@ > 1)', '16/B374D848', '((1,2),(3,4))', '1 day'"#,
    r#"false, 32767, -9223372036854775808, 'NaN', '-Infinity', 'NaN', '', '', '', '', 'infinity', '00:00', '00:00-15:59',
       '-infinity', 'infinity', '0', '00000000-0000-0000-0000-000000000000', 'null', 'null', '{}', '{}', '{}', 'empty', '{}',
       'fine', ROW(NULL, NULL), 'x', 0, '::1', '00:00:00:00:00:00', B'00000', B'', '(NaN,Infinity)', '((0,0))', '<x/>', '', '', 0,
       0, 'pg_class', '', '', '$', '0/0', '((0,0),(0,0))', '-1 mons'"#,
    r#"NULL, 0, 0, '-0', '5e-324', 'Infinity', '  x', ' ', '''', '\x', '-infinity', '24:00', '24:00-00', 'epoch', 'epoch',
       '178000000 years', gen_random_uuid(), '"text"', '"text"', '[5:6]={1,2}', '{}', '{-infinity}', '(,)', '{(,)}', NULL, NULL,
       NULL, 99999.99, 'fe80::1/64', NULL, NULL, B'0001', '(-0,0)', NULL, 'content <a/> mixed', '!a', 'x', -92233720368547758.08,
       1, NULL, '"', '', 'strict $', 'FFFFFFFF/FFFFFFFF', NULL, '00:00:00.1'"#,
];

/// Sessions whose settings change what the types' output functions say.
const SESSIONS: [&str; 4] = [
    "SET DateStyle = 'ISO, YMD'",
    "SET DateStyle = 'SQL, DMY'; SET TimeZone = 'Asia/Kathmandu'; SET IntervalStyle = 'iso_8601'; SET extra_float_digits = -15;
     SET bytea_output = 'escape'; SET xmlbinary = 'hex'",
    "SET DateStyle = 'German'; SET TimeZone = 'Africa/Monrovia'; SET IntervalStyle = 'sql_standard'; SET extra_float_digits = 3;
     SET search_path = ''",
    "SET DateStyle = 'Postgres, MDY'; SET TimeZone = '<odd>+03:17'; SET IntervalStyle = 'postgres_verbose';
     SET quote_all_identifiers = on; SET search_path = pg_temp, public",
];

#[test]
fn recorded_images_are_the_row_whatever_the_session_says() {
    let mut g = set_up("images", "");
    // A server can be built without XML; its column is text then.
    let xml = if g.simple_query("SELECT '<a/>'::xml").is_ok() { "xml" } else { "text" };
    let table = r#"CREATE TYPE mood AS ENUM ('so "so"', 'fine');
           CREATE TYPE pair AS (a int, b timestamptz);
           CREATE DOMAIN short AS varchar(20) CHECK (value <> '');
           CREATE DOMAIN price AS numeric(12,2);
           CREATE DOMAIN span AS interval;
           CREATE TABLE v (
             id int PRIMARY KEY, b bool, i2 int2, i8 int8, f4 float4, f8 float8, n numeric, c char(8), vc varchar(20), tx text,
             by bytea, d date, t time(3), tz timetz, ts timestamp, tstz timestamptz, iv interval, u uuid, j json, jb jsonb,
             ia int[], ta text[][], tstza timestamptz[], r tstzrange, mr int4multirange, e mood, co pair, dm short, pr price,
             inet inet, mac macaddr, bi bit(5), vb varbit, pt point, po polygon, x xml, q tsquery, v tsvector, m money, o oid,
             rc regclass, ch "char", na name, jp jsonpath, lsn pg_lsn, bx box, sp span);
           SELECT agd.guard('v')"#;
    g.run(&table.replace("x xml", &format!("x {xml}")));
    for (index, row) in VALUES.iter().enumerate() {
        g.run(&format!("INSERT INTO public.v VALUES ({index}, {row})"));
        for settings in SESSIONS {
            g.run(&format!("{settings}; UPDATE public.v SET id = id WHERE id = {index}; RESET ALL"));
        }
    }
    // Byte for byte: what will be hashed does not depend on the session.
    let texts = g
        .query(
            "SELECT new::text, old::text FROM agd.event WHERE relation = 'public.v' AND action IN ('INSERT', 'UPDATE')
              ORDER BY (new->>'id')::int, xact_id, n",
            &[],
        )
        .unwrap();
    assert_eq!(texts.len(), VALUES.len() * (1 + SESSIONS.len()));
    for row in texts.chunks(1 + SESSIONS.len()) {
        let first: String = row[0].get(0);
        for update in &row[1..] {
            assert_eq!(update.get::<_, String>(0), first);
            assert_eq!(update.get::<_, String>(1), first);
        }
    }
    // Column by column, cast back: the value itself, NULL where it is NULL. Compared in the type's binary form, which tells
    // -0 from 0 and needs no equality, which json, point and xml lack.
    let columns = g
        .query(
            "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), t.typsend::regproc::text
               FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
              WHERE a.attrelid = 'v'::regclass AND a.attnum > 0 ORDER BY a.attnum",
            &[],
        )
        .unwrap();
    assert_eq!(columns.len(), 47);
    for column in columns {
        let (name, kind, send): (String, String, String) = (column.get(0), column.get(1), column.get(2));
        let wrong: Vec<String> = g.column(&format!(
            "SELECT format('row %s recorded %s, stored %s', v.id, e.new->>'{name}', v.{name}::text)
               FROM agd.event e JOIN v ON v.id = (e.new->>'id')::int
              WHERE e.relation = 'public.v' AND e.new IS NOT NULL
                AND (num_nulls(v.{name}) <> num_nulls(e.new->>'{name}')
                  OR {send}((e.new->>'{name}')::{kind}) IS DISTINCT FROM {send}(v.{name}))"
        ));
        assert!(wrong.is_empty(), "column {name} {kind}: {wrong:#?}");
    }
    assert_eq!(g.column::<String>("SELECT problem FROM agd.verify_table('v')"), [""; 0]);
    anchor(&mut g);
    expect_verified(&mut g);
}

#[test]
fn columns_that_come_go_and_are_generated() {
    let mut g = set_up(
        "columns",
        "CREATE TABLE t (gone int, id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, v text DEFAULT 'd',
                         twice text GENERATED ALWAYS AS (v || v) STORED);
         ALTER TABLE t DROP COLUMN gone; INSERT INTO t (v) VALUES ('before the guard'); SELECT agd.guard('t')",
    );
    assert_eq!(g.briefs("t"), ["BASELINE 1"]);
    g.records("t", "INSERT INTO t DEFAULT VALUES; UPDATE t SET v = 'x' WHERE id = 2", &["INSERT 2", "UPDATE 2"]);
    // A fast default: the rows are not rewritten, and yet what they say now is recorded.
    g.records("t", "ALTER TABLE t ADD COLUMN fast int DEFAULT 42", &["BASELINE 1", "BASELINE 2"]);
    g.records("t", "UPDATE t SET v = 'y'", &["UPDATE 1", "UPDATE 2"]);
    let with_default = "SELECT count(*) FROM agd.events WHERE old->>'fast' = '42' AND new->>'fast' = '42'";
    assert_eq!(g.one::<i64>(with_default), 2);
    g.run(
        "ALTER TABLE t ALTER COLUMN fast TYPE text USING fast::text || '!'; ALTER TABLE t RENAME COLUMN v TO w;
         ALTER TABLE t DROP COLUMN fast",
    );
    // The statement's own expression changed the rows.
    assert_eq!(g.briefs("t"), ["BASELINE 1", "BASELINE 2"]);
    g.records("t", "UPDATE t SET w = 'z' WHERE id = 1; INSERT INTO t (w) VALUES ('last')", &["UPDATE 1", "INSERT 3"]);
    assert_eq!(g.one::<i64>("SELECT count(*) FROM agd.events WHERE new ? 'twice' OR new ? 'gone'"), 0);
    // Rewrites, moves and renames of the table leave the guard in place and no event of a row.
    g.records("t", "VACUUM FULL t", &[]);
    g.run(
        "CLUSTER t USING t_pkey; REINDEX TABLE t; CREATE SCHEMA s; ALTER TABLE t SET SCHEMA s; ALTER TABLE s.t RENAME TO u;
         SET search_path = s, public; ALTER TABLE u SET (fillfactor = 70)",
    );
    g.records("u", "INSERT INTO u (w) VALUES ('under a new name')", &["INSERT 4"]);
    assert_eq!(g.one::<String>("SELECT relation FROM agd.events WHERE row_key->>'id' = '4'"), "s.u");
    assert_eq!(g.column::<String>("SELECT problem FROM agd.verify_table('u')"), [""; 0]);
    if g.version() >= 180_000 {
        g.run(
            "CREATE TABLE virt (id int PRIMARY KEY, v int, w int GENERATED ALWAYS AS (v * 2) VIRTUAL); SELECT agd.guard('virt')",
        );
        let sql = "INSERT INTO virt VALUES (1, 2); UPDATE virt SET v = 3; DELETE FROM virt";
        g.records("virt", sql, &["INSERT 1", "UPDATE 1", "DELETE 1"]);
    }
}

/// Rows that nobody has written since have their columns' old names in the record.
#[test]
fn renamed_columns_are_compared_under_the_names_they_have_now() {
    let mut g = set_up(
        "renamed",
        "CREATE TABLE t (id int PRIMARY KEY, a text, b text, c text); SELECT agd.guard('t');
         INSERT INTO t SELECT i, 'a' || i, 'b' || i, 'c' || i FROM generate_series(1, 5) i;
         CREATE TABLE p (id int, v int, w int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100); SELECT agd.guard('p'); INSERT INTO p VALUES (1, 2, 3)",
    );
    // Two columns change places, one goes and another one takes its name, and one more is renamed and renamed back.
    g.run(
        "ALTER TABLE t RENAME a TO x; ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME COLUMN x TO b;
         UPDATE t SET a = 'new' WHERE id = 2; ALTER TABLE t DROP COLUMN c;
         DO $$ BEGIN
           ALTER TABLE t RENAME a TO c; ALTER TABLE t RENAME b TO \"weird \"\"name\"; ALTER TABLE t RENAME \"weird \"\"name\" TO b;
           BEGIN ALTER TABLE t RENAME c TO lost; RAISE EXCEPTION 'no'; EXCEPTION WHEN OTHERS THEN NULL; END;
         END $$;
         ALTER TABLE p RENAME v TO was_v; BEGIN; ALTER TABLE p RENAME w TO v",
    );
    let problems = "SELECT row_key->>'id' || ' ' || problem FROM agd.verify_table('t') ORDER BY 1";
    assert_eq!(g.column::<String>(problems), [""; 0]);
    assert_eq!(g.column::<String>("SELECT problem FROM agd.verify_table('p')"), [""; 0]);
    g.run("COMMIT");
    assert_eq!(g.column::<String>("SELECT problem FROM agd.verify_table('p')"), [""; 0]);
    let mut tamperer = g.database().tamperer().unwrap();
    let change =
        "UPDATE t SET c = 'changed' WHERE id IN (1, 2); UPDATE t SET b = 'changed' WHERE id = 3; UPDATE p SET v = 4";
    tamperer.batch_execute(change).unwrap();
    tamperer.commit().unwrap();
    assert_eq!(
        g.column::<String>(problems),
        [
            "1 row differs from its last record in c: recorded \"b1\", found \"changed\"",
            "2 row differs from its last record in c: recorded \"new\", found \"changed\"",
            "3 row differs from its last record in b: recorded \"a3\", found \"changed\"",
        ]
    );
    let problem = g.one::<String>("SELECT problem FROM agd.verify_table('p')");
    assert_eq!(problem, "row differs from its last record in v: recorded 3, found 4");
}

#[test]
fn values_out_of_line() {
    let mut g = set_up(
        "toast",
        "CREATE TABLE t (id int PRIMARY KEY, n int, external text, compressed text, huge text);
         ALTER TABLE t ALTER COLUMN external SET STORAGE EXTERNAL; SELECT agd.guard('t')",
    );
    g.records(
        "t",
        "INSERT INTO t SELECT 1, 0, string_agg(md5(i::text), ''), repeat('c', 100000), string_agg(md5((-i)::text), '')
           FROM generate_series(1, 100000) i",
        &["INSERT 1"],
    );
    // The stored value is carried over unread: what BEFORE sees is a pointer, what is confirmed is the same value.
    g.records("t", "UPDATE t SET n = 1", &["UPDATE 1"]);
    g.records("t", "UPDATE t SET external = external || 'x', n = 2", &["UPDATE 1"]);
    g.records("t", "INSERT INTO t SELECT 2, n, external, compressed, huge FROM t", &["INSERT 2"]);
    let same: bool = g.one(
        "SELECT bool_and(e.new->>'huge' = t.huge AND e.new->>'compressed' = t.compressed) FROM agd.events e, t WHERE e.new IS NOT NULL",
    );
    assert!(same);
    g.records("t", "DELETE FROM t WHERE id = 2", &["DELETE 2"]);
    reconcile(&mut g, "t", &["id"]);
}

#[test]
fn a_table_as_wide_as_tables_get() {
    let columns: Vec<String> = (1..1600).map(|i| format!("c{i} int")).collect();
    let mut g =
        set_up("wide", &format!("CREATE TABLE w (id int PRIMARY KEY, {}); SELECT agd.guard('w')", columns.join(", ")));
    g.records("w", "INSERT INTO w (id, c1, c1599) VALUES (1, 2, 3); UPDATE w SET c800 = 4", &["INSERT 1", "UPDATE 1"]);
    assert_eq!(g.one::<String>("SELECT new->>'c1599' FROM agd.events WHERE action = 'UPDATE'"), "3");
}

#[test]
fn names_that_need_quoting() {
    let mut g = set_up(
        "quoting",
        r#"CREATE SCHEMA "a.b"; CREATE TABLE "a.b"."T "" '\ é" ("Key ""k""" int PRIMARY KEY, "select" text, "new\line" text);
           SELECT agd.guard('"a.b"."T "" ''\ é"'); INSERT INTO "a.b"."T "" '\ é" VALUES (1, 'x', 'y')"#,
    );
    let row = g
        .query_one(
            r#"SELECT relation, new->>'Key "k"', new->>'select', new->>'new\line' FROM agd.events WHERE action = 'INSERT' AND relation LIKE '%a.b%'"#,
            &[],
        )
        .unwrap();
    let texts: Vec<String> = (0..4).map(|column| row.get(column)).collect();
    assert_eq!(texts, [r#""a.b"."T "" '\ é""#, "1", "x", "y"]);
    anchor(&mut g);
    expect_verified(&mut g);
}
