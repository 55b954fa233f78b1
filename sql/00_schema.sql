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

-- Roles belong to the whole server: another database may have made them already, and an administrator have granted them since.
-- Or somebody with CREATEROLE made them beforehand and is their member. Only a superuser can label a role for agd (the
-- library is the label's provider): one without the label is taken as it is only if it is as agd would have made it.
DO $$
DECLARE
  wanted record;
  strange text;
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
    SELECT pg_catalog.concat_ws(', ',
             CASE WHEN r.rolcanlogin THEN 'it may log in' END,
             CASE WHEN r.rolsuper THEN 'it is a superuser' END,
             CASE WHEN r.rolbypassrls THEN 'it has BYPASSRLS' END,
             CASE WHEN r.rolcreaterole THEN 'it has CREATEROLE' END,
             CASE WHEN r.rolcreatedb THEN 'it has CREATEDB' END,
             CASE WHEN r.rolreplication THEN 'it has REPLICATION' END,
             (SELECT 'it is a member of ' || pg_catalog.string_agg(DISTINCT pg_catalog.quote_ident(g.rolname), ', ')
                FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles g ON g.oid = m.roleid WHERE m.member = r.oid),
             (SELECT 'it has settings of its own'
               WHERE EXISTS (SELECT FROM pg_catalog.pg_db_role_setting s WHERE s.setrole = r.oid)),
             -- An administrator's doing, once a superuser has said that the role is agd's.
             (SELECT 'its members are '
                     || pg_catalog.string_agg(DISTINCT pg_catalog.quote_ident(u.rolname)
                                                       || CASE WHEN m.admin_option THEN ' (ADMIN)' ELSE '' END, ', ')
                FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles u ON u.oid = m.member
               WHERE m.roleid = r.oid
                 AND NOT EXISTS (SELECT FROM pg_catalog.pg_shseclabel s
                                  WHERE s.classoid = 'pg_catalog.pg_authid'::regclass AND s.objoid = r.oid
                                    AND s.provider = 'agd')))
      INTO strange
      FROM pg_catalog.pg_roles r WHERE r.rolname = wanted.name;
    IF strange <> '' THEN
      RAISE EXCEPTION 'the role % was there before agd and is not as agd makes it: %', wanted.name, strange
        USING ERRCODE = '55000',
              HINT = pg_catalog.format('DROP ROLE %1$I, or take from it what it should not have. If its members are as they should be: '
                                       'SECURITY LABEL FOR agd ON ROLE %1$I IS ''agd''. Then install again.', wanted.name);
    END IF;
    EXECUTE pg_catalog.format('SECURITY LABEL FOR agd ON ROLE %I IS ''agd''', wanted.name);
  END LOOP;
END
$$;
