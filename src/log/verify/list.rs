//! The list of logs: whose each is, which incarnation it belongs to, and that nothing is stored of a log that is not there.
//!
//! Owns the comparison of agd.log with the origins that its logs should have, with what the platform log names, with the
//! other tables, and of each incarnation's beginning with the log that it continues. Never looks into a log.

use crate::error::Result;
use crate::log::verify::platform::Recorded;
use crate::log::verify::rows::LogName;
use crate::log::verify::tree::Problems;
use crate::log::verify::{Verification, Verified};
use agd_core::{Incarnation, name};
use std::collections::{BTreeSet, HashSet};

impl Verification {
    /// The origin that a log should have.
    pub fn expected_origin(&self, log: &LogName) -> Option<String> {
        let (log_name, _) = name::split_incarnation(self.platform_origin.as_ref()?);
        let platform = name::incarnation_origin(log_name, log.incarnation);
        Some(match &log.tenant {
            Some(tenant) => name::tenant_origin(&platform, tenant),
            None => platform,
        })
    }

    /// What is wrong with the list of logs.
    pub fn problem_of_logs(&self, verified: &[Verified], recorded: &Recorded) -> Result<Option<String>> {
        let mut problems = Problems::default();
        // One platform log for each incarnation there is, and none left out between them.
        let present: BTreeSet<u32> = self.platforms.iter().map(|platform| platform.incarnation).collect();
        let gap = (1..).zip(&present).find(|(due, found)| due != *found).map(|(due, _)| due);
        let named: BTreeSet<u32> = verified.iter().map(|this| this.log.incarnation).collect();
        let is_first_alone = named.iter().all(|incarnation| *incarnation == 1);
        for incarnation in named.difference(&present).copied().chain(gap).collect::<BTreeSet<u32>>() {
            let which = if is_first_alone { String::new() } else { format!(" of incarnation {incarnation}") };
            problems.add(format!("the platform log{which} is gone"));
        }
        for row in self.view.rows(
            "SELECT l.origin FROM agd.log l WHERE l.opened_by IS NOT NULL AND (l.incarnation = 1 OR l.tenant IS NOT NULL)",
        )? {
            if let [Some(origin)] = row.as_slice() {
                problems.add(format!("agd.log names an event that begins {origin}, and none does"));
            }
        }
        if present.last().is_some_and(|newest| *newest > 1) {
            self.judge_beginnings(verified, &mut problems)?;
        }
        for Verified { log, .. } in verified {
            if let Some(expected) = self.expected_origin(log).filter(|expected| *expected != log.origin) {
                let whose = log
                    .tenant
                    .as_ref()
                    .map_or("the platform log".into(), |tenant| format!("the log of tenant {tenant}"));
                problems.add(format!("{whose} has the origin {}, not {expected}", log.origin));
            }
        }
        let known: HashSet<String> = verified
            .iter()
            .flat_map(|Verified { log, .. }| [Some(log.origin.clone()), self.expected_origin(log)])
            .flatten()
            .collect();
        let mut strangers: Vec<&str> = recorded.origins().filter(|origin| !known.contains(*origin)).collect();
        strangers.sort_unstable();
        for origin in strangers {
            problems.add(format!("the platform log holds checkpoints of {origin}, and there is no such log"));
        }
        for table in ["tile", "checkpoint", "publication", "timestamped"] {
            // From number to number through the index, not row by row.
            let rows = self.view.rows(&format!(
                "WITH RECURSIVE n (log_id) AS (
                   SELECT pg_catalog.min(t.log_id) FROM agd.{table} t
                   UNION ALL
                   SELECT (SELECT pg_catalog.min(t.log_id) FROM agd.{table} t WHERE t.log_id > n.log_id)
                     FROM n WHERE n.log_id IS NOT NULL)
                 SELECT n.log_id FROM n
                  WHERE n.log_id IS NOT NULL AND NOT EXISTS (SELECT FROM agd.log l WHERE l.log_id = n.log_id)"
            ))?;
            for log_id in rows.iter().filter_map(|row| row.first()?.as_ref()) {
                problems.add(format!("agd.{table} has rows of a log {log_id}, and there is no such log"));
            }
        }
        if self.full_scan {
            for row in self.view.rows(
                "SELECT t.log_id, t.level, t.tile_index FROM agd.tile t WHERE t.level NOT BETWEEN 0 AND 7 OR t.tile_index < 0",
            )? {
                if let [Some(log_id), Some(level), Some(index)] = row.as_slice() {
                    problems.add(format!("agd.tile has a tile {index} of level {level} of log {log_id}: no log has such a tile"));
                }
            }
        }
        Ok(problems.text())
    }

    /// What begins a platform log of a later incarnation must name truly the one before.
    fn judge_beginnings(&self, verified: &[Verified], problems: &mut Problems) -> Result<()> {
        let rows = self.view.rows(
            "SELECT l.log_id, e.body,
                    l.size = 0 OR e.key = pg_catalog.substring(COALESCE(t.event_keys, l.open_keys), 1, 12)
               FROM agd.log l
                    LEFT JOIN agd.tile t ON t.log_id = l.log_id AND t.level = 0 AND t.tile_index = 0
                    LEFT JOIN LATERAL (
                      SELECT e.body, pg_catalog.int8send(e.xact_id::text::bigint) || pg_catalog.int4send(e.n) AS key
                        FROM agd.event e WHERE e.xact_id = l.opened_by AND e.action = 'INCARNATION'
                       ORDER BY e.n LIMIT 1) e ON true
              WHERE l.tenant IS NULL AND l.incarnation > 1",
        )?;
        for row in rows {
            let Ok([Some(log_id), body, is_first]) = <[Option<String>; 3]>::try_from(row) else { continue };
            let of = |wanted: &dyn Fn(&LogName) -> bool| {
                verified.iter().find(|this| this.log.tenant.is_none() && wanted(&this.log))
            };
            let Some(this) = of(&|log| log.log_id.to_string() == log_id) else { continue };
            let Some(before) = of(&|log| log.incarnation.checked_add(1) == Some(this.log.incarnation)) else {
                continue;
            };
            let (origin, Verified { log, found, .. }) = (&this.log.origin, before);
            let Some(body) = body else {
                problems.add(format!("the event that begins {origin} is missing"));
                continue;
            };
            if is_first.as_deref() != Some("t") {
                problems.add(format!("leaf 0 of {origin} is not the event that begins it"));
            }
            match Incarnation::parse(&body) {
                Err(problem) => problems.add(format!("the event that begins {origin} cannot be read: {problem}")),
                Ok(Incarnation { closed, .. }) if closed.origin != log.origin || closed.size != log.size => {
                    problems.add(format!(
                        "the event that begins {origin} says that {} ended at size {}, and {} has size {}",
                        closed.origin, closed.size, log.origin, log.size
                    ));
                }
                // Where the log itself does not hold, that is its own finding.
                Ok(Incarnation { closed, .. })
                    if found.end.size == log.size && Some(closed.root) != found.end.root() =>
                {
                    problems.add(format!(
                        "the event that begins {origin} says that {} ended with another root than it has",
                        closed.origin
                    ));
                }
                Ok(_) => {}
            }
        }
        Ok(())
    }
}
