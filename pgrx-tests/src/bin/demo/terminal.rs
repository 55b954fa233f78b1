//! How the demo looks: numbered steps, wrapped text, SQL as psql shows it, aligned figures.
//!
//! Nothing is wider than [`WIDTH`] unless one word or a line of SQL is. Bold and colour only on a terminal, and not
//! when NO_COLOR is set.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};

/// Columns.
const WIDTH: usize = 100;
/// The margin of what is told, and of what is quoted.
const TEXT: usize = 3;
const QUOTE: usize = 5;

/// Standard output.
pub struct Terminal {
    styled: bool,
}

impl Terminal {
    /// Finds out whether a person watches.
    pub fn new() -> Self {
        Self { styled: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    fn line(&self, margin: usize, text: &str, style: &str) {
        let mut out = std::io::stdout().lock();
        // Whoever closed the pipe has seen enough; the steps and the exit code go on.
        let _ = match (text.is_empty(), self.styled && !style.is_empty()) {
            (true, _) => writeln!(out),
            (_, true) => writeln!(out, "{:margin$}\x1b[{style}m{text}\x1b[0m", ""),
            (_, false) => writeln!(out, "{:margin$}{text}", ""),
        };
        let _ = out.flush();
    }

    /// The first lines.
    pub fn title(&self, title: &str, below: &str) {
        self.line(0, title, "1");
        wrapped(below, WIDTH).iter().for_each(|line| self.line(0, line, ""));
    }

    /// A step's heading; also of what comes after the last step, without a number.
    pub fn heading(&self, number: Option<usize>, title: &str) {
        self.line(0, "", "");
        match number {
            Some(number) => self.line(0, &format!("{number}. {title}"), "1"),
            None => self.line(TEXT, title, "1"),
        }
    }

    /// A paragraph.
    pub fn say(&self, text: &str) {
        self.line(0, "", "");
        wrapped(text, WIDTH - TEXT).iter().for_each(|line| self.line(TEXT, line, ""));
    }

    /// SQL at a prompt, as it could be typed. An empty line before it unless it `follows` other SQL.
    pub fn sql(&self, prompt: &str, sql: &str, follows: bool) {
        if !follows {
            self.line(0, "", "");
        }
        let mut before = prompt.to_owned();
        for line in dedented(sql) {
            self.line(QUOTE, &format!("{before}{line}"), "36");
            before = " ".repeat(prompt.chars().count());
        }
    }

    /// A command at a shell's prompt.
    pub fn command(&self, command: &str) {
        self.line(0, "", "");
        // An option stays on one line with its value.
        let parts: Vec<&str> = command.split(" --").collect();
        let mut current = format!("$ {}", parts.first().copied().unwrap_or_default());
        for part in parts.iter().skip(1) {
            if current.chars().count() + part.chars().count() + 3 > WIDTH - QUOTE {
                self.line(QUOTE, &current, "36");
                current = format!("    --{part}");
            } else {
                current = format!("{current} --{part}");
            }
        }
        self.line(QUOTE, &current, "36");
    }

    /// What a program or the server answered. What is too long goes on deeper on the next line.
    pub fn answer(&self, text: &str) {
        for line in text.trim_end().lines() {
            let margin = QUOTE + line.len() - line.trim_start().len();
            let line = line.trim_start();
            if margin + line.chars().count() <= WIDTH {
                self.line(margin, line, "");
                continue;
            }
            let mut deeper = 0;
            for part in wrapped(line, WIDTH - margin - 4) {
                self.line(margin + deeper, &part, "");
                deeper = 4;
            }
        }
    }

    /// Figures with their names, values in one column.
    pub fn figures(&self, figures: &[(&str, String)]) {
        self.line(0, "", "");
        let width = figures.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, value) in figures {
            let mut before = format!("{name:width$}");
            for part in wrapped(value, WIDTH - QUOTE - width - 2) {
                self.line(QUOTE, &format!("{before}  {part}"), "");
                before = " ".repeat(width);
            }
        }
    }

    /// A table as psql draws one; columns of numbers are aligned to the right.
    pub fn table(&self, headings: &[&str], rows: &[Vec<String>]) {
        if rows.is_empty() {
            self.line(QUOTE, "(0 rows)", "");
            return;
        }
        self.line(0, "", "");
        let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
        let columns: Vec<(usize, bool)> = headings
            .iter()
            .enumerate()
            .map(|(column, heading)| {
                let width = cells(column).map(|cell| cell.chars().count()).max().unwrap_or(0);
                (width.max(heading.chars().count()), cells(column).all(|cell| is_number(cell)))
            })
            .collect();
        let draw = |row: &[&str], heading: bool| {
            let drawn: Vec<String> = row
                .iter()
                .zip(&columns)
                .map(|(cell, (width, number))| match (heading, number) {
                    (true, _) => format!(" {cell:^width$} "),
                    (_, true) => format!(" {cell:>width$} "),
                    _ => format!(" {cell:<width$} "),
                })
                .collect();
            drawn.join("|").trim_end().to_owned()
        };
        self.line(QUOTE, &draw(headings, true), "");
        let rules: Vec<String> = columns.iter().map(|(width, _)| "-".repeat(width + 2)).collect();
        self.line(QUOTE, &rules.join("+"), "");
        for row in rows {
            self.line(QUOTE, &draw(&row.iter().map(String::as_str).collect::<Vec<_>>(), false), "");
        }
    }

    /// The last line of all.
    pub fn verdict(&self, text: &str) {
        self.line(0, "", "");
        wrapped(text, WIDTH - TEXT).iter().for_each(|line| self.line(TEXT, line, "1"));
    }
}

/// A number with a comma at every third digit.
pub fn grouped(number: impl Display) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && digit.is_ascii_digit() && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn is_number(cell: &str) -> bool {
    !cell.is_empty() && cell.chars().all(|c| c.is_ascii_digit() || matches!(c, ',' | '.'))
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut current = String::new();
    for word in text.split([' ', '\n']) {
        if !current.is_empty() && current.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::take(&mut current));
        } else if !current.is_empty() {
            current.push(' ');
        }
        current.push_str(word);
    }
    lines.push(current);
    lines
}

/// The lines of a literal without the indentation that they share, first line apart.
fn dedented(text: &str) -> Vec<&str> {
    let text = text.trim();
    let shared = text
        .lines()
        .skip(1)
        .filter(|line| !line.trim().is_empty())
        .map(|line| line.len() - line.trim_start().len())
        .min()
        .unwrap_or(0);
    text.lines()
        .enumerate()
        .map(|(number, line)| if number == 0 { line } else { line.get(shared..).unwrap_or("") })
        .collect()
}
