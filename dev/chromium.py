"""A headless Chromium for the test of the HTML report: the machine's own, or Debian's package unpacked into .tools.

It is not installed: a test's browser is nothing for the machine to keep. Where it cannot be had, the test says so and fails.
"""

import os
import re
import tempfile

from setup import TOOLS, apt_offers
from shell import Failed, is_debian, logged, output, say, which

# The smallest of Debian's Chromium packages: no window, no GTK.
PACKAGE = "chromium-headless-shell"
FOLDER = TOOLS / "chromium"
STARTER = FOLDER / "start"


def chromium():
    """The program, or None."""
    for name in (PACKAGE, "chromium", "chromium-browser", "google-chrome"):
        if path := which(name):
            return path
    if STARTER.exists():
        return STARTER
    if not is_debian():
        return None
    try:
        # Fetches package lists too, where there are none yet.
        if not apt_offers(PACKAGE):
            raise Failed(f"apt does not know the package {PACKAGE}")
        unpack()
    except Failed as error:
        say(f"     no Chromium is to be had here: {str(error).splitlines()[0]}")
        return None
    return STARTER


def unpack():
    """Debian's package, and the libraries and fonts that it needs and this machine lacks."""
    fonts = [] if any(os.path.isdir(f"/usr/share/fonts/{kind}") for kind in ("truetype", "opentype")) else ["fonts-dejavu-core"]
    planned = output(["apt-get", "-s", "-q", "--no-install-recommends", "install", PACKAGE, *fonts])
    missing = re.findall(r"^Inst (\S+)", planned, re.MULTILINE)
    wanted = [name for name in missing if name == PACKAGE or name.startswith(("lib", "fonts-", "fontconfig-config", "chromium-common"))]
    with tempfile.TemporaryDirectory() as packages:
        logged(["apt-get", "download", "-q", *wanted], "apt-get cannot download it", cwd=packages)
        for package in sorted(os.listdir(packages)):
            logged(["dpkg-deb", "-x", f"{packages}/{package}", FOLDER], "dpkg-deb cannot unpack it")
    libraries = ":".join(str(path.parent) for path in {lib.parent: lib for lib in FOLDER.rglob("*.so*")}.values())
    program = next(iter(sorted((FOLDER / "usr" / "lib" / "chromium").glob("*headless*shell*"))), None)
    if program is None:
        raise Failed(f"the package {PACKAGE} has no program")
    settings = ""
    if fonts:
        configuration = FOLDER / "fonts.conf"
        configuration.write_text(f"<fontconfig><dir>{FOLDER}/usr/share/fonts</dir><cachedir>{FOLDER}/cache</cachedir></fontconfig>\n")
        settings = f'FONTCONFIG_FILE="{configuration}" '
    STARTER.write_text(f'#!/bin/sh\n{settings}LD_LIBRARY_PATH="{libraries}" exec "{program}" "$@"\n')
    STARTER.chmod(0o755)
    version = output([STARTER, "--no-sandbox", "--version"]).splitlines()[-1].strip()
    say(f"  {version} → .tools/chromium (Debian's package, unpacked)")
