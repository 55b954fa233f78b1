//! The timeline of a log: its size over time, its anchors, and the timestamps on them, as a drawing.
//!
//! Owns the points and the SVG. Promises a bounded number of points however long the log is, with the first and the newest
//! among them. An anchor's time is that of the newest event under it, which is in the log itself: checkpoints have no clock.

use agd_core::entry;

use super::markup::Markup;
use crate::report::{grouped, time};
use crate::store::Reader;
use crate::verify::leaves::Leaves;
use crate::verify::{LogReport, Report};

/// The most anchors that are drawn of one log.
pub const MAX_POINTS: usize = 240;

/// The drawing, and the room around the plot in it.
const WIDTH: f64 = 920.0;
const HEIGHT: f64 = 210.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;

/// An anchor: a published size, and the commit time of the newest event under it, microseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    /// Leaves.
    pub size: u64,
    /// When.
    pub at: i64,
}

/// A timestamp on a published checkpoint that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timestamp {
    /// The log.
    pub origin: String,
    /// Leaves under the checkpoint.
    pub size: u64,
    /// The time that the authority says, microseconds since 1970.
    pub at: i64,
    /// The authority.
    pub by: String,
}

/// The anchors of a log that are drawn.
pub fn anchors(reader: &Reader, log: &LogReport) -> Vec<Anchor> {
    let sizes: Vec<u64> = log.result.published.iter().copied().filter(|size| *size > 0).collect();
    let mut leaves = Leaves::new(reader, &log.origin, log.result.size, &log.result.tiles);
    let mut newest = i64::MIN;
    let mut found = Vec::new();
    for size in thinned(&sizes, MAX_POINTS) {
        // What cannot be read is among the findings already.
        let Some(entry) = leaves.get(size - 1).ok().and_then(|bytes| entry::parse(bytes).ok()) else {
            continue;
        };
        newest = newest.max(entry.committed_at);
        found.push(Anchor { size, at: newest });
    }
    found
}

/// The timestamps that were found to hold.
pub fn timestamps(report: &Report) -> Vec<Timestamp> {
    let mut found = Vec::new();
    for log in &report.logs {
        if let Some(stamps) = &log.timestamps {
            found.extend(stamps.held.iter().map(|held| Timestamp {
                origin: log.origin.clone(),
                size: held.size,
                at: held.at,
                by: stamps.signers.get(held.by).cloned().unwrap_or_default(),
            }));
        }
    }
    found
}

/// The timestamps of a log that are drawn.
pub fn thinned_stamps(stamps: &[Timestamp], origin: &str) -> Vec<Timestamp> {
    let of_log: Vec<&Timestamp> = stamps.iter().filter(|stamp| stamp.origin == origin).collect();
    thinned(&of_log, MAX_POINTS).into_iter().cloned().collect()
}

/// At most `count` of them, evenly, the first and the last included.
fn thinned<T: Copy>(all: &[T], count: usize) -> Vec<T> {
    if all.len() <= count || count < 2 {
        return all.to_vec();
    }
    (0..count).filter_map(|at| all.get(at * (all.len() - 1) / (count - 1)).copied()).collect()
}

/// The first and the last moment of several logs, with a little room.
pub fn span<'a>(logs: impl Iterator<Item = &'a [Anchor]>, stamps: &[Timestamp]) -> Option<(i64, i64)> {
    let times = logs.flatten().map(|anchor| anchor.at).chain(stamps.iter().map(|stamp| stamp.at));
    let (mut first, mut last) = times.fold((i64::MAX, i64::MIN), |(a, b), at| (a.min(at), b.max(at)));
    if first > last {
        return None;
    }
    if last.saturating_sub(first) < 1_000_000 {
        (first, last) = (first.saturating_sub(500_000), last.saturating_add(500_000));
    }
    let room = (last.saturating_sub(first) / 60).max(1);
    Some((first.saturating_sub(room), last.saturating_add(room)))
}

/// Draws one log. `title` is read out to whoever cannot see the drawing.
pub fn draw(svg: &mut Markup, title: &str, anchors: &[Anchor], stamps: &[Timestamp], span: (i64, i64)) {
    let plot = Plot::new(span, anchors.last().map_or(1, |anchor| anchor.size));
    svg.raw("<svg viewBox=\"0 0 920 210\" role=\"img\"><title>").text(title).raw("</title>");
    plot.axes(svg);
    let base = HEIGHT - BOTTOM;
    if let Some(first) = anchors.first() {
        // A log grows in steps, and stands between them.
        let mut line = Markup::default();
        let mut before = base;
        for anchor in anchors {
            let (x, y) = (plot.x(anchor.at), plot.y(anchor.size));
            line.raw(" L").at(x).raw(" ").at(before).raw(" L").at(x).raw(" ").at(y);
            before = y;
        }
        line.raw(" L").at(plot.x(span.1)).raw(" ").at(before);
        let start = plot.x(first.at);
        svg.raw("<path class=\"area\" d=\"M").at(start).raw(" ").at(base).add(&line);
        svg.raw(" L").at(plot.x(span.1)).raw(" ").at(base).raw(" Z\"/>");
        svg.raw("<path class=\"curve\" d=\"M").at(start).raw(" ").at(base).add(&line).raw("\"/>");
    }
    for anchor in anchors {
        svg.raw("<circle class=\"anchor\" r=\"2.4\" cx=\"")
            .at(plot.x(anchor.at))
            .raw("\" cy=\"")
            .at(plot.y(anchor.size));
        svg.raw("\"><title>")
            .text(&format!("size {}, {}", grouped(anchor.size), time(anchor.at)))
            .raw("</title></circle>");
    }
    for stamp in stamps {
        let (x, y) = (plot.x(stamp.at), plot.y(stamp.size));
        svg.raw("<path class=\"stamp\" d=\"M").at(x).raw(" ").at(y - 9.0).raw(" l4.5 -8 l-9 0 Z\"><title>");
        svg.text(&format!("timestamp on size {}, {}, by {}", grouped(stamp.size), time(stamp.at), stamp.by));
        svg.raw("</title></path>");
    }
    svg.raw("</svg>");
}

struct Plot {
    first: i64,
    last: i64,
    largest: u64,
}

impl Plot {
    fn new((first, last): (i64, i64), largest: u64) -> Self {
        Self { first, last: last.max(first.saturating_add(1)), largest: largest.max(1) }
    }

    fn x(&self, at: i64) -> f64 {
        let part =
            (i128::from(at) - i128::from(self.first)) as f64 / (i128::from(self.last) - i128::from(self.first)) as f64;
        LEFT + part.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, size: u64) -> f64 {
        let part = size as f64 / self.largest as f64;
        HEIGHT - BOTTOM - part.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM)
    }

    fn axes(&self, svg: &mut Markup) {
        for size in sizes(self.largest) {
            let y = self.y(size);
            svg.raw("<path class=\"grid\" d=\"M66 ")
                .at(y)
                .raw(" H906\"/><text text-anchor=\"end\" x=\"58\" y=\"")
                .at(y + 4.0);
            svg.raw("\">").text(&grouped(size)).raw("</text>");
        }
        let mut day = String::new();
        for at in moments(self.first, self.last) {
            let x = self.x(at);
            svg.raw("<path class=\"axis\" d=\"M").at(x).raw(" 170 v5\"/><text text-anchor=\"middle\" x=\"").at(x);
            let text = time(at);
            let (date, clock) = text.split_once('T').unwrap_or((&text, ""));
            let whole_days = clock.starts_with("00:00:00");
            let clock = clock.get(..8).unwrap_or_default();
            let clock = clock.strip_suffix(":00").unwrap_or(clock);
            svg.raw("\" y=\"188\">").text(if whole_days { "" } else { clock }).raw("</text>");
            // The date stands once for all the times of its day.
            if day != date {
                svg.raw("<text text-anchor=\"middle\" x=\"").at(x).raw("\" y=\"203\">").text(date).raw("</text>");
                day = date.to_owned();
            }
        }
        svg.raw("<path class=\"axis\" d=\"M66 170 H906\"/>");
    }
}

/// Up to five round numbers from 0 on: 1, 2, 5, 10, 20, 50, … apart.
fn sizes(largest: u64) -> Vec<u64> {
    let round = |power| [1, 2, 5].map(|factor: u64| factor.saturating_mul(10_u64.saturating_pow(power)));
    let step = (0..20).flat_map(round).find(|step| largest / step <= 4).unwrap_or(largest.max(1));
    (0..=largest / step).map(|n| n * step).collect()
}

/// Round moments between two, at most eight.
fn moments(first: i64, last: i64) -> Vec<i64> {
    const SECOND: i64 = 1_000_000;
    const STEPS: [i64; 22] = [
        1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800,
        604_800, 2_592_000, 31_536_000,
    ];
    let length = last.saturating_sub(first);
    let fits = |step: &&i64| length / (**step * SECOND) < 8;
    let step = STEPS.iter().find(fits).map_or_else(|| (length / 8).max(1), |step| step * SECOND);
    let start = first.div_euclid(step).saturating_add(1).saturating_mul(step);
    std::iter::successors(Some(start), |at| at.checked_add(step)).take_while(|at| *at <= last).take(9).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn round_numbers_and_moments() {
        assert_eq!(sizes(1), [0, 1]);
        assert_eq!(sizes(10), [0, 5, 10]);
        assert_eq!(sizes(700), [0, 200, 400, 600]);
        assert_eq!(sizes(65_793), [0, 20_000, 40_000, 60_000]);
        let (hour, day) = (3_600_000_000, 86_400_000_000);
        assert_eq!(moments(1, 6 * hour), (1..=6).map(|n| n * hour).collect::<Vec<_>>());
        assert_eq!(moments(0, 3 * day).len(), 6);
    }

    #[test]
    fn few_are_drawn_of_many() {
        let many: Vec<u64> = (1..=100_000).collect();
        let some = thinned(&many, MAX_POINTS);
        assert_eq!((some.len(), some[0], some[MAX_POINTS - 1]), (MAX_POINTS, 1, 100_000));
        assert_eq!(thinned(&[7], MAX_POINTS), [7]);
    }

    proptest! {
        #[test]
        fn whatever_the_log_says_there_is_a_drawing(
            points in proptest::collection::vec((any::<u64>(), any::<i64>()), 0..20), first in any::<i64>(), last in any::<i64>(),
        ) {
            let anchors: Vec<Anchor> = points.iter().map(|(size, at)| Anchor { size: *size, at: *at }).collect();
            let stamps: Vec<Timestamp> = points
                .iter()
                .map(|(size, at)| Timestamp { origin: String::new(), size: *size, at: *at, by: String::new() })
                .collect();
            let mut svg = Markup::default();
            draw(&mut svg, "t", &anchors, &stamps, (first, last));
            let span = span(std::iter::once(&anchors[..]), &stamps);
            prop_assert_eq!(span.is_some(), !anchors.is_empty());
            draw(&mut svg, "t", &anchors, &stamps, span.unwrap_or((0, 0)));
            let drawn = svg.into_string();
            prop_assert!(!drawn.contains("NaN") && !drawn.contains("inf"));
            prop_assert!(moments(first, last).len() <= 9);
        }

        #[test]
        fn axes_have_few_numbers(largest in 1_u64..) {
            let sizes = sizes(largest);
            prop_assert!(sizes.len() >= 2 && sizes.len() <= 5, "{:?}", sizes);
        }
    }
}
