//! What all steps share: the server, a folder for key, policy and store, sessions that show the SQL they run, and the
//! `agd` command line.

use crate::failure::{Failure, Result, expect, server_message};
use crate::terminal::Terminal;
use agd_live_tests::Cluster;
use postgres::types::{FromSql, ToSql};
use postgres::{Client, Row};
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The database of the demo.
pub const DATABASE: &str = "shop";
/// The name of its logs: the platform log's origin. A tenant's log is `shop.example/t/<tenant>`.
pub const LOG_NAME: &str = "shop.example";

/// The server, the folder and the command line.
pub struct Scene<'t> {
    pub terminal: &'t Terminal,
    pub cluster: Cluster,
    pub folder: &'t Path,
    cli: PathBuf,
}

impl<'t> Scene<'t> {
    /// Starts the server.
    pub fn new(terminal: &'t Terminal, folder: &'t Path, cli: PathBuf) -> Result<Self> {
        // Durable, as a server in earnest: a commit waits for the disk.
        let cluster = Cluster::builder().durable().setting("shared_buffers", "256MB").start()?;
        Ok(Self { terminal, cluster, folder, cli })
    }

    /// A session as `role`, shown with psql's prompt.
    pub fn session(&self, role: &str) -> Result<Session<'t>> {
        self.session_in(role, DATABASE)
    }

    /// The same in any database.
    pub fn session_in(&self, role: &str, database: &str) -> Result<Session<'t>> {
        let client = self.cluster.client(role, database)?;
        // psql's %# is # for a superuser. Others are shown by name, because who it is matters here.
        let prompt = if role == "postgres" { format!("{database}=# ") } else { format!("{role}@{database}=> ") };
        Ok(Session { client, prompt, terminal: self.terminal, follows: false })
    }

    /// Runs `agd` in the folder and shows the command; its output and exit code.
    pub fn agd(&self, arguments: &[&str]) -> Result<(String, Option<i32>)> {
        let shown: Vec<String> = arguments
            .iter()
            .map(|argument| if argument.contains(' ') { format!("'{argument}'") } else { (*argument).into() })
            .collect();
        self.terminal.command(&format!("agd {}", shown.join(" ")));
        let output = Command::new(&self.cli)
            .args(arguments)
            .current_dir(self.folder)
            .env_remove("PGPASSWORD")
            .output()
            .map_err(|e| Failure::new(format!("{} runs", self.cli.display()), e.to_string()))?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok((text, output.status.code()))
    }

    /// The same for a command that must succeed.
    pub fn agd_ok(&self, arguments: &[&str]) -> Result<String> {
        let (text, code) = self.agd(arguments)?;
        let what = format!("`agd {}` ends with exit code 0", arguments.first().copied().unwrap_or_default());
        expect(
            &what,
            code == Some(0),
            format!("{}\n{text}", code.map_or("a signal".to_owned(), |code| format!("exit code {code}"))),
        )?;
        Ok(text)
    }
}

/// One connection.
pub struct Session<'t> {
    client: Client,
    prompt: String,
    terminal: &'t Terminal,
    /// Whether the last thing shown was SQL of this session.
    follows: bool,
}

impl Session<'_> {
    fn show(&mut self, sql: &str) {
        self.terminal.sql(&self.prompt, &without_signatures(sql), self.follows);
        self.follows = true;
    }

    /// Shows SQL that is run at a better moment.
    pub fn told(&mut self, sql: &str) {
        self.show(sql);
        self.pause();
    }

    /// What is shown next begins a new paragraph.
    pub fn pause(&mut self) {
        self.follows = false;
    }

    /// Shows SQL and runs it.
    pub fn run(&mut self, sql: &str) -> Result<()> {
        self.show(sql);
        self.quiet(sql)
    }

    /// Runs SQL that a reader learns nothing from.
    pub fn quiet(&mut self, sql: &str) -> Result<()> {
        self.client.batch_execute(sql).map_err(|e| unexpected(sql, &e))
    }

    /// Shows a query; its rows.
    pub fn query(&mut self, sql: &str) -> Result<Vec<Row>> {
        self.show(sql);
        self.pause();
        self.rows(sql, &[])
    }

    /// Shows an INSERT, UPDATE or DELETE and its command tag; how many rows it wrote.
    pub fn write(&mut self, sql: &str) -> Result<u64> {
        self.show(sql);
        self.pause();
        let rows = self.client.execute(sql, &[]).map_err(|e| unexpected(sql, &e))?;
        let command = sql.split(' ').next().unwrap_or_default();
        self.terminal.answer(&format!("{command} {rows}"));
        Ok(rows)
    }

    /// The rows of a query that is not shown.
    pub fn rows(&mut self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        self.client.query(sql, values).map_err(|e| unexpected(sql, &e))
    }

    /// The only value of a query that is not shown.
    pub fn value<T: for<'a> FromSql<'a>>(&mut self, sql: &str) -> Result<T> {
        let row = self.client.query_one(sql, &[]).map_err(|e| unexpected(sql, &e))?;
        column(&row, 0)
    }

    /// Shows a statement that must be refused with `state`, and the refusal.
    pub fn refused(&mut self, sql: &str, state: &str) -> Result<()> {
        self.show(sql);
        self.pause();
        match self.client.batch_execute(sql) {
            Ok(()) => Err(Failure::new(format!("SQLSTATE {state} for {sql}"), "no error")),
            Err(error) if error.code().is_some_and(|code| code.code() == state) => {
                self.terminal.answer(&server_message(&error));
                Ok(())
            }
            Err(error) => Err(Failure::new(format!("SQLSTATE {state} for {sql}"), server_message(&error))),
        }
    }

    /// Asks again until `sql` gives true. For what the worker does in its own time.
    pub fn wait_for(&mut self, what: &str, limit: Duration, sql: &str) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !self.value::<bool>(sql)? {
            expect(what, Instant::now() < deadline, format!("still not so after {limit:?}"))?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

fn unexpected(sql: &str, error: &postgres::Error) -> Failure {
    Failure::new(format!("no error from {}", sql.trim()), server_message(error))
}

/// One column of a row.
pub fn column<T: for<'a> FromSql<'a>>(row: &Row, number: usize) -> Result<T> {
    row.try_get(number).map_err(|e| Failure::new("an answer of the expected type", e.to_string()))
}

/// The first row of an answer that must have one.
pub fn first(rows: &[Row]) -> Result<&Row> {
    rows.first().ok_or_else(|| Failure::new("an answer with a row", "no row"))
}

/// The `agd` program: `AGD_CLI`, else the one beside this program.
pub fn command_line() -> Result<PathBuf> {
    let beside = || Some(std::env::current_exe().ok()?.with_file_name("agd"));
    let named = std::env::var_os("AGD_CLI").map(PathBuf::from);
    let program = named.or_else(|| beside().filter(|path| path.is_file())).ok_or_else(|| {
        Failure::new(
            "AGD_CLI to name the agd program (`make demo` sets it)",
            "it is not set, and no agd beside this one",
        )
    })?;
    fs::canonicalize(&program)
        .map_err(|e| Failure::new(format!("AGD_CLI={} to be a program", program.display()), e.to_string()))
}

/// A new folder under the system's folder for temporary files, for this user alone.
pub fn scratch_folder() -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("agd-demo-{}", std::process::id()));
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&folder)
        .and_then(|()| fs::canonicalize(&folder))
        .map_err(|e| Failure::new(format!("a new folder {}", folder.display()), e.to_string()))
}

/// The SQL with the beginning of each signature: nobody reads its 128 digits.
fn without_signatures(sql: &str) -> String {
    let mut pieces = sql.split("'\\x");
    let mut shown = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        match piece.split_at_checked(128) {
            Some((digits, rest)) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                shown += &format!("'\\x{}…{rest}", &digits[..16]);
            }
            _ => shown += &format!("'\\x{piece}"),
        }
    }
    shown
}
