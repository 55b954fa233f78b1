"""The S3 server of the tests that need one: moto's, installed into .tools with every package at its pin.

Where it is not to be had, those tests say so and go without.
"""

import hashlib
import shlex
import sys
import time

from setup import TOOLS
from shell import ROOT, Failed, logged, say, took

PINS = ROOT / "dev" / "s3_server.txt"
PROGRAM = ROOT / "dev" / "s3_server.py"
FOLDER = TOOLS / "s3"
STARTER = FOLDER / "start"


def s3_server():
    """The program, or None."""
    try:
        install()
    except Failed as error:
        say(f"     no S3 server is to be had here: {str(error).splitlines()[0]}")
        return None
    return STARTER


def install():
    """The pinned packages, unless they are there: for this Python, in a folder of their own."""
    stamp = f"{sys.version_info[:2]} {hashlib.sha256(PINS.read_bytes()).hexdigest()}"
    known = FOLDER / "stamp"
    packages = FOLDER / "packages"
    if not (known.exists() and known.read_text() == stamp):
        start = time.monotonic()
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--upgrade"]
        # pip warns root about its own folders, which this does not touch.
        command += ["--root-user-action=ignore", "--only-binary=:all:", "--target", packages, "-r", PINS]
        logged(command, "pip cannot install the S3 server of the tests")
        known.write_text(stamp)
        say(f"  S3 server for tests → .tools/s3 ({took(start)})")
    quoted = [shlex.quote(str(part)) for part in (packages, sys.executable, PROGRAM)]
    STARTER.write_text("#!/bin/sh\nPYTHONDONTWRITEBYTECODE=1 PYTHONPATH={} exec {} {}\n".format(*quoted))
    STARTER.chmod(0o755)
