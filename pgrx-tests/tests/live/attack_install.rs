//! Attacks on the installation: what was there before it.

use agd_live_tests::record::{anchor, expect_verified};
use agd_live_tests::{Cluster, expect_hint, expect_sqlstate};
use postgres::Client;

const ROLES: [&str; 4] = ["agd_platform", "agd_auditor", "agd_publisher", "agd_tenant"];

fn run(client: &mut Client, sql: &str) {
    client.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

fn strings(client: &mut Client, sql: &str) -> Vec<String> {
    match client.query(sql, &[]) {
        Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
        Err(error) => panic!("{sql}: {error:?}"),
    }
}

/// What each grantee that is not the owner has of each object of agd's.
const GRANTED: &str = "
    SELECT DISTINCT concat_ws(' ', o.name, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END, a.privilege_type, a.is_grantable)
      FROM (SELECT c.oid::regclass::text, c.relowner, c.relacl FROM pg_class c WHERE c.relnamespace = 'agd'::regnamespace
            UNION ALL SELECT p.oid::regprocedure::text, p.proowner, coalesce(p.proacl, acldefault('f', p.proowner)) FROM pg_proc p WHERE p.pronamespace = 'agd'::regnamespace
            UNION ALL SELECT t.oid::regtype::text, t.typowner, t.typacl FROM pg_type t WHERE t.typnamespace = 'agd'::regnamespace AND t.typelem = 0
            UNION ALL SELECT 'schema', n.nspowner, n.nspacl FROM pg_namespace n WHERE n.nspname = 'agd') o (name, owner, acl), aclexplode(o.acl) a
     WHERE a.grantee <> o.owner ORDER BY 1";

#[test]
fn default_privileges_grant_nobody_anything_of_agds() {
    let cluster = Cluster::builder().start().unwrap();
    let plain = cluster.agd_database("plain").unwrap();
    let as_it_is_meant = strings(&mut plain.connect().unwrap(), GRANTED);
    assert!(as_it_is_meant.len() > 60);
    cluster.create_role("stranger", "").unwrap();
    for (number, grants) in [
        "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO stranger; ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO stranger;
         ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO stranger; ALTER DEFAULT PRIVILEGES GRANT ALL ON TYPES TO stranger;
         ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO stranger",
        "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO stranger WITH GRANT OPTION; ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO stranger WITH GRANT OPTION;
         ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO stranger WITH GRANT OPTION; ALTER DEFAULT PRIVILEGES GRANT ALL ON TYPES TO stranger WITH GRANT OPTION",
        "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC, agd_tenant; ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO agd_tenant, agd_publisher;
         ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO PUBLIC, agd_tenant; ALTER DEFAULT PRIVILEGES GRANT ALL ON TYPES TO agd_tenant",
        "ALTER DEFAULT PRIVILEGES REVOKE ALL ON FUNCTIONS FROM PUBLIC; ALTER DEFAULT PRIVILEGES REVOKE ALL ON TYPES FROM PUBLIC",
    ]
    .into_iter()
    .enumerate()
    {
        let database = cluster.database("defaults").unwrap();
        let mut client = database.connect().unwrap();
        run(&mut client, grants);
        run(&mut client, "CREATE EXTENSION agd");
        assert_eq!(strings(&mut client, GRANTED), as_it_is_meant, "case {number}");
        let mut stranger = database.connect_as("stranger").unwrap();
        for sql in [
            "SELECT * FROM agd.event",
            "INSERT INTO agd.role_map (role, tenant, mode) VALUES ('stranger', 'acme', 'role')",
            "SELECT agd.create_tenant('mine')",
            "SELECT agd.report_divergence('x', 1, sha256('x'), 'x')",
            "SELECT * FROM agd.stat",
            "CREATE TABLE agd.mine (i int)",
        ] {
            expect_sqlstate(stranger.batch_execute(sql), "42501");
        }
        run(&mut client, "CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t'); INSERT INTO t VALUES (1)");
        anchor(&mut client);
        expect_verified(&mut client);
    }
}

/// Somebody with CREATEROLE makes agd's roles beforehand, each with something that it should not have.
#[test]
fn roles_that_were_there_before_are_looked_at() {
    for role in ROLES {
        let cluster = Cluster::builder().start().unwrap();
        let database = cluster.database("squatted").unwrap();
        let mut superuser = database.connect().unwrap();
        cluster.create_role("mallory", "CREATEROLE").unwrap();
        cluster.create_role("other", "").unwrap();
        let mut mallory = database.connect_as("mallory").unwrap();
        // From 16 on who makes a role is its member with ADMIN; before that whoever has CREATEROLE may be that at any time.
        run(&mut mallory, &format!("CREATE ROLE {role}"));
        let _ = mallory.batch_execute(&format!("GRANT {role} TO mallory WITH ADMIN OPTION"));
        let error = expect_sqlstate(superuser.batch_execute("CREATE EXTENSION agd"), "55000");
        assert!(error.message().contains(role) && error.message().contains("mallory (ADMIN)"), "{}", error.message());
        expect_hint(&error, &format!("DROP ROLE {role}"));
        assert!(!superuser.query_one("SELECT to_regnamespace('agd') IS NOT NULL", &[]).unwrap().get::<_, bool>(0));
        // Nobody but a superuser says that it is agd's.
        for sql in [
            format!("SECURITY LABEL FOR agd ON ROLE {role} IS 'agd'"),
            format!("COMMENT ON ROLE {role} IS 'carries anchors out'"),
        ] {
            let _ = mallory.batch_execute(&sql);
        }
        expect_sqlstate(mallory.batch_execute(&format!("SECURITY LABEL FOR agd ON ROLE {role} IS 'agd'")), "42501");
        expect_sqlstate(superuser.batch_execute("CREATE EXTENSION agd"), "55000");
        run(&mut superuser, &format!("DROP ROLE {role}"));
        for (strange, named) in [
            ("LOGIN", "log in"),
            ("BYPASSRLS", "BYPASSRLS"),
            ("CREATEROLE", "CREATEROLE"),
            ("CREATEDB", "CREATEDB"),
            ("REPLICATION", "REPLICATION"),
            ("SUPERUSER", "superuser"),
            ("ROLE other", "other"),
            ("ADMIN other", "other (ADMIN)"),
            ("IN ROLE pg_read_all_data", "pg_read_all_data"),
            ("; ALTER ROLE {role} SET search_path = lair", "settings"),
            ("; ALTER ROLE {role} IN DATABASE postgres SET work_mem = '1GB'", "settings"),
        ] {
            run(&mut superuser, &format!("CREATE ROLE {role} {}", strange.replace("{role}", role)));
            let error = expect_sqlstate(superuser.batch_execute("CREATE EXTENSION agd"), "55000");
            assert!(
                error.message().contains(role) && error.message().contains(named),
                "{strange}: {}",
                error.message()
            );
            run(&mut superuser, &format!("DROP ROLE {role}"));
        }
        // One that is as agd makes it is taken.
        run(&mut superuser, &format!("CREATE ROLE {role} NOLOGIN; CREATE EXTENSION agd"));
    }
}

/// Members that an administrator granted since are no reason to refuse agd in another database; and he may say that he knows.
#[test]
fn a_superusers_word_is_enough() {
    let cluster = Cluster::builder().start().unwrap();
    let first = cluster.agd_database("first").unwrap();
    cluster.create_role("plat", "IN ROLE agd_platform").unwrap();
    cluster.create_role("chief", "").unwrap();
    run(&mut first.connect().unwrap(), "GRANT agd_platform TO chief WITH ADMIN OPTION");
    let second = cluster.agd_database("second").unwrap();
    // And when agd is nowhere any more: the label stays with the role.
    for database in [&first, &second] {
        run(&mut database.connect().unwrap(), "DROP EXTENSION agd");
    }
    let mut client = first.connect().unwrap();
    run(&mut client, "CREATE EXTENSION agd");
    run(&mut client, "DROP EXTENSION agd; SECURITY LABEL FOR agd ON ROLE agd_platform IS NULL");
    let error = expect_sqlstate(client.batch_execute("CREATE EXTENSION agd"), "55000");
    expect_hint(&error, "SECURITY LABEL FOR agd ON ROLE agd_platform IS 'agd'");
    run(&mut client, "SECURITY LABEL FOR agd ON ROLE agd_platform IS 'agd'; CREATE EXTENSION agd");
    // The label is for that alone.
    expect_sqlstate(client.batch_execute("SECURITY LABEL FOR agd ON ROLE chief IS 'something else'"), "22023");
    expect_sqlstate(
        client.batch_execute("CREATE TABLE t (id int); SECURITY LABEL FOR agd ON TABLE t IS 'agd'"),
        "22023",
    );
    // What makes it more than a group is refused whoever labelled it.
    run(&mut client, "ALTER ROLE agd_auditor LOGIN");
    let mut there = second.connect().unwrap();
    expect_sqlstate(there.batch_execute("CREATE EXTENSION agd"), "55000");
    run(&mut client, "ALTER ROLE agd_auditor NOLOGIN");
    run(&mut there, "CREATE EXTENSION agd");
}
