-- A tenant's login role writes and reads its own rows, with no call.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS agd;
RESET client_min_messages;

CREATE ROLE regress_acme LOGIN IN ROLE agd_tenant;
CREATE ROLE regress_globex LOGIN IN ROLE agd_tenant;
SELECT agd.create_tenant('regress-acme'), agd.create_tenant('regress-globex', 'Globex Corporation');
SELECT agd.map_role('regress_acme', 'regress-acme'), agd.map_role('regress_globex', 'regress-globex');
CREATE TABLE notes (tenant text NOT NULL, id int, body text, PRIMARY KEY (tenant, id));
SELECT agd.guard('notes', tenant_column => 'tenant');
GRANT SELECT, INSERT, UPDATE, DELETE ON notes TO regress_acme, regress_globex;

SET SESSION AUTHORIZATION regress_globex;
INSERT INTO notes VALUES ('regress-globex', 1, 'ours');
SET SESSION AUTHORIZATION regress_acme;
SELECT agd.current_tenant(), agd.current_principal();
INSERT INTO notes VALUES ('regress-acme', 1, 'mine');
SELECT * FROM notes;
INSERT INTO notes VALUES ('regress-globex', 2, 'not mine');
UPDATE notes SET tenant = 'regress-globex';
DELETE FROM notes WHERE tenant = 'regress-globex';
-- What was refused is told as well, a moment later.
SELECT tenant, action, new, session_user_name, principal, binding FROM agd.events WHERE action <> 'DENIED';
SELECT agd.create_tenant('another');
RESET SESSION AUTHORIZATION;

SELECT tenant, action, new->>'body' AS body, binding FROM agd.events WHERE relation = 'public.notes' AND action = 'INSERT' ORDER BY committed_at;
SELECT p.polname, p.polcmd::text, p.polpermissive AS permissive, pg_get_expr(p.polqual, p.polrelid) AS using,
       pg_get_expr(p.polwithcheck, p.polrelid) AS check
  FROM pg_policy p WHERE p.polrelid = 'notes'::regclass ORDER BY 1;
SELECT agd.unguard('notes', 'end of the test');
-- The guard is gone. Row-level security stays on: access stays closed until somebody decides.
SELECT relrowsecurity, relforcerowsecurity, (SELECT count(*) FROM pg_policy WHERE polrelid = c.oid) AS policies,
       (SELECT count(*) FROM pg_trigger WHERE tgrelid = c.oid) AS triggers
  FROM pg_class c WHERE oid = 'notes'::regclass;
DROP TABLE notes;
