//! Through a pooler and from real clients: one login role, one server connection, one tenant after the other.

use agd_live_tests::pooler::{Pooler, program};
use agd_live_tests::record::{anchor, expect_verified, reconcile};
use agd_live_tests::token::Issuer;
use agd_live_tests::wall::{Wall, column, run};
use agd_live_tests::{Cluster, expect_sqlstate};
use postgres::{Client, NoTls};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::builder().start().unwrap())
}

/// Two clients of one login role take turns, each for its own tenant; nothing of the one is found by the other.
#[test]
fn no_state_survives_from_one_client_to_the_next() {
    let wall = Wall::new(cluster(), "turns", "");
    let name = wall.database.name().to_owned();
    // Without a pooler the two have sessions of their own.
    let modes: &[&str] = if program().is_some() { &["transaction", "session"] } else { &["none"] };
    for mode in modes {
        let pooler = program().map(|program| Pooler::start(&program, cluster(), &name, mode, 1, &["turns_app"]));
        let connect = || match &pooler {
            Some(pooler) => pooler.config(&name).user("turns_app").connect(NoTls).unwrap(),
            None => wall.login("app"),
        };
        let mut pids = Vec::new();
        let mut turn = |client: &mut Client, tenant: &str, other: &str, number: i32| {
            // What the one before may have left.
            assert_eq!(column(client, "SELECT agd.current_tenant()"), ["NULL"], "{mode}");
            assert_eq!(column(client, "SELECT tenant FROM plain"), [""; 0], "{mode}");
            assert_eq!(
                column(client, "SELECT relname::text FROM pg_class WHERE relpersistence = 't'"),
                [""; 0],
                "{mode}"
            );
            assert_eq!(column(client, "SELECT name FROM pg_cursors WHERE is_holdable"), [""; 0], "{mode}");
            run(client, &format!("BEGIN; SELECT agd.bind('{}')", wall.token(tenant)));
            assert_eq!(column(client, "SELECT DISTINCT tenant FROM plain"), [tenant], "{mode}");
            run(
                client,
                &format!(
                    "INSERT INTO plain VALUES ('{tenant}', {number}, '{mode}'); CREATE TEMP TABLE left_behind AS TABLE plain"
                ),
            );
            pids.extend(column(client, "SELECT pg_backend_pid()::text"));
            run(client, "COMMIT");
            run(client, &format!("BEGIN; SELECT agd.bind('{}')", wall.token(tenant)));
            expect_sqlstate(
                client.batch_execute(&format!("INSERT INTO plain VALUES ('{other}', {number}, 'x')")),
                "42501",
            );
            run(client, "ROLLBACK");
            // Given up in the middle, without a word.
            run(
                client,
                &format!(
                    "BEGIN; SELECT agd.bind('{}'); INSERT INTO plain VALUES ('{tenant}', -1, 'x')",
                    wall.token(tenant)
                ),
            );
            run(client, "ROLLBACK");
        };
        let first = if *mode == "session" { 200 } else { 100 };
        if *mode == "session" {
            // The next client gets the connection when the one before hangs up, in the middle of a transaction too.
            for number in 0..6 {
                let (tenant, other) = if number % 2 == 0 { ("acme", "globex") } else { ("globex", "acme") };
                let mut client = connect();
                turn(&mut client, tenant, other, first + number);
                run(&mut client, &format!("BEGIN; SELECT agd.bind('{}')", wall.token(tenant)));
            }
        } else {
            let (mut one, mut two) = (connect(), connect());
            for number in 0..6 {
                turn(&mut one, "acme", "globex", first + 2 * number);
                turn(&mut two, "globex", "acme", first + 2 * number + 1);
            }
        }
        pids.sort_unstable();
        pids.dedup();
        // A client that hangs up in a transaction costs its server connection, which is not given on.
        if *mode == "transaction" {
            assert_eq!(pids.len(), 1, "one server connection for both");
        }
    }
    let mut superuser = wall.superuser();
    let recorded = column(
        &mut superuser,
        "SELECT DISTINCT concat_ws(' ', tenant, new->>'tenant', session_user_name, principal, binding) FROM agd.events
          WHERE relation = 'public.plain' AND action = 'INSERT' AND binding <> 'bypass' ORDER BY 1",
    );
    assert_eq!(recorded, ["acme acme turns_app writer-1 token", "globex globex turns_app writer-1 token"]);
    reconcile(&mut superuser, "plain", &["tenant", "id"]);
    anchor(&mut superuser);
    expect_verified(&mut superuser);
}

struct Clients {
    wall: Wall,
    orders: Value,
    poolers: Vec<(&'static str, Pooler)>,
}

impl Clients {
    fn new(prefix: &'static str) -> Self {
        let wall = Wall::new(cluster(), prefix, "");
        let mut superuser = wall.superuser();
        let (acme, globex) = ([0x11; 32], [0x22; 32]);
        let issuer = Issuer::with_seed(&mut superuser, "acme", "client-acme", &acme);
        Issuer::with_seed(&mut superuser, "globex", "client-globex", &globex);
        // These clients tell the time as it is: they come when the server's first seconds are over.
        std::thread::sleep(std::time::Duration::from_millis(2500));
        let user = format!("{prefix}_app");
        let hex = |seed: [u8; 32]| seed.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let orders = json!({
            "database": wall.database.name(), "user": user, "audience": issuer.audience_name(),
            "keys": {"acme": ["client-acme", hex(acme)], "globex": ["client-globex", hex(globex)]},
        });
        let start = |program: &OsString, mode, size| {
            Pooler::start(program, cluster(), wall.database.name(), mode, size, &[&user])
        };
        // Session mode gives a client its connection for as long as it stays: two at once need two.
        let poolers = program().map_or_else(Vec::new, |program| {
            vec![("transaction", start(&program, "transaction", 1)), ("session", start(&program, "session", 2))]
        });
        Self { wall, orders, poolers }
    }

    /// Runs a client's script straight and through each pooler, with prepared statements where there can be any.
    fn run(&self, program: &OsString, folder: &Path, script: &str) {
        let mut ways = vec![
            ("straight", cluster().socket_dir().to_owned(), 5432, true),
            ("unprepared", cluster().socket_dir().to_owned(), 5432, false),
        ];
        for (mode, pooler) in &self.poolers {
            ways.push((mode, pooler.socket_dir().to_owned(), 6432, pooler.prepares || *mode == "session"));
        }
        for (way, host, port, prepare) in ways {
            let mut orders = self.orders.clone();
            orders["host"] = json!(host);
            orders["port"] = json!(port);
            orders["prepare"] = json!(prepare);
            let mut child = Command::new(program)
                .arg(folder.join(script))
                .current_dir(folder)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(orders.to_string().as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{script} {way}: {errors}");
            let found: Value = serde_json::from_slice(&output.stdout).unwrap();
            let principal = if script.ends_with("mjs") { "js" } else { "py" };
            let seen: Vec<Value> = (0..6)
                .map(|number| if number % 2 == 1 { "acme" } else { "globex" })
                .map(|tenant| json!([tenant, tenant, principal]))
                .collect();
            assert_eq!(found["seen"], json!(seen), "{script} {way}");
            let left = found["left"].as_array().unwrap();
            assert!(left.len() >= 6 && left.iter().all(|left| *left == json!([null])), "{script} {way}: {left:?}");
            let refused: Vec<_> = (0..6).flat_map(|_| ["AG004", "42501"]).collect();
            assert_eq!(found["refused"], json!(refused), "{script} {way}");
            // The same keys again for the next way.
            run(&mut self.wall.superuser(), "DELETE FROM plain WHERE id >= 1000");
        }
        let mut superuser = self.wall.superuser();
        reconcile(&mut superuser, "plain", &["tenant", "id"]);
    }
}

/// psycopg and SQLAlchemy, where Python has them.
#[test]
fn python_clients() {
    let Some(python) = std::env::var_os("AGD_CLIENT_PYTHON") else { return };
    let clients = Clients::new("python");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
    for script in ["psycopg_client.py", "sqlalchemy_client.py"] {
        clients.run(&python, &folder, script);
    }
}

/// node-postgres, where there is Node.js.
#[test]
fn node_clients() {
    let (Some(node), Some(folder)) = (std::env::var_os("AGD_CLIENT_NODE"), std::env::var_os("AGD_CLIENT_NODE_FOLDER"))
    else {
        return;
    };
    Clients::new("nodejs").run(&node, Path::new(&folder), "node_client.mjs");
}
