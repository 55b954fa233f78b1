//! Whole stores: a small published log of which one file is overwritten is never called good.
//!
//! The first byte chooses the file, the second whether the rest replaces it or is laid over it from the byte that the next
//! two say. The store lies in the present folder, which `dev/fuzz.py` makes.
#![no_main]
#![allow(clippy::unwrap_used)] // a target that cannot set itself up must stop

use agd_cli::key::LogKey;
use agd_cli::policy::Policy;
use agd_cli::store::{Reader, checkpoint_path, newest_path};
use agd_cli::{EXIT_OK, verify};
use agd_core::{Checkpoint, CompactRange, Entry, EventId, SignedNote, TILE_WIDTH, bundle, leaf_hash};
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;

const ORIGIN: &str = "agd-1/fuzz";

/// Leaves: a full tile and a partial one, on two levels.
const SIZE: u64 = TILE_WIDTH + 20;

fn one_entry(xact_id: u64) -> Vec<u8> {
    let at = 1_795_210_265_000_000 + xact_id as i64;
    let entry = Entry {
        event_id: EventId { xact_id, n: 0 },
        action: "TRUNCATE",
        at,
        committed_at: at,
        tenant: None,
        relation: Some("public.orders"),
        guard_id: Some("0b9d6a52-7a39-4a56-8b0e-0f6f6d3f3c11"),
        row_key: None,
        old: None,
        new: None,
        body: None,
        session_user_name: "app",
        role_name: "app",
        principal: None,
        fleet_id: None,
        cause: Some("why"),
        binding: "role",
        application_name: None,
        client_addr: None,
    };
    let mut bytes = Vec::new();
    entry.encode_into(&mut bytes);
    bytes
}

struct Store {
    root: PathBuf,
    files: Vec<(String, Vec<u8>)>,
    policy: Policy,
}

static STORE: LazyLock<Store> = LazyLock::new(make);

fn make() -> Store {
    let root = std::env::current_dir().unwrap().join("store");
    let key = LogKey::from_seed(ORIGIN, [7; 32].into()).unwrap();
    let entries: Vec<Vec<u8>> = (0..SIZE).map(one_entry).collect();
    let leaves: Vec<_> = entries.iter().map(|entry| leaf_hash(entry)).collect();
    let (full, open) = leaves.split_at(TILE_WIDTH as usize);
    let root_of = |leaves: &[agd_core::Hash]| {
        let mut range = CompactRange::new();
        leaves.iter().for_each(|leaf| range.push(*leaf));
        range.root()
    };
    let note = |size: u64| {
        let root = root_of(leaves.get(..size as usize).unwrap());
        let text = Checkpoint { origin: ORIGIN.to_owned(), size, root }.to_string();
        SignedNote::sign(&text, &key.signer(ORIGIN).unwrap()).unwrap().to_string().into_bytes()
    };
    let (first, rest) = entries.split_at(TILE_WIDTH as usize);
    let files = vec![
        (newest_path(ORIGIN), note(SIZE)),
        (checkpoint_path(ORIGIN, TILE_WIDTH), note(TILE_WIDTH)),
        (checkpoint_path(ORIGIN, SIZE), note(SIZE)),
        (format!("{ORIGIN}/tile/0/000"), full.concat()),
        (format!("{ORIGIN}/tile/0/001.p/20"), open.concat()),
        (format!("{ORIGIN}/tile/1/000.p/1"), root_of(full).to_vec()),
        (format!("{ORIGIN}/tile/entries/000"), bundle::encode(first).unwrap()),
        (format!("{ORIGIN}/tile/entries/001.p/20"), bundle::encode(rest).unwrap()),
    ];
    for (name, bytes) in &files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let policy = Policy::parse(format!("log {}\nquorum none\n", key.verifier()).as_bytes()).unwrap();
    let store = Store { root, files, policy };
    assert_eq!(verdict(&store), EXIT_OK, "as it was published it is good");
    store
}

fn verdict(store: &Store) -> u8 {
    let reader = Reader::open(&store.root).unwrap();
    verify::run(&reader, Some(&store.policy), &AtomicU64::new(0)).unwrap().exit_code()
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [file, how, at @ ..] = data else { return };
    let Some((at, noise)) = at.split_at_checked(2) else { return };
    let store = &*STORE;
    let (name, bytes) = &store.files[usize::from(*file) % store.files.len()];
    let wrong = if how % 2 == 0 {
        noise.to_vec()
    } else {
        let at = usize::from(u16::from_be_bytes([at[0], at[1]])) % bytes.len();
        let mut laid_over = bytes[..at].to_vec();
        laid_over.extend_from_slice(noise);
        laid_over.extend_from_slice(bytes.get(at + noise.len()..).unwrap_or_default());
        laid_over
    };
    if wrong == *bytes {
        return;
    }
    let path = store.root.join(name);
    fs::write(&path, &wrong).unwrap();
    let verdict = verdict(store);
    fs::write(&path, bytes).unwrap();
    assert_ne!(verdict, EXIT_OK, "{name}");
});
