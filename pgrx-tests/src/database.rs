//! One database of a shared cluster, for one test.

use crate::{Cluster, Error, Output, Result};
use postgres::Client;

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

    /// Runs a script as the superuser: see [`Cluster::psql`].
    ///
    /// # Errors
    /// As [`Cluster::psql`].
    pub fn psql(&self, script: &str) -> Result<Output> {
        self.cluster.psql(&self.name, "postgres", script)
    }
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
