//! Two tenants on each side of a wall, for every type of tenant column and every way to be bound.
#![allow(clippy::panic)]

use crate::token::Issuer;
use crate::{Cluster, TestDb};
use postgres::Client;
use std::collections::HashMap;
use std::ops::{Deref, DerefMut};

/// How a session comes by its tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Its login role is the tenant's.
    Role,
    /// Each transaction presents a token.
    Token,
    /// Each transaction says it.
    Asserted,
}

impl By {
    /// All three.
    pub const ALL: [By; 3] = [By::Role, By::Token, By::Asserted];
}

/// A table with rows 1 to 3 of two tenants (and of no other).
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Its name; there are a view `<table>_view`, and functions `<table>_put(tenant, id)` of a superuser and
    /// `<table>_peek()` of the table's owner, both SECURITY DEFINER.
    pub table: &'static str,
    /// The type of its column `tenant`; the others are `id int` and `v text`, the key is `(tenant, id)`.
    pub column: &'static str,
    /// One tenant, and the other.
    pub tenants: [&'static str; 2],
}

const TEXT: [&str; 2] = ["acme", "globex"];
const UUID: [&str; 2] = ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"];
const NUMBER: [&str; 2] = ["7", "8"];

/// Every shape.
pub const SHAPES: [Shape; 6] = [
    Shape { table: "plain", column: "text", tenants: TEXT },
    Shape { table: "parts", column: "text", tenants: TEXT },
    Shape { table: "named", column: "varchar(80)", tenants: TEXT },
    Shape { table: "uuids", column: "uuid", tenants: UUID },
    Shape { table: "numbers", column: "bigint", tenants: NUMBER },
    Shape { table: "smalls", column: "integer", tenants: NUMBER },
];

/// A database with all of them, and login roles `<prefix>_app` (token), `<prefix>_agent` (asserted), `<prefix>_owner` (owns
/// the tables, is mapped to nobody) and one of mode 'role' for each tenant.
pub struct Wall {
    issuers: HashMap<&'static str, Issuer>,
    /// What the roles' names begin with.
    pub prefix: &'static str,
    /// The database.
    pub database: TestDb<'static>,
}

impl Wall {
    /// Sets it up. `{0}` in `setup` stands for the prefix.
    #[track_caller]
    pub fn new(cluster: &'static Cluster, prefix: &'static str, setup: &str) -> Self {
        let database = cluster.agd_database(prefix).unwrap_or_else(|error| panic!("{error}"));
        let mut sql = String::new();
        let tenants = [TEXT, UUID, NUMBER].concat();
        let mut roles = vec!["app".to_owned(), "agent".to_owned()];
        roles.extend((0..tenants.len()).map(|number| format!("r{number}")));
        for role in &roles {
            let created = cluster.create_role(&format!("{prefix}_{role}"), "IN ROLE agd_tenant");
            created.unwrap_or_else(|error| panic!("{error}"));
        }
        cluster.create_role(&format!("{prefix}_owner"), "").unwrap_or_else(|error| panic!("{error}"));
        for (number, tenant) in tenants.iter().enumerate() {
            sql += &format!(
                "SELECT agd.create_tenant('{tenant}'); SELECT agd.map_role('{prefix}_r{number}', '{tenant}');"
            );
        }
        sql += &format!(
            "SELECT agd.map_role('{prefix}_app', NULL, 'token'); SELECT agd.map_role('{prefix}_agent', NULL, 'asserted');
             GRANT CREATE ON SCHEMA public TO {prefix}_owner;"
        );
        for Shape { table, column, tenants: [one, other] } in SHAPES {
            let partitioned = if table == "parts" { "PARTITION BY LIST (tenant)" } else { "" };
            sql += &format!(
                "CREATE TABLE {table} (tenant {column} NOT NULL, id int, v text, PRIMARY KEY (tenant, id)) {partitioned};"
            );
            if table == "parts" {
                sql += "CREATE TABLE parts_acme PARTITION OF parts FOR VALUES IN ('acme');
                        CREATE TABLE parts_rest PARTITION OF parts DEFAULT;
                        ALTER TABLE parts_acme OWNER TO {0}_owner; ALTER TABLE parts_rest OWNER TO {0}_owner;
                        GRANT ALL ON parts_acme, parts_rest TO PUBLIC;";
            }
            sql += &format!(
                "INSERT INTO {table} SELECT t, i, 'seed' FROM unnest('{{{one},{other}}}'::{column}[]) t, generate_series(1, 3) i;
                 ALTER TABLE {table} OWNER TO {prefix}_owner;
                 SELECT agd.guard('{table}', tenant_column => 'tenant');
                 CREATE VIEW {table}_view WITH (security_invoker) AS SELECT * FROM {table};
                 CREATE FUNCTION {table}_put(t text, i int) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = public
                   AS $$ INSERT INTO {table} VALUES (t::{column}, i, 'definer') $$;
                 CREATE FUNCTION {table}_peek() RETURNS SETOF text LANGUAGE sql SECURITY DEFINER SET search_path = public
                   AS $$ SELECT DISTINCT tenant::text FROM {table} $$;
                 ALTER FUNCTION {table}_peek() OWNER TO {prefix}_owner;
                 GRANT ALL ON {table}, {table}_view TO PUBLIC;
                 ANALYZE {table};"
            );
        }
        sql += setup;
        let wall = Self { database, prefix, issuers: HashMap::new() };
        let mut client = wall.superuser();
        run(&mut client, &wall.sql(&sql));
        let issuers = tenants
            .iter()
            .enumerate()
            .map(|(number, tenant)| (*tenant, Issuer::new(&mut client, tenant, &format!("{prefix}-{number}"))));
        let issuers = issuers.collect();
        Self { issuers, ..wall }
    }

    /// SQL with the roles' names.
    #[must_use]
    pub fn sql(&self, text: &str) -> String {
        text.replace("{0}", self.prefix)
    }

    /// A superuser's session.
    #[track_caller]
    #[must_use]
    pub fn superuser(&self) -> Client {
        self.database.connect().unwrap_or_else(|error| panic!("{error}"))
    }

    /// A session of a login role, by its name without the prefix.
    #[track_caller]
    #[must_use]
    pub fn login(&self, role: &str) -> Client {
        let role = format!("{}_{role}", self.prefix);
        self.database.connect_as(&role).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The issuer of a tenant's tokens.
    #[track_caller]
    #[must_use]
    pub fn issuer(&self, tenant: &str) -> &Issuer {
        self.issuers.get(tenant).unwrap_or_else(|| panic!("no tenant {tenant}"))
    }

    /// A token for the login role `<prefix>_app` and the principal `writer-1`.
    #[track_caller]
    #[must_use]
    pub fn token(&self, tenant: &str) -> String {
        self.issuer(tenant).token(&format!("{}_app", self.prefix), "writer-1")
    }

    /// The login role with which a tenant is bound so.
    #[must_use]
    pub fn role(&self, by: By, tenant: &str) -> String {
        let number = [TEXT, UUID, NUMBER].concat().iter().position(|known| *known == tenant);
        match by {
            By::Role => format!("r{}", number.unwrap_or(usize::MAX)),
            By::Token => "app".to_owned(),
            By::Asserted => "agent".to_owned(),
        }
    }

    /// A session that is bound to a tenant in each of its transactions.
    #[track_caller]
    #[must_use]
    pub fn session(&self, by: By, tenant: &'static str) -> Session<'_> {
        Session { client: self.login(&self.role(by, tenant)), wall: self, by, tenant }
    }
}

/// A session that is bound to a tenant in each transaction that begins with [`Session::begin`].
pub struct Session<'w> {
    client: Client,
    wall: &'w Wall,
    by: By,
    tenant: &'static str,
}

impl Session<'_> {
    /// The statement that binds.
    #[track_caller]
    #[must_use]
    pub fn binding(&self) -> String {
        match self.by {
            By::Role => String::new(),
            By::Token => format!("SELECT agd.bind('{}')", self.wall.token(self.tenant)),
            By::Asserted => format!("SELECT agd.enter('{}', 'writer-1')", self.tenant),
        }
    }

    /// Ends what is open and begins a bound transaction.
    #[track_caller]
    pub fn begin(&mut self) {
        let sql = format!("ROLLBACK; BEGIN; {}", self.binding());
        run(&mut self.client, &sql);
    }

    /// Runs SQL in a bound transaction of its own, and commits.
    ///
    /// # Errors
    /// What the server says.
    #[track_caller]
    pub fn within(&mut self, sql: &str) -> Result<(), postgres::Error> {
        self.begin();
        self.client.batch_execute(sql)?;
        self.client.batch_execute("COMMIT")
    }

    /// The first column of a query in a bound transaction of its own.
    #[track_caller]
    pub fn column(&mut self, sql: &str) -> Vec<String> {
        self.begin();
        let found = column(&mut self.client, sql);
        run(&mut self.client, "COMMIT");
        found
    }
}

impl Deref for Session<'_> {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Session<'_> {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// Runs SQL that works.
#[track_caller]
pub fn run(client: &mut Client, sql: &str) {
    if let Err(error) = client.batch_execute(sql) {
        panic!("{sql}: {error:?}");
    }
}

/// The first column of a query, which is text.
#[track_caller]
pub fn column(client: &mut Client, sql: &str) -> Vec<String> {
    match client.query(sql, &[]) {
        Ok(rows) => rows.iter().map(|row| row.get::<_, Option<String>>(0).unwrap_or_else(|| "NULL".into())).collect(),
        Err(error) => panic!("{sql}: {error:?}"),
    }
}
