//! One throw-away PostgreSQL server.

use crate::os::{self, RunAs};
use crate::scratch::Scratch;
use crate::{Error, Result, TestDb};
use postgres::{Client, Config, NoTls};
use rustix::process::Signal;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The bootstrap superuser of every cluster.
pub(crate) const SUPERUSER: &str = "postgres";
/// The socket's name carries a port number although nothing listens on TCP. Each cluster has a directory of its own.
pub(crate) const PORT: &str = "5432";
/// How long a start or a stop may take: long enough for crash recovery on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of the server's log shown with a failure.
const LOG_TAIL: usize = 40;

/// Defaults for every cluster. A later `setting` of the same name wins.
///
/// Workers and connections are plentiful because each database with the extension has a worker, and tests in one file
/// share a cluster.
const DEFAULTS: &[(&str, &str)] = &[
    ("listen_addresses", ""),
    ("shared_preload_libraries", "agd"),
    ("fsync", "off"),
    ("shared_buffers", "64MB"),
    ("max_connections", "100"),
    ("max_worker_processes", "64"),
    ("log_line_prefix", "%m [%p] %q%u@%d "),
    ("log_min_messages", "info"),
    ("autovacuum_naptime", "1h"),
];

/// How to stop a server: as `pg_ctl stop -m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Roll back what is open, write a checkpoint, stop.
    Fast,
    /// Stop at once; the next start goes through crash recovery.
    Immediate,
}

/// What a client program printed.
#[derive(Clone, Debug)]
pub struct Output {
    /// Whether the program's exit status was 0.
    pub success: bool,
    /// Everything on standard output.
    pub stdout: String,
    /// Everything on standard error.
    pub stderr: String,
}

/// Settings of a cluster to be.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    settings: Vec<(String, String)>,
    own_initdb: Option<Vec<String>>,
    bin: Option<PathBuf>,
    environment: Vec<(String, PathBuf)>,
}

impl Builder {
    /// Adds a line to `postgresql.conf`; later lines win, also over the defaults (`shared_preload_libraries` is `agd`).
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Real durability: `fsync = on`. Slower, and only of use where the operating system, not the server, would crash.
    #[must_use]
    pub fn durable(self) -> Self {
        self.setting("fsync", "on")
    }

    /// A data directory made by an `initdb` of its own, with these further options: another system identifier than any
    /// other cluster's.
    #[must_use]
    pub fn own_initdb(mut self, options: &[&str]) -> Self {
        self.own_initdb = Some(options.iter().map(|option| (*option).to_owned()).collect());
        self
    }

    /// The programs of another PostgreSQL than `AGD_PG_BIN`, with an `initdb` of its own.
    #[must_use]
    pub fn bin(mut self, bin: PathBuf) -> Self {
        self.bin = Some(bin);
        self.own_initdb(&[])
    }

    /// Sets a variable in the environment of the server's processes, at every start.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &Path) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Makes the cluster and starts its server.
    ///
    /// # Errors
    /// If `AGD_PG_BIN` is not set or names no PostgreSQL, or if the server does not start: then with the end of its log.
    pub fn start(self) -> Result<Cluster> {
        let bin = self.bin.map_or_else(pg_bin, |bin| existing_bin("the bin directory", &bin))?;
        let run_as = RunAs::detect()?;
        let scratch = Scratch::new(&bin, run_as)?;
        if let Some(options) = &self.own_initdb {
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            initdb(&bin, run_as, &scratch.path().join("data"), &options)?;
        } else {
            copy_template(&bin, run_as, &scratch.path().join("data"))?;
        }
        let mut cluster = Cluster::over(bin, run_as, scratch);
        cluster.environment = self.environment;
        cluster.configure_defaults()?;
        cluster.configure(self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
        cluster.start()?;
        Ok(cluster)
    }
}

/// A process of a server that is stopped until this is dropped.
#[must_use]
#[derive(Debug)]
pub struct Frozen {
    pid: u32,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It may be gone by now, with its server.
        os::signal(self.pid, Signal::CONT).ok();
    }
}

/// A running (or stopped, or killed) server with its data directory. Dropping it stops the server and removes everything.
///
/// Two clusters of one test process have the same system identifier: both data directories are copies of one `initdb`
/// (but see [`Builder::own_initdb`]).
pub struct Cluster {
    server: Mutex<Option<Child>>,
    pub(crate) bin: PathBuf,
    pub(crate) run_as: Option<RunAs>,
    environment: Vec<(String, PathBuf)>,
    // Last: its drop removes the directory, after the server was stopped.
    scratch: Scratch,
}

impl Cluster {
    /// A cluster with defaults fit for tests; see [`Builder`].
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn over(bin: PathBuf, run_as: Option<RunAs>, scratch: Scratch) -> Self {
        Self { server: Mutex::new(None), bin, run_as, environment: Vec::new(), scratch }
    }

    /// The directory of the server's unix socket: the `host` of a connection string.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Where the server's programs are: `AGD_PG_BIN`.
    #[must_use]
    pub fn bin_dir(&self) -> &Path {
        &self.bin
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    fn log_file(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    /// The last lines of the server's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.log_entries(|_| true))
    }

    /// The last lines of the server's log that are about `database`, or about no session at all and no routine matter.
    #[must_use]
    pub fn log_tail_of(&self, database: &str) -> String {
        let session = format!("@{database} ");
        tail(&self.log_entries(|head| {
            head.contains(&session)
                || !head.contains('@') && !head.contains("LOG:") && !head.contains("administrator command")
        }))
    }

    /// Log entries, each with its continuation lines, whose first line is wanted.
    fn log_entries(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let mut keep = false;
        let log = self.log();
        log.lines()
            .filter(|line| {
                // Every entry begins with its time; what goes on is indented or bare text.
                if line.starts_with("20") {
                    keep = wanted(line);
                }
                keep
            })
            .map(str::to_owned)
            .collect()
    }

    /// The server's whole log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.log_file()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    pub(crate) fn configure_defaults(&self) -> Result<()> {
        self.configure(DEFAULTS.iter().copied())
    }

    /// Adds lines to `postgresql.conf`. They take effect at the next start (or reload, where the setting allows it).
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn configure<'a>(&self, settings: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<()> {
        let path = self.data_dir().join("postgresql.conf");
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().append(true).open(&path)?;
            for (name, value) in settings {
                writeln!(file, "{name} = '{}'", value.replace('\'', "''"))?;
            }
            Ok(())
        };
        write().map_err(|e| Error::doing("writing postgresql.conf", e))
    }

    /// The server process. A test that panicked while it held the lock has left nothing half-done in it.
    fn server(&self) -> MutexGuard<'_, Option<Child>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the stopped or killed server and waits until it takes connections.
    ///
    /// # Errors
    /// If it already runs or does not start; with the end of its log.
    pub fn start(&self) -> Result<()> {
        let mut server = self.server();
        if server.is_some() {
            return Err(Error::new("the server already runs"));
        }
        let open_log = || {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(self.log_file())
                .and_then(|out| Ok((out.try_clone()?, out)))
        };
        let (out, err): (File, File) = open_log().map_err(|e| Error::doing("opening the log", e))?;
        let mut child = os::command(&self.bin.join("postgres"), self.run_as)
            .arg("-D")
            .arg(self.data_dir())
            .arg("-k")
            .arg(self.socket_dir())
            .args(["-p", PORT])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.socket_dir())
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(|e| Error::doing("starting postgres", e))?;
        let deadline = Instant::now() + PATIENCE;
        while self.config(SUPERUSER, "postgres").connect(NoTls).is_err() {
            if let Some(status) = child.try_wait().map_err(|e| Error::doing("waiting for postgres", e))? {
                return Err(Error::new(format!(
                    "the server did not start ({status}); the end of its log:\n{}",
                    self.log_tail()
                )));
            }
            if Instant::now() > deadline {
                kill_tree(&mut child)?;
                return Err(Error::new(format!(
                    "the server takes no connections; the end of its log:\n{}",
                    self.log_tail()
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        *server = Some(child);
        Ok(())
    }

    /// Stops the server and waits until it is gone. A server that does not run is no error.
    ///
    /// # Errors
    /// If it does not stop within a minute: it is killed then, and the error carries the end of its log.
    pub fn stop(&self, how: Stop) -> Result<()> {
        let mut server = self.server();
        let Some(child) = server.as_mut() else {
            return Ok(());
        };
        let signal = match how {
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
        };
        os::signal(child.id(), signal)?;
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait().map_err(|e| Error::doing("waiting for postgres", e))?.is_none() {
            if Instant::now() > deadline {
                kill_tree(child)?;
                *server = None;
                return Err(Error::new(format!(
                    "the server did not stop ({how:?}); the end of its log:\n{}",
                    self.log_tail()
                )));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        *server = None;
        Ok(())
    }

    /// Stops (fast) and starts the server.
    ///
    /// # Errors
    /// As [`Cluster::stop`] and [`Cluster::start`].
    pub fn restart(&self) -> Result<()> {
        self.stop(Stop::Fast)?;
        self.start()
    }

    /// Kills every process of the server with SIGKILL, as a power failure would: what was only in shared memory is gone.
    ///
    /// # Errors
    /// If the server does not run or a signal cannot be sent.
    pub fn kill9_server(&self) -> Result<()> {
        let mut server = self.server();
        let child = server.as_mut().ok_or_else(|| Error::new("the server does not run"))?;
        kill_tree(child)?;
        *server = None;
        Ok(())
    }

    /// Kills one backend with SIGKILL, and waits until the server has noticed, thrown every session out and recovered.
    ///
    /// # Errors
    /// If `pid` is not a process of this server or the server does not recover.
    pub fn kill_backend9(&self, pid: i32) -> Result<()> {
        let pid = u32::try_from(pid).map_err(|e| Error::doing("backend's process id", e))?;
        let postmaster = self.server().as_ref().map(Child::id).ok_or_else(|| Error::new("the server does not run"))?;
        if !os::children(postmaster).contains(&pid) {
            return Err(Error::new(format!("process {pid} is not a backend of this server")));
        }
        // A session of our own tells when the postmaster has acted on the crash: until then it takes new connections.
        let mut canary = self.superuser()?;
        os::signal(pid, Signal::KILL)?;
        let deadline = Instant::now() + PATIENCE;
        while canary.simple_query("SELECT 1").is_ok() || self.superuser().is_err() {
            if Instant::now() > deadline {
                return Err(Error::new(format!("no recovery after kill -9; the end of the log:\n{}", self.log_tail())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Stops a process of this server as it is, until what is returned is dropped: a frozen process hears no signal, and a
    /// test that fails must not leave others waiting for it.
    ///
    /// # Errors
    /// If `pid` is not a process of this server or the signal cannot be sent.
    pub fn freeze(&self, pid: i32) -> Result<Frozen> {
        let pid = self.own_process(pid)?;
        os::signal(pid, Signal::STOP)?;
        Ok(Frozen { pid })
    }

    fn own_process(&self, pid: i32) -> Result<u32> {
        let pid = u32::try_from(pid).map_err(|e| Error::doing("process id", e))?;
        let postmaster = self.server().as_ref().map(Child::id).ok_or_else(|| Error::new("the server does not run"))?;
        if !os::children(postmaster).contains(&pid) {
            return Err(Error::new(format!("process {pid} is not of this server")));
        }
        Ok(pid)
    }

    /// Connection settings for `user` in `database`.
    #[must_use]
    pub fn config(&self, user: &str, database: &str) -> Config {
        let mut config = Config::new();
        config.host_path(self.socket_dir()).user(user).dbname(database);
        config
    }

    /// A connection as `user` to `database`.
    ///
    /// # Errors
    /// What the server says; with the end of its log.
    pub fn client(&self, user: &str, database: &str) -> Result<Client> {
        self.config(user, database).connect(NoTls).map_err(|e| {
            Error::new(format!(
                "connecting as {user} to {database}: {e:?}; the end of the server's log:\n{}",
                self.log_tail()
            ))
        })
    }

    /// A connection as the superuser to database `postgres`.
    ///
    /// # Errors
    /// As [`Cluster::client`].
    pub fn superuser(&self) -> Result<Client> {
        self.client(SUPERUSER, "postgres")
    }

    /// Creates an ordinary role that may log in. `options` are further words of CREATE ROLE, such as `IN ROLE agd_tenant`.
    ///
    /// # Errors
    /// What the server says.
    pub fn create_role(&self, role: &str, options: &str) -> Result<()> {
        self.superuser()?
            .batch_execute(&format!("CREATE ROLE \"{role}\" LOGIN {options}"))
            .map_err(|e| Error::doing(&format!("creating role {role}"), e))
    }

    /// A new, empty database of a unique name that begins with `stem`. It is dropped with the returned guard.
    ///
    /// # Errors
    /// What the server says.
    pub fn database(&self, stem: &str) -> Result<TestDb<'_>> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        TestDb::create(self, format!("{stem}_{}", NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// A new database with the extension in it.
    ///
    /// # Errors
    /// What the server says.
    pub fn agd_database(&self, stem: &str) -> Result<TestDb<'_>> {
        let database = self.database(stem)?;
        database.connect()?.batch_execute("CREATE EXTENSION agd").map_err(|e| {
            Error::new(format!("CREATE EXTENSION agd: {e:?}; the end of the server's log:\n{}", self.log_tail()))
        })?;
        Ok(database)
    }

    /// `psql` as a command ready to run: no start-up file, connected to this cluster.
    #[must_use]
    pub fn psql_command(&self, database: &str, user: &str) -> Command {
        let mut command = os::client_command(&self.bin.join("psql"));
        command.arg("-X").arg("-h").arg(self.socket_dir()).args(["-p", PORT, "-U", user, "-d", database]);
        command
    }

    /// Runs a script through `psql` with `ON_ERROR_STOP`, unaligned and without headings (one row a line).
    ///
    /// # Errors
    /// If `psql` cannot be run. A script that fails is no error here: see [`Output::success`].
    pub fn psql(&self, database: &str, user: &str, script: &str) -> Result<Output> {
        let mut command = self.psql_command(database, user);
        command.args(["-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-"]);
        run(command, script)
    }

    /// Runs a program of the server's own (`pg_resetwal`) as the user that owns the data directory.
    ///
    /// # Errors
    /// If the program cannot be run, or fails.
    pub fn server_program(&self, program: &str, args: &[&str]) -> Result<Output> {
        let mut command = os::command(&self.bin.join(program), self.run_as);
        command.current_dir(self.socket_dir()).args(args).arg("-D").arg(self.data_dir());
        let output = run(command, "")?;
        if output.success { Ok(output) } else { Err(Error::doing(program, output.stderr)) }
    }

    /// Runs `pgbench` as the superuser with `args` on `database`.
    ///
    /// # Errors
    /// If `pgbench` cannot be run. A run that fails is no error here: see [`Output::success`].
    pub fn pgbench(&self, database: &str, args: &[&str]) -> Result<Output> {
        let mut command = os::client_command(&self.bin.join("pgbench"));
        command.arg("-h").arg(self.socket_dir()).args(["-p", PORT, "-U", SUPERUSER]).args(args).arg(database);
        run(command, "")
    }

    /// A hot standby of this server, streaming from it, with the same settings. See [`Cluster::promote`].
    ///
    /// # Errors
    /// If the base backup fails or the standby does not start.
    pub fn standby(&self) -> Result<Self> {
        let standby = self.base_backup(&["-R"])?;
        standby.start()?;
        Ok(standby)
    }

    /// Makes a standby a primary and waits until it takes writes.
    ///
    /// # Errors
    /// What the server says.
    pub fn promote(&self) -> Result<()> {
        let row = self
            .superuser()?
            .query_one("SELECT pg_promote(true, 60)", &[])
            .map_err(|e| Error::doing("pg_promote", e))?;
        if row.get(0) {
            Ok(())
        } else {
            Err(Error::new(format!("not promoted; the end of the log:\n{}", self.log_tail())))
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of the server's log\n{}\n---", self.log_tail());
        }
        if let Err(error) = self.stop(Stop::Immediate) {
            eprintln!("{error}");
        }
    }
}

fn tail(lines: &[String]) -> String {
    lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
}

/// Stops the postmaster so that it can start nothing more, kills its children, then kills it, and waits for all of them.
fn kill_tree(child: &mut Child) -> Result<()> {
    os::signal(child.id(), Signal::STOP)?;
    let children = os::children(child.id());
    for pid in &children {
        os::signal(*pid, Signal::KILL)?;
    }
    child.kill().and_then(|()| child.wait()).map_err(|e| Error::doing("kill -9 of postgres", e))?;
    // The next start would find the shared memory still attached.
    let deadline = Instant::now() + PATIENCE;
    while children.iter().any(|pid| os::running(*pid)) {
        if Instant::now() > deadline {
            return Err(Error::new("a backend outlived kill -9"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

pub(crate) fn run(mut command: Command, input: &str) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut run = || -> std::io::Result<std::process::Output> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        // Written from a thread of its own: a script longer than a pipe's buffer would wait for output nobody reads.
        std::thread::scope(|scope| {
            scope.spawn(move || {
                if let Some(mut stdin) = stdin {
                    // A program that stops reading early (ON_ERROR_STOP) says so by its exit status.
                    let _ = stdin.write_all(input.as_bytes());
                }
            });
            child.wait_with_output()
        })
    };
    let output = run().map_err(|e| Error::doing(&name, e))?;
    Ok(Output {
        success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The `bin` directory of the PostgreSQL under test.
fn pg_bin() -> Result<PathBuf> {
    let bin = std::env::var_os("AGD_PG_BIN").map(PathBuf::from).ok_or_else(|| {
        Error::new(
            "AGD_PG_BIN is not set: it names the bin directory of the PostgreSQL to test against (`make test` sets it)",
        )
    })?;
    existing_bin("AGD_PG_BIN", &bin)
}

fn existing_bin(what: &str, bin: &Path) -> Result<PathBuf> {
    // An absolute path, because servers run in a directory of their own.
    let bin = fs::canonicalize(bin).map_err(|e| Error::doing(&format!("{what}={}", bin.display()), e))?;
    match ["initdb", "postgres", "psql", "pg_ctl"].iter().find(|name| !bin.join(name).is_file()) {
        Some(name) => Err(Error::new(format!("{what}={} has no {name}", bin.display()))),
        None => Ok(bin),
    }
}

/// Makes a data directory. `options` are further ones of the `initdb` program.
pub(crate) fn initdb(bin: &Path, run_as: Option<RunAs>, target: &Path, options: &[&str]) -> Result<()> {
    let mut initdb = os::command(&bin.join("initdb"), run_as);
    initdb.current_dir("/").args(["-N", "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C"]);
    initdb.args(options).arg("-D").arg(target);
    let output = run(initdb, "")?;
    if output.success { Ok(()) } else { Err(Error::doing("initdb", output.stderr)) }
}

/// Copies the process's template data directory to `target`; the first call makes it with `initdb`.
fn copy_template(bin: &Path, run_as: Option<RunAs>, target: &Path) -> Result<()> {
    static TEMPLATE: Mutex<Option<Scratch>> = Mutex::new(None);
    let mut template = TEMPLATE.lock().unwrap_or_else(PoisonError::into_inner);
    if template.is_none() {
        let scratch = Scratch::new(bin, run_as)?;
        initdb(bin, run_as, &scratch.path().join("data"), &[])?;
        *template = Some(scratch);
    }
    let Some(scratch) = template.as_ref() else {
        return Err(Error::new("no template data directory"));
    };
    let mut copy = os::command(Path::new("cp"), run_as);
    copy.current_dir("/").arg("-Rp").arg(scratch.path().join("data")).arg(target);
    let output = run(copy, "")?;
    if output.success { Ok(()) } else { Err(Error::doing("copying the template data directory", output.stderr)) }
}
