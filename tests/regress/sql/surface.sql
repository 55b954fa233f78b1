-- The public surface, as an allow-list: an object that is not in the expected output fails the build. Whoever adds one
-- reads here what it is, who may use it and with whose rights it runs.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS agd;
RESET client_min_messages;

\a\t
SELECT p.oid::regprocedure || ' returns ' || pg_get_function_result(p.oid) AS function,
       CASE p.prokind WHEN 'f' THEN '' ELSE p.prokind::text END AS kind,
       l.lanname AS language, p.provolatile::text AS volatile, p.proparallel::text AS parallel, p.proisstrict AS strict,
       CASE WHEN p.prosecdef THEN 'DEFINER' ELSE 'invoker' END AS security, p.proconfig AS settings,
       (SELECT string_agg(CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END, ',' ORDER BY a.grantee::regrole::text COLLATE "C")
          FROM aclexplode(p.proacl) a WHERE a.grantee <> p.proowner) AS execute
  FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
 WHERE p.pronamespace = 'agd'::regnamespace
 ORDER BY p.oid::regprocedure::text COLLATE "C";

-- Argument names and defaults are part of the surface: callers write them.
SELECT p.proname || '(' || pg_get_function_arguments(p.oid) || ')'
  FROM pg_proc p WHERE p.pronamespace = 'agd'::regnamespace
 ORDER BY p.proname COLLATE "C", p.oid::regprocedure::text COLLATE "C";

-- A SECURITY DEFINER function without a pinned search_path would be a way in: there must be none.
SELECT p.oid::regprocedure FROM pg_proc p
 WHERE p.pronamespace = 'agd'::regnamespace AND p.prosecdef
   AND NOT coalesce(p.proconfig @> '{"search_path=pg_catalog, pg_temp"}', false);

SELECT c.relkind::text || ' ' || c.relname AS relation, c.relrowsecurity AS rls, c.reloptions AS options,
       (SELECT string_agg(format('%s:%s', CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END, a.privilege_type), ','
               ORDER BY CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END COLLATE "C", a.privilege_type)
          FROM aclexplode(c.relacl) a WHERE a.grantee <> c.relowner) AS granted
  FROM pg_class c
 WHERE c.relnamespace = 'agd'::regnamespace
 ORDER BY c.relkind, c.relname COLLATE "C";

SELECT c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
 WHERE c.relnamespace = 'agd'::regnamespace AND c.relkind IN ('r', 'v', 'p') AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY c.relname COLLATE "C", a.attnum;

SELECT c.relname, t.tgname, t.tgenabled::text, t.tgfoid::regprocedure
  FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
 WHERE c.relnamespace = 'agd'::regnamespace AND NOT t.tgisinternal
 ORDER BY c.relname COLLATE "C", t.tgname COLLATE "C";

SELECT c.relname, p.polname, p.polcmd::text, p.polpermissive, p.polroles::regrole[], pg_get_expr(p.polqual, p.polrelid)
  FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid
 WHERE c.relnamespace = 'agd'::regnamespace ORDER BY 1, 2;

-- Types of its own (not the row types of tables, not arrays), casts, operators, event triggers, foreign objects.
SELECT t.typname FROM pg_type t
 WHERE t.typnamespace = 'agd'::regnamespace AND t.typelem = 0
   AND NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = t.typrelid AND c.relkind <> 'c') ORDER BY 1;
SELECT oprname FROM pg_operator WHERE oprnamespace = 'agd'::regnamespace;
SELECT evtname, evtevent, evtenabled::text, evtfoid::regproc FROM pg_event_trigger ORDER BY 1;
SELECT nspname, nspacl IS NOT NULL AS acl,
       (SELECT string_agg(CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END || ':' || a.privilege_type, ',')
          FROM aclexplode(nspacl) a WHERE a.grantee <> nspowner) AS granted
  FROM pg_namespace WHERE nspname = 'agd';

-- Everything that belongs to the extension lies in its schema, and everything in its schema belongs to the extension.
SELECT pg_describe_object(d.classid, d.objid, d.objsubid) AS outside
  FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
 WHERE e.extname = 'agd' AND d.deptype = 'e'
   AND NOT EXISTS (SELECT FROM pg_identify_object(d.classid, d.objid, d.objsubid) i WHERE i.schema = 'agd' OR i.identity LIKE 'agd%')
 ORDER BY 1;
SELECT pg_describe_object('pg_class'::regclass, c.oid, 0) AS stray FROM pg_class c
 WHERE c.relnamespace = 'agd'::regnamespace AND c.relkind IN ('r', 'v', 'p', 'S')
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e');

SELECT rolname, rolcanlogin, rolsuper, rolbypassrls FROM pg_roles WHERE rolname LIKE 'agd\_%' ORDER BY 1;

-- Each object says what it is.
SELECT pg_describe_object('pg_proc'::regclass, p.oid, 0) AS no_comment FROM pg_proc p
 WHERE p.pronamespace = 'agd'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL ORDER BY 1;
SELECT pg_describe_object('pg_class'::regclass, c.oid, 0) AS no_comment FROM pg_class c
 WHERE c.relnamespace = 'agd'::regnamespace AND c.relkind IN ('r', 'v', 'p') AND obj_description(c.oid, 'pg_class') IS NULL ORDER BY 1;
SELECT pg_describe_object('pg_authid'::regclass, r.oid, 0) AS no_comment FROM pg_roles r
 WHERE r.rolname LIKE 'agd\_%' AND shobj_description(r.oid, 'pg_authid') IS NULL ORDER BY 1;
SELECT name, vartype, context, boot_val, unit FROM pg_settings WHERE name LIKE 'agd.%' ORDER BY name COLLATE "C";
