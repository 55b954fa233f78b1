"""Paths, messages, processes and users: what every script in this folder shares.

Only the standard library of Python 3.9 is used, so that nothing has to be installed before the first command.
"""

import os
import pathlib
import pwd
import shutil
import subprocess
import sys
import time

sys.dont_write_bytecode = True

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


class Missing(Exception):
    """Something the machine lacks and that these scripts cannot or must not install."""


class Failed(Exception):
    """A command that was expected to work did not."""


def say(text=""):
    """One line for the person watching."""
    print(text, flush=True)


def main(function):
    """Run `function` as a program: 0 all well, 1 something failed, 2 something is missing, 130 interrupted."""
    try:
        sys.exit(function() or 0)
    except Missing as error:
        sys.stdout.flush()
        print(f"\nMissing: {error}", file=sys.stderr)
        sys.exit(2)
    except Failed as error:
        sys.stdout.flush()
        print(f"\nFailed: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def took(start):
    """The time since `start`, as people say it: 0.4 s, 12 s, 3 min 05 s."""
    seconds = time.monotonic() - start
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def unprivileged():
    """The user that PostgreSQL runs as: None when this process is not root, else `postgres` or `nobody`.

    PostgreSQL refuses to run as root. No user is created.
    """
    if not IS_ROOT:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise Missing("an unprivileged user to run PostgreSQL as: neither `postgres` nor `nobody` exists here")


def as_user():
    """Keyword arguments for subprocess that drop root; none when there is nothing to drop."""
    user = unprivileged()
    return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def give(path):
    """Hand a file, or a folder with all that is in it, to the user that PostgreSQL runs as."""
    user = unprivileged()
    if user is None:
        return
    os.chown(path, user.pw_uid, user.pw_gid)
    for parent, folders, files in os.walk(path):
        for name in folders + files:
            os.chown(os.path.join(parent, name), user.pw_uid, user.pw_gid)


def output(command, **options):
    """What a command prints, without the trailing newline. Raises Failed with its messages when it fails."""
    options.setdefault("stderr", subprocess.PIPE)
    try:
        done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, **options)
    except OSError as error:
        raise Failed(f"{command[0]}: {error.strerror or error}") from error
    if done.returncode != 0:
        raise Failed(f"{shown(command)}: exit code {done.returncode}\n{(done.stderr or '').strip()}")
    return done.stdout.rstrip("\n")


def shown(command):
    """A command as a person would type it."""
    return " ".join(str(part) for part in command)


def logged(command, what, **options):
    """Run a command that says a lot; show its output only when it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        **options,
    )
    if done.returncode != 0:
        raise Failed(f"{what} (exit code {done.returncode}): {shown(command)}\n{done.stdout.strip()}")
    return done.stdout


def which(name, path=None):
    """The first program of this name on PATH, or None."""
    found = shutil.which(name, path=path)
    return pathlib.Path(found) if found else None


def is_debian():
    """Whether this machine installs with apt."""
    return pathlib.Path("/etc/debian_version").exists() and which("apt-get") is not None
