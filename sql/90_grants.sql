-- Who may do what. Last of all files: it revokes from everything the others made.

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA agd FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA agd FROM PUBLIC;

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
  agd.create_tenant(text, text), agd.map_role(name, text, text),
  agd.add_tenant_key(text, text, bytea), agd.revoke_tenant_key(text, text), agd.resume(),
  agd.new_incarnation(text) TO agd_platform;
GRANT SELECT ON agd.tenant, agd.role_map, agd.tenant_key, agd.guarded_table, agd.every_guard TO agd_platform, agd_auditor;
GRANT EXECUTE ON FUNCTION agd.coverage(), agd.wall_gaps(regclass), agd.guard_state(), agd.anchor(), agd.worker_status(),
  agd.verify(text, boolean), agd.verifications() TO agd_platform, agd_auditor;
GRANT SELECT ON agd.stat, agd.verify_progress TO agd_platform, agd_auditor;
-- verify_table() names rows by their key and columns by their name; values it shows to superusers only.
GRANT EXECUTE ON FUNCTION agd.verify_table(regclass) TO agd_platform, agd_auditor;

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
