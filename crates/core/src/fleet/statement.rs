//! The bytes that signers sign.
//!
//! Owns the statement of one fleet, which its coordinator signs, and the statement of a batch, which a countersigner signs.
//! Promises that a statement binds database, tenant, template, cause, generation, window and what the agents are
//! told, and that the two kinds cannot
//! be taken for each other: their first lines differ. Never looks at a signature.
//!
//! A batch is the RFC 6962 tree over the statements of its fleets, in the order of their ids; what is signed is its root.
//! Each fleet keeps its place in that tree ([`Place`]). So its countersignature can be checked from its own evidence alone,
//! and tells nobody which other fleets, of which other tenants, were in the batch.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use super::Vector;
use super::vector::hex;
use crate::entry::time_text;
use crate::merkle::{Hash, leaf_hash, node_hash, root_of};

/// What a coordinator signs: six lines, each ending in a newline.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Statement {
    /// The origin of the platform log of the database that the fleet was minted in, as of its mint.
    pub origin: String,
    /// The fleet.
    pub vector: Vector,
    /// When it was minted, microseconds since 1970-01-01 UTC.
    pub minted_at: i64,
    /// The first instant at which it is too late to countersign it.
    pub deadline: i64,
    /// What its agents are told: [`context_digest`](super::context_digest).
    pub context: Hash,
}

/// The statement's text.
impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (minted_at, deadline) = (time_text(self.minted_at), time_text(self.deadline));
        let (origin, vector, context) = (&self.origin, &self.vector, hex(&self.context));
        write!(f, "agd-fleet-statement-v2\n{origin}\n{vector}\n{minted_at}\n{deadline}\n{context}\n")
    }
}

/// Why there is no such batch.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BatchError {
    /// A batch has a fleet.
    #[error("a batch needs at least one fleet")]
    Empty,
    /// A fleet stands in it twice.
    #[error("fleet {0} stands in the batch twice")]
    Twice(String),
}

/// Fleets that are countersigned together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Ids and leaves, by id.
    members: Vec<(String, Hash)>,
}

/// Where a fleet stands in its batch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// How many fleets the batch has.
    pub size: u64,
    /// Which of them this is, from 0.
    pub index: u64,
    /// From the leaf's sibling to the root's child (RFC 6962 §2.1.1).
    pub path: Vec<Hash>,
}

impl Batch {
    /// The batch of these fleets, in whatever order they come.
    ///
    /// # Errors
    /// [`BatchError`].
    pub fn new<'a>(statements: impl IntoIterator<Item = &'a Statement>) -> Result<Self, BatchError> {
        let mut members: Vec<(String, Hash)> =
            statements.into_iter().map(|one| (one.vector.fleet_id(), leaf_hash(one.to_string().as_bytes()))).collect();
        members.sort_unstable();
        if members.is_empty() {
            return Err(BatchError::Empty);
        }
        if let Some(twice) = members.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(BatchError::Twice(twice[0].0.clone()));
        }
        Ok(Self { members })
    }

    /// What a countersigner signs: three lines, each ending in a newline.
    pub fn statement(&self) -> String {
        let leaves: Vec<Hash> = self.members.iter().map(|(_, leaf)| *leaf).collect();
        text(self.members.len() as u64, &root_of(&leaves))
    }

    /// Each fleet's id and place, by id.
    pub fn places(&self) -> Vec<(&str, Place)> {
        let size = self.members.len();
        // The tree row by row: a row's last hash, if it has no sibling, moves up as it is.
        let mut rows: Vec<Vec<Hash>> = vec![self.members.iter().map(|(_, leaf)| *leaf).collect()];
        while let Some(row) = rows.last().filter(|row| row.len() > 1) {
            let above = row.chunks(2).map(|pair| match pair {
                [left, right] => node_hash(left, right),
                _ => pair[0],
            });
            rows.push(above.collect());
        }
        let path = |index: usize| {
            rows.iter().enumerate().filter_map(|(height, row)| row.get((index >> height) ^ 1).copied()).collect()
        };
        self.members
            .iter()
            .enumerate()
            .map(|(index, (id, _))| (id.as_str(), Place { size: size as u64, index: index as u64, path: path(index) }))
            .collect()
    }
}

fn text(size: u64, root: &Hash) -> String {
    format!("agd-fleet-batch-v1\n{size}\n{}\n", STANDARD.encode(root))
}

impl Place {
    /// The statement of the batch in which this fleet stands here. None: there is no place like this in any batch.
    pub fn batch_statement(&self, statement: &Statement) -> Option<String> {
        let root = self.root(leaf_hash(statement.to_string().as_bytes()))?;
        Some(text(self.size, &root))
    }

    /// The root that leaf and path lead to: what RFC 9162 §2.1.3.2 compares with the root that is known.
    fn root(&self, leaf: Hash) -> Option<Hash> {
        if self.index >= self.size {
            return None;
        }
        let (mut index, mut last) = (self.index, self.size - 1);
        let mut path = self.path.iter();
        let mut hash = leaf;
        while last > 0 {
            if index & 1 == 1 {
                hash = node_hash(path.next()?, &hash);
            } else if index < last {
                hash = node_hash(&hash, path.next()?);
            }
            index >>= 1;
            last >>= 1;
        }
        path.next().is_none().then_some(hash)
    }
}
