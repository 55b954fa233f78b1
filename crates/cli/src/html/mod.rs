//! `agd report`: what `agd verify` found, as one page that a person can hand to an auditor.
//!
//! Owns the page: the verdict first, then what was checked and what was not, each log, its timeline, what is false and where,
//! and how to check again. Promises one file that needs nothing else: no script, no font, no picture, nothing that is loaded
//! (its own policy forbids that), and no markup from the store (see [`markup`]). The verdict is `agd verify`'s, word for word.

pub mod markup;
pub mod timeline;

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use agd_core::fleet::JudgedFleet;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use sha2::{Digest as _, Sha256};

use crate::policy::Policy;
use crate::report::{counted, fleets_line, grouped, time, verdict, with_progress};
use crate::store::{Reader, parse_location};
use crate::verify::findings::Findings;
use crate::verify::{self, LogReport, Report};
use crate::{EXIT_FALSE, EXIT_OK, input};
use markup::Markup;
use timeline::{Anchor, Timestamp};

/// The style sheet, which stands in the page.
const STYLE: &str = include_str!("style.css");

/// Logs whose timelines are drawn: platform logs, then tenants' logs by size.
const MAX_DRAWN: usize = 24;

/// Fleets that have a line each.
const MAX_FLEETS: usize = 200;
/// Erased images that are named by their events.
const MAX_ERASED: usize = 50;

/// Verify a store and write what was found as one HTML file.
#[derive(Debug, Args)]
pub struct Arguments {
    /// file:///folder or a path
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
    /// The file to make; it is never overwritten. By default standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Verifies, writes the page, and returns the verdict's exit code.
///
/// # Errors
/// A sentence that says what could not be read or written.
pub fn run(arguments: &Arguments) -> Result<u8, String> {
    let reader = Reader::open(&parse_location(&arguments.store).map_err(|error| error.to_string())?);
    let reader = reader.map_err(|error| error.to_string())?;
    let policy = arguments.policy.as_ref().map(|path| input::policy(path)).transpose()?;
    let authorities = arguments.tsa_ca.as_ref().map(|path| input::authorities(path)).transpose()?;
    let counter = AtomicU64::new(0);
    let work = || -> Result<Report, String> {
        let report = verify::run_with(&reader, policy.as_ref(), authorities.as_ref(), &counter);
        let mut report = report.map_err(|error| error.to_string())?;
        if let Some(path) = &arguments.events {
            let events = verify::events::verify(&reader, &report, path, &counter);
            report.events = Some(events.map_err(|error| error.to_string())?);
        }
        Ok(report)
    };
    let report = with_progress(&counter, "entry", work)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
    let file = |path: &PathBuf| path.display().to_string();
    let page = Page {
        reader: &reader,
        report: &report,
        policy: policy.as_ref(),
        store: &arguments.store,
        policy_file: arguments.policy.as_ref().map(file),
        tsa_ca_file: arguments.tsa_ca.as_ref().map(file),
        timestamps: &timeline::timestamps(&report),
        made_at: i64::try_from(now).unwrap_or(i64::MAX),
    };
    input::write(arguments.out.as_deref(), page.html().as_bytes())?;
    Ok(report.exit_code())
}

/// What a page is made from.
#[derive(Debug)]
pub struct Page<'a> {
    /// The store's files.
    pub reader: &'a Reader,
    /// What was found in them.
    pub report: &'a Report,
    /// Whom the signatures were checked against.
    pub policy: Option<&'a Policy>,
    /// Where the store is, as it was given.
    pub store: &'a str,
    /// The policy's file, as it was given.
    pub policy_file: Option<String>,
    /// The file of the timestamp authorities' CAs, as it was given.
    pub tsa_ca_file: Option<String>,
    /// Timestamps that hold.
    pub timestamps: &'a [Timestamp],
    /// The time that stands on the page, microseconds since 1970.
    pub made_at: i64,
}

impl Page<'_> {
    /// The page.
    pub fn html(&self) -> String {
        let mut page = Markup::default();
        let digest = STANDARD.encode(Sha256::digest(STYLE));
        let policy = format!("default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'");
        page.raw("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n");
        page.raw("<meta http-equiv=\"Content-Security-Policy\" content=\"").text(&policy).raw("\">\n");
        page.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
        page.raw("<meta name=\"referrer\" content=\"no-referrer\">\n<title>").text(&self.title());
        page.raw(" – agd evidence report</title>\n<style>").raw(STYLE).raw("</style></head>\n<body>\n<header>");
        self.head(&mut page);
        page.raw("</header>\n<main>\n");
        self.false_things(&mut page);
        self.checks(&mut page);
        self.logs(&mut page);
        self.timelines(&mut page);
        self.events(&mut page);
        self.again(&mut page);
        page.raw("</main>\n<footer>Made by agd ")
            .text(env!("CARGO_PKG_VERSION"))
            .raw(" at ")
            .text(&second(self.made_at));
        page.raw(" from files alone. This page loads nothing and runs nothing. What it says follows from the store; ");
        page.raw("whoever doubts it repeats the check.</footer>\n</body></html>\n");
        page.into_string()
    }

    fn title(&self) -> String {
        let mut platforms = self.report.logs.iter().filter(|log| log.tenant.is_none()).map(|log| log.origin.as_str());
        let first = platforms.next().or(self.report.logs.first().map(|log| log.origin.as_str()));
        match (first, platforms.count()) {
            (None, _) => "no log".to_owned(),
            (Some(origin), 0) => origin.to_owned(),
            (Some(origin), more) => format!("{origin} and {}", counted(more as u64, "further platform log")),
        }
    }

    fn head(&self, page: &mut Markup) {
        page.raw("<p class=\"kicker\">Evidence report</p>\n<h1>").text(&self.title()).raw("</h1>\n");
        let (sentence, code) = verdict(self.report);
        // "OK: … : all holds": what the heading says is not said again.
        let sentence = sentence.split_once(": ").map_or(sentence.as_str(), |(_, rest)| rest);
        let sentence = sentence.strip_suffix(": all holds").unwrap_or(sentence);
        page.raw(match code {
            EXIT_OK => "<section class=\"verdict good\" id=\"verdict\"><strong>✓ All holds</strong><p>",
            EXIT_FALSE => "<section class=\"verdict bad\" id=\"verdict\"><strong>✗ Something is false</strong><p>",
            _ => "<section class=\"verdict open\" id=\"verdict\"><strong>– Not everything could be checked</strong><p>",
        });
        page.text(&capital(sentence)).raw(".</p></section>\n<dl>");
        let mut fact = |name: &'static str, value: &str| {
            page.raw("<dt>").raw(name).raw("</dt><dd>").text(value).raw("</dd>");
        };
        fact("Store", self.store);
        fact("Checked", &second(self.made_at));
        let times = self.report.logs.iter().filter_map(|log| log.result.times);
        if let Some((first, last)) = times.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))) {
            fact("Events", &format!("{} – {}", second(first), second(last)));
        }
        let keys = self.policy.map(Policy::logs).unwrap_or_default();
        match &self.policy_file {
            Some(file) => fact("Policy", file),
            None => fact("Policy", "none: signatures were not checked"),
        }
        page.raw("</dl>\n");
        for key in keys {
            page.raw("<p class=\"quiet small\">Trusted key <code>").text(&key.to_string()).raw("</code></p>\n");
        }
    }

    fn checks(&self, page: &mut Markup) {
        let report = self.report;
        let holds = |log: &LogReport| log.result.findings.count() == 0;
        let all_hold = report.logs.iter().all(holds);
        let sum = |number: fn(&LogReport) -> u64| report.logs.iter().map(number).sum::<u64>();
        let entries = sum(|log| log.result.entries);
        let checkpoints = sum(|log| log.result.published.len() as u64);
        // Each with whether it is whole; what is not whole is explained by the findings or by what was not checked.
        let mut done: Vec<(bool, String)> = Vec::new();
        let of = |part: u64, all: u64| (part == all, format!("{} of {}", grouped(part), grouped(all)));
        if report.with_policy {
            let (whole, count) = of(sum(|log| log.result.signed), checkpoints);
            done.push((whole, format!("{count} checkpoints are signed by a key of the policy")));
        }
        let asked: Vec<&LogReport> = report.logs.iter().filter(|log| log.result.cosigned.is_some()).collect();
        if !asked.is_empty() {
            let all = asked.iter().map(|log| log.result.published.len() as u64).sum();
            let (whole, count) = of(asked.iter().filter_map(|log| log.result.cosigned).sum(), all);
            done.push((
                whole,
                format!("{count} checkpoints that the policy asks witnesses for are cosigned by its quorum"),
            ));
        }
        let (whole, count) = of(entries, sum(|log| log.result.size));
        let text = format!("{count} entries were read; each is canonical, has its hash in the tree, and is there once");
        done.push((whole && all_hold, text));
        let text = "Tiles of all levels follow from the entries, and so does the root at every published size";
        done.push((all_hold, text.to_owned()));
        let tenants = report.logs.iter().filter(|log| log.tenant.is_some()).count() as u64;
        if tenants > 0 {
            let covered = report.logs.iter().filter(|log| log.coverage.is_some()).count() as u64;
            let (whole, count) = of(covered, tenants);
            let text = format!("{count} tenants' logs are covered by a platform log, which has their roots as entries");
            done.push((whole, text));
        }
        if let Some(events) = &report.events {
            let images: u64 = events.logs.iter().map(|log| log.images_proven).sum();
            let proven = events.logs.iter().map(|log| log.proven).sum();
            let (whole, count) = of(
                proven,
                events.logs.iter().map(|log| log.last.saturating_sub(log.first)).fold(0, u64::saturating_add),
            );
            let images = counted(images, "row image");
            let text = format!(
                "{count} events of the dump are byte for byte those that were anchored; {images} give their digests"
            );
            done.push((whole && events.findings.count() == 0, text));
            if !events.fleets.is_empty() {
                let held = events.fleets.iter().all(|fleet| fleet.ok);
                let text = format!(
                    "Fleets lived again from their events alone, their names, states and signatures: {}",
                    fleets_line(&events.fleets)
                );
                done.push((held, text));
            }
        }
        if !self.timestamps.is_empty() {
            let count = counted(self.timestamps.len() as u64, "RFC 3161 timestamp");
            let verb = if self.timestamps.len() == 1 { "holds" } else { "hold" };
            done.push((true, format!("{count} on checkpoints {verb}")));
        }
        page.raw("<section id=\"checked\"><h2>What was checked</h2>\n");
        if !report.logs.is_empty() {
            page.raw("<ul class=\"checks\">");
            for (whole, text) in &done {
                page.raw(match (whole, report.findings()) {
                    (true, _) => "<li class=\"done\">",
                    (false, 0) => "<li class=\"not\">",
                    (false, _) => "<li class=\"false\">",
                });
                page.text(text).raw("</li>\n");
            }
            page.raw("</ul>");
        }
        page.raw("</section>\n<section id=\"unchecked\"><h2>What was not checked</h2>\n<ul class=\"checks\">");
        let mut item = |text: &str| {
            page.raw("<li class=\"not\">").text(text).raw("</li>\n");
        };
        if !report.with_policy {
            item("Who signed: there was no policy, so anybody could have made this store");
        }
        report.unchecked.iter().for_each(|text| item(text));
        for log in &report.logs {
            log.result.unchecked.iter().for_each(|text| item(&format!("{}: {text}", log.origin)));
        }
        if let Some(events) = &report.events {
            let left_out = events.fleets_left_out.iter().chain(&events.rows.left_out);
            events.unchecked.iter().chain(left_out).for_each(|text| item(text));
        } else {
            item(
                "The events themselves: entries hold digests, not rows. A dump made by agd export has them (--events)",
            );
        }
        if self.timestamps.is_empty() {
            item("Timestamps: none were checked, so the times here are those of the database's clock");
        }
        item(
            "Whether newer checkpoints were taken away together with all that came after: compare the newest ones with copies kept elsewhere",
        );
        page.raw("</ul></section>\n");
    }

    fn false_things(&self, page: &mut Markup) {
        let total = self.report.findings();
        if total == 0 {
            return;
        }
        page.raw("<section id=\"findings\"><h2>What is false</h2>\n<p>")
            .text(&counted(total, "finding"))
            .raw(".</p>\n");
        page.raw("<div class=\"wide\"><table class=\"findings\"><thead><tr><th>File</th><th class=\"n\">Entry</th><th class=\"n\">Byte</th><th>What is wrong</th></tr></thead><tbody>\n");
        let of_events = self.report.events.as_ref().map(|events| &events.findings);
        for findings in self.report.logs.iter().map(|log| &log.result.findings).chain(of_events) {
            rows(page, findings);
        }
        page.raw("</tbody></table></div></section>\n");
    }

    fn logs(&self, page: &mut Markup) {
        page.raw("<section id=\"logs\"><h2>Logs</h2>\n<div class=\"wide\"><table class=\"logs\"><thead><tr><th>Log</th><th>Result</th><th class=\"n\">Entries</th><th class=\"n\">Checkpoints</th><th class=\"n\">Signed</th><th>First and last event</th><th>Covered up to</th></tr></thead><tbody>\n");
        for log in &self.report.logs {
            let result = &log.result;
            page.raw("<tr><td><span class=\"mono\">").text(&log.origin).raw("</span><br><span class=\"quiet\">");
            match &log.tenant {
                Some(tenant) => page.raw("tenant ").text(tenant),
                None => page.raw("platform log"),
            };
            if result.closed {
                page.raw("; closed: its last fleet has ended");
            }
            page.raw("</span></td>");
            match (result.findings.count(), result.unchecked.is_empty()) {
                (0, true) if self.report.with_policy => page.raw("<td class=\"good when\">✓ holds"),
                (0, true) => page.raw("<td class=\"open when\">– holds, unsigned"),
                (0, false) => page.raw("<td class=\"open when\">– not all checked"),
                (count, _) => page.raw("<td class=\"bad when\">✗ ").text(&counted(count, "finding")),
            };
            page.raw("</td><td class=\"n\">").text(&grouped(result.entries));
            page.raw("</td><td class=\"n\">").text(&grouped(result.published.len() as u64));
            page.raw("</td><td class=\"n\">");
            page.text(&if self.report.with_policy { grouped(result.signed) } else { "–".to_owned() });
            page.raw("</td><td class=\"when\">");
            if let Some((first, last)) = result.times {
                page.text(&second(first)).raw("<br>").text(&second(last));
            }
            page.raw("</td><td>");
            if let Some(coverage) = &log.coverage {
                page.text(&grouped(coverage.size))
                    .raw(" <span class=\"quiet\">by entry ")
                    .text(&grouped(coverage.index));
                page.raw("</span>");
            }
            page.raw("</td></tr>\n");
            for note in &result.notes {
                page.raw("<tr><td colspan=\"7\" class=\"quiet\">Note: ").text(note).raw("</td></tr>\n");
            }
        }
        page.raw("</tbody></table></div></section>\n");
    }

    fn timelines(&self, page: &mut Markup) {
        let mut logs: Vec<&LogReport> =
            self.report.logs.iter().filter(|log| !log.result.published.is_empty()).collect();
        let count = logs.len();
        logs.sort_by_key(|log| (log.tenant.is_some(), std::cmp::Reverse(log.result.size)));
        logs.truncate(MAX_DRAWN);
        let drawn: Vec<(&LogReport, Vec<Anchor>)> =
            logs.into_iter().map(|log| (log, timeline::anchors(self.reader, log))).collect();
        let Some(span) = timeline::span(drawn.iter().map(|(_, anchors)| &anchors[..]), self.timestamps) else {
            return;
        };
        page.raw("<section id=\"timeline\"><h2>Timeline</h2>\n<p class=\"quiet small\">Entries in each log over time (UTC). A dot is a published checkpoint, at the commit time of its newest event");
        page.raw(if self.timestamps.is_empty() { ".</p>\n" } else { "; a triangle is a timestamp on one.</p>\n" });
        for (log, anchors) in &drawn {
            let stamps = timeline::thinned_stamps(self.timestamps, &log.origin);
            let whose = log.tenant.as_ref().map_or("platform log".to_owned(), |tenant| format!("tenant {tenant}"));
            page.raw("<figure><h3>")
                .text(&log.origin)
                .raw(" <span class=\"quiet\">")
                .text(&whose)
                .raw("</span></h3>\n");
            let title = format!(
                "{}: {} over time, up to {}",
                log.origin,
                counted(log.result.published.len() as u64, "checkpoint"),
                counted(log.result.size, "entry")
            );
            timeline::draw(page, &title, anchors, &stamps, span);
            let shown = anchors.len() as u64;
            let all = log.result.published.iter().filter(|size| **size > 0).count() as u64;
            if shown < all {
                page.raw("<figcaption>").text(&format!(
                    "{} of {} are drawn.",
                    grouped(shown),
                    counted(all, "checkpoint")
                ));
                page.raw("</figcaption>");
            }
            page.raw("</figure>\n");
        }
        if count > drawn.len() {
            let more = counted((count - drawn.len()) as u64, "further log");
            page.raw("<p class=\"quiet small\">").text(&more).raw(" without a drawing, smaller than these.</p>\n");
        }
        page.raw("</section>\n");
    }

    fn events(&self, page: &mut Markup) {
        let Some(events) = &self.report.events else {
            return;
        };
        page.raw("<section id=\"events\"><h2>Events in the dump</h2>\n<p class=\"small\"><code>").text(&events.file);
        page.raw("</code></p>\n<div class=\"wide\"><table><thead><tr><th>Log</th><th class=\"n\">Entries</th><th class=\"n\">As anchored</th><th class=\"n\">Missing</th><th class=\"n\">Images with their digests</th><th class=\"n\">Images erased</th></tr></thead><tbody>\n");
        for log in &events.logs {
            page.raw("<tr><td class=\"mono\">").text(&log.origin).raw("</td><td class=\"n\">");
            page.text(&format!("{} – {}", grouped(log.first), grouped(log.last))).raw("</td><td class=\"n\">");
            page.text(&grouped(log.proven)).raw("</td><td class=\"n\">").text(&grouped(log.missing));
            page.raw("</td><td class=\"n\">");
            page.text(&if log.images { grouped(log.images_proven) } else { "left out".to_owned() });
            page.raw("</td><td class=\"n\">").text(&grouped(log.images_erased)).raw("</td></tr>\n");
        }
        page.raw("</tbody></table></div>\n");
        for log in events.logs.iter().filter(|log| !log.erased.is_empty()) {
            let mut ids: Vec<String> = log.erased.iter().take(MAX_ERASED).map(ToString::to_string).collect();
            if log.erased.len() > MAX_ERASED {
                ids.push(format!("and {} more", grouped((log.erased.len() - MAX_ERASED) as u64)));
            }
            page.raw("<p class=\"small\">Erased images in <span class=\"mono\">").text(&log.origin);
            page.raw("</span>: events ")
                .text(&ids.join(", "))
                .raw(". Their digests are in the log; their proofs hold.</p>\n");
        }
        fleets(page, &events.fleets);
        page.raw("</section>\n");
    }

    fn again(&self, page: &mut Markup) {
        let policy = self.policy_file.as_ref().map(|file| format!(" --policy {}", quoted(file))).unwrap_or_default();
        let events = self.report.events.as_ref().map(|events| format!(" --events {}", quoted(&events.file)));
        let events = events.unwrap_or_default();
        let ca = self.tsa_ca_file.as_ref().map(|file| format!(" --tsa-ca {}", quoted(file))).unwrap_or_default();
        let store = quoted(self.store);
        page.raw("<section id=\"again\"><h2>How to check again</h2>\n<p>On any machine, without a network and without the database:</p>\n<pre>");
        page.text(&format!("agd verify {store}{policy}{events}{ca}"));
        page.raw("</pre>\n<p>One event, as a proof that stands alone (put its id in place of 7431-2):</p>\n<pre>");
        let commands = format!("agd prove 7431-2 --store {store} --out event.tlog-proof");
        page.text(&commands).raw("<br>").text(&format!("agd verify-proof event.tlog-proof{policy}"));
        page.raw("</pre>\n<p>Without agd: each folder of the store is a <span class=\"mono\">c2sp.org/tlog-tiles</span> log. Hash an entry as SHA-256 of a zero byte and its bytes; find the hash in <span class=\"mono\">tile/0</span>; climb to the root of <span class=\"mono\">checkpoint</span> (RFC 6962); check that note's Ed25519 signature with the vkey above. agd's <span class=\"mono\">docs/formats.md</span> describes every byte.</p>\n<p>Compare these newest checkpoints with copies that were kept elsewhere:</p>\n<div class=\"wide\"><table><thead><tr><th>Log</th><th class=\"n\">Size</th><th>Root</th></tr></thead><tbody>\n");
        for log in &self.report.logs {
            if let Some(root) = &log.result.signed_root {
                page.raw("<tr><td class=\"mono\">")
                    .text(&log.origin)
                    .raw("</td><td class=\"n\">")
                    .text(&log.result.size.to_string());
                page.raw("</td><td class=\"mono\">").text(&STANDARD.encode(root)).raw("</td></tr>\n");
            }
        }
        page.raw("</tbody></table></div></section>\n");
    }
}

fn rows(page: &mut Markup, findings: &Findings) {
    for finding in findings.list() {
        let number = |number: Option<u64>| number.map_or_else(|| "–".to_owned(), grouped);
        page.raw("<tr><td class=\"mono\">")
            .text(&finding.file)
            .raw("</td><td class=\"n\">")
            .text(&number(finding.index));
        page.raw("</td><td class=\"n\">").text(&number(finding.offset)).raw("</td><td>").text(&finding.message);
        page.raw("</td></tr>\n");
    }
    let more = findings.count() - findings.list().len() as u64;
    if more > 0 {
        page.raw("<tr><td colspan=\"4\">and ").text(&grouped(more)).raw(" more</td></tr>\n");
    }
}

/// A time to the second, for people.
fn second(micros: i64) -> String {
    let text = time(micros);
    let whole = text.split_once('.').map_or(text.as_str(), |(whole, _)| whole);
    format!("{} UTC", whole.replacen('T', " ", 1))
}

fn capital(sentence: &str) -> String {
    let mut rest = sentence.chars();
    rest.next().map(|first| first.to_uppercase().chain(rest).collect()).unwrap_or_default()
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:+@%,=".contains(c);
    if !word.is_empty() && word.chars().all(plain) && !word.starts_with('-') {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Each fleet, with what holds of it and what does not.
fn fleets(page: &mut Markup, fleets: &[JudgedFleet]) {
    if fleets.is_empty() {
        return;
    }
    page.raw("<h3>Fleets</h3>\n<div class=\"wide\"><table class=\"fleets\"><thead><tr><th>Fleet</th><th>Tenant</th><th>State</th><th>Coordinator</th><th>Countersigner</th><th>Result</th></tr></thead><tbody>\n");
    // What is false comes first.
    let (wrong, right): (Vec<_>, Vec<_>) = fleets.iter().partition(|fleet| !fleet.ok);
    for fleet in wrong.iter().chain(&right).take(MAX_FLEETS) {
        let detail = |name: &str| {
            let check = fleet.checks.iter().find(|check| check.name == name);
            check.map_or("not checked", |check| check.detail.as_str())
        };
        page.raw("<tr><td class=\"mono\">").text(&fleet.fleet_id).raw("</td><td>").text(&fleet.tenant);
        page.raw("</td><td>").text(&fleet.state).raw("</td><td>").text(detail("coordinator"));
        page.raw("</td><td>").text(detail("countersigner")).raw("</td><td>");
        page.text(if fleet.ok { "holds" } else { "false" }).raw("</td></tr>\n");
    }
    page.raw("</tbody></table></div>\n");
    if let Some(more) = fleets.len().checked_sub(MAX_FLEETS).filter(|more| *more > 0) {
        page.raw("<p class=\"quiet small\">")
            .text(&counted(more as u64, "further fleet"))
            .raw(" without a line.</p>\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_sentences() {
        assert_eq!(quoted("file:///srv/worm"), "file:///srv/worm");
        assert_eq!(quoted("a'b $(x)"), "'a'\\''b $(x)'");
        assert_eq!(quoted("-rf"), "'-rf'");
        assert_eq!(capital("3 logs"), "3 logs");
        assert_eq!(capital("nothing"), "Nothing");
        assert_eq!(second(951_782_400_000_001), "2000-02-29 00:00:00 UTC");
    }
}
