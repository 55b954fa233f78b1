"""A throw-away PostgreSQL server for pg_regress and the isolation tests."""

import contextlib
import os
import subprocess

from shell import Failed, as_user, shown
from stage import short_folder

SETTINGS = """
listen_addresses = ''
shared_preload_libraries = 'agd'
fsync = off
max_worker_processes = 32
max_prepared_transactions = 8
wal_level = logical
log_min_messages = info
autovacuum_naptime = 1h
"""


def clean(env=None):
    """An environment in which neither PostgreSQL's variables nor the language of the person change what a test sees."""
    kept = {key: value for key, value in (env or os.environ).items() if not key.startswith(("PG", "LC_", "LANG"))}
    kept.pop("RUST_BACKTRACE", None)
    return {**kept, "LC_ALL": "C"}


@contextlib.contextmanager
def running(bin_path):
    """Start a server with agd preloaded; yields its folder, which holds its socket, its data and its log."""
    with short_folder() as folder:
        data, log = folder / "data", folder / "log"
        env = clean()

        def control(*arguments):
            command = [str(bin_path / "pg_ctl"), "-D", str(data), *arguments]
            done = subprocess.run(
                command, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, errors="replace", **as_user(),
            )
            if done.returncode != 0:
                tail = log.read_text(errors="replace")[-4000:] if log.exists() else ""
                raise Failed(f"{shown(command)}\n{done.stdout}\n{tail}")

        control("init", "-s", "-o", "--no-sync --auth=trust --no-locale --encoding=UTF8 --username=postgres")
        with open(data / "postgresql.conf", "a") as config:
            config.write(f"{SETTINGS}unix_socket_directories = '{folder}'\n")
        control("start", "-s", "-w", "-t", "60", "-l", str(log))
        try:
            yield folder
        finally:
            control("stop", "-s", "-m", "immediate")
