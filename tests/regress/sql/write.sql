-- A guarded write, from the first call to the anchor.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS agd;
RESET client_min_messages;

CREATE TABLE orders (id int PRIMARY KEY, item text NOT NULL, quantity int NOT NULL DEFAULT 1);
SELECT agd.guard('orders');

BEGIN;
SELECT agd.set_cause('ticket 4711: first orders');
INSERT INTO orders VALUES (1, 'apples', 5), (2, 'pears', 2);
UPDATE orders SET quantity = 6 WHERE id = 1;
COMMIT;
DELETE FROM orders WHERE id = 2;

-- What was rolled back, and what did not happen, left nothing.
BEGIN; INSERT INTO orders VALUES (3, 'plums', 1); ROLLBACK;
INSERT INTO orders VALUES (1, 'again', 1) ON CONFLICT DO NOTHING;
UPDATE orders SET quantity = 0 WHERE id = 99;

SELECT action, relation, row_key, old, new, cause, session_user_name = SESSION_USER AS by_me, binding
  FROM agd.events WHERE relation = 'public.orders' AND action <> 'GUARD' ORDER BY committed_at, event_id;
SELECT action, old->>'quantity' AS before, new->>'quantity' AS after FROM agd.history('orders', '{"id": 1}');

-- Waiting, then in the log.
SELECT bool_and(octet_length(root_hash) = 32) IS NOT FALSE AS called FROM agd.anchor();
SELECT count(*) AS waiting FROM agd.events WHERE leaf_index IS NULL;
SELECT max(tree_size) = (SELECT count(*) FROM agd.events WHERE tenant IS NULL) AS all_anchored
  FROM agd.anchors WHERE tenant IS NULL;
SELECT check_name, ok FROM agd.verify(full_scan => true) WHERE NOT ok;
SELECT * FROM agd.verify_table('orders');
SELECT relation, guarded, intact, detail FROM agd.coverage() WHERE relation = 'orders'::regclass;
SELECT agd.unguard('orders', 'end of the example');
SELECT relation, guarded, intact, detail FROM agd.coverage() WHERE relation = 'orders'::regclass;
DROP TABLE orders;
