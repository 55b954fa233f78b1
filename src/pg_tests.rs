//! What one transaction can show. Everything about commits, roles and concurrency is tested over real connections, in
//! `pgrx-tests/`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[pgrx::pg_schema]
mod tests {
    use pgrx::prelude::*;

    fn one<T: FromDatum + IntoDatum>(query: &str) -> T {
        Spi::get_one(query).expect(query).expect("a value")
    }

    /// Every value of a guarded row can be had back from its image: `(image->>'column')::type`.
    fn assert_casts_back(number: usize, type_name: &str, value: &str) {
        // A table of its own each time: the record stays.
        let table = format!("cast_back_{number}");
        Spi::run(&format!("CREATE TABLE {table} (id int PRIMARY KEY, v {type_name}); SELECT agd.guard('{table}')"))
            .unwrap();
        Spi::run(&format!("INSERT INTO {table} VALUES (1, {value})")).unwrap();
        // Compared as text under one setting: that distinguishes -0 from 0 and NaN from nothing.
        let recorded = format!("e.action = 'INSERT' AND e.relation = 'public.{table}'");
        let same: bool = one(&format!(
            "SELECT (e.new->>'v')::{type_name}::text IS NOT DISTINCT FROM c.v::text FROM agd.event e, {table} c WHERE {recorded}"
        ));
        let image: String = one(&format!("SELECT new::text FROM agd.event e WHERE {recorded}"));
        assert!(same, "{type_name} {value}: recorded as {image}");
    }

    #[pg_test]
    fn images_cast_back_whatever_the_settings() {
        Spi::run(
            "SET LOCAL DateStyle = 'SQL, DMY'; SET LOCAL IntervalStyle = 'sql_standard'; SET LOCAL TimeZone = 'Asia/Kathmandu';
             SET LOCAL extra_float_digits = -5; SET LOCAL bytea_output = 'escape'; SET LOCAL xmlbinary = 'hex'",
        )
        .unwrap();
        Spi::run("CREATE TYPE mood AS ENUM ('fine', 'so \"so\"'); CREATE DOMAIN short AS varchar(9); CREATE TYPE pair AS (a int, b text)")
            .unwrap();
        for (number, (type_name, value)) in [
            ("bool", "true"),
            ("int2", "-32768"),
            ("int8", "9223372036854775807"),
            ("int8", "-9223372036854775808"),
            ("float4", "'3.4028235e38'"),
            ("float8", "0.1 + 0.2"),
            ("float8", "'-0'"),
            ("float8", "'NaN'"),
            ("float8", "'-Infinity'"),
            ("float8", "5e-324"),
            ("numeric", "'NaN'"),
            ("numeric", "'Infinity'"),
            ("numeric", "123456789012345678901234567890.000000000000000000001"),
            ("text", r#"E'quote " backslash \\ newline \n tab \t bell \u0007 emoji 😀'"#),
            ("char(5)", "'ab'"),
            ("short", "'domain'"),
            ("bytea", r"'\x00ff5c22'"),
            ("uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"),
            ("date", "'4713-01-01 BC'"),
            ("date", "'infinity'"),
            ("timestamp", "'294276-12-31 23:59:59.999999'"),
            ("timestamptz", "'2026-03-29 02:30:00.000001+05:45'"),
            ("timestamptz", "'-infinity'"),
            ("timetz", "'13:00:00+02'"),
            ("interval", "'-1 year 2 mons -3 days 04:05:06.7'"),
            ("json", "'{\"a\": 1, \"a\": 2}'"),
            ("json", "'null'"),
            ("jsonb", "'null'"),
            ("jsonb", "'\"null\"'"),
            ("jsonb", "'[1, {\"b\": null}]'"),
            ("jsonb", "NULL"),
            ("mood", "'so \"so\"'"),
            ("int[]", "'{{1,2},{3,NULL}}'"),
            ("text[]", "ARRAY['a,b', 'c\"d', NULL]"),
            ("timestamptz[]", "ARRAY['2026-01-01 00:00+00'::timestamptz]"),
            ("float8[]", "ARRAY[0.1::float8 + 0.2]"),
            ("bytea[]", r"ARRAY['\x00ff'::bytea]"),
            ("int4range", "'[1,5)'"),
            ("tstzrange", "'[2026-01-01 00:00+00,)'"),
            ("int4multirange", "'{[1,3),[5,8)}'"),
            ("pair", "ROW(1, 'x, \"y\"')"),
            ("point", "'(0.1,2)'"),
            ("money", "'12.34'"),
            ("regclass", "'pg_class'"),
            ("inet", "'10.1.2.3/24'"),
            ("bit(5)", "B'10101'"),
            ("tsvector", "'a:1 fat:2'"),
        ]
        .into_iter()
        .enumerate()
        {
            assert_casts_back(number, type_name, value);
        }
    }

    /// Numbers and times that agd writes without PostgreSQL's own functions: the same text as theirs, for thousands of values
    /// of every size and sign, and at the edges.
    #[pg_test]
    fn scalars_are_written_as_postgresql_writes_them() {
        Spi::run(
            "SET LOCAL TimeZone = 'UTC';
             CREATE TABLE t (id bigserial PRIMARY KEY, n numeric, d date, ts timestamp, tz timestamptz);
             SELECT setseed(0.5);
             INSERT INTO t (n) SELECT (CASE WHEN i % 2 = 0 THEN -1 ELSE 1 END) * trunc((random() * 10 ^ (i % 60 - 20))::numeric, i % 41)
               FROM generate_series(1, 3000) i;
             INSERT INTO t (n) SELECT 10::numeric ^ i FROM generate_series(-130, 130) i;
             INSERT INTO t (n) SELECT -(10::numeric ^ i - 1) FROM generate_series(0, 130) i;
             INSERT INTO t (n) SELECT v::numeric FROM unnest('{0,0.0,0.000000,-0.00001,1,10000,9999,99999999,100000000,
               0.9999,0.00009999,12345678.000012340000,1e-16383,1e400,NaN,Infinity,-Infinity}'::text[]) v;
             INSERT INTO t (n) SELECT (random() * 1e15)::numeric(24,6) FROM generate_series(1, 500);
             INSERT INTO t (d, ts, tz)
               SELECT d::date, d, d::timestamptz
                 FROM (SELECT '0001-01-01 BC'::timestamp + i * interval '7 days 13:57:01.000100' AS d FROM generate_series(-500, 6000) i) d;
             INSERT INTO t (d, ts, tz)
               SELECT d::date, d, d::timestamptz
                 FROM (SELECT '1890-01-01'::timestamp + i * interval '23 days 23:59:59.999999' AS d FROM generate_series(0, 4000) i) d;
             INSERT INTO t (d, ts, tz) SELECT v::date, v::timestamp, v::timestamptz FROM unnest(
               '{infinity,-infinity,0001-01-01,9999-12-31 23:59:59.999999,10000-01-01,4713-12-31 BC,2000-02-29,1900-02-28,2100-03-01,
                 2000-01-01 00:00:00.1,1999-12-31 23:59:59.999999}'::text[]) v",
        )
        .unwrap();
        let different: Option<String> = Spi::get_one(
            "SELECT string_agg(format('%s: %s, not %s', id, image, wanted), E'\n')
               FROM (SELECT id, agd.row_image(t.*)::text AS image, format('{\"id\":%s,\"n\":%s,\"d\":%s,\"ts\":%s,\"tz\":%s}', id,
                              coalesce(CASE WHEN n::text ~ '^[-0-9]' AND n::text <> '-Infinity' THEN n::text ELSE '\"' || n || '\"' END, 'null'),
                              coalesce(to_json(d)::text, 'null'), coalesce(to_json(ts)::text, 'null'),
                              coalesce(to_json(tz)::text, 'null')) AS wanted FROM t) x
              WHERE image <> wanted",
        )
        .unwrap();
        assert_eq!(different, None);
        assert!(one::<i64>("SELECT count(*) FROM t") > 14_000);
    }

    #[pg_test]
    fn dropped_added_and_generated_columns() {
        Spi::run(
            "CREATE TABLE t (gone int, id int PRIMARY KEY, v text, g int GENERATED ALWAYS AS (id * 2) STORED);
             INSERT INTO t (id, v) VALUES (1, 'old');
             ALTER TABLE t DROP COLUMN gone;
             ALTER TABLE t ADD COLUMN fast int NOT NULL DEFAULT 7;
             SELECT agd.guard('t');
             UPDATE t SET v = 'new' WHERE id = 1",
        )
        .unwrap();
        let images: String =
            one("SELECT old::text || new::text FROM agd.event WHERE relation NOT LIKE 'agd.%' AND action = 'UPDATE'");
        assert_eq!(images, r#"{"id":1,"v":"old","fast":7}{"id":1,"v":"new","fast":7}"#);
    }

    #[pg_test]
    fn unchanged_toasted_values_are_confirmed() {
        Spi::run(
            "CREATE TABLE t (id int PRIMARY KEY, small int, large text);
             SELECT agd.guard('t');
             INSERT INTO t SELECT 1, 1, string_agg(md5(i::text), '') FROM generate_series(1, 20000) i;
             UPDATE t SET small = 2; UPDATE t SET large = large || 'x'; DELETE FROM t",
        )
        .unwrap();
        assert_eq!(
            one::<i64>(
                "SELECT count(*) FROM agd.event WHERE relation NOT LIKE 'agd.%' AND action IN ('INSERT', 'UPDATE', 'DELETE')"
            ),
            4
        );
        // Each image holds the value as it was then, whether the statement touched it or not.
        let images = "SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', action, image->>'small', image->>'large' = plain, image->>'large' = plain || 'x'),
                                                   ', ' ORDER BY n, side)
                        FROM agd.event, (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 20000) i) p(plain),
                             LATERAL (VALUES (1, old), (2, new)) i(side, image)
                       WHERE relation NOT LIKE 'agd.%' AND action <> 'GUARD' AND image IS NOT NULL";
        assert_eq!(
            one::<String>(images),
            "INSERT 1 t f, UPDATE 1 t f, UPDATE 2 t f, UPDATE 2 t f, UPDATE 2 f t, DELETE 2 f t"
        );
    }

    #[pg_test]
    fn a_row_of_1600_columns() {
        let columns: Vec<String> = (1..1600).map(|i| format!("c{i} \"char\"")).collect();
        Spi::run(&format!("CREATE TABLE wide (id int PRIMARY KEY, {})", columns.join(", "))).unwrap();
        Spi::run("SELECT agd.guard('wide'); INSERT INTO wide (id, c1599) VALUES (1, 'z')").unwrap();
        assert_eq!(
            one::<String>("SELECT new->>'c1599' FROM agd.event WHERE relation NOT LIKE 'agd.%' AND action = 'INSERT'"),
            "z"
        );
    }

    #[pg_test]
    fn conflicts_leave_no_record() {
        Spi::run(
            "CREATE TABLE t (id int PRIMARY KEY, v int);
             SELECT agd.guard('t');
             INSERT INTO t VALUES (1, 1);
             INSERT INTO t VALUES (1, 2), (2, 2), (1, 3) ON CONFLICT DO NOTHING;
             INSERT INTO t VALUES (1, 4), (3, 4) ON CONFLICT (id) DO UPDATE SET v = excluded.v",
        )
        .unwrap();
        let actions: String = one(
            "SELECT string_agg(action || (row_key->>'id'), ' ' ORDER BY n) FROM agd.event WHERE relation NOT LIKE 'agd.%' AND action <> 'GUARD'",
        );
        assert_eq!(actions, "INSERT1 INSERT2 UPDATE1 INSERT3");
    }

    /// Two data-modifying parts of one query on one partitioned table, and a row that moves: no AFTER STATEMENT trigger
    /// could tell which records are void, because one part's fires before the other part's row triggers.
    #[pg_test]
    fn two_writers_in_one_query_and_a_moving_row() {
        Spi::run(
            "CREATE TABLE p (id int, k int, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
             CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
             CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20);
             SELECT agd.guard('p');
             INSERT INTO p VALUES (1, 1);
             WITH i AS (INSERT INTO p VALUES (2, 2), (3, 13) ON CONFLICT DO NOTHING) UPDATE p SET k = 11",
        )
        .unwrap();
        let actions: String = one("SELECT string_agg(action || (row_key->>'id') || '@' || (row_key->>'k'), ' '
                               ORDER BY action, (row_key->>'id')::int, (row_key->>'k')::int)
               FROM agd.event WHERE relation NOT LIKE 'agd.%' AND action <> 'GUARD'");
        assert_eq!(actions, "DELETE1@1 INSERT1@1 INSERT1@11 INSERT2@2 INSERT3@13");
    }

    #[pg_test]
    fn referential_actions_are_recorded() {
        Spi::run(
            "CREATE TABLE a (id int PRIMARY KEY);
             CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a ON DELETE CASCADE ON UPDATE CASCADE);
             CREATE TABLE c (id int PRIMARY KEY, b int REFERENCES b ON DELETE SET NULL);
             SELECT agd.guard('a'), agd.guard('b'), agd.guard('c');
             INSERT INTO a VALUES (1), (2); INSERT INTO b VALUES (1, 1), (2, 2); INSERT INTO c VALUES (1, 1), (2, 2);
             UPDATE a SET id = 10 WHERE id = 1; DELETE FROM a WHERE id = 2",
        )
        .unwrap();
        let actions: String = one("SELECT string_agg(relation || ' ' || action, ', ' ORDER BY relation, n)
               FROM agd.event WHERE relation NOT LIKE 'agd.%' AND action IN ('UPDATE', 'DELETE')");
        assert_eq!(actions, "public.a UPDATE, public.a DELETE, public.b UPDATE, public.b DELETE, public.c UPDATE");
    }

    #[pg_test]
    fn rolled_back_subtransactions_leave_nothing() {
        Spi::run(
            "CREATE TABLE t (id int PRIMARY KEY);
             SELECT agd.guard('t');
             DO $$ BEGIN
               INSERT INTO t VALUES (1);
               BEGIN
                 INSERT INTO t VALUES (2);
                 BEGIN INSERT INTO t VALUES (3); EXCEPTION WHEN others THEN NULL; END;
                 INSERT INTO t VALUES (1);
               EXCEPTION WHEN unique_violation THEN NULL;
               END;
               INSERT INTO t VALUES (4);
             END $$",
        )
        .unwrap();
        assert_eq!(
            one::<String>(
                "SELECT string_agg(row_key->>'id', ' ' ORDER BY n) FROM agd.event WHERE relation NOT LIKE 'agd.%' AND action = 'INSERT'"
            ),
            "1 4"
        );
    }

    /// A function in the SELECT list writes the table that the query around it writes.
    #[pg_test]
    fn a_nested_query_on_the_same_table() {
        Spi::run(
            "CREATE TABLE t (id int PRIMARY KEY, v int);
             SELECT agd.guard('t');
             CREATE FUNCTION also(n int) RETURNS int LANGUAGE plpgsql AS $$
               BEGIN INSERT INTO t VALUES (n + 100, 0), (n, 0) ON CONFLICT DO NOTHING; RETURN n + 200; END $$;
             INSERT INTO t SELECT also(g), 1 FROM generate_series(1, 3) g",
        )
        .unwrap();
        assert_eq!(one::<i64>("SELECT count(*) FROM t"), 9);
        assert_eq!(
            one::<i64>("SELECT count(*) FROM agd.event WHERE relation NOT LIKE 'agd.%' AND action = 'INSERT'"),
            9
        );
    }

    #[pg_test]
    fn merge_records_what_it_did() {
        Spi::run(
            "CREATE TABLE t (id int PRIMARY KEY, v int);
             SELECT agd.guard('t');
             INSERT INTO t VALUES (1, 1), (2, 2), (3, 3);
             MERGE INTO t USING (VALUES (1, 10), (2, 20), (3, 30), (4, 40), (5, 50)) AS s(id, v) ON t.id = s.id
               WHEN MATCHED AND s.id = 1 THEN DO NOTHING
               WHEN MATCHED AND s.id = 2 THEN DELETE
               WHEN MATCHED THEN UPDATE SET v = s.v
               WHEN NOT MATCHED AND s.id = 5 THEN DO NOTHING
               WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.v)",
        )
        .unwrap();
        let actions: String = one("SELECT string_agg(action || (row_key->>'id'), ' ' ORDER BY row_key->>'id')
               FROM agd.event WHERE relation NOT LIKE 'agd.%' AND action <> 'GUARD' AND n > 4");
        assert_eq!(actions, "DELETE2 UPDATE3 INSERT4");
    }

    /// A write to a guarded table after the transaction's record was written, as a pre-commit callback of another
    /// extension could try: refused, since no record would count it.
    #[pg_test(error = "a guarded table was written after the transaction's record was closed")]
    fn a_write_after_the_record_was_closed() {
        Spi::run("CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t'); INSERT INTO t VALUES (1)").unwrap();
        assert!(crate::transaction::extremes::close_early().is_ok());
        assert_eq!(one::<i64>("SELECT events::bigint FROM agd.transaction WHERE xact_id = pg_current_xact_id()"), 3);
        Spi::run("INSERT INTO t VALUES (2)").unwrap();
    }

    /// An error in the middle of a statement, caught: the table of events stays usable.
    #[pg_test]
    fn a_caught_error_leaves_the_record_usable() {
        Spi::run(
            "CREATE TABLE t (id int PRIMARY KEY);
             SELECT agd.guard('t');
             DO $$ BEGIN
               FOR i IN 1..50 LOOP
                 BEGIN
                   INSERT INTO t SELECT unnest(ARRAY[1, 2, 3, 1]);
                 EXCEPTION WHEN unique_violation THEN NULL;
                 END;
               END LOOP;
             END $$;
             INSERT INTO t VALUES (4)",
        )
        .unwrap();
        assert_eq!(
            one::<i64>("SELECT count(*) FROM agd.event WHERE relation NOT LIKE 'agd.%' AND action = 'INSERT'"),
            1
        );
    }

    /// n is a positive int: the last one that has a successor is recorded, the next one refused.
    #[pg_test]
    fn events_are_numbered_up_to_2_to_the_31() {
        Spi::run("CREATE TABLE many (id int PRIMARY KEY); SELECT agd.guard('many')").unwrap();
        crate::transaction::extremes::skip_to(i32::MAX - 1);
        Spi::run("INSERT INTO many VALUES (1)").unwrap();
        Spi::run(
            "DO $$ BEGIN INSERT INTO many VALUES (2); EXCEPTION WHEN program_limit_exceeded THEN
               PERFORM set_config('many.outcome', SQLSTATE || ' ' || SQLERRM, true); END $$",
        )
        .unwrap();
        let outcome: String = one("SELECT current_setting('many.outcome')");
        assert_eq!(outcome, "54000 one transaction cannot record more than 2147483647 events");
        let (rows, recorded): (i64, i64) = (
            one("SELECT count(*) FROM many"),
            one("SELECT count(*) FROM agd.event WHERE relation NOT LIKE 'agd.%' AND action = 'INSERT'"),
        );
        assert_eq!((rows, recorded), (1, 1));
    }

    /// The memory of used tokens: nothing is forgotten that has not expired; a tenant's share is nearly full before one of
    /// its tokens is refused, is never more than a quarter, and three full ones leave a fourth tenant all of its own.
    #[pg_test]
    fn used_tokens_find_a_place_until_their_tenant_has_no_more() {
        use crate::tenant::used::trial::{Set, expiring, in_one_block};
        assert_eq!(expiring(), [Some(true), Some(false), None, Some(true), None, Some(true)]);
        assert_eq!(in_one_block(), ([16, 16], Some(true)));
        for capacity in [1 << 12, 1 << 17] {
            let mut set = Set::new(capacity);
            let quarter = capacity / 4;
            for tenant in 0..4 {
                let first_refused = (0..).find(|&n| !set.takes(tenant, n)).unwrap_or_default() as usize;
                assert!((quarter * 9 / 10..=quarter).contains(&first_refused), "{first_refused} of {quarter}");
                // Whatever else it tries.
                let more = (0..4 * capacity as u64).filter(|&n| set.takes(tenant, (1 << 32) + n)).count();
                assert_eq!(first_refused + more, quarter);
            }
            assert!(!(4..1_000).any(|tenant| set.takes(tenant, 0)));
        }
    }
}
