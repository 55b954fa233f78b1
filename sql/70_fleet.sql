-- Fleets: mint, sign, countersign, seal; what people read of them. The tables are in 25_fleet_tables.sql.

CREATE FUNCTION agd.cause_normalised(cause text) RETURNS text
  LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'agd_cause_normalised';
COMMENT ON FUNCTION agd.cause_normalised(text) IS
  'a cause as it is hashed: Unicode Normalization Form C, at most 64 KiB; 22023 for what cannot be seen or is not assigned';

CREATE FUNCTION agd.register_signer(signer text, duty text, public_key bytea) RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_register_signer';
COMMENT ON FUNCTION agd.register_signer(text, text, bytea) IS
  'registers an Ed25519 public key (32 bytes) for a duty: coordinator or countersigner; a key has one name and one duty';

CREATE FUNCTION agd.revoke_signer(signer text, reason text) RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_revoke_signer';
COMMENT ON FUNCTION agd.revoke_signer(text, text) IS
  'refuses a signer''s signatures from now on; what it has signed stays signed';

CREATE FUNCTION agd.create_template(template text, roles jsonb) RETURNS int
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_create_template';
COMMENT ON FUNCTION agd.create_template(text, jsonb) IS
  'a template, or a new version of it: {"role": {"goals": …, "memory_scope": {…}}, …}; returns the version, which new fleets take';

CREATE FUNCTION agd.mint_tenant_fleet(tenant text, cause text, template text DEFAULT 'standard',
                                      countersign_window interval DEFAULT '24 hours') RETURNS text
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_mint_tenant_fleet';
COMMENT ON FUNCTION agd.mint_tenant_fleet(text, text, text, interval) IS
  'mints a tenant''s fleet from a template, and returns its id; the same again while that fleet is pending or active returns the same id';

CREATE FUNCTION agd.set_agent_context(fleet_id text, role text, goals jsonb DEFAULT NULL, memory_scope jsonb DEFAULT NULL)
  RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_set_agent_context';
COMMENT ON FUNCTION agd.set_agent_context(text, text, jsonb, jsonb) IS
  'what an agent of this one fleet is told, instead of its template''s; NULL leaves it as it is; only until the fleet is signed, since it is signed';

CREATE FUNCTION agd.fleet_statement(fleet_id text) RETURNS bytea
  LANGUAGE c STABLE
  AS 'MODULE_PATHNAME', 'agd_fleet_statement';
COMMENT ON FUNCTION agd.fleet_statement(text) IS 'the exact bytes that a fleet''s coordinator signs';

CREATE FUNCTION agd.batch_statement(fleet_ids text[]) RETURNS bytea
  LANGUAGE c STABLE
  AS 'MODULE_PATHNAME', 'agd_batch_statement';
COMMENT ON FUNCTION agd.batch_statement(text[]) IS
  'the exact bytes that a countersigner signs for these fleets, in whatever order they are named';

CREATE FUNCTION agd.sign_fleet(fleet_id text, signer text, signature bytea) RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_sign_fleet';
COMMENT ON FUNCTION agd.sign_fleet(text, text, bytea) IS
  'a coordinator''s Ed25519 signature over agd.fleet_statement(fleet_id); AG004 when it is not';

CREATE FUNCTION agd.countersign_fleets(fleet_ids text[], signer text, signature bytea)
  RETURNS TABLE (fleet_id text, state text)
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_countersign_fleets';
COMMENT ON FUNCTION agd.countersign_fleets(text[], text, bytea) IS
  'a countersigner''s Ed25519 signature over agd.batch_statement(fleet_ids): all of these fleets become active, or none';

CREATE FUNCTION agd.seal_tenant_fleet(fleet_id text, reason text) RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_seal_tenant_fleet';
COMMENT ON FUNCTION agd.seal_tenant_fleet(text, text) IS
  'ends a fleet: an active one is sealed, a pending one cancelled with its countersign request; its agents are archived; all or nothing';

CREATE FUNCTION agd.verify_fleet(fleet_id text) RETURNS TABLE (check_name text, ok boolean, detail text)
  LANGUAGE c STABLE
  AS 'MODULE_PATHNAME', 'agd_verify_fleet';
COMMENT ON FUNCTION agd.verify_fleet(text) IS
  'recomputes a fleet''s vector and id from its cause, checks both signatures against the registered keys, and its rows against each other';

-- What a fleet is at this moment follows from its row and the clock: nobody has to have swept.
CREATE VIEW agd.fleets WITH (security_barrier) AS
  SELECT f.fleet_id,
         f.tenant,
         f.template,
         f.template_version,
         f.generation,
         CASE WHEN n.missed THEN 'cancelled' ELSE f.state END AS state,
         f.minted_at,
         f.countersign_deadline,
         f.signed_at,
         f.activated_at,
         f.sealed_at,
         CASE WHEN n.missed THEN f.countersign_deadline ELSE f.cancelled_at END AS cancelled_at,
         CASE WHEN n.missed THEN 'the countersign window was missed' ELSE f.reason END AS reason,
         c.signer AS coordinator,
         s.signer AS countersigner,
         f.cause_snapshot AS cause,
         f.unicode_version,
         'agd-fleet-v1:' || f.tenant || ':' || f.template || '@' || f.template_version || ':'
           || pg_catalog.encode(f.cause_digest, 'hex') || ':' || f.generation AS vector,
         f.digest,
         f.origin,
         f.context_digest
    FROM agd.tenant_agent_fleet f
         CROSS JOIN LATERAL (
           SELECT f.state = 'pending' AND pg_catalog.clock_timestamp() >= f.countersign_deadline AS missed OFFSET 0) n
         LEFT JOIN agd.fleet_signature c ON c.fleet_id = f.fleet_id AND c.duty = 'coordinator'
         LEFT JOIN agd.fleet_signature s ON s.fleet_id = f.fleet_id AND s.duty = 'countersigner'
   WHERE agd.may_read(f.tenant);
COMMENT ON VIEW agd.fleets IS
  'every fleet and its state now: pending, active, sealed, cancelled; a tenant sees its own';

CREATE VIEW agd.fleet_agents WITH (security_barrier) AS
  SELECT a.fleet_id,
         a.tenant,
         a.role,
         CASE WHEN f.state = 'active' THEN 'active'
              WHEN f.state = 'pending' AND pg_catalog.clock_timestamp() < f.countersign_deadline THEN 'pending'
              ELSE 'archived' END AS state,
         CASE WHEN agd.may_read_payload(a.tenant) THEN a.goals END AS goals,
         CASE WHEN agd.may_read_payload(a.tenant) THEN a.memory_scope END AS memory_scope
    FROM agd.fleet_agent a JOIN agd.tenant_agent_fleet f USING (fleet_id)
   WHERE agd.may_read(a.tenant);
COMMENT ON VIEW agd.fleet_agents IS
  'the agents of every fleet: pending, active or archived as their fleet is; context for the tenant alone';

CREATE VIEW agd.countersign_requests WITH (security_barrier) AS
  SELECT r.fleet_id,
         r.tenant,
         r.requested_at,
         r.deadline,
         CASE WHEN n.missed THEN 'cancelled' ELSE r.state END AS state,
         CASE WHEN n.missed THEN r.deadline ELSE r.closed_at END AS closed_at
    FROM agd.countersign_request r
         CROSS JOIN LATERAL (SELECT r.state = 'open' AND pg_catalog.clock_timestamp() >= r.deadline AS missed OFFSET 0) n
   WHERE agd.may_read(r.tenant);
COMMENT ON VIEW agd.countersign_requests IS 'what every fleet asks of the countersigners: open, granted or cancelled';

CREATE VIEW agd.fleet_pending_cancel WITH (security_barrier) AS
  SELECT f.fleet_id,
         f.tenant,
         f.countersign_deadline,
         pg_catalog.clock_timestamp() >= f.countersign_deadline AS overdue
    FROM agd.tenant_agent_fleet f
   WHERE f.state = 'pending' AND agd.may_read(f.tenant);
COMMENT ON VIEW agd.fleet_pending_cancel IS
  'fleets that are cancelled when their window ends; overdue: it has ended, and the worker has not written it down yet';
