//! The `agd` program: reads its arguments and hands them on.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agd_cli::passphrase::Source;
use agd_cli::serve::{self, Options, Stamps, parse_interval};
use agd_cli::stamp::Mode;
use agd_cli::store::{Reader, parse_location};
use agd_cli::{
    EXIT_OK, EXIT_UNCHECKED, database, export, html, input, keygen, prove, report, sign, token, verify, verify_proof,
};
use clap::{Args, Parser, Subcommand};

/// Audit-gated discipline for PostgreSQL: publish the logs of a database, and verify them from files alone.
///
/// Exit codes: 0 all holds, 1 something is false (and which), 2 could not check.
#[derive(Debug, Parser)]
#[command(name = "agd", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Keygen(keygen::Arguments),
    Sign(sign::Arguments),
    Token(token::Arguments),
    Publish(Publish),
    Verify(Verify),
    Report(html::Arguments),
    Export(export::Arguments),
    Prove(prove::Arguments),
    VerifyProof(verify_proof::Arguments),
}

/// Sign the database's anchors and write them with their tiles into a store.
///
/// Signs only what continues what the store already holds; a history that does not is refused with exit code 1.
#[derive(Debug, Args)]
struct Publish {
    /// postgresql:// URL or key=value string of a member of agd_publisher (password: PGPASSWORD)
    #[arg(long, value_name = "URL", env = "AGD_DATABASE", hide_env_values = true)]
    database: String,
    /// s3://bucket/prefix (credentials and endpoint: AWS_… in the environment), file:///folder or a path; it must exist
    #[arg(long, value_name = "STORE")]
    store: String,
    /// Exit with code 2 unless the store is a bucket that locks every object by a default retention
    #[arg(long)]
    require_object_lock: bool,
    /// The key file that `agd keygen` made; readable by its owner only
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The passphrase of an encrypted key is the first line of this file (or pipe, or /dev/fd/N)
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Where it is kept what the key has signed, and for which database [default: the key file's name and .state]
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Begin a new store, in an empty place, although the key has signed in another one or this one was lost
    #[arg(long)]
    new_store: bool,
    /// Sign for this database from now on, although the key has signed for another one, which is never published again
    #[arg(long)]
    moved_here: bool,
    /// The key file that `agd keygen --witness` made: cosigns every checkpoint
    #[arg(long, value_name = "FILE")]
    witness_key: Option<PathBuf>,
    /// The passphrase of an encrypted witness's key is the first line of this file (or pipe, or /dev/fd/N)
    #[arg(long, value_name = "FILE", requires = "witness_key")]
    witness_passphrase_file: Option<PathBuf>,
    /// A timestamp authority (RFC 3161), http:// or https://; may be given more than once
    #[arg(long, value_name = "URL", requires = "tsa_ca")]
    tsa: Vec<String>,
    /// PEM file of the CAs that the TSAs' certificates lead to: no reply is stored that was not checked
    #[arg(long, value_name = "FILE", requires = "tsa")]
    tsa_ca: Option<PathBuf>,
    /// Whether publishing depends on timestamps: best-effort or required
    #[arg(long, value_name = "MODE", default_value = "best-effort", value_parser = parse_mode, requires = "tsa")]
    tsa_mode: Mode,
    /// At most one timestamp of each TSA in this time; the newest checkpoint gets one in the end all the same
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_interval, requires = "tsa")]
    tsa_interval: Duration,
    /// Do one round and exit
    #[arg(long)]
    once: bool,
    /// The pause between rounds
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_interval)]
    interval: Duration,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

/// Prove everything a store says from its files alone.
#[derive(Debug, Args)]
struct Verify {
    /// s3://bucket/prefix, file:///folder or a path
    store: String,
    /// Trusted keys in the C2SP tlog-policy format; without it signatures are not checked and the exit code is 2 at best
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// A dump that `agd export` made: are its events the ones that were anchored?
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// PEM file of the CAs that timestamp authorities lead to; without it timestamps are not checked
    #[arg(long, value_name = "FILE")]
    tsa_ca: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let code = match Cli::parse().command {
        Command::Keygen(args) => keygen::run(&args).map_err(say).and_then(|told| print(format!("{told}\n").as_bytes())),
        Command::Sign(args) => sign::run(&args).map_err(say).and_then(|signature| print(&signature)),
        Command::Token(args) => token::run(&args).map_err(say).and_then(|told| print(format!("{told}\n").as_bytes())),
        Command::Publish(args) => run_publish(args),
        Command::Verify(args) => run_verify(&args),
        Command::Report(args) => html::run(&args),
        Command::Export(args) => export::run(&args).map_err(say),
        Command::Prove(args) => prove::run(&args),
        Command::VerifyProof(args) => {
            verify_proof::run(&args).and_then(|(told, code)| print(told.as_bytes()).map(|_| code))
        }
    };
    ExitCode::from(code.unwrap_or_else(|message| {
        let _ = writeln!(io::stderr(), "agd: {message}");
        EXIT_UNCHECKED
    }))
}

fn say(error: impl Display) -> String {
    error.to_string()
}

/// A result on standard output.
fn print(bytes: &[u8]) -> Result<u8, String> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // Whoever read it has read enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(say(error)),
        _ => Ok(EXIT_OK),
    }
}

fn run_publish(args: Publish) -> Result<u8, String> {
    let password = std::env::var("PGPASSWORD").ok();
    let stamps = match &args.tsa_ca {
        None => None,
        Some(path) => Some(Stamps {
            authorities: input::authorities(path)?,
            tsas: args.tsa,
            mode: args.tsa_mode,
            interval: args.tsa_interval,
        }),
    };
    let options = Options {
        database: database::parse_config(&args.database, password).map_err(say)?,
        store: parse_location(&args.store).map_err(say)?,
        require_object_lock: args.require_object_lock,
        key: args.key,
        passphrase: Source::new(args.passphrase_file.as_deref()),
        state: args.state,
        new_store: args.new_store,
        moved_here: args.moved_here,
        witness_key: args.witness_key,
        witness_passphrase: Source::new(args.witness_passphrase_file.as_deref()),
        stamps,
        once: args.once,
        interval: args.interval,
        json: args.json,
    };
    serve::run(&options).map_err(say)
}

fn parse_mode(text: &str) -> Result<Mode, String> {
    match text {
        "best-effort" => Ok(Mode::BestEffort),
        "required" => Ok(Mode::Required),
        _ => Err("the mode is best-effort or required".to_owned()),
    }
}

fn run_verify(args: &Verify) -> Result<u8, String> {
    let reader = Reader::open(&parse_location(&args.store).map_err(say)?).map_err(say)?;
    let policy = args.policy.as_ref().map(|path| input::policy(path)).transpose()?;
    let authorities = args.tsa_ca.as_ref().map(|path| input::authorities(path)).transpose()?;
    let (counter, total) = (AtomicU64::new(0), AtomicU64::new(0));
    let work = || {
        // Only for a person who watches: it costs a look at every log.
        if io::stderr().is_terminal() {
            total.store(verify::published_entries(&reader), Ordering::Relaxed);
        }
        verify::run_with(&reader, policy.as_ref(), authorities.as_ref(), &counter)
    };
    let mut result = report::with_progress_of(&counter, &total, "entry", work).map_err(say)?;
    if let Some(path) = &args.events {
        let counter = AtomicU64::new(0);
        let work = || verify::events::verify(&reader, &result, path, &counter);
        let events = report::with_progress(&counter, "event", work).map_err(say)?;
        result.events = Some(events);
    }
    let mut stdout = io::stdout();
    let written = if args.json {
        writeln!(stdout, "{}", report::verify_json(&result, &args.store))
    } else {
        let color = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        report::verify_text(&mut stdout, &result, color)
    };
    match written {
        // Whoever read the report has read enough; the verdict stands.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(say(error)),
        _ => Ok(result.exit_code()),
    }
}
