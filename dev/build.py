#!/usr/bin/env python3
"""Build agd: install the extension into a stage, build the command line, make a package, run the programs of the demo.

Cargo decides what has to be compiled. One rule keeps it from compiling twice: development builds resolve features as
tests do, so the installed library, the #[pg_test] library and the test programs share every dependency, pgrx's large
bindings above all.
"""

import argparse
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

import setup
import stage
from shell import ROOT, Failed, Missing, main, output, say, shown, took

# Always together: a package selected alone would resolve other features and compile its dependencies anew.
PLAIN_PACKAGES = ["-p", "agd-core", "-p", "agd-tsp", "-p", "agd-cli", "-p", "agd-live-tests", "-p", "agd-bench"]


def features(major, test=False):
    """The feature flags of the extension for a version."""
    return ["--no-default-features", "--features", f"pg{major} pg_test" if test else f"pg{major}"]


def development(env):
    """The environment of `cargo pgrx` for development builds."""
    # `--examples` (there are none) is what makes cargo resolve features with the development dependencies included.
    env = {**env, "PGRX_BUILD_FLAGS": "--examples"}
    if platform.machine() in ("x86_64", "AMD64"):
        # cargo-pgrx would add a linker flag through RUSTFLAGS, and every dependency would be compiled a second time.
        # The flag guards the section that the SQL is read from, which gcc's linker keeps here without it.
        env["CARGO_PGRX_DISABLE_GC_SECTIONS_WORKAROUND"] = "1"
    return env


def cargo(arguments, env, quiet=False):
    """Run cargo in the checkout. When quiet, its messages are shown only if it fails; a terminal shows the progress."""
    command = ["cargo", *arguments]
    if not quiet:
        code, printed = subprocess.run(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL).returncode, ""
    else:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace",
        )
        lines, watched = [], sys.stdout.isatty() and threading.current_thread() is threading.main_thread()
        for line in process.stdout:
            lines.append(line)
            if watched and line.lstrip().startswith("Compiling"):
                print(f"\r\033[K  {line.strip()}", end="", flush=True)
        if watched:
            print("\r\033[K", end="", flush=True)
        code, printed = process.wait(), "".join(lines)
    if code != 0:
        raise Failed(f"{shown(command)}\n{printed.strip()}".strip())


def install(major, env, release=False, test=False, quiet=False):
    """Build the extension and install it into a stage of its own kind; returns that stage's folder of programs.

    Kinds: development (`.tools/pg/15`), release (`15-release`), the #[pg_test] build (`15-pgtest`). One never takes
    the place of another.
    """
    purpose = "release" if release else "pgtest" if test else None
    if purpose:
        stage.also(major, purpose)
    arguments = ["pgrx", "install", "--pg-config", str(stage.pg_config(major, purpose)), *features(major, test)]
    arguments += ["--release"] if release else []
    arguments += ["--test"] if test else []
    cargo(arguments, env if release else development(env), quiet)
    for path in installed(major, purpose):
        path.chmod(0o755 if path.suffix in (".so", ".dylib") else 0o644)
    return stage.bin_dir(major, purpose)


def installed(major, purpose=None):
    """The files of the extension in a stage: library, control file, SQL scripts."""
    description = stage.describe(stage.pg_config(major, purpose))
    libraries = pathlib.Path(description["PKGLIBDIR"])
    scripts = pathlib.Path(description["SHAREDIR"]) / "extension"
    return [*libraries.glob("agd.so"), *libraries.glob("agd.dylib"), scripts / "agd.control", *sorted(scripts.glob("agd--*.sql"))]


def target_dir(env):
    """Where cargo puts what it builds."""
    return pathlib.Path(json.loads(output(["cargo", "metadata", "--no-deps", "--format-version=1"], cwd=ROOT, env=env))["target_directory"])


def programs(env, release=False, quiet=False):
    """Build the command line and the programs of the demo; returns the folder they are in."""
    if release:
        cargo(["build", "--release", "-p", "agd-cli", "-p", "agd-live-tests", "-p", "agd-bench", "--bins"], env, quiet)
    else:
        cargo(["build", *PLAIN_PACKAGES, "--bins", "--examples"], env, quiet)
    return target_dir(env) / ("release" if release else "debug")


def package_version():
    """The version in Cargo.toml."""
    return re.search(r'^version\s*=\s*"([^"]+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)


# The commands behind the Makefile -------------------------------------------------------------------------------------


def run(name, arguments):
    """Run one of the programs demo, cluster (of the live-test crate) and bench.

    What is measured is a release build. What is looked at is the build that the tests use: it takes half as long to make.
    """
    majors, env = setup.ensure(quiet=True)
    release = name == "bench"
    start = time.monotonic()
    say(f"Building agd for PostgreSQL {majors[0]} (the first time takes some minutes) …")
    bin_path = install(majors[0], env, release, quiet=True)
    folder = programs(env, release, quiet=True)
    say(f"Built ({took(start)})\n")
    env = {**env, "AGD_PG_BIN": str(bin_path), "AGD_CLI": str(folder / "agd")}
    if release:
        env["AGD_BUILD"] = "release build"
    program = folder / name
    if not program.is_file():
        raise Failed(f"no crate has a program `{name}`")
    sys.stdout.flush()
    os.chdir(ROOT)
    os.execve(program, [str(program), *arguments], env)


def install_for_good(prefix):
    """Install a release build into the PostgreSQL that PG_CONFIG names, and the command line under `prefix`."""
    source = os.environ.get("PG_CONFIG")
    if not source:
        raise Missing("PG_CONFIG. Say which PostgreSQL: make install PG_CONFIG=/usr/lib/postgresql/16/bin/pg_config")
    if stage.is_staged(source):
        raise Missing(f"the pg_config of a PostgreSQL of yours: {source} is one of the private copies in .tools")
    majors, env = setup.ensure(quiet=True)
    install(majors[0], env, release=True)
    cargo(["build", "--release", "-p", "agd-cli"], env)

    description = stage.describe(source)
    scripts = pathlib.Path(description["SHAREDIR"]) / "extension"
    wanted = [
        (path, pathlib.Path(description["PKGLIBDIR"]) if path.suffix in (".so", ".dylib") else scripts)
        for path in installed(majors[0], "release")
    ]
    wanted.append((target_dir(env) / "release" / "agd", pathlib.Path(prefix) / "bin"))
    refused = []
    for path, folder in wanted:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            put(path, folder / path.name)
        except PermissionError:
            refused.append((path, folder))
        else:
            say(f"installed {folder / path.name}")
    if refused:
        lines = [f"  sudo install -D -m {_mode(path)} {path} {folder / path.name}" for path, folder in refused]
        raise Failed("these folders are not yours to write to. It is built; finish with:\n" + "\n".join(lines))
    say(
        f"""
agd {package_version()} is installed in PostgreSQL {stage.version(description)[1]}. Three steps are left:

  1. in postgresql.conf:   shared_preload_libraries = 'agd'     (add it to what is there already)
  2. restart PostgreSQL
  3. in each database:     CREATE EXTENSION agd;"""
    )


def _mode(path):
    return "755" if path.suffix in (".so", ".dylib", "") else "644"


def put(source, target):
    """Install a file in one step: a server that has the old library open keeps the old file, whole."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    os.close(handle)
    try:
        shutil.copyfile(source, name)
        os.chmod(name, int(_mode(source), 8))
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


INSTALL_TEXT = """agd {version} for PostgreSQL {major}

  cp lib/* "$(pg_config --pkglibdir)/"
  cp extension/* "$(pg_config --sharedir)/extension/"
  cp bin/agd /usr/local/bin/

Then add agd to shared_preload_libraries in postgresql.conf, restart PostgreSQL, and CREATE EXTENSION agd in each database.
"""


def package():
    """A release build of the extension and the command line, as a folder and as a tarball in target/package."""
    majors, env = setup.ensure(quiet=True)
    major, version = majors[0], package_version()
    install(major, env, release=True)
    cargo(["build", "--release", "-p", "agd-cli"], env)
    built = target_dir(env)
    name = f"agd-{version}-pg{major}-{platform.system().lower()}-{platform.machine()}"
    tree = built / "package" / name
    shutil.rmtree(tree, ignore_errors=True)
    for folder in ("lib", "extension", "bin"):
        (tree / folder).mkdir(parents=True)
    for path in installed(major, "release"):
        put(path, tree / ("lib" if path.suffix in (".so", ".dylib") else "extension") / path.name)
    put(built / "release" / "agd", tree / "bin" / "agd")
    for extra in ("README.md", "LICENSE"):
        if (ROOT / extra).is_file():
            shutil.copyfile(ROOT / extra, tree / extra)
    (tree / "INSTALL").write_text(INSTALL_TEXT.format(version=version, major=major))
    archive = tree.with_name(name + ".tar.gz")

    def anonymous(member):
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        return member

    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tree, arcname=name, filter=anonymous)
    say(f"\n{archive} ({archive.stat().st_size / 1e6:.1f} MB)")


def program():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("dev", help="development build into the stage of each version").add_argument(
        "--versions", type=setup.parse_versions
    )
    runner = commands.add_parser("run", help="run demo or cluster (psql) on a development build, or bench on a release build")
    runner.add_argument("name", choices=["demo", "cluster", "bench"])
    runner.add_argument("arguments", nargs=argparse.REMAINDER)
    installer = commands.add_parser("install", help="release build into the PostgreSQL of $PG_CONFIG")
    installer.add_argument("--prefix", default="/usr/local", help="the command line goes to PREFIX/bin")
    commands.add_parser("package", help="release build as a tarball")
    options = parser.parse_args()
    if options.command == "run":
        run(options.name, options.arguments)
    elif options.command == "install":
        install_for_good(options.prefix)
    elif options.command == "package":
        package()
    else:
        majors, env = setup.ensure(options.versions, quiet=True)
        for major in majors:
            say(f"{install(major, env)}")
        say(f"{programs(env) / 'agd'}")


if __name__ == "__main__":
    main(program)
