-- Who may write agd's own tables. After everything that fills them at installation.

-- The record and the log are written by the library. Through SQL nobody writes them but agd's own statements ('worker')
-- and a restore into an empty record ('load'). A statement trigger stops SQL whether it finds a row or not.
DO $$
DECLARE
  own record;
BEGIN
  FOR own IN
    SELECT * FROM (VALUES
      ('event', ARRAY['load']), ('transaction', ARRAY['load']),
      ('log', ARRAY['worker', 'load']), ('tile', ARRAY['worker', 'load']), ('checkpoint', ARRAY['worker', 'load']),
      ('publication', ARRAY['worker', 'load']), ('timestamped', ARRAY['worker', 'load']), ('verified', ARRAY['worker']),
      -- A superuser deletes a key, and with it what the digests mean: sql/30_guard.sql.
      ('redaction_key', ARRAY['worker', 'load', 'erase']),
      ('sequencer', ARRAY['worker', 'load']), ('home', ARRAY['worker'])) AS t(name, permitted)
  LOOP
    EXECUTE pg_catalog.format(
      'CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON agd.%I
         FOR EACH STATEMENT EXECUTE FUNCTION agd.refuse_write(%s)', own.name,
      (SELECT pg_catalog.string_agg(pg_catalog.quote_literal(p), ', ') FROM pg_catalog.unnest(own.permitted) p));
    EXECUTE pg_catalog.format('ALTER TABLE agd.%I ENABLE ALWAYS TRIGGER refuse_write', own.name);
  END LOOP;

  -- No table of agd takes anything from another server: a publication FOR ALL TABLES has them all. An apply worker fires
  -- row triggers, and of those for statements the ones for TRUNCATE alone.
  FOR own IN
    SELECT c.relname AS name FROM pg_catalog.pg_class c
     WHERE c.relnamespace = 'agd'::regnamespace AND c.relkind = 'r'
  LOOP
    EXECUTE pg_catalog.format(
      'CREATE TRIGGER refuse_replicated BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON agd.%1$I
         FOR EACH STATEMENT EXECUTE FUNCTION agd.refuse_replicated();
       CREATE TRIGGER refuse_replicated_row BEFORE INSERT OR UPDATE OR DELETE ON agd.%1$I
         FOR EACH ROW EXECUTE FUNCTION agd.refuse_replicated();
       ALTER TABLE agd.%1$I ENABLE ALWAYS TRIGGER refuse_replicated, ENABLE ALWAYS TRIGGER refuse_replicated_row',
      own.name);
  END LOOP;
END
$$;

-- Nobody reads or writes a table of agd's past its views and functions, whatever pg_read_all_data, pg_write_all_data or a
-- GRANT gives him: there is no policy, but for the readers of those tables that are granted to roles (90_grants.sql). agd's
-- owner is a superuser, whom row-level security does not bind; its functions and views act for it.
DO $$
DECLARE
  own record;
BEGIN
  FOR own IN
    SELECT c.relname AS name FROM pg_catalog.pg_class c
     WHERE c.relnamespace = 'agd'::regnamespace AND c.relkind IN ('r', 'p')
  LOOP
    EXECUTE pg_catalog.format('ALTER TABLE agd.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', own.name);
  END LOOP;
END
$$;

-- The tables that carry decisions are behind the gate like any other.
DO $$
DECLARE
  -- Read beforehand: a query that is open on these tables would be in the way of altering them.
  guards jsonb := (SELECT pg_catalog.jsonb_object_agg(g.relation, g.guard_id) FROM agd.every_guard g);
  own record;
BEGIN
  FOR own IN SELECT key AS relation, value AS guard_id FROM pg_catalog.jsonb_each_text(guards) LOOP
    EXECUTE pg_catalog.format(
      'CREATE TRIGGER "~agd_record" BEFORE INSERT OR UPDATE OR DELETE ON %1$s
         FOR EACH ROW EXECUTE FUNCTION agd.record_write(%2$L);
       CREATE TRIGGER "~agd_confirm" AFTER INSERT OR UPDATE OR DELETE ON %1$s
         FOR EACH ROW EXECUTE FUNCTION agd.confirm_write(%2$L);
       CREATE TRIGGER "~agd_truncate" BEFORE TRUNCATE ON %1$s
         FOR EACH STATEMENT EXECUTE FUNCTION agd.refuse_truncate(%2$L);
       ALTER TABLE %1$s ENABLE ALWAYS TRIGGER "~agd_record", ENABLE ALWAYS TRIGGER "~agd_confirm",
         ENABLE ALWAYS TRIGGER "~agd_truncate"', own.relation, own.guard_id);
  END LOOP;
END
$$;
