#!/usr/bin/env python3
"""Count the instructions of one backend for one TPC-B transaction: unguarded, and with all four tables guarded.

Seconds depend on whoever else uses the machine; instructions do not. One backend (`postgres --single`) under callgrind runs
a short and a long series of the same transactions, so that what is not a transaction falls out of the difference. There are
no clients, no worker and no other session.
"""

import argparse
import random
import re
import subprocess

import build
import cluster
import setup
from shell import Failed, as_user, give, main, output, say, which
from stage import short_folder

SCHEMA = """
CREATE TABLE pgbench_branches (bid int PRIMARY KEY, bbalance int, filler char(88));
CREATE TABLE pgbench_tellers (tid int PRIMARY KEY, bid int, tbalance int, filler char(84));
CREATE TABLE pgbench_accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84));
CREATE TABLE pgbench_history (hid bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tid int, bid int, aid int, delta int,
                              mtime timestamp, filler char(22));
INSERT INTO pgbench_branches SELECT 1, 0, '';
INSERT INTO pgbench_tellers SELECT i, 1, 0, '' FROM generate_series(1, 10) i;
INSERT INTO pgbench_accounts SELECT i, 1, 0, '' FROM generate_series(1, 100000) i;
"""
GUARD = "SELECT agd.guard(t::regclass, baseline => false) FROM unnest('{pgbench_branches,pgbench_tellers,pgbench_accounts,pgbench_history}'::text[]) t;"
SHORT, LONG = 200, 1200


def transactions(number):
    """As many transactions of pgbench's built-in script, one statement a line."""
    chance = random.Random(1)
    for _ in range(number):
        aid, tid, delta = chance.randint(1, 100000), chance.randint(1, 10), chance.randint(-5000, 5000)
        yield f"""BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + {delta} WHERE aid = {aid};
SELECT abalance FROM pgbench_accounts WHERE aid = {aid};
UPDATE pgbench_tellers SET tbalance = tbalance + {delta} WHERE tid = {tid};
UPDATE pgbench_branches SET bbalance = bbalance + {delta} WHERE bid = 1;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES ({tid}, 1, {aid}, {delta}, CURRENT_TIMESTAMP);
END;
"""


def counted(bin_path, folder, database, number):
    """Instructions of a backend that runs so many transactions."""
    command = [
        which("valgrind"), "--tool=callgrind", f"--callgrind-out-file={folder / 'out'}", bin_path / "postgres", "--single",
        "-D", folder / "data", "-c", "jit=off", "-c", "autovacuum=off", "-c", "max_stack_depth=1MB", database,
    ]
    done = subprocess.run(
        [str(part) for part in command], input="".join(transactions(number)), env=cluster.clean(), cwd=folder,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", **as_user(),
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or not found or "ERROR" in done.stderr:
        raise Failed(f"the backend failed ({done.returncode}):\n{done.stderr[-4000:]}")
    return int(found.group(1))


def program():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", dest="versions", type=setup.parse_versions, help="a PostgreSQL version, such as 18")
    options = parser.parse_args()
    if which("valgrind") is None:
        raise Failed("valgrind is not installed")
    majors, env = setup.ensure(options.versions, quiet=True)
    bin_path = build.install(majors[0], env, release=True, quiet=True)
    with short_folder() as folder:
        with cluster.running(bin_path) as server:
            psql = [bin_path / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", server, "-U", "postgres"]
            for database, guard in (("unguarded", ""), ("guarded", GUARD)):
                output([*psql, "-d", "postgres", "-c", f"CREATE DATABASE {database}"], env=cluster.clean())
                output([*psql, "-d", database, "-c", f"CREATE EXTENSION agd; {SCHEMA} {guard}"], env=cluster.clean())
                output([*psql, "-d", database, "-c", "VACUUM FREEZE"], env=cluster.clean())
                output([*psql, "-d", database, "-c", "SELECT count(*) FROM agd.anchor()"], env=cluster.clean())
            output([*psql, "-d", "postgres", "-c", "CHECKPOINT"], env=cluster.clean())
            copy = subprocess.run(
                [str(bin_path / "pg_basebackup"), "-h", str(server), "-U", "postgres", "-D", str(folder / "data"), "-c", "fast"],
                env=cluster.clean(), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **as_user(),
            )
            if copy.returncode != 0:
                raise Failed(copy.stderr)
        give(folder)
        each = {}
        for database in ("unguarded", "guarded"):
            short, long = (counted(bin_path, folder, database, number) for number in (SHORT, LONG))
            each[database] = (long - short) / (LONG - SHORT)
            say(f"{database:<10} {each[database]:>10,.0f} instructions a transaction")
        say(f"the speed of unguarded: {each['unguarded'] / each['guarded']:.3f} (PostgreSQL {majors[0]}, one backend, no worker)")
    return 0


if __name__ == "__main__":
    main(program)
