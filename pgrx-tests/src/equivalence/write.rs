//! Single statements that write one table.

use super::random::Random;
use super::schema::{Column, Identity, Model, Role, Table, k_for};
use super::script::Text;

/// A statement and what the tally counts it under.
pub type Write = (&'static str, Text);

/// Where the statement stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On its own: may return rows.
    Top,
    /// In a PL/pgSQL block, or under a name in WITH that the caller gives its own RETURNING.
    Inside,
}

/// One of the tables, the first ones more often: they are referred to.
pub fn any_table<'m>(random: &mut Random, model: &'m Model) -> &'m Table {
    random.pick(&model.tables)
}

/// The table, or something through which it can be written.
pub fn target(random: &mut Random, table: &Table) -> String {
    if let Some(view) = &table.view
        && random.chance(25)
    {
        return view.clone();
    }
    if !table.leaves.is_empty() && random.chance(15) {
        return random.pick(&table.leaves).clone();
    }
    table.name.clone()
}

/// Ids that are there, mostly.
pub fn some_id(random: &mut Random) -> i64 {
    if random.chance(90) { random.between(1, 9) } else { random.between(10, 30) }
}

fn new_id(random: &mut Random) -> i64 {
    if random.chance(70) { random.between(8, 400) } else { random.between(1, 9) }
}

/// A condition on the table's rows; `prefix` is the table's alias with its dot, or empty.
pub fn condition(random: &mut Random, table: &Table, prefix: &str) -> String {
    match random.below(10) {
        0..=2 => format!("{prefix}id = {}", some_id(random)),
        3 => format!("{prefix}id IN ({}, {}, {})", some_id(random), some_id(random), some_id(random)),
        4 | 5 => {
            let low = random.between(1, 7);
            format!("{prefix}id BETWEEN {low} AND {}", low + random.between(0, 4))
        }
        6 => format!("{prefix}id % {} = 0", random.between(2, 4)),
        7 if table.has_k() => format!("{prefix}k = {}", random.between(1, 3)),
        7 => format!("{prefix}id < {}", some_id(random)),
        8 => {
            let data: Vec<&Column> = table.with_role(Role::Data).collect();
            let column = random.pick(&data);
            if column.kind.comparable && random.chance(50) {
                format!("{prefix}{} IS DISTINCT FROM {}", column.name, column.kind.literal(random))
            } else {
                format!("{prefix}{} IS NOT NULL", column.name)
            }
        }
        _ => random.pick(&["true", "true", "false"]).to_string(),
    }
}

fn returning(random: &mut Random, model: &Model, table: &Table, place: Place, deletes_or_updates: bool) -> Text {
    if place == Place::Inside || random.chance(60) {
        return Text::default();
    }
    let choices: &[&str] = if model.major >= 18 && deletes_or_updates {
        &["*", "id", "old.*, new.*", "new.id, old.id"]
    } else {
        &["*", "id", "id, nest(id)"]
    };
    let choice = match *random.pick(choices) {
        "id" if table.has_k() => "k, id",
        choice => choice,
    };
    Text::default().optional(format!(" RETURNING {choice}"))
}

/// Columns for an INSERT: the key, most of the others, and those that must be there.
fn insert_columns<'t>(random: &mut Random, table: &'t Table) -> Vec<&'t Column> {
    let leave_out = random.chance(30);
    table
        .writable()
        .filter(|column| match column.role {
            Role::Id => table.identity != Identity::ByDefault || random.chance(50),
            Role::K => true,
            _ => !leave_out || random.chance(60),
        })
        .collect()
}

fn names(columns: &[&Column]) -> String {
    columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// The values of one row.
pub fn row(random: &mut Random, columns: &[&Column], id: i64) -> Vec<String> {
    let parent = random.between(1, 5);
    // A reference to no row at all, as a whole.
    let no_parent = random.chance(15);
    columns
        .iter()
        .map(|column| match column.role {
            Role::Id => id.to_string(),
            Role::K => k_for(random, id).to_string(),
            Role::RefId if no_parent => "NULL".into(),
            Role::RefId => parent.to_string(),
            Role::RefK => (parent % 3 + 1).to_string(),
            _ if random.chance(8) && !column.not_null => "NULL".into(),
            _ if random.chance(8) => "DEFAULT".into(),
            _ => column.kind.literal(random),
        })
        .collect()
}

fn overriding(table: &Table, columns: &[&Column]) -> &'static str {
    let gives_id = columns.iter().any(|column| column.role == Role::Id);
    if gives_id && table.identity == Identity::Always { " OVERRIDING SYSTEM VALUE" } else { "" }
}

fn values(random: &mut Random, columns: &[&Column], fresh: bool) -> Vec<String> {
    (0..*random.weighted(&[(4, 1), (3, 2), (2, 3), (1, 6)]))
        .map(|_| {
            let id = if fresh { new_id(random) } else { some_id(random) };
            format!("({})", row(random, columns, id).join(", "))
        })
        .collect()
}

fn insert(random: &mut Random, model: &Model, table: &Table, place: Place) -> Write {
    let columns = insert_columns(random, table);
    if columns.is_empty() || random.chance(if table.identity == Identity::No { 1 } else { 30 }) {
        return ("INSERT DEFAULT VALUES", format!("INSERT INTO {} DEFAULT VALUES", table.name).into());
    }
    let into = target(random, table);
    let fails = random.chance(8);
    let mut rows = values(random, &columns, true);
    if fails {
        // The key of the first row again.
        rows.push(rows[0].clone());
    }
    let sql = Text::from(format!("INSERT INTO {into} ({}){} VALUES ", names(&columns), overriding(table, &columns)))
        .list(", ", rows)
        .with(returning(random, model, table, place, false));
    (if fails { "INSERT of a duplicate" } else { "INSERT VALUES" }, sql)
}

fn insert_select(random: &mut Random, model: &Model, table: &Table, place: Place) -> Write {
    let columns: Vec<&Column> = table.writable().collect();
    let from_itself = random.chance(35);
    // For some of the rows there is no answer: the statement fails half-way.
    let fails = !from_itself && random.chance(15);
    let shift = random.between(10, 60);
    let call = *random.weighted(&[(6, ""), (1, " + 0 * nest(i)"), (1, " + 0 * try_nest(i)")]);
    let expressions: Vec<String> = columns
        .iter()
        .map(|column| match column.role {
            Role::Id if from_itself => format!("s.id + {shift}"),
            Role::Id if fails => format!("i + 0 / ({} - i)", shift + 2),
            Role::Id => format!("i{call}"),
            Role::K if from_itself => "s.k".into(),
            Role::K => "i % 3 + 1".into(),
            Role::RefId if from_itself => "s.ref".into(),
            Role::RefK if from_itself => "s.ref_k".into(),
            Role::RefId => "i % 4 + 1".into(),
            Role::RefK => "(i % 4 + 1) % 3 + 1".into(),
            _ if from_itself && !column.unique => format!("s.{}", column.name),
            _ if random.chance(10) && !column.not_null => "NULL".into(),
            _ => column.kind.literal(random),
        })
        .collect();
    let source = if from_itself {
        format!("{} s WHERE {}", table.name, condition(random, table, "s."))
    } else {
        format!("generate_series({shift}, {}) i", shift + random.between(0, 6))
    };
    let conflict = if random.chance(25) { " ON CONFLICT DO NOTHING" } else { "" };
    let sql = Text::from(format!(
        "INSERT INTO {} ({}){} SELECT {} FROM {source}{conflict}",
        target(random, table),
        names(&columns),
        overriding(table, &columns),
        expressions.join(", ")
    ))
    .with(returning(random, model, table, place, false));
    (if fails { "INSERT SELECT that fails half-way" } else { "INSERT SELECT" }, sql)
}

fn on_conflict(random: &mut Random, model: &Model, table: &Table, place: Place) -> Write {
    let columns: Vec<&Column> =
        table.writable().filter(|column| column.role != Role::Data || random.chance(80)).collect();
    let rows = values(random, &columns, false);
    let into = target(random, table);
    let head =
        Text::from(format!("INSERT INTO {into} AS w ({}){} VALUES ", names(&columns), overriding(table, &columns)))
            .list(", ", rows);
    if random.chance(40) {
        let on = if random.chance(50) { String::new() } else { format!(" ({})", table.key()) };
        let sql = head.then(format!(" ON CONFLICT{on} DO NOTHING")).with(returning(random, model, table, place, false));
        return ("ON CONFLICT DO NOTHING", sql);
    }
    let mut sets: Vec<String> = table
        .with_role(Role::Data)
        .filter(|_| random.chance(60))
        .map(|column| column.name.clone())
        .collect::<Vec<_>>()
        .into_iter()
        .map(|name| if random.chance(70) { format!("{name} = excluded.{name}") } else { format!("{name} = w.{name}") })
        .collect();
    if random.chance(10) {
        sets.push("id = w.id + 200".into());
    }
    if sets.is_empty() {
        sets.push("id = w.id".into());
    }
    let filter = if random.chance(40) { format!(" WHERE {}", condition(random, table, "w.")) } else { String::new() };
    let sql = head
        .then(format!(" ON CONFLICT ({}) DO UPDATE SET ", table.key()))
        .list(", ", sets)
        .optional(filter)
        .with(returning(random, model, table, place, false));
    ("ON CONFLICT DO UPDATE", sql)
}

/// SET clauses that change data, now and then a reference.
fn sets(random: &mut Random, table: &Table, prefix: &str) -> Vec<String> {
    let mut sets = Vec::new();
    for column in table.writable() {
        match column.role {
            Role::Data if random.chance(45) => {
                let old = format!("{prefix}{}", column.name);
                let mut value = column.kind.changed(random, &old, &format!("{prefix}id"));
                if value == "NULL" && column.not_null && random.chance(80) {
                    value = old;
                }
                sets.push(format!("{} = {value}", column.name));
            }
            Role::RefId if random.chance(15) && !table.columns.iter().any(|column| column.role == Role::RefK) => {
                let value = random.pick(&["NULL", "1", "2", "3", "77"]);
                sets.push(format!("{} = {value}", column.name));
            }
            _ => {}
        }
    }
    if sets.is_empty() {
        sets.push("id = id".replace("= id", &format!("= {prefix}id")));
    }
    sets
}

fn update(random: &mut Random, model: &Model, table: &Table, place: Place) -> Write {
    let filter = condition(random, table, "");
    let sql = Text::from(format!("UPDATE {} SET ", target(random, table)))
        .list(", ", sets(random, table, ""))
        .optional(format!(" WHERE {filter}"))
        .with(returning(random, model, table, place, true));
    ("UPDATE", sql)
}

fn update_key(random: &mut Random, model: &Model, table: &Table, place: Place) -> Write {
    let (kind, set) = if table.has_k() && random.chance(55) {
        ("UPDATE of k", format!("k = {}", random.pick(&["k % 3 + 1", "1", "2", "3", "9"])))
    } else {
        let set = match random.below(4) {
            0 => format!("id = {}", new_id(random)),
            1 => "id = id + 1".to_owned(),
            2 => "id = 11 - id".to_owned(),
            _ => format!("id = id + {}", random.between(10, 90)),
        };
        ("UPDATE of id", set)
    };
    let kind = if table.partition_columns.is_empty() { kind } else { "UPDATE that moves rows" };
    let mut all = vec![set];
    if random.chance(40) {
        all.extend(sets(random, table, "").into_iter().filter(|set| !set.starts_with("id ")));
    }
    let filter = condition(random, table, "");
    let sql = Text::from(format!(
        "UPDATE {} SET ",
        if random.chance(15) { target(random, table) } else { table.name.clone() }
    ))
    .list(", ", all)
    .optional(format!(" WHERE {filter}"))
    .with(returning(random, model, table, place, true));
    (kind, sql)
}

fn update_from(random: &mut Random, model: &Model, table: &Table, place: Place) -> Write {
    // The same row comes twice and is updated once.
    let ids: Vec<String> =
        (0..3).map(|_| some_id(random)).flat_map(|id| [id, id]).map(|id| format!("({id})")).collect();
    let sql = Text::from(format!("UPDATE {} w SET ", table.name))
        .list(", ", sets(random, table, "w."))
        .then(" FROM (VALUES ")
        .list(", ", ids)
        .then(") s(i) WHERE w.id = s.i")
        .with(if place == Place::Top && model.major < 18 {
            Text::default().optional(" RETURNING w.*, s.i")
        } else {
            Text::default()
        });
    ("UPDATE FROM", sql)
}

fn delete(random: &mut Random, model: &Model, table: &Table, place: Place) -> Write {
    let filter = condition(random, table, "");
    let sql = Text::from(format!("DELETE FROM {}", target(random, table)))
        .then(format!(" WHERE {filter}"))
        .with(returning(random, model, table, place, true));
    ("DELETE", sql)
}

fn delete_using(random: &mut Random, model: &Model, table: &Table, place: Place) -> Write {
    let other = any_table(random, model);
    let filter = condition(random, other, "s.");
    let sql =
        Text::from(format!("DELETE FROM {} w USING {} s WHERE w.id = s.id + 1 AND {filter}", table.name, other.name))
            .with(if place == Place::Top { Text::default().optional(" RETURNING w.*, s.id") } else { Text::default() });
    ("DELETE USING", sql)
}

fn merge(random: &mut Random, model: &Model, table: &Table, place: Place) -> Write {
    let columns: Vec<&Column> = table.writable().collect();
    let into = if random.chance(10) && model.major >= 17 { target(random, table) } else { table.name.clone() };
    let mut source: Vec<i64> = (0..random.between(1, 5)).map(|_| some_id(random)).collect();
    if random.chance(85) {
        // A row may be matched once.
        source.sort_unstable();
        source.dedup();
    }
    let rows: Vec<String> = source.iter().map(|id| format!("({id})")).collect();
    let mut branches = Vec::new();
    if random.chance(40) {
        branches.push(Text::from(format!("WHEN MATCHED AND w.id % 3 = {} THEN DELETE", random.below(3))));
    }
    if random.chance(30) {
        branches.push(Text::from("WHEN MATCHED AND w.id % 5 = 1 THEN DO NOTHING"));
    }
    if random.chance(80) {
        let mut all = sets(random, table, "w.");
        if table.has_k() && random.chance(30) {
            all.push("k = w.k % 3 + 1".into());
        }
        branches.push(Text::from("WHEN MATCHED THEN UPDATE SET ").list(", ", all));
    }
    if random.chance(20) {
        branches.push(Text::from("WHEN NOT MATCHED AND s.i % 4 = 0 THEN DO NOTHING"));
    }
    if random.chance(80) {
        let values: Vec<String> = row(random, &columns, 0)
            .into_iter()
            .zip(&columns)
            .map(|(value, column)| match column.role {
                Role::Id => "s.i".to_owned(),
                Role::K => "s.i % 3 + 1".to_owned(),
                _ => value,
            })
            .collect();
        branches.push(Text::from(format!(
            "WHEN NOT MATCHED THEN INSERT ({}){} VALUES ({})",
            names(&columns),
            overriding(table, &columns),
            values.join(", ")
        )));
    }
    if model.major >= 17 && random.chance(25) {
        branches.push(Text::from(format!(
            "WHEN NOT MATCHED BY SOURCE AND w.id % 2 = 0 THEN {}",
            random.pick(&["DELETE", "UPDATE SET id = w.id"])
        )));
    }
    if branches.is_empty() {
        branches.push(Text::from("WHEN MATCHED THEN DELETE"));
    }
    let mut sql = Text::from(format!("MERGE INTO {into} w USING (VALUES "))
        .list(", ", rows)
        .then(") s(i) ON w.id = s.i ")
        .list(" ", branches);
    if model.major >= 17 && place == Place::Top && random.chance(60) {
        sql = sql.optional(random.pick(&[" RETURNING merge_action(), w.*", " RETURNING s.i, w.id"]).to_string());
        return ("MERGE RETURNING", sql);
    }
    ("MERGE", sql)
}

type Maker = fn(&mut Random, &Model, &Table, Place) -> Write;

const MAKERS: &[(u32, Maker)] = &[
    (8, insert),
    (5, insert_select),
    (8, on_conflict),
    (9, update),
    (6, update_key),
    (3, update_from),
    (5, delete),
    (2, delete_using),
    (6, merge),
];

/// A statement that writes a table of the model.
pub fn write(random: &mut Random, model: &Model, place: Place) -> Write {
    let table = any_table(random, model);
    write_to(random, model, table, place)
}

/// A statement that writes this table.
pub fn write_to(random: &mut Random, model: &Model, table: &Table, place: Place) -> Write {
    random.weighted(MAKERS)(random, model, table, place)
}

/// One that MERGE is not: what WITH takes on every version.
pub fn write_in_with(random: &mut Random, model: &Model, table: &Table) -> Write {
    let makers = if model.major >= 17 { MAKERS } else { &MAKERS[..MAKERS.len() - 1] };
    random.weighted(makers)(random, model, table, Place::Inside)
}
