"""Errors of a study storage, as one line with a remedy."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import optuna
import sqlalchemy

from stackseg.errors import StoreError

_RESTORE = "put a backup in its place, or move it aside: a new one is made by the next search"
_PERMISSION = "give yourself write permission there, or name another --storage"
_SERVER = "start the server, or correct --storage"
_REMEDIES = {
    "is full": "free some disk space, then go on with --resume",
    "no space left": "free some disk space, then go on with --resume",
    "disk i/o error": "check that the disk is neither full nor failing, then go on with --resume",
    "not a database": _RESTORE,
    "malformed": _RESTORE,
    "no module named 'psycopg": 'type `pip install -e ".[postgresql]"` in the checkout of stackseg',
    "no module named 'grpc": 'type `pip install -e ".[grpc]"` in the checkout of stackseg',
    "no module named": "install the driver of that database, or name postgresql://… or sqlite:///…",
    "failed to resolve": "correct the server's name in --storage",
    "locked": "wait for the other processes that use it, then go on with --resume",
    "readonly": _PERMISSION,
    "read-only": _PERMISSION,
    "unable to open": "check that the folder is there and yours to write, or name another --storage",
    "can't load plugin": "correct --storage",
    "no such file": "make the folder, or correct --storage",
    "authentication failed": "correct user and password in --storage",
    "access denied": "correct user and password in --storage",
    "connection": _SERVER,
    "could not": _SERVER,
    "unavailable": _SERVER,
}


def is_of_storage_alone(error: Exception) -> bool:
    """Return whether only a study storage raises such an exception."""
    kinds = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)
    return isinstance(error, kinds) or type(error).__module__.startswith(("grpc", "psycopg"))


def is_storage_error(error: Exception) -> bool:
    """Return whether an exception comes from a study storage."""
    return isinstance(error, sqlite3.Error | ImportError | OSError) or is_of_storage_alone(error)


@contextmanager
def storage_errors(where: str, is_known: Callable[[Exception], bool] = is_storage_error) -> Iterator[None]:
    """Turn what Optuna, SQLAlchemy, their drivers and gRPC raise inside into a one-line StoreError.

    Parameters
    ----------
    where
        The storage, as it may be shown.
    is_known
        Which exceptions are its own; `is_of_storage_alone` where files of others are written, too.
    """
    try:
        yield
    except Exception as error:
        if not is_known(error):
            raise
        raise as_storage_error(error, where) from error


def as_storage_error(error: Exception, where: str) -> StoreError:
    """Return an exception of a study storage as one line with a remedy."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, OSError) and cause.filename is not None:
        where = str(cause.filename)
    text = (str(cause).splitlines() or [type(cause).__name__])[0][:300]
    remedy = next((remedy for sign, remedy in _REMEDIES.items() if sign in str(error).lower() + text.lower()), "")
    return StoreError(f"the study storage failed: {text}", where=where, remedy=remedy)
