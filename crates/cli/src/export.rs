//! `agd export`: a dump of a database's events, to be held against the published log with `agd verify --events`.
//!
//! Owns the way from `agd.export_events()` to the lines that [`agd_core::dump`] describes. Promises one moment: all is read in
//! one REPEATABLE READ transaction; memory bounded by one event; and that what the caller may not read is left out and said
//! to be. The file is for its owner alone, is never overwritten, and is gone when it could not be finished. It takes what the
//! database says as it is: `agd verify --events` judges.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use agd_core::dump::{self, DumpedEvent, Image, LogRange};
use agd_core::entry;
use clap::Args;
use postgres::fallible_iterator::FallibleIterator as _;
use postgres::types::{ToSql, Type};
use postgres::{Client, Config, Row};
use serde_json::json;
use thiserror::Error;

use crate::database::{self, fail_with};
use crate::report::{counted, grouped, plain, with_progress};
use crate::source::SourceError;
use crate::{EXIT_FALSE, EXIT_OK};

/// Leaves asked for in one statement. The server keeps that many rows at a time, on disk if they are long.
const PAGE: u64 = 1024;

const PRIVILEGE: &str = "events are for members of agd_auditor and agd_platform, and for tenants' own roles";

/// Write the events of a database's logs into a file, for `agd verify STORE --events FILE`.
///
/// Exit code 1: an event is missing in the database; the others are there.
#[derive(Debug, Args)]
pub struct Arguments {
    /// postgresql:// URL or key=value string of a role that may read agd.events (password: PGPASSWORD)
    #[arg(long, value_name = "URL", env = "AGD_DATABASE", hide_env_values = true)]
    database: String,
    /// The file to make, mode 0600; it is never overwritten. `-`: standard output
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The log of this tenant only
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Events that were anchored at or after this time, like 2026-11-20T21:31:05Z
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Events that were anchored before this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// No row images, whether the role may read them or not
    #[arg(long)]
    without_images: bool,
    /// Say in JSON what was exported
    #[arg(long)]
    json: bool,
}

/// Why there is no dump.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The database.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The file.
    #[error("{path}: {source}")]
    Io {
        /// The dump.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// There is nothing to export.
    #[error("{0}")]
    Nothing(String),
}

/// What was written.
#[derive(Debug, Default)]
pub struct Exported {
    /// Of which logs which leaves.
    pub logs: Vec<LogRange>,
    /// Lines beside the first one.
    pub events: u64,
    /// Leaves whose events are missing: log, leaf, event.
    pub missing: Vec<(String, u64, String)>,
    /// Logs whose images were asked for and are not for this role.
    pub withheld: Vec<String>,
}

/// Runs the command and returns its exit code.
///
/// # Errors
/// [`ExportError`].
pub fn run(arguments: &Arguments) -> Result<u8, ExportError> {
    let password = std::env::var("PGPASSWORD").ok();
    let mut config = database::parse_config(&arguments.database, password)?;
    if config.get_application_name() == Some("agd publish") {
        config.application_name("agd export");
    }
    let to_stdout = arguments.out == Path::new("-");
    let named = |source| ExportError::Io { path: arguments.out.display().to_string(), source };
    let counter = AtomicU64::new(0);
    let exported = if to_stdout {
        let mut out = BufWriter::new(io::stdout().lock());
        let exported = with_progress(&counter, "event", || export(&config, arguments, &mut out, &counter))?;
        out.flush().map_err(named)?;
        exported
    } else {
        // Row data: nobody else's to read.
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&arguments.out);
        let mut out = BufWriter::new(opened.map_err(named)?);
        let work = || -> Result<Exported, ExportError> {
            let exported = export(&config, arguments, &mut out, &counter)?;
            out.flush().and_then(|()| out.get_ref().sync_all()).map_err(named)?;
            Ok(exported)
        };
        with_progress(&counter, "event", work).inspect_err(|_| {
            // Half a dump would only be mistaken for a whole one. The first error is the one to tell.
            let _ = std::fs::remove_file(&arguments.out);
        })?
    };
    let told = exported.tell(arguments.json);
    let written =
        if to_stdout { io::stderr().write_all(told.as_bytes()) } else { io::stdout().write_all(told.as_bytes()) };
    written.map_err(named)?;
    Ok(if exported.missing.is_empty() { EXIT_OK } else { EXIT_FALSE })
}

impl Exported {
    fn tell(&self, json: bool) -> String {
        if json {
            let logs = self
                .logs
                .iter()
                .map(|log| json!({ "origin": log.origin, "first": log.first, "last": log.last, "images": log.images }));
            let missing = self
                .missing
                .iter()
                .map(|(origin, index, event_id)| json!({ "origin": origin, "index": index, "event_id": event_id }));
            let told = json!({
                "events": self.events, "logs": logs.collect::<Vec<_>>(), "missing": missing.collect::<Vec<_>>(),
                "images_withheld": self.withheld,
            });
            return format!("{told}\n");
        }
        let mut text = String::new();
        for log in &self.logs {
            let images = if log.images { "with images" } else { "without images" };
            let (first, last) = (grouped(log.first), grouped(log.last));
            text += &format!("{}: entries {first} to {last}, {images}\n", plain(&log.origin));
        }
        if !self.withheld.is_empty() {
            text += "row images are for superusers and the tenant itself: this role's dump is one without them\n";
        }
        for (origin, index, event_id) in &self.missing {
            text += &format!("MISSING in the database: event {event_id}, entry {index} of {}\n", plain(origin));
        }
        text + &format!("{} of {}\n", counted(self.events, "event"), counted(self.logs.len() as u64, "log"))
    }
}

fn export(
    config: &Config,
    arguments: &Arguments,
    out: &mut dyn Write,
    counter: &AtomicU64,
) -> Result<Exported, ExportError> {
    const WHAT: &str = "begin to read";
    let mut client = database::connect(config)?;
    // The time zone is for --since and --until without one.
    client
        .batch_execute("SET timezone = 'UTC'; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .map_err(|error| fail_with(WHAT, PRIVILEGE, &error))?;
    let (logs, withheld) = ranges(&mut client, arguments)?;
    if logs.is_empty() {
        let of = arguments.tenant.as_ref().map(|tenant| format!(" of tenant {}", plain(tenant))).unwrap_or_default();
        return Err(ExportError::Nothing(format!("there is no log{of} with an anchor that this role may read")));
    }
    let mut exported = Exported { logs, withheld, ..Exported::default() };
    let mut line = Vec::new();
    dump::write_header(&exported.logs, &mut line);
    let named = |source| ExportError::Io { path: arguments.out.display().to_string(), source };
    line.push(b'\n');
    out.write_all(&line).map_err(named)?;
    for log in &exported.logs {
        let mut first = log.first;
        while first < log.last {
            let last = (first - first % PAGE + PAGE).min(log.last);
            let mut rows = page(&mut client, log, first, last)?;
            while let Some(row) = rows.next().map_err(read_error)? {
                let Some(event) = event(&row, log).map_err(read_error)? else {
                    let index: i64 = row.try_get(0).map_err(read_error)?;
                    let event_id: String = row.try_get(1).map_err(read_error)?;
                    exported.missing.push((log.origin.clone(), index.cast_unsigned(), event_id));
                    continue;
                };
                line.clear();
                event.encode_into(&mut line);
                line.push(b'\n');
                out.write_all(&line).map_err(named)?;
                exported.events += 1;
                counter.fetch_add(1, Ordering::Relaxed);
            }
            first = last;
        }
    }
    client.batch_execute("COMMIT").map_err(read_error)?;
    Ok(exported)
}

/// Which leaves of which logs, and the logs whose images are withheld.
///
/// Between anchors, and by the time of these: what was anchored before a moment was committed before it.
fn ranges(client: &mut Client, arguments: &Arguments) -> Result<(Vec<LogRange>, Vec<String>), ExportError> {
    const WHAT: &str = "list the logs (agd.anchors)";
    let rows = client
        .query_typed(
            "SELECT r.origin, r.first, r.last, agd.may_read_payload(r.tenant) \
             FROM (SELECT a.origin, a.tenant, \
                          COALESCE(pg_catalog.max(a.tree_size) \
                                   FILTER (WHERE a.anchored_at < $2::text::timestamptz), 0) AS first, \
                          COALESCE(pg_catalog.max(a.tree_size) \
                                   FILTER (WHERE $3::text IS NULL OR a.anchored_at < $3::text::timestamptz), 0) AS last \
                     FROM agd.anchors AS a \
                    WHERE $1::text IS NULL OR a.tenant = $1 \
                    GROUP BY a.origin, a.tenant) AS r \
             WHERE r.first < r.last ORDER BY r.tenant NULLS FIRST, r.origin",
            &[
                (&arguments.tenant, Type::TEXT),
                (&arguments.since, Type::TEXT),
                (&arguments.until, Type::TEXT),
            ],
        )
        .map_err(|error| fail_with(WHAT, PRIVILEGE, &error))?;
    let (mut logs, mut withheld) = (Vec::new(), Vec::new());
    for row in rows {
        let read = || -> Result<_, postgres::Error> {
            Ok((row.try_get(0)?, row.try_get::<_, i64>(1)?, row.try_get::<_, i64>(2)?, row.try_get::<_, bool>(3)?))
        };
        let (origin, first, last, readable): (String, i64, i64, bool) =
            read().map_err(|error| fail_with(WHAT, PRIVILEGE, &error))?;
        let images = readable && !arguments.without_images;
        if !readable && !arguments.without_images {
            withheld.push(origin.clone());
        }
        logs.push(LogRange { origin, first: first.cast_unsigned(), last: last.cast_unsigned(), images });
    }
    Ok((logs, withheld))
}

fn page<'c>(
    client: &'c mut Client,
    log: &LogRange,
    first: u64,
    last: u64,
) -> Result<postgres::RowIter<'c>, ExportError> {
    let (first, last) = (first.cast_signed(), last.cast_signed());
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&log.origin, Type::TEXT), (&first, Type::INT8), (&last, Type::INT8)];
    client
        .query_typed_raw(
            "SELECT e.leaf_index, e.event_id, e.entry, e.salt, e.row_key, e.old, e.new \
             FROM agd.export_events($1, $2, $3) AS e",
            parameters,
        )
        .map_err(read_error)
}

/// `None`: the database has lost it.
fn event<'r>(row: &'r Row, log: &LogRange) -> Result<Option<DumpedEvent<'r>>, postgres::Error> {
    let Some(bytes) = row.try_get::<_, Option<&[u8]>>(2)? else {
        return Ok(None);
    };
    let index: i64 = row.try_get(0)?;
    let digests = match entry::parse(bytes) {
        Ok(entry) => [entry.row_key, entry.old, entry.new].map(|digest| digest.is_some()),
        // The verifier will say what is wrong with it.
        Err(_) => [false; 3],
    };
    let image = |column: usize, has_digest: bool| -> Result<Image<'r>, postgres::Error> {
        if !log.images {
            return Ok(Image::None);
        }
        let text = row.try_get::<_, Option<&[u8]>>(column)?;
        Ok(match text.map(String::from_utf8_lossy) {
            Some(text) => Image::Text(text),
            None if has_digest => Image::Erased,
            None => Image::None,
        })
    };
    let (key, old, new) = (image(4, digests[0])?, image(5, digests[1])?, image(6, digests[2])?);
    let salted = [&key, &old, &new].into_iter().any(|image| matches!(image, Image::Text(_)));
    let salt = row.try_get::<_, Option<&[u8]>>(3)?.filter(|_| salted).and_then(|salt| salt.try_into().ok());
    let origin = log.origin.clone().into();
    Ok(Some(DumpedEvent { origin, index: index.cast_unsigned(), entry: bytes.into(), salt, key, new, old }))
}

fn read_error(error: postgres::Error) -> ExportError {
    fail_with("read events (agd.export_events)", PRIVILEGE, &error).into()
}
