-- Reconciles a table with its log.

CREATE FUNCTION agd.row_image("row" record) RETURNS json
  LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'agd_row_image';
COMMENT ON FUNCTION agd.row_image(record) IS 'a row of a table as the gate records it';

CREATE FUNCTION agd.row_key("row" record) RETURNS json
  LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'agd_row_key';
COMMENT ON FUNCTION agd.row_key(record) IS 'the primary key of a row of a table as the gate records it';

CREATE TYPE agd.rename AS (stamp timestamptz, n int, before text, after text);
COMMENT ON TYPE agd.rename IS 'a column of a guarded table got another name';

CREATE FUNCTION agd.renamed_image(image jsonb, stamp timestamptz, n int, renames agd.rename[]) RETURNS jsonb
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  r agd.rename;
BEGIN
  FOREACH r IN ARRAY renames LOOP
    IF (r.stamp, r.n) > (stamp, n) AND image ? r.before THEN
      image := (image - r.before) || jsonb_build_object(r.after, image -> r.before);
    END IF;
  END LOOP;
  RETURN image;
END
$$;
COMMENT ON FUNCTION agd.renamed_image(jsonb, timestamptz, int, agd.rename[]) IS
  'a recorded image with the names that its columns have now';

-- The last recorded image of each key against the row that is there. Columns that only one side has were added or dropped
-- since and are not compared; renamed ones are known by their DDL events. An UPDATE that changed the key ends the old key
-- and begins the new one.
CREATE FUNCTION agd.verify_table(relation regclass) RETURNS TABLE (row_key jsonb, problem text, event_id text)
  LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
  guard uuid;
  key_columns text[];
  -- Values are payload: shown to whom the platform's payloads are shown.
  show_values boolean := agd.may_read_payload(NULL);
BEGIN
  SELECT g.guard_id INTO guard FROM agd.every_guard g WHERE g.relation = verify_table.relation;
  IF guard IS NULL THEN
    RAISE EXCEPTION '% is not guarded', COALESCE(verify_table.relation::text, 'NULL')
      USING ERRCODE = '22023',
            HINT = 'SELECT * FROM agd.coverage() shows what is. For a partition, name the partitioned table.';
  END IF;
  SELECT array_agg(a.attname::text ORDER BY array_position(i.indkey::int2[], a.attnum)) INTO key_columns
    FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
   WHERE i.indrelid = verify_table.relation AND i.indisprimary;

  RETURN QUERY EXECUTE format($query$
  WITH recorded AS (
    SELECT e.xact_id, e.n, t.stamp, e.action, e.row_key::jsonb AS old_key, e.new::jsonb AS image
      FROM agd.event e LEFT JOIN agd.transaction t USING (xact_id)
     WHERE e.guard_id = $1 AND e.action IN ('BASELINE', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'DDL')
  ), renamed AS (
    -- In the order in which they were done; what is not committed yet comes last.
    SELECT array_agg((COALESCE(r.stamp, 'infinity'), r.n, p.names ->> 0, p.names ->> 1)::agd.rename
                     ORDER BY COALESCE(r.stamp, 'infinity'), r.n, p.place) AS renames
      FROM recorded r, jsonb_array_elements(r.image -> 'renamed') WITH ORDINALITY AS p (names, place)
     WHERE r.action = 'DDL'
  ), truncated AS (
    SELECT r.stamp, r.n FROM recorded r WHERE r.action = 'TRUNCATE' ORDER BY r.stamp DESC NULLS FIRST, r.n DESC LIMIT 1
  ), standing AS (
    SELECT r.* FROM recorded r
     WHERE r.action NOT IN ('TRUNCATE', 'DDL')
       AND NOT EXISTS (SELECT FROM truncated c
                        WHERE (COALESCE(r.stamp, 'infinity'), r.n) < (COALESCE(c.stamp, 'infinity'), c.n))
  ), effect AS (
    SELECT s.old_key AS k, s.image, s.xact_id, s.n, s.stamp, 1 AS part
      FROM standing s WHERE s.action <> 'UPDATE' OR s.image @> s.old_key
    UNION ALL
    SELECT s.old_key, NULL, s.xact_id, s.n, s.stamp, 0
      FROM standing s WHERE s.action = 'UPDATE' AND NOT s.image @> s.old_key
    UNION ALL
    SELECT (SELECT jsonb_object_agg(c, s.image -> c) FROM unnest($2) c), s.image, s.xact_id, s.n, s.stamp, 1
      FROM standing s WHERE s.action = 'UPDATE' AND NOT s.image @> s.old_key
  ), last AS (
    SELECT DISTINCT ON (f.k) f.k, f.image, f.xact_id, f.n, f.stamp
      FROM effect f ORDER BY f.k, f.stamp DESC NULLS FIRST, f.n DESC, f.part DESC
  ), known AS (
    SELECT l.k, l.xact_id, l.n,
           CASE WHEN d.renames IS NULL THEN l.image
                ELSE agd.renamed_image(l.image, COALESCE(l.stamp, 'infinity'), l.n, d.renames) END AS image
      FROM last l, renamed d
  ), present AS (
    -- "t.*", not "t": the table may have a column of any name.
    SELECT agd.row_key(t.*)::jsonb AS k, agd.row_image(t.*)::jsonb AS image FROM %s t
  )
  SELECT COALESCE(l.k, p.k),
         CASE
           WHEN l.k IS NULL OR l.image IS NULL AND p.k IS NOT NULL THEN 'row is there without a record: it was added outside the gate'
           WHEN p.k IS NULL THEN 'row is missing: it was deleted outside the gate'
           ELSE 'row differs from its last record in ' || (
             SELECT string_agg(CASE WHEN $3 THEN format('%%s: recorded %%s, found %%s', key, value, p.image -> key)
                                    ELSE key END, ', ' ORDER BY key)
               FROM jsonb_each(l.image) WHERE p.image ? key AND p.image -> key <> value)
         END,
         CASE WHEN l.k IS NOT NULL THEN l.xact_id::text || '-' || l.n END
    FROM known l FULL JOIN present p ON p.k = l.k
   WHERE l.image IS NULL AND p.k IS NOT NULL
      OR p.k IS NULL AND l.image IS NOT NULL
      OR l.image IS NOT NULL AND p.image IS NOT NULL AND l.image <> p.image
         AND EXISTS (SELECT FROM jsonb_each(l.image) WHERE p.image ? key AND p.image -> key <> value)
   ORDER BY 1
  $query$, verify_table.relation) USING guard, key_columns, show_values;
END
$$;
COMMENT ON FUNCTION agd.verify_table(regclass) IS
  'compares the rows of a guarded table with what was recorded; no rows: reconciled';
