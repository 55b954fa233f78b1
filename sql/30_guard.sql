-- Guards: which tables are guarded, and how.
-- The library reads agd.guarded_table by column position (src/guard/relation.rs): same order there.

CREATE TABLE agd.guarded_table (
  guard_id      uuid     PRIMARY KEY,
  relation      regclass NOT NULL UNIQUE,
  tenant_column text COLLATE "C",
  require_cause boolean  NOT NULL,
  on_truncate   text COLLATE "C" NOT NULL CHECK (on_truncate IN ('refuse', 'record')),
  guarded_at    timestamptz NOT NULL DEFAULT pg_catalog.now(),
  guarded_by    text     NOT NULL DEFAULT SESSION_USER,
  redact        text[] COLLATE "C" NOT NULL DEFAULT '{}'   -- columns recorded as a digest only
);
COMMENT ON TABLE agd.guarded_table IS 'the tables that agd.guard() guards';

-- Nobody is granted anything here. A key stays when its guard goes: while it is there, whoever may read it can check a
-- value against the record. Whoever deletes it makes the digests mean nothing for good, and a table that is still guarded
-- under it refuses writes until it is guarded anew.
CREATE TABLE agd.redaction_key (
  guard_id uuid  PRIMARY KEY,
  key      bytea NOT NULL CHECK (pg_catalog.octet_length(key) = 32)
);
COMMENT ON TABLE agd.redaction_key IS 'the keys under which redacted columns are digested, one a guard';

-- Every guard: those of agd.guard(), and those of agd's own tables that carry decisions. The latter have fixed ids, the same
-- in every database; sql/80_own_tables.sql makes their triggers.
CREATE VIEW agd.every_guard AS
  SELECT g.guard_id, g.relation, g.tenant_column, g.require_cause, g.on_truncate, g.redact
    FROM agd.guarded_table g
  UNION ALL
  SELECT pg_catalog.encode(pg_catalog.substr(pg_catalog.sha256(pg_catalog.convert_to('agd guard of agd.' || own.name, 'UTF8')), 1, 16),
                           'hex')::uuid,
         own.relation, NULL, false, 'refuse', '{}'
    FROM (VALUES ('tenant', 'agd.tenant'::regclass), ('role_map', 'agd.role_map'::regclass),
                 ('tenant_key', 'agd.tenant_key'::regclass), ('log_key', 'agd.log_key'::regclass),
                 ('guarded_table', 'agd.guarded_table'::regclass), ('signer', 'agd.signer'::regclass),
                 ('fleet_template', 'agd.fleet_template'::regclass), ('tenant_agent_fleet', 'agd.tenant_agent_fleet'::regclass),
                 ('fleet_agent', 'agd.fleet_agent'::regclass), ('countersign_request', 'agd.countersign_request'::regclass),
                 ('fleet_signature', 'agd.fleet_signature'::regclass)) AS own(name, relation);
COMMENT ON VIEW agd.every_guard IS 'the guards of agd.guard() and those of agd''s own tables';

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
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_guard';
COMMENT ON FUNCTION agd.guard(regclass, name, name[], boolean, text, boolean) IS
  'puts a table behind the gate: from now on no write without its record';

CREATE FUNCTION agd.unguard(relation regclass, reason text) RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_unguard';
COMMENT ON FUNCTION agd.unguard(regclass, text) IS 'takes a table out from behind the gate; the reason is recorded';

CREATE FUNCTION agd.complete_partitions() RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'complete_partitions_wrapper';
COMMENT ON FUNCTION agd.complete_partitions() IS
  'guards new partitions of guarded tables; called by agd when a partition is made or attached';

-- Is this expression the one that agd.guard() made for a tenant column? Trees are compared (src/guard/policy.rs), not text:
-- how an expression is printed depends on settings, and needs a lock on its table.
CREATE FUNCTION agd.is_tenant_policy(expression pg_node_tree, column_number smallint, column_type oid, type_modifier integer,
    column_collation oid)
  RETURNS boolean LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'agd_is_tenant_policy';
COMMENT ON FUNCTION agd.is_tenant_policy(pg_node_tree, smallint, oid, integer, oid) IS
  'is this the expression of agd''s own policy on a tenant column';

-- What is wrong with a guard, one row a problem; none: it is intact. The one truth: coverage() shows it, agd.verify() asks
-- it, and DDL that would add to it is refused (src/guard/protect.rs).
--
-- From catalog rows alone, policies included: nothing here waits for a lock on a guarded table (pg_partition_tree would).
CREATE FUNCTION agd.guard_problems(root regclass)
  RETURNS TABLE (relation regclass, problem text)
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  WITH RECURSIVE tree (oid, level) AS (
    SELECT g.relation::oid, 0 FROM agd.every_guard g WHERE g.relation = guard_problems.root
    UNION ALL
    SELECT i.inhrelid, t.level + 1
      FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
           JOIN pg_catalog.pg_class p ON p.oid = t.oid AND p.relkind = 'p'
  )
  SELECT t.oid::regclass, w.what
    FROM tree t
         JOIN agd.every_guard g ON g.relation = guard_problems.root
         LEFT JOIN pg_catalog.pg_class c ON c.oid = t.oid
         LEFT JOIN pg_catalog.pg_am am ON am.oid = c.relam
         CROSS JOIN LATERAL (
           -- The gate.
           SELECT pg_catalog.format('trigger "%s" is missing, changed or not ENABLE ALWAYS', e.tgname) AS what
             FROM (VALUES ('~agd_record', 'agd.record_write()'::regprocedure, 31),
                          ('~agd_confirm', 'agd.confirm_write()'::regprocedure, 29),
                          ('~agd_truncate', 'agd.refuse_truncate()'::regprocedure, 34)) AS e(tgname, tgfoid, tgtype)
            WHERE NOT EXISTS (
                    SELECT FROM pg_catalog.pg_trigger tg
                     WHERE tg.tgrelid = t.oid AND tg.tgname = e.tgname AND tg.tgfoid = e.tgfoid
                       AND tg.tgtype = e.tgtype AND tg.tgenabled = 'A' AND tg.tgqual IS NULL AND tg.tgattr::text = ''
                       AND tg.tgconstraint = 0 AND NOT tg.tgdeferrable AND tg.tgoldtable IS NULL AND tg.tgnewtable IS NULL
                       AND tg.tgnargs = 1
                       AND pg_catalog.encode(tg.tgargs, 'escape') = g.guard_id::text || '\000')
           -- No other trigger calls what the gate is made of.
           UNION ALL
           SELECT pg_catalog.format('the trigger "%s" calls a function of agd''s and is not agd''s own', tg.tgname)
             FROM pg_catalog.pg_trigger tg
            WHERE tg.tgrelid = t.oid
              AND (tg.tgfoid IN ('agd.record_write()'::regprocedure, 'agd.confirm_write()'::regprocedure,
                                 'agd.refuse_truncate()'::regprocedure)
                   AND tg.tgname NOT IN ('~agd_record', '~agd_confirm', '~agd_truncate')
                   OR tg.tgfoid IN ('agd.refuse_write()'::regprocedure, 'agd.refuse_replicated()'::regprocedure)
                   AND c.relnamespace <> 'agd'::regnamespace)
           UNION ALL SELECT 'its triggers are switched off in pg_class' WHERE NOT c.relhastriggers
           -- PostgreSQL fires row triggers by name: nothing may come between the record and the write.
           UNION ALL
           SELECT pg_catalog.format('the trigger "%s" fires after the gate: it needs a name that sorts before "~agd_record"',
                                    tg.tgname)
             FROM pg_catalog.pg_trigger tg
            WHERE tg.tgrelid = t.oid AND tg.tgname > '~agd_record' AND tg.tgenabled <> 'D'
              -- FOR EACH ROW, BEFORE; and BEFORE TRUNCATE, behind the gate's own
              AND (tg.tgtype & 3 = 3 OR tg.tgtype & 34 = 34 AND tg.tgname > '~agd_truncate')
           -- The digest of the guards takes in definitions up to a size (agd.guard_digest).
           UNION ALL
           SELECT pg_catalog.format('the trigger "%s" has a definition of more than 1 MB', tg.tgname)
             FROM pg_catalog.pg_trigger tg
            WHERE tg.tgrelid = t.oid
              AND (pg_catalog.octet_length(tg.tgqual::text) > 1048576 OR pg_catalog.octet_length(tg.tgargs) > 1048576)
           UNION ALL
           SELECT pg_catalog.format('the policy "%s" has an expression of more than 1 MB', p.polname)
             FROM pg_catalog.pg_policy p
            WHERE p.polrelid = t.oid
              AND (pg_catalog.octet_length(p.polqual::text) > 1048576
                   OR pg_catalog.octet_length(p.polwithcheck::text) > 1048576)
           -- What the gate can record in full, and nothing else.
           UNION ALL SELECT 'the table is gone' WHERE c.oid IS NULL
           UNION ALL SELECT 'it is not a table' WHERE c.relkind NOT IN ('r', 'p')
           UNION ALL SELECT 'it is unlogged or temporary' WHERE c.relpersistence <> 'p'
           UNION ALL SELECT 'its access method is not heap' WHERE c.relkind = 'r' AND am.amname <> 'heap'
           UNION ALL SELECT 'it is a partition of a table that is not guarded' WHERE t.level = 0 AND c.relispartition
           UNION ALL SELECT 'it is part of an inheritance tree'
            WHERE EXISTS (SELECT FROM pg_catalog.pg_inherits i
                           WHERE (i.inhparent = t.oid AND c.relkind <> 'p')
                              OR (i.inhrelid = t.oid AND NOT c.relispartition))
           UNION ALL SELECT pg_catalog.format('it has the rule "%s"', r.rulename)
             FROM pg_catalog.pg_rewrite r WHERE r.ev_class = t.oid
           UNION ALL SELECT 'it has no primary key'
            WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_index x WHERE x.indrelid = t.oid AND x.indisprimary)
           -- The wall.
           UNION ALL
           SELECT pg_catalog.format('the tenant column "%s" is missing, generated, or of another type or collation', g.tenant_column)
            WHERE g.tenant_column IS NOT NULL
              AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                               WHERE a.attrelid = t.oid AND a.attname = g.tenant_column AND NOT a.attisdropped
                                 AND a.attgenerated = ''
                                 AND a.atttypid IN ('text'::regtype, 'varchar'::regtype, 'uuid'::regtype,
                                                    'bigint'::regtype, 'integer'::regtype)
                                 AND NOT EXISTS (SELECT FROM pg_catalog.pg_collation n
                                                  WHERE n.oid = a.attcollation AND NOT n.collisdeterministic))
           UNION ALL
           SELECT pg_catalog.format('the redacted column "%s" is missing, generated or part of the primary key', col.name)
             FROM pg_catalog.unnest(g.redact) AS col(name)
            WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                               WHERE a.attrelid = t.oid AND a.attname = col.name AND NOT a.attisdropped
                                 AND a.attgenerated = ''
                                 AND NOT EXISTS (SELECT FROM pg_catalog.pg_index x
                                                  WHERE x.indrelid = t.oid AND x.indisprimary
                                                    AND a.attnum = ANY (x.indkey)))
           UNION ALL
           SELECT 'row-level security is not enabled and forced'
            WHERE g.tenant_column IS NOT NULL AND NOT (c.relrowsecurity AND c.relforcerowsecurity)
           UNION ALL
           SELECT 'the restrictive policy agd_tenant is missing or changed'
            WHERE g.tenant_column IS NOT NULL
              AND NOT EXISTS (
                    SELECT FROM pg_catalog.pg_policy p
                           JOIN pg_catalog.pg_attribute a
                             ON a.attrelid = t.oid AND a.attname = g.tenant_column AND NOT a.attisdropped
                     WHERE p.polrelid = t.oid AND p.polname = 'agd_tenant' AND NOT p.polpermissive AND p.polcmd = '*'
                       AND p.polroles = '{0}'
                       AND agd.is_tenant_policy(p.polqual, a.attnum, a.atttypid, a.atttypmod, a.attcollation)
                       AND agd.is_tenant_policy(p.polwithcheck, a.attnum, a.atttypid, a.atttypmod, a.attcollation))
         ) w;
END;
COMMENT ON FUNCTION agd.guard_problems(regclass) IS
  'what is wrong with the guard of a table and of its partitions; no rows: nothing';

CREATE FUNCTION agd.coverage()
  RETURNS TABLE (relation regclass, guarded boolean, intact boolean, detail text)
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  WITH RECURSIVE tree (root, oid) AS (
    SELECT g.relation::oid, g.relation::oid FROM agd.every_guard g
    UNION ALL
    SELECT t.root, i.inhrelid
      FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
           JOIN pg_catalog.pg_class p ON p.oid = t.oid AND p.relkind = 'p'
  ), problem AS (
    SELECT w.relation AS oid, pg_catalog.string_agg(w.problem, '; ' ORDER BY w.problem) AS what
      FROM agd.every_guard g CROSS JOIN LATERAL agd.guard_problems(g.relation) w
     GROUP BY w.relation
  )
  SELECT c.oid::regclass, t.oid IS NOT NULL, t.oid IS NOT NULL AND p.what IS NULL,
         CASE WHEN t.oid IS NULL THEN 'not guarded'
              WHEN p.what IS NOT NULL THEN p.what
              WHEN t.oid <> t.root THEN pg_catalog.format('guarded as a partition of %s', t.root::regclass)
              ELSE 'guarded' END
    FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         LEFT JOIN tree t ON t.oid = c.oid
         LEFT JOIN problem p ON p.oid = c.oid
   WHERE c.relkind IN ('r', 'p')
     AND n.nspname NOT IN ('pg_catalog', 'information_schema')
     AND (n.nspname <> 'agd' OR t.oid IS NOT NULL)   -- agd's other tables are the record itself
     AND n.nspname !~ '^pg_(toast|temp_)'
   ORDER BY 1;
END;
COMMENT ON FUNCTION agd.coverage() IS 'every table of this database: is it guarded, and is its guard intact';

-- What the guards are, as one digest: when it changes, the platform log says so, and every anchor carries it.
--
-- Made of names and definitions, never of oids, so that a restored database has the same. And made of catalog rows alone:
-- the worker calls it, and must not wait for a lock that somebody holds on a guarded table (pg_partition_tree and
-- pg_get_expr would; and what takes a tree apart again may need more stack than who made it). So a policy, and a trigger's WHEN, is its
-- expression's tree without object numbers and places in a source text (-1: none), plus the names of
-- all it refers to.
--
-- Hashed line by line, so that no value ever is as large as all guards are together; and a trigger or policy whose definition
-- is larger than 1 MB is in it as its size alone (and is a problem of its guard).
--
-- A view, so that the worker can keep its plan and does not make it anew in every pass. Names are written as the session's
-- search_path has it: pg_catalog, pg_temp, nothing else.
CREATE VIEW agd.guard_digest (digest) AS
  WITH RECURSIVE tree (guard_id, oid) AS (
    SELECT g.guard_id, g.relation::oid FROM agd.every_guard g
    UNION ALL
    SELECT t.guard_id, i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
  ), lines (line) AS (
    SELECT pg_catalog.format('guard %s %s %s %s %s %s', g.guard_id, g.relation, g.tenant_column, g.require_cause, g.on_truncate,
                             g.redact)
      FROM agd.every_guard g
    UNION ALL
    SELECT pg_catalog.format('table %s %s %s %s %s', t.guard_id, c.oid::regclass, c.relhastriggers, c.relrowsecurity,
                             c.relforcerowsecurity)
      FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid
    UNION ALL
    SELECT pg_catalog.format('trigger %s %s %s %s %s %s %s %s %s %s %s', t.guard_id, tg.tgenabled, tg.tgname, t.oid::regclass,
             tg.tgfoid::regprocedure, tg.tgtype,
             (SELECT pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ',' ORDER BY a.attnum)
                FROM pg_catalog.pg_attribute a WHERE a.attrelid = tg.tgrelid AND a.attnum = ANY (tg.tgattr)),
             CASE WHEN pg_catalog.octet_length(tg.tgqual::text) > 1048576
                  THEN pg_catalog.format('%s bytes', pg_catalog.octet_length(tg.tgqual::text))
                  ELSE pg_catalog.regexp_replace(tg.tgqual::text, '(:[a-z]+) -?[0-9]+', '\1 #', 'g') END,
             CASE WHEN pg_catalog.octet_length(tg.tgargs) > 1048576
                  THEN pg_catalog.format('%s bytes', pg_catalog.octet_length(tg.tgargs))
                  ELSE pg_catalog.encode(tg.tgargs, 'escape') END,
             pg_catalog.format('%s %s %s %s %s', tg.tgconstraint <> 0, tg.tgdeferrable, tg.tginitdeferred, tg.tgoldtable,
                               tg.tgnewtable),
             (SELECT pg_catalog.string_agg(pg_catalog.pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid), ', '
                                           ORDER BY pg_catalog.pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid)
                                                    COLLATE "C")
                FROM pg_catalog.pg_depend d
               WHERE d.classid = 'pg_catalog.pg_trigger'::regclass AND d.objid = tg.oid
                 AND d.refclassid <> 'pg_catalog.pg_trigger'::regclass))
      FROM tree t JOIN pg_catalog.pg_trigger tg
             ON tg.tgrelid = t.oid
            AND (tg.tgname LIKE '~agd\_%'
                 OR tg.tgfoid IN ('agd.record_write()'::regprocedure, 'agd.confirm_write()'::regprocedure,
                                  'agd.refuse_truncate()'::regprocedure))
    UNION ALL
    SELECT pg_catalog.format('policy %s %s %s %s %s %s %s %s', t.guard_id, t.oid::regclass, p.polname, p.polcmd, p.polpermissive,
             CASE WHEN pg_catalog.octet_length(p.polqual::text) > 1048576
                  THEN pg_catalog.format('%s bytes', pg_catalog.octet_length(p.polqual::text))
                  ELSE pg_catalog.regexp_replace(p.polqual::text, '(:[a-z]+) -?[0-9]+', '\1 #', 'g') END,
             CASE WHEN pg_catalog.octet_length(p.polwithcheck::text) > 1048576
                  THEN pg_catalog.format('%s bytes', pg_catalog.octet_length(p.polwithcheck::text))
                  ELSE pg_catalog.regexp_replace(p.polwithcheck::text, '(:[a-z]+) -?[0-9]+', '\1 #', 'g') END,
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
  SELECT pg_catalog.sha256(COALESCE(pg_catalog.string_agg(h.hash, ''::bytea ORDER BY h.hash), ''::bytea))
    FROM (SELECT pg_catalog.sha256(pg_catalog.convert_to(l.line, 'UTF8')) AS hash FROM lines l) h;
COMMENT ON VIEW agd.guard_digest IS 'what agd.guard_state() answers, for sessions with its search_path';

CREATE FUNCTION agd.guard_state() RETURNS bytea
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT d.digest FROM agd.guard_digest d;
END;
COMMENT ON FUNCTION agd.guard_state() IS 'digest over every guard''s definition, triggers, flags and policies';

CREATE FUNCTION agd.guard_id(relation regclass) RETURNS uuid
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT g.guard_id FROM agd.every_guard g
   WHERE g.relation = guard_id.relation
      OR g.relation IN (SELECT a.relid FROM pg_catalog.pg_partition_ancestors(guard_id.relation) a);
END;
COMMENT ON FUNCTION agd.guard_id(regclass) IS 'the guard of a table, or of the partitioned table it belongs to';
