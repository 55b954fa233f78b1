//! Steps 7 and 8: verification inside the database, before and after a superuser's attack.

use crate::failure::{Failure, Result, expect, expect_equal};
use crate::scene::{Scene, Session, column, first};
use crate::schema::{GUARDED, expect_intact};
use crate::terminal::grouped;
use crate::traffic::first_order;
use std::time::Instant;

/// The account whose balance the attacker changes.
const ACCOUNT: i32 = 4711;

/// The event that the attacker deletes.
pub struct Victim {
    pub event_id: String,
    /// Its log, and its place there.
    pub origin: String,
    pub leaf: u64,
    /// The size at which that log was published.
    pub published_size: u64,
}

/// Step 7: everything holds.
pub fn all_holds(scene: &Scene<'_>, leaves: i64) -> Result<()> {
    let terminal = scene.terminal;
    terminal
        .say("The same checks inside the database, by a login that may verify everything and read no row's contents.");
    scene.session("postgres")?.run("CREATE ROLE auditor LOGIN IN ROLE agd_auditor;")?;
    let mut session = scene.session("auditor")?;
    let start = Instant::now();
    let found = session.query("SELECT origin, check_name, ok, entries FROM agd.verify();")?;
    let seconds = start.elapsed().as_secs_f64();
    let (mut table, mut verified, mut all_ok) = (Vec::new(), 0, true);
    for row in &found {
        let (origin, name, ok): (String, String, bool) = (column(row, 0)?, column(row, 1)?, column(row, 2)?);
        let entries: i64 = column(row, 3)?;
        verified += if name == "events" { entries } else { 0 };
        all_ok &= ok;
        table.push(vec![origin, name, ok.to_string(), grouped(entries)]);
    }
    terminal.table(&["origin", "check_name", "ok", "entries"], &table);
    if !all_ok {
        return Err(Failure::new("every check to hold", format!("{:?}", failed_checks(&mut session)?)));
    }

    expect_equal("entries verified", leaves, verified)?;

    terminal.say(&format!(
        "{} events recomputed in {seconds:.1} s. And the tables: each row that is there against its last record.",
        grouped(verified)
    ));
    session.pause();
    session.told(
        "SELECT * FROM agd.verify_table('orders');
         -- and the other five; no rows: reconciled",
    );
    let mut table = Vec::new();
    for name in GUARDED {
        let start = Instant::now();
        let problems = problems(&mut session, name)?;
        if let Some(problem) = problems.first() {
            return Err(Failure::new(format!("{name} to be what its log says"), problem.join(" ")));
        }
        let rows: i64 = scene.session("postgres")?.value(&format!("SELECT count(*) FROM {name}"))?;
        let seconds = format!("{:.1}", start.elapsed().as_secs_f64());
        table.push(vec![name.to_owned(), grouped(rows), grouped(problems.len()), seconds]);
    }
    terminal.table(&["table", "rows", "problems", "seconds"], &table);
    Ok(())
}

/// The checks that fail when everything is looked at: log, check, detail. Shown.
fn failed_checks(session: &mut Session<'_>) -> Result<Vec<[String; 3]>> {
    session
        .query(
            "SELECT origin, check_name, detail
               FROM agd.verify(full_scan => true) WHERE NOT ok;",
        )?
        .iter()
        .map(|row| Ok([column(row, 0)?, column(row, 1)?, column(row, 2)?]))
        .collect()
}

/// What `agd.verify_table` says of a table: key, problem.
fn problems(session: &mut Session<'_>, table: &str) -> Result<Vec<Vec<String>>> {
    let sql = format!("SELECT row_key::text, problem FROM agd.verify_table('{table}')");
    session.rows(&sql, &[])?.iter().map(|row| Ok(vec![column(row, 0)?, column(row, 1)?])).collect()
}

/// Step 8: a superuser changes a row and deletes an event, and puts everything back as it looked. Both are named.
pub fn attack(scene: &Scene<'_>) -> Result<Victim> {
    let terminal = scene.terminal;
    let mut attacker = scene.session("postgres")?;
    terminal.say("Whoever owns the server can do anything in it. The straight way is barred even to a superuser:");
    attacker.refused("ALTER TABLE pgbench_accounts DISABLE TRIGGER ALL;", "AG002")?;
    terminal.say(
        "But the catalogs are his. He tells them that the table has no triggers, gives an account a million, and puts \
         everything back just as it was.",
    );
    attacker.run(&format!(
        "BEGIN;
         SET LOCAL allow_system_table_mods = on;
         UPDATE pg_class SET relhastriggers = false WHERE oid = 'pgbench_accounts'::regclass;
         UPDATE pgbench_accounts SET abalance = abalance + 1000000 WHERE aid = {ACCOUNT};
         UPDATE pg_class SET relhastriggers = true WHERE oid = 'pgbench_accounts'::regclass;
         COMMIT;"
    ))?;

    terminal.say("Then a piece of history: of what happened to this order line of acme's, the second event is to go.");
    attacker.pause();
    let victim = choose_victim(scene, &mut attacker)?;
    let (xact, n) = victim
        .event_id
        .split_once('-')
        .ok_or_else(|| Failure::new("an event id <xact_id>-<n>", victim.event_id.clone()))?;
    attacker.pause();
    attacker.run(&format!(
        "BEGIN;
         SET LOCAL allow_system_table_mods = on;
         UPDATE pg_class SET relhastriggers = false WHERE oid = 'agd.event'::regclass;
         DELETE FROM agd.event WHERE xact_id = '{xact}' AND n = {n};
         UPDATE pg_class SET relhastriggers = true WHERE oid = 'agd.event'::regclass;
         COMMIT;"
    ))?;
    drop(attacker);

    terminal.say("Nothing looks off: every guard is as it should be.");
    let mut auditor = scene.session("auditor")?;
    expect_intact(&mut auditor)?;
    auditor.told("SELECT * FROM agd.coverage() WHERE NOT intact;");
    terminal.table(&["relation"], &[]);
    expect_row_named(scene, &mut auditor)?;
    expect_event_named(scene, &mut auditor, &victim)?;
    Ok(victim)
}

/// An event of acme's that is not the last about its row, so that only the log can miss it.
fn choose_victim(scene: &Scene<'_>, session: &mut Session<'_>) -> Result<Victim> {
    let order = first_order(0);
    let history = session.query(&format!(
        "SELECT event_id, action, new->>'quantity' AS quantity, new->>'price' AS price,
                  session_user_name, leaf_index
           FROM agd.history('order_lines', '{{\"tenant\": \"acme\", \"order_no\": {order}, \"line\": 1}}');"
    ))?;
    let mut table = Vec::new();
    for row in &history {
        let text = |number| column::<Option<String>>(row, number).map(Option::unwrap_or_default);
        let leaf: Option<i64> = column(row, 5)?;
        let leaf = leaf.ok_or_else(|| Failure::new("every event integrated", "an event without a leaf"))?;
        table.push(vec![text(0)?, text(1)?, text(2)?, text(3)?, text(4)?, leaf.to_string()]);
    }
    scene.terminal.table(&["event_id", "action", "quantity", "price", "session_user_name", "leaf_index"], &table);
    let [_, second, _, ..] = history.as_slice() else {
        return Err(Failure::new("at least three events of that order line", table.len().to_string()));
    };
    let event_id: String = column(second, 0)?;
    let rows = session.rows(
        "SELECT origin, max(tree_size) FROM agd.anchors
          WHERE tenant = 'acme' AND published_at IS NOT NULL GROUP BY origin",
        &[],
    )?;
    let published = first(&rows)?;
    Ok(Victim {
        event_id,
        origin: column(published, 0)?,
        leaf: column::<i64>(second, 5)?.cast_unsigned(),
        published_size: column::<i64>(published, 1)?.cast_unsigned(),
    })
}

/// Of all rows of all guarded tables, `agd.verify_table` names the changed one, and the one whose record has a gap.
fn expect_row_named(scene: &Scene<'_>, session: &mut Session<'_>) -> Result<()> {
    scene.terminal.say("The rows tell another story. Of all rows of the six tables, agd.verify_table() names two: the one that was changed, and the one \
         whose next event starts from an image that no record left.");
    session.told(
        "SELECT row_key, problem FROM agd.verify_table('pgbench_accounts');
         -- and the other five",
    );
    let mut found = Vec::new();
    for name in GUARDED {
        for problem in problems(session, name)? {
            found.push([vec![name.to_owned()], problem].concat());
        }
    }
    scene.terminal.table(&["table", "row_key", "problem"], &found);
    let seen = format!("{found:?}");
    let [gap, named] = found.as_slice() else {
        return Err(Failure::new("two problems in all guarded tables", seen));
    };
    let row = ["pgbench_accounts", &format!("{{\"aid\": {ACCOUNT}}}")];
    let holds = named[..2] == row && named[2].contains("abalance");
    expect("the changed row to be named, and its column abalance", holds, &seen)?;
    let holds = gap[0] == "order_lines" && gap[2].contains("starts from an image that no record left");
    expect("the row of the deleted event to be named", holds, seen)
}

/// Of all events of all logs, `agd.verify` names the deleted one: its leaf and its transaction lack it.
fn expect_event_named(scene: &Scene<'_>, session: &mut Session<'_>, victim: &Victim) -> Result<()> {
    scene.terminal.say(
        "And so do the leaves. Of all events of the three logs, agd.verify() names one. full_scan, because by \
         itself it goes on from where it ended the last time.",
    );
    let failed = failed_checks(session)?;
    let rows: Vec<Vec<String>> = failed.iter().map(|check| check.to_vec()).collect();
    scene.terminal.table(&["origin", "check_name", "detail"], &rows);
    let seen = format!("{failed:?}");
    let (own, others): (Vec<_>, Vec<_>) = failed.iter().partition(|check| check[0] == victim.origin);
    let named = |detail: &str| detail.contains(&format!("leaf {}", victim.leaf)) && !event_ids(detail).is_empty();
    let in_its_log = matches!(own.as_slice(), [[_, name, detail]] if name == "events" && named(detail));
    expect("one check of the deleted event's log to fail: events, with the event's leaf", in_its_log, &seen)?;
    // What the database as a whole lacks is the same event.
    expect("no other log to fail", others.iter().all(|check| check[0] == "(database)"), &seen)?;
    let ids: Vec<&str> = failed.iter().flat_map(|check| event_ids(&check[2])).collect();
    expect("the deleted event to be named, and no other", ids.iter().all(|id| *id == victim.event_id), &seen)?;
    scene.terminal.say(
        "That row and that event, and nothing else: the other logs, every tile, every anchor and all other rows hold. \
         (A superuser would be shown the values as well; an auditor is not.)",
    );
    Ok(())
}

/// Everything in a text that has the form of an event id, `<xact_id>-<n>`.
fn event_ids(text: &str) -> Vec<&str> {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    text.split(|c: char| !c.is_ascii_digit() && c != '-')
        .filter(|word| word.split_once('-').is_some_and(|(xact, n)| number(xact) && number(n)))
        .collect()
}
