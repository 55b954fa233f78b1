-- Guarded tables, and agd's own objects, against DDL. What is decided, and when: src/guard/protect.rs.

-- Everything that makes agd what it is, one row an object, from catalog rows alone. A statement that changes one of these
-- rows is refused. Left out is what an administrator may do: storage parameters, tablespaces, privileges, comments, indexes
-- that are not unique.
CREATE FUNCTION agd.own_objects() RETURNS TABLE (object text, definition text)
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  WITH home AS (
    SELECT n.* FROM pg_catalog.pg_namespace n WHERE n.nspname = 'agd'
  ), own AS (
    SELECT c.* FROM pg_catalog.pg_class c JOIN home h ON h.oid = c.relnamespace
     WHERE c.relname !~ '^pg_temp_[0-9]+$'   -- what VACUUM FULL copies into
  )
  SELECT pg_catalog.format('schema %s', h.nspname), h.nspowner::text FROM home h
  UNION ALL
  SELECT 'extension agd', pg_catalog.format('%s %s', e.extowner, e.extnamespace)
    FROM pg_catalog.pg_extension e WHERE e.extname = 'agd'
  UNION ALL
  SELECT pg_catalog.format('member %s of the extension', pg_catalog.pg_describe_object(d.classid, d.objid, 0)), ''
    FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid AND e.extname = 'agd'
   WHERE d.refclassid = 'pg_catalog.pg_extension'::regclass AND d.deptype = 'e'
  UNION ALL
  SELECT pg_catalog.format('table %s', c.relname),
         pg_catalog.format('%s %s %s %s %s %s %s', c.oid, c.relkind, c.relpersistence, c.relowner, c.relam,
                           c.relrowsecurity, c.relforcerowsecurity)
    FROM own c WHERE c.relkind NOT IN ('i', 'I')
  UNION ALL
  SELECT pg_catalog.format('column %s of %s', a.attname, c.relname),
         pg_catalog.format('%s %s %s %s %s %s %s', a.attnum, a.atttypid, a.atttypmod, a.attcollation, a.attnotnull,
                           a.attgenerated, (SELECT d.adbin FROM pg_catalog.pg_attrdef d
                                             WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum))
    FROM own c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
   WHERE c.relkind NOT IN ('i', 'I')
  UNION ALL
  SELECT pg_catalog.format('index %s of %s', i.relname, c.relname),
         pg_catalog.format('%s %s %s %s %s', x.indkey, x.indisunique, x.indisprimary, x.indexprs, x.indpred)
    FROM own c JOIN pg_catalog.pg_index x ON x.indrelid = c.oid JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
   WHERE x.indisunique OR i.relname LIKE 'tile\_of\_%'   -- others may be made for reports, and change nothing but speed
  UNION ALL
  SELECT pg_catalog.format('constraint %s of %s', n.conname, c.relname),
         pg_catalog.format('%s %s %s %s', n.contype, n.convalidated, n.conkey, n.conbin)
    FROM own c JOIN pg_catalog.pg_constraint n ON n.conrelid = c.oid
  UNION ALL
  SELECT pg_catalog.format('trigger %s of %s', t.tgname, c.relname),
         pg_catalog.format('%s %s %s %s %s %s', t.tgfoid, t.tgtype, t.tgenabled, t.tgattr, t.tgqual, t.tgargs)
    FROM own c JOIN pg_catalog.pg_trigger t ON t.tgrelid = c.oid
   WHERE NOT t.tgisinternal
      OR t.tgconstraint IN (SELECT n.oid FROM pg_catalog.pg_constraint n JOIN own o ON o.oid = n.conrelid)
  UNION ALL
  SELECT pg_catalog.format('rule %s of %s', r.rulename, c.relname),
         pg_catalog.format('%s %s %s %s', r.ev_type, r.ev_enabled, r.is_instead, r.ev_action)
    FROM own c JOIN pg_catalog.pg_rewrite r ON r.ev_class = c.oid
  UNION ALL
  SELECT pg_catalog.format('policy %s of %s', p.polname, c.relname),
         pg_catalog.format('%s %s %s %s %s', p.polcmd, p.polpermissive, p.polqual, p.polwithcheck,
                           (SELECT pg_catalog.string_agg(r.oid::text, ' ' ORDER BY r.oid) FROM pg_catalog.unnest(p.polroles) AS r(oid)))
    FROM own c JOIN pg_catalog.pg_policy p ON p.polrelid = c.oid
  UNION ALL
  SELECT pg_catalog.format('inheritance of %s', c.relname), pg_catalog.format('%s %s', i.inhrelid, i.inhparent)
    FROM own c JOIN pg_catalog.pg_inherits i ON c.oid IN (i.inhrelid, i.inhparent)
   WHERE c.relkind NOT IN ('i', 'I')
  UNION ALL
  SELECT pg_catalog.format('function %s', f.proname),
         pg_catalog.format('%s %s %s %s %s %s %s %s %s %s', f.oid, f.proowner, f.prolang, f.prosrc, f.probin, f.prosqlbody,
                           f.prosecdef, f.provolatile, f.proconfig, f.proargtypes)
    FROM pg_catalog.pg_proc f JOIN home h ON h.oid = f.pronamespace
  UNION ALL
  SELECT pg_catalog.format('event trigger %s', v.evtname),
         pg_catalog.format('%s %s %s %s %s', v.evtevent, v.evtowner, v.evtfoid, v.evtenabled, v.evttags)
    FROM pg_catalog.pg_event_trigger v JOIN pg_catalog.pg_proc f ON f.oid = v.evtfoid
         JOIN home h ON h.oid = f.pronamespace;
END;
COMMENT ON FUNCTION agd.own_objects() IS 'the definition of everything that is agd''s own; DDL that changes it is refused';

-- Called by the library after a statement that touched something guarded: runs as agd's owner whoever made the statement.
CREATE FUNCTION agd.check_ddl() RETURNS void
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'check_ddl_wrapper';
COMMENT ON FUNCTION agd.check_ddl() IS 'compares guards with what they were before the statement that ends; called by agd';

CREATE FUNCTION agd.ddl_command_end() RETURNS event_trigger
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_ddl_command_end';
COMMENT ON FUNCTION agd.ddl_command_end() IS 'refuses DDL that would open a guard (AG002), records DDL on guarded tables';

CREATE FUNCTION agd.sql_drop() RETURNS event_trigger
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'agd_sql_drop';
COMMENT ON FUNCTION agd.sql_drop() IS 'refuses to drop guarded tables and what guards them (AG002)';

-- The second line, behind the library's hooks; and what tells which objects a statement made or changed.
CREATE EVENT TRIGGER agd_ddl_command_end ON ddl_command_end EXECUTE FUNCTION agd.ddl_command_end();
ALTER EVENT TRIGGER agd_ddl_command_end ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER agd_ddl_command_end IS 'refuses DDL that would open a guard, records what is permitted';

CREATE EVENT TRIGGER agd_sql_drop ON sql_drop EXECUTE FUNCTION agd.sql_drop();
ALTER EVENT TRIGGER agd_sql_drop ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER agd_sql_drop IS 'refuses to drop guarded tables and what guards them';
