//! Pure logic of agd, shared by the PostgreSQL extension and the command line.
//!
//! Owns the byte formats and the mathematics: what an event's entry looks like, how entries become a Merkle tree, how
//! trees become tiles, proofs, checkpoints and signed notes, what a token says, what a fleet is named by and what its
//! signers sign. Promises that the same input gives the same bytes on every machine, that no input makes it panic, and that
//! every file can be read by any client of the published formats (RFC 6962, RFC 9162, C2SP tlog-tiles, tlog-checkpoint,
//! signed-note, tlog-proof; RFC 7519 for tokens). It never does I/O, never reads a clock, never draws randomness and knows
//! nothing of PostgreSQL. `docs/formats.md` describes every format byte by byte.
#![forbid(unsafe_code)]

pub mod audit;
pub mod bundle;
pub mod cause;
pub mod chain;
pub mod checkpoint;
pub mod dump;
pub mod entry;
mod fifo;
pub mod fleet;
pub mod guard_state;
pub mod incarnation;
pub mod intent;
pub mod merkle;
pub mod name;
pub mod note;
pub mod proof;
pub mod tile;
pub mod tlog_proof;
pub mod token;

pub use bundle::BundleError;
pub use checkpoint::{Checkpoint, CheckpointError};
pub use dump::{DumpError, DumpedEvent, Image, LogRange};
pub use entry::{Entry, EntryError, EventId, ImageKind, OwnedEntry, image_digest};
pub use incarnation::Incarnation;
pub use merkle::{CompactRange, HASH_SIZE, Hash, MerkleError, empty_root, leaf_hash, node_hash};
pub use name::NameError;
pub use note::{CosigningKey, NoteError, NoteSignature, SignedNote, SigningKey, VerifierKey};
pub use proof::{HashReader, ProofError};
pub use tile::{FullTile, TILE_WIDTH, TileCoord, TiledTree};
pub use tlog_proof::{TlogProof, TlogProofError};
pub use token::{Claims, TokenError, TokenSigner, TokenVerifier};
