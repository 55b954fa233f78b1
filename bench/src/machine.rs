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
