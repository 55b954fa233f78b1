//! A store is read by a client that none of us wrote: the `tlog_tiles` and `signed_note` crates of Cloudflare's logs.

use std::path::{Path, PathBuf};

use crate::common::*;
use signed_note::{Note, StandardVerifier, VerifierList};
use tlog_tiles::{
    Checkpoint, Error, HashReader as _, Tile, TileHashReader, TileReader, check_record, check_tree, prove_record,
    prove_tree, record_hash, stored_hash_index,
};

/// Reads tiles as that crate asks for them: it writes the tile height into the path and calls entries data.
struct Files(PathBuf);

impl Files {
    fn path(&self, tile: &Tile) -> PathBuf {
        self.0.join(tile.path().replace("tile/8/data/", "tile/entries/").replace("tile/8/", "tile/"))
    }
}

impl TileReader for Files {
    fn height(&self) -> u8 {
        8
    }
    fn read_tiles(&self, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, Error> {
        Ok(tiles.iter().map(|tile| std::fs::read(self.path(tile)).unwrap()).collect())
    }
    fn save_tiles(&self, _: &[Tile], _: &[Vec<u8>]) {}
}

/// A checkpoint's size and root, with the signature checked by that crate.
fn signed(root: &Path, origin: &str, name: &str) -> Checkpoint {
    let note = Note::from_bytes(&std::fs::read(root.join(origin).join(name)).unwrap()).unwrap();
    let vkey = key().signer(origin).unwrap().verifier_key().to_string();
    let verifiers = VerifierList::new(vec![Box::new(StandardVerifier::new(&vkey).unwrap())]);
    assert_eq!(note.verify(&verifiers).unwrap().0.len(), 1);
    let checkpoint = Checkpoint::from_bytes(note.text()).unwrap();
    assert_eq!((checkpoint.origin(), checkpoint.extension()), (origin, ""));
    checkpoint
}

#[test]
fn every_entry_and_every_checkpoint_is_proved_by_another_client() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = FakeDatabase::new();
    database.write(None, 3);
    for count in [300, 20, 280] {
        database.write(Some("acme"), count);
        assert_eq!(publish(dir.path(), &mut database).exit_code(), 0);
    }
    for (origin, log) in &database.logs {
        let newest = signed(dir.path(), origin, "checkpoint");
        let (size, root) = (newest.size(), *newest.hash());
        assert_eq!(size, log.entries.len() as u64);
        let files = Files(dir.path().join(origin));
        // It checks each tile against the root of the signed checkpoint before it takes a hash from it.
        let hashes = TileHashReader::new(size, root, &files);
        for (index, entry) in (0..size).zip(&log.entries) {
            let leaf = hashes.read_hashes(&[stored_hash_index(0, index)]).unwrap()[0];
            assert_eq!(leaf, record_hash(entry));
            let proof = prove_record(size, index, &hashes).unwrap();
            check_record(&proof, size, root, index, leaf).unwrap();
        }
        for at in log.anchors.keys() {
            let older = signed(dir.path(), origin, &format!("checkpoints/{at:020}"));
            let proof = prove_tree(size, *at, &hashes).unwrap();
            check_tree(&proof, size, root, *at, *older.hash()).unwrap();
        }
        // Its entry bundles are framed as the specification says: two bytes of length, then the entry.
        let mut framed = Vec::new();
        for index in 0..size.div_ceil(256) {
            let width = (size - index * 256).min(256) as u32;
            framed.extend(files.read_tiles(&[Tile::new(8, 0, index, width, true)]).unwrap().concat());
        }
        let expected = log.entries.iter().flat_map(|entry| [&(entry.len() as u16).to_be_bytes(), &entry[..]].concat());
        assert!(framed.into_iter().eq(expected));
    }
}
