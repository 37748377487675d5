"""What goes wrong in a tracking store, as errors with a remedy, and the lock that keeps processes apart in it."""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from stackseg.errors import StacksegError, StoreError

LOCK_TIMEOUT_S = 120.0
_NEW_ONE = "move it aside: a new one is made by the next command"
_PERMISSION = "check that the folder is there and yours to write, or set MLFLOW_TRACKING_URI to another store"
# what a message says, in small letters, and what to do about it; the first that fits counts
_REMEDIES = {
    "out-of-date database schema": "back the database up and type `mlflow db upgrade {where}`; if that cannot locate "
    "the revision, a newer MLflow wrote it: `pip install -U mlflow`",
    "is full|no space left": "free some disk space and type the command again",
    "disk i/o error": "check that the disk is neither full nor failing, then type the command again",
    "file is not a database|decode|malformed": f"put a backup in its place, or {_NEW_ONE}",
    "already exists|no such table": f"it was left half-made; {_NEW_ONE}",
    "locked": "wait for the other processes that use it (an `mlflow ui`, a run), then type the command again",
    "no module named": "install the driver that this address asks for, e.g. "
    '`pip install "psycopg[binary]"` for PostgreSQL',
    "authentication failed|access denied": "correct user and password in MLFLOW_TRACKING_URI",
    "unsupported uri|can't load plugin": "correct MLFLOW_TRACKING_URI; unset, runs go to the project's own database",
    "permission denied|read-?only|unable to open": _PERMISSION,
    "api request to": "start the server or correct MLFLOW_TRACKING_URI; unset, runs go to the project's own database",
}


@contextmanager
def store_errors(where: str) -> Iterator[None]:
    """Turn what MLflow, SQLAlchemy, sqlite and the operating system raise inside into a one-line StoreError.

    Parameters
    ----------
    where
        The store's address or file, for the message.
    """
    try:
        yield
    except StacksegError:
        raise
    except Exception as error:
        is_lower = isinstance(error, sqlite3.Error | OSError | ModuleNotFoundError | UnicodeDecodeError)
        if not is_lower and not is_store_error(error):
            raise
        raise as_store_error(error, where) from error


def is_store_error(error: Exception) -> bool:
    """Return whether an exception was raised by MLflow or its database."""
    if "mlflow" not in sys.modules:  # importing it takes two seconds, and it cannot have raised anything yet
        return False
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, MlflowException | SQLAlchemyError)


def as_store_error(error: Exception, where: str) -> StoreError:
    """Return an exception of the store's as one line with a remedy."""
    # SQLAlchemy puts the driver's class first, and its statement and a link last
    told = re.sub(r"^\([\w.]+\) |\n(\[SQL: |\(Background on this error).*", "", str(error), flags=re.DOTALL)
    text = " ".join(told.split()) or type(error).__name__
    remedy = next((remedy for signs, remedy in _REMEDIES.items() if re.search(signs, text.lower())), "")
    return StoreError(f"the tracking store failed: {text}", where=where, remedy=remedy.replace("{where}", where))


@contextmanager
def store_lock(lock_file: Path) -> Iterator[None]:
    """Hold the lock under which a store is created, switched to WAL or relocated.

    Raises
    ------
    StoreError
        Another process held it for two minutes, or the file cannot be written.
    """
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=LOCK_TIMEOUT_S)
    except Timeout as error:
        raise StoreError(
            f"another process has been preparing the tracking store for {LOCK_TIMEOUT_S:.0f} s",
            expected="it to be done within seconds",
            where=str(lock_file),
            remedy="end that process, then type the command again",
        ) from error
    except OSError as error:
        raise as_store_error(error, str(lock_file)) from error
    try:
        yield
    finally:
        lock.release()
