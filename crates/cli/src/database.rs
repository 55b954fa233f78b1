//! The database, through libpq's protocol, as a member of `agd_publisher`.
//!
//! Owns the connection and the seven statements the publisher needs. Every name in them is schema-qualified and the
//! session's search_path is empty, so that nothing a schema owner plants is ever called. Statements are unnamed, so that
//! a transaction pooler in between does no harm. It never reports the connection string.

use std::time::Duration;

use agd_core::Hash;
use postgres::config::SslMode;
use postgres::error::SqlState;
use postgres::types::{ToSql, Type};
use postgres::{Client, Config, NoTls, Row};

use crate::publish::memory::Home;
use crate::report::time;
use crate::source::{Anchor, AtHome, Identity, LogHead, Receipt, Source, SourceError};

const CONNECT: &str = "connect to the database";

/// How long a connection attempt may take when the connection string does not say.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to the database whose logs are published.
pub struct Database {
    client: Client,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Database")
    }
}

/// Reads a connection string: a `postgresql://` URL or `key=value` pairs.
///
/// The password is taken from `password` (the caller passes the environment's PGPASSWORD) when the string has none.
///
/// # Errors
/// [`SourceError`] for a malformed string, or one that demands TLS: this version has none.
pub fn parse_config(text: &str, password: Option<String>) -> Result<Config, SourceError> {
    let error =
        |message: String, hint: Option<&str>| SourceError { what: CONNECT, message, hint: hint.map(str::to_owned) };
    let no_tls = || {
        error(
            "the connection string demands TLS, which this version does not have".to_owned(),
            Some("connect through a unix socket or a local tunnel, with sslmode=prefer"),
        )
    };
    // Values that the crate does not know would be reported as malformed.
    if ["sslmode=verify-ca", "sslmode=verify-full"].iter().any(|demand| text.contains(demand)) {
        return Err(no_tls());
    }
    let mut config: Config = text.parse().map_err(|_| error("malformed connection string".to_owned(), None))?;
    if config.get_ssl_mode() == SslMode::Require {
        return Err(no_tls());
    }
    if config.get_password().is_none()
        && let Some(password) = password
    {
        config.password(password);
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    if config.get_application_name().is_none() {
        config.application_name("agd publish");
    }
    Ok(config)
}

impl Database {
    /// Connects.
    ///
    /// # Errors
    /// [`SourceError`] with what the server said.
    pub fn connect(config: &Config) -> Result<Self, SourceError> {
        Ok(Self { client: connect(config)? })
    }

    /// The rows of a query, each read by `read`. `what`: said when it fails.
    fn rows<T>(
        &mut self,
        what: &'static str,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
        read: impl FnMut(&Row) -> Result<T, postgres::Error>,
    ) -> Result<Vec<T>, SourceError> {
        let rows = self.client.query_typed(sql, parameters).map_err(|error| fail(what, &error))?;
        rows.iter().map(read).collect::<Result<_, _>>().map_err(|error| fail(what, &error))
    }

    /// Calls a function whose answer is of no interest.
    fn tell(
        &mut self,
        what: &'static str,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<(), SourceError> {
        self.rows(what, sql, parameters, |_| Ok(())).map(|_| ())
    }
}

/// A connection on which no name is looked up anywhere but where a statement says.
pub(crate) fn connect(config: &Config) -> Result<Client, SourceError> {
    let mut client = config.connect(NoTls).map_err(|error| fail(CONNECT, &error))?;
    client.batch_execute("SET search_path = ''").map_err(|error| fail(CONNECT, &error))?;
    Ok(client)
}

impl Source for Database {
    fn identity(&mut self) -> Result<Identity, SourceError> {
        const WHAT: &str = "ask who the database is (agd.publishing)";
        let rows = self.rows(
            WHAT,
            "SELECT p.system_identifier, p.database, p.state, p.received_from, p.keys FROM agd.publishing() AS p",
            &[],
            |row| {
                let state: String = row.try_get(2)?;
                Ok(Identity {
                    home: Home { system_identifier: row.try_get(0)?, database: row.try_get(1)? },
                    at_home: match state.as_str() {
                        "home" => AtHome::Here,
                        "new" => AtHome::New,
                        _ => AtHome::Copy,
                    },
                    received_from: row.try_get(3)?,
                    keys: row.try_get::<_, Option<Vec<String>>>(4)?.unwrap_or_default(),
                })
            },
        )?;
        let gone = || SourceError { what: WHAT, message: "the row of agd.home is gone".to_owned(), hint: None };
        rows.into_iter().next().ok_or_else(gone)
    }

    fn logs(&mut self, place: Option<&str>) -> Result<Vec<LogHead>, SourceError> {
        let read = |row: &Row| {
            Ok(LogHead {
                origin: row.try_get(0)?,
                tenant: row.try_get(1)?,
                tree_size: row.try_get(2)?,
                closed: row.try_get(3)?,
                received: row.try_get(4)?,
                received_here: row.try_get(5)?,
            })
        };
        let what = "list the logs (agd.anchors)";
        match place {
            // Where an anchor was published costs a look-up for each: it is asked once.
            None => self.rows(
                what,
                "SELECT a.origin, a.tenant, pg_catalog.max(a.tree_size), pg_catalog.bool_or(a.closed), \
                        NULL::pg_catalog.int8, NULL::pg_catalog.int8 \
                 FROM agd.anchors AS a GROUP BY 1, 2",
                &[],
                read,
            ),
            Some(place) => self.rows(
                what,
                "SELECT a.origin, a.tenant, pg_catalog.max(a.tree_size), pg_catalog.bool_or(a.closed), \
                        pg_catalog.max(a.tree_size) FILTER (WHERE a.published_to IS NOT NULL), \
                        pg_catalog.max(a.tree_size) FILTER \
                          (WHERE pg_catalog.strpos(', ' || a.published_to || ', ', ', ' || $1 || ', ') > 0) \
                 FROM agd.anchors AS a GROUP BY 1, 2",
                &[(&place, Type::TEXT)],
                read,
            ),
        }
    }

    fn anchors(&mut self, origin: &str, from: i64, limit: i64) -> Result<Vec<Anchor>, SourceError> {
        self.rows(
            "read anchors (agd.anchors)",
            "SELECT a.tree_size, a.root_hash, a.checkpoint, a.published_to FROM agd.anchors AS a \
             WHERE a.origin = $1 AND a.tree_size >= $2 ORDER BY a.tree_size LIMIT $3",
            &[(&origin, Type::TEXT), (&from, Type::INT8), (&limit, Type::INT8)],
            |row| {
                Ok(Anchor {
                    tree_size: row.try_get(0)?,
                    root_hash: row.try_get(1)?,
                    checkpoint: row.try_get(2)?,
                    published_to: row.try_get(3)?,
                })
            },
        )
    }

    fn entries(&mut self, origin: &str, first: i64, last: i64) -> Result<Vec<(i64, Vec<u8>)>, SourceError> {
        self.rows(
            "read entries (agd.entries)",
            // They come in order, and whoever takes them looks at the indexes: to sort them would only cost.
            "SELECT e.leaf_index, e.entry FROM agd.entries($1, $2, $3) AS e",
            &[(&origin, Type::TEXT), (&first, Type::INT8), (&last, Type::INT8)],
            |row| Ok((row.try_get(0)?, row.try_get(1)?)),
        )
    }

    fn record_publication(
        &mut self,
        origin: &str,
        published: &[Receipt],
        published_to: &str,
    ) -> Result<(), SourceError> {
        let sizes: Vec<i64> = published.iter().map(|receipt| receipt.tree_size).collect();
        let roots: Vec<&[u8]> = published.iter().map(|receipt| receipt.root.as_slice()).collect();
        let notes: Vec<&str> = published.iter().map(|receipt| receipt.note.as_str()).collect();
        self.tell(
            "record the publication (agd.record_publication)",
            "SELECT agd.record_publication($1, p.tree_size, p.root_hash, $5, p.note) \
             FROM unnest($2, $3, $4) AS p(tree_size, root_hash, note)",
            &[
                (&origin, Type::TEXT),
                (&sizes, Type::INT8_ARRAY),
                (&roots, Type::BYTEA_ARRAY),
                (&notes, Type::TEXT_ARRAY),
                (&published_to, Type::TEXT),
            ],
        )
    }

    fn record_timestamp(&mut self, origin: &str, tree_size: i64, root: &Hash, at: i64) -> Result<(), SourceError> {
        let (root, at) = (root.as_slice(), time(at));
        self.tell(
            "record the timestamp (agd.record_timestamp)",
            "SELECT agd.record_timestamp($1, $2, $3, $4::pg_catalog.timestamptz)",
            &[(&origin, Type::TEXT), (&tree_size, Type::INT8), (&root, Type::BYTEA), (&at, Type::TEXT)],
        )
    }

    fn report_divergence(&mut self, origin: &str, newest: &Receipt) -> Result<(), SourceError> {
        let (size, root, note) = (newest.tree_size, newest.root.as_slice(), newest.note.as_str());
        self.tell(
            "report what was published (agd.report_divergence)",
            "SELECT agd.report_divergence($1, $2, $3, $4)",
            &[(&origin, Type::TEXT), (&size, Type::INT8), (&root, Type::BYTEA), (&note, Type::TEXT)],
        )
    }

    fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}

fn fail(what: &'static str, error: &postgres::Error) -> SourceError {
    fail_with(what, "grant the login role membership in agd_publisher", error)
}

/// `privilege`: what to do where the server says that the role may not.
pub(crate) fn fail_with(what: &'static str, privilege: &str, error: &postgres::Error) -> SourceError {
    let Some(server) = error.as_db_error() else {
        // The source tells what the outer error only names ("error connecting to server").
        let cause = std::error::Error::source(error).map(ToString::to_string);
        let message = match cause {
            Some(cause) if !error.to_string().contains(&cause) => format!("{error}: {cause}"),
            _ => error.to_string(),
        };
        return SourceError { what, message, hint: None };
    };
    let hint = match server.code() {
        code if *code == SqlState::INSUFFICIENT_PRIVILEGE => Some(privilege.to_owned()),
        code if *code == SqlState::INVALID_SCHEMA_NAME
            || *code == SqlState::UNDEFINED_TABLE
            || *code == SqlState::UNDEFINED_FUNCTION =>
        {
            Some("is the agd extension installed in this database?".to_owned())
        }
        _ => server.hint().map(str::to_owned),
    };
    SourceError { what, message: format!("{} (SQLSTATE {})", server.message(), server.code().code()), hint }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use postgres::config::Host;
    use proptest::prelude::*;

    #[test]
    fn urls_key_values_and_sockets() {
        let config = parse_config("postgresql://pub@/app?host=/run/pg&port=5433", None).unwrap();
        assert_eq!(config.get_hosts(), [Host::Unix("/run/pg".into())]);
        assert_eq!(config.get_dbname(), Some("app"));
        assert_eq!(config.get_ports(), [5433]);
        assert_eq!(config.get_application_name(), Some("agd publish"));
        let config = parse_config("host=/run/pg user=pub dbname=app connect_timeout=3", None).unwrap();
        assert_eq!(config.get_hosts(), [Host::Unix("/run/pg".into())]);
        assert_eq!(config.get_connect_timeout(), Some(&Duration::from_secs(3)));
    }

    #[test]
    fn a_demand_for_tls_is_refused_in_words() {
        for text in [
            "host=db sslmode=require",
            "postgresql://db/app?sslmode=require",
            "postgresql://db/app?sslmode=verify-full",
            "host=db sslmode=verify-ca",
        ] {
            let error = parse_config(text, None).unwrap_err();
            assert!(error.to_string().contains("demands TLS"), "{text}");
        }
        assert!(parse_config("host=db sslmode=prefer", None).is_ok());
    }

    #[test]
    fn the_password_of_the_string_wins_and_never_shows() {
        let env = Some("from-env".to_owned());
        let config = parse_config("host=db password=secret", env.clone()).unwrap();
        assert_eq!(config.get_password(), Some(&b"secret"[..]));
        let config = parse_config("host=db", env).unwrap();
        assert_eq!(config.get_password(), Some(&b"from-env"[..]));
        let error = parse_config("host=db password=secret nonsense=1", None).unwrap_err();
        assert!(!error.to_string().contains("secret"));
    }

    #[test]
    fn no_server_is_an_error_with_its_cause() {
        let config = parse_config("host=/nonexistent-agd user=pub", None).unwrap();
        let error = Database::connect(&config).unwrap_err();
        assert!(error.to_string().starts_with("connect to the database: "), "{error}");
    }

    proptest! {
        #[test]
        fn arbitrary_connection_strings_never_panic(text in "\\PC*") {
            let _ = parse_config(&text, None);
        }
    }
}
