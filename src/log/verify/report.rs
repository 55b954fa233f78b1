//! What `agd.verify()` says.
//!
//! Owns the words for what holds, and the order of the lines. Promises one line for each check that was made, and none for
//! one that was not. What is wrong, its finders say.

use crate::log::verify::{Verification, Verified, complete};

/// One line of the report.
pub struct Check {
    /// The log, or all of them.
    pub origin: String,
    /// What was checked.
    pub name: &'static str,
    /// It holds.
    pub ok: bool,
    /// How many of its kind were looked at.
    pub entries: u64,
    /// What does not hold, or that all does.
    pub detail: String,
}

impl Check {
    fn of(
        origin: &str,
        name: &'static str,
        entries: u64,
        problem: Option<String>,
        fine: impl FnOnce() -> String,
    ) -> Self {
        Check { origin: origin.to_owned(), name, ok: problem.is_none(), entries, detail: problem.unwrap_or_else(fine) }
    }
}

/// What the report calls all logs together.
const DATABASE: &str = "(database)";

impl Verification {
    /// The lines, the platform's logs last.
    pub fn report(
        &self,
        mut verified: Vec<Verified>,
        logs_problem: Option<String>,
        complete: Option<(complete::Outcome, Option<String>)>,
    ) -> Vec<Check> {
        // As the logs are listed everywhere: the platform's last.
        let platforms = verified.iter().take_while(|this| this.log.tenant.is_none()).count();
        verified.rotate_left(platforms);
        let mut checks = Vec::new();
        for Verified { log, found, platform, guards } in &verified {
            let origin = log.origin.as_str();
            if let Some(problem) = &found.log {
                checks.push(Check::of(origin, "log", 0, Some(problem.clone()), String::new));
            } else {
                let fine = |whole: &str, new: &str| match found.from {
                    0 => whole.to_owned(),
                    from if from == log.size => format!("nothing new: {from} leaves were verified before"),
                    from => format!("{new} (from leaf {from} on)"),
                };
                checks.extend([
                    Check::of(origin, "events", found.scanned, found.events.text(), || {
                        fine("every event hashes to its leaf", "every new event hashes to its leaf")
                    }),
                    Check::of(origin, "tiles", found.scanned, found.tiles.text(), || {
                        fine("every tile holds its leaves and roots", "every new tile holds its leaves and roots")
                    }),
                    Check::of(origin, "anchors", found.anchor_count, found.anchors.text(), || {
                        fine(
                            "every anchor has the root of its leaves, and a guard state that was in force",
                            "every new anchor has the root of its leaves, and a guard state that was in force",
                        )
                    }),
                ]);
            }
            let fine = |entries: u64, whole: &str, new: &str, nothing: &str| {
                let text = match (self.counted(log.log_id).anchored, entries) {
                    (0, _) => whole,
                    (_, 0) => nothing,
                    _ => new,
                };
                text.to_owned()
            };
            if let Some((anchors, problem)) = platform {
                checks.push(Check::of(origin, "platform", *anchors, problem.clone(), || {
                    fine(
                        *anchors,
                        "every anchor stands in the platform log",
                        "every new anchor stands in the platform log",
                        "nothing new",
                    )
                }));
            }
            if let Some((states, problem)) = guards {
                checks.push(Check::of(origin, "guards", *states, problem.clone(), || {
                    fine(
                        *states,
                        "every guard is intact, and was whenever the guards changed",
                        "every guard is intact, and was whenever the guards changed since the last verification",
                        "every guard is intact, and the guards have not changed since the last verification",
                    )
                }));
            }
        }
        if let Some((outcome, problem)) = complete {
            checks.push(Check::of(DATABASE, "logs", verified.len() as u64, logs_problem, || {
                "every log is its tenant's, every tile and anchor a log's".into()
            }));
            checks.push(Check::of(DATABASE, "complete", outcome.leaves, problem, || {
                let since = if outcome.since_earlier { " since the last verification" } else { "" };
                let waiting = match outcome.waiting {
                    0 => "none waits for integration".into(),
                    1 => "one waits for integration".into(),
                    waiting => format!("{waiting} wait for integration"),
                };
                format!("every event{since} is one leaf, and {waiting}")
            }));
        }
        checks
    }
}
