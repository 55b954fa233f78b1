-- Who may do what. Last of all files: it revokes from everything the others made.

-- From everybody, and not from PUBLIC alone: ALTER DEFAULT PRIVILEGES may have granted whatever to whomever.
DO $$
DECLARE
  granted record;
BEGIN
  FOR granted IN
    SELECT DISTINCT o.kind, o.name, a.grantee
      FROM (SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.oid::regclass::text, c.relowner, c.relacl
              FROM pg_catalog.pg_class c
             WHERE c.relnamespace = 'agd'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
            UNION ALL
            SELECT 'FUNCTION', f.oid::regprocedure::text, f.proowner,
                   COALESCE(f.proacl, pg_catalog.acldefault('f', f.proowner))
              FROM pg_catalog.pg_proc f WHERE f.pronamespace = 'agd'::regnamespace
            UNION ALL
            SELECT 'TYPE', t.oid::regtype::text, t.typowner, COALESCE(t.typacl, pg_catalog.acldefault('T', t.typowner))
              FROM pg_catalog.pg_type t
             WHERE t.typnamespace = 'agd'::regnamespace AND t.typelem = 0
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = t.typrelid AND c.relkind <> 'c')
            UNION ALL
            SELECT 'SCHEMA', 'agd', n.nspowner, n.nspacl FROM pg_catalog.pg_namespace n WHERE n.nspname = 'agd'
           ) AS o (kind, name, owner, acl)
           CROSS JOIN LATERAL pg_catalog.aclexplode(o.acl) a
     WHERE a.grantee <> o.owner
  LOOP
    EXECUTE pg_catalog.format('REVOKE ALL ON %s %s FROM %s CASCADE', granted.kind, granted.name,
      CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE granted.grantee::regrole::text END);
  END LOOP;
END
$$;

-- The name agd must resolve for whoever has something to call; what is inside is granted one by one.
GRANT USAGE ON SCHEMA agd TO PUBLIC;

-- Open to all: policies call current_tenant() as whoever reads the table, and every writer may say why it writes.
GRANT EXECUTE ON FUNCTION agd.current_tenant(), agd.current_principal(), agd.current_scopes(),
  agd.current_fleet(), agd.set_cause(text) TO PUBLIC;

-- Open too: who may bind, and to whom, they decide themselves, by the login role. A privilege would be asked of the role
-- that acts, which SET ROLE and SECURITY DEFINER change.
GRANT EXECUTE ON FUNCTION agd.bind(text), agd.enter(text, text) TO PUBLIC;

-- Whoever makes a partition of a guarded table has the guard's row triggers cloned, and PostgreSQL asks that role for
-- EXECUTE. A trigger made by hand gains nothing: the functions serve only the tree of the guard they are told.
GRANT EXECUTE ON FUNCTION agd.record_write(), agd.confirm_write(), agd.refuse_truncate() TO PUBLIC;

-- The views check who asks (agd.may_read); these functions are what they call as the asking user.
GRANT EXECUTE ON FUNCTION agd.may_read(text), agd.may_read_payload(text), agd.is_publisher(),
  agd.leaf_index(text, text, timestamptz), agd.guard_id(regclass) TO agd_platform, agd_auditor, agd_publisher, agd_tenant;
-- These too: whoever may not read an event is told that there is none, and of a log that there is no such log.
GRANT EXECUTE ON FUNCTION agd.inclusion_proof(text), agd.consistency_proof(text, bigint, bigint), agd.tlog_proof(text)
  TO agd_platform, agd_auditor, agd_publisher, agd_tenant;
-- And whoever reads events may take them out: the function gives row images to those alone who see them in agd.events.
GRANT EXECUTE ON FUNCTION agd.export_events(text, bigint, bigint) TO agd_platform, agd_auditor, agd_tenant;
GRANT SELECT ON agd.events, agd.anchors TO agd_platform, agd_auditor, agd_tenant;
GRANT EXECUTE ON FUNCTION agd.history(regclass, jsonb) TO agd_platform, agd_auditor, agd_tenant;

-- Operates: guards, tenants, anchors. No payloads.
GRANT EXECUTE ON FUNCTION
  agd.guard(regclass, name, name[], boolean, text, boolean), agd.unguard(regclass, text),
  agd.create_tenant(text, text), agd.map_role(name, text, text), agd.unmap_role(name, text),
  agd.add_tenant_key(text, text, bytea), agd.revoke_tenant_key(text, text), agd.resume(),
  agd.register_log_key(text), agd.revoke_log_key(text, text), agd.new_incarnation(text) TO agd_platform;
GRANT SELECT ON agd.tenant, agd.role_map, agd.tenant_key, agd.log_key, agd.guarded_table, agd.every_guard TO agd_platform, agd_auditor;
GRANT EXECUTE ON FUNCTION agd.coverage(), agd.wall_gaps(regclass), agd.guard_state(), agd.anchor(), agd.worker_status(),
  agd.verify(text, boolean), agd.verifications() TO agd_platform, agd_auditor;
GRANT SELECT ON agd.stat, agd.health, agd.verify_progress TO agd_platform, agd_auditor;
-- Whoever watches servers sees how agd is doing: counts and reasons, nothing of any row.
GRANT SELECT ON agd.stat, agd.health TO pg_monitor;
GRANT EXECUTE ON FUNCTION agd.worker_status() TO pg_monitor;
-- verify_table() names rows by their key and columns by their name; values it shows to superusers only.
GRANT EXECUTE ON FUNCTION agd.verify_table(regclass) TO agd_platform, agd_auditor;

GRANT EXECUTE ON FUNCTION agd.publishing() TO agd_platform, agd_auditor, agd_publisher;

-- Publishes: anchors, entries (which hold digests, no payloads), receipts of publications and timestamps.
GRANT SELECT ON agd.anchors TO agd_publisher;
GRANT EXECUTE ON FUNCTION agd.entries(text, bigint, bigint),
  agd.record_publication(text, bigint, bytea, text, text), agd.record_timestamp(text, bigint, bytea, timestamptz),
  agd.report_divergence(text, bigint, bytea, text), agd.anchor()
  TO agd_publisher;

-- Fleets. Who may act is decided by the function: the platform for every tenant, a tenant for itself. What counts is the
-- signature, whoever brings it. Public keys and templates are no secrets: a tenant checks its fleets by them.
GRANT EXECUTE ON FUNCTION agd.cause_normalised(text) TO PUBLIC;
GRANT EXECUTE ON FUNCTION agd.mint_tenant_fleet(text, text, text, interval), agd.sign_fleet(text, text, bytea),
  agd.set_agent_context(text, text, jsonb, jsonb),
  agd.countersign_fleets(text[], text, bytea), agd.seal_tenant_fleet(text, text) TO agd_platform, agd_tenant;
GRANT EXECUTE ON FUNCTION agd.register_signer(text, text, bytea), agd.revoke_signer(text, text),
  agd.create_template(text, jsonb) TO agd_platform;
GRANT EXECUTE ON FUNCTION agd.fleet_statement(text), agd.batch_statement(text[]), agd.verify_fleet(text)
  TO agd_platform, agd_auditor, agd_tenant;
GRANT SELECT ON agd.fleets, agd.fleet_agents, agd.countersign_requests, agd.fleet_pending_cancel, agd.signer,
  agd.fleet_template TO agd_platform, agd_auditor, agd_tenant;

-- Whoever is granted a table sees its rows; nobody else does, whatever else grants it to him (80_own_tables.sql). The library
-- knows the name: a dump brings these policies along although the extension makes them (src/guard/protect.rs).
CREATE POLICY agd_readers ON agd.tenant FOR SELECT TO agd_platform, agd_auditor USING (true);
CREATE POLICY agd_readers ON agd.role_map FOR SELECT TO agd_platform, agd_auditor USING (true);
CREATE POLICY agd_readers ON agd.tenant_key FOR SELECT TO agd_platform, agd_auditor USING (true);
CREATE POLICY agd_readers ON agd.log_key FOR SELECT TO agd_platform, agd_auditor USING (true);
CREATE POLICY agd_readers ON agd.guarded_table FOR SELECT TO agd_platform, agd_auditor USING (true);
CREATE POLICY agd_readers ON agd.signer FOR SELECT TO agd_platform, agd_auditor, agd_tenant USING (true);
CREATE POLICY agd_readers ON agd.fleet_template FOR SELECT TO agd_platform, agd_auditor, agd_tenant USING (true);

-- What remains is what stands above.
DO $$
DECLARE
  stray text;
BEGIN
  SELECT pg_catalog.string_agg(DISTINCT o.name || ' to ' || a.grantee::regrole::text, ', ') INTO stray
    FROM (SELECT c.oid::regclass::text, c.relowner, c.relacl
            FROM pg_catalog.pg_class c WHERE c.relnamespace = 'agd'::regnamespace
          UNION ALL
          SELECT c.oid::regclass::text || '.' || t.attname, c.relowner, t.attacl
            FROM pg_catalog.pg_attribute t JOIN pg_catalog.pg_class c ON c.oid = t.attrelid
           WHERE c.relnamespace = 'agd'::regnamespace AND t.attacl IS NOT NULL
          UNION ALL
          SELECT f.oid::regprocedure::text, f.proowner, f.proacl
            FROM pg_catalog.pg_proc f WHERE f.pronamespace = 'agd'::regnamespace
          UNION ALL
          SELECT t.oid::regtype::text, t.typowner, t.typacl
            FROM pg_catalog.pg_type t WHERE t.typnamespace = 'agd'::regnamespace
          UNION ALL
          SELECT 'the schema agd', n.nspowner, n.nspacl FROM pg_catalog.pg_namespace n WHERE n.nspname = 'agd'
         ) AS o (name, owner, acl)
         CROSS JOIN LATERAL pg_catalog.aclexplode(o.acl) a
   WHERE a.grantee <> o.owner AND a.grantee <> 0
     AND (a.is_grantable
          OR a.grantee NOT IN (SELECT r.oid FROM pg_catalog.pg_roles r
                                WHERE r.rolname IN ('agd_platform', 'agd_auditor', 'agd_publisher', 'agd_tenant', 'pg_monitor')));
  IF stray IS NOT NULL THEN
    RAISE EXCEPTION 'agd would be installed with privileges that are not its own: %', stray
      USING ERRCODE = '55000', HINT = 'ALTER DEFAULT PRIVILEGES grants them: \ddp shows it.';
  END IF;
END
$$;
