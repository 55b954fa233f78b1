//! The program `agd` under test, which the runner names in `AGD_CLI`.

use std::path::Path;
use std::process::Command;

/// A command that runs it, without arguments yet.
pub fn agd() -> Command {
    Command::new(std::env::var_os("AGD_CLI").expect("AGD_CLI names the agd program"))
}

/// Runs a command to its end: its exit code, and all that it printed.
pub fn answer(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
