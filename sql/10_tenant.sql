-- Tenants, and the roles that are theirs.

CREATE TABLE agd.tenant (
  tenant       text COLLATE "C" PRIMARY KEY
               CHECK (tenant ~ '^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$'),
  display_name text,
  created_at   timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE agd.tenant IS 'tenants of this database; a tenant once created stays';

CREATE TABLE agd.role_map (
  role   regrole PRIMARY KEY,
  tenant text COLLATE "C" NOT NULL,
  mode   text NOT NULL CHECK (mode = 'role')
);
COMMENT ON TABLE agd.role_map IS 'which login role belongs to which tenant';

CREATE FUNCTION agd.create_tenant(tenant text, display_name text DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  AS 'MODULE_PATHNAME', 'agd_create_tenant';
COMMENT ON FUNCTION agd.create_tenant(text, text) IS
  'creates a tenant: 1 to 63 characters of a-z, 0-9, _ and -, a letter or digit at both ends';

CREATE FUNCTION agd.map_role(role name, tenant text, mode text DEFAULT 'role') RETURNS void
  LANGUAGE c VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  AS 'MODULE_PATHNAME', 'agd_map_role';
COMMENT ON FUNCTION agd.map_role(name, text, text) IS
  'makes a login role a tenant''s: whoever authenticates as it is bound to the tenant, with no call';

CREATE FUNCTION agd.current_tenant() RETURNS text
  LANGUAGE c STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'current_tenant_wrapper';
COMMENT ON FUNCTION agd.current_tenant() IS 'the tenant this session is bound to; NULL: none';

CREATE FUNCTION agd.current_principal() RETURNS text
  LANGUAGE c STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'current_principal_wrapper';
COMMENT ON FUNCTION agd.current_principal() IS 'who acts for the bound tenant; NULL when bound to none';

CREATE FUNCTION agd.set_cause(cause text) RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'set_cause_wrapper';
COMMENT ON FUNCTION agd.set_cause(text) IS
  'says why this transaction writes; recorded with all of its events, at most 4096 bytes';
