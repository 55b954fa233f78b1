//! Proofs as the database hands them out, checked as a client that trusts only the anchors would.
#![allow(clippy::panic)]

use agd_core::proof::{verify_consistency, verify_inclusion};
use agd_core::{Hash, leaf_hash};
use postgres::{Client, Row};
use std::collections::BTreeMap;

/// An answer of `agd.inclusion_proof`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inclusion {
    /// The log.
    pub origin: String,
    /// The leaf, from 0.
    pub index: u64,
    /// Leaves that the anchor covers.
    pub size: u64,
    /// The leaf's hash.
    pub leaf: Hash,
    /// From the leaf's sibling to the root's child.
    pub path: Vec<Hash>,
}

impl Inclusion {
    /// From the columns that `agd.inclusion_proof` returns, of which the first is column `first` of the row.
    #[track_caller]
    #[must_use]
    pub fn read(row: &Row, first: usize) -> Self {
        let path: Vec<Vec<u8>> = row.get(first + 4);
        Self {
            origin: row.get(first),
            index: unsigned(row.get(first + 1)),
            size: unsigned(row.get(first + 2)),
            leaf: hash(&row.get::<_, Vec<u8>>(first + 3)),
            path: path.iter().map(|hash_| hash(hash_)).collect(),
        }
    }

    /// Asserts that the proof leads to the anchor that it names.
    #[track_caller]
    pub fn expect_holds(&self, anchors: &Anchors) {
        let Some(root) = anchors.get(&(self.origin.clone(), self.size)) else {
            panic!("there is no anchor of {} at size {}", self.origin, self.size);
        };
        if let Err(error) = verify_inclusion(&self.leaf, self.index, self.size, &self.path, root) {
            panic!("the proof of leaf {} to size {} of {}: {error}", self.index, self.size, self.origin);
        }
    }
}

/// Roots by origin and size.
pub type Anchors = BTreeMap<(String, u64), Hash>;

/// What `agd.anchors` shows.
#[track_caller]
pub fn anchors(client: &mut Client) -> Anchors {
    let rows = client.query("SELECT origin, tree_size, root_hash FROM agd.anchors", &[]);
    let rows = rows.unwrap_or_else(|error| panic!("agd.anchors: {error:?}"));
    rows.iter().map(|row| ((row.get(0), unsigned(row.get(1))), hash(&row.get::<_, Vec<u8>>(2)))).collect()
}

/// The proof of one event.
///
/// # Errors
/// What `agd.inclusion_proof` says.
pub fn inclusion(client: &mut Client, event_id: &str) -> Result<Inclusion, postgres::Error> {
    client.query_one("SELECT * FROM agd.inclusion_proof($1)", &[&event_id]).map(|row| Inclusion::read(&row, 0))
}

/// The proof between two sizes of a log.
///
/// # Errors
/// What `agd.consistency_proof` says.
pub fn consistency(client: &mut Client, origin: &str, from: u64, to: u64) -> Result<Vec<Hash>, postgres::Error> {
    let (from, to) = (from.cast_signed(), to.cast_signed());
    let row = client.query_one("SELECT agd.consistency_proof($1, $2, $3)", &[&origin, &from, &to])?;
    Ok(row.get::<_, Vec<Vec<u8>>>(0).iter().map(|bytes| hash(bytes)).collect())
}

/// Asserts that each event that the session may read (of those that `condition` on `agd.events AS e` selects) has a proof to
/// its log's newest anchor, of the leaf that `agd.events` names. Returns them with their event ids.
#[track_caller]
pub fn expect_events_proven(client: &mut Client, condition: &str) -> Vec<(String, Inclusion)> {
    let roots = anchors(client);
    let mut newest = BTreeMap::new();
    for (origin, size) in roots.keys() {
        newest.insert(origin.clone(), *size);
    }
    let sql = format!(
        "SELECT e.event_id, e.leaf_index, p.* FROM agd.events e CROSS JOIN LATERAL agd.inclusion_proof(e.event_id) p
          WHERE {condition}"
    );
    let rows = client.query(&sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let check = |row: &Row| {
        let proof = Inclusion::read(row, 2);
        proof.expect_holds(&roots);
        let (event_id, leaf): (String, Option<i64>) = (row.get(0), row.get(1));
        assert_eq!(leaf.map(unsigned), Some(proof.index), "the leaf of {event_id}");
        assert_eq!(newest.get(&proof.origin), Some(&proof.size), "the newest anchor, of {event_id}");
        (event_id, proof)
    };
    rows.iter().map(check).collect()
}

/// Asserts that the log can be proven to have only grown between two sizes whose roots are known.
#[track_caller]
pub fn expect_continuation(client: &mut Client, origin: &str, (from, old): (u64, &Hash), (to, new): (u64, &Hash)) {
    let path = consistency(client, origin, from, to);
    let path = path.unwrap_or_else(|error| panic!("from {from} to {to} of {origin}: {error:?}"));
    if let Err(error) = verify_consistency(from, old, to, new, &path) {
        panic!("the proof from {from} to {to} of {origin}: {error}");
    }
}

/// The leaf hashes of a log's entries, as `agd.entries` gives them. The caller is a publisher.
#[track_caller]
pub fn leaves(client: &mut Client, origin: &str, size: u64) -> Vec<Hash> {
    let rows = client.query("SELECT entry FROM agd.entries($1, 0, $2)", &[&origin, &size.cast_signed()]);
    let rows = rows.unwrap_or_else(|error| panic!("agd.entries: {error:?}"));
    rows.iter().map(|row| leaf_hash(row.get(0))).collect()
}

fn unsigned(number: i64) -> u64 {
    number.try_into().unwrap_or_else(|_| panic!("{number} is negative"))
}

fn hash(bytes: &[u8]) -> Hash {
    bytes.try_into().unwrap_or_else(|_| panic!("{} bytes are no hash", bytes.len()))
}
