//! Triggers and functions of the program's own: they change rows, drop them, and write other guarded tables.

use super::random::Random;
use super::schema::{Identity, Model, Role, Table, k_for};
use super::script::{Setup, Text};

/// A small write to a table's row `id` (an expression), fit for the body of a function.
pub fn small_write(random: &mut Random, table: &Table, id: &str) -> String {
    let data: Vec<_> = table.with_role(Role::Data).collect();
    let where_id = format!("id = {id}");
    match random.below(10) {
        0..=4 if !data.is_empty() => {
            let column = random.pick(&data);
            format!(
                "UPDATE {} SET {} = {} WHERE {where_id}",
                table.name,
                column.name,
                column.kind.touched(random, &column.name)
            )
        }
        0..=5 => format!("DELETE FROM {} WHERE {where_id}", table.name),
        _ => {
            let mut columns = vec!["id"];
            let mut values = vec![id.to_owned()];
            if table.has_k() {
                columns.push("k");
                let probe = random.between(1, 3);
                values.push(k_for(random, probe).to_string());
            }
            for column in &data {
                if column.not_null || random.chance(30) {
                    columns.push(&column.name);
                    values.push(column.kind.literal(random));
                }
            }
            let overriding = if table.identity == Identity::Always { " OVERRIDING SYSTEM VALUE" } else { "" };
            format!(
                "INSERT INTO {} ({}){overriding} VALUES ({}) ON CONFLICT DO NOTHING",
                table.name,
                columns.join(", "),
                values.join(", ")
            )
        }
    }
}

fn function(name: &str, body: &str) -> String {
    format!("CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $agd$ BEGIN {body} END $agd$")
}

/// The program's functions and triggers.
pub fn generate(random: &mut Random, model: &Model) -> Vec<Setup> {
    let mut out = Vec::new();
    // Functions that write, for statements to call.
    let table = random.pick(&model.tables);
    let write = small_write(random, table, "i");
    out.push(Setup::Ddl(
        format!("CREATE FUNCTION nest(i int) RETURNS int LANGUAGE plpgsql AS $agd$ BEGIN {write}; RETURN i; END $agd$")
            .into(),
    ));
    let table = random.pick(&model.tables);
    let write = small_write(random, table, "i");
    out.push(Setup::Ddl(
        format!(
            "CREATE FUNCTION try_nest(i int) RETURNS int LANGUAGE plpgsql AS $agd$ BEGIN {write};
             IF i % 2 = 0 THEN RAISE EXCEPTION 'no'; END IF; RETURN i;
             EXCEPTION WHEN OTHERS THEN RETURN -i; END $agd$"
        )
        .into(),
    ));
    let table = random.pick(&model.tables);
    let data: Vec<_> = table.with_role(Role::Data).collect();
    let column = random.pick(&data);
    out.push(Setup::Ddl(
        format!(
            "CREATE FUNCTION nest_rows(i int) RETURNS SETOF int LANGUAGE sql AS
             $agd$ UPDATE {} SET {} = {} WHERE id BETWEEN i AND i + 2 RETURNING id $agd$",
            table.name,
            column.name,
            column.kind.touched(random, &column.name)
        )
        .into(),
    ));
    if !random.chance(55) {
        return out;
    }
    for number in 0..*random.weighted(&[(5, 1), (3, 2), (1, 3)]) {
        let table = random.pick(&model.tables);
        let other = random.pick(&model.tables);
        let name = format!("{}_f{number}", table.stem);
        let events = *random.pick(&["INSERT", "UPDATE", "DELETE", "INSERT OR UPDATE", "INSERT OR UPDATE OR DELETE"]);
        let id = format!("COALESCE(NEW.id, OLD.id) + {}", random.pick(&[0, 0, 1, 20]));
        let write = small_write(random, other, &id);
        let nested = format!("IF pg_trigger_depth() < 3 THEN {write}; END IF;");
        let data: Vec<_> = table.with_role(Role::Data).collect();
        let (trigger, body) = match random.below(10) {
            0 | 1 => {
                let column = random.pick(&data);
                let change =
                    format!("NEW.{0} := {1};", column.name, column.kind.touched(random, &format!("NEW.{}", column.name)));
                let (events, change) = if random.chance(10) {
                    ("INSERT", "NEW.id := NEW.id + 100;".to_owned())
                } else {
                    ("INSERT OR UPDATE", change)
                };
                (format!("a_change{number} BEFORE {events} ON {} FOR EACH ROW", table.name), format!("{change} RETURN NEW;"))
            }
            2 | 3 => (
                format!("b_skip{number} BEFORE {events} ON {} FOR EACH ROW", table.name),
                "IF COALESCE(NEW.id, OLD.id) % 4 = 0 THEN RETURN NULL; END IF;
                 IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW;"
                    .to_owned(),
            ),
            4 => (
                format!("c_write{number} BEFORE {events} ON {} FOR EACH ROW", table.name),
                format!("{nested} IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW;"),
            ),
            5 => {
                let first = random.pick(&["d_after", "\"~~after"]);
                let quote = if first.starts_with('"') { "\"" } else { "" };
                let when = if random.chance(30) && events == "UPDATE" { " WHEN (OLD IS DISTINCT FROM NEW)" } else { "" };
                (
                    format!("{first}{number}{quote} AFTER {events} ON {} FOR EACH ROW{when}", table.name),
                    format!("{nested} RETURN NULL;"),
                )
            }
            6 => {
                // After the statement, by what it did.
                let (event, rows) = *random.pick(&[("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD")]);
                let write = small_write(random, other, "r.id + 1");
                (
                    format!("e_rows{number} AFTER {event} ON {} REFERENCING {rows} TABLE AS changed FOR EACH STATEMENT", table.name),
                    format!(
                        "IF pg_trigger_depth() < 3 THEN
                           DECLARE r record; BEGIN FOR r IN SELECT id FROM changed ORDER BY id LOOP {write}; END LOOP; END;
                         END IF; RETURN NULL;"
                    ),
                )
            }
            7 => {
                let deferred = format!(
                    "CREATE CONSTRAINT TRIGGER f_deferred{number} AFTER {events} ON {} DEFERRABLE INITIALLY DEFERRED
                     FOR EACH ROW EXECUTE FUNCTION {name}()",
                    table.name
                );
                // Nothing is nested at commit: what it writes is queued again, and must come to an end.
                let write = small_write(random, other, "COALESCE(NEW.id, OLD.id) + 20");
                let body = format!("IF COALESCE(NEW.id, OLD.id) < 20 THEN {write}; END IF; RETURN NULL;");
                out.push(Setup::Ddl(function(&name, &body).into()));
                out.push(Setup::Ddl(deferred.into()));
                continue;
            }
            8 => {
                // A block of its own, which fails for some rows.
                let handled = small_write(random, other, &id);
                (
                    format!("g_block{number} BEFORE {events} ON {} FOR EACH ROW", table.name),
                    format!(
                        "IF pg_trigger_depth() < 3 THEN
                           BEGIN {write}; IF COALESCE(NEW.id, OLD.id) % 2 = 0 THEN RAISE EXCEPTION 'no'; END IF;
                           EXCEPTION WHEN OTHERS THEN {handled}; END;
                         END IF; IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW;"
                    ),
                )
            }
            _ => (
                format!("h_refuse{number} AFTER {events} ON {} FOR EACH ROW", table.name),
                "IF COALESCE(NEW.id, OLD.id) % 5 = 0 THEN RAISE EXCEPTION 'refused %', COALESCE(NEW.id, OLD.id); END IF;
                 RETURN NULL;"
                    .to_owned(),
            ),
        };
        out.push(Setup::Ddl(function(&name, &body).into()));
        out.push(Setup::Ddl(Text::from(format!("CREATE TRIGGER {trigger} EXECUTE FUNCTION {name}()"))));
    }
    out
}
