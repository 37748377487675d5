"""Where studies are kept: sqlite in the project by default, PostgreSQL, or a gRPC proxy in front of either."""

from __future__ import annotations

import os
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import optuna
import psutil
import sqlalchemy
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial

from stackseg.errors import ParamsError, StoreError
from stackseg.params import Params
from stackseg.search.storage_errors import storage_errors
from stackseg.tracking.store_errors import store_lock
from stackseg.tracking.uri import database_file, require_whole_server, shown_uri, sqlite_uri

DATABASE_NAME = "optuna.db"
# a worker that has been silent for so many heartbeats is taken for dead
GRACE = 4
BUSY_TIMEOUT_S = 60
PROXY_TIMEOUT_S = 10
NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "sshfs", "lustre", "beegfs", "gpfs", "afs", "ceph", "glusterfs", "9p")
# any number that no other program locks
_ADVISORY_LOCK = 7_239_651

StaleCallback = Callable[[Study, FrozenTrial], None]


def storage_url(root: Path, given: str | None) -> str:
    """Return the address of the study storage: as given, paths counted from the project's root, or the default.

    Raises
    ------
    StoreError
        It is no address that a study can be kept at.
    """
    if given is None:
        return sqlite_uri(root / DATABASE_NAME)
    scheme, _, rest = given.partition(":")
    if scheme.partition("+")[0] == "sqlite":
        path, _, query = rest.removeprefix("///").partition("?")
        if path in ("", "//", ":memory:"):
            raise _no_address(given, "a database in memory, which is gone with the process")
        return sqlite_uri(root / unquote(path), scheme) + (f"?{query}" if query else "")
    if not rest.startswith("//"):
        raise _no_address(given, "no address")
    try:
        address, _ = sqlalchemy.make_url(given), urlsplit(given).port
    except (ValueError, sqlalchemy.exc.ArgumentError):  # it says the password
        raise _no_address(given, "no address") from None
    require_whole_server(given, address, "--storage")
    if scheme == "postgresql":  # SQLAlchemy would take it for another driver's
        return f"postgresql+psycopg:{rest}"
    return given


def require_own_storage(params: Params, url: str, root: Path) -> None:
    """Refuse the sampler cmaes on a storage that others can write to.

    Optuna unpickles the state that it keeps there: whoever may write it could run any code on this machine.

    Raises
    ------
    ParamsError
        The sampler is cmaes, and the storage is no sqlite file inside the project.
    """
    file = database_file(url)
    if params.search.sampler.name != "cmaes" or (file is not None and file.resolve().is_relative_to(root.resolve())):
        return
    raise ParamsError(
        f"cmaes on {shown_uri(url)}: Optuna unpickles its state, so whoever writes there could run code here",
        expected="a sqlite file inside the project",
        where="search.sampler.name",
        remedy="choose tpe, gp or qmc, or leave out --storage",
    )


def _no_address(given: str, found: str) -> StoreError:
    return StoreError(
        f"{shown_uri(given) or 'an empty text'} is {found}",
        expected="sqlite:///optuna.db, postgresql://… or grpc://host:port",
        where="--storage",
        remedy="correct --storage",
    )


def open_storage(url: str, *, heartbeat: int, on_stale: StaleCallback) -> BaseStorage:
    """Open a storage; its tables are created once, however many processes and machines ask at the same moment.

    Parameters
    ----------
    url
        As `storage_url` gives it.
    heartbeat
        Seconds between signs of life of a running trial.
    on_stale
        Called with each trial whose worker has died.

    Raises
    ------
    StoreError
        It cannot be reached, read or written, or lies on a network file system.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would log every trial
    with storage_errors(shown_uri(url)), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeat and proxy
        if url.startswith("grpc://"):
            address = urlsplit(url)
            host = address.hostname or ""
            proxy = GrpcStorageProxy(host=f"[{host}]" if ":" in host else host, port=address.port or 13000)
            try:
                proxy.wait_server_ready(timeout=PROXY_TIMEOUT_S)
            except ConnectionError as error:
                raise StoreError(
                    f"nobody answered within {PROXY_TIMEOUT_S} s",
                    expected="an Optuna storage proxy",
                    where=shown_uri(url),
                    remedy="start the server, or correct --storage",
                ) from error
            return proxy
        file = database_file(url)
        if file is not None:
            _require_local_file(file)
        # several machines may create the tables at once
        with _advisory_lock(url) if file is None else store_lock(file.with_name(f"{file.name}.lock")):
            if file is not None and not file.exists():
                _create_database(file)
            _refuse_others_tables(url)
            try:
                storage = RDBStorage(
                    _unformatted(url),
                    engine_kwargs=_engine_arguments(url, file),
                    heartbeat_interval=heartbeat,
                    grace_period=GRACE * heartbeat,
                    heartbeat_stale_trial_callback=on_stale,
                )
            except RuntimeError as error:  # of its schema's version
                raise StoreError(
                    "tables of another version of Optuna",
                    expected=f"those of {optuna.__version__}",
                    where=shown_uri(url),
                    remedy="name another --storage, or see `optuna storage upgrade --help`",
                ) from error
            if file is not None:
                _take_turns(storage.engine)
            return storage


def _engine_arguments(url: str, file: Path | None) -> dict[str, Any]:
    if file is not None:
        return {"connect_args": {"timeout": BUSY_TIMEOUT_S}}
    # heartbeats are stored without a time zone: when clocks go forward, all workers would seem silent for an hour
    in_utc = {"connect_args": {"options": "-c timezone=UTC"}} if url.startswith("postgresql") else {}
    return {"pool_pre_ping": True, **in_utc}


def _unformatted(url: str) -> str:
    """Return an address as Optuna wants it: Optuna replaces what stands in braces."""
    return url.replace("{", "{{").replace("}", "}}")


def _refuse_others_tables(url: str) -> None:
    """Refuse a database of another program: Optuna would write its tables into it, and fail afterwards."""
    engine = sqlalchemy.create_engine(url)
    try:
        tables = sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()
    if "alembic_version" in tables and "version_info" not in tables:
        raise StoreError(
            f"the database of another program, with a table {min(tables)}",
            expected="a database for studies only",
            where=shown_uri(url),
            remedy="name another --storage",
        )


def _take_turns(engine: sqlalchemy.Engine) -> None:
    """Let each transaction on sqlite take the lock for writing as it begins, and readers not wait for it (WAL).

    Optuna relies on SELECT ... FOR UPDATE, which sqlite does not have: two workers would both read that a trial waits,
    or is stale, and both take it.
    """
    engine.dispose()  # the listeners are for new connections

    @sqlalchemy.event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # Python begins no transaction by itself
        connection.execute("PRAGMA journal_mode = wal")

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    with engine.connect():  # switches to WAL while nobody else opens the database
        pass


def _create_database(file: Path) -> None:
    """Create a database under another name and rename it: Optuna's own tools, which know no lock, may open it early."""
    new = file.with_name(f"{file.name}.new-{uuid4().hex}")
    try:
        RDBStorage(_unformatted(sqlite_uri(new))).engine.dispose()
        os.replace(new, file)
    finally:
        new.unlink(missing_ok=True)


def has_heartbeat(storage: BaseStorage) -> bool:
    """Return whether it is noticed when a trial's worker has died, so that another one makes the trial."""
    return isinstance(storage, RDBStorage)


@contextmanager
def _advisory_lock(url: str) -> Iterator[None]:
    """Hold a lock of PostgreSQL's; other databases have none."""
    if not url.startswith("postgresql"):
        yield
        return
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({_ADVISORY_LOCK})"))
            yield
    finally:
        engine.dispose()


def _require_local_file(file: Path) -> None:
    if file.is_dir():
        raise StoreError(
            "a folder", expected="a file", where=str(file), remedy="move it aside, or name a file by --storage"
        )
    if not file.parent.is_dir():
        raise StoreError("no such folder", where=str(file.parent), remedy="make it, or correct --storage")
    if not os.access(file.parent, os.W_OK):
        raise StoreError("cannot be written", where=str(file.parent), remedy="give yourself write permission there")
    folder = file.resolve().parent
    mounts = [one for one in psutil.disk_partitions(all=True) if folder.is_relative_to(one.mountpoint)]
    # of two mounts at one place the last one counts: an automount lies beneath the file system that it brought
    nearest = max(reversed(mounts), key=lambda one: len(one.mountpoint), default=None)
    if nearest is not None and any(sign in nearest.fstype.lower() for sign in NETWORK_FILE_SYSTEMS):
        raise StoreError(
            f"a network file system ({nearest.fstype}), on which sqlite loses trials",
            expected="a local disk",
            where=str(folder),
            remedy="name a server: --storage postgresql://…, or grpc://… in front of one machine's database",
        )
