//! Dumps, restores, physical backups and upgrades, with PostgreSQL's own programs.

use crate::cluster::{PORT, SUPERUSER, initdb, run};
use crate::os;
use crate::scratch::Scratch;
use crate::{Cluster, Error, Output, Result};
use std::fs;
use std::path::{Path, PathBuf};

impl Cluster {
    /// Runs a client program (`pg_dump`, `pg_restore`, …) as the superuser with `args`, which name the database, and
    /// `input` on its standard input.
    ///
    /// # Errors
    /// If the program cannot be run. One that fails is no error here: see [`Output::success`].
    pub fn client_program(&self, name: &str, args: &[&str], input: &str) -> Result<Output> {
        let mut command = os::client_command(&self.bin.join(name));
        command.arg("-h").arg(self.socket_dir()).args(["-p", PORT, "-U", SUPERUSER]).args(args);
        run(command, input)
    }

    /// `pg_dump` with `args`.
    ///
    /// # Errors
    /// With what `pg_dump` said, if it failed or warned.
    pub fn dump(&self, args: &[&str]) -> Result<String> {
        silent("pg_dump", self.client_program("pg_dump", args, "")?)
    }

    /// `pg_restore --exit-on-error` with `args`.
    ///
    /// # Errors
    /// With what `pg_restore` said, if it failed or warned.
    pub fn restore(&self, args: &[&str]) -> Result<()> {
        let args = [&["--exit-on-error"], args].concat();
        silent("pg_restore", self.client_program("pg_restore", &args, "")?).map(|_| ())
    }

    /// A path in this cluster's scratch directory, for what a test writes to a file.
    #[must_use]
    pub fn scratch_file(&self, name: &str) -> PathBuf {
        self.socket_dir().join(name)
    }

    /// A physical copy, not started. `options` are further ones of `pg_basebackup`.
    ///
    /// # Errors
    /// If `pg_basebackup` fails.
    pub fn base_backup(&self, options: &[&str]) -> Result<Self> {
        let scratch = Scratch::new(&self.bin, self.run_as)?;
        let mut command = os::command(&self.bin.join("pg_basebackup"), self.run_as);
        command.current_dir("/").arg("-h").arg(self.socket_dir()).args(["-p", PORT, "-U", SUPERUSER]);
        command.args(options).args(["-X", "stream", "-c", "fast", "-D"]).arg(scratch.path().join("data"));
        let output = run(command, "")?;
        if !output.success {
            return Err(Error::doing("pg_basebackup", output.stderr));
        }
        Ok(Self::over(self.bin.clone(), self.run_as, scratch))
    }

    /// Starts this base backup of `origin` as of the restore point `target` (`pg_create_restore_point`), with WAL from
    /// the running or stopped `origin`, and makes it a primary.
    ///
    /// # Errors
    /// If it does not start.
    pub fn recover_to(&self, origin: &Self, target: &str) -> Result<()> {
        let wal = origin.data_dir().join("pg_wal");
        let restore = format!("cp {}/%f %p", wal.display());
        self.configure([
            ("restore_command", restore.as_str()),
            ("recovery_target_name", target),
            ("recovery_target_action", "promote"),
        ])?;
        fs::write(self.data_dir().join("recovery.signal"), "")
            .map_err(|e| Error::doing("writing recovery.signal", e))?;
        self.start()
    }

    /// Makes `next` the next transaction id of this stopped cluster, as `pg_resetwal -x` does. No table may hold an
    /// unfrozen id that is 2^31 or more behind.
    ///
    /// # Errors
    /// If `pg_resetwal` fails.
    pub fn jump_to_xid(&self, next: u32) -> Result<()> {
        // The server expects the commit log's page of that id to be there: 2 bits an id, 8192 bytes a page, 32 pages a file.
        const IDS_PER_FILE: u32 = 4 * 8192 * 32;
        let segment = self.data_dir().join("pg_xact").join(format!("{:04X}", next / IDS_PER_FILE));
        if !segment.exists() {
            fs::write(&segment, vec![0; 8192 * 32]).map_err(|e| Error::doing("writing pg_xact", e))?;
            if let Some(user) = self.run_as {
                user.own(&segment)?;
            }
        }
        let mut command = os::command(&self.bin.join("pg_resetwal"), self.run_as);
        command.current_dir("/").arg("-x").arg(next.to_string()).arg("-D").arg(self.data_dir());
        let output = run(command, "")?;
        if output.success { Ok(()) } else { Err(Error::doing("pg_resetwal", output.stderr)) }
    }

    /// A new cluster of the PostgreSQL at `bin`, made from this stopped one by `pg_upgrade`, and started.
    ///
    /// # Errors
    /// With what `pg_upgrade` said.
    pub fn upgraded(&self, bin: &Path) -> Result<Self> {
        let scratch = Scratch::new(bin, self.run_as)?;
        let data = scratch.path().join("data");
        // From 18 on checksums are the default; both sides must agree, and the older ones have none.
        let help = run(
            {
                let mut command = os::client_command(&bin.join("initdb"));
                command.arg("--help");
                command
            },
            "",
        )?;
        let options: &[&str] = if help.stdout.contains("--no-data-checksums") { &["--no-data-checksums"] } else { &[] };
        initdb(bin, self.run_as, &data, options)?;
        let upgraded = Self::over(bin.to_owned(), self.run_as, scratch);
        upgraded.configure_defaults()?;
        let mut command = os::command(&bin.join("pg_upgrade"), self.run_as);
        command.current_dir(upgraded.socket_dir()).arg("-b").arg(&self.bin).arg("-B").arg(bin);
        command.arg("-d").arg(self.data_dir()).arg("-D").arg(upgraded.data_dir());
        command.args(["-U", SUPERUSER, "-s"]).arg(upgraded.socket_dir());
        let output = run(command, "")?;
        if !output.success {
            let log = ends_of_logs(&upgraded.data_dir().join("pg_upgrade_output.d"));
            return Err(Error::doing("pg_upgrade", format!("{}\n{}\n{log}", output.stdout, output.stderr)));
        }
        upgraded.start()?;
        Ok(upgraded)
    }
}

fn silent(program: &str, output: Output) -> Result<String> {
    if output.success && output.stderr.is_empty() {
        Ok(output.stdout)
    } else {
        Err(Error::doing(program, format!("success: {}; {}", output.success, output.stderr)))
    }
}

/// The last lines of each log file under a directory.
fn ends_of_logs(directory: &Path) -> String {
    let mut ends = String::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            ends += &ends_of_logs(&path);
        } else if let Ok(log) = fs::read_to_string(&path) {
            let lines: Vec<&str> = log.lines().collect();
            ends += &format!("--- {}\n{}\n", path.display(), lines[lines.len().saturating_sub(12)..].join("\n"));
        }
    }
    ends
}
