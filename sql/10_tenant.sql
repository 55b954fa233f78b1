-- Tenants, and the roles that are theirs.

CREATE TABLE agd.tenant (
  tenant       text COLLATE "C" PRIMARY KEY
               CHECK (tenant ~ '^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$'),
               -- One number or uuid, one tenant: policies cast the name to the type of the tenant column.
               CHECK (tenant !~ '^([0-9_]+|0x[0-9a-f_]+|0o[0-7_]+|0b[01_]+)$' OR tenant ~ '^(0|[1-9][0-9]*)$'),
               CHECK (tenant !~ '^([0-9a-f]-*){32}$'
                      OR tenant ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'),
  display_name text,
  created_at   timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE agd.tenant IS 'tenants of this database; a tenant once created stays';

CREATE TABLE agd.role_map (
  role   regrole PRIMARY KEY,
  tenant text COLLATE "C",                -- NULL: any; only for roles that bind each transaction
  mode   text NOT NULL CHECK (mode IN ('role', 'token', 'asserted')),
  -- The role's own name. In a running cluster a role is known by its number, which a rename does not change; across a dump and a
  -- restore by this name, or else a number whose role is gone would be whoever has it there (agd.resume()).
  role_name text COLLATE "C",
  CHECK (tenant IS NOT NULL OR mode <> 'role')
);
COMMENT ON TABLE agd.role_map IS 'which login role belongs to which tenant, or may bind to it, and how';

-- Each mapped role is granted USAGE of this type, which means nothing: so PostgreSQL refuses to drop the role, in whatever
-- database, until agd.unmap_role() has taken it back. Its number cannot pass to another role while it is mapped.
CREATE DOMAIN agd.mapped_role AS text;
COMMENT ON DOMAIN agd.mapped_role IS 'of no use but this: whoever has USAGE of it is mapped to a tenant, and cannot be dropped';

-- Public halves only. The library reads it by column position (src/tenant/key.rs): same order there.
CREATE TABLE agd.tenant_key (
  kid           text COLLATE "C" PRIMARY KEY CHECK (kid ~ '^[A-Za-z0-9._-]{1,64}$'),
  tenant        text COLLATE "C" NOT NULL,
  public_key    bytea NOT NULL UNIQUE CHECK (pg_catalog.octet_length(public_key) = 32),
  added_at      timestamptz NOT NULL DEFAULT pg_catalog.now(),
  revoked_at    timestamptz,
  revoke_reason text,
  CHECK ((revoked_at IS NULL) = (revoke_reason IS NULL))
);
COMMENT ON TABLE agd.tenant_key IS
  'Ed25519 keys that sign tenants'' tokens; a key id belongs to one tenant for good, revoked or not';

CREATE FUNCTION agd.create_tenant(tenant text, display_name text DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_create_tenant';
COMMENT ON FUNCTION agd.create_tenant(text, text) IS
  'creates a tenant: 1 to 63 characters of a-z, 0-9, _ and -, a letter or digit at both ends';

CREATE FUNCTION agd.map_role(role name, tenant text, mode text DEFAULT 'role') RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_map_role';
COMMENT ON FUNCTION agd.map_role(name, text, text) IS
  'role: the login role is the tenant''s, bound with no call. token, asserted: each transaction binds by itself, with agd.bind() or agd.enter(); to this tenant alone, or NULL: to any';

CREATE FUNCTION agd.unmap_role(role name, reason text) RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_unmap_role';
COMMENT ON FUNCTION agd.unmap_role(name, text) IS
  'takes a role''s mapping away, from its commit on; the reason is recorded. A role that is gone is named as it was called when it was mapped';

CREATE FUNCTION agd.add_tenant_key(tenant text, kid text, public_key bytea) RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_add_tenant_key';
COMMENT ON FUNCTION agd.add_tenant_key(text, text, bytea) IS
  'the 32 bytes of an Ed25519 public key that signs this tenant''s tokens, under an id that is never given again';

CREATE FUNCTION agd.revoke_tenant_key(kid text, reason text) RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_revoke_tenant_key';
COMMENT ON FUNCTION agd.revoke_tenant_key(text, text) IS
  'from its commit on, no token of this key binds, and transactions bound by one go no further';

CREATE FUNCTION agd.bind(token text) RETURNS text
  LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'agd_bind';
COMMENT ON FUNCTION agd.bind(text) IS
  'binds this transaction to the tenant that a token names; a token binds once. Returns the tenant';

CREATE FUNCTION agd.enter(tenant text, principal text DEFAULT NULL) RETURNS text
  LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'agd_enter';
COMMENT ON FUNCTION agd.enter(text, text) IS
  'binds this transaction to a tenant on the login role''s own word, if it is mapped ''asserted''. Returns the tenant';

CREATE FUNCTION agd.current_tenant() RETURNS text
  LANGUAGE c STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'agd_current_tenant';
COMMENT ON FUNCTION agd.current_tenant() IS 'the tenant this transaction is bound to; NULL: none';

CREATE FUNCTION agd.current_principal() RETURNS text
  LANGUAGE c STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'agd_current_principal';
COMMENT ON FUNCTION agd.current_principal() IS 'who acts for the bound tenant; NULL when bound to none';

CREATE FUNCTION agd.current_scopes() RETURNS text[]
  LANGUAGE c STABLE PARALLEL RESTRICTED
  AS 'MODULE_PATHNAME', 'agd_current_scopes';
COMMENT ON FUNCTION agd.current_scopes() IS
  'the scopes of the token that this transaction is bound by, for policies of your own; NULL: it named none';

CREATE FUNCTION agd.current_fleet() RETURNS text
  LANGUAGE c STABLE PARALLEL RESTRICTED
  AS 'MODULE_PATHNAME', 'agd_current_fleet';
COMMENT ON FUNCTION agd.current_fleet() IS
  'the fleet that acts in this transaction, as the token that it is bound by says; NULL: it named none';

CREATE FUNCTION agd.set_cause(cause text) RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'set_cause_wrapper';
COMMENT ON FUNCTION agd.set_cause(text) IS
  'says why this transaction writes; recorded with all of its events, at most 4096 bytes';
