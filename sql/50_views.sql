-- What people read.

-- Who asks is the role that authenticated, or that SET ROLE chose, and within a SECURITY DEFINER function also whose function it
-- is: both must be allowed. In a security-restricted operation it is nobody (src/identity.rs).
CREATE FUNCTION agd.may_read(tenant text) RETURNS boolean
  LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'agd_may_read';
COMMENT ON FUNCTION agd.may_read(text) IS
  'may this session see events of this tenant: platform and auditor every header, a tenant its own';

CREATE FUNCTION agd.may_read_payload(tenant text) RETURNS boolean
  LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'agd_may_read_payload';
COMMENT ON FUNCTION agd.may_read_payload(text) IS
  'may this session read row images of this tenant: the tenant itself, and superusers';

CREATE VIEW agd.events WITH (security_barrier) AS
  SELECT e.xact_id::text || '-' || e.n AS event_id,
         e.at,
         t.stamp AS committed_at,
         e.tenant,
         e.action,
         e.relation,
         CASE WHEN agd.may_read_payload(e.tenant) THEN e.row_key::jsonb END AS row_key,
         CASE WHEN agd.may_read_payload(e.tenant) THEN e.old::jsonb END AS old,
         CASE WHEN agd.may_read_payload(e.tenant) THEN e.new::jsonb END AS new,
         e.body,
         t.session_user_name,
         COALESCE(e.role_name, t.role_name) AS role_name,
         t.principal,
         t.fleet_id,
         t.cause,
         t.binding,
         t.application_name,
         t.client_addr,
         e.guard_id,
         agd.leaf_index(e.xact_id::text || '-' || e.n, e.tenant, t.stamp) AS leaf_index
    FROM agd.event e
         LEFT JOIN agd.transaction t ON t.xact_id = e.xact_id   -- none yet for this transaction's own events
   WHERE agd.may_read(e.tenant);
COMMENT ON VIEW agd.events IS
  'every event: what, who, why, when; a tenant sees its own, platform and auditor see headers without payloads';

CREATE FUNCTION agd.history(relation regclass, row_key jsonb) RETURNS SETOF agd.events
  LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT ev.*
    FROM agd.events ev
   WHERE ev.guard_id = (SELECT agd.guard_id(history.relation))   -- once, and not for each event
     AND ev.row_key IS NOT NULL AND history.row_key <> '{}'
     -- Equal, member by member: a key that holds another one is not that one.
     AND (NOT EXISTS (SELECT FROM pg_catalog.jsonb_each(history.row_key) k
                       WHERE (ev.row_key -> k.key) IS DISTINCT FROM k.value)
          OR NOT EXISTS (SELECT FROM pg_catalog.jsonb_each(history.row_key) k
                          WHERE (ev.new -> k.key) IS DISTINCT FROM k.value))
   ORDER BY ev.committed_at NULLS LAST, pg_catalog.split_part(ev.event_id, '-', 2)::int;
END;
COMMENT ON FUNCTION agd.history(regclass, jsonb) IS 'all that was recorded of one row, oldest first';

CREATE FUNCTION agd.is_publisher() RETURNS boolean
  LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'is_publisher_wrapper';
COMMENT ON FUNCTION agd.is_publisher() IS 'is this session a member of agd_publisher';

CREATE VIEW agd.anchors WITH (security_barrier) AS
  SELECT l.origin,
         l.tenant,
         c.tree_size,
         c.root_hash,
         l.origin || E'\n' || c.tree_size || E'\n' || pg_catalog.encode(c.root_hash, 'base64') || E'\n' AS checkpoint,
         c.guard_state,
         c.anchored_at,
         p.published_at,
         p.published_to,
         -- A timestamp of one size covers every smaller one. The platform log's anchors alone have one of their own: they
         -- cover the tenants'.
         (SELECT t.stamped_at FROM agd.timestamped t
           WHERE t.log_id = c.log_id AND t.tree_size >= c.tree_size
           ORDER BY t.tree_size, t.stamped_at LIMIT 1) AS timestamped_at,
         l.incarnation < (SELECT pg_catalog.max(n.incarnation) FROM agd.log n WHERE n.tenant IS NULL) AS closed,
         c.final_by
    FROM agd.checkpoint c
         JOIN agd.log l USING (log_id)
         LEFT JOIN LATERAL (
           SELECT pg_catalog.min(q.published_at) AS published_at,
                  pg_catalog.string_agg(q.published_to, ', ' ORDER BY q.published_at) AS published_to
             FROM agd.publication q
            WHERE q.log_id = c.log_id AND q.tree_size = c.tree_size) p ON true
   WHERE agd.may_read(l.tenant) OR agd.is_publisher();
COMMENT ON VIEW agd.anchors IS
  'every anchor: a log''s root at a size, where it was published, and the RFC 3161 time of the first timestamp that covers it (platform log); closed are the logs of earlier incarnations; final_by is the event LOG.CLOSE that ends the log, whose tenant''s last fleet has ended';

CREATE FUNCTION agd.worker_status()
  RETURNS TABLE (recorded bigint, voided bigint, integrated bigint, waiting bigint, waiting_since timestamptz, worker_pid int,
                 stopped_since timestamptz, failures bigint, last_failure text, denied bigint, denied_lost bigint, closed text,
                 launcher boolean)
  LANGUAGE c VOLATILE
  AS 'MODULE_PATHNAME', 'worker_status_wrapper';
COMMENT ON FUNCTION agd.worker_status() IS 'counters of this database since the server started; agd.stat shows them';

CREATE VIEW agd.stat AS
  SELECT s.recorded AS events_recorded,
         s.voided   AS events_voided,
         s.integrated AS events_integrated,
         s.waiting  AS events_waiting,
         (SELECT pg_catalog.count(*) FROM agd.checkpoint) AS anchors,
         (SELECT pg_catalog.count(*)
            FROM agd.checkpoint c
                 JOIN (SELECT n.log_id FROM agd.log n WHERE n.tenant IS NULL ORDER BY n.incarnation DESC LIMIT 1) l
                   USING (log_id)
           WHERE c.tree_size > COALESCE((SELECT pg_catalog.max(p.tree_size) FROM agd.publication p WHERE p.log_id = l.log_id), 0)
         ) AS anchors_unpublished,            -- the platform log's, which cover the tenants'
         (SELECT pg_catalog.clock_timestamp() - LEAST(pg_catalog.min(l.open_since), s.waiting_since) FROM agd.log l)
           AS oldest_unanchored_age,
         CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'standby' WHEN s.worker_pid IS NULL THEN 'stopped' ELSE 'running' END AS worker,
         s.worker_pid,
         s.failures AS worker_failures,
         s.last_failure AS worker_last_failure,
         s.denied      AS events_denied,      -- refused attempts, each a DENIED event
         s.denied_lost AS denied_overflow     -- refused attempts that found the ring full: counted, nothing more
    FROM agd.worker_status() s;
COMMENT ON VIEW agd.stat IS 'how agd is doing in this database; counters run since the server started';

-- Empty: all is well.
CREATE VIEW agd.health AS
  SELECT 'record closed' AS problem, s.closed AS detail, h.diverged_at AS since
    FROM agd.worker_status() s CROSS JOIN agd.home h
   WHERE s.closed IS NOT NULL AND h.diverged IS NOT NULL
  UNION ALL
  SELECT 'record not resumed', s.closed, NULL
    FROM agd.worker_status() s CROSS JOIN agd.home h
   WHERE s.closed IS NOT NULL AND h.diverged IS NULL
  UNION ALL
  SELECT 'no launcher runs', 'the server starts it again within seconds; its log tells why it ended', NULL
    FROM agd.worker_status() s
   WHERE NOT s.launcher AND NOT pg_catalog.pg_is_in_recovery()
  UNION ALL
  SELECT 'no worker runs', COALESCE(s.last_failure, 'the server''s log tells why'), s.stopped_since
    FROM agd.worker_status() s
   WHERE s.stopped_since < pg_catalog.clock_timestamp() - INTERVAL '5 s' AND NOT pg_catalog.pg_is_in_recovery()
  UNION ALL
  SELECT 'events wait for an anchor', t.events_waiting || ' events are not integrated', pg_catalog.clock_timestamp() - t.oldest_unanchored_age
    FROM agd.stat t
   WHERE t.oldest_unanchored_age > 2 * pg_catalog.current_setting('agd.anchor_max_age')::pg_catalog.interval + INTERVAL '5 s'
     AND NOT pg_catalog.pg_is_in_recovery();
COMMENT ON VIEW agd.health IS 'what is wrong with agd in this database, why, and since when (NULL: not known); empty: all is well';
COMMENT ON COLUMN agd.health.problem IS 'record closed, record not resumed, no launcher runs, no worker runs, or events wait for an anchor';
COMMENT ON COLUMN agd.health.detail IS 'why, as far as it is known';
COMMENT ON COLUMN agd.health.since IS 'since when it is like this; NULL: not known';

CREATE VIEW agd.verify_progress AS
  SELECT v.pid,
         pg_catalog.pg_get_userbyid(v.role) AS role,
         v.started_at,
         v.full_scan,
         v.phase,
         l.origin,
         v.leaves_done,
         v.leaves_total,
         CASE WHEN v.leaves_total = 0 THEN 100
              ELSE pg_catalog.round(LEAST(100.0 * v.leaves_done / v.leaves_total, 100), 1) END AS percent
    FROM agd.verifications() v LEFT JOIN agd.log l USING (log_id);
COMMENT ON VIEW agd.verify_progress IS 'every agd.verify() that runs in this database: who, since when, which log, how far';
