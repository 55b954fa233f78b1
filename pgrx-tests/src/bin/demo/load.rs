//! Steps 4 and 5: a real load, and what it left in the log.

use crate::failure::{Failure, Result, expect, expect_equal};
use crate::scene::{DATABASE, Scene, Session, column, first};
use crate::terminal::grouped;
use crate::traffic::{self, Account};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Connections of pgbench.
const CLIENTS: i64 = 8;
/// Connections of each tenant.
const CONNECTIONS: i32 = 2;

/// Step 4: pgbench and both tenants at once, for some seconds. Returns what they say they wrote.
pub fn run(scene: &Scene<'_>, seconds: u32) -> Result<Account> {
    let terminal = scene.terminal;
    terminal.say(&format!(
        "pgbench's TPC-B from {CLIENTS} connections, and both tenants at work over {CONNECTIONS} connections each: \
         orders placed, changed, deleted; ON CONFLICT; savepoints and transactions rolled back. \
         -n because pgbench would TRUNCATE pgbench_history first, which its guard refuses.",
    ));
    let (clients, time) = (CLIENTS.to_string(), seconds.to_string());
    let arguments = ["-n", "-c", &clients, "-j", "2", "-T", &time];
    terminal.command(&format!("pgbench {} {DATABASE}", arguments.join(" ")));

    let mut session = scene.session("postgres")?;
    let stop = AtomicBool::new(false);
    let (bench, tenants, most_waiting) = std::thread::scope(|scope| -> Result<_> {
        let shops: Vec<_> = ["acme_app", "globex_app"]
            .into_iter()
            .map(|role| {
                let connections = (0..CONNECTIONS).map(|connection| {
                    let (config, stop) = (scene.cluster.config(role, DATABASE), &stop);
                    scope.spawn(move || traffic::work(&config, connection, stop))
                });
                (role, connections.collect::<Vec<_>>())
            })
            .collect();
        let watching = scope.spawn(|| watch_waiting(scene, &stop));
        let bench = scene.cluster.pgbench(DATABASE, &arguments);
        stop.store(true, Ordering::Relaxed);
        let gone = |_| Failure::new("every connection to end in order", "a thread that panicked");
        let mut tenants = Vec::new();
        for (role, connections) in shops {
            let mut sum = Account::default();
            for connection in connections {
                sum.add(&connection.join().map_err(gone)??);
            }
            tenants.push((role, sum));
        }
        Ok((bench?, tenants, watching.join().map_err(gone)??))
    })?;
    const STAT: &str = "SELECT events_recorded, events_voided, events_waiting FROM agd.stat";
    let at_the_end = session.rows(STAT, &[])?;
    expect("pgbench succeeds", bench.success, &bench.stderr)?;
    let transactions: i64 = printed(&bench.stdout, "number of transactions actually processed: ")?;
    expect_equal(
        "failed transactions of pgbench",
        0,
        printed::<i64>(&bench.stdout, "number of failed transactions: ")?,
    )?;
    let tps: f64 = printed(&bench.stdout, "tps = ")?;
    let latency: f64 = printed(&bench.stdout, "latency average = ")?;

    let mut account = Account::default();
    let mut figures = vec![(
        "pgbench",
        format!("{} transactions, {tps:.0} tps, {latency:.1} ms each on average", grouped(transactions)),
    )];
    for (role, sum) in &tenants {
        account.add(sum);
        let text = format!(
            "{} transactions, {} rows written, {} conflicts, {} rows rolled back",
            grouped(sum.transactions),
            grouped(sum.total()),
            grouped(sum.conflicts),
            grouped(sum.rolled_back)
        );
        figures.push((role, text));
    }
    let conflicts = account.conflicts;
    for (table, action) in [
        ("pgbench_accounts", "UPDATE"),
        ("pgbench_branches", "UPDATE"),
        ("pgbench_tellers", "UPDATE"),
        ("pgbench_history", "INSERT"),
    ] {
        account.rows.insert((table, action), transactions);
    }
    let row = first(&at_the_end)?;
    let (recorded, voided, waiting): (i64, i64, i64) = (column(row, 0)?, column(row, 1)?, column(row, 2)?);
    terminal.figures(&figures);
    session.told(&format!("{STAT};"));
    terminal.table(
        &["events_recorded", "events_voided", "events_waiting"],
        &[[recorded, voided, waiting].map(grouped).to_vec()],
    );
    terminal.say(&format!(
        "Recorded counts the baseline and the load. Voided is one for each conflict: a record goes with the write that \
         did not happen. Waiting is what the worker had yet to put into the log as pgbench ended; {} at most while it \
         ran.",
        grouped(most_waiting)
    ));
    expect_equal("events voided: one for each INSERT that met ON CONFLICT", conflicts, voided)?;
    expect("the tenants did some work", tenants.iter().all(|(_, sum)| sum.total() > 0), "a tenant that wrote nothing")?;

    each_tenant_tries_the_other(scene)?;
    Ok(account)
}

/// The most events that ever waited for the worker, looked at twice a second.
fn watch_waiting(scene: &Scene<'_>, stop: &AtomicBool) -> Result<i64> {
    let mut session = scene.session("postgres")?;
    let mut most = 0;
    while !stop.load(Ordering::Relaxed) {
        most = most.max(session.value("SELECT events_waiting FROM agd.stat")?);
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(most)
}

/// A number that pgbench printed after `label`.
fn printed<T: std::str::FromStr>(output: &str, label: &str) -> Result<T> {
    let rest = output.lines().find_map(|line| line.strip_prefix(label));
    rest.and_then(|rest| rest.split([' ', '/']).next()?.parse().ok())
        .ok_or_else(|| Failure::new(format!("a line `{label}…` from pgbench"), output))
}

fn each_tenant_tries_the_other(scene: &Scene<'_>) -> Result<()> {
    scene.terminal.say(
        "Each tenant tries the other's rows once. To read and to change, they do not exist. To add one is refused, by \
         the gate itself, whatever row-level security says.",
    );
    for (role, other) in [("acme_app", "globex"), ("globex_app", "acme")] {
        let mut session = scene.session(role)?;
        let seen = session.query(&format!("SELECT count(*) FROM orders WHERE tenant = '{other}';"))?;
        let seen: i64 = column(first(&seen)?, 0)?;
        scene.terminal.answer(&seen.to_string());
        expect_equal(&format!("rows of {other} that {role} sees"), 0, seen)?;
        let changed = session.write(&format!("UPDATE orders SET status = 'mine' WHERE tenant = '{other}';"))?;
        expect_equal(&format!("rows of {other} that {role} changes"), 0, changed)?;
        session.refused(
            &format!("INSERT INTO orders (tenant, order_no, customer) VALUES ('{other}', 7, 'me');"),
            "42501",
        )?;
    }
    Ok(())
}

/// Step 5: one record for one write, and an anchor at every 256 leaves. Returns the leaves and the anchors of all logs.
pub fn anchors(scene: &Scene<'_>, account: &Account) -> Result<(i64, i64)> {
    let terminal = scene.terminal;
    let mut session = scene.session("postgres")?;
    terminal.say(
        "One record is one write: rows written, as pgbench and the tenants counted them by themselves, against events \
         in the log. A TPC-B transaction is three UPDATEs and an INSERT.",
    );
    let counted = session.query(
        "SELECT relation, action, count(*) FROM agd.events
          WHERE relation LIKE 'public.%' AND action IN ('INSERT', 'UPDATE', 'DELETE')
          GROUP BY relation, action;",
    )?;
    let mut events: Vec<(String, i64)> = Vec::new();
    for row in &counted {
        let (relation, action): (String, String) = (column(row, 0)?, column(row, 1)?);
        events.push((format!("{} {action}", relation.trim_start_matches("public.")), column(row, 2)?));
    }
    let table: Vec<Vec<String>> = account
        .rows
        .iter()
        .map(|((table, action), rows)| {
            let name = format!("{table} {action}");
            let events = events.iter().find(|(event, _)| *event == name).map_or(0, |(_, count)| *count);
            vec![(*table).to_owned(), (*action).to_owned(), grouped(rows), grouped(events)]
        })
        .collect();
    terminal.table(&["table", "action", "rows written", "events"], &table);
    for row in &table {
        if let [table, action, rows, events] = row.as_slice() {
            expect_equal(&format!("events of {table}, {action}"), rows, events)?;
        }
    }
    expect_equal("kinds of events", account.rows.len(), events.len())?;

    terminal.say(
        "Each log is anchored at every multiple of 256 leaves, because it got there and not because somebody called. \
         agd.anchor() takes up the last events and anchors the tails as well; by itself the worker does that within \
         agd.anchor_max_age (10 s), and where it just did, no rows come back.",
    );
    let written = session.query("SELECT origin, tree_size FROM agd.anchor();")?;
    let written = written.iter().map(|row| Ok(vec![column(row, 0)?, grouped(column::<i64>(row, 1)?)]));
    terminal.table(&["origin", "tree_size"], &written.collect::<Result<Vec<_>>>()?);
    let totals = anchors_per_log(scene, &mut session)?;

    terminal
        .say("An anchor is a checkpoint, in the format of C2SP tlog-checkpoint: the log's name, its size, its root.");
    let newest = session.query(
        "SELECT checkpoint FROM agd.anchors
          WHERE tenant = 'acme' ORDER BY tree_size DESC LIMIT 1;",
    )?;
    let checkpoint: String = column(first(&newest)?, 0)?;
    expect_equal("lines of a checkpoint", 3, checkpoint.lines().count())?;
    terminal.answer(&checkpoint);
    Ok(totals)
}

fn anchors_per_log(scene: &Scene<'_>, session: &mut Session<'_>) -> Result<(i64, i64)> {
    let logs = session.query(
        "SELECT origin, max(tree_size) AS leaves, count(*) AS anchors,
                  count(*) FILTER (WHERE tree_size % 256 = 0) AS at_256s
           FROM agd.anchors GROUP BY origin ORDER BY origin;",
    )?;
    let mut events: HashMap<Option<String>, i64> = HashMap::new();
    for row in session.rows("SELECT tenant, count(*) FROM agd.events GROUP BY tenant", &[])? {
        events.insert(column(&row, 0)?, column(&row, 1)?);
    }
    let (mut table, mut totals) = (Vec::new(), (0, 0));
    for row in &logs {
        let origin: String = column(row, 0)?;
        let (leaves, anchors, full): (i64, i64, i64) = (column(row, 1)?, column(row, 2)?, column(row, 3)?);
        let tenant = origin.rsplit_once("/t/").map(|(_, tenant)| tenant.to_owned());
        let events = events.get(&tenant).copied().unwrap_or_default();
        expect_equal(&format!("leaves of {origin}: one for each of its events"), events, leaves)?;
        expect_equal(&format!("anchors of {origin} at multiples of 256"), leaves / 256, full)?;
        let cells = [events, leaves, anchors, full, leaves / 256].map(grouped);
        table.push([vec![origin], cells.to_vec()].concat());
        totals = (totals.0 + leaves, totals.1 + anchors);
    }
    expect_equal("logs: the platform's and two tenants'", 3, table.len())?;
    scene.terminal.table(&["log", "events", "leaves", "anchors", "at 256s", "leaves / 256"], &table);
    Ok(totals)
}
