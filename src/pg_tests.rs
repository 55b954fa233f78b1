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
    fn assert_casts_back(type_name: &str, value: &str) {
        Spi::run(&format!("CREATE TABLE cast_back (id int PRIMARY KEY, v {type_name})")).unwrap();
        Spi::run("SELECT agd.guard('cast_back')").unwrap();
        Spi::run(&format!("INSERT INTO cast_back VALUES (1, {value})")).unwrap();
        // Compared as text under one setting: that distinguishes -0 from 0 and NaN from nothing.
        let same: bool = one(&format!(
            "SELECT (e.new->>'v')::{type_name}::text IS NOT DISTINCT FROM c.v::text
               FROM agd.event e, cast_back c WHERE e.action = 'INSERT' AND e.relation = 'public.cast_back'"
        ));
        let image: String =
            one("SELECT new::text FROM agd.event WHERE relation = 'public.cast_back' AND action = 'INSERT'");
        assert!(same, "{type_name} {value}: recorded as {image}");
        Spi::run("DROP TABLE cast_back").unwrap();
        // The record stays; the next round looks at its own table only.
        Spi::run(
            "ALTER TABLE agd.event DISABLE TRIGGER refuse_write; DELETE FROM agd.event;
             ALTER TABLE agd.event ENABLE ALWAYS TRIGGER refuse_write; DELETE FROM agd.guarded_table",
        )
        .unwrap();
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
        for (type_name, value) in [
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
        ] {
            assert_casts_back(type_name, value);
        }
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
        let images: String = one("SELECT old::text || new::text FROM agd.event WHERE action = 'UPDATE'");
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
        assert_eq!(one::<i64>("SELECT count(*) FROM agd.event WHERE action IN ('INSERT', 'UPDATE', 'DELETE')"), 4);
    }

    #[pg_test]
    fn a_row_of_1600_columns() {
        let columns: Vec<String> = (1..1600).map(|i| format!("c{i} \"char\"")).collect();
        Spi::run(&format!("CREATE TABLE wide (id int PRIMARY KEY, {})", columns.join(", "))).unwrap();
        Spi::run("SELECT agd.guard('wide'); INSERT INTO wide (id, c1599) VALUES (1, 'z')").unwrap();
        assert_eq!(one::<String>("SELECT new->>'c1599' FROM agd.event WHERE action = 'INSERT'"), "z");
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
        let actions: String =
            one("SELECT string_agg(action || (row_key->>'id'), ' ' ORDER BY n) FROM agd.event WHERE action <> 'GUARD'");
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
               FROM agd.event WHERE action <> 'GUARD'");
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
               FROM agd.event WHERE action IN ('UPDATE', 'DELETE')");
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
            one::<String>("SELECT string_agg(row_key->>'id', ' ' ORDER BY n) FROM agd.event WHERE action = 'INSERT'"),
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
        assert_eq!(one::<i64>("SELECT count(*) FROM agd.event WHERE action = 'INSERT'"), 9);
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
               FROM agd.event WHERE action <> 'GUARD' AND n > 3");
        assert_eq!(actions, "DELETE2 UPDATE3 INSERT4");
    }

    const KEPT_OPEN: &str = "SELECT count(*) FROM pg_backend_memory_contexts WHERE name = 'agd.event kept open'";

    /// An error in the middle of a statement, caught: what the statement kept open is let go of, memory and all.
    #[pg_test]
    fn a_caught_error_leaves_nothing_open() {
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
        assert_eq!(one::<i64>(KEPT_OPEN), 0);
        assert_eq!(one::<i64>("SELECT count(*) FROM agd.event WHERE action = 'INSERT'"), 1);
    }

    /// The table of events is kept open within a query that records several rows, not for each query of one row.
    #[pg_test]
    fn kept_open_for_several_rows_only() {
        Spi::run(&format!(
            "CREATE TABLE t (id int PRIMARY KEY);
             CREATE TABLE seen (id int, kept bigint);
             CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$
               BEGIN INSERT INTO seen SELECT NEW.id, ({KEPT_OPEN}); RETURN NULL; END $$;
             CREATE TRIGGER look AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION look();
             SELECT agd.guard('t')"
        ))
        .unwrap();
        for statement in ["INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (2)", "INSERT INTO t VALUES (3), (4), (5)"]
        {
            Spi::run(statement).unwrap();
        }
        assert_eq!(
            one::<String>("SELECT string_agg(id || ':' || kept, ' ' ORDER BY id) FROM seen"),
            "1:0 2:0 3:1 4:1 5:1"
        );
        assert_eq!(one::<i64>(KEPT_OPEN), 0);
    }
}
