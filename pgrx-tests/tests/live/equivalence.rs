//! A guarded table behaves as its unguarded twin, and its record is exactly what was written: programs made from seeds.
//!
//! `AGD_PROGRAMS` programs are run, from seed `AGD_SEED` on; `AGD_SEED` alone runs that one. A program on which the two
//! sides differ is shrunk and printed as a script for psql.

use agd_live_tests::Cluster;
use agd_live_tests::equivalence::{Campaign, Failure, Report, Sabotage, program};
use std::io::Write;
use std::process::Stdio;
use std::sync::OnceLock;

/// Programs of an ordinary run, and its first seed.
const PROGRAMS: u64 = 700;
const FIRST_SEED: u64 = 1;

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        Cluster::builder()
            .setting("max_prepared_transactions", "20")
            .setting("synchronous_commit", "off")
            .start()
            .unwrap()
    })
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

fn run(campaign: &Campaign) -> Result<Report, Failure> {
    campaign.run(cluster()).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn programs_on_a_guarded_table_and_on_its_twin() {
    let seed = number("AGD_SEED");
    let programs = number("AGD_PROGRAMS").unwrap_or(if seed.is_some() { 1 } else { PROGRAMS });
    let campaign = Campaign {
        first_seed: seed.unwrap_or(FIRST_SEED),
        programs,
        connections: 4.min(programs),
        sabotage: Sabotage::default(),
    };
    let report = run(&campaign).unwrap_or_else(|failure| {
        panic!(
            "seed {}: the guarded side and its twin differ.\n{}\n\nAgain with AGD_SEED={}. Shrunk, for psql:\n\n{}",
            failure.seed, failure.difference, failure.seed, failure.script
        )
    });
    println!("{:>34} {:>9} {:>9}", "kind of statement", "succeeded", "failed");
    for (kind, (succeeded, failed)) in &report.tally {
        println!("{kind:>34} {succeeded:>9} {failed:>9}");
    }
    assert_eq!(report.programs, programs);
    // A generator whose statements only fail, or one that lost a kind of statement, tests nothing.
    if programs >= PROGRAMS {
        let succeeded = |kind: &str| report.tally.get(kind).map_or(0, |counts| counts.0);
        let rare: Vec<&str> = MUST_SUCCEED.iter().copied().filter(|kind| succeeded(kind) < 10).collect();
        assert!(rare.is_empty(), "succeeded fewer than ten times: {rare:?}");
        let (done, failed) = report.tally.values().fold((0, 0), |sum, counts| (sum.0 + counts.0, sum.1 + counts.1));
        assert!(done > failed && failed > done / 10, "{done} statements succeeded, {failed} failed");
    }
}

/// Kinds of statements that an ordinary run has on every version.
const MUST_SUCCEED: &[&str] = &[
    "COMMIT",
    "COMMIT AND CHAIN",
    "COMMIT PREPARED",
    "COPY",
    "COPY csv",
    "DELETE",
    "DELETE USING",
    "DO",
    "DO with COMMIT",
    "INSERT DEFAULT VALUES",
    "INSERT SELECT",
    "INSERT VALUES",
    "MERGE",
    "ON CONFLICT DO NOTHING",
    "ON CONFLICT DO UPDATE",
    "PREPARE TRANSACTION",
    "PREPARE and EXECUTE",
    "RELEASE",
    "ROLLBACK",
    "ROLLBACK PREPARED",
    "ROLLBACK TO",
    "SAVEPOINT",
    "TRUNCATE",
    "UPDATE",
    "UPDATE FROM",
    "UPDATE of id",
    "UPDATE of k",
    "UPDATE that moves rows",
    "WITH that writes",
    "cursor",
    "functions that write",
    "sent together",
];

#[test]
fn a_program_is_printed_as_a_script_that_psql_runs() {
    let major: u32 = {
        let sql = "SELECT current_setting('server_version_num')::int / 10000";
        cluster().superuser().unwrap().query_one(sql, &[]).unwrap().get::<_, i32>(0).try_into().unwrap()
    };
    let (mut events, mut errors) = (0, 0);
    for seed in FIRST_SEED..FIRST_SEED + 12 {
        let script = program(seed, major).script();
        let database = cluster().database("script").unwrap();
        let mut psql = cluster()
            .psql_command(database.name(), "postgres")
            .args(["-q", "-v", "VERBOSITY=sqlstate"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = psql.stdin.take().unwrap();
        let writer = std::thread::spawn({
            let script = script.clone();
            move || stdin.write_all(script.as_bytes()).unwrap()
        });
        let output = psql.wait_with_output().unwrap();
        writer.join().unwrap();
        // Statements fail, as they are meant to; none because it was cut in the wrong place. But of a COPY that is refused
        // at once psql takes the data for commands.
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(script.contains("FROM STDIN") || !said.contains("42601") && !said.contains('\\'), "{said}\n{script}");
        errors += said.matches("ERROR").count();
        let sql = "SELECT count(*) FROM agd.event WHERE action IN ('INSERT', 'UPDATE', 'DELETE')";
        events += database.connect().unwrap().query_one(sql, &[]).unwrap().get::<_, i64>(0);
    }
    assert!(events > 50 && errors > 10, "{events} events, {errors} errors");
}

// The comparison finds what it is there to find, and makes it small -----------------------------------------------------

/// Turns triggers off as `ALTER TABLE` does not let it be done; the second UPDATE has sessions read the triggers afresh.
fn without_trigger(name: &str, relations: &str) -> String {
    format!(
        "SET allow_system_table_mods = on;
         UPDATE pg_trigger SET tgenabled = 'D' WHERE tgname = '{name}' AND tgrelid IN (SELECT oid FROM pg_class WHERE {relations});
         UPDATE pg_class SET relhastriggers = relhastriggers WHERE {relations};"
    )
}

/// What is done to the record's own tables, behind the triggers that refuse it.
fn behind_the_record(sql: &str) -> String {
    let relations = "oid IN ('agd.event'::regclass, 'agd.transaction'::regclass)";
    format!("{} {sql}", without_trigger("refuse_write", relations))
}

/// The newest event of a write to a table that is still guarded.
const NEWEST: &str = "(xact_id, n) = (SELECT xact_id, n FROM agd.event JOIN agd.guarded_table USING (guard_id)
                                       WHERE action IN ('INSERT', 'UPDATE', 'DELETE')
                                       ORDER BY xact_id::text::numeric DESC, n DESC LIMIT 1)";

#[track_caller]
fn is_found(sabotage: Sabotage, needle: &str) {
    let campaign = Campaign { first_seed: FIRST_SEED, programs: 30, connections: 1, sabotage };
    let failure = run(&campaign).expect_err("nothing was found");
    assert!(failure.difference.contains(needle), "seed {}: {}", failure.seed, failure.difference);
    // One plain table, and one write to it: a row that is there at first, or a statement.
    let script = &failure.script;
    for (word, count) in [("CREATE TABLE", 1), ("PARTITION", 0), ("CREATE TRIGGER", 0), ("BEGIN", 0)] {
        assert_eq!(script.matches(word).count(), count, "{script}");
    }
    assert!(failure.program.statements() + script.matches("INSERT INTO").count() <= 2, "{script}");
}

#[test]
fn a_confirmation_that_is_turned_off_is_found_and_shrunk() {
    let after_setup = Some(without_trigger("~agd_confirm", "relnamespace = 'g'::regnamespace"));
    is_found(Sabotage { after_setup, before_check: None }, "do not replay");
}

#[test]
fn a_record_that_is_turned_off_is_found_and_shrunk() {
    // Without the confirmation, which would refuse what was not recorded.
    let after_setup = Some(format!(
        "{} {}",
        without_trigger("~agd_record", "relnamespace = 'g'::regnamespace"),
        without_trigger("~agd_confirm", "relnamespace = 'g'::regnamespace")
    ));
    is_found(Sabotage { after_setup, before_check: None }, "do not replay");
}

#[test]
fn a_write_to_one_side_alone_is_found_and_shrunk() {
    let sql = "DO $$ DECLARE t regclass; BEGIN
                 FOR t IN SELECT oid FROM pg_class WHERE relnamespace = 'u'::regnamespace AND relkind = 'r' LOOP
                   EXECUTE format('DELETE FROM %s WHERE ctid = (SELECT ctid FROM %1$s LIMIT 1)', t);
                 END LOOP; END $$";
    is_found(Sabotage { after_setup: None, before_check: Some(sql.into()) }, "at the end");
}

#[test]
fn an_event_that_is_gone_is_found_and_shrunk() {
    let sql = behind_the_record(&format!("DELETE FROM agd.event WHERE {NEWEST}"));
    is_found(Sabotage { after_setup: None, before_check: Some(sql) }, "do not count their events");
    // With the transaction's count set right.
    let sql = behind_the_record(&format!(
        "WITH gone AS (DELETE FROM agd.event WHERE {NEWEST} RETURNING xact_id),
              last AS (DELETE FROM agd.transaction t USING gone WHERE t.xact_id = gone.xact_id AND t.events = 1)
         UPDATE agd.transaction t SET events = t.events - 1 FROM gone WHERE t.xact_id = gone.xact_id AND t.events > 1"
    ));
    is_found(Sabotage { after_setup: None, before_check: Some(sql) }, "the log");
}

#[test]
fn an_event_too_many_is_found_and_shrunk() {
    // One that a replay does not notice: the row is updated to what it is.
    let sql = behind_the_record(
        "WITH added AS (
           INSERT INTO agd.event
           SELECT e.xact_id, e.n + 1, e.at, e.guard_id, e.tenant, 'UPDATE', e.relation, e.salt, e.row_key, e.new, e.new, e.body, e.role_name
             FROM agd.event e
                  JOIN agd.guarded_table g USING (guard_id)
            WHERE e.action = 'INSERT' AND NOT EXISTS (SELECT FROM agd.event l WHERE l.guard_id = e.guard_id AND (l.xact_id, l.n) > (e.xact_id, e.n))
            ORDER BY e.xact_id::text::numeric DESC, e.n DESC LIMIT 1 RETURNING xact_id)
         UPDATE agd.transaction t SET events = t.events + 1 FROM added WHERE t.xact_id = added.xact_id",
    );
    is_found(Sabotage { after_setup: None, before_check: Some(sql) }, "recorded and not written");
}
