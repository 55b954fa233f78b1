//! Types of columns, and values of them: the edges more often than the middle.

use super::random::Random;

/// What every database of a campaign has: the types that are no built-in ones.
pub const TYPES: &str = r#"
CREATE TYPE public.mood AS ENUM ('low', 'so "so"', 'high');
CREATE TYPE public.pair AS (a int, b text);
CREATE DOMAIN public.short AS varchar(12) CHECK (value <> 'bad');
CREATE DOMAIN public.qty AS numeric(8,2) CHECK (value <> 13);
CREATE DOMAIN public.small_pair AS public.pair CHECK ((value).a IS DISTINCT FROM 13);
"#;

/// The type of a column: its name in SQL, and values as the text that the type's input function reads.
#[derive(Debug)]
pub struct Kind {
    /// As SQL writes it.
    pub sql: &'static str,
    values: &'static [&'static str],
    /// Has `=`, so that it can stand in WHERE and in a unique constraint.
    pub comparable: bool,
    family: Family,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Number,
    Text,
    Other,
}

const fn kind(sql: &'static str, family: Family, comparable: bool, values: &'static [&'static str]) -> Kind {
    Kind { sql, values, comparable, family }
}

use Family::{Number, Other};

/// Keys and references.
pub const INT: Kind = kind("int", Number, true, &["0", "1", "2", "3", "-7", "41", "2147483647"]);
/// The commonest column.
pub const TEXT: Kind = kind(
    "text",
    Family::Text,
    true,
    &[
        "",
        "a",
        "plain",
        " two ",
        "NULL",
        "\\N",
        "\\.",
        "it's",
        "say \"so\"",
        "back\\slash \\n",
        "line\nbreak\r\ttab",
        "\u{1}\u{1f}\u{7f}",
        "é\u{301} \u{2028} \u{1F600} </script>",
        "a,b;c",
        "{\"a\": 1}",
        "%s $1 $$",
    ],
);

const KINDS: &[(u32, Kind)] = &[
    (16, INT),
    (16, TEXT),
    (3, kind("smallint", Number, true, &["-32768", "0", "1", "32767"])),
    (4, kind("bigint", Number, true, &["-9223372036854775808", "0", "5", "9007199254740993"])),
    (
        5,
        kind(
            "numeric",
            Number,
            true,
            &["0", "1.10", "NaN", "Infinity", "-Infinity", "12345678901234567890.123456789", "1e-20", "-0.000"],
        ),
    ),
    (3, kind("numeric(10,2)", Number, true, &["0", "1.1", "-2.345", "NaN", "99999999.99"])),
    (3, kind("real", Number, true, &["0", "-0", "0.1", "3.4028235e38", "1e-45", "NaN", "-Infinity"])),
    (4, kind("double precision", Number, true, &["0", "-0", "0.1", "1e300", "5e-324", "NaN", "Infinity"])),
    (4, kind("boolean", Other, true, &["true", "false"])),
    (3, kind("varchar(20)", Family::Text, true, &["", "v", "it''s", "é 12345678901234567"])),
    (3, kind("char(5)", Other, true, &["", "a", "  b", "12345"])),
    (4, kind("bytea", Other, true, &["\\x", "\\x00", "\\x5c22270aff", "\\xdeadbeef"])),
    (3, kind("date", Other, true, &["2024-02-29", "infinity", "-infinity", "4713-01-01 BC", "1999-12-31"])),
    (2, kind("time", Other, true, &["00:00", "24:00", "12:34:56.789012"])),
    (2, kind("timestamp", Other, true, &["2024-02-29 23:59:59.999999", "infinity", "0044-03-15 10:00:00 BC"])),
    (
        5,
        kind(
            "timestamptz",
            Other,
            true,
            &["2024-02-29 12:00:00+05:45", "-infinity", "infinity", "epoch", "1883-11-18 12:00:00+00"],
        ),
    ),
    (3, kind("interval", Other, true, &["0", "1 mon -1 days", "-1 years 2 mons 04:05:06.000007", "1 day"])),
    (3, kind("uuid", Other, true, &["00000000-0000-0000-0000-000000000000", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"])),
    (
        6,
        kind(
            "jsonb",
            Other,
            true,
            &[
                "null",
                "{}",
                "[]",
                "\"text\"",
                "1.50",
                "{\"b\": [1e40, null, \"\\u00e9\\\"\"], \"a\": {\"x\": false}}",
                "[1, [2, {}]]",
            ],
        ),
    ),
    (2, kind("json", Other, false, &["null", "{\"a\" : 1.10, \"a\":2}", "\" x \"", "[ ]"])),
    (4, kind("int[]", Other, true, &["{}", "{1,NULL,-3}", "[5:6]={1,2}", "{{1,2},{3,4}}"])),
    (3, kind("text[]", Other, true, &["{}", "{\"a,b\",\"NULL\",NULL,\"\"}", "{\"q\\\"\\\\\"}"])),
    (4, kind("mood", Other, true, &["low", "so \"so\"", "high"])),
    (4, kind("short", Family::Text, true, &["fine", "", "x'y", "q\"q"])),
    (3, kind("qty", Number, true, &["0", "12.345", "-1", "NaN"])),
    (4, kind("int4range", Other, true, &["empty", "(,)", "[1,5]", "(3,9)"])),
    (2, kind("tstzrange", Other, true, &["empty", "[2024-01-01 00:00+00,2024-06-01 00:00+00)", "(,infinity]"])),
    (2, kind("int4multirange", Other, true, &["{}", "{[1,3),[5,7)}"])),
    (4, kind("pair", Other, true, &["(1,x)", "(,)", "(-2,\"a,\"\"b\")", "(3,)"])),
    (2, kind("small_pair", Other, true, &["(1,x)", "(,)", "(2,\"y z\")"])),
    (2, kind("inet", Other, true, &["10.0.0.0/8", "::1", "fe80::1/64"])),
    (2, kind("bit varying", Other, true, &["", "0", "10101"])),
    (1, kind("money", Other, true, &["0", "12.34"])),
    (1, kind("pair[]", Other, true, &["{}", "{\"(1,x)\",\"(,)\"}"])),
];

impl Kind {
    /// A type.
    pub fn any(random: &mut Random) -> &'static Kind {
        random.weighted(KINDS)
    }

    /// A value as text.
    pub fn value(&self, random: &mut Random) -> String {
        if self.family == Number && self.sql == "int" && random.chance(60) {
            return random.between(0, 20).to_string();
        }
        (*random.pick(self.values)).to_owned()
    }

    /// A value as an SQL expression of the type.
    pub fn literal(&self, random: &mut Random) -> String {
        if self.sql == "text" {
            // Stored out of line, or compressed.
            match random.below(40) {
                0 => return "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 120) i)".into(),
                1 => return "repeat('long ', 2000)".into(),
                _ => {}
            }
        }
        format!("{}::{}", quote(&self.value(random)), self.sql)
    }

    /// An expression over a column of this type, named `column`, and an integer column `number`.
    pub fn changed(&self, random: &mut Random, column: &str, number: &str) -> String {
        let choice = random.below(10);
        match (self.family, choice) {
            (_, 0) => column.to_owned(),
            (_, 1) => "DEFAULT".to_owned(),
            (_, 2) => "NULL".to_owned(),
            (Number, 3) => format!("{column} + 1"),
            (Number, 4) => format!("({column}::numeric / NULLIF({number} % 3, 1))::{}", self.sql),
            (Family::Text, 3 | 4) => format!("{column} || '.'"),
            (_, 3) => format!("CASE WHEN {number} % 2 = 0 THEN {column} ELSE {} END", self.literal(random)),
            _ => self.literal(random),
        }
    }

    /// An expression of this type that a trigger gives to `column`.
    pub fn touched(&self, random: &mut Random, column: &str) -> String {
        match self.family {
            Number if self.sql == "int" => format!("COALESCE({column}, 0) / 2 + 1"),
            Family::Text if self.sql == "text" => format!("left(COALESCE({column}, ''), 40) || '!'"),
            _ => self.literal(random),
        }
    }
}

/// An SQL string.
#[must_use]
pub fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
