//! Growth curves, drawn beside the tables: one picture a figure, as SVG.
//!
//! Drawn with plotters: the usual choice, kept up, MIT; its SVG backend needs no library of the system's.

use crate::Result;
use plotters::prelude::*;
use std::path::Path;

/// What grows with the log.
#[derive(Clone)]
pub struct Plot {
    /// The file's name, without folder and ending.
    pub name: String,
    /// What is drawn.
    pub title: String,
    /// The unit of the figures.
    pub unit: String,
    /// What the design asks for, as a level line.
    pub goal: Option<f64>,
    /// Curves: a name, and (size, figure) for each size.
    pub curves: Vec<(String, Vec<(f64, f64)>)>,
}

const COLOURS: [RGBColor; 4] =
    [RGBColor(31, 119, 180), RGBColor(214, 39, 40), RGBColor(44, 160, 44), RGBColor(148, 103, 189)];

impl Plot {
    /// Draws it; nothing when there are fewer than two points.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let points = || self.curves.iter().flat_map(|(_, points)| points);
        let sizes = points().map(|(size, _)| *size);
        let (least, most) = (sizes.clone().fold(f64::INFINITY, f64::min), sizes.fold(0.0, f64::max));
        if least >= most {
            return Ok(());
        }
        let highest = points().map(|(_, figure)| *figure).chain(self.goal).fold(0.0, f64::max) * 1.15;
        let path = folder.join(format!("{}.svg", self.name));
        let root = SVGBackend::new(&path, (760, 420)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, ("sans-serif", 18))
            .margin(16)
            .x_label_area_size(42)
            .y_label_area_size(76)
            .build_cartesian_2d((least..most).log_scale(), 0.0..highest)?;
        chart
            .configure_mesh()
            .x_desc("events in the log")
            .y_desc(&self.unit)
            .x_label_formatter(&|size| short(*size))
            .y_label_formatter(&|figure| short(*figure))
            .draw()?;
        for ((name, points), colour) in self.curves.iter().zip(COLOURS) {
            chart
                .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(3))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        }
        if let Some(goal) = self.goal {
            let grey = RGBColor(120, 120, 120);
            chart
                .draw_series(LineSeries::new([(least, goal), (most, goal)], grey))?
                .label("goal")
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], grey));
        }
        chart.configure_series_labels().border_style(BLACK.mix(0.3)).background_style(WHITE.mix(0.8)).draw()?;
        root.present()?;
        Ok(())
    }
}

/// 10k, 2.5M, 0.4
fn short(number: f64) -> String {
    let scaled = |by: f64, unit: &str| {
        let text = format!("{:.1}", number / by);
        format!("{}{unit}", text.strip_suffix(".0").unwrap_or(&text))
    };
    match number {
        n if n >= 1e6 => scaled(1e6, "M"),
        n if n >= 1e3 => scaled(1e3, "k"),
        n if n >= 10.0 => scaled(1.0, ""),
        _ => format!("{number:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Plot, short};

    #[test]
    fn a_curve_is_drawn_with_its_goal() -> crate::Result<()> {
        let folder = std::env::temp_dir().join(format!("agd-plot-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let plot = Plot {
            name: "growth".into(),
            title: "Integration".into(),
            unit: "events/s".into(),
            goal: Some(250_000.0),
            curves: vec![("one transaction".into(), vec![(1e4, 300_000.0), (1e5, 310_000.0), (1e6, 305_000.0)])],
        };
        plot.write(&folder)?;
        let svg = std::fs::read_to_string(folder.join("growth.svg"))?;
        std::fs::remove_dir_all(&folder)?;
        for part in ["<svg", "Integration", "one transaction", "goal", "1M", "</svg>"] {
            assert!(svg.contains(part), "{part} is missing");
        }
        Ok(())
    }

    #[test]
    fn labels_are_short() {
        assert_eq!([10_000.0, 2.5e6, 250_000.0, 0.4].map(short), ["10k", "2.5M", "250k", "0.40"]);
    }
}
