-- What row-level security does not cover, table by table.

-- PostgreSQL checks unique and foreign keys against every row, whoever may see it, and reads views with their owner's
-- rights. And a table's owner may drop what guards it; while it is guarded a mapped role does no DDL on it, owner or not.
-- agd.guard() warns of what it finds here; who made a table so may have had a reason.
CREATE FUNCTION agd.wall_gaps(relation regclass DEFAULT NULL)
  RETURNS TABLE (relation regclass, gap text, remedy text)
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  WITH RECURSIVE walled AS (
    SELECT g.relation::oid AS oid, a.attnum
      FROM agd.guarded_table g
           JOIN pg_catalog.pg_attribute a
             ON a.attrelid = g.relation AND a.attname = g.tenant_column AND NOT a.attisdropped
  ), asked AS (
    SELECT w.* FROM walled w WHERE wall_gaps.relation IS NULL OR w.oid = wall_gaps.relation
  ), reader AS (
    SELECT DISTINCT w.oid AS walled, v.oid, v.relkind, v.relowner, v.reloptions
      FROM asked w
           JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = w.oid
                                      AND d.classid = 'pg_catalog.pg_rewrite'::regclass
           JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid
           JOIN pg_catalog.pg_class v ON v.oid = r.ev_class AND v.relkind IN ('v', 'm')
     WHERE v.relnamespace <> 'agd'::regnamespace
  ), member (walled, oid) AS (
    SELECT w.oid, w.oid FROM asked w
    UNION
    SELECT m.walled, i.inhrelid FROM member m JOIN pg_catalog.pg_inherits i ON i.inhparent = m.oid
  ), becomes (role, other) AS (   -- whom a mapped role is, or may become
    SELECT m.role::oid, m.role::oid FROM agd.role_map m
    UNION
    SELECT b.role, n.oid
      FROM becomes b JOIN pg_catalog.pg_roles o ON o.oid = b.other
           JOIN pg_catalog.pg_roles n
             ON EXISTS (SELECT FROM pg_catalog.pg_auth_members a WHERE a.member = b.other AND a.roleid = n.oid)
                -- Until PostgreSQL 16 CREATEROLE made a role a member of whichever it liked, but for superusers.
                OR (o.rolcreaterole AND NOT n.rolsuper
                    AND pg_catalog.current_setting('server_version_num')::int < 160000)
  ), owned AS (
    SELECT DISTINCT m.walled, m.oid, b.role, b.other
      FROM member m JOIN pg_catalog.pg_class c ON c.oid = m.oid
           JOIN becomes b ON true JOIN pg_catalog.pg_roles o ON o.oid = b.other
     WHERE c.relowner = b.other OR (o.rolsuper AND m.oid = m.walled)
  )
  SELECT o.walled::regclass,
         CASE WHEN o.role = o.other THEN
                pg_catalog.format('%s is owned by %s, which is mapped to a tenant', o.oid::regclass, o.role::regrole)
              ELSE pg_catalog.format('%s, which is mapped to a tenant, is a member of %s or can make itself one, and so above the wall of %s',
                                     o.role::regrole, o.other::regrole, o.oid::regclass) END,
         CASE WHEN o.role = o.other THEN 'let it belong to a role that is mapped to no tenant: ALTER TABLE … OWNER TO'
              ELSE 'take the membership or CREATEROLE away, or map another role' END
    FROM owned o
  UNION ALL
  SELECT w.oid::regclass,
         pg_catalog.format('unique index %I does not have the tenant column: whoever writes a key learns whether another tenant has it',
                           i.relname),
         'make the tenant column part of it, or let keys be random: uuid, not a sequence'
    FROM asked w
         JOIN pg_catalog.pg_index x ON x.indrelid = w.oid AND (x.indisunique OR x.indisexclusion)
         JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
   WHERE NOT w.attnum = ANY ((x.indkey::int2[])[0:x.indnkeyatts - 1])
  UNION ALL
  SELECT w.oid::regclass,
         pg_catalog.format('foreign key %I of %s refers to it without the tenant column: whoever writes there learns which keys other tenants have, and can point to them',
                           n.conname, n.conrelid::regclass),
         'refer to the tenant column together with the key'
    FROM asked w
         JOIN pg_catalog.pg_constraint n ON n.confrelid = w.oid AND n.contype = 'f' AND n.conparentid = 0
   WHERE NOT EXISTS (SELECT FROM ROWS FROM (pg_catalog.unnest(n.conkey), pg_catalog.unnest(n.confkey)) AS pair(here, there)
                            JOIN walled o ON o.oid = n.conrelid AND o.attnum = pair.here
                      WHERE pair.there = w.attnum)
  UNION ALL
  SELECT r.walled::regclass,
         pg_catalog.format('materialized view %s holds rows of all tenants, and no policy guards it', r.oid::regclass),
         'grant it to no tenant''s role'
    FROM reader r WHERE r.relkind = 'm'
  UNION ALL
  SELECT r.walled::regclass,
         pg_catalog.format('view %s is read with the rights of its owner %s, for whom policies do not count', r.oid::regclass,
                           pg_catalog.quote_ident(o.rolname)),
         pg_catalog.format('ALTER VIEW %s SET (security_invoker), or give it to an ordinary role', r.oid::regclass)
    FROM reader r JOIN pg_catalog.pg_roles o ON o.oid = r.relowner
   WHERE r.relkind = 'v' AND (o.rolsuper OR o.rolbypassrls)
     AND NOT EXISTS (SELECT FROM pg_catalog.pg_options_to_table(r.reloptions) s
                      WHERE s.option_name = 'security_invoker' AND s.option_value::boolean)
   ORDER BY 1, 2;
END;
COMMENT ON FUNCTION agd.wall_gaps(regclass) IS
  'ways past row-level security that a table''s own definition leaves open: owners, keys, foreign keys, views; no rows: none';
