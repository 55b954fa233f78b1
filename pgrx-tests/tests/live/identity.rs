//! By which identity each function and each view of agd decides: a table of all of them. One that is not in the table fails
//! the test, and so does one that decides by another than it should. What tenants, superusers and the others can do with that:
//! attack_identity.rs.

use agd_live_tests::fleet::{self, expect_sound};
use agd_live_tests::record::{anchor, expect_each_event_in_one_leaf, expect_verified};
use agd_live_tests::{Cluster, expect_sqlstate};
use postgres::Client;
use std::collections::BTreeMap;
use std::sync::OnceLock;

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::builder().start().unwrap())
}

#[track_caller]
fn run(client: &mut Client, sql: &str) {
    client.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

#[track_caller]
fn column(client: &mut Client, sql: &str) -> Vec<String> {
    let rows = client.query(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    rows.iter().map(|row| row.get::<_, Option<String>>(0).unwrap_or_else(|| "NULL".into())).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decides {
    /// In C. Takes the rights of agd's owner by itself; who may call it, EXECUTE says, and whom it serves, both outer and
    /// current user. Refuses nobody (42501).
    AsOwner,
    /// The same whoever acts: called by agd itself.
    AlwaysAsOwner,
    /// In SQL. Runs with the rights of agd's owner, under pinned settings; EXECUTE says who may call it, and nothing that is
    /// only somebody's is in it.
    Definer,
    /// In C, without rights of its own. Says what both outer and current user may see. Nobody sees nothing.
    Both,
    /// The session's binding, and the login role's mapping. Nobody has none.
    Session,
    /// In C. Refuses nobody (42501), and else asks for the login role.
    LoginRole,
    /// A trigger of guarded tables or of agd's own.
    Trigger,
    /// Asks for nobody: what it answers follows from its arguments, or from counters.
    NoIdentity,
    /// Part of the installation.
    Installation,
}
use Decides::*;

const FUNCTIONS: &[(&str, Decides)] = &[
    ("add_tenant_key", AsOwner),
    ("anchor", AsOwner),
    ("batch_statement", AsOwner),
    ("bind", LoginRole),
    ("cause_normalised", NoIdentity),
    ("check_ddl", AlwaysAsOwner),
    ("check_installation", Installation),
    ("complete_partitions", AlwaysAsOwner),
    ("confirm_write", Trigger),
    ("consistency_proof", Both),
    ("countersign_fleets", AsOwner),
    ("coverage", Definer),
    ("create_template", AsOwner),
    ("create_tenant", AsOwner),
    ("current_fleet", Session),
    ("current_principal", Session),
    ("current_scopes", Session),
    ("current_tenant", Session),
    ("ddl_command_end", AlwaysAsOwner),
    ("enter", LoginRole),
    ("entries", AsOwner),
    ("export_events", Both),
    ("fleet_statement", AsOwner),
    ("guard", AsOwner),
    ("guard_id", Definer),
    ("guard_problems", Definer),
    ("guard_state", Definer),
    ("history", Both),
    ("inclusion_proof", Both),
    ("is_publisher", Both),
    ("is_tenant_policy", NoIdentity),
    ("last_words", Definer),
    ("leaf_index", Both),
    ("map_role", AsOwner),
    ("may_read", Both),
    ("may_read_payload", Both),
    ("mint_tenant_fleet", AsOwner),
    ("moved_key", NoIdentity),
    ("new_incarnation", AsOwner),
    ("own_objects", Definer),
    ("prepare_home", Installation),
    ("present_rows", NoIdentity),
    ("publishing", Definer),
    ("record_publication", AsOwner),
    ("record_timestamp", AsOwner),
    ("record_write", Trigger),
    ("refuse_replicated", Trigger),
    ("refuse_truncate", Trigger),
    ("refuse_write", Trigger),
    ("register_log_key", AsOwner),
    ("register_signer", AsOwner),
    ("report_divergence", AsOwner),
    ("resume", AsOwner),
    ("revoke_log_key", AsOwner),
    ("revoke_signer", AsOwner),
    ("revoke_tenant_key", AsOwner),
    ("row_image", NoIdentity),
    ("row_key", NoIdentity),
    ("seal_tenant_fleet", AsOwner),
    ("set_agent_context", AsOwner),
    ("set_cause", LoginRole),
    ("sign_fleet", AsOwner),
    ("sql_drop", AlwaysAsOwner),
    ("tlog_proof", Both),
    ("unguard", AsOwner),
    ("unmap_role", AsOwner),
    ("verifications", NoIdentity),
    ("verify", AsOwner),
    ("verify_fleet", AsOwner),
    ("verify_table", AsOwner),
    ("wall_gaps", Definer),
    ("worker_status", NoIdentity),
];

/// Views that show each what it may see, by outer and current user (true), and views that whoever may SELECT sees in full.
const VIEWS: &[(&str, bool)] = &[
    ("anchors", true),
    ("countersign_requests", true),
    ("events", true),
    ("every_guard", false),
    ("fleet_agents", true),
    ("fleet_pending_cancel", true),
    ("fleets", true),
    ("guard_digest", false),
    ("health", false),
    ("stat", false),
    ("verify_progress", false),
];

/// What changes text or the meaning of SQL, and what agd's functions have instead.
const PINNED: &[(&str, &str, &str)] = &[
    ("search_path", "pg_catalog, pg_temp", "hostile, pg_catalog"),
    ("quote_all_identifiers", "off", "on"),
    ("standard_conforming_strings", "on", "off"),
    ("backslash_quote", "safe_encoding", "on"),
    ("transform_null_equals", "off", "on"),
    ("array_nulls", "on", "off"),
    ("row_security", "on", "off"),
    ("DateStyle", "ISO, MDY", "German, DMY"),
    ("IntervalStyle", "postgres", "iso_8601"),
    ("TimeZone", "UTC", "Asia/Kathmandu"),
    ("extra_float_digits", "1", "-15"),
    ("bytea_output", "hex", "escape"),
    ("xmlbinary", "base64", "hex"),
    ("xmloption", "content", "document"),
    ("lc_monetary", "C", "POSIX"),
    ("lc_numeric", "C", "POSIX"),
];

fn decides(name: &str) -> Decides {
    let found = FUNCTIONS.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("agd.{name}() is not in the table: by whose identity does it decide?")).1
}

#[test]
fn every_function_and_view_decides_by_the_identity_it_should() {
    let database = cluster().agd_database("decides").unwrap();
    let mut client = database.connect().unwrap();
    let pinned: Vec<String> = PINNED.iter().map(|(name, value, _)| format!("{name}={value}")).collect();
    let functions = client
        .query(
            "SELECT p.proname::text, l.lanname::text, p.prosecdef, coalesce(p.proconfig, '{}'), p.prorettype::regtype::text
               FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang WHERE p.pronamespace = 'agd'::regnamespace",
            &[],
        )
        .unwrap();
    for row in &functions {
        let (name, language, definer, config, returns): (String, String, bool, Vec<String>, String) =
            (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4));
        let decides = decides(&name);
        // A SECURITY DEFINER function in C would not know its caller.
        assert_eq!(definer, decides == Definer, "agd.{name}(): {decides:?}");
        if definer {
            assert_eq!(config, pinned, "settings of agd.{name}()");
            assert_ne!(language, "c", "agd.{name}()");
        }
        if matches!(decides, AsOwner | AlwaysAsOwner | Session | LoginRole | Trigger) {
            assert_eq!((language.as_str(), config.len()), ("c", 0), "agd.{name}()");
        }
        assert_eq!(returns == "trigger", decides == Trigger, "agd.{name}()");
    }
    for (name, _) in FUNCTIONS {
        assert!(functions.iter().any(|row| row.get::<_, String>(0) == *name), "there is no agd.{name}()");
    }
    let views = column(
        &mut client,
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'agd'::regnamespace AND relkind = 'v' ORDER BY 1",
    );
    let known: Vec<&str> = VIEWS.iter().map(|(name, _)| *name).collect();
    assert_eq!(views, known, "views: by whose identity do they show what they show?");

    // A superuser's own REINDEX of its own table: in everything the same user, and yet restricted.
    run(
        &mut client,
        "SELECT agd.create_tenant('acme'); SELECT agd.mint_tenant_fleet('acme', 'first');
         CREATE TABLE calls (name text, sql text, outcome text);
         INSERT INTO calls
           SELECT p.proname, format('SELECT count(*)::text || coalesce(min(x::text), ''NULL'') FROM agd.%I(%s) x', p.proname,
                    (SELECT string_agg(format('NULL::%s', t::regtype), ', ' ORDER BY o) FROM unnest(p.proargtypes) WITH ORDINALITY a (t, o)))
             FROM pg_proc p WHERE p.pronamespace = 'agd'::regnamespace AND p.prorettype <> ALL ('{trigger,event_trigger}'::regtype[])
              AND p.proname NOT IN ('check_installation', 'prepare_home', 'check_ddl', 'complete_partitions', 'row_image', 'row_key');
         INSERT INTO calls SELECT 'view ' || relname, format('SELECT count(*)::text FROM agd.%I', relname)
           FROM pg_class WHERE relnamespace = 'agd'::regnamespace AND relkind = 'v';
         CREATE FUNCTION call_all() RETURNS void LANGUAGE plpgsql AS $$
         DECLARE c record; found text;
         BEGIN
           FOR c IN SELECT * FROM public.calls LOOP
             BEGIN
               EXECUTE c.sql INTO found;
             EXCEPTION WHEN OTHERS THEN found := SQLSTATE || ' ' || SQLERRM;
             END;
             UPDATE public.calls SET outcome = found WHERE name = c.name;
           END LOOP;
         END $$;
         CREATE FUNCTION calls(i int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM public.call_all(); RETURN i; END $$;
         CREATE TABLE own (i int); INSERT INTO own VALUES (1); CREATE INDEX ON own (calls(i)); REINDEX TABLE own",
    );
    let outcomes: BTreeMap<String, String> = client
        .query("SELECT name, coalesce(outcome, 'NULL') FROM calls", &[])
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    for (name, outcome) in &outcomes {
        if let Some(view) = name.strip_prefix("view ") {
            let by_identity = VIEWS.iter().any(|(known, by_identity)| *known == view && *by_identity);
            assert!(!by_identity || outcome == "0", "nobody sees {outcome} rows of agd.{view}");
            continue;
        }
        let refused = outcome.starts_with("42501 ") && outcome.contains("security-restricted operation");
        match decides(name) {
            // Without an argument there is nothing to refuse: attack_identity.rs gives them one.
            LoginRole if outcome.starts_with("22023") => {}
            AsOwner | LoginRole => assert!(refused, "agd.{name}() in a restricted operation: {outcome}"),
            Session => assert_eq!(outcome, "1NULL", "agd.{name}() in a restricted operation"),
            // A NULL is no event's id, no log's name and no table's guard.
            Both => assert!(
                ["1false", "0NULL", "1NULL"].contains(&outcome.as_str()) || outcome.starts_with("22023"),
                "agd.{name}() in a restricted operation: {outcome}"
            ),
            _ => assert!(!refused, "agd.{name}() in a restricted operation: {outcome}"),
        }
    }
    expect_verified(&mut client);
}

/// A caller's settings change nothing of what agd does or says, and end with the function, whichever way it ends.
#[test]
fn no_setting_of_the_callers_changes_what_agd_does() {
    let stage = fleet::Stage::new(cluster(), "hostile");
    cluster().create_role("hostile_boss", "SUPERUSER").unwrap();
    cluster().create_role("hostile_owner", "").unwrap();
    let mut calm = stage.superuser();
    run(
        &mut calm,
        "CREATE SCHEMA hostile; GRANT USAGE ON SCHEMA hostile TO PUBLIC;
         CREATE FUNCTION hostile.never(a text, b text) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT false';
         CREATE OPERATOR hostile.= (LEFTARG = text, RIGHTARG = text, FUNCTION = hostile.never);
         CREATE FUNCTION hostile.sha256(b bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$ SELECT '\\x00'::bytea $$;
         CREATE TABLE public.\"Odd Name\" (tenant text, id int, at timestamptz DEFAULT now(), d interval DEFAULT '1 day 2:03',
           f float8 DEFAULT 0.1 + 0.2, b bytea DEFAULT '\\x00ff5c', PRIMARY KEY (tenant, id)) PARTITION BY LIST (tenant);
         CREATE TABLE public.\"Odd Part\" PARTITION OF public.\"Odd Name\" DEFAULT;
         CREATE TABLE public.second (id int PRIMARY KEY, v text);
         INSERT INTO public.\"Odd Name\" SELECT 'acme', i FROM generate_series(1, 5) i;
         CREATE TABLE public.pinned (name text); CREATE TABLE public.seen (what text, value text);
         CREATE FUNCTION public.spy() RETURNS event_trigger LANGUAGE plpgsql AS $$
           BEGIN
             INSERT INTO public.seen SELECT p.name, pg_catalog.current_setting(p.name) FROM public.pinned p;
             INSERT INTO public.seen VALUES ('user', session_user || ' ' || current_user),
               ('reads', agd.may_read('acme')::text), ('reads payload', agd.may_read_payload('acme')::text), ('publishes', agd.is_publisher()::text);
           END $$",
    );
    let mut settings = String::new();
    for (name, _, hostile) in PINNED {
        run(&mut calm, &format!("INSERT INTO public.pinned VALUES ('{name}')"));
        let value = if *name == "search_path" { (*hostile).to_owned() } else { format!("'{hostile}'") };
        for role in ["hostile_boss", "hostile_owner", "hostile_acme", "hostile_ops", "hostile_audit"] {
            settings += &format!("ALTER ROLE {role} SET {name} = {value};");
        }
    }
    run(&mut calm, &settings);
    run(
        &mut calm,
        "CREATE EVENT TRIGGER spies ON ddl_command_end WHEN TAG IN ('CREATE TRIGGER') EXECUTE FUNCTION public.spy()",
    );
    let boss = || stage.database.connect_as("hostile_boss").unwrap();
    let (mut ops, mut acme) = (stage.login("ops"), stage.login("acme"));
    // What runs within agd's own function sees agd's settings and the rights of agd's owner, and asks for the caller.
    run(&mut ops, "SELECT agd.guard('public.second'), agd.guard('public.\"Odd Name\"', tenant_column => 'tenant')");
    run(&mut calm, "DROP EVENT TRIGGER spies");
    let mut seen = BTreeMap::new();
    for row in calm.query("SELECT DISTINCT what, value FROM seen", &[]).unwrap() {
        let before = seen.insert(row.get::<_, String>(0), row.get::<_, String>(1));
        assert_eq!(before, None, "{row:?}");
    }
    for (name, pinned, _) in PINNED {
        assert_eq!(seen.get(*name).map(String::as_str), Some(*pinned), "{name}");
    }
    for (what, value) in
        [("user", "hostile_ops postgres"), ("reads", "true"), ("reads payload", "false"), ("publishes", "false")]
    {
        assert_eq!(seen.get(what).map(String::as_str), Some(value), "{what}");
    }
    // It ends with the function.
    let whole = "SELECT string_agg(concat_ws('=', name, setting), ' ' ORDER BY name) FROM pg_catalog.pg_settings WHERE source <> 'default'";
    let before = (column(&mut ops, whole), column(&mut ops, "SELECT current_user::text"));
    run(
        &mut ops,
        "DO $do$
         BEGIN
           FOR i IN 1 .. 200 LOOP
             BEGIN PERFORM agd.create_tenant('No Name'); EXCEPTION WHEN invalid_parameter_value THEN NULL; END;
             BEGIN PERFORM agd.guard('pg_catalog.pg_class'); EXCEPTION WHEN OTHERS THEN NULL; END;
             BEGIN PERFORM agd.create_tenant('acme'); EXCEPTION WHEN unique_violation THEN NULL; END;
           END LOOP;
           IF current_user <> 'hostile_ops' OR agd.may_read_payload('acme') OR current_setting('TimeZone') <> 'Asia/Kathmandu' THEN
             RAISE 'what a function took has outlived it';
           END IF;
         END $do$",
    );
    run(&mut ops, "BEGIN; SAVEPOINT a");
    expect_sqlstate(ops.batch_execute("SELECT agd.create_tenant('No Name')"), "22023");
    run(&mut ops, "ROLLBACK TO a; SELECT agd.create_tenant('third'); COMMIT");
    expect_sqlstate(ops.batch_execute("SELECT agd.create_tenant('No Name')"), "22023");
    assert_eq!((column(&mut ops, whole), column(&mut ops, "SELECT current_user::text")), before);

    run(
        &mut boss(),
        "INSERT INTO public.\"Odd Name\" SELECT 'globex', i FROM generate_series(1, 5) i; UPDATE public.\"Odd Name\" SET f = f + 1",
    );
    run(&mut boss(), "CREATE TABLE public.\"Odd Third\" PARTITION OF public.\"Odd Name\" FOR VALUES IN ('third')");
    run(
        &mut boss(),
        "ALTER TABLE public.second ADD COLUMN w text DEFAULT 'x'; INSERT INTO public.second VALUES (1, 'v')",
    );
    let first = fleet::mint(&mut acme, "acme", "the first").unwrap();
    let second = fleet::mint(&mut ops, "acme", "the second").unwrap();
    assert_eq!(fleet::statement(&mut acme, &first).unwrap(), fleet::statement(&mut calm, &first).unwrap());
    fleet::sign(&mut acme, &first).unwrap();
    fleet::sign(&mut ops, &second).unwrap();
    assert_eq!(fleet::countersign(&mut ops, &[&first, &second]).unwrap(), ["active", "active"]);
    fleet::seal(&mut acme, &first).unwrap();
    anchor(&mut boss());

    let same = [
        "SELECT concat_ws(' ', relation::oid, guarded, intact, detail) FROM agd.coverage()",
        "SELECT concat_ws(' ', relation::oid, gap, remedy) FROM agd.wall_gaps()",
        "SELECT concat_ws(' ', relation::oid, problem) FROM agd.guard_problems('public.\"Odd Name\"')",
        "SELECT concat_ws(' ', object, definition) FROM agd.own_objects()",
        "SELECT encode(agd.guard_state(), 'hex')",
        "SELECT agd.guard_id('public.\"Odd Part\"')::text",
        "SELECT concat_ws(' ', origin, check_name, ok, entries, detail) FROM agd.verify(full_scan => true)",
        "SELECT concat_ws(' ', problem) FROM agd.verify_table('public.\"Odd Name\"')",
        "SELECT concat_ws(' ', check_name, ok, detail) FROM agd.fleets f CROSS JOIN LATERAL agd.verify_fleet(f.fleet_id)",
        "SELECT concat_ws(' ', leaf_index, md5(entry)) FROM agd.entries((SELECT min(origin) FROM agd.anchors), 0, 10)",
    ];
    for sql in same {
        let (mut here, mut there) = (column(&mut calm, sql), column(&mut boss(), sql));
        here.sort();
        there.sort();
        assert_eq!(here, there, "{sql}");
    }
    // What would open a guard is seen under such settings, too.
    run(&mut calm, "ALTER TABLE public.\"Odd Name\" OWNER TO hostile_owner");
    let mut owner = stage.database.connect_as("hostile_owner").unwrap();
    for sql in [
        "ALTER POLICY agd_tenant ON public.\"Odd Name\" USING (true)",
        "ALTER TABLE public.\"Odd Name\" NO FORCE ROW LEVEL SECURITY",
        "DROP TRIGGER \"~agd_record\" ON public.\"Odd Name\"",
    ] {
        expect_sqlstate(owner.batch_execute(sql), "AG002");
    }
    expect_sound(&mut calm);
    anchor(&mut calm);
    expect_each_event_in_one_leaf(&mut calm);
    expect_verified(&mut calm);
}
