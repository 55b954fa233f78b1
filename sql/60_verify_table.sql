-- Reconciles a table with its log.

CREATE FUNCTION agd.row_image("row" record) RETURNS json
  LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'agd_row_image';
COMMENT ON FUNCTION agd.row_image(record) IS 'a row of a table as the gate records it';

-- Granted to nobody: agd.verify_table() calls it.
CREATE FUNCTION agd.present_rows(relation regclass) RETURNS TABLE (row_key json, image json)
  LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'agd_present_rows';
COMMENT ON FUNCTION agd.present_rows(regclass) IS
  'the rows of a table as the gate would record them, read from the heap without running anything of its owner''s; called by agd';

CREATE FUNCTION agd.row_key("row" record) RETURNS json
  LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'agd_row_key';
COMMENT ON FUNCTION agd.row_key(record) IS 'the primary key of a row of a table as the gate records it';

CREATE FUNCTION agd.moved_key(row_key json, new json) RETURNS json
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'agd_moved_key';
COMMENT ON FUNCTION agd.moved_key(json, json) IS
  'the key that an UPDATE gave the row whose key this was, out of its image; NULL: the same';

CREATE FUNCTION agd.verify_table(relation regclass) RETURNS TABLE (row_key jsonb, problem text, event_id text)
  LANGUAGE c STABLE
  AS 'MODULE_PATHNAME', 'agd_verify_table';
COMMENT ON FUNCTION agd.verify_table(regclass) IS
  'holds each row of a guarded table against its chain of events, and these against each other; no rows: reconciled';
