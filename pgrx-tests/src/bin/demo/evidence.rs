//! Steps 6 and 9: the evidence outside the database.

use crate::attack::Victim;
use crate::failure::{Failure, Result, expect_equal};
use crate::scene::{DATABASE, LOG_NAME, Scene};
use crate::terminal::grouped;
use agd_core::{TILE_WIDTH, TileCoord, bundle};
use agd_live_tests::Stop;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Instant;

const STORE: &str = "store";
const POLICY: &str = "policy.txt";

/// Step 6: publish, and prove it all with no server running. Returns the verdict, and the leaves of all logs.
pub fn publish(scene: &Scene<'_>) -> Result<(String, i64)> {
    let terminal = scene.terminal;
    terminal.say(
        "The key lives outside the database and never enters it. The policy says whom to trust: it is all that an \
         auditor needs besides the files.",
    );
    let vkey = scene.agd_ok(&["keygen", "--out", "log.key", "--name", LOG_NAME])?;
    let policy = format!("log {}\nquorum none\n", vkey.trim());
    io("writing the policy", fs::write(scene.folder.join(POLICY), &policy))?;
    io("making the store", fs::create_dir(scene.folder.join(STORE)))?;
    terminal.command(&format!("cat {POLICY}"));
    terminal.answer(&policy);

    terminal.say(
        "Publishing needs a login with the rights of agd_publisher and no more. The store is a folder here; in \
         production it lies on storage that nobody can overwrite (WORM). Each object is written once; only the newest \
         checkpoint of each log is replaced.",
    );
    terminal.say("The database believes what is reported of publications when the registered key has signed it.");
    let register = format!("SELECT agd.register_log_key('{}');", vkey.trim());
    let mut session = scene.session("postgres")?;
    session.run(&register)?;
    // That was an event, too.
    session.quiet("SELECT count(*) FROM agd.anchor()")?;
    let anchors: i64 = session.value("SELECT count(*) FROM agd.anchors")?;
    let leaves: i64 = session
        .value("SELECT sum(l.size)::bigint FROM (SELECT max(tree_size) AS size FROM agd.anchors GROUP BY origin) l")?;
    drop(session);
    scene.session("postgres")?.run("CREATE ROLE carrier LOGIN IN ROLE agd_publisher;")?;
    let database = format!("host={} user=carrier dbname={DATABASE}", scene.cluster.socket_dir().display());
    let start = Instant::now();
    let said = scene.agd_ok(&["publish", "--once", "--database", &database, "--store", STORE, "--key", "log.key"])?;
    let seconds = start.elapsed().as_secs_f64();
    terminal.answer(&said);
    let (files, bytes) = io("counting the store's files", count_files(&scene.folder.join(STORE)))?;
    let mut session = scene.session("postgres")?;
    let published: i64 = session.value("SELECT count(published_at) FROM agd.anchors")?;
    expect_equal("anchors with a receipt in agd.anchors", anchors, published)?;
    terminal.figures(&[
        (
            "store",
            format!(
                "{} files, {:.1} MB, written in {seconds:.1} s; digests and headers, no row data",
                grouped(files),
                bytes as f64 / 1e6
            ),
        ),
        (
            "agd.anchors",
            format!("{} of {} with a receipt: published_at, published_to", grouped(published), grouped(anchors)),
        ),
    ]);
    drop(session);

    terminal.say("Now the server is stopped. The auditor has the store and the policy, and asks nobody.");
    scene.cluster.stop(Stop::Fast)?;
    let (report, verdict) = verify(scene)?;
    terminal.answer(&tail(&report, 7));
    let wanted = format!("OK: 3 logs, {} entries, {} checkpoints: all holds", grouped(leaves), grouped(anchors));
    expect_equal("the verdict", &wanted, &verdict)?;
    scene.cluster.start()?;
    terminal.say(
        "Every entry hashes to its leaf, every leaf to the root of every later checkpoint, every checkpoint is signed, \
         and each tenant's checkpoint stands in the platform's log. The server runs again.",
    );
    Ok((verdict, leaves))
}

/// `agd verify` on the store: the whole report, and its last line.
fn verify(scene: &Scene<'_>) -> Result<(String, String)> {
    let report = scene.agd_ok(&["verify", STORE, "--policy", POLICY])?;
    let verdict = report.trim_end().lines().last().unwrap_or_default().to_owned();
    Ok((report, verdict))
}

/// Step 9: the store still proves what it proved, and still holds the entry of the event that was deleted.
pub fn still_there(scene: &Scene<'_>, verdict: &str, victim: &Victim) -> Result<()> {
    let terminal = scene.terminal;
    terminal.say("What was done in the database did not reach the store.");
    let (_, now) = verify(scene)?;
    terminal.answer(&now);
    expect_equal("the verdict, as it was before the attack", verdict, &now)?;

    terminal.say(&format!(
        "And what was deleted is there: entry {} of the log {}, as it was signed. It says who did what, when and why; \
         of the row only salted digests.",
        grouped(victim.leaf),
        victim.origin
    ));
    let entry = published_entry(&scene.folder.join(STORE), victim)?;
    let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    expect_equal("the event_id of that entry", &victim.event_id, &text("event_id"))?;
    expect_equal("the action of that entry", "UPDATE", &text("action"))?;
    let names = [
        "event_id",
        "tenant",
        "action",
        "relation",
        "committed_at",
        "session_user_name",
        "cause",
        "row_key",
        "old",
        "new",
    ];
    terminal.figures(&names.map(|name| (name, text(name))));
    Ok(())
}

/// The entry of an event in the store: one file to read, as any tlog-tiles client would.
fn published_entry(store: &Path, victim: &Victim) -> Result<Value> {
    let what = "the entry of the deleted event in the store";
    let tile = TileCoord::in_tree(0, victim.leaf / TILE_WIDTH, victim.published_size)
        .ok_or_else(|| Failure::new(what, "its leaf is beyond the published size"))?;
    let file = store.join(&victim.origin).join(tile.entries_path());
    let bytes = io(&format!("reading {}", file.display()), fs::read(&file))?;
    let entries = bundle::parse(&bytes, tile.width).map_err(|e| Failure::new(what, e.to_string()))?;
    let position = usize::try_from(victim.leaf % TILE_WIDTH).unwrap_or(usize::MAX);
    let entry = entries.get(position).ok_or_else(|| Failure::new(what, "a bundle that ends before it"))?;
    serde_json::from_slice(entry).map_err(|e| Failure::new(what, e.to_string()))
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    let rest = &all[all.len().saturating_sub(lines)..];
    if rest.len() < all.len() { format!("…\n{}", rest.join("\n")) } else { rest.join("\n") }
}

fn count_files(folder: &Path) -> std::io::Result<(u64, u64)> {
    let mut sum = (0, 0);
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let (files, bytes) = if metadata.is_dir() { count_files(&entry.path())? } else { (1, metadata.len()) };
        sum = (sum.0 + files, sum.1 + bytes);
    }
    Ok(sum)
}

fn io<T>(doing: &str, result: std::io::Result<T>) -> Result<T> {
    result.map_err(|e| Failure::new(format!("{doing} to succeed"), e.to_string()))
}
