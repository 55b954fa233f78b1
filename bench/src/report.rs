//! The tables, as Markdown that reads well in a terminal too, and all single figures as JSON.

use crate::options::Options;
use crate::plot::Plot;
use crate::server::{self, Session};
use crate::{Bench, Result, machine, stats};
use serde_json::{Map, Value, json};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// One table with its notes.
pub struct Section {
    /// The name in the JSON.
    pub key: &'static str,
    /// The heading.
    pub title: String,
    /// The columns' names.
    pub columns: Vec<String>,
    /// The cells, as many a row as there are columns.
    pub rows: Vec<Vec<String>>,
    /// What one has to know to read the table, a sentence or two each.
    pub notes: Vec<String>,
    /// Every single figure.
    pub raw: Value,
    /// Curves to be drawn beside the table.
    pub plots: Vec<Plot>,
}

impl Section {
    /// A table without rows yet.
    pub fn new(key: &'static str, title: impl Into<String>, columns: &[&str]) -> Self {
        Self {
            key,
            title: title.into(),
            columns: columns.iter().map(|name| (*name).to_owned()).collect(),
            rows: Vec::new(),
            notes: Vec::new(),
            raw: Value::Object(Map::new()),
            plots: Vec::new(),
        }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "## {}\n", self.title)?;
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| &row[column]).chain([&self.columns[column]]);
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0).max(3)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |f: &mut fmt::Formatter<'_>, cells: &[String]| {
            for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                // Figures stand at the right, what they are figures of at the left.
                if column == 0 { write!(f, "| {cell:<width$} ")? } else { write!(f, "| {cell:>width$} ")? }
            }
            writeln!(f, "|")
        };
        line(f, &self.columns)?;
        for (column, width) in widths.iter().enumerate() {
            if column == 0 { write!(f, "|{:-<1$}", "", width + 2)? } else { write!(f, "|{:-<1$}:", "", width + 1)? }
        }
        writeln!(f, "|")?;
        for row in &self.rows {
            line(f, row)?;
        }
        if !self.notes.is_empty() {
            writeln!(f)?;
        }
        for note in &self.notes {
            writeln!(f, "- {note}")?;
        }
        Ok(())
    }
}

/// The whole of a run.
pub struct Report {
    taken_at: String,
    machine: String,
    load: String,
    flush: f64,
    settings: Vec<(String, String)>,
    build: String,
    quick: bool,
    sections: Vec<Section>,
}

impl Report {
    /// Looks at the machine and at a server that is set up like all others.
    ///
    /// # Errors
    /// If there is no such server.
    pub fn begin(bench: &Bench) -> Result<Self> {
        let load = machine::load();
        let cluster = server::start("agd")?;
        let mut session = Session::open(&cluster, "postgres")?;
        let version: String = session
            .one("SELECT coalesce((SELECT default_version FROM pg_available_extensions WHERE name = 'agd'), '')")?;
        if version.is_empty() {
            return Err("the extension agd is not installed in the PostgreSQL of AGD_PG_BIN".into());
        }
        Ok(Self {
            taken_at: session.one("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') || ' UTC'")?,
            machine: machine::describe(),
            load,
            flush: machine::flush_time(&cluster.data_dir())?,
            settings: server::settings(&mut session)?,
            build: format!("{version} ({})", std::env::var("AGD_BUILD").as_deref().unwrap_or("build not known")),
            quick: bench.options.quick,
            sections: Vec::new(),
        })
    }

    /// What stands above the tables.
    pub fn heading(&self) -> String {
        let settings: Vec<String> =
            self.settings.iter().skip(1).map(|(name, value)| format!("{name} = {value}")).collect();
        let version = self.settings.first().map_or("", |(_, version)| version);
        let mut text = format!(
            "# What agd costs\n\n\
             - taken: {}, agd {}, PostgreSQL {version}\n\
             - machine: {}; one block flushed to disk in {} µs; load when it began: {}\n\
             - every server alike: {}\n\
             - medians of the rounds; ratios are medians of the rounds' ratios, with the lowest and the highest\n\
             - goals are of the design, for a quiet machine with 2 cores; nothing here is asserted\n",
            self.taken_at,
            self.build,
            self.machine,
            stats::figure(self.flush),
            if self.load.is_empty() { "not known" } else { &self.load },
            settings.join(", "),
        );
        if self.quick {
            text.push_str("- **quick**: small sizes and short rounds; these figures say little about costs\n");
        }
        text
    }

    /// Adds a table.
    pub fn add(&mut self, section: Section) {
        self.sections.push(section);
    }

    /// Writes both files and returns the path of the Markdown. Only a complete run takes the place of `latest.md`.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, options: &Options, failed: &[&str]) -> Result<PathBuf> {
        let name = match (options.is_complete() && failed.is_empty(), options.quick) {
            (true, _) => "latest",
            (false, true) => "quick",
            (false, false) => "partial",
        };
        let folder = Path::new("bench/results");
        fs::create_dir_all(folder)?;
        let mut text = self.heading();
        for section in &self.sections {
            text.push_str(&format!("\n{section}"));
        }
        for plot in self.sections.iter().flat_map(|section| &section.plots) {
            let plot = Plot { name: format!("{name}-{}", plot.name), ..plot.clone() };
            plot.write(folder)?;
        }
        if !failed.is_empty() {
            text.push_str(&format!("\nCould not be measured: {}.\n", failed.join(", ")));
        }
        let sections: Map<String, Value> =
            self.sections.iter().map(|section| (section.key.to_owned(), section.raw.clone())).collect();
        let settings: Map<String, Value> =
            self.settings.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
        let raw = json!({
            "taken_at": self.taken_at,
            "agd": self.build,
            "machine": self.machine,
            "load": self.load,
            "flush_us": self.flush,
            "settings": settings,
            "quick": self.quick,
            "not_measured": failed,
            "sections": sections,
        });
        fs::write(folder.join(format!("{name}.json")), format!("{raw:#}\n"))?;
        let path = folder.join(format!("{name}.md"));
        fs::write(&path, text)?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::Section;

    #[test]
    fn a_table_is_aligned_by_characters() {
        let mut section = Section::new("key", "Title", &["", "agd", "goal"]);
        section.rows.push(vec!["INSERT … SELECT".into(), "4.90".into(), "≤ 2.2".into()]);
        section.rows.push(vec!["DELETE".into(), "12.3".into(), String::new()]);
        section.notes.push("A note.".into());
        assert_eq!(
            section.to_string(),
            "## Title\n\n\
             |                 |  agd |  goal |\n\
             |-----------------|-----:|------:|\n\
             | INSERT … SELECT | 4.90 | ≤ 2.2 |\n\
             | DELETE          | 12.3 |       |\n\n\
             - A note.\n"
        );
    }
}
