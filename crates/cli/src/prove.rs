//! `agd prove`: the proof of one event as a C2SP tlog-proof, from a database or from a published store alone.
//!
//! Owns the command and the search through a store's bundles. Promises that a proof it hands out was checked: its path leads
//! from the entry that is in it to the root that its checkpoint says. Whom to trust for the checkpoint's signature is for
//! whoever checks the proof (see [`crate::verify_proof`]).

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use agd_core::note::MAX_NOTE_LEN;
use agd_core::proof::{self, TileHashReader};
use agd_core::{Checkpoint, EventId, SignedNote, TILE_WIDTH, TileCoord, TlogProof, entry, leaf_hash};
use clap::Args;
use postgres::types::Type;

use crate::database::{self, fail_with};
use crate::origin::Kind;
use crate::report::with_progress;
use crate::source::SourceError;
use crate::store::{self, Reader, parse_location};
use crate::tiles::{self, Piece};
use crate::verify::discover;
use crate::{EXIT_FALSE, EXIT_OK, input};

/// Write the proof that an event is in its published log, as a .tlog-proof file.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The event: its transaction and its number, like 7431-2
    event_id: EventId,
    /// postgresql:// URL or key=value string of a role that may read the event (password: PGPASSWORD)
    #[arg(long, value_name = "URL", env = "AGD_DATABASE", hide_env_values = true, conflicts_with = "store")]
    database: Option<String>,
    /// Search a published store instead: file:///folder or a path
    #[arg(long, value_name = "STORE", required_unless_present = "database")]
    store: Option<String>,
    /// In a store: the log of this tenant only
    #[arg(long, value_name = "TENANT", requires = "store")]
    tenant: Option<String>,
    /// The file to make; by default standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs the command and returns its exit code.
///
/// # Errors
/// A sentence that says what could not be done.
pub fn run(arguments: &Arguments) -> Result<u8, String> {
    let found = match (&arguments.store, &arguments.database) {
        (Some(store), _) => {
            let reader = Reader::open(&parse_location(store).map_err(|error| error.to_string())?);
            let reader = reader.map_err(|error| error.to_string())?;
            let counter = AtomicU64::new(0);
            let search = || from_store(&reader, arguments.event_id, arguments.tenant.as_deref(), &counter);
            with_progress(&counter, "entry", search)?
        }
        (None, Some(database)) => vec![from_database(database, arguments.event_id)?],
        (None, None) => Vec::new(),
    };
    let [proof] = &found[..] else {
        return Err(match found.as_slice() {
            [] => format!("event {} is in no published log here", arguments.event_id),
            several => {
                let logs: Vec<&str> = several.iter().map(|proof| proof.checkpoint().origin.as_str()).collect();
                format!("event {} is in several logs, choose with --tenant: {}", arguments.event_id, logs.join(", "))
            }
        });
    };
    if let Err(problem) = holds(proof) {
        eprintln_line(&format!("agd: the proof does not hold: {problem}; nothing was written"));
        return Ok(EXIT_FALSE);
    }
    input::write(arguments.out.as_deref(), proof.to_string().as_bytes())?;
    Ok(EXIT_OK)
}

fn eprintln_line(line: &str) {
    // Nobody is left to be told that standard error is closed.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{line}\n").as_bytes());
}

/// Whether the path leads from the entry in the proof to the checkpoint's root.
fn holds(proof: &TlogProof) -> Result<(), agd_core::MerkleError> {
    let Checkpoint { size, root, .. } = proof.checkpoint();
    proof::verify_inclusion(&leaf_hash(proof.extra()), proof.index(), *size, proof.path(), root)
}

fn from_database(url: &str, event_id: EventId) -> Result<TlogProof, String> {
    const WHAT: &str = "prove the event (agd.tlog_proof)";
    const PRIVILEGE: &str =
        "proofs are for whoever may read the event: the tenant's own roles, agd_auditor, agd_platform";
    let read = || -> Result<String, SourceError> {
        let mut config = database::parse_config(url, std::env::var("PGPASSWORD").ok())?;
        config.application_name("agd prove");
        let mut client = database::connect(&config)?;
        let failed = |error| fail_with(WHAT, PRIVILEGE, &error);
        let text = event_id.to_string();
        let row = client.query_typed_one("SELECT agd.tlog_proof($1)", &[(&text, Type::TEXT)]).map_err(failed)?;
        row.try_get(0).map_err(failed)
    };
    let text = read().map_err(|error| error.to_string())?;
    TlogProof::parse(&text).map_err(|error| format!("what the database says is no proof: {error}"))
}

/// One proof for each log that has the event; a tenant's event is in the tenant's log alone.
fn from_store(
    reader: &Reader,
    event_id: EventId,
    tenant: Option<&str>,
    counter: &AtomicU64,
) -> Result<Vec<TlogProof>, String> {
    let logs = discover::discover(reader).map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    for origin in &logs.origins {
        let is_wanted = match Kind::of(origin) {
            Some(kind) => tenant.is_none() || kind.tenant() == tenant,
            None => false,
        };
        if is_wanted && let Some(proof) = from_log(reader, origin, event_id, counter)? {
            found.push(proof);
        }
    }
    Ok(found)
}

fn from_log(
    reader: &Reader,
    origin: &str,
    event_id: EventId,
    counter: &AtomicU64,
) -> Result<Option<TlogProof>, String> {
    let named = |error: &dyn std::fmt::Display| format!("{origin}: {error}");
    let path = store::newest_path(origin);
    let Some(bytes) = reader.read(&path, MAX_NOTE_LEN as u64).map_err(|error| named(&error))? else {
        return Ok(None);
    };
    let note = SignedNote::parse(&bytes).map_err(|error| format!("{path}: {error}"))?;
    let checkpoint = Checkpoint::parse(note.text()).map_err(|error| format!("{path}: {error}"))?;
    // The text is looked for before anything is parsed: most bundles do not have it.
    let wanted = format!("\"event_id\":\"{event_id}\"");
    for tile in 0..checkpoint.size.div_ceil(TILE_WIDTH) {
        let width = (checkpoint.size - tile * TILE_WIDTH).min(TILE_WIDTH) as u16;
        let bundle = tiles::find(reader, origin, Piece::Entries, tile, width).map_err(|error| named(&error))?;
        let path = || Piece::Entries.path(origin, tile, width);
        let bundle = bundle.ok_or_else(|| format!("{} is missing", path()))?;
        counter.fetch_add(u64::from(width), Ordering::Relaxed);
        if !bundle.bytes.windows(wanted.len()).any(|window| window == wanted.as_bytes()) {
            continue;
        }
        for (bytes, index) in
            tiles::entries(&bundle, width).map_err(|error| named(&error))?.iter().zip(tile * TILE_WIDTH..)
        {
            if entry::parse(bytes).is_ok_and(|entry| entry.event_id == event_id) {
                let path = inclusion(reader, origin, index, checkpoint.size).map_err(|error| named(&error))?;
                return TlogProof::new(bytes.to_vec(), index, path, note).map(Some).map_err(|error| named(&error));
            }
        }
    }
    Ok(None)
}

fn inclusion(reader: &Reader, origin: &str, index: u64, size: u64) -> Result<Vec<agd_core::Hash>, String> {
    let hashes = TileHashReader::new(size, |coord: TileCoord| -> Result<Vec<u8>, String> {
        let (piece, width) = (Piece::Hashes(coord.level), coord.width);
        let found = tiles::find(reader, origin, piece, coord.index, width).map_err(|error| error.to_string())?;
        let found = found.ok_or_else(|| format!("{} is missing", piece.path(origin, coord.index, width)))?;
        Ok(tiles::hashes(&found, width).map_err(|error| error.to_string())?.concat())
    });
    proof::inclusion_proof(&hashes, index, size).map_err(|error| error.to_string())
}
