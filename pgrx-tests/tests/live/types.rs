//! Types beyond those of `images.rs`: nested, made by users or extensions, at their limits, or larger than an image may be;
//! and sessions with other encodings. What is recorded can be read back, or the write is refused.

use agd_live_tests::record::{anchor, expect_each_event_in_one_leaf, expect_verified, reconcile};
use agd_live_tests::{Cluster, Watch, expect_hint, expect_sqlstate};
use std::sync::OnceLock;

fn set_up(stem: &str, setup: &str) -> Watch {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    Watch::new(CLUSTER.get_or_init(|| Cluster::builder().start().unwrap()), stem, setup).unwrap()
}

/// Settings that would change what output functions say.
const ODD: &str = "SET DateStyle = 'SQL, DMY'; SET TimeZone = 'Asia/Kathmandu'; SET IntervalStyle = 'sql_standard'; SET extra_float_digits = -10;
    SET bytea_output = 'escape'; SET quote_all_identifiers = on; SET search_path = pg_temp;";

/// Guards a table with one column of the type, inserts each value in a fresh session of odd settings, and asserts that
/// `(image->>'v')::type` is the value, in its binary form, read under plain settings.
#[track_caller]
fn comes_back(g: &mut Watch, kind: &str, values: &[&str]) {
    let number: i64 = g.one("SELECT count(*) FROM pg_class WHERE relname LIKE 'kind%' AND relkind = 'r'");
    g.run(&format!(
        "CREATE TABLE public.kind{number} (id int PRIMARY KEY, v {kind}); SELECT agd.guard('public.kind{number}')"
    ));
    let send: String = g.one(&format!(
        "SELECT t.typsend::regproc::text FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
          WHERE a.attrelid = 'public.kind{number}'::regclass AND a.attname = 'v'"
    ));
    let mut odd = g.database().connect().unwrap();
    for (id, value) in values.iter().enumerate() {
        let insert = format!("INSERT INTO public.kind{number} VALUES ({id}, {value})");
        odd.batch_execute(&insert).unwrap_or_else(|error| panic!("{kind}: {insert}: {error:?}"));
        let update = format!("{ODD} UPDATE public.kind{number} SET id = id WHERE id = {id}; RESET ALL");
        odd.batch_execute(&update).unwrap_or_else(|error| panic!("{kind}: {update}: {error:?}"));
    }
    let wrong: Vec<String> = g.column(&format!(
        "SELECT format('%s %s recorded as %s', e.action, k.v, e.new->>'v') FROM agd.event e JOIN public.kind{number} k ON k.id = (e.new->>'id')::int
          WHERE e.relation = 'public.kind{number}' AND num_nulls(e.new->>'v') <> num_nulls(k.v)
             OR e.relation = 'public.kind{number}' AND {send}((e.new->>'v')::{kind}) IS DISTINCT FROM {send}(k.v)"
    ));
    assert!(wrong.is_empty(), "{kind}: {wrong:#?}");
    let recorded: i64 =
        g.one(&format!("SELECT count(*) FROM agd.events WHERE relation = 'public.kind{number}' AND action <> 'GUARD' AND new IS NOT NULL"));
    assert_eq!(recorded as usize, 2 * values.len(), "{kind}");
    assert_eq!(
        g.column::<String>(&format!("SELECT problem FROM agd.verify_table('public.kind{number}')")),
        [""; 0],
        "{kind}"
    );
}

/// Trap: columns of domain, composite, array, range and enum types, within one another.
#[test]
fn nested_types_come_back() {
    let mut g = set_up(
        "nested",
        r#"CREATE TYPE mood AS ENUM ('so "so"', 'it''s', 'a,b', '(x)');
           CREATE DOMAIN positive AS int CHECK (value > 0); CREATE DOMAIN stamps AS timestamptz[];
           CREATE TYPE inner_pair AS (at timestamptz, note text, how mood);
           CREATE TYPE outer_pair AS (pairs inner_pair[], span tstzrange, bytes bytea, f float8, d positive, j jsonb);
           CREATE DOMAIN checked_pair AS inner_pair CHECK ((value).note <> 'forbidden');
           CREATE TYPE float_range AS RANGE (subtype = float8, subtype_diff = float8mi);
           CREATE TYPE mood_range AS RANGE (subtype = mood);
           CREATE TYPE stamp_domain_range AS RANGE (subtype = positive);
           CREATE TABLE other (id int, gone int, at timestamptz); ALTER TABLE other DROP COLUMN gone"#,
    );
    let pair =
        r#"ROW('2024-02-29 12:00:00.000001+05:45', E'a "quoted", (bracketed) \\ back', 'so "so"')::public.inner_pair"#;
    for (kind, values) in [
        ("public.mood[]", vec![r#"ARRAY['so "so"', 'it''s', 'a,b', '(x)', NULL]::public.mood[]"#, "'{}'"]),
        ("public.positive[]", vec!["'{1,2,NULL}'", "'[3:4]={7,8}'"]),
        ("public.stamps", vec!["ARRAY['2024-01-01 00:00+00', 'infinity', NULL]::timestamptz[]"]),
        (
            "public.inner_pair",
            vec![
                pair,
                "ROW(NULL, NULL, NULL)::public.inner_pair",
                "ROW('-infinity', '', 'a,b')::public.inner_pair",
                "NULL",
            ],
        ),
        ("public.checked_pair", vec![pair]),
        ("public.other", vec!["ROW(1, '2024-01-01 00:00+00')::public.other"]),
        ("public.float_range[]", vec!["ARRAY[public.float_range(0.1::float8 + 0.2, 'Infinity'), 'empty']"]),
        ("public.mood_range", vec![r#"public.mood_range('so "so"', '(x)', '[]')"#]),
        ("public.stamp_domain_range", vec!["public.stamp_domain_range(1, 5)"]),
        (
            "tstzmultirange",
            vec![
                "tstzmultirange(tstzrange('2024-01-01 00:00+00', '2024-01-02 00:00+00'), tstzrange('2024-02-01 00:00+00', NULL))",
            ],
        ),
        ("datemultirange[]", vec!["ARRAY['{[2024-01-01,2024-02-01)}'::datemultirange]"]),
        ("interval[]", vec!["ARRAY['1 year -2 days 03:04:05.6'::interval]"]),
        ("xid8[]", vec!["ARRAY['18446744073709551615'::xid8]"]),
        ("jsonb[]", vec![r#"ARRAY['{"a": [1, null]}'::jsonb, 'null', NULL]"#]),
        ("box[]", vec!["ARRAY['((0.1,0.2),(0.3,0.4))'::box]"]),
    ] {
        comes_back(&mut g, kind, &values);
    }
    let outer = format!(
        "ROW(ARRAY[{pair}, NULL], tstzrange('2024-01-01 00:00+00', 'infinity'), '\\x00ff', 0.1::float8 + 0.2, 7, '{{\"k\": [1.10]}}')::public.outer_pair"
    );
    comes_back(&mut g, "public.outer_pair", &[&outer]);
    comes_back(&mut g, "public.outer_pair[]", &[&format!("ARRAY[{outer}, NULL]")]);
    anchor(&mut g);
    expect_verified(&mut g);
}

/// Trap: values at the limits of date and time types, special numbers, text with every character, and the catalog's types.
#[test]
fn values_at_the_limits_come_back() {
    let mut g = set_up(
        "limits",
        "CREATE FUNCTION public.f(int, text) RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE ROLE \"Odd role\"",
    );
    let every = "(SELECT string_agg(chr(i), '' ORDER BY i) FROM generate_series(1, 1114111) i
                   WHERE (i < 55296 OR i > 57343) AND (i < 3000 OR i % 97 = 0 OR i > 1114000))";
    let long_number = "(repeat('9', 131072) || '.' || repeat('7', 16383))::numeric";
    for (kind, values) in [
        (
            "timestamptz",
            vec![
                "'4714-11-24 00:00:00+00 BC'",
                "'294276-12-31 23:59:59.999999+00'",
                "'0001-12-31 23:59:59.999999+00 BC'",
                "'1883-11-18 12:03:57.999999-04:56:02'",
            ],
        ),
        ("timestamp", vec!["'4714-11-24 00:00:00 BC'", "'294276-12-31 23:59:59.999999'", "'0001-01-01 00:00:00'"]),
        ("date", vec!["'4714-11-24 BC'", "'5874897-12-31'", "'infinity'"]),
        ("time", vec!["'24:00'", "'23:59:59.999999'"]),
        ("timetz", vec!["'00:00:00+15:59:59'", "'24:00:00-15:59:59'"]),
        (
            "interval",
            vec![
                "'-178956970 years -8 mons -2147483648 days -2562047788:00:54.775807'",
                "'178956970 years 7 mons 2147483647 days 2562047788:00:54.775806'",
            ],
        ),
        ("numeric", vec!["'NaN'", "'-Infinity'", "'0.000'", "-0.0", long_number, "1e-16383"]),
        ("float4", vec!["'1.1754944e-38'", "'1e-45'", "'-Infinity'", "'16777216'", "'0.1'"]),
        ("float8", vec!["'2.2250738585072014e-308'", "'1.7976931348623157e308'", "'9007199254740993'", "'1e23'"]),
        ("money", vec!["'92233720368547758.07'::money", "'-0.01'::money", "1234567.89::numeric::money"]),
        ("text", vec![every, "E'\\x7f\\u0080\\u2028\\ufeff'", "repeat(E'\\\\\"\\x01', 100000)"]),
        ("name", vec!["repeat('é', 31)::name"]),
        ("\"char\"", vec!["'\\377'::\"char\"", "''::\"char\"", "'\"'::\"char\""]),
        ("varbit", vec!["repeat('10', 10000)::varbit", "''"]),
        ("regprocedure", vec!["'public.f(int,text)'::regprocedure", "'pg_catalog.now()'::regprocedure", "0"]),
        ("regrole", vec!["'\"Odd role\"'::regrole"]),
        ("regtype", vec!["'timestamp with time zone'::regtype", "'public.kind0'::regtype"]),
        ("regclass", vec!["'public.kind0'::regclass"]),
        ("regoperator", vec!["'pg_catalog.+(int,int)'::regoperator"]),
        ("pg_snapshot", vec!["'10:20:10,14,15'"]),
        ("tid", vec!["'(4294967295,65535)'"]),
        ("cidr", vec!["'2001:db8::/32'"]),
        ("macaddr8", vec!["'08:00:2b:01:02:03:04:05'"]),
        ("circle", vec!["'<(0.1,1e-300),1e300>'"]),
        ("line", vec!["'{1e300,-1,0.1}'"]),
        ("path", vec!["'[(0.1,0),(1,1)]'", "'((0,0),(1,1e-7))'"]),
        ("tsquery", vec!["'fat & (rat | !cat:ab) <2> dog:*'"]),
        ("tsvector", vec!["$$'it''s':1A,2 'a\\\\b':3$$"]),
        ("oidvector", vec!["'1 2 4294967295'"]),
    ] {
        comes_back(&mut g, kind, &values);
    }
    anchor(&mut g);
    expect_verified(&mut g);
    g.run("SELECT agd.unguard('kind19', 'done'), agd.unguard('kind18', 'done'); DROP TABLE kind19, kind18; DROP ROLE \"Odd role\"");
}

/// Trap: a value of type json that jsonb cannot hold (`\u0000`, half a surrogate pair, a huge number, great depth). One such
/// row must not make the history and the verification of its table unreadable.
#[test]
fn json_that_jsonb_cannot_hold_stays_readable() {
    let mut g = set_up("json", "CREATE TABLE t (id int PRIMARY KEY, j json, a json[]); SELECT agd.guard('t')");
    let hard = [
        r#"{"a": "\u0000"}"#.to_owned(),
        r#"["\ud800"]"#.to_owned(),
        r#"["\udc00\ud800"]"#.to_owned(),
        r#"["\ud800\u0041"]"#.to_owned(),
        r#"{"\u0000": 1}"#.to_owned(),
        "[1e1000000]".to_owned(),
        "{\"n\": -1E+999999}".to_owned(),
        format!("[{}]", "9".repeat(200_000)),
        format!("[0.{}]", "1".repeat(20_000)),
        format!("{}{}", "[".repeat(3000), "]".repeat(3000)),
        r#""\u0000""#.to_owned(),
    ];
    let easy = [
        r#"{"a": "\ud83d\ude00 \\u0000 \" \u00e9"}"#,
        r#"[1.10, -0, 1e5, 1E-300, 12345678901234567890.123, true, null, "e1e1e1e1"]"#,
        r#"{"a": {"b": [[[{"c": "[{"}]]]}, "a": 2}"#,
        "null",
        "1",
        r#""text""#,
    ];
    for (id, value) in hard.iter().map(String::as_str).chain(easy).enumerate() {
        g.execute("INSERT INTO t VALUES ($1, $2::text::json, ARRAY[$2::text::json])", &[&(id as i32), &value]).unwrap();
        g.run(&format!("UPDATE t SET id = id WHERE id = {id}"));
    }
    let rows = hard.len() + easy.len();
    assert_eq!(
        g.column::<String>(
            "SELECT new::text FROM agd.events WHERE relation = 'public.t' AND action <> 'GUARD' AND new IS NOT NULL"
        )
        .len(),
        2 * rows
    );
    assert_eq!(g.one::<i64>("SELECT count(*) FROM agd.history('t', '{\"id\": 0}')"), 2);
    assert_eq!(g.column::<String>("SELECT problem FROM agd.verify_table('t')"), [""; 0]);
    // Each is there to the letter; and a container that can be looked into is one.
    let wrong = "SELECT count(*) FROM agd.event e JOIN t ON t.id = (e.new->>'id')::int
                  WHERE e.relation = 'public.t' AND ((e.new->>'j')::json::text <> t.j::text OR (e.new->>'a')::json[]::text <> t.a::text)";
    assert_eq!(g.one::<i64>(wrong), 0);
    let kinds: Vec<String> = g.column("SELECT DISTINCT json_typeof(new->'j') || ' ' || ((new->>'id')::int < 11) FROM agd.event WHERE relation NOT LIKE 'agd.%' AND action = 'INSERT' ORDER BY 1");
    assert_eq!(kinds, ["array false", "object false", "string false", "string true"]);
    anchor(&mut g);
    expect_verified(&mut g);
}

/// Trap: hstore-like types. A base type made here out of built-in functions, and those of the extensions that this server
/// has.
#[test]
fn types_of_extensions_come_back() {
    let mut g = set_up(
        "extensions",
        "CREATE TYPE word; SET client_min_messages = error;
         CREATE FUNCTION word_in(cstring) RETURNS word LANGUAGE internal IMMUTABLE STRICT AS 'textin';
         CREATE FUNCTION word_out(word) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
         CREATE FUNCTION word_send(word) RETURNS bytea LANGUAGE internal IMMUTABLE STRICT AS 'textsend';
         CREATE TYPE word (INPUT = word_in, OUTPUT = word_out, SEND = word_send, LIKE = text);
         CREATE TYPE moment; CREATE FUNCTION moment_in(cstring) RETURNS moment LANGUAGE internal STABLE STRICT AS 'timestamptz_in';
         CREATE FUNCTION moment_out(moment) RETURNS cstring LANGUAGE internal STABLE STRICT AS 'timestamptz_out';
         CREATE FUNCTION moment_send(moment) RETURNS bytea LANGUAGE internal STABLE STRICT AS 'timestamptz_send';
         CREATE TYPE moment (INPUT = moment_in, OUTPUT = moment_out, SEND = moment_send, LIKE = timestamptz)",
    );
    comes_back(
        &mut g,
        "public.word",
        &[r#"E'a "b" \\ \n c'"#, "''", "repeat('long', 100000)::text::cstring::text::public.word"],
    );
    comes_back(&mut g, "public.word[]", &[r#"ARRAY['a "b"', 'c,d', NULL]::public.word[]"#]);
    comes_back(&mut g, "public.moment", &["'2024-07-01 12:00:00.000001+00'"]);
    let mut found = 0;
    for (extension, kind, values) in [
        ("hstore", "public.hstore", vec![r#"'"a b"=>"c\"d", e=>NULL, "" => ""'"#, "''"]),
        ("citext", "public.citext", vec!["'MiXed'"]),
        ("ltree", "public.ltree", vec!["'Top.Science.Astronomy'"]),
        ("cube", "public.cube", vec!["'(0.1, 1e-300), (1, 2)'"]),
        ("seg", "public.seg", vec!["'1.5 .. 2.25'"]),
        ("isn", "public.isbn13", vec!["'978-0-306-40615-7'"]),
    ] {
        if g.query("SELECT FROM pg_available_extensions WHERE name = $1", &[&extension]).unwrap().is_empty() {
            continue;
        }
        g.run(&format!("CREATE EXTENSION {extension}"));
        // ltree and cube have no binary form in every version; their text is compared then.
        let sends: bool = g.one(&format!("SELECT typsend <> 0 FROM pg_type WHERE oid = '{kind}'::regtype"));
        if sends {
            comes_back(&mut g, kind, &values);
        } else {
            g.run(&format!(
                "CREATE TABLE e_{extension} (id int PRIMARY KEY, v {kind}); SELECT agd.guard('e_{extension}')"
            ));
            for (id, value) in values.iter().enumerate() {
                g.run(&format!(
                    "INSERT INTO e_{extension} VALUES ({id}, {value}); UPDATE e_{extension} SET v = v WHERE id = {id}"
                ));
            }
            let same = format!(
                "SELECT bool_and((e.new->>'v')::{kind}::text = t.v::text) FROM agd.event e JOIN e_{extension} t ON t.id = (e.new->>'id')::int
                  WHERE e.relation = 'public.e_{extension}'"
            );
            assert!(g.one::<bool>(&same), "{kind}");
        }
        found += 1;
    }
    println!("{found} extensions with types of their own");
}

/// Trap: client_encoding, standard_conforming_strings. The record has what the table has, in the database's encoding.
#[test]
fn other_encodings_and_string_syntax() {
    let mut g = set_up("encoding", "CREATE TABLE t (id int PRIMARY KEY, v text); SELECT agd.guard('t')");
    // psql sends the bytes as they are: under LATIN1 the two bytes of é are two characters.
    for (id, encoding) in ["LATIN1", "WIN1251", "SJIS", "EUC_JP"].iter().enumerate() {
        let script = format!(
            "SET client_encoding = '{encoding}'; SET application_name = 'psql in {encoding}'; BEGIN; SELECT agd.set_cause('für {encoding}');
             INSERT INTO t VALUES ({id}, 'ё' || U&'\\00e9\\3042'); COMMIT;"
        );
        let output = g.database().psql(&script).unwrap();
        if id < 1 {
            assert!(output.success, "{}", output.stderr);
        }
    }
    let stored: Vec<String> = g.column("SELECT id || v FROM t ORDER BY id");
    let recorded: Vec<String> =
        g.column("SELECT (new->>'id') || (new->>'v') FROM agd.events WHERE relation NOT LIKE 'agd.%' AND action = 'INSERT' ORDER BY new->>'id'");
    assert_eq!(recorded, stored);
    assert!(!stored.is_empty());
    let causes: Vec<String> = g.column(
        "SELECT cause FROM agd.events WHERE relation NOT LIKE 'agd.%' AND action = 'INSERT' AND new->>'id' = '0'",
    );
    assert_eq!(causes, ["f\u{c3}\u{bc}r LATIN1"]);
    // Backslashes in names and values, with strings in which they are escapes.
    g.run("SET standard_conforming_strings = off; SET escape_string_warning = off; SET backslash_quote = on");
    g.run(
        r#"CREATE TABLE "b\s'" (id int PRIMARY KEY, "c\'" text); SELECT agd.guard('"b\\s''"');
           INSERT INTO "b\s'" VALUES (1, 'x\\y\'z'); UPDATE "b\s'" SET id = 2; SELECT agd.verify_table('"b\\s''"')"#,
    );
    let row = g
        .query_one(
            r#"SELECT new->>E'c\\\'', relation FROM agd.events WHERE relation NOT LIKE 'agd.%' AND action = 'UPDATE'"#,
            &[],
        )
        .unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), (r"x\y'z", r#"public."b\s'""#));
    g.run("RESET ALL");
    anchor(&mut g);
    reconcile(&mut g, "t", &["id"]);
    expect_each_event_in_one_leaf(&mut g);
    expect_verified(&mut g);
}

/// Trap: session settings. The name under which a table is recorded does not follow the session that happens to write
/// first.
#[test]
fn names_do_not_follow_the_session() {
    let mut g = set_up("names", "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)");
    let state = "SELECT encode(agd.guard_state(), 'hex')";
    g.run("SELECT agd.guard('t')");
    let plain: String = g.one(state);
    let mut odd = g.database().connect().unwrap();
    odd.batch_execute("SET quote_all_identifiers = on").unwrap();
    odd.batch_execute("SET search_path = ''; INSERT INTO public.t VALUES (1)").unwrap();
    assert_eq!(odd.query_one(state, &[]).unwrap().get::<_, String>(0), plain);
    odd.batch_execute("SELECT agd.guard('public.u'); INSERT INTO public.u VALUES (1)").unwrap();
    assert_eq!(
        g.column::<String>("SELECT DISTINCT relation FROM agd.events WHERE relation NOT LIKE 'agd.%' ORDER BY 1"),
        ["public.t", "public.u"]
    );
}

/// Trap: a row of 200 MB. It is recorded whole, confirmed, integrated and verified. One whose image would be too large to
/// be read again is refused before anything is recorded: 54000, with a hint; a copy of it in memory need not be made first.
#[test]
fn a_row_of_200_megabytes() {
    let mut g = set_up(
        "large",
        "CREATE TABLE t (id int PRIMARY KEY, v text, b bytea, n int); ALTER TABLE t ALTER v SET STORAGE EXTERNAL; SELECT agd.guard('t')",
    );
    g.run("INSERT INTO t (id, v) VALUES (1, repeat('0123456789', 20 * 1000 * 1000))");
    let length: i32 =
        g.one("SELECT octet_length(new::text) FROM agd.event WHERE relation NOT LIKE 'agd.%' AND action = 'INSERT'");
    assert_eq!(length, 200_000_000 + r#"{"id":1,"v":"","b":null,"n":null}"#.len() as i32);
    for sql in [
        "INSERT INTO t (id, v) VALUES (2, repeat('\"', 140 * 1000 * 1000))",
        "INSERT INTO t (id, b) VALUES (2, decode(repeat('00', 140 * 1000 * 1000), 'hex'))",
    ] {
        let error = expect_sqlstate(g.batch_execute(sql), "54000");
        expect_hint(&error, "MB");
    }
    // The session and its other writes go on.
    g.run("BEGIN; INSERT INTO t (id) VALUES (3); SAVEPOINT a");
    expect_sqlstate(
        g.batch_execute("UPDATE t SET b = decode(repeat('00', 140 * 1000 * 1000), 'hex') WHERE id = 3"),
        "54000",
    );
    g.run("ROLLBACK TO a; UPDATE t SET n = 1 WHERE id = 3; COMMIT");
    let events: Vec<String> =
        g.column("SELECT action || ' ' || (row_key->>'id') FROM agd.event WHERE relation = 'public.t' AND row_key IS NOT NULL ORDER BY xact_id, n");
    assert_eq!(events, ["INSERT 1", "INSERT 3", "UPDATE 3"]);
    anchor(&mut g);
    expect_verified(&mut g);
}
