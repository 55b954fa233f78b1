//! A program as data: what is run, what the shrinker takes away, what is printed.
//!
//! Owns the tree of a program and its psql form. Everything that can be taken away without breaking the grammar around it
//! is an item of a list: transactions, statements, steps, rows, clauses, columns. Never knows what the SQL means: a
//! program from which something was removed that something else needs fails on both sides alike.

use super::value::TYPES;
use std::fmt::Write as _;

/// SQL text with parts that can be taken away.
#[derive(Clone, Debug, Default)]
pub struct Text(Vec<Piece>);

#[derive(Clone, Debug)]
enum Piece {
    Fixed(String),
    List(List),
}

#[derive(Clone, Debug)]
struct List {
    items: Vec<Text>,
    separator: &'static str,
    /// So many must stay.
    least: usize,
}

impl<T: Into<String>> From<T> for Text {
    fn from(fixed: T) -> Self {
        Text(vec![Piece::Fixed(fixed.into())])
    }
}

impl Text {
    /// Adds text.
    #[must_use]
    pub fn then(mut self, fixed: impl Into<String>) -> Self {
        self.0.push(Piece::Fixed(fixed.into()));
        self
    }

    /// Adds other text, with its lists.
    #[must_use]
    pub fn with(mut self, other: impl Into<Text>) -> Self {
        self.0.extend(other.into().0);
        self
    }

    /// Adds a list of which at least one item must stay.
    #[must_use]
    pub fn list<T: Into<Text>>(self, separator: &'static str, items: impl IntoIterator<Item = T>) -> Self {
        self.items(separator, 1, items.into_iter().map(Into::into).collect())
    }

    /// Adds text that may be taken away.
    #[must_use]
    pub fn optional(self, item: impl Into<Text>) -> Self {
        self.items("", 0, vec![item.into()])
    }

    fn items(mut self, separator: &'static str, least: usize, items: Vec<Text>) -> Self {
        self.0.push(Piece::List(List { items, separator, least }));
        self
    }

    /// The SQL.
    #[must_use]
    pub fn render(&self) -> String {
        let mut sql = String::new();
        self.render_into(&mut sql);
        sql
    }

    fn render_into(&self, sql: &mut String) {
        for piece in &self.0 {
            match piece {
                Piece::Fixed(text) => sql.push_str(text),
                Piece::List(list) => {
                    for (index, item) in list.items.iter().enumerate() {
                        if index > 0 {
                            sql.push_str(list.separator);
                        }
                        item.render_into(sql);
                    }
                }
            }
        }
    }

    fn visit(&mut self, visitor: &mut Visitor) {
        for piece in &mut self.0 {
            if let Piece::List(list) = piece {
                visitor.list(&mut list.items, list.least);
                for item in &mut list.items {
                    item.visit(visitor);
                }
            }
        }
    }
}

/// One thing sent to the server.
#[derive(Clone, Debug)]
pub enum Step {
    /// SQL as one simple query: one statement, or several that are sent together.
    Sql(Text),
    /// COPY … FROM STDIN with its data.
    Copy(String, Text),
}

/// Several steps that belong together, such as PREPARE and EXECUTE.
#[derive(Clone, Debug)]
pub struct Statement {
    /// What the tally counts it under.
    pub kind: &'static str,
    /// What is sent, in order.
    pub steps: Vec<Step>,
}

/// How a transaction runs its statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each statement is a transaction of its own.
    Autocommit,
    /// After an error the rest fails.
    Block,
    /// As psql's ON_ERROR_ROLLBACK: a savepoint around each statement.
    KeepGoing,
}

/// How a block ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// COMMIT
    Commit,
    /// COMMIT AND CHAIN, then COMMIT: the second transaction is empty
    CommitAndChain,
    /// ROLLBACK
    Rollback,
    /// PREPARE TRANSACTION, COMMIT PREPARED
    CommitPrepared,
    /// PREPARE TRANSACTION, ROLLBACK PREPARED
    RollbackPrepared,
}

impl End {
    /// The statements that end the block.
    #[must_use]
    pub fn statements(self, gid: &str) -> Vec<String> {
        let prepare = format!("PREPARE TRANSACTION '{gid}'");
        match self {
            End::Commit => vec!["COMMIT".into()],
            End::CommitAndChain => vec!["COMMIT AND CHAIN".into(), "COMMIT".into()],
            End::Rollback => vec!["ROLLBACK".into()],
            End::CommitPrepared => vec![prepare, format!("COMMIT PREPARED '{gid}'")],
            End::RollbackPrepared => vec![prepare, format!("ROLLBACK PREPARED '{gid}'")],
        }
    }
}

/// A transaction, or statements each of which is one.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// How it runs.
    pub mode: Mode,
    /// BEGIN with its options; not used under [`Mode::Autocommit`].
    pub begin: String,
    /// What it does.
    pub statements: Vec<Statement>,
    /// How it ends; not used under [`Mode::Autocommit`].
    pub end: End,
}

/// One step of making the tables.
#[derive(Clone, Debug)]
pub enum Setup {
    /// Must succeed.
    Ddl(Text),
    /// Rows that are there before the first transaction; may fail.
    Rows(Text),
    /// The table, quoted, is guarded on the one side and watched on the other.
    Guard {
        /// The table, quoted.
        table: String,
        /// TRUNCATE is recorded.
        record_truncate: bool,
    },
}

/// A program.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// What it was made from.
    pub seed: u64,
    /// Makes the tables.
    pub setup: Vec<Setup>,
    /// What is done to them.
    pub transactions: Vec<Transaction>,
}

/// Walks over every list of a program in a fixed order.
enum Visitor {
    /// Collects (length, items that must stay).
    Collect(Vec<(usize, usize)>),
    /// Takes `count` items from position `from` out of the list with that many lists before it.
    Remove {
        lists_before: usize,
        from: usize,
        count: usize,
    },
    Done,
}

impl Visitor {
    fn list<T>(&mut self, items: &mut Vec<T>, least: usize) {
        match self {
            Visitor::Collect(lists) => lists.push((items.len(), least)),
            Visitor::Remove { lists_before: 0, from, count } => {
                let from = (*from).min(items.len());
                let to = (from + *count).min(items.len());
                items.drain(from..to);
                *self = Visitor::Done;
            }
            Visitor::Remove { lists_before, .. } => *lists_before -= 1,
            Visitor::Done => {}
        }
    }
}

impl Program {
    fn visit(&mut self, visitor: &mut Visitor) {
        visitor.list(&mut self.transactions, 0);
        for transaction in &mut self.transactions {
            visitor.list(&mut transaction.statements, 0);
        }
        visitor.list(&mut self.setup, 0);
        for transaction in &mut self.transactions {
            for statement in &mut transaction.statements {
                visitor.list(&mut statement.steps, 1);
                for step in &mut statement.steps {
                    let (Step::Sql(text) | Step::Copy(_, text)) = step;
                    text.visit(visitor);
                }
            }
        }
        for step in &mut self.setup {
            if let Setup::Ddl(text) | Setup::Rows(text) = step {
                text.visit(visitor);
            }
        }
    }

    /// Every list of the program: how many items it has, and how many must stay.
    #[must_use]
    pub fn lists(&self) -> Vec<(usize, usize)> {
        let mut visitor = Visitor::Collect(Vec::new());
        self.clone().visit(&mut visitor);
        match visitor {
            Visitor::Collect(lists) => lists,
            _ => Vec::new(),
        }
    }

    /// The program without some items of one list.
    #[must_use]
    pub fn without(&self, list: usize, from: usize, count: usize) -> Program {
        let mut smaller = self.clone();
        smaller.visit(&mut Visitor::Remove { lists_before: list, from, count });
        smaller
    }

    /// The program with a plainer transaction in place of one: the shrinker tries each.
    #[must_use]
    pub fn plainer(&self) -> Vec<Program> {
        let mut programs = Vec::new();
        for (index, transaction) in self.transactions.iter().enumerate() {
            let mut with = |plainer: Transaction| {
                let mut program = self.clone();
                program.transactions[index] = plainer;
                programs.push(program);
            };
            if transaction.mode != Mode::Autocommit {
                with(Transaction { mode: Mode::Autocommit, ..transaction.clone() });
                if transaction.end != End::Commit {
                    with(Transaction { end: End::Commit, ..transaction.clone() });
                }
                if transaction.mode != Mode::Block {
                    with(Transaction { mode: Mode::Block, ..transaction.clone() });
                }
                if transaction.begin != "BEGIN" {
                    with(Transaction { begin: "BEGIN".into(), ..transaction.clone() });
                }
            }
        }
        programs
    }

    /// How many statements its transactions have.
    #[must_use]
    pub fn statements(&self) -> usize {
        self.transactions.iter().map(|transaction| transaction.statements.len()).sum()
    }

    /// A script for psql that does to guarded tables what the program does, in a new database.
    #[must_use]
    pub fn script(&self) -> String {
        let mut script = format!(
            "-- seed {}\nCREATE EXTENSION IF NOT EXISTS agd;\n{}\nCREATE SCHEMA g;\nSET search_path = g, public;\n",
            self.seed,
            TYPES.trim()
        );
        for step in &self.setup {
            let sql = match step {
                Setup::Ddl(text) | Setup::Rows(text) => text.render(),
                Setup::Guard { table, record_truncate } => guard_sql(table, *record_truncate),
            };
            let _ = writeln!(script, "{sql};");
        }
        for transaction in &self.transactions {
            script.push('\n');
            if transaction.mode != Mode::Autocommit {
                let switch = if transaction.mode == Mode::KeepGoing { "on" } else { "off" };
                let _ = writeln!(script, "\\set ON_ERROR_ROLLBACK {switch}\n{};", transaction.begin);
            }
            for statement in &transaction.statements {
                for step in &statement.steps {
                    match step {
                        Step::Sql(text) => {
                            let _ = writeln!(script, "{};", text.render().replace(SENT_TOGETHER, " \\;\n"));
                        }
                        Step::Copy(sql, data) => {
                            let data = data.render();
                            let line_end = if data.is_empty() || data.ends_with('\n') { "" } else { "\n" };
                            let _ = writeln!(script, "{sql};\n{data}{line_end}\\.");
                        }
                    }
                }
            }
            if transaction.mode != Mode::Autocommit {
                for sql in transaction.end.statements("equivalence") {
                    let _ = writeln!(script, "{sql};");
                }
            }
        }
        script
    }
}

/// Stands between statements that are sent as one simple query.
pub const SENT_TOGETHER: &str = "; /* and */ ";

/// How a table of the guarded side is guarded.
#[must_use]
pub fn guard_sql(table: &str, record_truncate: bool) -> String {
    let option = if record_truncate { ", on_truncate => 'record'" } else { "" };
    format!("SELECT agd.guard('{}'{option})", table.replace('\'', "''"))
}
