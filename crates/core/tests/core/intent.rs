//! The gate's bookkeeping against a model: whatever is written is confirmed once, whatever is not is void.

use agd_core::intent::{Intent, Intents, Operation, Void};
use proptest::prelude::*;

fn intent(serial: u32, fingerprint: u64) -> Intent {
    Intent { fingerprint, block: serial, offset: 1 }
}

fn places(voids: &[Void]) -> Vec<u32> {
    let mut blocks: Vec<u32> = voids.iter().map(|void| void.block).collect();
    blocks.sort_unstable();
    blocks
}

#[derive(Clone, Debug)]
struct Row {
    relation: u32,
    operation: Operation,
    /// Few different images, so that equal rows in one query are common.
    image: u64,
    written: bool,
}

fn row() -> impl Strategy<Value = Row> {
    (0u32..3, 0u8..3, 0u64..4, any::<bool>()).prop_map(|(relation, operation, image, written)| Row {
        relation,
        operation: [Operation::Insert, Operation::Update, Operation::Delete][usize::from(operation)],
        image,
        written,
    })
}

/// Runs one query: records its rows, confirms those written in order, ends it. Returns the voids.
fn run(intents: &mut Intents, level: u32, subtransaction: u32, serial: &mut u32, rows: &[Row]) -> Vec<Void> {
    for row in rows {
        intents.add(level, row.relation, row.operation, subtransaction, intent(*serial, row.image)).unwrap();
        *serial += 1;
    }
    let mut voids = Vec::new();
    for row in rows.iter().filter(|row| row.written) {
        assert!(
            intents.confirm_first(level, row.relation, row.operation, row.image)
                || intents.confirm(level, row.relation, row.operation, [row.image; 2], &mut voids).unwrap(),
            "a written row must be confirmed"
        );
    }
    intents.end_query(level, &mut voids).unwrap();
    voids
}

proptest! {
    /// As many records stand as rows were written, and for each image as many: rows that are equal are interchangeable.
    #[test]
    fn one_record_for_one_write(rows in prop::collection::vec(row(), 0..60)) {
        let mut intents = Intents::default();
        let voids = run(&mut intents, 1, 1, &mut 0, &rows);
        prop_assert!(intents.is_empty());
        let voided = places(&voids);
        prop_assert_eq!(voided.len(), rows.iter().filter(|row| !row.written).count());
        let mut unique = voided.clone();
        unique.dedup();
        prop_assert_eq!(&unique, &voided, "no record is withdrawn twice");
        for (relation, operation, image) in rows.iter().map(|row| (row.relation, row.operation, row.image)) {
            let same = |row: &&Row| row.relation == relation && row.operation == operation && row.image == image;
            let standing = rows
                .iter()
                .enumerate()
                .filter(|(index, row)| same(row) && voided.binary_search(&(*index as u32)).is_err())
                .count();
            prop_assert_eq!(standing, rows.iter().filter(same).filter(|row| row.written).count());
        }
    }

    /// A nested query neither confirms nor withdraws what the query around it has recorded.
    #[test]
    fn a_nested_query_leaves_the_outer_one_alone(
        outer in prop::collection::vec(row(), 1..20),
        inner in prop::collection::vec(row(), 0..20),
    ) {
        let mut intents = Intents::default();
        let mut serial = 0;
        for row in &outer {
            intents.add(1, row.relation, row.operation, 1, intent(serial, row.image)).unwrap();
            serial += 1;
        }
        let voids = run(&mut intents, 2, 1, &mut serial, &inner);
        prop_assert!(places(&voids).iter().all(|place| *place as usize >= outer.len()));
        let mut rest = Vec::new();
        for row in &outer {
            prop_assert!(intents.confirm(1, row.relation, row.operation, [row.image; 2], &mut rest).unwrap());
        }
        prop_assert!(rest.is_empty() && intents.is_empty());
    }

    /// A rolled-back subtransaction takes its own records and those of its children, and nothing else.
    #[test]
    fn rollback_takes_what_is_inside(
        before in prop::collection::vec(row(), 0..10),
        inside in prop::collection::vec((2u32..6, row()), 0..20),
    ) {
        let mut intents = Intents::default();
        for (serial, row) in before.iter().enumerate() {
            intents.add(1, row.relation, row.operation, 1, intent(serial as u32, row.image)).unwrap();
        }
        for (subtransaction, row) in &inside {
            intents.add(2, row.relation, row.operation, *subtransaction, intent(1000, row.image)).unwrap();
        }
        intents.abort_subtransaction(2);
        let mut voids = Vec::new();
        intents.end_query(0, &mut voids).unwrap();
        prop_assert!(intents.is_empty());
        prop_assert_eq!(places(&voids), (0..before.len() as u32).collect::<Vec<_>>());
    }

    /// What a referential action recorded is confirmed by the query above it.
    #[test]
    fn handed_up_records_are_confirmed_above(rows in prop::collection::vec(row(), 1..20)) {
        let mut intents = Intents::default();
        for (serial, row) in rows.iter().enumerate() {
            intents.add(3, row.relation, row.operation, 1, intent(serial as u32, row.image)).unwrap();
        }
        intents.hand_up(3).unwrap();
        let mut voids = Vec::new();
        intents.end_query(3, &mut voids).unwrap();
        prop_assert!(voids.is_empty());
        for row in &rows {
            prop_assert!(intents.confirm(2, row.relation, row.operation, [row.image; 2], &mut voids).unwrap());
        }
        prop_assert!(voids.is_empty() && intents.is_empty());
    }
}

#[test]
fn a_row_that_was_not_recorded_is_not_confirmed() {
    let mut intents = Intents::default();
    intents.add(1, 7, Operation::Insert, 1, intent(0, 42)).unwrap();
    let mut voids = Vec::new();
    assert!(!intents.confirm(1, 7, Operation::Insert, [43; 2], &mut voids).unwrap(), "another image");
    assert!(!intents.confirm(1, 7, Operation::Update, [42; 2], &mut voids).unwrap(), "another operation");
    assert!(!intents.confirm(1, 8, Operation::Insert, [42; 2], &mut voids).unwrap(), "another relation");
    assert!(!intents.confirm(2, 7, Operation::Insert, [42; 2], &mut voids).unwrap(), "another query");
    assert!(intents.confirm(1, 7, Operation::Insert, [42; 2], &mut voids).unwrap());
    assert!(!intents.confirm(1, 7, Operation::Insert, [42; 2], &mut voids).unwrap(), "a second time");
    assert!(voids.is_empty());
}

#[test]
fn the_first_is_confirmed_without_looking_further() {
    let mut intents = Intents::default();
    for (serial, fingerprint) in [(0, 42), (1, 43), (2, 44)] {
        intents.add(1, 7, Operation::Insert, 1, intent(serial, fingerprint)).unwrap();
    }
    assert!(!intents.confirm_first(1, 7, Operation::Insert, 43), "not the first");
    assert!(!intents.confirm_first(2, 7, Operation::Insert, 42), "another query");
    assert!(!intents.confirm_first(1, 8, Operation::Insert, 42), "another relation");
    assert!(!intents.confirm_first(1, 7, Operation::Delete, 42), "another operation");
    assert!(intents.confirm_first(1, 7, Operation::Insert, 42));
    let mut voids = Vec::new();
    assert!(intents.confirm(1, 7, Operation::Insert, [0, 44], &mut voids).unwrap(), "either fingerprint will do");
    assert_eq!(places(&voids), [1]);
    assert!(intents.is_empty());
}

#[test]
fn an_intent_takes_sixteen_bytes() {
    assert_eq!(size_of::<Intent>(), 16);
}
