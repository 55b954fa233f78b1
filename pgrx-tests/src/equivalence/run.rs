//! Runs a program on both sides and says where they differ.

use super::ledger::{self, Table};
use super::script::{Mode, Program, Setup, Statement, Step, guard_sql};
use super::side::{Answer, ask, send, send_sql};
use crate::{Error, Result};
use postgres::{Client, Config, NoTls};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How often statements of each kind succeeded and failed.
pub type Tally = BTreeMap<&'static str, (u64, u64)>;

/// How a run ended.
#[derive(Debug)]
pub enum Verdict {
    /// Both sides agree, and the record is the write.
    Same(Tally),
    /// They do not: what, and where.
    Different(String),
    /// The program's tables could not be made.
    Unusable(String),
}

/// What is done behind the gate's back, so that a test sees that it is found.
#[derive(Clone, Debug, Default)]
pub struct Sabotage {
    /// On the guarded side, when its tables are guarded.
    pub after_setup: Option<String>,
    /// Before the sides are compared at the end.
    pub before_check: Option<String>,
}

/// Two sessions in one database: schema `g` is guarded, `u` is its twin.
pub struct Arena {
    config: Config,
    guarded: Client,
    twin: Client,
    /// Keeps old row versions in their places while a program runs: where they are cleaned away, which depends on what
    /// else the server does, rows written later stand elsewhere, and queries without ORDER BY meet them in another order.
    keeper: Client,
    gid: String,
    sabotage: Sabotage,
}

/// A server that crashed is back within this.
const PATIENCE: Duration = Duration::from_secs(60);

fn session(config: &Config, schema: &str) -> Result<Client> {
    let mut config = config.clone();
    config.options(&format!(
        "-c search_path={schema},public -c client_min_messages=error -c statement_timeout=120s -c TimeZone=UTC"
    ));
    let deadline = Instant::now() + PATIENCE;
    loop {
        match config.connect(NoTls) {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() > deadline => return Err(Error::doing("connecting", format!("{error:?}"))),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

impl Arena {
    /// Sessions of a superuser in a database made ready with [`ledger::WATCHER`]. `gid`: a name for prepared
    /// transactions that nobody else uses.
    pub fn new(config: Config, gid: &str, sabotage: Sabotage) -> Result<Self> {
        let (guarded, twin, keeper) = (session(&config, "g")?, session(&config, "u")?, session(&config, "public")?);
        Ok(Arena { config, guarded, twin, keeper, gid: gid.to_owned(), sabotage })
    }

    /// Runs a program on fresh schemas.
    pub fn run(&mut self, program: &Program) -> Result<Verdict> {
        ask(&mut self.keeper, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")?;
        let verdict = self.attempt(program);
        if self.guarded.is_closed() || self.twin.is_closed() || self.keeper.is_closed() {
            self.guarded = session(&self.config, "g")?;
            self.twin = session(&self.config, "u")?;
            self.keeper = session(&self.config, "public")?;
        } else {
            ask(&mut self.keeper, "ROLLBACK")?;
        }
        self.clean_up(!matches!(verdict, Ok(Verdict::Same(_))))
            .map_err(|error| Error::new(format!("cleaning up after {verdict:?}: {error}\n{}", program.script())))?;
        verdict
    }

    /// Both schemas away, sessions as new.
    fn clean_up(&mut self, in_the_middle: bool) -> Result<()> {
        if in_the_middle {
            for (side, client) in [("g", &mut self.guarded), ("u", &mut self.twin)] {
                ask(client, "ROLLBACK")?;
                let gid = format!("{}{side}", self.gid);
                let left = ask(client, &format!("SELECT FROM pg_prepared_xacts WHERE gid = '{gid}'"))?;
                if left.iter().any(|rows| !rows.is_empty()) {
                    ask(client, &format!("ROLLBACK PREPARED '{gid}'"))?;
                }
            }
        }
        ask(
            &mut self.guarded,
            "RESET ALL; SELECT agd.unguard(relation, 'the program is over') FROM agd.guarded_table; DROP SCHEMA IF EXISTS g CASCADE",
        )?;
        ask(&mut self.guarded, "DISCARD ALL")?;
        ask(&mut self.twin, "RESET ALL; DROP SCHEMA IF EXISTS u, seen CASCADE; CREATE SCHEMA seen")?;
        ask(&mut self.twin, "DISCARD ALL")?;
        Ok(())
    }

    fn attempt(&mut self, program: &Program) -> Result<Verdict> {
        // Everything before has a smaller number, everything of this program a larger one.
        let since = ask(&mut self.guarded, "SELECT pg_current_xact_id()")?;
        let since = since
            .into_iter()
            .flatten()
            .flatten()
            .flatten()
            .next()
            .ok_or_else(|| Error::new("the server tells no transaction id"))?;
        if let Some(verdict) = self.set_up(program)? {
            return Ok(verdict);
        }
        let tables = ledger::tables(&mut self.guarded)?;
        if let Some(sql) = &self.sabotage.after_setup {
            ask(&mut self.guarded, sql)?;
        }
        let mut tally = Tally::new();
        if let Some(difference) = self.compare_rows(&tables, "after the setup")? {
            return Ok(Verdict::Different(difference));
        }
        for (number, transaction) in program.transactions.iter().enumerate() {
            let place = format!("transaction {}", number + 1);
            let block = transaction.mode != Mode::Autocommit;
            if block && let Some(difference) = self.both(&transaction.begin, &place) {
                return Ok(Verdict::Different(difference));
            }
            for (position, statement) in transaction.statements.iter().enumerate() {
                let place = format!("{place}, statement {} ({})", position + 1, statement.kind);
                match self.statement(statement, transaction.mode, &place) {
                    Ok(succeeded) => count(&mut tally, statement.kind, succeeded),
                    Err(difference) => return Ok(Verdict::Different(difference)),
                }
            }
            if block {
                let (left, right) = (
                    transaction.end.statements(&format!("{}g", self.gid)),
                    transaction.end.statements(&format!("{}u", self.gid)),
                );
                for (left, right) in left.iter().zip(&right) {
                    let answers = (send_sql(&mut self.guarded, left), send_sql(&mut self.twin, right));
                    let kind = left.split('\'').next().unwrap_or_default().trim_end();
                    count(&mut tally, end_kind(kind), answers.0.is_done());
                    if let Some(difference) = compare(&same_gid(answers.0), &same_gid(answers.1)) {
                        return Ok(Verdict::Different(format!("{place}, {left}: {difference}")));
                    }
                }
            }
            if let Some(difference) = self.compare_rows(&tables, &format!("after {place}"))? {
                return Ok(Verdict::Different(difference));
            }
        }
        if let Some(sql) = &self.sabotage.before_check {
            ask(&mut self.guarded, sql)?;
            if let Some(difference) = self.compare_rows(&tables, "at the end")? {
                return Ok(Verdict::Different(difference));
            }
        }
        Ok(match ledger::differences(&mut self.guarded, &tables, &since)? {
            Some(difference) => Verdict::Different(difference),
            None => Verdict::Same(tally),
        })
    }

    /// Makes the tables. Some: they could not be made, or not on one side.
    fn set_up(&mut self, program: &Program) -> Result<Option<Verdict>> {
        ask(&mut self.guarded, "CREATE SCHEMA g")?;
        ask(&mut self.twin, "CREATE SCHEMA u")?;
        let before = twin_needs_before_trigger(program);
        // (guarded side, twin): sent together until rows come.
        let mut waiting = (String::new(), String::new());
        // The twin's tables are watched when all their columns are there.
        let mut watch = String::new();
        let mut steps = program.setup.iter().peekable();
        while let Some(step) = steps.next() {
            match step {
                Setup::Ddl(text) => {
                    let sql = text.render();
                    waiting.0 += &format!("{sql};\n");
                    waiting.1 += &format!("{sql};\n");
                }
                Setup::Guard { table, record_truncate } => {
                    waiting.0 += &format!("{};\n", guard_sql(table, *record_truncate));
                    watch += &format!(
                        "SELECT public.watch('{}', {before}, {record_truncate});\n",
                        table.replace('\'', "''")
                    );
                }
                Setup::Rows(text) => {
                    let sql = text.render();
                    let answers = (send_sql(&mut self.guarded, &sql), send_sql(&mut self.twin, &sql));
                    if let Some(difference) = compare(&answers.0, &answers.1) {
                        return Ok(Some(Verdict::Different(format!("setup, {sql}: {difference}"))));
                    }
                }
            }
            if matches!(steps.peek(), None | Some(Setup::Rows(_))) && !waiting.0.is_empty() {
                waiting.1 += &std::mem::take(&mut watch);
                let answers = (send_sql(&mut self.guarded, &waiting.0), send_sql(&mut self.twin, &waiting.1));
                for answer in [answers.0, answers.1] {
                    if !answer.is_done() {
                        return Ok(Some(Verdict::Unusable(format!("{answer:?}"))));
                    }
                }
                waiting = (String::new(), String::new());
            }
        }
        Ok(None)
    }

    /// Runs a statement on both sides. Ok: whether it succeeded; Err: how they differ.
    fn statement(&mut self, statement: &Statement, mode: Mode, place: &str) -> std::result::Result<bool, String> {
        let own_savepoint =
            mode == Mode::KeepGoing && !matches!(statement.kind, "SAVEPOINT" | "RELEASE" | "ROLLBACK TO");
        let mut succeeded = true;
        for step in &statement.steps {
            if own_savepoint {
                self.both("SAVEPOINT keep_going", place).map_or(Ok(()), Err)?;
            }
            let answers = (send(&mut self.guarded, step), send(&mut self.twin, step));
            if let Some(difference) = compare(&answers.0, &answers.1) {
                return Err(format!("{place}: {difference}"));
            }
            let done = answers.0.is_done();
            succeeded &= done;
            if own_savepoint {
                let end = if done { "RELEASE keep_going" } else { "ROLLBACK TO keep_going" };
                self.both(end, place).map_or(Ok(()), Err)?;
            }
        }
        Ok(succeeded)
    }

    /// Some: how the answers differ.
    fn both(&mut self, sql: &str, place: &str) -> Option<String> {
        let answers = (send_sql(&mut self.guarded, sql), send_sql(&mut self.twin, sql));
        compare(&answers.0, &answers.1).map(|difference| format!("{place}, {sql}: {difference}"))
    }

    /// Every column of every row, generated ones too.
    fn compare_rows(&mut self, tables: &[Table], place: &str) -> Result<Option<String>> {
        let sql: String = tables.iter().map(|table| format!("SELECT t::text FROM {} t;", table.name)).collect();
        if sql.is_empty() {
            return Ok(None);
        }
        let answers = (send_sql(&mut self.guarded, &sql), send_sql(&mut self.twin, &sql));
        let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
        Ok(compare(&answers.0, &answers.1).map(|difference| format!("rows of {names:?} {place}: {difference}")))
    }
}

/// Whether the twin needs a BEFORE trigger that does nothing.
///
/// With any BEFORE trigger PostgreSQL copies rows in one by one, and finds out that a row was changed by the same command
/// before it checks constraints. Without one it checks the rows of a whole batch before it inserts the first, and checks
/// constraints before it finds out. Either way the statement is right; which error comes first differs.
fn twin_needs_before_trigger(program: &Program) -> bool {
    let writes_twice = |statement: &Statement| {
        matches!(statement.kind, "WITH that writes" | "functions that write")
            || statement.steps.iter().any(|step| matches!(step, Step::Copy(..)))
    };
    program.transactions.iter().flat_map(|transaction| &transaction.statements).any(writes_twice)
        || program.setup.iter().any(|step| matches!(step, Setup::Ddl(text) if text.render().contains(" TRIGGER ")))
}

fn count(tally: &mut Tally, kind: &'static str, succeeded: bool) {
    let counts = tally.entry(kind).or_default();
    if succeeded {
        counts.0 += 1;
    } else {
        counts.1 += 1;
    }
}

fn end_kind(sql: &str) -> &'static str {
    ["COMMIT AND CHAIN", "COMMIT PREPARED", "ROLLBACK PREPARED", "PREPARE TRANSACTION", "COMMIT", "ROLLBACK"]
        .into_iter()
        .find(|kind| *kind == sql)
        .unwrap_or("another end")
}

/// The sides have names of their own for a prepared transaction.
fn same_gid(answer: Answer) -> Answer {
    match answer {
        Answer::Refused { state, constraint, message } if message.contains("prepared transaction with identifier") => {
            Answer::Refused { state, constraint, message: message.split('"').next().unwrap_or_default().to_owned() }
        }
        answer => answer,
    }
}

fn compare(guarded: &Answer, twin: &Answer) -> Option<String> {
    match (guarded, twin) {
        (Answer::Lost(why), _) => Some(format!("the guarded side lost its session: {why}")),
        (_, Answer::Lost(why)) => Some(format!("the twin lost its session: {why}")),
        (left, right) if left == right => None,
        (left, right) => Some(format!("guarded: {left:?}; twin: {right:?}")),
    }
}
