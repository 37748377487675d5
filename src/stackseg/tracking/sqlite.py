"""sqlite files as stores: made once and whole, in WAL mode."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from uuid import uuid4

from stackseg.errors import StoreError
from stackseg.tracking.store_errors import store_lock
from stackseg.tracking.uri import sqlite_uri

BUSY_TIMEOUT_S = 20.0


def make_database(database: Path, make_tables: Callable[[str], None], *, remedy: str) -> None:
    """Make a database if there is none, and bring it to WAL mode; processes may call it at once.

    Parameters
    ----------
    database
        The file, by its absolute path.
    make_tables
        Called with the address of a new file; it leaves no connection open.
    remedy
        What to do where WAL mode is not possible, as on network file systems.

    Raises
    ------
    StoreError
        WAL mode is not possible.
    sqlite3.Error, OSError
        It cannot be made or read.
    """
    if _is_wal(database):
        return
    with store_lock(database.with_name(f"{database.name}.lock")):
        if not _has_content(database):
            _make_whole(database, make_tables)
        with closing(connect(database, "rw")) as connection:
            mode = connection.execute("PRAGMA journal_mode = wal").fetchone()[0]
    if mode != "wal":
        raise StoreError(
            f"sqlite's WAL mode is not possible here (journal mode {mode})",
            expected="a local disk",
            where=str(database),
            remedy=remedy,
        )


def connect(database: Path, mode: str) -> sqlite3.Connection:
    """Open an existing file to read ("ro") or to write ("rw"); transactions begin and end where the caller says so."""
    return sqlite3.connect(f"{database.as_uri()}?mode={mode}", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)


def _is_wal(database: Path) -> bool:
    """Return whether the file's header says so; no connection is needed for it."""
    if not database.is_file():
        return False
    with database.open("rb") as file:
        return file.read(20)[18:] == b"\2\2"


def _has_content(database: Path) -> bool:
    return database.is_file() and database.stat().st_size > 0


def _make_whole(database: Path, make_tables: Callable[[str], None]) -> None:
    """Make it under another name and rename it, so that nobody ever sees a half-made one."""
    # a name of its own for each try: MLflow keeps connections by address, also to the file of a try that failed
    new = database.with_name(f"{database.name}.new-{uuid4().hex}")
    try:
        make_tables(sqlite_uri(new))
        if not _has_content(database):  # a bare `mlflow ui`, which knows no lock of ours, may have been quicker
            os.replace(new, database)
    finally:
        for remains in database.parent.glob(f"{database.name}.new-*"):
            remains.unlink()
