-- The record. Rows are written by the library, straight into heap and index; SQL is refused by the triggers below.
-- The library knows the columns by position (src/event.rs): same order there.

CREATE TABLE agd.event (
  xact_id  xid8        NOT NULL,   -- the transaction, and
  n        int         NOT NULL,   -- the number within it
  at       timestamptz NOT NULL,   -- when it was recorded
  guard_id uuid,                   -- the guard, stable across renames and restores; NULL: agd's own event
  tenant   text COLLATE "C",       -- whose log it belongs to; NULL: the platform's
  action   text COLLATE "C" NOT NULL,
  relation text COLLATE "C",       -- schema-qualified name when it was recorded
  salt     bytea       NOT NULL,   -- 16 random bytes: with them gone, a digest tells nothing of its image
  row_key  json,
  old      json,
  new      json,
  body     text,                   -- stands in the log as it is: checkpoints, guard states, reasons
  role_name text,                  -- who acted, where SET ROLE or somebody's function made it another than the transaction's
  PRIMARY KEY (xact_id, n)
);
COMMENT ON TABLE agd.event IS 'one row = one event = one leaf; read it through agd.events';

-- An UPDATE beside a large value records it twice: that costs what compressing it costs.
DO $do$
BEGIN
  ALTER TABLE agd.event ALTER COLUMN row_key SET COMPRESSION lz4, ALTER COLUMN old SET COMPRESSION lz4,
                        ALTER COLUMN new SET COMPRESSION lz4, ALTER COLUMN body SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
  NULL;   -- a PostgreSQL that was built without it: pglz, as ever
END
$do$;

CREATE TABLE agd.transaction (
  xact_id           xid8        PRIMARY KEY,
  stamp             timestamptz NOT NULL,   -- commit stamp: strictly increasing, the order of the log
  events            int         NOT NULL CHECK (events > 0),
  session_user_name text        NOT NULL,
  role_name         text        NOT NULL,
  principal         text,
  fleet_id          text,
  cause             text,
  binding           text COLLATE "C" NOT NULL CHECK (binding IN ('none', 'role', 'token', 'asserted', 'bypass', 'replication')),
  application_name  text,
  client_addr       text
);
COMMENT ON TABLE agd.transaction IS 'closes each audited transaction: who, why, when, and how many events';

CREATE FUNCTION agd.refuse_write() RETURNS trigger
  LANGUAGE c AS 'MODULE_PATHNAME', 'agd_refuse_write';
COMMENT ON FUNCTION agd.refuse_write() IS 'raises AG002: the record is written by agd alone';

CREATE FUNCTION agd.refuse_replicated() RETURNS trigger
  LANGUAGE c AS 'MODULE_PATHNAME', 'agd_refuse_replicated';
COMMENT ON FUNCTION agd.refuse_replicated() IS 'raises AG002 when logical replication brings a row from another server';
