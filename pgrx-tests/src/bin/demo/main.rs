//! `make demo`: agd at work in a throw-away server, told on the terminal step by step.
//!
//! Every step runs real SQL and real commands over real connections, shows them with their figures, and asserts what it
//! says. Exit code 0: every step did what it says. 1: one did not; which one, what it expected and what it saw is on
//! standard error with the end of the server's log. 2: it could not begin. Nothing is left running, and nothing lies
//! about afterwards unless `--keep` asks for the store.

mod attack;
mod evidence;
mod failure;
mod fleet;
mod load;
mod scene;
mod schema;
mod terminal;
mod traffic;

use failure::{Failure, Result};
use scene::Scene;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use terminal::{Terminal, grouped};

const USAGE: &str = "\
usage: demo [--keep] [--scale N] [--seconds N]

  --keep       leave the published store, its key and its policy; the last lines say where
  --scale N    pgbench's scale, 100,000 accounts each (default 2)
  --seconds N  how long the load runs (default 8)";

struct Options {
    keep: bool,
    scale: u32,
    seconds: u32,
}

impl Options {
    /// None: help was asked for.
    fn read(mut arguments: impl Iterator<Item = String>) -> std::result::Result<Option<Self>, String> {
        let mut options = Self { keep: false, scale: 2, seconds: 8 };
        while let Some(argument) = arguments.next() {
            let mut number = |most: u32| {
                let value = arguments.next().and_then(|value| value.parse().ok()).filter(|n| (1..=most).contains(n));
                value.ok_or_else(|| format!("{argument} takes a number from 1 to {most}"))
            };
            match argument.as_str() {
                "--keep" => options.keep = true,
                "--scale" => options.scale = number(1000)?,
                "--seconds" => options.seconds = number(3600)?,
                "-h" | "--help" => return Ok(None),
                _ => return Err(format!("unknown argument {argument}")),
            }
        }
        Ok(Some(options))
    }
}

/// Numbers the steps and takes their times.
struct Steps<'t> {
    terminal: &'t Terminal,
    times: Vec<(&'static str, Duration)>,
    title: &'static str,
}

impl Steps<'_> {
    fn run<T>(&mut self, title: &'static str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        self.title = title;
        self.terminal.heading(Some(self.times.len() + 1), title);
        let start = Instant::now();
        let result = step()?;
        self.times.push((title, start.elapsed()));
        Ok(result)
    }
}

fn main() -> ExitCode {
    let options = match Options::read(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(problem) => {
            eprintln!("{problem}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let (cli, folder) = match scene::command_line().and_then(|cli| Ok((cli, scene::scratch_folder()?))) {
        Ok(found) => found,
        Err(failure) => {
            eprintln!("The demo needs {}; but: {}", failure.expected, failure.saw);
            return ExitCode::from(2);
        }
    };
    remove_on_signal(folder.clone());
    let code = tell(&options, cli, &folder);
    if !options.keep {
        remove(&folder);
    }
    code
}

/// Ctrl-C ends the demo at once. The server goes with this process (the harness sees to that), the folder goes here.
fn remove_on_signal(folder: PathBuf) {
    let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGHUP, SIGTERM]) else {
        return;
    };
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            remove(&folder);
            std::process::exit(128 + signal);
        }
    });
}

fn remove(folder: &Path) {
    if let Err(error) = std::fs::remove_dir_all(folder) {
        eprintln!("{} could not be removed: {error}", folder.display());
    }
}

fn tell(options: &Options, cli: PathBuf, folder: &Path) -> ExitCode {
    let terminal = Terminal::new();
    terminal.title(
        "agd: no audit record, no write",
        "A tour of about a minute in a throw-away server. Each step shows what it runs, and checks it.",
    );
    let mut steps = Steps { terminal: &terminal, times: Vec::new(), title: "" };
    let mut scene = None;
    let Err(failure) = story(options, cli, folder, &mut steps, &mut scene) else {
        return ExitCode::SUCCESS;
    };
    eprintln!("\nStep {}, \"{}\", did not do what it says.", steps.times.len() + 1, steps.title);
    eprintln!("  expected  {}", indented(&failure.expected));
    eprintln!("  saw       {}", indented(&failure.saw));
    if let Some(scene) = &scene {
        eprintln!("\nThe end of the server's log:\n{}", scene.cluster.log_tail());
    }
    ExitCode::from(1)
}

fn indented(text: &str) -> String {
    text.trim().replace('\n', "\n            ")
}

fn story<'t>(
    options: &Options,
    cli: PathBuf,
    folder: &'t Path,
    steps: &mut Steps<'t>,
    kept: &mut Option<Scene<'t>>,
) -> Result<()> {
    let terminal = steps.terminal;
    steps.run("A server with agd", || {
        let scene = kept.insert(Scene::new(terminal, folder, cli)?);
        schema::install(scene)
    })?;
    let scene = kept.as_ref().ok_or_else(|| Failure::new("a server", "none"))?;
    steps.run("Two tenants, six guarded tables", || schema::guard_tables(scene, options.scale))?;
    steps.run("A fleet for each tenant", || fleet::fleets(scene))?;
    let account = steps.run("A real load", || load::run(scene, options.seconds))?;
    steps.run("Records and anchors", || load::anchors(scene, &account))?;
    let (verdict, leaves) = steps.run("Evidence that leaves the database", || evidence::publish(scene))?;
    steps.run("Verification inside the database", || attack::all_holds(scene, leaves))?;
    let victim = steps.run("A superuser's attack, and what it cannot hide", || attack::attack(scene))?;
    steps.run("The published evidence is untouched", || evidence::still_there(scene, &verdict, &victim))?;
    summary(options, folder, steps, leaves, account.total());
    Ok(())
}

fn summary(options: &Options, folder: &Path, steps: &Steps<'_>, leaves: i64, writes: i64) {
    let terminal = steps.terminal;
    terminal.heading(None, "Summary");
    let seconds = |time: &Duration| format!("{:.1}", time.as_secs_f64());
    let mut rows: Vec<Vec<String>> = steps
        .times
        .iter()
        .enumerate()
        .map(|(number, (title, time))| vec![(number + 1).to_string(), (*title).to_owned(), seconds(time)])
        .collect();
    rows.push(vec![String::new(), "all".to_owned(), seconds(&steps.times.iter().map(|(_, time)| *time).sum())]);
    terminal.table(&["", "step", "seconds"], &rows);
    terminal.say(&if options.keep {
        format!("Key, policy and store are kept in {0}: cd {0}; agd verify store --policy policy.txt", folder.display())
    } else {
        format!("The store was in {}; it is removed with the server (--keep leaves it).", folder.display())
    });
    terminal.verdict(&format!(
        "Proved: {0} writes left {0} records, no more and no fewer; all {1} leaves hold from files alone, with the \
         server off; a changed row and a deleted event were named, and nothing else.",
        grouped(writes),
        grouped(leaves)
    ));
}
