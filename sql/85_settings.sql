-- What settings of the caller's agd's SECURITY DEFINER functions do not see: those that change what SQL means or how values
-- become text. The same list is on what is written in Rust (src/identity.rs, which also says what is left out); those
-- functions are SECURITY INVOKER here, and take the rights of agd's owner themselves. After all functions are made.
DO $$
DECLARE
  own regprocedure;
  pinned record;
BEGIN
  FOR own IN
    SELECT p.oid FROM pg_catalog.pg_proc p
     WHERE p.pronamespace = 'agd'::regnamespace AND p.prosecdef
  LOOP
    FOR pinned IN
      SELECT * FROM (VALUES
        (1, 'search_path', 'pg_catalog, pg_temp'), (2, 'quote_all_identifiers', 'off'),
        (3, 'standard_conforming_strings', 'on'), (4, 'backslash_quote', 'safe_encoding'), (5, 'transform_null_equals', 'off'),
        (6, 'array_nulls', 'on'), (7, 'row_security', 'on'), (8, 'DateStyle', '''ISO, MDY'''), (9, 'IntervalStyle', 'postgres'),
        (10, 'TimeZone', '''UTC'''), (11, 'extra_float_digits', '1'), (12, 'bytea_output', 'hex'), (13, 'xmlbinary', 'base64'),
        (14, 'xmloption', 'content'), (15, 'lc_monetary', '''C'''), (16, 'lc_numeric', '''C''')) AS p(place, name, value) ORDER BY p.place
    LOOP
      EXECUTE pg_catalog.format('ALTER FUNCTION %s SET %s = %s', own, pinned.name, pinned.value);
    END LOOP;
  END LOOP;
END
$$;
