-- Where the record is at home, what a dump carries, and going on after a restore.
-- The library reads agd.home by column position (src/home.rs): same order there.

-- Not dumped: a restored database has a home that nobody lives in yet, whatever was loaded.
CREATE TABLE agd.home (
  only_row          boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  log_name          text COLLATE "C",            -- the platform log's origin; NULL: its default, when it is made
  system_identifier text,                        -- which server; NULL: nothing was recorded here yet
  database          oid,                         -- which of its databases
  timeline          int,                         -- which timeline the server wrote last
  xact_id_base      bigint NOT NULL DEFAULT 0 CHECK (xact_id_base >= 0),  -- recorded number = transaction id + this
  diverged          text COLLATE "C",            -- a checkpoint that was published and that this record does not have: it
                                                 -- is closed until agd.new_incarnation(); NULL: none
  diverged_at       timestamptz                  -- since when
);
COMMENT ON TABLE agd.home IS 'the server and the database that may add to this record; never dumped, never loaded';

CREATE FUNCTION agd.prepare_home() RETURNS void
  LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'prepare_home_wrapper';
COMMENT ON FUNCTION agd.prepare_home() IS 'keeps the platform log''s name, where agd.log_name chooses one; part of the installation';
SELECT agd.prepare_home();

CREATE FUNCTION agd.resume() RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_resume';
COMMENT ON FUNCTION agd.resume() IS
  'after a restore or an upgrade: verifies the record and goes on with it here; until then guarded tables take no write';

CREATE FUNCTION agd.report_divergence(origin text, tree_size bigint, root_hash bytea, note text) RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_report_divergence';
COMMENT ON FUNCTION agd.report_divergence(text, bigint, bytea, text) IS
  'agd publish reports a published checkpoint, signed by a key of agd.log_key, that the log does not have; where that is so, the record is closed from the commit on, until agd.new_incarnation()';

-- What agd publish must know before it signs anything: whose record this is, whether it is at home here, which server its
-- newest receipt comes from, and whose signature counts. A system identifier is an unsigned number.
CREATE FUNCTION agd.publishing()
  RETURNS TABLE (log_name text, system_identifier text, database oid, state text, received_from text, keys text[])
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT h.log_name, here.system_identifier, here.database,
         CASE WHEN h.system_identifier = here.system_identifier AND h.database = here.database THEN 'home'
              WHEN h.system_identifier IS NULL AND NOT EXISTS (SELECT FROM agd.log) THEN 'new'
              ELSE 'copy' END,
         (SELECT p.published_from
            FROM (SELECT n.log_id FROM agd.log n WHERE n.tenant IS NULL ORDER BY n.incarnation DESC LIMIT 1) l
                 JOIN agd.publication p USING (log_id)
           WHERE p.published_from IS NOT NULL
           ORDER BY p.tree_size DESC, p.published_at DESC LIMIT 1),
         (SELECT pg_catalog.array_agg(k.vkey ORDER BY k.vkey) FROM agd.log_key k WHERE k.revoked_at IS NULL)
    FROM agd.home h,
         (SELECT pg_catalog.mod(c.system_identifier::numeric + 18446744073709551616, 18446744073709551616)::text, d.oid
            FROM pg_catalog.pg_control_system() c, pg_catalog.pg_database d
           WHERE d.datname = pg_catalog.current_database()) AS here (system_identifier, database);
END;
COMMENT ON FUNCTION agd.publishing() IS
  'for agd publish: the log''s name, this server and database, whether the record is at home here (home, new or copy), where its newest receipt was made, and the registered keys';

CREATE FUNCTION agd.new_incarnation(reason text) RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_new_incarnation';
COMMENT ON FUNCTION agd.new_incarnation(text) IS
  'after published history was lost: closes the logs, begins new ones that commit to what was lost, and opens the record again';

-- Called by the library before DROP EXTENSION agd: runs as agd's owner (src/guard/farewell.rs).
CREATE FUNCTION agd.last_words() RETURNS text
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT pg_catalog.format('events: %s; %s', (SELECT pg_catalog.count(*) FROM agd.event),
           COALESCE((SELECT pg_catalog.format('newest checkpoint published: %s at size %s, root %s, to %s on %s', l.origin,
                              p.tree_size, pg_catalog.encode(c.root_hash, 'base64'), p.published_to, p.published_at)
                       FROM agd.publication p JOIN agd.log l USING (log_id)
                            LEFT JOIN agd.checkpoint c USING (log_id, tree_size)
                      ORDER BY p.published_at DESC, p.tree_size DESC LIMIT 1),
                    'nothing of them was published'));
END;
COMMENT ON FUNCTION agd.last_words() IS 'what DROP EXTENSION agd takes away, and what was published of it; called by agd';

-- pg_dump carries the rows of these tables. Only agd.home and agd.verified stay behind: they speak of this database.
SELECT pg_catalog.pg_extension_config_dump('agd.tenant', '');
SELECT pg_catalog.pg_extension_config_dump('agd.role_map', '');
SELECT pg_catalog.pg_extension_config_dump('agd.tenant_key', '');
SELECT pg_catalog.pg_extension_config_dump('agd.log_key', '');
SELECT pg_catalog.pg_extension_config_dump('agd.signer', '');
SELECT pg_catalog.pg_extension_config_dump('agd.fleet_template', '');
SELECT pg_catalog.pg_extension_config_dump('agd.tenant_agent_fleet', '');
SELECT pg_catalog.pg_extension_config_dump('agd.fleet_agent', '');
SELECT pg_catalog.pg_extension_config_dump('agd.countersign_request', '');
SELECT pg_catalog.pg_extension_config_dump('agd.fleet_signature', '');
SELECT pg_catalog.pg_extension_config_dump('agd.event', '');
SELECT pg_catalog.pg_extension_config_dump('agd.transaction', '');
SELECT pg_catalog.pg_extension_config_dump('agd.guarded_table', '');
SELECT pg_catalog.pg_extension_config_dump('agd.redaction_key', '');
SELECT pg_catalog.pg_extension_config_dump('agd.log', '');
SELECT pg_catalog.pg_extension_config_dump('agd.tile', '');
SELECT pg_catalog.pg_extension_config_dump('agd.checkpoint', '');
SELECT pg_catalog.pg_extension_config_dump('agd.publication', '');
SELECT pg_catalog.pg_extension_config_dump('agd.timestamped', '');
SELECT pg_catalog.pg_extension_config_dump('agd.sequencer', '');
