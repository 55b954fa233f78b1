-- Refusals: each says what is wrong and what to do.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS agd;
RESET client_min_messages;

\set SHOW_CONTEXT never
CREATE TABLE good (id int PRIMARY KEY, v text);
CREATE TABLE keyless (id int);
CREATE UNLOGGED TABLE fast (id int PRIMARY KEY);
CREATE VIEW seen AS SELECT 1 AS id;
SELECT agd.guard('good');
SELECT agd.guard('good');
SELECT agd.guard('keyless');
SELECT agd.guard('fast');
SELECT agd.guard('seen');
SELECT agd.guard('pg_catalog.pg_class');
SELECT agd.guard('agd.event');
SELECT agd.guard('nosuch');
SELECT agd.guard('keyless', on_truncate => 'maybe');
SELECT agd.unguard('keyless', 'why');
SELECT agd.unguard('good', '');

-- The gate.
INSERT INTO good VALUES (1, 'a');
TRUNCATE good;
CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.v := 'meddled'; RETURN NEW; END $$;
CREATE TRIGGER "~later" BEFORE INSERT OR UPDATE ON good FOR EACH ROW EXECUTE FUNCTION meddle();
CREATE TABLE meddled (id int PRIMARY KEY, v text);
CREATE TRIGGER "~later" BEFORE INSERT OR UPDATE ON meddled FOR EACH ROW EXECUTE FUNCTION meddle();
SELECT agd.guard('meddled');
DROP TABLE meddled;
-- What only somebody can do who writes PostgreSQL's catalogs.
CREATE TRIGGER slipped BEFORE INSERT OR UPDATE ON good FOR EACH ROW EXECUTE FUNCTION meddle();
SET allow_system_table_mods = on;
UPDATE pg_trigger SET tgname = '~later' WHERE tgname = 'slipped';
RESET allow_system_table_mods;
ALTER TABLE good ALTER COLUMN v SET STATISTICS 0;
UPDATE good SET v = 'b';
DROP TRIGGER "~later" ON good;
DROP FUNCTION meddle();
CREATE TABLE explained (id int PRIMARY KEY);
SELECT agd.guard('explained', require_cause => true);
INSERT INTO explained VALUES (1);
SELECT agd.set_cause(' ');

-- The record.
DELETE FROM agd.event;
UPDATE agd.transaction SET cause = 'another';
TRUNCATE agd.event;
SELECT agd.record_write();

-- Tenants.
SELECT agd.create_tenant('Not A Name');
SELECT agd.create_tenant('acme');
SELECT agd.create_tenant('acme');
SELECT agd.map_role('nobody_there', 'acme');
SELECT agd.verify_table('keyless');
SELECT * FROM agd.verify('no-such-log');

SELECT agd.unguard(r, 'end of the test') FROM unnest('{good,explained}'::regclass[]) r;
DROP TABLE good, keyless, fast, explained;
DROP VIEW seen;
