-- The log: per-tenant logs under the platform's, their tiles and checkpoints. Written by the worker alone.
--
-- No foreign keys between tables that a dump carries, here and in 10_tenant.sql: pg_restore -j loads them in any order.
-- The library keeps what they would, and agd.verify() and agd.resume() check it.
-- The library reads these tables by column position (src/log/stored.rs, src/log/storage.rs): same order there.

CREATE TABLE agd.log (
  log_id     int  PRIMARY KEY,
  origin     text COLLATE "C" NOT NULL UNIQUE,
  tenant     text COLLATE "C",          -- NULL: the platform log
  size       bigint NOT NULL DEFAULT 0 CHECK (size >= 0),
  open_tiles bytea NOT NULL DEFAULT '',       -- the partial tiles, level 0 first; their widths follow from the size
  open_keys  bytea NOT NULL DEFAULT '',       -- event keys of the open level-0 tile, 12 bytes each
  open_first_stamp bigint,                    -- smallest and largest commit stamp of the open level-0 tile's events,
  open_last_stamp  bigint,                    --   microseconds since 2000-01-01
  open_since timestamptz,                     -- since when leaves wait for a checkpoint; NULL: none do
  -- Logs of an incarnation before the newest platform log's are closed: nothing is added to them (src/incarnation.rs).
  incarnation int NOT NULL DEFAULT 1 CHECK (incarnation > 0),
  -- In a platform log that agd.new_incarnation() made: the transaction that did. Its first event is leaf 0.
  opened_by  xid8 CHECK ((incarnation > 1 AND tenant IS NULL) = (opened_by IS NOT NULL)),
  CONSTRAINT log_tenant_key UNIQUE (tenant, incarnation)
);
CREATE UNIQUE INDEX log_platform ON agd.log (incarnation) WHERE tenant IS NULL;
COMMENT ON TABLE agd.log IS 'one transparency log per tenant, and the platform''s; of each incarnation';

CREATE TABLE agd.tile (
  log_id     int      NOT NULL,
  level      smallint NOT NULL,
  tile_index bigint   NOT NULL,
  hashes     bytea    NOT NULL CHECK (pg_catalog.octet_length(hashes) = 8192),
  event_keys bytea    CHECK ((level = 0) = (event_keys IS NOT NULL) AND pg_catalog.octet_length(event_keys) = 3072),
  first_stamp bigint,        -- smallest and largest commit stamp of a level-0 tile's events, microseconds since 2000-01-01
  last_stamp  bigint,
  PRIMARY KEY (log_id, level, tile_index)
);
ALTER TABLE agd.tile ALTER COLUMN hashes SET STORAGE EXTERNAL;   -- hashes do not compress
ALTER TABLE agd.log ALTER COLUMN open_tiles SET STORAGE EXTERNAL;
-- Keys do, and pglz would take an eighth of the worker's time.
DO $do$
BEGIN
  ALTER TABLE agd.tile ALTER COLUMN event_keys SET COMPRESSION lz4;
  ALTER TABLE agd.log ALTER COLUMN open_keys SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
  NULL;   -- as in 20_event.sql
END
$do$;
-- From a commit stamp to the tiles that can hold the transaction's events (src/log/position.rs). Stamps are unique, so a
-- tile with one stamp holds one transaction; the others are found by the range that they span.
CREATE INDEX tile_of_one ON agd.tile (log_id, first_stamp, tile_index) WHERE level = 0 AND first_stamp = last_stamp;
CREATE INDEX tile_of_several ON agd.tile
  USING gist (pg_catalog.box(pg_catalog.point(log_id, first_stamp), pg_catalog.point(log_id, last_stamp)))
  WHERE level = 0 AND first_stamp < last_stamp;
COMMENT ON TABLE agd.tile IS 'full tiles: 256 hashes, and on level 0 the keys of the events they cover';

CREATE TABLE agd.checkpoint (
  log_id      int    NOT NULL,
  tree_size   bigint NOT NULL CHECK (tree_size > 0),
  root_hash   bytea  NOT NULL CHECK (pg_catalog.octet_length(root_hash) = 32),
  guard_state bytea  NOT NULL,
  anchored_at timestamptz NOT NULL,
  final_by    text COLLATE "C",         -- the event LOG.CLOSE, if that is the last leaf: the tenant's last fleet has ended
  PRIMARY KEY (log_id, tree_size)
);
COMMENT ON TABLE agd.checkpoint IS 'anchors: the root at every multiple of 256, and of the tail by age';

CREATE TABLE agd.publication (
  log_id       int    NOT NULL,
  tree_size    bigint NOT NULL,
  published_to text   NOT NULL,
  published_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  note         text,                -- the signed checkpoint, as it was published
  published_from text,              -- the server and the database that it was carried out of: system identifier/oid
  PRIMARY KEY (log_id, tree_size, published_to)
);
COMMENT ON TABLE agd.publication IS 'receipts: which checkpoint was carried where';

CREATE TABLE agd.timestamped (
  log_id      int    NOT NULL,
  tree_size   bigint NOT NULL,
  stamped_at  timestamptz NOT NULL CHECK (pg_catalog.isfinite(stamped_at)),   -- the TSA's time (genTime)
  reported_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  PRIMARY KEY (log_id, tree_size, stamped_at)
);
COMMENT ON TABLE agd.timestamped IS 'receipts: which checkpoint of a platform log has an RFC 3161 timestamp, and of when';

CREATE TABLE agd.verified (
  log_id       int    PRIMARY KEY REFERENCES agd.log (log_id),
  tree_size    bigint NOT NULL,     -- up to there the log was verified by itself
  nodes        bytea  NOT NULL,     -- the compact range up to there
  counted_size bigint NOT NULL DEFAULT 0,   -- up to there its leaves were held against all events,
  anchored_size bigint NOT NULL DEFAULT 0,  -- and up to there its anchors against the platform log
  verified_at  timestamptz NOT NULL,
  -- In the newest platform log's row: what the sequencer had integrated when all logs had their counted_size, and the guard
  -- state of its last pass.
  integrated   pg_snapshot,
  guard_state  bytea
);
COMMENT ON TABLE agd.verified IS 'how far agd.verify() got; the next one goes on from there';

-- What the sequencer has integrated: everything visible to this snapshot. One row, made with the first event. The
-- snapshot's numbers are those that transactions are recorded under (src/home.rs).
CREATE TABLE agd.sequencer (
  only_row          boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  integrated        pg_snapshot NOT NULL,
  last_stamp        timestamptz NOT NULL,   -- the largest stamp integrated
  guard_state       bytea,
  system_identifier text NOT NULL           -- of the server that this record was last written by
);
COMMENT ON TABLE agd.sequencer IS 'the snapshot up to which events are integrated';

CREATE FUNCTION agd.anchor() RETURNS TABLE (origin text, tree_size bigint, root_hash bytea)
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_anchor';
COMMENT ON FUNCTION agd.anchor() IS
  'integrates every committed event now and anchors all logs, tails included; returns the anchors this wrote';

CREATE FUNCTION agd.entries(origin text, first_index bigint, last_index bigint)
  RETURNS TABLE (leaf_index bigint, entry bytea)
  LANGUAGE c STABLE
  AS 'MODULE_PATHNAME', 'agd_entries';
COMMENT ON FUNCTION agd.entries(text, bigint, bigint) IS
  'the canonical bytes of a log''s leaves, first_index included, last_index not; docs/formats.md describes them';

CREATE FUNCTION agd.record_publication(origin text, tree_size bigint, root_hash bytea, published_to text,
                                       note text) RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_record_publication';
COMMENT ON FUNCTION agd.record_publication(text, bigint, bytea, text, text) IS
  'agd publish reports where a checkpoint now lies, and the note as it was published, signed by a key of agd.log_key; in force at commit';

CREATE FUNCTION agd.record_timestamp(origin text, tree_size bigint, root_hash bytea, at timestamptz) RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_record_timestamp';
COMMENT ON FUNCTION agd.record_timestamp(text, bigint, bytea, timestamptz) IS
  'agd publish reports that a TSA has stamped a checkpoint, and when; in force at commit';

-- These five read without SQL, whatever the caller's privileges are, and decide themselves who may know what.
CREATE FUNCTION agd.leaf_index(event_id text, tenant text, committed_at timestamptz) RETURNS bigint
  LANGUAGE c STABLE
  AS 'MODULE_PATHNAME', 'leaf_index_wrapper';
COMMENT ON FUNCTION agd.leaf_index(text, text, timestamptz) IS
  'where an event stands in its log; NULL until it is integrated';

CREATE FUNCTION agd.inclusion_proof(event_id text)
  RETURNS TABLE (origin text, leaf_index bigint, tree_size bigint, leaf_hash bytea, path bytea[])
  LANGUAGE c STABLE ROWS 1
  AS 'MODULE_PATHNAME', 'inclusion_proof_wrapper';
COMMENT ON FUNCTION agd.inclusion_proof(text) IS
  'proves that an event is in its log, up to the newest anchor: RFC 6962 path from its leaf to that anchor''s root';

CREATE FUNCTION agd.consistency_proof(origin text, from_size bigint, to_size bigint) RETURNS bytea[]
  LANGUAGE c STABLE
  AS 'MODULE_PATHNAME', 'consistency_proof_wrapper';
COMMENT ON FUNCTION agd.consistency_proof(text, bigint, bigint) IS
  'proves that a log at one size is continued by itself at another: RFC 6962 consistency proof between two anchors';

CREATE FUNCTION agd.tlog_proof(event_id text) RETURNS text
  LANGUAGE c STABLE
  AS 'MODULE_PATHNAME', 'tlog_proof_wrapper';
COMMENT ON FUNCTION agd.tlog_proof(text) IS
  'a C2SP tlog-proof: an event''s entry, its inclusion proof and the newest published signed checkpoint, for a .tlog-proof file';

CREATE FUNCTION agd.export_events(origin text, first_index bigint, last_index bigint)
  RETURNS TABLE (leaf_index bigint, event_id text, entry bytea, images boolean,
                 salt bytea, row_key bytea, old bytea, new bytea)
  LANGUAGE c STABLE
  AS 'MODULE_PATHNAME', 'agd_export_events';
COMMENT ON FUNCTION agd.export_events(text, bigint, bigint) IS
  'a log''s events as agd export writes them: entries (NULL: missing) and, where images says that you may read them, row images and salts';

CREATE FUNCTION agd.verify(origin text DEFAULT NULL, full_scan boolean DEFAULT false)
  RETURNS TABLE (origin text, check_name text, ok boolean, entries bigint, detail text)
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_verify';
COMMENT ON FUNCTION agd.verify(text, boolean) IS
  'recomputes leaves, tiles, roots and anchors, log by log, and names the first bad event; goes on from where it ended the last time, unless full_scan';

CREATE FUNCTION agd.verifications()
  RETURNS TABLE (pid int, role oid, started_at timestamptz, full_scan boolean, phase text, log_id int,
                 leaves_done bigint, leaves_total bigint)
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'verifications_wrapper';
COMMENT ON FUNCTION agd.verifications() IS 'what agd.verify() is doing in this database; agd.verify_progress shows it';
