//! Rows of fleets' tables as their images have them.
//!
//! Owns the way from an image's JSON to values: what `image->>'column'` is in PostgreSQL. Promises that a jsonb value comes
//! out as the very text that PostgreSQL prints, since that text is hashed. Never guesses: what is not just so is `None`.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::super::context::Agent;
use super::super::verify::Signer;
use crate::entry::parse::Reader;

/// The columns of one row, each with its text; SQL NULL has none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Row(BTreeMap<String, Option<String>>);

impl Row {
    /// Reads an image. `None`: it is no JSON object.
    pub fn parse(image: &str) -> Option<Self> {
        let columns: BTreeMap<String, Box<RawValue>> = serde_json::from_str(image).ok()?;
        let text = |raw: &RawValue| -> Option<Option<String>> {
            Some(match raw.get() {
                "null" => None,
                quoted if quoted.starts_with('"') => Some(serde_json::from_str(quoted).ok()?),
                other => Some(other.to_owned()),
            })
        };
        columns.into_iter().map(|(name, raw)| Some((name, text(&raw)?))).collect::<Option<_>>().map(Self)
    }

    /// A column's text. `None`: NULL, or no such column.
    pub fn get(&self, column: &str) -> Option<&str> {
        self.0.get(column)?.as_deref()
    }

    /// The same, where there must be one.
    pub fn text(&self, column: &str) -> String {
        self.get(column).unwrap_or_default().to_owned()
    }

    /// A number.
    pub fn number<T: std::str::FromStr>(&self, column: &str) -> Option<T> {
        self.get(column)?.parse().ok()
    }

    /// bytea: `\x` and two digits a byte.
    pub fn bytes(&self, column: &str) -> Option<Vec<u8>> {
        let digits = self.get(column)?.strip_prefix("\\x")?.as_bytes();
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|value| value as u8);
        digits
            .chunks(2)
            .map(|pair| match pair {
                [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
                _ => None,
            })
            .collect()
    }

    /// timestamptz, in microseconds since 1970-01-01 UTC.
    pub fn time(&self, column: &str) -> Option<i64> {
        let text = self.get(column)?.strip_suffix("+00:00")?;
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
        let canonical = format!("{seconds}.{fraction:0<6}Z\"");
        let mut reader = Reader::new(&canonical);
        let time = reader.time("").ok()?;
        reader.end().ok()?;
        Some(time)
    }

    /// The columns in which two rows differ.
    pub fn differs_in<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a str> {
        let names = self.0.keys().chain(other.0.keys().filter(|name| !self.0.contains_key(*name)));
        names.map(String::as_str).filter(|name| self.get(name) != other.get(name))
    }

    /// The names of the columns, in order.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// A row of agd.fleet_agent.
    pub fn agent(&self) -> Agent {
        Agent { role: self.text("role"), goals: self.text("goals"), memory_scope: self.text("memory_scope") }
    }

    /// A row of agd.signer.
    pub fn signer(&self) -> Option<Signer> {
        Some(Signer {
            name: self.get("signer")?.to_owned(),
            duty: self.get("duty")?.to_owned(),
            key: self.bytes("public_key")?,
            registered_at: self.time("registered_at")?,
            revoked_at: match self.get("revoked_at") {
                Some(_) => Some(self.time("revoked_at")?),
                None => None,
            },
        })
    }
}
