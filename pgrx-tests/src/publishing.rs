//! What `agd publish` tells a database, said by a test: receipts, and history that was lost, signed by a registered key.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // what goes wrong here is the test's failure

use agd_core::{Checkpoint, SignedNote, SigningKey, name};
use postgres::Client;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The secret of [`key`].
const SEED: [u8; 32] = [7; 32];

/// The log's name in this database, whatever its incarnation; its record is begun if there is none yet.
pub fn log_name(client: &mut Client) -> String {
    let known = "SELECT log_name FROM agd.publishing()";
    let name: Option<String> = client.query_one(known, &[]).unwrap().get(0);
    let name = name.unwrap_or_else(|| {
        // Any key will do to begin the record; a wrong one is refused, and the refusal tells the name.
        let error = client.batch_execute("SELECT agd.register_log_key('x')").unwrap_err();
        let hint = error.as_db_error().unwrap().hint().unwrap().to_owned();
        hint.split_whitespace().skip_while(|word| *word != "--name").nth(1).unwrap().to_owned()
    });
    name::split_incarnation(&name).0.to_owned()
}

/// The key of tests, for a log.
pub fn key(origin: &str) -> SigningKey {
    SigningKey::from_seed(origin, &SEED).unwrap()
}

/// Registers the key of tests for this database's logs.
pub fn register(client: &mut Client) {
    let vkey = key(&log_name(client)).verifier_key().to_string();
    register_vkey(client, &vkey);
}

/// Registers a key, as what `agd keygen` printed.
pub fn register_vkey(client: &mut Client, vkey: &str) {
    client.execute("SELECT agd.register_log_key($1)", &[&vkey.trim()]).unwrap();
}

/// A checkpoint, signed by the key of tests.
pub fn note(origin: &str, size: u64, root: [u8; 32]) -> String {
    let text = Checkpoint { origin: origin.to_owned(), size, root }.to_string();
    SignedNote::sign(&text, &key(origin)).unwrap().to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The statement that reports a checkpoint as published and lost.
pub fn report(origin: &str, size: u64, root: [u8; 32]) -> String {
    let note = note(origin, size, root);
    format!("SELECT agd.report_divergence('{origin}', {size}, '\\x{}', '{note}')", hex(&root))
}

/// The statements that report anchors as published; `which`: a condition on agd.anchors.
pub fn receipts(client: &mut Client, which: &str, place: &str) -> String {
    let sql = format!("SELECT origin, tree_size, root_hash FROM agd.anchors WHERE {which} ORDER BY 1, 2");
    let rows = client.query(&sql, &[]).unwrap();
    let statement = |row: &postgres::Row| {
        let (origin, size, root): (String, i64, Vec<u8>) = (row.get(0), row.get(1), row.get(2));
        let note = note(&origin, size.cast_unsigned(), root.clone().try_into().unwrap());
        format!("SELECT agd.record_publication('{origin}', {size}, '\\x{}', '{place}', '{note}')", hex(&root))
    };
    rows.iter().map(statement).collect::<Vec<_>>().join("; ")
}

/// Writes the key of tests as a file that `agd publish` reads, for the log of this name.
pub fn key_file(name: &str, path: &Path) {
    let id = key(name).verifier_key().id();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
    // The base64 of 0x01 and the seed: as many bytes as make no padding.
    let secret = "AQcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH";
    writeln!(file, "PRIVATE+KEY+{name}+{id:08x}+{secret}").unwrap();
}
