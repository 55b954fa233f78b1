//! A session that asserts what each statement leaves in the log.
#![allow(clippy::panic)]

use crate::record::{Event, events};
use crate::{Cluster, Result, TestDb, expect_sqlstate};
use postgres::Client;
use postgres::error::DbError;
use std::collections::HashSet;
use std::ops::{Deref, DerefMut};

/// A database with the extension, a session of the superuser (to which it dereferences), and what the log held when it was
/// last looked at.
pub struct Watch {
    // Before the database: the session must end before the database is dropped.
    client: Client,
    seen: HashSet<String>,
    database: TestDb<'static>,
}

impl Watch {
    /// A new database with the extension, after `setup`.
    ///
    /// # Errors
    /// What the server says.
    pub fn new(cluster: &'static Cluster, stem: &str, setup: &str) -> Result<Self> {
        let database = cluster.agd_database(stem)?;
        let mut client = database.connect()?;
        client.batch_execute(setup).map_err(|e| crate::Error::doing(setup, format!("{e:?}")))?;
        Ok(Self { client, seen: HashSet::new(), database })
    }

    /// A guarded table `t (id int PRIMARY KEY, v text)` with rows 1 to 3, already looked at.
    ///
    /// # Errors
    /// What the server says.
    pub fn simple(cluster: &'static Cluster, stem: &str) -> Result<Self> {
        let mut watch = Self::new(
            cluster,
            stem,
            "CREATE TABLE t (id int PRIMARY KEY, v text); SELECT agd.guard('t');
             INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')",
        )?;
        watch.news("t");
        Ok(watch)
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> &TestDb<'static> {
        &self.database
    }

    /// `server_version_num`: 150020 is 15.20.
    #[track_caller]
    pub fn version(&mut self) -> i32 {
        self.one("SELECT current_setting('server_version_num')::int")
    }

    /// The only column of the only row of a query without parameters.
    #[track_caller]
    pub fn one<T: for<'a> postgres::types::FromSql<'a>>(&mut self, sql: &str) -> T {
        match self.client.query_one(sql, &[]) {
            Ok(row) => row.get(0),
            Err(error) => panic!("{sql}: {error:?}"),
        }
    }

    /// The only column of a query without parameters, row by row.
    #[track_caller]
    pub fn column<T: for<'a> postgres::types::FromSql<'a>>(&mut self, sql: &str) -> Vec<T> {
        match self.client.query(sql, &[]) {
            Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
            Err(error) => panic!("{sql}: {error:?}"),
        }
    }

    /// Runs statements that must succeed.
    #[track_caller]
    pub fn run(&mut self, sql: &str) {
        if let Err(error) = self.client.batch_execute(sql) {
            panic!("{sql}: {error:?}");
        }
    }

    /// The events of `table` that were not there when this was last called.
    #[track_caller]
    pub fn news(&mut self, table: &str) -> Vec<Event> {
        let all = events(&mut self.client, table);
        all.into_iter().filter(|event| self.seen.insert(event.id.clone())).collect()
    }

    /// The same, as `ACTION key`.
    #[track_caller]
    pub fn briefs(&mut self, table: &str) -> Vec<String> {
        self.news(table).iter().map(Event::brief).collect()
    }

    /// How many INSERT, UPDATE and DELETE events are new; there must be no others.
    #[track_caller]
    pub fn tally(&mut self, table: &str) -> (usize, usize, usize) {
        let news = self.news(table);
        let count = |action: &str| news.iter().filter(|event| event.action == action).count();
        let tally = (count("INSERT"), count("UPDATE"), count("DELETE"));
        assert_eq!(news.len(), tally.0 + tally.1 + tally.2, "{news:?}");
        tally
    }

    /// Runs `sql` and asserts which events of `table` it left, as `ACTION key`.
    #[track_caller]
    pub fn records(&mut self, table: &str, sql: &str, expected: &[&str]) {
        self.run(sql);
        assert_eq!(self.briefs(table), expected, "after: {sql}");
    }

    /// Runs `sql`, asserts its SQLSTATE and that it left no event of `table`; ends the transaction it may have left open.
    #[track_caller]
    pub fn refuses(&mut self, table: &str, sql: &str, state: &str) -> DbError {
        let error = expect_sqlstate(self.client.batch_execute(sql), state);
        self.run("ROLLBACK");
        assert_eq!(self.news(table), [], "after the refused: {sql}");
        error
    }
}

impl Deref for Watch {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Watch {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}
