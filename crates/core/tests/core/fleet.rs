use agd_core::fleet::lifecycle::{Denied, Event, State, at, may_follow, step};
use agd_core::fleet::statement::BatchError;
use agd_core::fleet::verify::verify;
use agd_core::fleet::{
    Agent, Batch, Check, Evidence, Place, PublicKey, Signed, Signer, SignerError, Statement, Vector, VectorError,
    context_digest,
};
use agd_core::merkle::{Hash, leaf_hash, root_of};
use agd_core::proof::verify_inclusion;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::Signer as _;
use proptest::prelude::*;
use std::collections::HashSet;

const DEADLINE: i64 = 1_000;
const EVENTS: [Event; 5] = [Event::Amend, Event::Sign, Event::Countersign, Event::Seal, Event::Expire];

fn states() -> [State; 5] {
    let pending = |signed| State::Pending { signed, deadline: DEADLINE };
    [pending(false), pending(true), State::Active, State::Sealed, State::Cancelled]
}

/// Every state, every event, on both sides of the deadline and at it: written out, so that no rule is its own witness.
#[test]
fn the_whole_machine() {
    let [fresh, signed, active, sealed, cancelled] = states();
    for early in [i64::MIN, 0, DEADLINE - 1] {
        for (state, event, outcome) in [
            (fresh, Event::Amend, Ok(fresh)),
            (fresh, Event::Sign, Ok(signed)),
            (fresh, Event::Countersign, Err(Denied::NotSigned)),
            (fresh, Event::Seal, Ok(cancelled)),
            (fresh, Event::Expire, Err(Denied::TooEarly)),
            (signed, Event::Amend, Err(Denied::AlreadySigned)),
            (signed, Event::Sign, Err(Denied::AlreadySigned)),
            (signed, Event::Countersign, Ok(active)),
            (signed, Event::Seal, Ok(cancelled)),
            (signed, Event::Expire, Err(Denied::TooEarly)),
        ] {
            assert_eq!(step(state, event, early), outcome, "{state:?} {event:?} at {early}");
            assert_eq!(at(state, early), state);
        }
    }
    for late in [DEADLINE, DEADLINE + 1, i64::MAX] {
        for state in [fresh, signed] {
            for event in [Event::Amend, Event::Sign, Event::Countersign, Event::Seal] {
                assert_eq!(step(state, event, late), Err(Denied::TooLate), "{state:?} {event:?} at {late}");
            }
            assert_eq!(step(state, Event::Expire, late), Ok(cancelled));
            assert_eq!(at(state, late), cancelled);
        }
    }
    for now in [i64::MIN, 0, DEADLINE, i64::MAX] {
        for event in EVENTS {
            let of_active = if event == Event::Seal { Ok(sealed) } else { Err(Denied::Active) };
            assert_eq!(step(active, event, now), of_active);
            assert_eq!(step(sealed, event, now), Err(Denied::Sealed));
            assert_eq!(step(cancelled, event, now), Err(Denied::Cancelled));
        }
        for state in [active, sealed, cancelled] {
            assert_eq!(at(state, now), state);
        }
    }
}

/// What the gate lets a row become is what some event makes of it, and nothing more.
#[test]
fn names_follow_on_names_as_states_on_states() {
    let mut reachable = HashSet::new();
    for state in states() {
        for event in EVENTS {
            for now in [0, DEADLINE] {
                if let Ok(next) = step(state, event, now) {
                    reachable.insert((state.name(), next.name()));
                }
            }
        }
    }
    let names: HashSet<&str> = states().iter().map(|state| state.name()).collect();
    assert_eq!(names.len(), 4);
    for from in names.iter().chain(&["", "Active"]) {
        for to in names.iter().chain(&["", "expired"]) {
            assert_eq!(may_follow(from, to), reachable.contains(&(*from, *to)), "{from} to {to}");
        }
    }
}

proptest! {
    /// Whatever happens in whatever order at times that do not run back: nothing follows on a final state, nothing is active
    /// but by a countersignature in time, and what is not active at its deadline never is.
    #[test]
    fn every_history(history in prop::collection::vec((0usize..5, 0i64..40), 0..40)) {
        let (mut state, mut now) = (State::Pending { signed: false, deadline: 200 }, 0);
        for (event, later) in history {
            now += later;
            let before = state;
            match step(state, EVENTS[event], now) {
                Ok(next) => {
                    prop_assert!(!before.is_final());
                    prop_assert!(may_follow(before.name(), next.name()));
                    prop_assert_eq!(at(next, now), next, "a state that is stored is the state that is read");
                    if next == State::Active {
                        prop_assert_eq!(before, State::Pending { signed: true, deadline: 200 });
                        prop_assert!(now < 200);
                    }
                    state = next;
                }
                Err(_) => prop_assert_eq!(state, before),
            }
            if now >= 200 && state != State::Active && state != State::Sealed {
                prop_assert_eq!(at(state, now), State::Cancelled);
            }
        }
    }
}

#[test]
fn what_a_vector_is_made_of() {
    let vector = Vector::new("acme", "standard", 1, "why", 1).unwrap();
    let text = vector.to_string();
    let parts: Vec<&str> = text.split(':').collect();
    assert_eq!((parts.len(), parts[0], parts[1], parts[2], parts[4]), (5, "agd-fleet-v1", "acme", "standard@1", "1"));
    assert_eq!(parts[3], hex::encode(vector.cause_digest()));
    assert_eq!(vector.fleet_id(), hex::encode(vector.digest())[..16]);
    for (tenant, template, version, cause, generation, error) in [
        ("a:b", "t", 1, "c", 1, VectorError::Tenant),
        ("a'b", "t", 1, "c", 1, VectorError::Tenant),
        ("\u{430}cme", "t", 1, "c", 1, VectorError::Tenant), // a Cyrillic letter
        ("acme ", "t", 1, "c", 1, VectorError::Tenant),
        ("", "t", 1, "c", 1, VectorError::Tenant),
        ("a", "t@2", 1, "c", 1, VectorError::Template),
        ("a", "t:1", 1, "c", 1, VectorError::Template),
        ("a", "t", 0, "c", 1, VectorError::Zero),
        ("a", "t", 1, "c", 0, VectorError::Zero),
        ("a", "t", 1, "e\u{301}", 1, VectorError::Cause),
        ("a", "t", 1, "", 1, VectorError::Cause),
    ] {
        assert_eq!(Vector::new(tenant, template, version, cause, generation), Err(error), "{tenant} {template}");
    }
}

proptest! {
    /// No two different fleets share a vector.
    #[test]
    fn vectors_are_told_apart(
        a in ("[a-z][a-z0-9]{0,2}", "[a-z][a-z0-9]{0,2}", 1u32..30, "[a-z@:0-9]{1,3}", 1u32..30),
        b in ("[a-z][a-z0-9]{0,2}", "[a-z][a-z0-9]{0,2}", 1u32..30, "[a-z@:0-9]{1,3}", 1u32..30),
    ) {
        let vector = |(tenant, template, version, cause, generation): &(String, String, u32, String, u32)| {
            Vector::new(tenant, template, *version, cause, *generation).unwrap()
        };
        prop_assert_eq!(vector(&a).to_string() == vector(&b).to_string(), a == b);
    }
}

fn agents() -> Vec<Agent> {
    let agent = |role: &str, goals: &str| Agent {
        role: role.into(),
        goals: goals.into(),
        memory_scope: format!(r#"{{"role": "{role}", "fleet": "1df7900503d90367", "tenant": "acme"}}"#),
    };
    vec![agent("writer", r#"["writes"]"#), agent("coordinator", "[]")]
}

/// The bytes that are hashed, written out; roles, goals and scopes do not run into each other, and their order is no matter.
#[test]
fn what_agents_are_told_has_one_digest() {
    use sha2::Digest as _;
    let told = agents();
    let bytes = "agd-fleet-context-v1\ncoordinator\n[]\n{\"role\": \"coordinator\", \"fleet\": \"1df7900503d90367\", \"tenant\": \"acme\"}\n\
                 writer\n[\"writes\"]\n{\"role\": \"writer\", \"fleet\": \"1df7900503d90367\", \"tenant\": \"acme\"}\n";
    assert_eq!(context_digest(&told)[..], sha2::Sha256::digest(bytes)[..]);
    let mut turned = told.clone();
    turned.reverse();
    assert_eq!(context_digest(&turned), context_digest(&told));
    for change in [
        |agents: &mut Vec<Agent>| agents[0].role.push('s'),
        |agents: &mut Vec<Agent>| agents[0].goals = "[]".into(),
        |agents: &mut Vec<Agent>| agents[1].memory_scope.push(' '),
        |agents: &mut Vec<Agent>| drop(agents.pop()),
        |agents: &mut Vec<Agent>| agents.push(agents[0].clone()),
    ] {
        let mut other = told.clone();
        change(&mut other);
        assert_ne!(context_digest(&other), context_digest(&told), "{other:?}");
    }
}

fn statement(tenant: &str, cause: &str) -> Statement {
    Statement {
        origin: "agd-7/app".into(),
        vector: Vector::new(tenant, "standard", 1, cause, 1).unwrap(),
        minted_at: 1_795_210_265_000_001,
        deadline: 1_795_296_665_000_001,
        context: context_digest(&agents()),
    }
}

#[test]
fn the_bytes_of_a_statement() {
    let one = statement("acme", "why");
    let text = one.to_string();
    assert_eq!(
        text,
        format!(
            "agd-fleet-statement-v2\nagd-7/app\n{}\n2026-11-20T21:31:05.000001Z\n2026-11-21T21:31:05.000001Z\n{}\n",
            one.vector,
            hex::encode(context_digest(&agents()))
        )
    );
    let batch = Batch::new([&one]).unwrap();
    let root = STANDARD.encode(leaf_hash(text.as_bytes()));
    assert_eq!(batch.statement(), format!("agd-fleet-batch-v1\n1\n{root}\n"));
}

#[test]
fn every_place_in_batches_of_every_size() {
    let all: Vec<Statement> = (0..70).map(|n| statement("acme", &format!("cause {n}"))).collect();
    for size in 1..=all.len() {
        let batch = Batch::new(&all[..size]).unwrap();
        let reversed = Batch::new(all[..size].iter().rev()).unwrap();
        assert_eq!(batch, reversed, "the order in which they are named does not matter");
        let places = batch.places();
        assert_eq!(places.len(), size);
        let mut sorted: Vec<&Statement> = all[..size].iter().collect();
        sorted.sort_by_key(|statement| statement.vector.fleet_id());
        let leaves: Vec<Hash> = sorted.iter().map(|statement| leaf_hash(statement.to_string().as_bytes())).collect();
        let root = root_of(&leaves);
        for (index, (statement, (id, place))) in sorted.iter().zip(&places).enumerate() {
            assert_eq!(
                (statement.vector.fleet_id().as_str(), place.index, place.size),
                (*id, index as u64, size as u64)
            );
            assert_eq!(verify_inclusion(&leaves[index], place.index, place.size, &place.path, &root), Ok(()));
            assert_eq!(place.batch_statement(statement), Some(batch.statement()));
            // Another fleet is not at this place, and this fleet at no other.
            let stranger = crate::fleet::statement("globex", "another");
            assert_ne!(place.batch_statement(&stranger), Some(batch.statement()));
            let moved = Place { index: (place.index + 1) % place.size, ..place.clone() };
            assert!(size == 1 || moved.batch_statement(statement) != Some(batch.statement()));
            let mut longer = place.clone();
            longer.path.push([0; 32]);
            assert_eq!(longer.batch_statement(statement), None);
        }
    }
    assert_eq!(Batch::new([]), Err(BatchError::Empty));
    let twice = statement("acme", "why");
    assert_eq!(Batch::new([&twice, &twice]), Err(BatchError::Twice(twice.vector.fleet_id())));
    let nowhere = Place { size: 0, index: 0, path: Vec::new() };
    assert_eq!(nowhere.batch_statement(&twice), None);
}

#[test]
fn keys_that_prove_nothing_are_refused() {
    let key = |hex: &str| PublicKey::from_bytes(&hex::decode(hex).unwrap());
    // Points of small order, two of them in a second encoding.
    for weak in [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    ] {
        assert_eq!(key(weak), Err(SignerError::WeakKey), "{weak}");
    }
    for false_key in [
        "0200000000000000000000000000000000000000000000000000000000000000", // no point
        "efffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // y = 2 + p: no point either
    ] {
        assert!(key(false_key).is_err(), "{false_key}");
    }
    // y = p + 3 or the first after it that is a point: the same point has a smaller y. (p = 2^255 - 19.)
    let spelt_twice = (0xf0..=0xffu8).filter_map(|low| {
        let mut bytes = [0xff; 32];
        (bytes[0], bytes[31]) = (low, 0x7f);
        ed25519_dalek::VerifyingKey::from_bytes(&bytes).ok().map(|_| bytes)
    });
    let spelt_twice: Vec<[u8; 32]> = spelt_twice.collect();
    assert!(!spelt_twice.is_empty());
    for bytes in spelt_twice {
        assert!(matches!(PublicKey::from_bytes(&bytes), Err(SignerError::Key | SignerError::WeakKey)), "{bytes:?}");
    }
    for length in [0, 31, 33, 64] {
        assert_eq!(PublicKey::from_bytes(&vec![7; length]), Err(SignerError::KeyLength));
    }
    let good = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    let public = PublicKey::from_bytes(good.verifying_key().as_bytes()).unwrap();
    let signature = good.sign(b"statement").to_bytes();
    assert_eq!(public.verify(b"statement", &signature), Ok(()));
    assert_eq!(public.verify(b"statement.", &signature), Err(SignerError::Signature));
    assert_eq!(public.verify(b"statement", &signature[..63]), Err(SignerError::SignatureLength));
    // S + L: the same signature in a second spelling.
    let order = hex::decode("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010").unwrap();
    let mut malleated = signature;
    let mut carry = 0u16;
    for (byte, added) in malleated[32..].iter_mut().zip(order) {
        carry += u16::from(*byte) + u16::from(added);
        *byte = carry as u8;
        carry >>= 8;
    }
    assert_eq!(public.verify(b"statement", &malleated), Err(SignerError::Signature));
}

fn signing_key(fill: u8) -> ed25519_dalek::SigningKey {
    ed25519_dalek::SigningKey::from_bytes(&[fill; 32])
}

fn signer(name: &str, duty: &str, fill: u8) -> Signer {
    Signer {
        name: name.into(),
        duty: duty.into(),
        key: signing_key(fill).verifying_key().as_bytes().to_vec(),
        registered_at: 0,
        revoked_at: None,
    }
}

/// A fleet that was countersigned in a batch of three.
fn active() -> Evidence {
    let statement = statement("acme", "why");
    let others = [crate::fleet::statement("globex", "a"), crate::fleet::statement("initech", "b")];
    let batch = Batch::new(others.iter().chain([&statement])).unwrap();
    let id = statement.vector.fleet_id();
    let place = batch.places().into_iter().find(|(member, _)| *member == id).unwrap().1;
    let at = statement.minted_at + 5;
    let signed = |signer: Signer, fill: u8, text: &str| Signed {
        signer: Some(signer),
        signature: signing_key(fill).sign(text.as_bytes()).to_bytes().to_vec(),
        at,
    };
    Evidence {
        fleet_id: id,
        digest: statement.vector.digest().to_vec(),
        tenant: "acme".into(),
        template: ("standard".into(), 1),
        cause: "why".into(),
        generation: 1,
        origin: statement.origin.clone(),
        minted_at: statement.minted_at,
        deadline: statement.deadline,
        agents: agents(),
        context_digest: statement.context.to_vec(),
        state: "active".into(),
        coordinator: Some(signed(signer("loom", "coordinator", 1), 1, &statement.to_string())),
        countersigner: Some((signed(signer("river", "countersigner", 2), 2, &batch.statement()), place)),
    }
}

fn failed(fleet: &Evidence) -> Vec<&'static str> {
    verify(fleet).into_iter().filter(|check: &Check| !check.ok).map(|check| check.name).collect()
}

#[test]
fn a_true_fleet_and_every_way_to_falsify_it() {
    assert_eq!(failed(&active()), [""; 0]);
    let names: Vec<_> = verify(&active()).into_iter().map(|check| check.name).collect();
    assert_eq!(names, ["cause", "vector", "fleet_id", "context", "coordinator", "countersigner", "two_signers"]);
    let all_but_cause = ["vector", "fleet_id", "coordinator", "countersigner"];
    type Change = fn(&mut Evidence);
    let changes: [(&str, Change, &[&str]); 26] = [
        ("another cause", |f| f.cause = "why not".into(), &all_but_cause),
        (
            "a cause in another form",
            |f| f.cause = "e\u{301}".into(),
            &["cause", "vector", "fleet_id", "coordinator", "countersigner"],
        ),
        ("another tenant", |f| f.tenant = "globex".into(), &all_but_cause),
        ("another template", |f| f.template.0 = "other".into(), &all_but_cause),
        ("another version", |f| f.template.1 = 2, &all_but_cause),
        ("another generation", |f| f.generation = 2, &all_but_cause),
        ("another digest", |f| f.digest[31] ^= 1, &["vector"]),
        ("no digest", |f| f.digest.clear(), &["vector"]),
        ("another id", |f| f.fleet_id = "0000000000000000".into(), &["fleet_id"]),
        ("another database", |f| f.origin = "agd-8/app".into(), &["coordinator", "countersigner"]),
        ("a longer window", |f| f.deadline += 1, &["coordinator", "countersigner"]),
        ("an earlier mint", |f| f.minted_at -= 1, &["coordinator", "countersigner"]),
        ("another goal", |f| f.agents[0].goals = "[\"reads\"]".into(), &["context", "coordinator", "countersigner"]),
        (
            "another goal and its digest",
            |f| {
                f.agents[0].goals = "[\"reads\"]".into();
                f.context_digest = context_digest(&f.agents).to_vec();
            },
            &["coordinator", "countersigner"],
        ),
        ("an agent more", |f| f.agents.push(f.agents[0].clone()), &["context", "coordinator", "countersigner"]),
        ("another digest of what they are told", |f| f.context_digest[0] ^= 1, &["context"]),
        ("no coordinator", |f| f.coordinator = None, &["coordinator"]),
        ("no countersigner", |f| f.countersigner = None, &["countersigner"]),
        ("a coordinator nobody knows", |f| f.coordinator.as_mut().unwrap().signer = None, &["coordinator"]),
        (
            "another duty",
            |f| f.coordinator.as_mut().unwrap().signer.as_mut().unwrap().duty = "countersigner".into(),
            &["coordinator"],
        ),
        ("a late signature", |f| f.coordinator.as_mut().unwrap().at = f.deadline, &["coordinator"]),
        (
            "a signer revoked before",
            |f| f.countersigner.as_mut().unwrap().0.signer.as_mut().unwrap().revoked_at = Some(f.minted_at),
            &["countersigner"],
        ),
        (
            "another key",
            |f| {
                f.countersigner.as_mut().unwrap().0.signer.as_mut().unwrap().key =
                    signing_key(3).verifying_key().as_bytes().to_vec()
            },
            &["countersigner"],
        ),
        ("another place", |f| f.countersigner.as_mut().unwrap().1.path[0][0] ^= 1, &["countersigner"]),
        ("countersigned and yet pending", |f| f.state = "pending".into(), &["countersigner"]),
        (
            "one name for both",
            |f| f.countersigner.as_mut().unwrap().0.signer.as_mut().unwrap().name = "loom".into(),
            &["two_signers"],
        ),
    ];
    for (what, change, expected) in changes {
        let mut fleet = active();
        change(&mut fleet);
        assert_eq!(failed(&fleet), expected, "{what}");
    }
    // What was revoked afterwards had signed before.
    let mut later = active();
    let at = later.minted_at + 6;
    later.coordinator.as_mut().unwrap().signer.as_mut().unwrap().revoked_at = Some(at);
    later.state = "sealed".into();
    assert_eq!(failed(&later), [""; 0]);
    // A pending fleet need not be signed.
    let pending = Evidence { state: "pending".into(), coordinator: None, countersigner: None, ..active() };
    assert_eq!(failed(&pending), [""; 0]);
}

proptest! {
    /// A signature for one fleet is good for no other: not for another tenant, generation, window, database.
    #[test]
    fn no_signature_is_good_elsewhere(
        origin in "agd-[1-9]/app", tenant in "(acme|globex)", cause in "(why|not)", generation in 1u32..3, minted in 0i64..2, deadline in 10i64..12,
    ) {
        let mut fleet = active();
        let vector = Vector::new(&tenant, "standard", 1, &cause, generation).unwrap();
        (fleet.origin, fleet.tenant, fleet.cause, fleet.generation) = (origin, tenant, cause, generation);
        (fleet.digest, fleet.fleet_id) = (vector.digest().to_vec(), vector.fleet_id());
        fleet.minted_at += minted;
        fleet.deadline += deadline - 10;
        let same = fleet == active();
        prop_assert_eq!(failed(&fleet).is_empty(), same);
    }
}
