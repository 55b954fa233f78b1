//! One of the two sides: a session, and what it answers.

use super::script::Step;
use crate::{Error, Result};
use postgres::{Client, SimpleQueryMessage};
use std::io::Write as _;

/// A row as text, column by column.
pub type Row = Vec<Option<String>>;

/// What the server answered to one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// For each statement of the step: its rows, sorted, and the number in its command tag.
    Done(Vec<(Vec<Row>, u64)>),
    /// SQLSTATE, constraint, message.
    Refused { state: String, constraint: Option<String>, message: String },
    /// The session is gone.
    Lost(String),
}

impl Answer {
    /// It succeeded.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self, Answer::Done(_))
    }

    fn of(error: &postgres::Error) -> Answer {
        match error.as_db_error() {
            Some(error) => Answer::Refused {
                state: error.code().code().to_owned(),
                constraint: error.constraint().map(str::to_owned),
                // "tuple to be updated" or "to be deleted": with any BEFORE trigger PostgreSQL says the one for both.
                message: match error.code().code() {
                    "27000" => "tuple was already modified by an operation triggered by the current command".to_owned(),
                    _ => error.message().to_owned(),
                },
            },
            None => Answer::Lost(format!("{error:?}")),
        }
    }
}

/// Result sets of one simple query, one for each statement.
fn result_sets(messages: Vec<SimpleQueryMessage>) -> Vec<(Vec<Row>, u64)> {
    let mut sets = Vec::new();
    let mut rows = Vec::new();
    for message in messages {
        match message {
            SimpleQueryMessage::Row(row) => {
                rows.push((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect());
            }
            SimpleQueryMessage::CommandComplete(count) => sets.push((std::mem::take(&mut rows), count)),
            _ => {}
        }
    }
    sets
}

/// Runs a step. Rows come back sorted: SQL promises no order.
pub fn send(client: &mut Client, step: &Step) -> Answer {
    match step {
        Step::Sql(text) => send_sql(client, &text.render()),
        Step::Copy(sql, data) => {
            // A COPY that is refused before its data is asked for can leave the client library out of step with the
            // server. What a program can have wrong there (a shrunk one names a table that is gone) is asked first.
            if let Some(refused) = refused_at_once(client, sql) {
                return refused;
            }
            let copied = client.copy_in(sql).and_then(|mut copy| {
                // What the server has against the data, it says at the end.
                let _ = copy.write_all(data.render().as_bytes());
                copy.finish()
            });
            match copied {
                Ok(count) => Answer::Done(vec![(Vec::new(), count)]),
                Err(error) => Answer::of(&error),
            }
        }
    }
}

/// COPY table (columns) …: reads no row of these columns. Some: that is refused.
fn refused_at_once(client: &mut Client, copy: &str) -> Option<Answer> {
    let (table, rest) = copy.strip_prefix("COPY ")?.split_once(" (")?;
    let (columns, _) = rest.split_once(") FROM STDIN")?;
    let answer = send_sql(client, &format!("SELECT {columns} FROM {table} LIMIT 0"));
    (!answer.is_done()).then_some(answer)
}

/// Runs SQL as one simple query.
pub fn send_sql(client: &mut Client, sql: &str) -> Answer {
    match client.simple_query(sql) {
        Ok(messages) => {
            let mut sets = result_sets(messages);
            for (rows, _) in &mut sets {
                rows.sort();
            }
            Answer::Done(sets)
        }
        Err(error) => Answer::of(&error),
    }
}

/// The result sets of a simple query that must succeed, in the server's order.
pub fn ask(client: &mut Client, sql: &str) -> Result<Vec<Vec<Row>>> {
    let messages = client.simple_query(sql).map_err(|error| Error::doing(sql, format!("{error:?}")))?;
    Ok(result_sets(messages).into_iter().map(|(rows, _)| rows).collect())
}
