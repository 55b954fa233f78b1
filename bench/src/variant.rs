//! What is compared.

use crate::server::Session;
use crate::{Bench, Result};
use agd_live_tests::Cluster;

/// A way to know what was written to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Not at all: the base of every ratio.
    Unguarded,
    /// `agd.guard()`.
    Agd,
    /// What most people write first: a PL/pgSQL AFTER ROW trigger that keeps the old and the new row as jsonb.
    Trigger,
    /// pgaudit's session log, class `write`, with parameters: a line in the server's log for each statement.
    Pgaudit,
    /// supa_audit, where its script was given: a PL/pgSQL trigger as above, with an identity for each row's history.
    SupaAudit,
}

/// What a table can carry itself. pgaudit works on sessions and statements, whatever the rows.
pub fn per_row(bench: &Bench) -> Vec<Variant> {
    let supa_audit = bench.options.supa_audit.is_some().then_some(Variant::SupaAudit);
    [Variant::Unguarded, Variant::Agd, Variant::Trigger].into_iter().chain(supa_audit).collect()
}

const TRIGGER: &str = "
CREATE TABLE audit (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  who text NOT NULL DEFAULT session_user,
  relation text NOT NULL,
  action text NOT NULL,
  old jsonb,
  new jsonb
);
CREATE FUNCTION audit_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO audit (relation, action, old, new)
  VALUES (TG_TABLE_NAME, TG_OP,
          CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END,
          CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END);
  RETURN NULL;
END
$$;";

impl Variant {
    /// What the tables of the report call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unguarded => "unguarded",
            Self::Agd => "agd",
            Self::Trigger => "jsonb trigger",
            Self::Pgaudit => "pgaudit write",
            Self::SupaAudit => "supa_audit",
        }
    }

    /// The name of its database, and its key in the JSON.
    pub fn key(self) -> &'static str {
        match self {
            Self::Unguarded => "unguarded",
            Self::Agd => "agd",
            Self::Trigger => "jsonb_trigger",
            Self::Pgaudit => "pgaudit",
            Self::SupaAudit => "supa_audit",
        }
    }

    /// Prepares this variant's database.
    ///
    /// # Errors
    /// What the server says; or supa_audit's script cannot be read.
    pub fn install(self, bench: &Bench, cluster: &Cluster) -> Result<()> {
        let mut session = Session::open(cluster, self.key())?;
        match self {
            Self::Unguarded => Ok(()),
            Self::Agd => session.run("CREATE EXTENSION agd"),
            Self::Trigger => session.run(TRIGGER),
            Self::Pgaudit => session.run(
                "CREATE EXTENSION pgaudit;
                 ALTER DATABASE pgaudit SET pgaudit.log = 'write';
                 ALTER DATABASE pgaudit SET pgaudit.log_parameter = on",
            ),
            Self::SupaAudit => {
                let script = bench.options.supa_audit.as_ref().map(std::fs::read_to_string).transpose()?;
                session.run("CREATE EXTENSION \"uuid-ossp\"")?;
                // What a dump is to hold is only asked for within CREATE EXTENSION.
                let lines = script.iter().flat_map(|script| script.lines());
                let script: Vec<&str> = lines.filter(|line| !line.contains("pg_extension_config_dump")).collect();
                session.run(&script.join("\n"))
            }
        }
    }

    /// Puts a table under this variant.
    ///
    /// # Errors
    /// What the server says.
    pub fn guard(self, session: &mut Session, table: &str) -> Result<()> {
        match self {
            Self::Unguarded | Self::Pgaudit => Ok(()),
            // A baseline is part of setting up, not of writing.
            Self::Agd => session.run(&format!("SELECT agd.guard('{table}', baseline => false)")),
            Self::Trigger => session.run(&format!(
                "CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON {table}
                   FOR EACH ROW EXECUTE FUNCTION audit_row()"
            )),
            Self::SupaAudit => session.run(&format!("SELECT audit.enable_tracking('{table}'::regclass)")),
        }
    }

    /// Waits until nothing of this variant is at work any more.
    ///
    /// # Errors
    /// What the server says.
    pub fn settle(self, session: &mut Session) -> Result<()> {
        if self == Self::Agd { session.anchor() } else { Ok(()) }
    }
}

/// Whose turn it is, in order: every second round goes backwards, so that no variant always follows the same one.
pub fn turns(variants: &[Variant], round: usize) -> Vec<Variant> {
    let mut turns = variants.to_vec();
    if round % 2 == 1 {
        turns.reverse();
    }
    turns
}
