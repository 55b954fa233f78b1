"""A PgBouncer for the tests that need a real pooler: the machine's own, or Debian's package unpacked into .tools.

It is not installed: the package would start a service. Where neither is to be had, those tests say so and go without.
"""

import os
import re
import tempfile

from setup import TOOLS, apt_offers
from shell import Failed, is_debian, logged, output, say, which

PACKAGE = "pgbouncer"
FOLDER = TOOLS / PACKAGE
STARTER = FOLDER / "start"


def pgbouncer():
    """The program, or None."""
    for path in (which(PACKAGE), which(PACKAGE, path="/usr/sbin:/usr/local/sbin"), STARTER):
        if path and path.exists():
            return path
    if not is_debian():
        return None
    try:
        # Fetches package lists too, where there are none yet.
        if not apt_offers(PACKAGE):
            raise Failed(f"apt does not know the package {PACKAGE}")
        unpack()
    except Failed as error:
        say(f"     no PgBouncer is to be had here: {str(error).splitlines()[0]}")
        return None
    return STARTER


def unpack():
    """Debian's package, and the libraries that it needs and this machine lacks."""
    planned = output(["apt-get", "-s", "-q", "--no-install-recommends", "install", PACKAGE])
    missing = re.findall(r"^Inst (\S+)", planned, re.MULTILINE)
    wanted = [name for name in missing if name == PACKAGE or name.startswith("lib")]
    with tempfile.TemporaryDirectory() as packages:
        logged(["apt-get", "download", "-q", *wanted], "apt-get cannot download it", cwd=packages)
        for package in sorted(os.listdir(packages)):
            logged(["dpkg-deb", "-x", f"{packages}/{package}", FOLDER], "dpkg-deb cannot unpack it")
    libraries = ":".join(str(path.parent) for path in {lib.parent: lib for lib in FOLDER.rglob("*.so.*")}.values())
    program = FOLDER / "usr" / "sbin" / PACKAGE
    STARTER.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH="{libraries}" exec "{program}" "$@"\n')
    STARTER.chmod(0o755)
    version = output([STARTER, "--version"]).splitlines()[0]
    say(f"  {version} → .tools/{PACKAGE} (Debian's package, unpacked)")
