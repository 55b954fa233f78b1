#!/usr/bin/env python3
"""Rules of this tree that no compiler checks. One line a rule; for each break of a rule, the place."""

import argparse
import os
import pathlib
import re
import subprocess
import tempfile

import stage
from shell import ROOT, Failed, main, output, say

# Written in pieces, so that this file does not break the rules that it states.
LEFT_OVERS = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b|\b(to" + r"do|unimpl" + r"emented)!\s*[(\[{]|#\[(ig" + r"nore)\b")
REGISTRIES = re.compile(r"\b(crates" + r"\.io|py" + r"pi\.org|python" + r"hosted\.org|npm" + r"js\.(org|com)|ru" + r"by" + r"gems\.org|proxy\.gol" + r"ang\.org)\b")
MACHINE_PATHS = re.compile(r"(?<![\w.])/(ro" + r"ot|ho" + r"me/[a-z]|Us" + r"ers/[A-Za-z]|wo" + r"rk|fa" + r"rm)/[A-Za-z.]")
SEARCH_PATH = re.compile(r"SET\s+search_path\s*(=|TO)\s*pg_catalog\s*,\s*pg_temp", re.IGNORECASE)

# Cargo writes the name of the registry into its lock file.
GENERATED = {"Cargo.lock"}


def tracked():
    """Every file of the tree that is, or would be, committed."""
    names = output(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT).split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def lines(path):
    """(number, line) of a text file; nothing of a file that is not text."""
    try:
        return list(enumerate(path.read_text(encoding="utf-8").splitlines(), 1))
    except UnicodeDecodeError:
        return []


def at(path, number, text):
    """How a break of a rule is shown."""
    return f"{path.relative_to(ROOT)}:{number}: {text.strip()[:120]}"


def matching(files, pattern):
    """Every line of some files that a pattern is found in."""
    return [at(path, number, line) for path in files for number, line in lines(path) if pattern.search(line)]


def rust_files(files):
    """The sources of all crates, tests left out."""
    kept = []
    for path in files:
        parts = path.relative_to(ROOT).parts
        in_crate = parts[0] == "src" or (parts[0] == "crates" and len(parts) > 3 and parts[2] == "src") or parts[:2] in (("pgrx-tests", "src"), ("bench", "src"))
        if path.suffix == ".rs" and in_crate:
            kept.append(path)
    return kept


# Rules ---------------------------------------------------------------------------------------------------------------


def core_is_pure(files):
    """agd-core, agd-tsp and agd-cli do not depend on pgrx, not even to be tested"""
    found = []
    for package in ("agd-core", "agd-tsp", "agd-cli"):
        tree = output(["cargo", "tree", "-p", package, "--edges", "normal,build,dev", "--prefix", "none", "--target", "all"], cwd=ROOT)
        found += [f"{package}: {name}" for name in sorted({line for line in tree.splitlines() if re.match(r"pgrx\b", line)})]
    return found


def core_needs_no_postgres(files):
    """agd-core builds and passes its tests with no PostgreSQL to be found"""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "AGD", "LIBCLANG", "BINDGEN"))}
    with tempfile.TemporaryDirectory() as scratch:
        path = []
        for folder in os.environ.get("PATH", "").split(os.pathsep):
            if any(os.path.exists(os.path.join(folder, name)) for name in ("pg_config", "psql", "postgres")):
                # The compiler may be in the same folder: leave out PostgreSQL alone.
                shadow = pathlib.Path(scratch) / str(len(path))
                shadow.mkdir()
                for entry in os.scandir(folder):
                    if entry.name not in (*stage.PROGRAMS, "cargo-pgrx"):
                        (shadow / entry.name).symlink_to(entry.path)
                folder = str(shadow)
            path.append(folder)
        env["PATH"] = os.pathsep.join(path)
        done = subprocess.run(
            ["cargo", "test", "--quiet", "-p", "agd-core"], cwd=ROOT, env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )
    return [] if done.returncode == 0 else [done.stdout.strip()]


UNSAFE = re.compile(r"\bunsafe\s*(\{|impl\b|fn\b|extern\b|trait\b|$)|#\[unsafe\(")
ALLOWS_UNSAFE = re.compile(r"^\s*#!?\[allow\([^)]*\bunsafe_code\b")


def unsafe_is_confined(files):
    """`unsafe` is only under src/, where a file or an item allows it and says why; a SAFETY comment at each block"""
    found = []
    for path in files:
        if path.suffix != ".rs":
            continue
        numbered = lines(path)
        inside = path.relative_to(ROOT).parts[0] == "src"
        before = ""
        for number, line in numbered:
            if not inside and (UNSAFE.search(_code(line)) or ALLOWS_UNSAFE.search(line)):
                found.append(at(path, number, line) + "  (outside src/)")
            elif ALLOWS_UNSAFE.search(line) and not (
                "//" in line or "reason = " in line or re.match(r"//(?![/!])", before)
            ):
                found.append(at(path, number, line) + "  (no reason beside it)")
            before = line.strip()
    # That nothing else compiles, and that each block has its comment, is the business of the lints. They must be on.
    manifest = (ROOT / "Cargo.toml").read_text()
    for lint in ("unsafe_code", "undocumented_unsafe_blocks"):
        if f'{lint} = "deny"' not in manifest:
            found.append(f"Cargo.toml:1: the lint {lint} is not denied")
    return found + matching([path for path in files if path.suffix == ".rs"], re.compile(r"(allow|expect|warn)\(.*undocumented_unsafe"))


def _code(line):
    """A line without its comment and without what stands in quotes."""
    line = re.sub(r'"(\\.|[^"\\])*"', '""', line)
    return re.sub(r"//.*", "", line)


def modules_say_what_they_are(files):
    """Every module starts with a `//!` comment"""
    found = []
    for path in rust_files(files):
        first = next(((number, line) for number, line in lines(path) if line.strip()), (1, ""))
        if not first[1].startswith("//!"):
            found.append(at(path, *first))
    return found


def definers_are_pinned(files):
    """Every SECURITY DEFINER function in sql/ pins its search_path to pg_catalog, pg_temp"""
    found = []
    for path in files:
        if path.suffix != ".sql" or path.relative_to(ROOT).parts[0] != "sql":
            continue
        # Comments out, line numbers kept; then statement by statement, bodies included.
        text = re.sub(r"--[^\n]*", "", path.read_text())
        text = re.sub(r"/\*.*?\*/", lambda match: "\n" * match.group().count("\n"), text, flags=re.DOTALL)
        starts = [match.start() for match in re.finditer(r"\bCREATE\s+(OR\s+REPLACE\s+)?(FUNCTION|PROCEDURE)\b", text, re.IGNORECASE)]
        for start, end in zip(starts, [*starts[1:], len(text)]):
            statement = _header(text[start:end])
            if re.search(r"\bSECURITY\s+DEFINER\b", statement, re.IGNORECASE) and not SEARCH_PATH.search(statement):
                number = text.count("\n", 0, start) + 1
                found.append(at(path, number, text[start:].splitlines()[0]))
    return found


def _header(statement):
    """A CREATE FUNCTION without its quoted body, up to the semicolon that ends it."""
    statement = re.sub(r"\$(\w*)\$.*?\$\1\$", "''", statement, flags=re.DOTALL)
    return statement.split(";", 1)[0]


def sql_is_numbered(files):
    """Files in sql/ are numbered (00_name.sql) or upgrade scripts (agd--1.0--1.1.sql), and src/lib.rs loads each"""
    library = ROOT / "src" / "lib.rs"
    loaded = library.read_text() if library.is_file() else ""
    found = []
    for path in files:
        if path.suffix == ".sql" and path.parent == ROOT / "sql":
            numbered = re.fullmatch(r"\d\d_[a-z0-9_]+\.sql", path.name)
            if not numbered and not re.fullmatch(r"agd--[\d.]+--[\d.]+\.sql", path.name):
                found.append(f"{path.relative_to(ROOT)}:1: neither numbered nor an upgrade script")
            elif numbered and f"/{path.name}\"" not in loaded:
                found.append(f"{path.relative_to(ROOT)}:1: src/lib.rs does not load it")
    return found


def no_left_overs(files):
    """Nothing is left for later, no test is ignored"""
    return matching([path for path in files if path.name not in GENERATED], LEFT_OVERS)


def no_registries(files):
    """No host name of a package registry"""
    return matching([path for path in files if path.name not in GENERATED], REGISTRIES)


def no_machine_paths(files):
    """No path of one machine"""
    return matching([path for path in files if path.name not in GENERATED], MACHINE_PATHS)


TRAP_TESTS = re.compile(r"\b((?:cli/)?[a-z_]+): (`\w+`(?:, `\w+`)*)")


def traps_have_their_tests(files):
    """Every test that docs/traps.md names is there"""
    path = ROOT / "docs" / "traps.md"
    found = []
    for number, line in lines(path):
        for name in re.findall(r"isolation/`([\w-]+)`", line):
            if not (ROOT / "tests" / "isolation" / "specs" / f"{name}.spec").is_file():
                found.append(at(path, number, line))
        for where, names in TRAP_TESTS.findall(line):
            folder = "crates/cli/tests/cli" if where.startswith("cli/") else "pgrx-tests/tests/live"
            source = ROOT / ("src/pg_tests.rs" if where == "pg_tests" else f"{folder}/{where.removeprefix('cli/')}.rs")
            text = source.read_text() if source.is_file() else ""
            found += [at(path, number, f"{where}: {name}") for name in re.findall(r"\w+", names) if f"fn {name}()" not in text]
    return found


RULES = [
    core_is_pure,
    unsafe_is_confined,
    modules_say_what_they_are,
    definers_are_pinned,
    sql_is_numbered,
    traps_have_their_tests,
    no_left_overs,
    no_registries,
    no_machine_paths,
    core_needs_no_postgres,
]


def program():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rule", nargs="*", help=f"only these: {', '.join(rule.__name__ for rule in RULES)}")
    options = parser.parse_args()
    files = tracked()
    broken = 0
    for rule in RULES:
        if options.rule and rule.__name__ not in options.rule:
            continue
        try:
            found = rule(files)
        except Failed as error:
            found = [str(error)]
        say(f"{'FAIL' if found else 'ok  '} {rule.__doc__}")
        for place in found:
            say(f"     {place}")
        broken += bool(found)
    return 1 if broken else 0


if __name__ == "__main__":
    main(program)
