//! Rows in bulk: the forms of COPY, and tables whose columns came and went. One record for each row, with all of its columns.

use agd_live_tests::record::reconcile;
use agd_live_tests::{Cluster, Watch, expect_sqlstate};
use std::io::{Read, Write};
use std::sync::OnceLock;

fn set_up(stem: &str, setup: &str) -> Watch {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    Watch::new(CLUSTER.get_or_init(|| Cluster::builder().start().unwrap()), stem, setup).unwrap()
}

fn copy_out(g: &mut Watch, sql: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    g.copy_out(sql).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn copy_in(g: &mut Watch, sql: &str, data: &[u8]) -> Result<u64, postgres::Error> {
    let mut copy = g.copy_in(sql)?;
    copy.write_all(data).unwrap();
    copy.finish()
}

/// Trap: COPY in its binary form, into a table with dropped, added, defaulted and generated columns, and into partitions;
/// with a trigger that drops rows; with FREEZE in a savepoint that is rolled back.
#[test]
fn each_form_of_copy() {
    let mut g = set_up(
        "copy",
        "CREATE TABLE source (id int, k int, v text, at timestamptz, n numeric, a int[]);
         INSERT INTO source SELECT i, i % 3, E'a\\tb\\n\\\\' || i, '2024-01-01 00:00+00'::timestamptz + i * interval '1 microsecond', i / 7.0, ARRAY[i, NULL]
           FROM generate_series(1, 700) i;
         CREATE TABLE t (gone text, id int PRIMARY KEY, k int, lost int, v text, at timestamptz, n numeric, a int[],
                         twice text GENERATED ALWAYS AS (v || v) STORED);
         INSERT INTO t (gone, id, lost) VALUES ('x', 0, 1); ALTER TABLE t DROP COLUMN gone, DROP COLUMN lost;
         SELECT agd.guard('t'); ALTER TABLE t ADD COLUMN fast int NOT NULL DEFAULT 7, ADD COLUMN serial int GENERATED ALWAYS AS IDENTITY;
         CREATE TABLE p (id int, k int, v text, at timestamptz, n numeric, a int[], PRIMARY KEY (k, id)) PARTITION BY LIST (k);
         CREATE TABLE p0 PARTITION OF p FOR VALUES IN (0); CREATE TABLE p12 (v text, a int[], k int NOT NULL, n numeric, id int NOT NULL, at timestamptz, PRIMARY KEY (k, id));
         ALTER TABLE p ATTACH PARTITION p12 FOR VALUES IN (1, 2); SELECT agd.guard('p')",
    );
    g.news("t");
    let binary = copy_out(&mut g, "COPY source TO STDOUT (FORMAT binary)");
    let columns = "(id, k, v, at, n, a)";
    assert_eq!(copy_in(&mut g, &format!("COPY t {columns} FROM STDIN (FORMAT binary)"), &binary).unwrap(), 700);
    assert_eq!(g.tally("t"), (700, 0, 0));
    let whole: i64 = g.one(
        "SELECT count(*) FROM agd.events e JOIN t ON t.id = (e.new->>'id')::int
          WHERE e.action = 'INSERT' AND e.new ? 'fast' AND (e.new->>'serial')::int = t.serial AND e.new->>'v' = t.v AND NOT e.new ? 'twice' AND NOT e.new ? 'gone'",
    );
    assert_eq!(whole, 700);
    // The row that was there before the columns were added has its fast defaults in its old image.
    g.records("t", "UPDATE t SET v = 'touched' WHERE id = 0", &["UPDATE 0"]);
    assert_eq!(g.one::<String>("SELECT old->>'fast' FROM agd.events WHERE action = 'UPDATE'"), "7");
    // Cut short in its middle: nothing.
    let cut = &binary[..binary.len() / 2];
    expect_sqlstate(copy_in(&mut g, "COPY p FROM STDIN (FORMAT binary)", cut), "22P04");
    assert_eq!(g.tally("p"), (0, 0, 0));
    // Partitions with their columns in another order, each kind of routing, and half of the rows filtered out.
    assert_eq!(copy_in(&mut g, "COPY p FROM STDIN (FORMAT binary) WHERE id % 2 = 0", &binary).unwrap(), 350);
    assert_eq!(g.tally("p"), (350, 0, 0));
    let wrong: i64 = g.one(
        "SELECT count(*) FROM agd.events e JOIN p ON p.id = (e.new->>'id')::int
          WHERE e.relation = 'public.p' AND e.action = 'INSERT' AND ((e.new->>'v') <> p.v OR (e.new->>'at')::timestamptz <> p.at OR (e.new->>'a')::int[]::text <> p.a::text)",
    );
    assert_eq!(wrong, 0);
    g.run(
        "CREATE FUNCTION keep_few() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.id % 5 = 0 THEN RETURN NEW; END IF; RETURN NULL; END $$;
         CREATE TRIGGER few BEFORE INSERT ON p0 FOR EACH ROW EXECUTE FUNCTION keep_few()",
    );
    copy_in(&mut g, "COPY p (id, k) FROM STDIN (FORMAT csv)", b"1001,0\n1005,0\n1006,1\n").unwrap();
    assert_eq!(g.tally("p"), (2, 0, 0));
    if g.version() >= 170_000 {
        copy_in(&mut g, "COPY p (id, k) FROM STDIN (FORMAT csv, ON_ERROR ignore)", b"2005,0\nnot a number,0\n2006,1\n")
            .unwrap();
        assert_eq!(g.tally("p"), (2, 0, 0));
    }
    // FREEZE writes rows that everybody would see at once: only into a table that nobody else can see. Rolled back, its
    // records go too.
    let made = "CREATE TABLE f (id int PRIMARY KEY); SELECT agd.guard('f')";
    g.run(&format!("BEGIN; SAVEPOINT a; {made}"));
    copy_in(&mut g, "COPY f FROM STDIN (FREEZE)", b"1\n2\n").unwrap();
    g.run(&format!("ROLLBACK TO a; {made}"));
    copy_in(&mut g, "COPY f FROM STDIN (FREEZE)", b"3\n4\n").unwrap();
    g.run("COMMIT");
    let recorded: i64 = g.one("SELECT count(*) FROM agd.events WHERE relation = 'public.f' AND action = 'INSERT'");
    assert_eq!(recorded, 2);
    assert_eq!(g.briefs("f"), ["INSERT 3", "INSERT 4"]);
    for (table, key) in [("t", ["id"].as_slice()), ("p", &["k", "id"]), ("f", &["id"])] {
        if table == "t" {
            // Generated columns are in no image, and jsonb_populate_record would leave them out.
            assert_eq!(g.column::<String>("SELECT problem FROM agd.verify_table('t')"), [""; 0]);
        } else {
            reconcile(&mut g, table, key);
        }
    }
}

/// Trap: COPY into a view with INSTEAD OF, and rules that turn one statement into several.
#[test]
fn copy_through_a_view_and_rules_that_multiply() {
    let mut g = set_up(
        "through",
        "CREATE TABLE t (id int PRIMARY KEY, v text); SELECT agd.guard('t'); CREATE VIEW w AS SELECT id, v, 1 AS one FROM t;
         CREATE FUNCTION into_t() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
           CASE TG_OP
             WHEN 'INSERT' THEN INSERT INTO t VALUES (NEW.id, NEW.v), (NEW.id + 100, NEW.v); RETURN NEW;
             WHEN 'UPDATE' THEN UPDATE t SET v = NEW.v WHERE id IN (OLD.id, OLD.id + 100); RETURN NEW;
             ELSE DELETE FROM t WHERE id IN (OLD.id, OLD.id + 100); RETURN OLD;
           END CASE;
         END $$;
         CREATE TRIGGER i INSTEAD OF INSERT OR UPDATE OR DELETE ON w FOR EACH ROW EXECUTE FUNCTION into_t();
         CREATE TABLE front (id int PRIMARY KEY);
         CREATE RULE also AS ON INSERT TO front DO ALSO (INSERT INTO t VALUES (NEW.id + 1000, 'also'); UPDATE t SET v = v || '+' WHERE id = NEW.id + 1000);
         CREATE RULE never AS ON DELETE TO front DO INSTEAD DELETE FROM t WHERE id = OLD.id + 1000",
    );
    copy_in(&mut g, "COPY w (id, v) FROM STDIN", b"1\ta\n2\tb\n").unwrap();
    assert_eq!(g.briefs("t"), ["INSERT 1", "INSERT 101", "INSERT 2", "INSERT 102"]);
    g.records("t", "UPDATE w SET v = 'x' WHERE id = 1", &["UPDATE 1", "UPDATE 101"]);
    g.records("t", "DELETE FROM w WHERE id = 2", &["DELETE 2", "DELETE 102"]);
    g.records("t", "INSERT INTO front VALUES (5), (6)", &["INSERT 1005", "INSERT 1006", "UPDATE 1005", "UPDATE 1006"]);
    g.records("t", "DELETE FROM front WHERE id = 5", &["DELETE 1005"]);
    if g.version() >= 170_000 {
        g.run("MERGE INTO w USING (VALUES (1), (7)) s(id) ON w.id = s.id WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT (id, v) VALUES (s.id, 'merged')");
        assert_eq!(g.tally("t"), (2, 0, 2));
    }
    reconcile(&mut g, "t", &["id"]);
}
