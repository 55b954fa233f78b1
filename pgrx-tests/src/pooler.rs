//! A PgBouncer in front of one database.
#![allow(clippy::panic)]

use crate::{Cluster, eventually};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The program that `AGD_PGBOUNCER` names, if one does.
#[must_use]
pub fn program() -> Option<OsString> {
    std::env::var_os("AGD_PGBOUNCER")
}

/// A running PgBouncer. Dropping it stops it.
pub struct Pooler {
    process: Child,
    folder: PathBuf,
    /// It carries prepared statements in transaction mode as well (1.21 and later).
    pub prepares: bool,
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Pooler {
    /// Starts one in `mode` (session or transaction) with so many server connections for each user.
    #[track_caller]
    #[must_use]
    pub fn start(
        program: &OsString,
        cluster: &Cluster,
        database: &str,
        mode: &str,
        size: usize,
        users: &[&str],
    ) -> Self {
        let version = Command::new(program).arg("--version").output().map(|out| out.stdout).unwrap_or_default();
        let prepares = minor(&String::from_utf8_lossy(&version)).is_some_and(|minor| minor >= 21);
        let folder = cluster.socket_dir().join(format!("pooler-{database}-{mode}"));
        let list: String = users.iter().map(|user| format!("\"{user}\" \"\"\n")).collect();
        let prepared = if prepares { "max_prepared_statements = 100\n" } else { "" };
        let settings = format!(
            "[databases]\n{database} = host={host} port=5432 dbname={database}\n[pgbouncer]\nlisten_addr =\nlisten_port = 6432\n\
             unix_socket_dir = {folder}\nauth_type = trust\nauth_file = {folder}/users\npool_mode = {mode}\ndefault_pool_size = {size}\n\
             server_reset_query = DISCARD ALL\nlogfile = {folder}/log\npidfile = {folder}/pid\n{prepared}",
            host = cluster.socket_dir().display(),
            folder = folder.display(),
        );
        let prepare = || -> std::io::Result<(u32, u32)> {
            std::fs::create_dir(&folder)?;
            std::fs::write(folder.join("settings"), settings)?;
            std::fs::write(folder.join("users"), list)?;
            let owner = std::fs::metadata(cluster.data_dir())?;
            for path in [folder.clone(), folder.join("settings"), folder.join("users")] {
                std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()))?;
            }
            Ok((owner.uid(), owner.gid()))
        };
        let (uid, gid) = prepare().unwrap_or_else(|error| panic!("the pooler's settings: {error}"));
        let mut command = Command::new(program);
        command.arg("-q").arg(folder.join("settings")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // PgBouncer refuses to run as root.
        if rustix::process::geteuid().is_root() {
            command.uid(uid).gid(gid);
        }
        let process = command.spawn().unwrap_or_else(|error| panic!("starting PgBouncer: {error}"));
        let pooler = Self { process, folder, prepares };
        let mut config = pooler.config(database);
        config.user(users[0]);
        eventually("the pooler takes connections", Duration::from_secs(20), || config.connect(postgres::NoTls).is_ok());
        pooler
    }

    /// Where it listens: the `host` of a connection string; the port is 6432.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.folder
    }

    /// How to connect, but for the user.
    #[must_use]
    pub fn config(&self, database: &str) -> postgres::Config {
        let mut config = postgres::Config::new();
        config.host_path(&self.folder).port(6432).dbname(database);
        config
    }
}

/// The second number of `PgBouncer 1.18.0`, where the first is 1.
fn minor(version: &str) -> Option<u32> {
    let (major, rest) = version.split_whitespace().nth(1)?.split_once('.')?;
    if major == "1" { rest.split('.').next()?.parse().ok() } else { Some(u32::MAX) }
}
