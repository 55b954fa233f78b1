//! What people and programs read: lines of the publisher, the verifier's report, JSON.
//!
//! Owns wording, alignment and number formats. Promises that the last line of a report is the verdict, that nothing which
//! was not checked reads as if it were, and that a file's name is never interpreted by the terminal: control characters
//! are shown escaped.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agd_core::fleet::JudgedFleet;
use serde_json::{Value, json};

use crate::publish::{Failure, Published, Refusal, Round, hex};
use crate::stamp::Stamped;
use crate::verify::events::EventsReport;
use crate::verify::findings::{Finding, Findings};
use crate::verify::{LogReport, Report};
use crate::{EXIT_FALSE, EXIT_OK};

/// A number with a comma at every third digit.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 anchor`, `2 anchors`.
pub fn counted(number: u64, noun: &str) -> String {
    match (number, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{} {stem}ies", grouped(number)),
        _ => format!("{} {noun}s", grouped(number)),
    }
}

/// Microseconds since the Unix epoch as RFC 3339 in UTC, to the microsecond.
pub fn time(micros: i64) -> String {
    const DAY: i64 = 86_400_000_000;
    let (days, of_day) = (micros.div_euclid(DAY), micros.rem_euclid(DAY));
    // Counted from 1 March of year 0, the leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let (date, month) = (of_year - (153 * march + 2) / 5 + 1, (march + 2) % 12 + 1);
    let year = era * 400 + year + i64::from(month <= 2);
    let seconds = of_day / 1_000_000;
    format!(
        "{year:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}.{:06}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        of_day % 1_000_000
    )
}

/// Text from outside, with control characters escaped.
pub fn plain(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let kept = if c.is_control() { None } else { Some(c) };
            escaped.into_iter().flatten().chain(kept)
        })
        .collect()
}

/// The publisher's lines.
#[derive(Debug, Clone, Copy)]
pub struct PublishOutput {
    /// One JSON object a line instead of text.
    pub json: bool,
    /// Whether a person watches: then a round in which nothing happened is told as well.
    pub terminal: bool,
}

impl PublishOutput {
    /// One log that got new checkpoints.
    ///
    /// # Errors
    /// What the stream says.
    pub fn published(self, out: &mut dyn Write, log: &Published) -> io::Result<()> {
        let Published { origin, tenant, from, to, anchors, root } = log;
        if self.json {
            let line = json!({
                "event": "published", "origin": origin, "tenant": tenant, "from": from, "to": to,
                "anchors": anchors, "root": hex(root),
            });
            return writeln!(out, "{line}");
        }
        let name = tenant.as_ref().unwrap_or(origin);
        let anchors = counted(*anchors, "anchor");
        writeln!(out, "{name}: {} → {}, {anchors}", grouped(*from), grouped(*to))
    }

    /// One log that was refused.
    ///
    /// # Errors
    /// What the stream says.
    pub fn refused(self, out: &mut dyn Write, refusal: &Refusal) -> io::Result<()> {
        if self.json {
            let mut line = json!({
                "event": "refused", "origin": refusal.origin(), "message": refusal.to_string(),
            });
            if let (Refusal::NotAContinuation { size, database, ours, .. }, Some(object)) =
                (refusal, line.as_object_mut())
            {
                object.insert("size".to_owned(), json!(size));
                object.insert("database_root".to_owned(), json!(database));
                object.insert("our_root".to_owned(), json!(ours));
            }
            return writeln!(out, "{line}");
        }
        writeln!(out, "REFUSED {}", plain(&refusal.to_string()))
    }

    /// A checkpoint that got a timestamp.
    ///
    /// # Errors
    /// What the stream says.
    pub fn stamped(self, out: &mut dyn Write, stamped: &Stamped) -> io::Result<()> {
        let Stamped { origin, size, file, tsa, at } = stamped;
        if self.json {
            let line = json!({
                "event": "timestamped", "origin": origin, "size": size, "file": file, "tsa": tsa, "at": time(*at),
            });
            return writeln!(out, "{line}");
        }
        writeln!(out, "{origin}: {} timestamped {} by {}", grouped(*size), time(*at), plain(tsa))
    }

    /// Something that is done, but not as well as it could be, with the log where it concerns one.
    ///
    /// # Errors
    /// What the stream says.
    pub fn warning(self, out: &mut dyn Write, origin: Option<&str>, text: &str) -> io::Result<()> {
        if self.json {
            return writeln!(out, "{}", json!({ "event": "warning", "origin": origin, "message": text }));
        }
        let place = origin.map(|origin| format!(" {origin}")).unwrap_or_default();
        writeln!(out, "{}", plain(&format!("warning{place}: {text}")))
    }

    /// Something that could not be done.
    ///
    /// # Errors
    /// What the stream says.
    pub fn failed(self, out: &mut dyn Write, origin: Option<&str>, failure: &Failure) -> io::Result<()> {
        if self.json {
            let line = json!({ "event": "failed", "origin": origin, "message": failure.to_string() });
            return writeln!(out, "{line}");
        }
        let place = origin.map(|origin| format!("{origin}: ")).unwrap_or_default();
        writeln!(out, "failed {}", plain(&format!("{place}{failure}")))
    }

    /// The end of a round that was all there was to do.
    ///
    /// # Errors
    /// What the stream says.
    pub fn end(self, out: &mut dyn Write, round: &Round) -> io::Result<()> {
        if self.json {
            let line = json!({
                "event": "end", "logs": round.logs, "published": round.published.len(),
                "refused": round.refusals.len(), "failed": round.failures.len(),
                "timestamped": round.stamped.len(), "warnings": round.warnings.len(),
                "exit_code": round.exit_code(),
            });
            return writeln!(out, "{line}");
        }
        if self.terminal && round.published.is_empty() && round.exit_code() == EXIT_OK {
            return writeln!(out, "nothing new in {}", counted(round.logs as u64, "log"));
        }
        Ok(())
    }
}

/// Shows a counter on standard error while something long runs, when a person watches.
pub fn with_progress<T>(counter: &AtomicU64, noun: &str, work: impl FnOnce() -> T) -> T {
    with_progress_of(counter, &AtomicU64::new(0), noun, work)
}

/// As [`with_progress`], with how much there is to do; 0 as long as that is not known.
pub fn with_progress_of<T>(counter: &AtomicU64, total: &AtomicU64, noun: &str, work: impl FnOnce() -> T) -> T {
    if !io::stderr().is_terminal() {
        return work();
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ticker = scope.spawn(|| {
            let mut start = None;
            while !done.load(Ordering::Relaxed) {
                std::thread::park_timeout(Duration::from_millis(300));
                let count = counter.load(Ordering::Relaxed);
                if count > 0 {
                    // What comes before the first of them, a walk over folders, says nothing about how fast they are.
                    let (since, first) = *start.get_or_insert_with(|| (Instant::now(), count));
                    let line =
                        progress_line(count, total.load(Ordering::Relaxed), count - first, since.elapsed(), noun);
                    let _ = write!(io::stderr(), "\r{line} …\x1b[K");
                }
            }
            let _ = write!(io::stderr(), "\r\x1b[K");
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        ticker.thread().unpark();
        result
    })
}

/// `45 %  1,200,000 of 2,700,000 entries  812,345/s  0:02 left`, as far as it is known.
fn progress_line(count: u64, total: u64, since_start: u64, elapsed: Duration, noun: &str) -> String {
    let rate = since_start as f64 / elapsed.as_secs_f64().max(0.001);
    let total = total.max(count);
    let mut line = counted(count, noun);
    if total > count {
        line = format!(
            "{:2} %  {} of {}",
            u128::from(count) * 100 / u128::from(total),
            grouped(count),
            counted(total, noun)
        );
    }
    if since_start > 0 {
        let _ = write!(line, "  {}/s", grouped(rate as u64));
        if total > count {
            let left = ((total - count) as f64 / rate) as u64;
            let (hours, minutes, seconds) = (left / 3600, left / 60 % 60, left % 60);
            let _ = match hours {
                0 => write!(line, "  {minutes}:{seconds:02} left"),
                _ => write!(line, "  {hours}:{minutes:02}:{seconds:02} left"),
            };
        }
    }
    line
}

/// Writes the verifier's report for a person.
///
/// # Errors
/// What the stream says.
pub fn verify_text(out: &mut dyn Write, report: &Report, color: bool) -> io::Result<()> {
    let mut text = String::new();
    for log in &report.logs {
        log_text(&mut text, log, report.with_policy);
        text.push('\n');
    }
    if let Some(events) = &report.events {
        events_text(&mut text, events);
        text.push('\n');
    }
    for unchecked in &report.unchecked {
        let _ = writeln!(text, "not checked  {}", plain(unchecked));
    }
    if !report.unchecked.is_empty() {
        text.push('\n');
    }
    let (verdict, code) = verdict(report);
    let paint = match (color, code) {
        (false, _) => "",
        (true, EXIT_OK) => "\x1b[1;32m",
        (true, EXIT_FALSE) => "\x1b[1;31m",
        (true, _) => "\x1b[1;33m",
    };
    let reset = if paint.is_empty() { "" } else { "\x1b[0m" };
    let _ = writeln!(text, "{paint}{verdict}{reset}");
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn log_text(text: &mut String, log: &LogReport, with_policy: bool) {
    let result = &log.result;
    let whose = match &log.tenant {
        Some(tenant) => format!("tenant {tenant}"),
        None => "platform log".to_owned(),
    };
    let _ = writeln!(text, "{} ({whose})", plain(&log.origin));
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<11}  {}", plain(value.trim_end()));
    };
    let times = match result.times {
        Some((first, last)) if first == last => time(first),
        Some((first, last)) => format!("{} – {}", time(first), time(last)),
        None => String::new(),
    };
    row("entries", &format!("{:<11}  {times}", grouped(result.entries)));
    let count = result.published.len() as u64;
    let signatures = if !with_policy {
        "signatures not checked (no --policy)".to_owned()
    } else if result.signed == count {
        "all signed by a key of the policy".to_owned()
    } else {
        format!("{} signed by a key of the policy", grouped(result.signed))
    };
    let cosigned = match result.cosigned {
        None => String::new(),
        Some(n) if n == count => ", and cosigned by its quorum".to_owned(),
        Some(n) => format!(", {} cosigned by its quorum", grouped(n)),
    };
    row("checkpoints", &format!("{:<11}  {signatures}{cosigned}", grouped(count)));
    if let Some(root) = &result.root {
        row("root", &format!("{} at size {}", hex(root), grouped(result.size)));
    }
    if let Some(coverage) = &log.coverage {
        let newer = match coverage.newer {
            0 => String::new(),
            n => format!("; {} on the way", counted(n, "newer checkpoint")),
        };
        let (size, index) = (grouped(coverage.size), grouped(coverage.index));
        row("covered", &format!("{size:<11}  by entry {index} of the platform log{newer}"));
    }
    if result.closed {
        row("closed", "by its last entry: the tenant's last fleet has ended");
    }
    if let Some(stamps) = &log.timestamps {
        let newest = match stamps.newest() {
            None => String::new(),
            Some(held) => format!("newest {} of size {}", time(held.at), grouped(held.size)),
        };
        row("timestamps", &format!("{:<11}  {newest}", grouped(stamps.held.len() as u64)));
    }
    result.notes.iter().for_each(|note| row("note", note));
    result.unchecked.iter().for_each(|what| row("not checked", what));
    findings_text(&result.findings, &mut row);
}

fn findings_text(findings: &Findings, row: &mut dyn FnMut(&str, &str)) {
    for finding in findings.list() {
        row("FALSE", &finding_text(finding));
    }
    let more = findings.count() - findings.list().len() as u64;
    if more > 0 {
        row("FALSE", &format!("and {} more", grouped(more)));
    }
}

/// Erased images that are named one by one for a person; programs get all.
const NAMED_ERASED: usize = 5;

fn events_text(text: &mut String, events: &EventsReport) {
    let _ = writeln!(text, "{} (events)", plain(&events.file));
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<11}  {}", plain(value.trim_end()));
    };
    for log in &events.logs {
        let proven = counted(log.proven, "event");
        row("log", &format!("{}, entries {} to {}", log.origin, grouped(log.first), grouped(log.last)));
        row("proven", &format!("{proven} as anchored, {} with their digests", counted(log.images_proven, "image")));
        if log.images_erased > 0 {
            let mut ids: Vec<String> = log.erased.iter().take(NAMED_ERASED).map(ToString::to_string).collect();
            if log.erased.len() > NAMED_ERASED {
                ids.push(format!("and {} more", grouped((log.erased.len() - NAMED_ERASED) as u64)));
            }
            let (images, of) = (counted(log.images_erased, "image"), counted(log.erased.len() as u64, "event"));
            row("erased", &format!("{images} of {of}: {}", ids.join(", ")));
        }
    }
    if !events.fleets.is_empty() {
        row("fleets", &fleets_line(&events.fleets));
    }
    if events.rows.followed > 0 {
        row("rows", &events.rows.line());
    }
    events.fleets_left_out.iter().for_each(|what| row("left out", what));
    // Not all was there to be checked, and need not be: that is no verdict.
    events.rows.left_out.iter().for_each(|what| row("left out", &format!("{what}; not checked")));
    events.unchecked.iter().for_each(|what| row("not checked", what));
    findings_text(&events.findings, &mut row);
}

/// `3 hold: 1 active, 1 cancelled, 1 sealed`, and how many do not.
pub fn fleets_line(fleets: &[JudgedFleet]) -> String {
    let held = fleets.iter().filter(|fleet| fleet.ok);
    let mut states = BTreeMap::new();
    held.clone().for_each(|fleet| *states.entry(fleet.state.as_str()).or_insert(0u64) += 1);
    let states: Vec<String> = states.iter().map(|(state, count)| format!("{} {state}", grouped(*count))).collect();
    let held = held.count();
    let mut line = match held {
        0 => String::new(),
        1 => format!("1 holds: {}", states.join(", ")),
        _ => format!("{} hold: {}", grouped(held as u64), states.join(", ")),
    };
    let wrong = fleets.len() - held;
    if wrong > 0 {
        let separator = if held > 0 { "; " } else { "" };
        let _ =
            write!(line, "{separator}{} {}", grouped(wrong as u64), if wrong == 1 { "is false" } else { "are false" });
    }
    line
}

fn fleet_json(fleet: &JudgedFleet) -> Value {
    let checks = fleet.checks.iter().map(|check| json!({ "name": check.name, "ok": check.ok, "detail": check.detail }));
    json!({
        "fleet_id": fleet.fleet_id, "tenant": fleet.tenant, "state": fleet.state, "ok": fleet.ok,
        "checks": checks.collect::<Vec<_>>(),
    })
}

fn finding_text(finding: &Finding) -> String {
    let Finding { file, offset, message, .. } = finding;
    match offset {
        Some(offset) => format!("{file} byte {offset}: {message}"),
        None => format!("{file}: {message}"),
    }
}

/// The last line, and the exit code it stands for.
pub fn verdict(report: &Report) -> (String, u8) {
    let code = report.exit_code();
    let logs = counted(report.logs.len() as u64, "log");
    let sum = |number: fn(&LogReport) -> u64| report.logs.iter().map(number).sum();
    let entries = counted(sum(|log| log.result.entries), "entry");
    let checkpoints = counted(sum(|log| log.result.published.len() as u64), "checkpoint");
    let events = report.events.as_ref().map_or_else(String::new, |events| {
        let proven = events.logs.iter().map(|log| log.proven).sum();
        format!(", {} of a dump", counted(proven, "event"))
    });
    let text = match code {
        EXIT_OK => format!("OK: {logs}, {entries}, {checkpoints}{events}: all holds"),
        EXIT_FALSE => {
            let wrong = |log: &&LogReport| log.result.findings.count() > 0;
            let wrong = report.logs.iter().filter(wrong).count() as u64;
            let of_events = report.events.as_ref().map_or(0, |events| events.findings.count());
            let findings = counted(report.findings(), "finding");
            match (report.findings() - of_events, of_events) {
                (_, 0) => format!("FALSE: {findings} in {} of {logs}", grouped(wrong)),
                (0, _) => format!("FALSE: {findings} in the dump, none in {logs}"),
                (of_logs, _) => format!(
                    "FALSE: {findings}: {} in {} of {logs}, {} in the dump",
                    grouped(of_logs),
                    grouped(wrong),
                    grouped(of_events)
                ),
            }
        }
        _ if report.logs.is_empty() => "NOT CHECKED: nothing to verify".to_owned(),
        _ if report.with_policy => {
            format!("NOT CHECKED: {logs}, {entries}, {checkpoints}: nothing is false, but not all could be checked")
        }
        _ => format!(
            "NOT CHECKED: {logs}, {entries}, {checkpoints}: nothing is false, but without --policy nobody knows who signed"
        ),
    };
    (text, code)
}

/// The verifier's report as one JSON object.
pub fn verify_json(report: &Report, store: &str) -> Value {
    let (verdict, code) = verdict(report);
    json!({
        "store": store,
        "exit_code": code,
        "verdict": verdict,
        "with_policy": report.with_policy,
        "unchecked": report.unchecked,
        "logs": report.logs.iter().map(log_json).collect::<Vec<_>>(),
        "events": report.events.as_ref().map(events_json),
    })
}

fn findings_json(findings: &Findings) -> Vec<Value> {
    let json = |finding: &Finding| {
        json!({
            "file": finding.file, "index": finding.index, "offset": finding.offset, "message": finding.message,
        })
    };
    findings.list().iter().map(json).collect()
}

fn events_json(events: &EventsReport) -> Value {
    let logs = events.logs.iter().map(|log| {
        json!({
            "origin": log.origin, "first": log.first, "last": log.last, "images": log.images,
            "proven": log.proven, "missing": log.missing,
            "images_proven": log.images_proven, "images_erased": log.images_erased,
            "erased": log.erased.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    });
    json!({
        "file": events.file,
        "logs": logs.collect::<Vec<_>>(),
        "finding_count": events.findings.count(),
        "findings": findings_json(&events.findings),
        "unchecked": events.unchecked,
        "fleets": events.fleets.iter().map(fleet_json).collect::<Vec<_>>(),
        "fleets_left_out": events.fleets_left_out,
        "rows": {
            "followed": events.rows.followed, "tables": events.rows.tables, "events": events.rows.steps,
            "left_out": events.rows.left_out,
        },
    })
}

fn log_json(log: &LogReport) -> Value {
    let result = &log.result;
    let coverage = log
        .coverage
        .as_ref()
        .map(|coverage| json!({ "size": coverage.size, "index": coverage.index, "newer": coverage.newer }));
    let timestamps = log.timestamps.as_ref().map(|stamps| {
        let newest = stamps.newest().map(|held| json!({ "at": time(held.at), "size": held.size }));
        json!({ "count": stamps.held.len(), "newest": newest })
    });
    json!({
        "origin": log.origin,
        "tenant": log.tenant,
        "size": result.size,
        "root": result.root.as_ref().map(hex),
        "entries": result.entries,
        "first_at": result.times.map(|(first, _)| time(first)),
        "last_at": result.times.map(|(_, last)| time(last)),
        "checkpoints": result.published.len(),
        "signed": result.signed,
        "cosigned": result.cosigned,
        "timestamps": timestamps,
        "covered": coverage,
        "closed": result.closed,
        "finding_count": result.findings.count(),
        "findings": findings_json(&result.findings),
        "unchecked": result.unchecked,
        "notes": result.notes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_and_nouns() {
        let numbers = [0, 999, 1_000, 1_234_567].map(grouped);
        assert_eq!(numbers, ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(counted(1, "entry"), "1 entry");
        assert_eq!(counted(2_000, "entry"), "2,000 entries");
        assert_eq!(counted(0, "log"), "0 logs");
    }

    #[test]
    fn progress_says_what_is_known() {
        let line = |count, total, since| progress_line(count, total, since, Duration::from_secs(2), "entry");
        assert_eq!(line(1_200_000, 2_700_000, 1_000_000), "44 %  1,200,000 of 2,700,000 entries  500,000/s  0:03 left");
        assert_eq!(line(256, 100_000_000, 256), " 0 %  256 of 100,000,000 entries  128/s  217:00:48 left");
        assert_eq!(line(512, 0, 256), "512 entries  128/s");
        assert_eq!(line(512, 300, 0), "512 entries");
        assert_eq!(line(u64::MAX, u64::MAX, 0), "18,446,744,073,709,551,615 entries");
    }

    #[test]
    fn times() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(time(1_795_210_265_000_001), "2026-11-20T21:31:05.000001Z");
        assert_eq!(time(951_782_400_000_000), "2000-02-29T00:00:00.000000Z");
        assert_eq!(time(-1), "1969-12-31T23:59:59.999999Z");
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\n – ü"), "a\\u{1b}[2Jb\\n – ü");
    }

    proptest! {
        #[test]
        fn every_time_prints_and_orders(a in any::<i64>(), b in 0..253_402_300_800_000_000_i64, c in 0..253_402_300_800_000_000_i64) {
            let _ = time(a);
            prop_assert_eq!(time(b).cmp(&time(c)), b.cmp(&c));
        }
    }
}
