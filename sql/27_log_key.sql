-- The keys that sign this database's logs outside of it. What publishers report is believed with a note signed by one of them.
-- Before the guards: the table is behind the gate like all that carry decisions.

-- Public halves only, as vkeys of C2SP signed-note. Keys are few: a note is held against each that is not revoked.
CREATE TABLE agd.log_key (
  vkey          text COLLATE "C" PRIMARY KEY CHECK (pg_catalog.octet_length(vkey) <= 512),
  added_at      timestamptz NOT NULL DEFAULT pg_catalog.now(),
  revoked_at    timestamptz,
  revoke_reason text,
  CHECK ((revoked_at IS NULL) = (revoke_reason IS NULL))
);
COMMENT ON TABLE agd.log_key IS
  'Ed25519 keys that agd publish signs this database''s logs with; what is reported of publications counts with a note by one of them';

CREATE FUNCTION agd.register_log_key(vkey text) RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_register_log_key';
COMMENT ON FUNCTION agd.register_log_key(text) IS
  'the vkey that agd keygen printed for this database''s logs: from its commit on, what it has signed is believed';

CREATE FUNCTION agd.revoke_log_key(vkey text, reason text) RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_revoke_log_key';
COMMENT ON FUNCTION agd.revoke_log_key(text, text) IS
  'from its commit on, nothing that this key has signed is believed; what was believed before stays';
