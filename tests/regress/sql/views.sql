-- The views people read: their columns, and what they say of a small log.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS agd;
RESET client_min_messages;

\d agd.events
\d agd.anchors
\d agd.stat
CREATE TABLE few (id int PRIMARY KEY);
SELECT agd.guard('few');
INSERT INTO few SELECT generate_series(1, 300);
SELECT bool_and(octet_length(root_hash) = 32) IS NOT FALSE AS called FROM agd.anchor();
SELECT tree_size, checkpoint = origin || E'\n' || tree_size || E'\n' || encode(root_hash, 'base64') || E'\n' AS checkpoint,
       octet_length(guard_state) AS guard_state, anchored_at <= clock_timestamp() AS anchored, published_at, timestamped_at
  FROM agd.anchors WHERE tenant IS NULL AND tree_size = 256;
SELECT events_recorded > 0 AS recorded, events_waiting, worker, worker_failures, worker_last_failure FROM agd.stat;
SELECT agd.unguard('few', 'end of the test');
DROP TABLE few;
