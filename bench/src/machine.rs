//! What the figures were taken on.

use crate::Result;
use crate::stats;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

/// Processors, memory, kernel and load, in one line.
pub fn describe() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let model = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let memory = field(&read("/proc/meminfo"), "MemTotal")
        .and_then(|text| text.split(' ').next()?.parse::<f64>().ok())
        .map_or(String::new(), |kib| format!(", {:.0} GB", kib / 1_048_576.0));
    let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
    format!("{} × {model}{memory}, {} {kernel}", cores(), std::env::consts::OS)
}

/// How many processors this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The load averages of the last 1, 5 and 15 minutes, where the system tells them.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Microseconds that flushing one block to the disk below `folder` takes (fdatasync; median of 100).
///
/// # Errors
/// If the file cannot be written.
pub fn flush_time(folder: &Path) -> Result<f64> {
    let path = folder.join("flush-time");
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
    let block = [0x5a_u8; 8192];
    let mut times = Vec::new();
    for _ in 0..100 {
        // The same block again: the file does not grow, as WAL segments do not.
        file.write_all_at(&block, 0)?;
        let start = Instant::now();
        file.sync_data()?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    fs::remove_file(&path)?;
    Ok(stats::median(&times))
}

/// Seconds of processor time that a process has had, where the system tells it: what other guests of the machine take away
/// meanwhile is not in it.
pub fn processor_seconds(pid: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    Some(text.split(' ').next()?.parse::<f64>().ok()? / 1e9)
}

/// The same of all child processes that have ended.
pub fn processor_seconds_of_children() -> Option<f64> {
    Some(Times::of("self")?.ended_children)
}

/// The same of a PostgreSQL server: its first process and all that it has started, those that have ended included.
pub fn processor_seconds_of_server(data: &Path) -> Option<f64> {
    let pid_file = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let first = pid_file.lines().next()?;
    let server = Times::of(first)?;
    let all = fs::read_dir("/proc").ok()?;
    let processes = all.filter_map(|entry| Times::of(entry.ok()?.file_name().to_str()?));
    let running: f64 = processes.filter(|times| times.parent == first).map(|times| times.own).sum();
    Some(server.own + server.ended_children + running)
}

/// Processor time of a process, in seconds.
struct Times {
    parent: String,
    own: f64,
    ended_children: f64,
}

impl Times {
    fn of(process: &str) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // Behind the program's name, which ends in the last parenthesis: state, parent, …; utime is the 14th of all fields.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |from: usize| -> Option<f64> {
            Some(fields.get(from)?.parse::<f64>().ok()? + fields.get(from + 1)?.parse::<f64>().ok()?)
        };
        let second = rustix::param::clock_ticks_per_second() as f64;
        let parent = (*fields.get(1)?).to_owned();
        Some(Self { parent, own: ticks(11)? / second, ended_children: ticks(13)? / second })
    }
}

/// Runs `work` on one processor only, its child processes included.
///
/// # Errors
/// If the system does not let a thread choose its processor.
pub fn on_one_core<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    std::thread::scope(|scope| {
        // A thread of its own: the binding ends with it.
        let thread = scope.spawn(|| {
            let allowed = sched_getaffinity(None)?;
            let mut one = CpuSet::new();
            if let Some(core) = (0..CpuSet::MAX_CPU).find(|core| allowed.is_set(*core)) {
                one.set(core);
            }
            sched_setaffinity(None, &one)?;
            Ok::<T, rustix::io::Errno>(work())
        });
        thread.join().map_err(|_| "the measuring thread panicked")?.map_err(Into::into)
    })
}
