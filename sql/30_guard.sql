-- Guards: which tables are guarded, and how.
-- The library reads agd.guarded_table by column position (src/guard/relation.rs): same order there.

CREATE TABLE agd.guarded_table (
  guard_id      uuid     PRIMARY KEY,
  relation      regclass NOT NULL UNIQUE,
  tenant_column text COLLATE "C",
  require_cause boolean  NOT NULL,
  on_truncate   text COLLATE "C" NOT NULL CHECK (on_truncate IN ('refuse', 'record')),
  guarded_at    timestamptz NOT NULL DEFAULT pg_catalog.now(),
  guarded_by    text     NOT NULL DEFAULT SESSION_USER
);
COMMENT ON TABLE agd.guarded_table IS 'the tables that agd.guard() guards';

CREATE FUNCTION agd.record_write() RETURNS trigger LANGUAGE c AS 'MODULE_PATHNAME', 'agd_record_write';
COMMENT ON FUNCTION agd.record_write() IS 'the gate: records the row before it is written';

CREATE FUNCTION agd.confirm_write() RETURNS trigger LANGUAGE c AS 'MODULE_PATHNAME', 'agd_confirm_write';
COMMENT ON FUNCTION agd.confirm_write() IS 'the gate: the row written must be the row recorded';

CREATE FUNCTION agd.refuse_truncate() RETURNS trigger LANGUAGE c AS 'MODULE_PATHNAME', 'agd_truncate';
COMMENT ON FUNCTION agd.refuse_truncate() IS 'the gate: TRUNCATE is refused, or recorded where the guard says so';

CREATE FUNCTION agd.guard(
    relation regclass,
    tenant_column name DEFAULT NULL,
    redact name[] DEFAULT '{}',
    require_cause boolean DEFAULT false,
    on_truncate text DEFAULT 'refuse',
    baseline boolean DEFAULT true)
  RETURNS void
  LANGUAGE c VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  AS 'MODULE_PATHNAME', 'guard_wrapper';
COMMENT ON FUNCTION agd.guard(regclass, name, name[], boolean, text, boolean) IS
  'puts a table behind the gate: from now on no write without its record';

CREATE FUNCTION agd.unguard(relation regclass, reason text) RETURNS void
  LANGUAGE c VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  AS 'MODULE_PATHNAME', 'unguard_wrapper';
COMMENT ON FUNCTION agd.unguard(regclass, text) IS 'takes a table out from behind the gate; the reason is recorded';

CREATE FUNCTION agd.complete_partitions() RETURNS void
  LANGUAGE c VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  AS 'MODULE_PATHNAME', 'complete_partitions_wrapper';
COMMENT ON FUNCTION agd.complete_partitions() IS
  'guards new partitions of guarded tables; called by agd when a partition is made or attached';

-- A guard is intact when every table of its tree has its triggers, of our functions, ALWAYS on, and, for a table of
-- tenants, row-level security is on and forced and the restrictive policy stands on the root and on every partition.
CREATE FUNCTION agd.coverage()
  RETURNS TABLE (relation regclass, guarded boolean, intact boolean, detail text)
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  WITH tree AS (
    SELECT g.guard_id, g.relation AS root, g.tenant_column, member.relid AS oid
      FROM agd.guarded_table g
           CROSS JOIN LATERAL (SELECT g.relation::oid AS relid
                               UNION
                               SELECT p.relid::oid FROM pg_catalog.pg_partition_tree(g.relation) p) member
  ), problem AS (
    SELECT t.oid,
           pg_catalog.string_agg(w.what, '; ' ORDER BY w.what) AS what
      FROM tree t
           JOIN pg_catalog.pg_class c ON c.oid = t.oid
           CROSS JOIN LATERAL (
             SELECT pg_catalog.format('trigger "%s" is missing, changed or not ENABLE ALWAYS', e.tgname) AS what
               FROM (VALUES ('~agd_record', 'agd.record_write()'::regprocedure, 31, true),
                            ('~agd_confirm', 'agd.confirm_write()'::regprocedure, 29, true),
                            ('~agd_truncate', 'agd.refuse_truncate()'::regprocedure, 34, false)
                    ) AS e(tgname, tgfoid, tgtype, is_row)
              WHERE NOT EXISTS (
                      SELECT FROM pg_catalog.pg_trigger tg
                       WHERE tg.tgrelid = t.oid AND tg.tgname = e.tgname AND tg.tgfoid = e.tgfoid
                         AND tg.tgtype = e.tgtype AND tg.tgenabled = 'A' AND tg.tgqual IS NULL
                         AND pg_catalog.encode(tg.tgargs, 'escape') = t.guard_id::text || '\000')
             UNION ALL
             SELECT 'row-level security is not enabled and forced'
              WHERE t.tenant_column IS NOT NULL AND NOT (c.relrowsecurity AND c.relforcerowsecurity)
             UNION ALL
             SELECT 'the restrictive policy agd_tenant is missing'
              WHERE t.tenant_column IS NOT NULL
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_policy p
                                 WHERE p.polrelid = t.oid AND p.polname = 'agd_tenant' AND NOT p.polpermissive)
           ) w
     GROUP BY t.oid
  )
  SELECT c.oid::regclass, t.oid IS NOT NULL, t.oid IS NOT NULL AND p.what IS NULL,
         CASE WHEN t.oid IS NULL THEN 'not guarded'
              WHEN p.what IS NOT NULL THEN p.what
              WHEN t.oid <> t.root THEN pg_catalog.format('guarded as a partition of %s', t.root)
              ELSE 'guarded' END
    FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         LEFT JOIN tree t ON t.oid = c.oid
         LEFT JOIN problem p ON p.oid = c.oid
   WHERE c.relkind IN ('r', 'p')
     AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'agd')
     AND n.nspname !~ '^pg_(toast|temp_)'
   ORDER BY 1;
END;
COMMENT ON FUNCTION agd.coverage() IS 'every table of this database: is it guarded, and is its guard intact';

-- What the guards are, as one digest: when it changes, the platform log says so, and every anchor carries it.
--
-- Made of names and definitions, never of oids, so that a restored database has the same. And made of catalog rows alone:
-- the worker calls it, and must not wait for a lock that somebody holds on a guarded table (pg_partition_tree and
-- pg_get_expr would). So a policy is its expression's tree without object numbers, plus the names of all it refers to.
CREATE FUNCTION agd.guard_state() RETURNS bytea
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  WITH RECURSIVE tree (guard_id, oid) AS (
    SELECT g.guard_id, g.relation::oid FROM agd.guarded_table g
    UNION ALL
    SELECT t.guard_id, i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
  ), lines (line) AS (
    SELECT pg_catalog.format('guard %s %s %s %s %s', g.guard_id, g.relation, g.tenant_column, g.require_cause, g.on_truncate)
      FROM agd.guarded_table g
    UNION ALL
    SELECT pg_catalog.format('table %s %s %s %s', t.guard_id, c.oid::regclass, c.relrowsecurity, c.relforcerowsecurity)
      FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid
    UNION ALL
    SELECT pg_catalog.format('trigger %s %s %s', t.guard_id, tg.tgenabled, pg_catalog.pg_get_triggerdef(tg.oid))
      FROM tree t JOIN pg_catalog.pg_trigger tg ON tg.tgrelid = t.oid AND tg.tgname LIKE '~agd\_%'
    UNION ALL
    SELECT pg_catalog.format('policy %s %s %s %s %s %s %s %s', t.guard_id, t.oid::regclass, p.polname, p.polcmd, p.polpermissive,
             pg_catalog.regexp_replace(p.polqual::text, '(:[a-z]+) [0-9]+', '\1 #', 'g'),
             pg_catalog.regexp_replace(p.polwithcheck::text, '(:[a-z]+) [0-9]+', '\1 #', 'g'),
             (SELECT pg_catalog.string_agg(pg_catalog.pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid), ', '
                                           ORDER BY pg_catalog.pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid)
                                                    COLLATE "C")
                FROM pg_catalog.pg_depend d
               WHERE d.classid = 'pg_catalog.pg_policy'::regclass AND d.objid = p.oid))
      FROM tree t JOIN pg_catalog.pg_policy p ON p.polrelid = t.oid
    UNION ALL
    SELECT pg_catalog.format('function %s %s %s', f.oid::regprocedure, pg_catalog.pg_get_userbyid(f.proowner), f.prosrc)
      FROM pg_catalog.pg_proc f
     WHERE f.oid IN ('agd.record_write()'::regprocedure, 'agd.confirm_write()'::regprocedure,
                     'agd.refuse_truncate()'::regprocedure)
  )
  SELECT pg_catalog.sha256(pg_catalog.convert_to(
           COALESCE(pg_catalog.string_agg(l.line, E'\n' ORDER BY l.line COLLATE "C"), ''), 'UTF8'))
    FROM lines l;
END;
COMMENT ON FUNCTION agd.guard_state() IS 'digest over every guard''s definition, triggers, flags and policies';

CREATE FUNCTION agd.guard_id(relation regclass) RETURNS uuid
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT g.guard_id FROM agd.guarded_table g
   WHERE g.relation = guard_id.relation
      OR g.relation IN (SELECT a.relid FROM pg_catalog.pg_partition_ancestors(guard_id.relation) a);
END;
COMMENT ON FUNCTION agd.guard_id(regclass) IS 'the guard of a table, or of the partitioned table it belongs to';
