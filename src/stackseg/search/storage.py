"""Where studies are kept: a database in the project by default, or whatever an address names."""

from __future__ import annotations

import json
import os
import sqlite3
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import optuna
import psutil
import sqlalchemy
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial

from stackseg.errors import StoreError
from stackseg.search.storage_errors import storage_errors
from stackseg.tracking.store_errors import store_lock
from stackseg.tracking.uri import database_file, shown_uri, sqlite_uri

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
    if scheme == "journal":
        return f"journal:{root / rest.removeprefix('//')}"
    if not rest.startswith("//"):
        raise _no_address(given, "no address")
    try:
        sqlalchemy.make_url(given)
        _ = urlsplit(given).port
    except (ValueError, sqlalchemy.exc.ArgumentError):  # it says the password
        raise _no_address(given, "no address") from None
    if scheme == "postgresql":  # SQLAlchemy would take it for another driver's
        return f"postgresql+psycopg:{rest}"
    return given


def _no_address(given: str, found: str) -> StoreError:
    return StoreError(
        f"{shown_uri(given) or 'an empty text'} is {found}",
        expected="sqlite:///optuna.db, postgresql://…, grpc://host:port or journal:file",
        where="--storage",
        remedy="correct --storage",
    )


def open_storage(url: str, *, root: Path, heartbeat: int, on_stale: StaleCallback) -> BaseStorage:
    """Open a storage, creating its tables once, however many processes and machines ask at the same moment.

    Parameters
    ----------
    url
        As `storage_url` gives it.
    root
        The project; the lock lies beside the database.
    heartbeat
        Seconds between signs of life of a running trial.
    on_stale
        Called with each trial whose worker has died.

    Raises
    ------
    StoreError
        It cannot be reached, read or written, or lies on a network file system.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would tell of every trial
    with storage_errors(shown_uri(url)), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeat and proxy
        if url.startswith("grpc://"):
            address = urlsplit(url)
            host = address.hostname or ""
            proxy = GrpcStorageProxy(host=f"[{host}]" if ":" in host else host, port=address.port or 13000)
            try:
                proxy.wait_server_ready(timeout=PROXY_TIMEOUT_S)
            except ConnectionError as error:
                raise _no_proxy(url) from error
            return proxy
        if url.startswith("journal:"):
            return _open_journal(Path(url.removeprefix("journal:")))
        file = database_file(url)
        arguments = {"connect_args": {"timeout": BUSY_TIMEOUT_S}} if file is not None else {"pool_pre_ping": True}

        def connect() -> RDBStorage:
            _refuse_others_tables(url)
            try:
                return RDBStorage(
                    _unformatted(url),
                    engine_kwargs=arguments,
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
            _refuse_folder(file)
            _refuse_network(file)
            with store_lock(file.with_name(f"{file.name}.lock")):
                _create_whole(file)
                _switch_to_wal(url)
                storage = connect()
                _take_turns(storage.engine)
                return storage
        with _advisory_lock(url):
            storage = connect()
            if url.startswith("postgresql"):
                _keep_one_clock(storage.engine)
            return storage


def _unformatted(url: str) -> str:
    """Return an address as Optuna wants it: it would fill in what stands in braces."""
    return url.replace("{", "{{").replace("}", "}}")


def _refuse_others_tables(url: str) -> None:
    """Refuse a database of another program: Optuna would write its tables among the others, and fail after it."""
    engine = sqlalchemy.create_engine(url)
    try:
        tables = sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()
    if "alembic_version" in tables and "version_info" not in tables:
        raise StoreError(
            f"the database of another program, with a table {min(tables)}",
            expected="a database of the studies' own",
            where=shown_uri(url),
            remedy="name another --storage",
        )


def _take_turns(engine: sqlalchemy.Engine) -> None:
    """Let each transaction on sqlite take the lock for writing as it begins.

    Optuna relies on SELECT ... FOR UPDATE, which sqlite does not have: two workers would both read that a trial waits,
    or is stale, and both take it.
    """
    engine.dispose()  # connections that were made before do not know of it

    @sqlalchemy.event.listens_for(engine, "connect")
    def begin_nothing_by_itself(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _keep_one_clock(engine: sqlalchemy.Engine) -> None:
    """Let sessions of PostgreSQL tell the time in UTC: heartbeats are stored without a zone.

    Where the clock is put forward in spring, all workers would have been silent for an hour.
    """
    engine.dispose()  # connections that were made before do not know of it

    @sqlalchemy.event.listens_for(engine, "connect")
    def tell_utc(connection: Any, _: object) -> None:
        connection.cursor().execute("SET TIME ZONE 'UTC'")
        connection.commit()  # what is rolled back is forgotten


def _no_proxy(url: str) -> StoreError:
    return StoreError(
        f"nobody answered within {PROXY_TIMEOUT_S} s",
        expected="an Optuna storage proxy",
        where=shown_uri(url),
        remedy="start the server, or correct --storage",
    )


def _refuse_folder(file: Path) -> None:
    if file.is_dir():
        raise StoreError(
            "a folder", expected="a file", where=str(file), remedy="move it aside, or name a file by --storage"
        )


def _open_journal(file: Path) -> JournalStorage:
    _refuse_folder(file)
    try:
        if file.exists():
            with file.open("rb") as lines:
                # Optuna passes over a damaged last line, until another follows it
                for last in deque(lines, maxlen=1):
                    json.loads(last)
        return JournalStorage(JournalFileBackend(str(file)))
    except (ValueError, KeyError) as error:  # no JSON, or none of Optuna's
        raise StoreError(
            "no journal of Optuna's, or a damaged one",
            where=str(file),
            remedy="name another file; of a damaged journal, remove the line that is torn",
        ) from error


def has_heartbeat(storage: BaseStorage) -> bool:
    """Return whether a trial whose worker has died is found out and taken up by another."""
    return isinstance(storage, RDBStorage)


@contextmanager
def _advisory_lock(url: str) -> Iterator[None]:
    """Hold PostgreSQL's lock of this name; other databases have none."""
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


def _create_whole(file: Path) -> None:
    """Create a database under another name and rename it: Optuna's own tools know no lock of ours."""
    if file.exists():
        return
    new = file.with_name(f"{file.name}.new-{uuid4().hex}")
    try:
        RDBStorage(_unformatted(sqlite_uri(new))).engine.dispose()
        os.replace(new, file)
    finally:
        for remains in file.parent.glob(f"{file.name}.new-*"):
            remains.unlink()


def _switch_to_wal(url: str) -> None:
    engine = sqlalchemy.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    try:
        with closing(engine.raw_connection()) as connection:
            mode = connection.cursor().execute("PRAGMA journal_mode = wal").fetchone()[0]
    finally:
        engine.dispose()
    if mode != "wal":
        raise StoreError(
            f"sqlite's WAL mode is not possible here (journal mode {mode})",
            expected="a local disk",
            where=shown_uri(url),
            remedy="name a server: --storage postgresql://…",
        )


def _refuse_network(file: Path) -> None:
    if not file.parent.is_dir():
        raise StoreError("no such folder", where=str(file.parent), remedy="make it, or correct --storage")
    if not os.access(file.parent, os.W_OK):
        raise StoreError("cannot be written", where=str(file.parent), remedy="give yourself write permission there")
    folder = file.resolve().parent
    mounts = [one for one in psutil.disk_partitions(all=True) if folder.is_relative_to(one.mountpoint)]
    # of several at one place the last: an automount lies beneath the file system that it brought
    nearest = max(reversed(mounts), key=lambda one: len(one.mountpoint), default=None)
    if nearest is not None and any(sign in nearest.fstype.lower() for sign in NETWORK_FILE_SYSTEMS):
        raise StoreError(
            f"a network file system ({nearest.fstype}), on which sqlite loses trials",
            expected="a local disk",
            where=str(folder),
            remedy="name a server: --storage postgresql://…, or grpc://… in front of one machine's database",
        )
