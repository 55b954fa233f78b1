//! `make bench`: what agd costs, next to an unguarded table and to what else people use.
//!
//! Everything runs in throw-away servers with real durability. Variants take turns, round by round, so that what the
//! machine does meanwhile falls on all of them; figures are medians, ratios are medians of the rounds' ratios with the
//! lowest and the highest beside them. The goal of the design stands beside the figure that it concerns. Nothing is
//! asserted: a benchmark that fails a build on a busy machine tells nothing.
//!
//! Tables go to standard output and, as Markdown and JSON, to `bench/results/`; progress goes to standard error.
//! Exit code 0: all was measured. 1: something could not be. 2: it could not begin.

mod bulk;
mod fleet;
mod log;
mod machine;
mod options;
mod plot;
mod report;
mod scratch;
mod server;
mod shapes;
mod stats;
mod tenant;
mod tpcb;
mod turns;
mod variant;

use options::{Group, Options};
use report::{Report, Section};
use scratch::Scratch;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Anything that keeps a figure from being taken.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What every measurement gets.
struct Bench {
    options: Options,
    /// The command line under test: `AGD_CLI`. None: measurements that need it are left out.
    cli: Option<PathBuf>,
    scratch: Scratch,
    began: Instant,
}

impl Bench {
    /// One line for the person watching.
    fn progress(&self, text: &str) {
        eprintln!("[{:>5.0} s] {text}", self.began.elapsed().as_secs_f64());
    }
}

fn main() -> ExitCode {
    let options = match Options::read(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{}", options::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(problem) => {
            eprintln!("{problem}\n\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    let start = || -> Result<(Bench, Report)> {
        let bench = Bench {
            options,
            cli: std::env::var_os("AGD_CLI").map(PathBuf::from).filter(|path| path.is_file()),
            scratch: Scratch::new()?,
            began: Instant::now(),
        };
        let report = Report::begin(&bench)?;
        Ok((bench, report))
    };
    match start() {
        Ok((bench, report)) => run(&bench, report),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn run(bench: &Bench, mut report: Report) -> ExitCode {
    println!("{}", report.heading());
    let mut failed = Vec::new();
    for group in Group::ALL.into_iter().filter(|group| bench.options.wants(*group)) {
        match measure(bench, group) {
            Ok(sections) => {
                for section in sections {
                    println!("{section}");
                    report.add(section);
                }
            }
            Err(error) => {
                eprintln!("{}: could not be measured: {error}", group.name());
                failed.push(group.name());
            }
        }
    }
    match report.write(&bench.options, &failed) {
        Ok(path) => bench.progress(&format!("written: {}", path.display())),
        Err(error) => {
            eprintln!("the results could not be written: {error}");
            return ExitCode::from(1);
        }
    }
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        eprintln!("not measured: {}", failed.join(", "));
        ExitCode::from(1)
    }
}

fn measure(bench: &Bench, group: Group) -> Result<Vec<Section>> {
    match group {
        Group::Tpcb => tpcb::measure(bench),
        Group::Bulk => bulk::measure(bench),
        Group::Shapes => shapes::measure(bench),
        Group::Tenant => tenant::measure(bench),
        Group::Log => log::measure(bench),
        Group::Fleet => fleet::measure(bench),
    }
}
