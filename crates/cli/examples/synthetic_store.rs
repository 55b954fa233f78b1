//! Makes a store of any size without a database, to measure publishing and verification with:
//!
//! ```text
//! cargo run --release -p agd-cli --example synthetic_store -- FOLDER ENTRIES [--flush]
//! agd verify FOLDER/store --policy FOLDER/policy.txt
//! ```
//!
//! One platform log of single-row inserts as a guarded table gives them, four to a transaction, anchored at every 256. It
//! is published by the ordinary publisher, but without flushing files to disk unless asked to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a tool of the developers")]

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use agd_cli::key::LogKey;
use agd_cli::publish::Publisher;
use agd_cli::publish::memory::{Home, Memory};
use agd_cli::source::{Anchor, AtHome, Identity, LogHead, Receipt, Source, SourceError};
use agd_cli::store::{At, Dir, Files, OsFiles, Writer};
use agd_core::{Checkpoint, CompactRange, Entry, EventId, Hash, TILE_WIDTH, image_digest, leaf_hash};

const ORIGIN: &str = "synthetic/log";

fn entry(index: u64) -> Vec<u8> {
    let at = 1_795_210_265_000_000 + index as i64 * 20;
    let digest = |kind| Some(image_digest(kind, &[index as u8; 16], "{\"id\":1}"));
    let entry = Entry {
        event_id: EventId { xact_id: 1000 + index / 4, n: (index % 4) as u32 },
        action: "INSERT",
        at,
        committed_at: at + 7,
        tenant: None,
        relation: Some("public.orders"),
        guard_id: Some("0b9d6a52-7a39-4a56-8b0e-0f6f6d3f3c11"),
        row_key: digest(agd_core::ImageKind::Key),
        old: None,
        new: digest(agd_core::ImageKind::New),
        body: None,
        session_user_name: "app",
        role_name: "app",
        principal: None,
        fleet_id: None,
        cause: None,
        binding: "role",
        application_name: Some("bench"),
        client_addr: None,
    };
    let mut bytes = Vec::new();
    entry.encode_into(&mut bytes);
    bytes
}

/// A database of which little is kept: entries are made as they are asked for.
struct Synthetic {
    entries: u64,
    vkey: String,
    tree: CompactRange,
    /// The anchors that may be asked for again: the publisher takes them in ascending order.
    anchors: VecDeque<(u64, Hash)>,
}

impl Source for Synthetic {
    fn identity(&mut self) -> Result<Identity, SourceError> {
        let home = Home { system_identifier: "1".to_owned(), database: 1 };
        Ok(Identity { home, at_home: AtHome::Here, received_from: None, keys: vec![self.vkey.clone()] })
    }

    fn logs(&mut self, _: Option<&str>) -> Result<Vec<LogHead>, SourceError> {
        let (tree_size, received, received_here) = (self.entries as i64, None, None);
        Ok(vec![LogHead { origin: ORIGIN.to_owned(), tenant: None, tree_size, closed: false, received, received_here }])
    }

    fn anchors(&mut self, origin: &str, from: i64, limit: i64) -> Result<Vec<Anchor>, SourceError> {
        self.anchors.retain(|(size, _)| *size as i64 >= from);
        while self.tree.size() < self.entries && (self.anchors.len() as i64) < limit {
            self.tree.push(leaf_hash(&entry(self.tree.size())));
            let size = self.tree.size();
            if size as i64 >= from && (size.is_multiple_of(TILE_WIDTH) || size == self.entries) {
                self.anchors.push_back((size, self.tree.root()));
            }
        }
        let anchors = self.anchors.iter().map(|&(size, root)| Anchor {
            tree_size: size as i64,
            root_hash: root.to_vec(),
            checkpoint: Checkpoint { origin: origin.to_owned(), size, root }.to_string(),
            published_to: None,
        });
        Ok(anchors.collect())
    }

    fn entries(&mut self, _: &str, first: i64, last: i64) -> Result<Vec<(i64, Vec<u8>)>, SourceError> {
        Ok((first..last).map(|index| (index, entry(index as u64))).collect())
    }

    fn record_publication(&mut self, _: &str, _: &[Receipt], _: &str) -> Result<(), SourceError> {
        Ok(())
    }

    fn record_timestamp(&mut self, _: &str, _: i64, _: &Hash, _: i64) -> Result<(), SourceError> {
        Ok(())
    }

    fn report_divergence(&mut self, origin: &str, _: &Receipt) -> Result<(), SourceError> {
        panic!("{origin} diverged")
    }
}

/// The system's files without the flushes.
struct Unflushed;

impl Files for Unflushed {
    fn create_dir(&self, at: &At) -> io::Result<()> {
        OsFiles.create_dir(at)
    }
    fn write_new(&self, at: &At, bytes: &[u8]) -> io::Result<File> {
        OsFiles.write_new(at, bytes)
    }
    fn flush(&self, _: &[&File]) -> io::Result<()> {
        Ok(())
    }
    fn link(&self, from: &At, to: &At) -> io::Result<()> {
        OsFiles.link(from, to)
    }
    fn rename(&self, from: &At, to: &At) -> io::Result<()> {
        OsFiles.rename(from, to)
    }
    fn remove(&self, at: &At) -> io::Result<()> {
        OsFiles.remove(at)
    }
    fn sync_dir(&self, _: &Dir) -> io::Result<()> {
        Ok(())
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(folder), Some(entries)) = (args.next(), args.next()) else {
        panic!("synthetic_store FOLDER ENTRIES");
    };
    let files: Box<dyn Files> = match args.next().as_deref() {
        Some("--flush") => Box::new(OsFiles),
        _ => Box::new(Unflushed),
    };
    let folder = PathBuf::from(folder);
    let entries = entries.replace('_', "").parse().unwrap();
    let store = folder.join("store");
    std::fs::create_dir_all(&store).unwrap();
    let key = LogKey::from_seed(ORIGIN, zeroize::Zeroizing::new([7; 32])).unwrap();
    std::fs::write(folder.join("policy.txt"), format!("log {}\nquorum none\n", key.verifier())).unwrap();
    let writer = Writer::open(&store, files).unwrap();
    let vkey = key.verifier().to_string();
    let mut source = Synthetic { entries, vkey, tree: CompactRange::new(), anchors: VecDeque::new() };
    let start = Instant::now();
    let memory = Memory::load(&key, Vec::new()).unwrap();
    let round = Publisher::new(writer, key, "synthetic".to_owned(), memory).round(&mut source, &mut |_| {});
    assert!(round.refusals.is_empty() && round.failures.is_empty(), "{round:?}");
    let seconds = start.elapsed().as_secs_f64();
    println!("{entries} entries of {} bytes, {:.0} a second", entry(0).len(), entries as f64 / seconds);
}
