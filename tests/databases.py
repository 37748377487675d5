"""A PostgreSQL of our own, where it is installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

PASSWORD = "s3cret@100%/day"
"""That of the database's user, with signs that an address has to escape."""


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def postgresql() -> Iterator[str]:
    """Run PostgreSQL for a while and yield its address; skip where it, or its driver, is missing."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [Path(shutil.which("initdb") or "none").parent]
    if not (found[-1] / "initdb").exists():
        pytest.skip("PostgreSQL is not installed")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed (the postgresql extra)")
    # not in pytest's folder, which is closed to other users: PostgreSQL refuses to run as root
    with tempfile.TemporaryDirectory(prefix="postgresql-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        as_user: list[str] = []
        if os.geteuid() == 0:
            as_user = ["runuser", "-u", "postgres", "--"]
            shutil.chown(folder, "postgres")
        port, cluster = free_port(), str(folder / "cluster")
        (folder / "password").write_text(PASSWORD)
        who = ("-U", "stackseg", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}")
        initialise = [*as_user, str(found[-1] / "initdb"), "-D", cluster, *who]
        subprocess.run(initialise, check=True, capture_output=True)
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        control = [*as_user, str(found[-1] / "pg_ctl"), "-D", cluster, "-w", "-l", str(folder / "log")]
        subprocess.run([*control, "-o", options, "start"], check=True, capture_output=True)
        try:
            yield f"postgresql+psycopg://stackseg:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True)
