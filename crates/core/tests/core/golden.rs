//! The vectors in `tests/golden`, made by `tests/golden/generate.py`, another implementation in another language.

use std::collections::BTreeMap;
use std::path::Path;

use agd_core::bundle;
use agd_core::cause;
use agd_core::checkpoint::Checkpoint;
use agd_core::entry::{Entry, EventId, ImageKind, image_digest, parse};
use agd_core::fleet::{Agent, Batch, PublicKey, Statement, Vector, context_digest};
use agd_core::merkle::{CompactRange, Hash, leaf_hash, root_of};
use agd_core::note::{CosigningKey, SignedNote, SigningKey, VerifierKey};
use agd_core::proof::{TileHashReader, consistency_proof, inclusion_proof, verify_consistency, verify_inclusion};
use agd_core::tile::tiles_for_size;
use agd_core::tlog_proof::TlogProof;
use serde_json::Value;

fn read(file: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(file);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The vectors of a list, of which there must be some.
fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    let list = value[key].as_array().unwrap();
    assert!(!list.is_empty(), "{key}");
    list
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} in {value}"))
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key} in {value}"))
}

fn hash(hex: &str) -> Hash {
    hex::decode(hex).unwrap().try_into().unwrap()
}

fn hashes(value: &Value, key: &str) -> Vec<Hash> {
    value[key].as_array().unwrap().iter().map(|hex| hash(hex.as_str().unwrap())).collect()
}

#[test]
fn entries() {
    let file = read("entries.json");
    for vector in list(&file, "entries") {
        let name = text(vector, "name");
        let event = &vector["event"];
        let optional = |key: &str| event.get(key).map(|value| value.as_str().unwrap());
        let entry = Entry {
            event_id: EventId { xact_id: text(event, "xact_id").parse().unwrap(), n: number(event, "n") as u32 },
            action: text(event, "action"),
            at: text(event, "at").parse().unwrap(),
            committed_at: text(event, "committed_at").parse().unwrap(),
            tenant: optional("tenant"),
            relation: optional("relation"),
            guard_id: optional("guard_id"),
            row_key: optional("row_key").map(hash),
            old: optional("old").map(hash),
            new: optional("new").map(hash),
            body: optional("body"),
            session_user_name: text(event, "session_user_name"),
            role_name: text(event, "role_name"),
            principal: optional("principal"),
            fleet_id: optional("fleet_id"),
            cause: optional("cause"),
            binding: text(event, "binding"),
            application_name: optional("application_name"),
            client_addr: optional("client_addr"),
        };
        let mut bytes = Vec::new();
        entry.encode_into(&mut bytes);
        assert_eq!(String::from_utf8_lossy(&bytes), text(vector, "entry"), "{name}");
        assert_eq!(leaf_hash(&bytes), hash(text(vector, "leaf_hash")), "{name}");
        assert_eq!(parse(&bytes).unwrap().as_entry(), entry, "{name}");
    }
    let entries: Vec<_> = list(&file, "entries").iter().map(|vector| text(vector, "entry")).collect();
    let bundle = bundle::encode(&entries).unwrap();
    assert_eq!(hex::encode(&bundle), text(&file, "bundle"));
    let parsed = bundle::parse(&bundle, entries.len() as u16).unwrap();
    assert_eq!(parsed, entries.iter().map(|entry| entry.as_bytes()).collect::<Vec<_>>());
}

#[test]
fn images() {
    let file = read("images.json");
    for vector in list(&file, "images") {
        let kind = match text(vector, "kind") {
            "key" => ImageKind::Key,
            "old" => ImageKind::Old,
            "new" => ImageKind::New,
            other => panic!("{other}"),
        };
        let salt = hex::decode(text(vector, "salt")).unwrap().try_into().unwrap();
        let digest = image_digest(kind, &salt, text(vector, "text"));
        assert_eq!(digest, hash(text(vector, "digest")), "{vector}");
    }
}

#[test]
fn small_tree() {
    let file = read("tree.json");
    let leaves: Vec<Hash> =
        list(&file, "leaves").iter().map(|vector| leaf_hash(&hex::decode(text(vector, "entry")).unwrap())).collect();
    let expected: Vec<_> = list(&file, "leaves").iter().map(|v| hash(text(v, "leaf_hash"))).collect();
    assert_eq!(leaves, expected);
    let roots = hashes(&file, "roots");
    assert_eq!(roots.len(), leaves.len() + 1);
    let mut range = CompactRange::new();
    for (size, root) in roots.iter().enumerate() {
        assert_eq!(range.root(), *root, "size {size}");
        assert_eq!(root_of(&leaves[..size]), *root, "size {size}");
        leaves.get(size).into_iter().for_each(|leaf| range.push(*leaf));
    }
    let tile = |_| Ok::<_, ()>(leaves.as_flattened().to_vec());
    for vector in list(&file, "inclusion") {
        let (index, size) = (number(vector, "index"), number(vector, "size"));
        let path = hashes(vector, "path");
        let reader = TileHashReader::new(size, tile);
        assert_eq!(inclusion_proof(&reader, index, size).unwrap(), path, "{index} in {size}");
        let (leaf, root) = (&leaves[index as usize], &roots[size as usize]);
        assert_eq!(verify_inclusion(leaf, index, size, &path, root), Ok(()));
    }
    for vector in list(&file, "consistency") {
        let (from, to) = (number(vector, "from"), number(vector, "to"));
        let path = hashes(vector, "path");
        let reader = TileHashReader::new(to, tile);
        assert_eq!(consistency_proof(&reader, from, to).unwrap(), path, "{from} to {to}");
        let (old, new) = (&roots[from as usize], &roots[to as usize]);
        assert_eq!(verify_consistency(from, old, to, new, &path), Ok(()));
    }
}

#[test]
fn large_trees() {
    let file = read("tree.json");
    let mut range = CompactRange::new();
    for vector in list(&file, "large") {
        let size = number(vector, "size");
        (range.size()..size).for_each(|i| range.push(crate::leaf(i)));
        assert_eq!(range.root(), hash(text(vector, "root")), "size {size}");
        let above: Vec<_> =
            tiles_for_size(size).filter(|tile| tile.level > 0 || !tile.is_full()).map(|tile| tile.path()).collect();
        let expected: Vec<_> = list(vector, "tiles").iter().map(|path| path.as_str().unwrap()).collect();
        assert_eq!(above, expected, "size {size}");
    }
}

#[test]
fn notes() {
    // The generator's.
    const WITNESS_SEED: [u8; 32] = [0x42; 32];
    let file = read("notes.json");
    for vector in list(&file, "notes") {
        let name = text(vector, "name");
        let seed = hash(text(vector, "seed"));
        let key = SigningKey::from_seed(name, &seed).unwrap();
        assert_eq!(key.verifier_key().to_string(), text(vector, "vkey"));
        let checkpoint = Checkpoint {
            origin: text(vector, "origin").to_owned(),
            size: text(vector, "size").parse().unwrap(),
            root: hash(text(vector, "root")),
        };
        let body = checkpoint.to_string();
        assert_eq!(body, text(vector, "body"));
        assert_eq!(SignedNote::sign(&body, &key).unwrap().to_string(), text(vector, "note"));

        let witness = VerifierKey::parse(text(vector, "witness_vkey")).unwrap();
        let cosigned = SignedNote::parse(text(vector, "cosigned")).unwrap();
        let cosigner = CosigningKey::from_seed(witness.name(), &WITNESS_SEED).unwrap();
        assert_eq!(cosigner.verifier_key(), &witness);
        let line = cosigner.cosign(&body, number(vector, "witness_time")).unwrap();
        assert_eq!(cosigned.signatures()[1], line, "Ed25519 is deterministic: the very same line");
        let keys = [key.verifier_key().clone(), witness];
        assert_eq!(cosigned.verify(&keys).unwrap().len(), 2);
        let time = cosigned.signatures()[1].cosignature_time();
        assert_eq!(time, Some(number(vector, "witness_time")));
        assert_eq!(Checkpoint::parse(cosigned.text()), Ok(checkpoint));
    }
}

#[test]
fn proofs() {
    for vector in list(&read("proofs.json"), "proofs") {
        let (entry, path) = (hex::decode(text(vector, "entry")).unwrap(), hashes(vector, "path"));
        let (index, size) = (number(vector, "index"), number(vector, "size"));
        let proof = TlogProof::parse(text(vector, "proof")).unwrap();
        assert_eq!((proof.extra(), proof.index(), proof.path()), (entry.as_slice(), index, path.as_slice()));
        let made = TlogProof::new(entry.clone(), index, path, proof.note().clone()).unwrap();
        assert_eq!(made.to_string(), text(vector, "proof"));

        // What a reader does with it.
        let key = VerifierKey::parse(text(vector, "vkey")).unwrap();
        assert_eq!(proof.note().verify(std::slice::from_ref(&key)).unwrap(), [&key]);
        let checkpoint = proof.checkpoint();
        assert_eq!((checkpoint.origin.as_str(), checkpoint.size), (key.name(), size));
        let leaf = leaf_hash(&entry);
        assert_eq!(verify_inclusion(&leaf, index, checkpoint.size, proof.path(), &checkpoint.root), Ok(()));
    }
}

#[test]
fn the_examples_in_the_documentation() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/formats.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (entries, notes, images) = (read("entries.json"), read("notes.json"), read("images.json"));
    let proofs = read("proofs.json");
    let proof = list(&proofs, "proofs").iter().find(|proof| number(proof, "size") == 257).unwrap();
    let (entry, note) = (&list(&entries, "entries")[0], &list(&notes, "notes")[0]);
    let image = list(&images, "images")
        .iter()
        .find(|image| text(image, "text") == "{}" && text(image, "salt").ends_with("0f"))
        .unwrap();
    for example in [
        text(entry, "entry"),
        text(entry, "leaf_hash"),
        text(image, "digest"),
        text(note, "vkey"),
        text(note, "witness_vkey"),
        text(note, "cosigned"),
        text(proof, "proof"),
    ] {
        assert!(page.contains(example), "{example}");
    }
}

#[test]
fn fleets() {
    let file = read("fleets.json");
    let key = |name: &str| PublicKey::from_bytes(&hex::decode(text(&file, name)).unwrap()).unwrap();
    let mut statements = BTreeMap::new();
    for vector in list(&file, "fleets") {
        let cause = cause::normalised(text(vector, "cause")).unwrap();
        assert_eq!(cause, text(vector, "cause_normalised"));
        let fleet = Vector::new(
            text(vector, "tenant"),
            text(vector, "template"),
            number(vector, "version") as u32,
            &cause,
            number(vector, "generation") as u32,
        )
        .unwrap();
        assert_eq!(fleet.to_string(), text(vector, "vector"));
        assert_eq!(fleet.digest(), hash(text(vector, "digest")));
        assert_eq!(fleet.fleet_id(), text(vector, "fleet_id"));
        let agents: Vec<Agent> = list(vector, "agents")
            .iter()
            .map(|agent| Agent {
                role: text(agent, "role").into(),
                goals: text(agent, "goals").into(),
                memory_scope: text(agent, "memory_scope").into(),
            })
            .collect();
        let context = context_digest(&agents);
        assert_eq!(context, hash(text(vector, "context")));
        let statement = Statement {
            origin: text(vector, "origin").into(),
            vector: fleet,
            minted_at: text(vector, "minted_at").parse().unwrap(),
            deadline: text(vector, "deadline").parse().unwrap(),
            context,
        };
        assert_eq!(statement.to_string(), text(vector, "statement"));
        let signature = hex::decode(text(vector, "signature")).unwrap();
        assert_eq!(key("coordinator").verify(statement.to_string().as_bytes(), &signature), Ok(()));
        statements.insert(text(vector, "fleet_id").to_owned(), statement);
    }
    for vector in list(&file, "batches") {
        let members: Vec<&str> = list(vector, "members").iter().map(|id| id.as_str().unwrap()).collect();
        let batch = Batch::new(members.iter().map(|id| &statements[*id])).unwrap();
        assert_eq!(batch.statement(), text(vector, "statement"));
        let signature = hex::decode(text(vector, "signature")).unwrap();
        assert_eq!(key("countersigner").verify(batch.statement().as_bytes(), &signature), Ok(()));
        for ((index, (id, place)), path) in batch.places().into_iter().enumerate().zip(list(vector, "paths")) {
            let path: Vec<Hash> = path.as_array().unwrap().iter().map(|h| hash(h.as_str().unwrap())).collect();
            assert_eq!((id, place.index, place.path), (members[index], index as u64, path));
        }
    }
}
