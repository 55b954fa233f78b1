//! Chains: what an honest record says always fits; whatever is done past the gate is named, however the row is written after.

use std::collections::BTreeMap;

use agd_core::EventId;
use agd_core::chain::{
    Chain, ColumnChange, Guard, Place, Problem, Step, members, moved_key, parse_changes, write_changes,
};
use proptest::prelude::*;

const NOW: Place = Place { stamp: i64::MAX, event_id: EventId { xact_id: u64::MAX, n: u32::MAX } };

fn place(transaction: u64, n: u32) -> Place {
    Place { stamp: transaction as i64 * 10, event_id: EventId { xact_id: 1000 - transaction, n } }
}

fn change(number: i16, before: Option<&str>, after: Option<&str>) -> ColumnChange {
    ColumnChange { number, before: before.map(str::to_owned), after: after.map(str::to_owned) }
}

/// The steps of one key: transaction, number, action, step.
type Steps<'a> = &'a [(u64, u32, &'a str, Step<'a>)];

fn follow(guard: &Guard, steps: Steps<'_>, present: Option<&str>) -> Vec<String> {
    let mut chain = Chain::new(guard);
    let mut problems = Vec::new();
    for (transaction, n, action, step) in steps {
        chain.step(place(*transaction, *n), action, *step, &mut problems);
    }
    chain.finish(&mut problems);
    problems.extend(chain.compare(present, NOW));
    problems.iter().map(|problem| problem.tell(true)).collect()
}

fn insert(image: &str) -> Step<'_> {
    Step::Begin(Some(image))
}

fn delete(image: &str) -> Step<'_> {
    Step::End(Some(image))
}

fn update<'a>(old: &'a str, new: &'a str) -> Step<'a> {
    Step::Change { old: Some(old), new: Some(new) }
}

fn state(image: &str, again: bool) -> Step<'_> {
    Step::State { image: Some(image), again }
}

#[test]
fn a_change_past_the_gate_stays_visible_after_the_next_write() {
    let guard = Guard::default();
    let (a, b, c) = (r#"{"id":1,"amount":12}"#, r#"{"id":1,"amount":2}"#, r#"{"id":1,"amount":3}"#);
    let steps = [(1, 1, "INSERT", insert(a)), (2, 1, "UPDATE", update(b, b)), (3, 1, "UPDATE", update(b, c))];
    let found = follow(&guard, &steps, Some(c));
    assert_eq!(
        found,
        [
            "UPDATE 998-1 starts from an image that no record left (the last one is of event 999-1): amount: recorded 12, \
          it found 2"
        ]
    );
    // Values are not everybody's.
    let mut chain = Chain::new(&guard);
    let mut problems: Vec<Problem> = Vec::new();
    chain.step(place(1, 1), "INSERT", insert(a), &mut problems);
    chain.step(place(2, 1), "DELETE", delete(b), &mut problems);
    chain.finish(&mut problems);
    assert_eq!(
        problems[0].tell(false),
        "DELETE 998-1 starts from an image that no record left (the last one is of event 999-1): amount"
    );
    assert!(chain.compare(None, NOW).is_none());
}

#[test]
fn a_removed_row_that_is_inserted_and_deleted_again_is_named() {
    let guard = Guard::default();
    let (a, b) = (r#"{"id":1,"v":"a"}"#, r#"{"id":1,"v":"b"}"#);
    for image in [a, b] {
        let steps = [(1, 1, "INSERT", insert(a)), (2, 1, "INSERT", insert(image)), (3, 1, "DELETE", delete(image))];
        let found = follow(&guard, &steps, None);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("event 998-1 puts a row where the record has one since event 999-1"), "{found:?}");
        // In one transaction it comes out in the end.
        let steps = [(1, 1, "INSERT", insert(a)), (2, 1, "INSERT", insert(image)), (2, 2, "DELETE", delete(image))];
        assert_eq!(follow(&guard, &steps, None), ["row is missing: it was deleted outside the gate"]);
    }
    // One that was added, and then written.
    let steps = [(2, 1, "UPDATE", update(a, b)), (3, 1, "DELETE", delete(b))];
    let found = follow(&guard, &steps, None);
    assert_eq!(found, ["UPDATE 998-1 is of a row that no record left: it was added outside the gate"]);
}

#[test]
fn values_are_compared_as_they_were_recorded() {
    let guard = Guard::default();
    for (recorded, found) in [
        (r#"{"role":"user"}"#, r#"{"role":"admin","role":"user"}"#),
        (r#"{"role":"user"}"#, r#"{"role": "user"}"#),
        ("1.5", "1.50"),
        ("0", "-0"),
        ("1e2", "100"),
        ("null", r#""null""#),
        (r#""a""#, r#""\u0061""#),
        ("[1,2]", "[2,1]"),
        ("{}", r#"{"":1}"#),
    ] {
        let image = |value: &str| format!(r#"{{"id":1,"v":{value},"w":[{{"a":"}}]\""}}]}}"#);
        let (recorded, found) = (image(recorded), image(found));
        assert_eq!(follow(&guard, &[(1, 1, "INSERT", insert(&recorded))], Some(&recorded)), [""; 0]);
        assert_eq!(follow(&guard, &[(1, 1, "INSERT", insert(&recorded))], Some(&found)).len(), 1, "{found}");
        let steps = [(1, 1, "INSERT", insert(&recorded)), (2, 1, "DELETE", delete(&found))];
        assert_eq!(follow(&guard, &steps, None).len(), 1, "{found}");
    }
}

#[test]
fn keys_are_swapped_and_shifted_within_a_transaction() {
    let guard = Guard::default();
    let (a, c) = (r#"{"id":3,"v":"a"}"#, r#"{"id":3,"v":"c"}"#);
    // Key 3 gets row a before row c leaves it.
    let steps = [(1, 1, "INSERT", insert(c)), (2, 1, "UPDATE", insert(a)), (2, 2, "UPDATE", delete(c))];
    assert_eq!(follow(&guard, &steps, Some(a)), [""; 0]);
    // The row that leaves is another one than was recorded.
    let other = r#"{"id":3,"v":"x"}"#;
    let steps = [(1, 1, "INSERT", insert(c)), (2, 1, "UPDATE", insert(a)), (2, 2, "UPDATE", delete(other))];
    assert_ne!(follow(&guard, &steps, Some(a)), [""; 0]);
    // However many there are meanwhile.
    let images: Vec<String> = (0..100).map(|v| format!(r#"{{"id":3,"v":{v}}}"#)).collect();
    let mut steps: Vec<_> = (0..100).map(|at| (2, at as u32, "UPDATE", insert(&images[at]))).collect();
    steps.extend((1..100).map(|at| (2, 100 + at as u32, "UPDATE", delete(&images[at]))));
    assert_eq!(follow(&guard, &steps, Some(&images[0])), [""; 0]);
    steps.pop();
    assert_eq!(follow(&guard, &steps, Some(&images[0])).len(), 1);
}

#[test]
fn columns_are_known_by_their_history_and_not_by_their_name() {
    // Dropped and added anew.
    let mut guard = Guard::default();
    guard.changed(place(2, 1), vec![change(2, Some("a"), None), change(3, None, Some("a"))]);
    guard.settle();
    let (old, new) = (r#"{"id":1,"a":"x"}"#, r#"{"id":1,"a":null}"#);
    assert_eq!(follow(&guard, &[(1, 1, "INSERT", insert(old))], Some(new)), [""; 0]);
    let steps = [(1, 1, "INSERT", insert(old)), (3, 1, "UPDATE", update(new, old))];
    assert_eq!(follow(&guard, &steps, Some(old)), [""; 0]);
    // The very text that was recorded of another column.
    assert_eq!(follow(&guard, &[(1, 1, "INSERT", insert(old))], Some(old)).len(), 1);

    // Renamed away, and another renamed to the name.
    let mut guard = Guard::default();
    guard.changed(place(3, 1), vec![change(3, Some("b"), Some("a"))]);
    guard.changed(place(2, 1), vec![change(2, Some("a"), Some("c"))]);
    guard.settle();
    let old = r#"{"id":1,"a":1,"b":2}"#;
    assert_eq!(follow(&guard, &[(1, 1, "INSERT", insert(old))], Some(r#"{"id":1,"c":1,"a":2}"#)), [""; 0]);
    assert_eq!(follow(&guard, &[(1, 1, "INSERT", insert(old))], Some(r#"{"id":1,"a":1,"c":2}"#)).len(), 1);
    let between = r#"{"id":1,"c":1,"b":2}"#;
    assert_eq!(follow(&guard, &[(2, 2, "INSERT", insert(between))], Some(r#"{"id":1,"c":1,"a":2}"#)), [""; 0]);

    // Added: NULL until somebody writes it.
    let mut guard = Guard::default();
    guard.changed(place(2, 1), vec![change(3, None, Some("b"))]);
    guard.settle();
    let old = r#"{"id":1,"a":1}"#;
    assert_eq!(follow(&guard, &[(1, 1, "INSERT", insert(old))], Some(r#"{"id":1,"a":1,"b":null}"#)), [""; 0]);
    assert_eq!(follow(&guard, &[(1, 1, "INSERT", insert(old))], Some(r#"{"id":1,"a":1,"b":0}"#)).len(), 1);
}

#[test]
fn what_is_recorded_again_may_differ_where_the_statement_changed_values() {
    let mut guard = Guard::default();
    guard.changed(place(2, 1), vec![change(2, Some("a"), Some("a")), change(4, None, Some("d"))]);
    guard.settle();
    let old = r#"{"id":1,"a":1,"b":2}"#;
    let first = (1, 1, "INSERT", insert(old));
    let fine = r#"{"id":1,"a":"1.00","b":2,"d":5}"#;
    assert_eq!(follow(&guard, &[first, (2, 2, "BASELINE", state(fine, true))], Some(fine)), [""; 0]);
    // A column that it did not touch; one that was touched, in another transaction.
    let wrong = r#"{"id":1,"a":"1.00","b":3,"d":5}"#;
    assert_eq!(follow(&guard, &[first, (2, 2, "BASELINE", state(wrong, true))], Some(wrong)).len(), 1);
    assert_eq!(follow(&guard, &[first, (3, 1, "BASELINE", state(fine, true))], Some(fine)).len(), 1);
    assert_eq!(follow(&guard, &[first, (2, 2, "BASELINE", state(fine, false))], Some(fine)).len(), 1);
    // A row of which nothing was known.
    assert_eq!(follow(&guard, &[(2, 2, "BASELINE", state(fine, true))], Some(fine)).len(), 1);
    assert_eq!(follow(&guard, &[(2, 2, "BASELINE", state(fine, false))], Some(fine)), [""; 0]);
    let mut without = guard.clone();
    without.had_rows_before();
    assert_eq!(follow(&without, &[(2, 2, "BASELINE", state(fine, true))], Some(fine)), [""; 0]);
    // One that was deleted, and put back past the gate.
    let gone = (1, 2, "DELETE", delete(old));
    assert_eq!(follow(&guard, &[first, gone, (2, 2, "BASELINE", state(fine, true))], Some(fine)).len(), 1);
    assert_eq!(follow(&without, &[first, gone, (2, 2, "BASELINE", state(fine, true))], Some(fine)).len(), 1);
    // Renamed in the same transaction, after its type was changed.
    let mut guard = Guard::default();
    guard.changed(place(2, 1), vec![change(2, Some("a"), Some("a"))]);
    guard.changed(place(2, 2), vec![change(2, Some("a"), Some("z"))]);
    guard.settle();
    let fine = r#"{"id":1,"z":7,"b":2}"#;
    assert_eq!(follow(&guard, &[first, (2, 3, "BASELINE", state(fine, true))], Some(fine)), [""; 0]);
}

#[test]
fn rows_from_before_the_guard_are_called_so_until_the_record_tells_of_them() {
    let mut guard = Guard::default();
    guard.had_rows_before();
    guard.truncated(place(5, 1));
    guard.settle();
    let (a, b) = (r#"{"id":1,"v":"a"}"#, r#"{"id":1,"v":"b"}"#);
    let untouched = Chain::new(&guard).compare(Some(a), NOW).unwrap();
    assert_eq!(untouched.tell(true), "row is from before the guard: no record says what it was");
    assert_eq!(follow(&guard, &[(1, 1, "UPDATE", update(a, b)), (2, 1, "DELETE", delete(b))], None), [""; 0]);
    assert_eq!(follow(&guard, &[(1, 1, "UPDATE", update(a, b)), (2, 1, "DELETE", delete(a))], None).len(), 1);
    // An unknown row leaves the key after another came.
    assert_eq!(follow(&guard, &[(6, 1, "INSERT", insert(b))], Some(b)), [""; 0]);
    let steps = [(1, 1, "UPDATE", insert(b)), (1, 2, "UPDATE", delete(a)), (2, 1, "DELETE", delete(b))];
    assert_eq!(follow(&guard, &steps, None), [""; 0]);
    // After TRUNCATE there is none.
    assert_eq!(follow(&guard, &[(6, 1, "UPDATE", update(a, b))], Some(b)).len(), 1);
    assert_eq!(follow(&guard, &[(1, 1, "INSERT", insert(a))], None), [""; 0]);
    assert_eq!(follow(&guard, &[(1, 1, "INSERT", insert(a))], Some(a)).len(), 1);
}

#[test]
fn what_was_erased_is_never_called_false() {
    let guard = Guard::default();
    let (a, b) = (r#"{"id":1,"v":"a"}"#, r#"{"id":1,"v":"b"}"#);
    let erased = Step::Change { old: None, new: None };
    let steps = [(1, 1, "INSERT", Step::Begin(None)), (2, 1, "UPDATE", update(a, b)), (3, 1, "UPDATE", erased)];
    assert_eq!(follow(&guard, &steps, Some(a)), [""; 0]);
    let steps = [steps[0], steps[1], (3, 1, "DELETE", Step::End(None)), (4, 1, "INSERT", insert(a))];
    assert_eq!(follow(&guard, &steps, Some(a)), [""; 0]);
    // What is known is held against what is known.
    assert_eq!(follow(&guard, &[steps[0], steps[1]], Some(a)).len(), 1);
}

#[test]
fn the_key_after_an_update_is_taken_from_the_image() {
    let moved = |key: &str, new: &str| moved_key(key, new);
    assert_eq!(moved(r#"{"id":1}"#, r#"{"v":2,"id":1}"#), None);
    assert_eq!(moved(r#"{"id":1}"#, r#"{"v":{"id":1},"id":2}"#).as_deref(), Some(r#"{"id":2}"#));
    let key = r#"{"b":"x","a\"":[1]}"#;
    assert_eq!(moved(key, r#"{"a\"":[1,2],"b":"x"}"#).as_deref(), Some(r#"{"b":"x","a\"":[1,2]}"#));
    // A key that grows is another key.
    assert_eq!(moved(r#"{"k":{"a":1}}"#, r#"{"k":{"a":1,"b":2}}"#).as_deref(), Some(r#"{"k":{"a":1,"b":2}}"#));
    assert_eq!((moved("{}", "{}"), moved("1", "2"), moved(r#"{"id":1}"#, r#"{"x":1}"#)), (None, None, None));
}

#[test]
fn changes_are_read_as_they_were_written() {
    let changes =
        vec![change(2, Some("a\"\\ü\u{1}"), None), change(3, None, Some("a")), change(9, Some("x"), Some("y"))];
    let mut json = Vec::new();
    write_changes(&changes, &mut json);
    let json = String::from_utf8(json).unwrap();
    assert!(json.ends_with(r#"[3,null,"a"],[9,"x","y"]]"#), "{json}");
    assert_eq!(parse_changes(&json), Some(changes));
    assert_eq!((parse_changes("{}"), parse_changes("[[1]]"), parse_changes("[]")), (None, None, Some(Vec::new())));
}

#[test]
fn a_name_that_may_change_without_a_write_is_not_compared() {
    let mut guard = Guard::default();
    guard.holds_names("relation");
    let (a, b) = (r#"{"id":1,"relation":"public.a","v":1}"#, r#"{"id":1,"relation":"public.b","v":1}"#);
    assert_eq!(follow(&guard, &[(1, 1, "INSERT", insert(a)), (2, 1, "DELETE", delete(b))], None), [""; 0]);
    assert_eq!(follow(&guard, &[(1, 1, "INSERT", insert(a))], Some(b)), [""; 0]);
    assert_eq!(follow(&guard, &[(1, 1, "INSERT", insert(a))], Some(&b.replace(":1}", ":2}"))).len(), 1);
}

#[test]
fn a_long_value_is_cut_in_the_message() {
    let guard = Guard::default();
    let long = format!(r#"{{"id":1,"v":"{}"}}"#, "ü".repeat(10_000));
    let found = follow(&guard, &[(1, 1, "INSERT", insert(&long))], Some(r#"{"id":1,"v":null}"#));
    assert!(found[0].len() < 500 && found[0].contains("… (20002 bytes), found null"), "{found:?}");
}

/// What is done to a table, and to one of its rows.
#[derive(Debug, Clone)]
enum Act {
    Insert(u8, u8),
    Update(u8, u8),
    Move(u8, u8),
    Delete(u8),
    Commit,
    Rename,
    Retype(u8),
    Anew,
    /// Past the gate.
    Tamper(u8, u8),
}

fn act(tampering: bool) -> impl Strategy<Value = Act> {
    let key = 0_u8..5;
    let honest = prop_oneof![
        4 => (key.clone(), any::<u8>()).prop_map(|(key, v)| Act::Insert(key, v)),
        4 => (key.clone(), any::<u8>()).prop_map(|(key, v)| Act::Update(key, v)),
        3 => (key.clone(), key.clone()).prop_map(|(from, to)| Act::Move(from, to)),
        2 => key.clone().prop_map(Act::Delete),
        4 => Just(Act::Commit),
        1 => Just(Act::Rename),
        1 => any::<u8>().prop_map(Act::Retype),
        1 => Just(Act::Anew),
    ];
    let tamper = (key, any::<u8>()).prop_map(|(key, v)| Act::Tamper(key, v));
    if tampering { prop_oneof![8 => honest, 1 => tamper].boxed() } else { honest.boxed() }
}

/// A table whose key is checked at the end of a transaction, and its record.
#[derive(Default)]
struct Table {
    guard: Guard,
    /// key, v, w; v is called by the number of renames, w by how often it was made anew.
    rows: Vec<(u8, u8, Option<u8>)>,
    names: (u32, u32),
    steps: BTreeMap<u8, Vec<(Place, &'static str, OwnedStep)>>,
    transaction: u64,
    n: u32,
    tampered: bool,
}

#[derive(Clone)]
struct OwnedStep(Option<String>, Option<String>, bool);

impl Table {
    fn image(&self, (key, v, w): (u8, u8, Option<u8>)) -> String {
        let w = w.map_or("null".to_owned(), |w| w.to_string());
        format!(r#"{{"id":{key},"v{}":{v},"w":{w}}}"#, self.names.0)
    }

    fn next(&mut self) -> Place {
        self.n += 1;
        place(self.transaction, self.n)
    }

    fn record(&mut self, key: u8, place: Place, action: &'static str, old: Option<String>, new: Option<String>) {
        self.steps.entry(key).or_default().push((place, action, OwnedStep(old, new, action == "BASELINE")));
    }

    fn commit(&mut self) {
        // What a deferred constraint would refuse is mended by deleting.
        let mut seen = Vec::new();
        for row in self.rows.clone() {
            if seen.contains(&row.0) {
                let at = self.rows.iter().position(|other| *other == row).unwrap();
                self.rows.remove(at);
                let (place, image) = (self.next(), self.image(row));
                self.record(row.0, place, "DELETE", Some(image), None);
            }
            seen.push(row.0);
        }
        (self.transaction, self.n) = (self.transaction + 1, 0);
    }

    fn again(&mut self) {
        for row in self.rows.clone() {
            let (place, image) = (self.next(), self.image(row));
            self.record(row.0, place, "BASELINE", None, Some(image));
        }
    }

    fn act(&mut self, act: &Act) {
        let at = |rows: &[(u8, u8, Option<u8>)], key: u8| rows.iter().position(|row| row.0 == key);
        match *act {
            Act::Insert(key, v) => {
                let row = (key, v, Some(v));
                self.rows.push(row);
                let (place, image) = (self.next(), self.image(row));
                self.record(key, place, "INSERT", None, Some(image));
            }
            Act::Update(key, v) => {
                let Some(at) = at(&self.rows, key) else { return };
                let (place, old) = (self.next(), self.image(self.rows[at]));
                self.rows[at].1 = v;
                let new = self.image(self.rows[at]);
                self.record(key, place, "UPDATE", Some(old), Some(new));
            }
            Act::Move(from, to) => {
                let Some(at) = at(&self.rows, from).filter(|_| from != to) else { return };
                let (place, old) = (self.next(), self.image(self.rows[at]));
                self.rows[at].0 = to;
                let new = self.image(self.rows[at]);
                self.record(from, place, "UPDATE", Some(old), None);
                self.record(to, place, "UPDATE", None, Some(new));
            }
            Act::Delete(key) => {
                let Some(at) = at(&self.rows, key) else { return };
                let (place, old) = (self.next(), self.image(self.rows[at]));
                self.rows.remove(at);
                self.record(key, place, "DELETE", Some(old), None);
            }
            Act::Commit => self.commit(),
            Act::Rename => {
                self.commit();
                let (before, after) = (format!("v{}", self.names.0), format!("v{}", self.names.0 + 1));
                self.names.0 += 1;
                let place = self.next();
                self.guard.changed(place, vec![change(2, Some(&before), Some(&after))]);
            }
            Act::Retype(by) => {
                self.commit();
                let place = self.next();
                self.guard.changed(place, vec![change(3, Some("w"), Some("w"))]);
                self.rows.iter_mut().for_each(|row| row.2 = row.2.map(|w| w.wrapping_add(by)));
                self.again();
            }
            Act::Anew => {
                self.commit();
                let place = self.next();
                self.guard.changed(place, vec![change(3, Some("w"), None), change(4, None, Some("w"))]);
                self.rows.iter_mut().for_each(|row| row.2 = None);
            }
            Act::Tamper(key, v) => {
                self.commit();
                match at(&self.rows, key) {
                    Some(at) if v == 0 => drop(self.rows.remove(at)),
                    Some(at) if self.rows[at].1 != v => self.rows[at].1 = v,
                    Some(_) => return,
                    None => self.rows.push((key, v, None)),
                }
                self.tampered = true;
            }
        }
    }

    fn problems(mut self) -> Vec<String> {
        self.commit();
        self.guard.settle();
        let mut problems = Vec::new();
        for key in 0..5 {
            let mut chain = Chain::new(&self.guard);
            for (place, action, OwnedStep(old, new, is_state)) in self.steps.get(&key).into_iter().flatten() {
                let step = match (old, new) {
                    (Some(old), Some(new)) => update(old, new),
                    (Some(old), None) => delete(old),
                    (None, Some(new)) if *is_state => state(new, true),
                    (None, new) => Step::Begin(new.as_deref()),
                };
                chain.step(*place, action, step, &mut problems);
            }
            chain.finish(&mut problems);
            let present = self.rows.iter().find(|row| row.0 == key).map(|row| self.image(*row));
            problems.extend(chain.compare(present.as_deref(), NOW));
        }
        problems.iter().map(|problem| problem.tell(true)).collect()
    }
}

proptest! {
    #[test]
    fn an_honest_record_always_fits(acts in proptest::collection::vec(act(false), 0..60)) {
        let mut table = Table::default();
        acts.iter().for_each(|act| table.act(act));
        prop_assert_eq!(table.problems(), Vec::<String>::new());
    }

    /// One change past the gate, and any honest writes before and after: it is named, unless it was undone past the gate.
    #[test]
    fn whatever_is_done_past_the_gate_is_named(
        before in proptest::collection::vec(act(false), 0..30), key in 0_u8..5, v in any::<u8>(),
        after in proptest::collection::vec(act(false), 0..30),
    ) {
        let mut table = Table::default();
        before.iter().for_each(|act| table.act(act));
        table.act(&Act::Tamper(key, v));
        let tampered = table.tampered;
        after.iter().for_each(|act| table.act(act));
        prop_assert_eq!(!table.problems().is_empty(), tampered);
    }

    #[test]
    fn nothing_that_an_image_can_be_makes_it_panic(
        images in proptest::collection::vec("[{}\\[\\]\",:0-9a\\\\ ]{0,20}", 1..8), acts in proptest::collection::vec(0_u8..4, 8),
        tampered in proptest::collection::vec(act(true), 0..30),
    ) {
        let mut guard = Guard::default();
        guard.changed(place(1, 3), vec![change(1, Some("a"), None), change(2, None, Some("a"))]);
        guard.settle();
        let mut chain = Chain::new(&guard);
        let mut problems = Vec::new();
        for (n, (image, act)) in images.iter().zip(acts).enumerate() {
            let step = [insert(image), delete(image), update(image, &images[0]), state(image, true)][usize::from(act)];
            chain.step(place(1, n as u32), "X", step, &mut problems);
            let _ = (members(image), moved_key(image, &images[0]), parse_changes(image));
        }
        chain.finish(&mut problems);
        chain.compare(images.first().map(String::as_str), NOW);
        let mut table = Table::default();
        tampered.iter().for_each(|act| table.act(act));
        table.problems();
    }
}
