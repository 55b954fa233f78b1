//! One database of a shared cluster, for one test.

use crate::{Cluster, Error, Output, Result};
use postgres::Client;
use std::ops::{Deref, DerefMut};

/// A database that is dropped with this guard; when the test panicked, the end of the server's log is shown first.
pub struct TestDb<'c> {
    cluster: &'c Cluster,
    name: String,
}

impl<'c> TestDb<'c> {
    pub(crate) fn create(cluster: &'c Cluster, name: String) -> Result<Self> {
        cluster
            .superuser()?
            .batch_execute(&format!("CREATE DATABASE \"{name}\""))
            .map_err(|e| Error::doing(&format!("creating database {name}"), e))?;
        Ok(Self { cluster, name })
    }

    /// The database's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster it lives in.
    #[must_use]
    pub fn cluster(&self) -> &'c Cluster {
        self.cluster
    }

    /// A connection as the superuser.
    ///
    /// # Errors
    /// As [`Cluster::client`].
    pub fn connect(&self) -> Result<Client> {
        self.connect_as("postgres")
    }

    /// A connection as `role`.
    ///
    /// # Errors
    /// As [`Cluster::client`].
    pub fn connect_as(&self, role: &str) -> Result<Client> {
        self.cluster.client(role, &self.name)
    }

    /// A superuser who goes past every trigger: see [`Tamperer`].
    ///
    /// # Errors
    /// What the server says.
    pub fn tamperer(&self) -> Result<Tamperer> {
        Tamperer::new(self.connect()?)
    }

    /// Runs a script as the superuser: see [`Cluster::psql`].
    ///
    /// # Errors
    /// As [`Cluster::psql`].
    pub fn psql(&self, script: &str) -> Result<Output> {
        self.cluster.psql(&self.name, "postgres", script)
    }
}

/// A superuser's session, in an open transaction that has switched off every trigger of agd's tables and of those in schema
/// public: straight in the catalog, not by ALTER TABLE, which agd may refuse. What it does is undone when it is dropped.
pub struct Tamperer {
    client: Client,
}

impl Tamperer {
    /// Over a session of a superuser that is new: it has not read the triggers of any table yet.
    ///
    /// # Errors
    /// What the server says.
    pub fn new(mut client: Client) -> Result<Self> {
        client
            .batch_execute(&format!("BEGIN; SET LOCAL allow_system_table_mods = on; {}", switch_triggers("A", "D")))
            .map_err(|e| Error::doing("switching triggers off", format!("{e:?}")))?;
        Ok(Self { client })
    }

    /// Switches the triggers on again and commits.
    ///
    /// # Errors
    /// What the server says.
    pub fn commit(mut self) -> Result<()> {
        let on = format!("{}; COMMIT", switch_triggers("D", "A"));
        self.client.batch_execute(&on).map_err(|e| Error::doing("committing what was tampered with", format!("{e:?}")))
    }
}

impl Deref for Tamperer {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Tamperer {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

fn switch_triggers(from: &str, to: &str) -> String {
    format!(
        "UPDATE pg_trigger SET tgenabled = '{to}' WHERE tgenabled = '{from}'
            AND tgrelid IN (SELECT oid FROM pg_class WHERE relnamespace IN ('agd'::regnamespace, 'public'::regnamespace))"
    )
}

impl Drop for TestDb<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.cluster.log_tail_of(&self.name);
            eprintln!("--- the end of the server's log about {}\n{log}\n---", self.name);
        }
        // A test that stopped the server, or dropped the database itself, has nothing left to drop.
        let drop = format!("DROP DATABASE IF EXISTS \"{}\" WITH (FORCE)", self.name);
        if let Ok(mut client) = self.cluster.superuser()
            && let Err(error) = client.batch_execute(&drop)
        {
            eprintln!("dropping database {}: {error}", self.name);
        }
    }
}
