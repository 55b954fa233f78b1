#!/usr/bin/env python3
"""Run the tests of agd and close with one line: N passed, N failed.

  core     agd-core, agd-tsp and the command line, with their documentation examples; no PostgreSQL involved
  pgtest   #[pg_test] functions, inside a server
  live     real clusters, ordinary roles, many connections (the crate in pgrx-tests/)
  regress  pg_regress (tests/regress) and isolation tests (tests/isolation)

The last three run for each PostgreSQL version. While one version is tested, the next is compiled.

The servers of live tests keep their data in memory (/dev/shm) where there is room, else in /tmp. AGD_SCRATCH names another
place by a short path: /tmp, say, for tests that variables of theirs make larger than the memory.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import build
import cluster
import setup
import stage
from chromium import chromium
from clients import clients
from pooler import pgbouncer
from s3 import s3_server
from shell import ROOT, Failed, as_user, give, main, output, say, took, unprivileged, which

KINDS = ("core", "pgtest", "live", "regress")

# Nothing here takes that long. A test that hangs must not hang the machine that runs it.
PATIENCE = 1200

# Modules of the live tests that run at a time: each waits for its servers more than half of the time.
MODULES = (os.cpu_count() or 1) + 1

# Bytes: five times what the servers of live tests were seen to take.
ROOM = 4 << 30

# The test programs that run now. They are no part of this process's group: a Ctrl-C does not reach them.
RUNNING = set()

LIBTEST = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", re.MULTILINE)


class Tally:
    """What has been run so far."""

    def __init__(self):
        self.passed = 0
        self.failed = 0
        self.broken = []

    def step(self, name, start, passed, failed, details=""):
        """Record one step and print its line; on failure, everything it said."""
        self.passed += passed
        self.failed += failed
        mark = "ok  " if failed == 0 else "FAIL"
        figures = f"{passed} passed" + (f", {failed} failed" if failed else "")
        say(f"{mark} {name:<28} {figures:<24} {took(start):>14}")
        if failed:
            self.broken.append(name)
            say("\n" + details.strip() + "\n")

    def built(self, name, start):
        """A line for a build, which is no test."""
        say(f"     {name:<28} {'built':<24} {took(start):>14}")

    def crash(self, name, start, error):
        """A step that could not run counts as one failure."""
        self.step(name, start, 0, 1, str(error))


def watched(command, **options):
    """Run a test program: (exit code, everything it printed). One that hangs is stopped, with all it started."""
    process = subprocess.Popen(
        [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True, **options,
    )
    RUNNING.add(process)
    expired = threading.Event()

    def stop():
        expired.set()
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGTERM)
        time.sleep(5)
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(PATIENCE, stop)
    timer.daemon = True
    timer.start()
    try:
        printed, _ = process.communicate()
    except BaseException:
        stop_all()
        raise
    finally:
        timer.cancel()
        RUNNING.discard(process)
    if expired.is_set():
        printed += f"\nstopped: no end after {PATIENCE} s"
    return process.returncode, printed


def stop_all():
    """Stop every test program that runs, with all it started."""
    for process in list(RUNNING):
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGTERM)


def libtest(tally, name, start, code, printed):
    """Record the figures of one or more libtest programs."""
    results = LIBTEST.findall(printed)
    passed = sum(int(result[0]) for result in results)
    failed = sum(int(result[1]) for result in results)
    ignored = sum(int(result[2]) for result in results)
    if ignored:
        # A test that does not run proves nothing.
        failed, printed = failed + ignored, f"{ignored} ignored tests\n{printed}"
    if code != 0 and failed == 0:
        failed, printed = 1, f"exit code {code}\n{printed}"
    tally.step(name, start, passed, failed, failures(printed))


def failures(printed):
    """What libtest said, without the lines of tests that passed."""
    return "\n".join(line for line in printed.splitlines() if not re.match(r"^test .* \.\.\. ok$", line))


def test_programs(arguments, env):
    """Compile tests without running them; returns [(folder of the package, name, program)]."""
    command = ["cargo", "test", "--no-run", "--message-format=json-render-diagnostics", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace",
    )
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}\n{done.stderr.strip()}")
    found = []
    for line in done.stdout.splitlines():
        message = json.loads(line) if line.startswith("{") else {}
        if message.get("reason") == "compiler-artifact" and message.get("executable") and message["profile"]["test"]:
            folder = pathlib.Path(message["manifest_path"]).parent
            found.append((folder, message["target"]["name"], pathlib.Path(message["executable"])))
    return found


# The steps -----------------------------------------------------------------------------------------------------------


LIVE = ROOT / "pgrx-tests"


def plain(tally, env, kinds):
    """Compile what of these kinds does not depend on PostgreSQL's version: (path of the command line, test programs)."""
    start = time.monotonic()
    command_line = build.programs(env, quiet=True) / "agd"
    programs = test_programs([*build.PLAIN_PACKAGES, *([] if "core" in kinds else ["--test", "live"])], env)
    tally.built("command line, test programs", start)
    return command_line, programs


def core(tally, env, wanted, programs):
    """agd-core, agd-tsp and the command line, on their own."""
    # Where there is no S3 server or no browser (which reads the HTML report), their tests say so and fail.
    if (server := s3_server()) is not None:
        env = {**env, "AGD_S3_SERVER": str(server)}
    if (browser := chromium()) is not None:
        env = {**env, "AGD_CHROMIUM": str(browser)}
    for folder, name, path in programs:
        if folder != LIVE:
            start = time.monotonic()
            own = {**env, "CARGO_MANIFEST_DIR": str(folder)}
            code, printed = watched([path, *wanted], cwd=folder, env=own)
            if not (code == 0 and "running 0 tests" in printed):
                libtest(tally, f"{folder.name} {name}", start, code, printed)
    start = time.monotonic()
    command = ["cargo", "test", "--doc", "--no-fail-fast", *build.PLAIN_PACKAGES, *wanted]
    code, printed = watched(command, cwd=ROOT, env=env)
    if code != 0 or re.search(r"^running [1-9]", printed, re.MULTILINE):
        libtest(tally, "documentation examples", start, code, printed)


def prepare(major, env, kinds):
    """Compile what the tests of one version need. Runs in the background."""
    ready = {"major": major}
    if "pgtest" in kinds:
        build.install(major, env, test=True, quiet=True)
        # As `cargo pgrx test` does it; run by hand, because that would install into the stage of the live tests.
        arguments = ["--lib", "-p", "agd", *build.features(major, test=True)]
        ready["pgtest"] = [path for _, _, path in test_programs(arguments, build.development(env))]
    if "live" in kinds or "regress" in kinds:
        build.install(major, env, quiet=True)
    return ready


def pgtest(tally, ready, env, wanted):
    """#[pg_test] functions. The program runs as the user that may start PostgreSQL, and starts one."""
    major, start = ready["major"], time.monotonic()
    user = unprivileged()
    with stage.short_folder() as folder:
        # The program and what it reads, where that user can read it.
        for name in ("Cargo.toml", "agd.control"):
            shutil.copyfile(ROOT / name, folder / name)
        own = {
            **cluster.clean(env),
            "USER": user.pw_name if user else os.environ.get("USER") or output(["id", "-un"]),
            "HOME": str(folder),
            "CARGO_MANIFEST_DIR": str(folder),
            "CARGO_TARGET_DIR": str(folder),
            "CARGO_PGRX_TEST_PGDATA": str(folder),
            "PGRX_HOME": str(folder),
            "PGRX_PG_CONFIG_PATH": str(stage.pg_config(major, "pgtest")),
            # pgrx would build and install the extension now; it is installed already.
            "CARGO_PGRX": str(which("true")),
        }
        for path in ready["pgtest"]:
            copy = folder / path.name
            shutil.copy(path, copy)
            copy.chmod(0o755)
            code, printed = watched([copy, *wanted], cwd=folder, env=own, **as_user())
            libtest(tally, f"pg{major} pg_test", start, code, printed)


@functools.cache
def upgradable(major):
    """Whether pg_upgrade of another build can read this one's tables. There are PostgreSQL packages that give every column
    an option which only they know: with or without agd, pg_upgrade then fails at the first table."""
    bin_path = stage.bin_dir(major)
    with cluster.running(bin_path) as server:
        question = "SELECT count(*) FROM pg_attribute WHERE attoptions IS NOT NULL"
        command = [bin_path / "psql", "-X", "-At", "-h", server, "-U", "postgres", "-d", "postgres", "-c", question]
        return output(command, env=cluster.clean()) == "0"


def in_memory():
    """A folder whose files are in memory, when it and the memory have room for the servers of live tests; else None. They make
    and copy thousands of small files, most of which a disk never has to hold."""
    folder = pathlib.Path("/dev/shm")
    try:
        file_system = os.statvfs(folder)
        available = re.search(r"^MemAvailable: +(\d+) kB$", pathlib.Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    room = min(file_system.f_bavail * file_system.f_frsize, 1024 * int(available.group(1)) // 2 if available else 0)
    return folder if room >= ROOM and os.access(folder, os.W_OK) else None


def live(tally, ready, env, wanted, command_line, programs, before):
    """The live tests: the same programs for every version. Those in `before` have the extension of this run too."""
    major = ready["major"]
    upgrades = not wanted or any(word in "pg_upgrade_carries_the_record" for word in wanted)
    before = sorted((other for other in before if int(other) < int(major)), key=int)
    older = next(filter(upgradable, reversed(before)), None) if upgrades else None
    own = {
        **env,
        "AGD_PG_BIN": str(stage.bin_dir(major)),
        "AGD_CLI": str(command_line),
        "CARGO_MANIFEST_DIR": str(LIVE),
    }
    if "AGD_SCRATCH" not in own and (folder := in_memory()) is not None:
        own["AGD_SCRATCH"] = str(folder)
    if (pooler := pgbouncer()) is not None:
        own["AGD_PGBOUNCER"] = str(pooler)
    if (server := s3_server()) is not None:
        own["AGD_S3_SERVER"] = str(server)
    own.update(clients())
    if older:
        own["AGD_PG_OLDER_BIN"] = str(stage.bin_dir(older))
    elif upgrades:
        why = "no older version in this run" if not before else "other builds cannot read the older version's tables"
        say(f"     {f'pg{major} live':<28} pg_upgrade left out: {why}")
    skipped = [] if older else ["--skip", "pg_upgrade"]

    def run(path, module, tests):
        start = time.monotonic()
        code, printed = watched([path, "--exact", *tests], cwd=LIVE, env=own)
        return module, start, code, printed

    with concurrent.futures.ThreadPoolExecutor(max_workers=MODULES) as threads:
        modules = [
            threads.submit(run, path, module, tests)
            for folder, _, path in programs if folder == LIVE
            for module, tests in listed([path, *wanted, *skipped], own).items()
        ]
        try:
            for done in concurrent.futures.as_completed(modules):
                module, start, code, printed = done.result()
                libtest(tally, f"pg{major} live {module}", start, code, printed)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            stop_all()
            raise


def listed(command, env):
    """The tests that such a run of a libtest program would run: {module: [names]}."""
    modules = {}
    for line in output([*command, "--list", "--format", "terse"], cwd=LIVE, env=env).splitlines():
        name, _, kind = line.rpartition(": ")
        if kind == "test":
            modules.setdefault(name.partition("::")[0], []).append(name)
    return modules


SUITES = {
    # suite: (folder of its programs, program, where a test is written, its ending)
    "regress": ("regress", "pg_regress", "sql", ".sql"),
    "isolation": ("isolation", "pg_isolation_regress", "specs", ".spec"),
}


def scheduled(suite, source):
    """The tests of a schedule, after making sure that it names every test there is and none that is not."""
    _, _, written, ending = SUITES[suite]
    schedule = source / "schedule"
    if not schedule.is_file():
        raise Failed(f"{schedule.relative_to(ROOT)} is missing")
    names = []
    for line in schedule.read_text().splitlines():
        if line.startswith("test:"):
            names += line[len("test:"):].split()
    present = {path.stem for path in (source / written).glob(f"*{ending}")}
    odd = sorted(present.symmetric_difference(names))
    if odd:
        raise Failed(f"tests/{suite}/schedule and tests/{suite}/{written} do not agree on: {' '.join(odd)}")
    return names


def regress(tally, ready, wanted):
    """pg_regress and the isolation tests, each against a new cluster."""
    major = ready["major"]
    bin_path = stage.bin_dir(major)
    pgxs = pathlib.Path(stage.describe(bin_path / "pg_config")["PGXS"]).parents[1]
    for suite, (folder_name, program, written, ending) in SUITES.items():
        start, name = time.monotonic(), f"pg{major} {suite}"
        source = ROOT / "tests" / suite
        try:
            names = [test for test in scheduled(suite, source) if all(word in test for word in wanted)]
            if not names:
                continue
            with cluster.running(bin_path) as server:
                # In a place that the unprivileged user can read and write.
                inputs, outputs = server / "input", server / "output"
                shutil.copytree(source, inputs)
                outputs.mkdir()
                for path in (inputs, outputs):
                    give(path)
                command = [
                    pgxs / "test" / folder_name / program, f"--inputdir={inputs}", f"--outputdir={outputs}",
                    f"--bindir={bin_path}", f"--host={server}", "--port=5432", "--user=postgres",
                    f"--dbname=agd_{suite}", "--no-locale", "--encoding=UTF8",
                ]
                command += names if wanted else [f"--schedule={inputs / 'schedule'}"]
                code, printed = watched(command, cwd=outputs, env=cluster.clean(), **as_user())
                passed, failed = counted(printed)
                if failed is None or (code != 0) != (failed > 0):
                    passed, failed = passed or 0, 1
                details = f"exit code {code}\n{printed}"
                differences = outputs / "regression.diffs"
                if differences.exists() and differences.stat().st_size:
                    kept = keep(suite, major, outputs / "results")
                    details += f"\n{differences.read_text(errors='replace')}\nWhat the tests printed: {kept}"
                elif failed:
                    details += "\n" + (server / "log").read_text(errors="replace")[-4000:]
                details = details.replace(str(inputs), f"tests/{suite}").replace(str(outputs / "results"), "results")
                tally.step(name, start, passed, failed, details)
        except Failed as error:
            tally.crash(name, start, error)


def counted(printed):
    """(passed, failed) from pg_regress's closing line, in its wording up to 15 and from 16 on; None when there is none."""
    found = re.search(r"All (\d+) tests? passed", printed)
    if found:
        return int(found.group(1)), 0
    found = re.search(r"(\d+) of (\d+) tests? failed", printed)
    if found:
        return int(found.group(2)) - int(found.group(1)), int(found.group(1))
    return None, None


def keep(suite, major, results):
    """Save what the tests printed, so that it can be looked at and, when it is right, become the expectation."""
    target = build.target_dir(os.environ) / f"{suite}-{major}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(results, target)
    return target


# The whole -----------------------------------------------------------------------------------------------------------


def program():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", "--versions", dest="versions", type=setup.parse_versions,
                        help="PostgreSQL versions, such as 15 or 15,16,18 (default: the one that setup.py picks)")
    parser.add_argument("--only", choices=KINDS, action="append", help="only this kind of test; may be repeated")
    parser.add_argument("filter", nargs="*", help="only tests whose name contains this")
    options = parser.parse_args()
    kinds = options.only or list(KINDS)
    start = time.monotonic()
    majors, env = setup.ensure(options.versions, quiet=True)
    tally = Tally()

    command_line, programs, before = None, [], []
    if "core" in kinds or "live" in kinds:
        try:
            command_line, programs = plain(tally, env, kinds)
        except Failed as error:
            tally.crash("command line, test programs", start, error)
            kinds = [kind for kind in kinds if kind not in ("core", "live")]

    in_server = [kind for kind in kinds if kind != "core"]
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as background:
        pending = [background.submit(prepare, major, env, in_server) for major in majors] if in_server else []
        try:
            if "core" in kinds:
                attempt(tally, "core", core, tally, env, options.filter, programs)
            for major, future in zip(majors, pending):
                began = time.monotonic()
                if not future.done():
                    say(f"     {f'pg{major} extension':<28} compiling …")
                try:
                    ready = future.result()
                except Failed as error:
                    tally.crash(f"pg{major} extension", began, error)
                    continue
                tally.built(f"pg{major} extension", began)
                if "pgtest" in kinds:
                    attempt(tally, f"pg{major} pg_test", pgtest, tally, ready, env, options.filter)
                if "live" in kinds:
                    attempt(tally, f"pg{major} live", live, tally, ready, env, options.filter, command_line, programs, before)
                    before.append(major)
                if "regress" in kinds:
                    attempt(tally, f"pg{major} regress", regress, tally, ready, options.filter)
        except BaseException:
            background.shutdown(wait=False, cancel_futures=True)
            raise

    if tally.passed + tally.failed == 0:
        tally.crash("nothing", start, "no test has such a name" if options.filter else "there are no tests")
    if tally.broken:
        say(f"\nFailed: {', '.join(tally.broken)}")
    say(f"\nPostgreSQL {', '.join(map(str, majors))}, {took(start)}")
    say(f"{tally.passed} passed, {tally.failed} failed")
    return 1 if tally.failed else 0


def attempt(tally, name, step, *arguments):
    """Run a step; whatever stops it is a failure of that step and not the end of the others."""
    start = time.monotonic()
    try:
        step(*arguments)
    except (Failed, OSError, subprocess.SubprocessError) as error:
        tally.crash(name, start, error)


if __name__ == "__main__":
    main(program)
