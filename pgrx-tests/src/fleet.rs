//! Two signers, and what they do with fleets: the statements come from the database, the signatures are made here.
#![allow(clippy::panic, clippy::unwrap_used)]

use ed25519_dalek::{Signer as _, SigningKey};
use postgres::Client;

use crate::{Cluster, TestDb};

/// The signers' names.
pub const COORDINATOR: &str = "Loom_sos_001";
/// See [`COORDINATOR`].
pub const COUNTERSIGNER: &str = "River";

/// A key by one byte, which stands for the whole seed.
#[must_use]
pub fn key(fill: u8) -> SigningKey {
    SigningKey::from_bytes(&[fill; 32])
}

/// A database with two tenants, each with a login role, a role that operates the platform, an auditor, an outsider.
pub struct Stage {
    /// The database.
    pub database: TestDb<'static>,
    cluster: &'static Cluster,
    prefix: String,
}

impl Stage {
    /// Sets it up, with both signers. Roles are `<prefix>_acme`, `_globex`, `_ops`, `_audit` and `_nobody`.
    ///
    /// # Panics
    /// When it cannot be set up.
    #[track_caller]
    pub fn new(cluster: &'static Cluster, prefix: &str) -> Self {
        let stage = Self { database: cluster.agd_database(prefix).unwrap(), cluster, prefix: prefix.to_owned() };
        let mut superuser = stage.superuser();
        superuser.batch_execute("SELECT agd.create_tenant('acme'), agd.create_tenant('globex')").unwrap();
        for (role, options) in [
            ("acme", "IN ROLE agd_tenant"),
            ("globex", "IN ROLE agd_tenant"),
            ("ops", "IN ROLE agd_platform"),
            ("audit", "IN ROLE agd_auditor"),
            ("nobody", ""),
        ] {
            cluster.create_role(&format!("{prefix}_{role}"), options).unwrap();
        }
        for tenant in ["acme", "globex"] {
            superuser
                .execute("SELECT agd.map_role($1::text::name, $2)", &[&format!("{prefix}_{tenant}"), &tenant])
                .unwrap();
        }
        register_signers(&mut stage.login("ops")).unwrap();
        stage
    }

    /// A superuser's session.
    ///
    /// # Panics
    /// When it cannot connect.
    #[track_caller]
    #[must_use]
    pub fn superuser(&self) -> Client {
        self.database.connect().unwrap()
    }

    /// A session of a role, by its name without the prefix.
    ///
    /// # Panics
    /// When it cannot connect.
    #[track_caller]
    #[must_use]
    pub fn login(&self, role: &str) -> Client {
        self.database.connect_as(&self.role(role)).unwrap()
    }

    /// A role's name.
    #[must_use]
    pub fn role(&self, role: &str) -> String {
        format!("{}_{role}", self.prefix)
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &'static Cluster {
        self.cluster
    }
}

/// The coordinator's key.
#[must_use]
pub fn coordinator() -> SigningKey {
    key(1)
}

/// The countersigner's key.
#[must_use]
pub fn countersigner() -> SigningKey {
    key(2)
}

/// Registers both signers.
///
/// # Errors
/// What the server says.
pub fn register_signers(client: &mut Client) -> Result<(), postgres::Error> {
    for (name, duty, key) in
        [(COORDINATOR, "coordinator", coordinator()), (COUNTERSIGNER, "countersigner", countersigner())]
    {
        register(client, name, duty, &key)?;
    }
    Ok(())
}

/// Registers a signer.
///
/// # Errors
/// What the server says.
pub fn register(client: &mut Client, name: &str, duty: &str, key: &SigningKey) -> Result<(), postgres::Error> {
    let public = key.verifying_key();
    client.execute("SELECT agd.register_signer($1, $2, $3)", &[&name, &duty, &public.as_bytes().as_slice()]).map(drop)
}

/// Mints a fleet whose window is so many milliseconds.
///
/// # Errors
/// What the server says.
pub fn mint_for(client: &mut Client, tenant: &str, cause: &str, milliseconds: f64) -> Result<String, postgres::Error> {
    let sql = "SELECT agd.mint_tenant_fleet($1, $2, countersign_window => make_interval(secs => $3::float8 / 1000))";
    client.query_one(sql, &[&tenant, &cause, &milliseconds]).map(|row| row.get(0))
}

/// Mints a fleet.
///
/// # Errors
/// What the server says.
pub fn mint(client: &mut Client, tenant: &str, cause: &str) -> Result<String, postgres::Error> {
    client.query_one("SELECT agd.mint_tenant_fleet($1, $2)", &[&tenant, &cause]).map(|row| row.get(0))
}

/// A fleet's statement.
///
/// # Errors
/// What the server says.
pub fn statement(client: &mut Client, fleet: &str) -> Result<Vec<u8>, postgres::Error> {
    client.query_one("SELECT agd.fleet_statement($1)", &[&fleet]).map(|row| row.get(0))
}

/// A batch's statement.
///
/// # Errors
/// What the server says.
pub fn batch_statement(client: &mut Client, fleets: &[&str]) -> Result<Vec<u8>, postgres::Error> {
    client.query_one("SELECT agd.batch_statement($1)", &[&fleets]).map(|row| row.get(0))
}

/// Signs a fleet as the coordinator.
///
/// # Errors
/// What the server says.
pub fn sign(client: &mut Client, fleet: &str) -> Result<(), postgres::Error> {
    let signature = coordinator().sign(&statement(client, fleet)?).to_bytes();
    client.execute("SELECT agd.sign_fleet($1, $2, $3)", &[&fleet, &COORDINATOR, &signature.as_slice()]).map(drop)
}

/// Countersigns fleets; the states that they have then.
///
/// # Errors
/// What the server says.
pub fn countersign(client: &mut Client, fleets: &[&str]) -> Result<Vec<String>, postgres::Error> {
    let signature = countersigner().sign(&batch_statement(client, fleets)?).to_bytes();
    let sql = "SELECT state FROM agd.countersign_fleets($1, $2, $3)";
    let rows = client.query(sql, &[&fleets, &COUNTERSIGNER, &signature.as_slice()])?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Seals a fleet.
///
/// # Errors
/// What the server says.
pub fn seal(client: &mut Client, fleet: &str) -> Result<(), postgres::Error> {
    client.execute("SELECT agd.seal_tenant_fleet($1, 'it is over')", &[&fleet]).map(drop)
}

/// A fleet's state, as its view has it.
#[track_caller]
pub fn state(client: &mut Client, fleet: &str) -> String {
    match client.query_one("SELECT state FROM agd.fleets WHERE fleet_id = $1", &[&fleet]) {
        Ok(row) => row.get(0),
        Err(error) => panic!("the state of {fleet}: {error:?}"),
    }
}

/// The checks of `agd.verify_fleet` that fail for any fleet, as `fleet check: detail`.
#[track_caller]
pub fn false_checks(client: &mut Client) -> Vec<String> {
    let sql = "SELECT f.fleet_id || ' ' || v.check_name || ': ' || v.detail
                 FROM agd.fleets f CROSS JOIN LATERAL agd.verify_fleet(f.fleet_id) v WHERE NOT v.ok ORDER BY 1";
    match client.query(sql, &[]) {
        Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
        Err(error) => panic!("agd.verify_fleet: {error:?}"),
    }
}

/// The tables of fleets.
pub const TABLES: [&str; 6] = [
    "agd.signer",
    "agd.fleet_template",
    "agd.tenant_agent_fleet",
    "agd.fleet_agent",
    "agd.countersign_request",
    "agd.fleet_signature",
];

/// Asserts that every fleet is what its rows say, and that every table of fleets is what its log says. The caller is a
/// superuser, and nobody else writes.
#[track_caller]
pub fn expect_sound(client: &mut Client) {
    assert_eq!(false_checks(client), [""; 0]);
    for table in TABLES {
        match client.query("SELECT problem FROM agd.verify_table($1::text::regclass)", &[&table]) {
            Ok(rows) => assert!(rows.is_empty(), "{table}: {}", rows[0].get::<_, String>(0)),
            Err(error) => panic!("agd.verify_table('{table}'): {error:?}"),
        }
    }
    // No two live fleets of one vector; generations without a gap, and all but the last of them over.
    let sql = "SELECT count(*) FROM (
                 SELECT f.*, row_number() OVER w AS place, lead(generation) OVER w AS next FROM agd.tenant_agent_fleet f
                 WINDOW w AS (PARTITION BY tenant, template, template_version, cause_digest ORDER BY generation)) f
                WHERE f.generation <> f.place OR f.next IS NOT NULL AND f.state IN ('pending', 'active')";
    match client.query_one(sql, &[]) {
        Ok(row) => assert_eq!(row.get::<_, i64>(0), 0, "generations that overlap"),
        Err(error) => panic!("{error:?}"),
    }
}
