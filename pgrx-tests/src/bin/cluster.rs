//! `make psql`: a throw-away cluster with the extension in database `postgres`, and psql on the terminal. Arguments are
//! given to psql. Everything is removed when psql ends.

use agd_live_tests::Cluster;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    match session() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn session() -> Result<ExitCode, Box<dyn Error>> {
    // Ctrl-C at the prompt cancels a query and belongs to psql. On SIGHUP and SIGTERM the reaper would tidy up too, but an
    // orderly end lets psql restore the terminal.
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGHUP, SIGTERM])?;
    let cluster = Cluster::builder().start()?;
    cluster.superuser()?.batch_execute("CREATE EXTENSION agd")?;
    let mut psql = cluster.psql_command("postgres", "postgres").args(std::env::args_os().skip(1)).spawn()?;
    let pid = psql.id().try_into().ok().and_then(rustix::process::Pid::from_raw);
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if let (SIGHUP | SIGTERM, Some(pid)) = (signal, pid) {
                // It may have ended already; then so will we.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
    });
    let status = psql.wait()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
