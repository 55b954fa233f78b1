-- The schema and the roles. First of all files: everything else is created inside agd.
--
-- The schema is created plainly, so that a schema agd that is there already fails the installation instead of being
-- adopted with whatever somebody put into it.

CREATE SCHEMA agd;
COMMENT ON SCHEMA agd IS 'audit-gated discipline: no audit record, no write';

-- Fails with 55000 when the library is not in shared_preload_libraries, with 0A000 when the database is not UTF-8;
-- and asks the launcher for a worker once this transaction commits.
CREATE FUNCTION agd.check_installation() RETURNS void
  LANGUAGE c AS 'MODULE_PATHNAME', 'check_installation_wrapper';
COMMENT ON FUNCTION agd.check_installation() IS 'raises unless this server and database can carry agd';
SELECT agd.check_installation();

-- Roles belong to the whole server: another database may have made them already.
DO $$
DECLARE
  wanted record;
BEGIN
  FOR wanted IN SELECT * FROM (VALUES
    ('agd_platform',  'operates agd: guards tables, manages tenants; sees headers of events, not payloads'),
    ('agd_auditor',   'reads and verifies everything but payloads'),
    ('agd_publisher', 'carries anchors out: what agd publish needs, no more'),
    ('agd_tenant',    'granted to a tenant''s login roles')
  ) AS w(name, purpose) LOOP
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = wanted.name) THEN
      BEGIN
        EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', wanted.name);
        EXECUTE pg_catalog.format('COMMENT ON ROLE %I IS %L', wanted.name, wanted.purpose);
      EXCEPTION WHEN duplicate_object OR unique_violation THEN
        NULL;  -- an installation in another database made it a moment ago
      END;
    END IF;
  END LOOP;
END
$$;
