"""The tracking store, made ready: created once, with its experiment, and pointing to where the project is now."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from stackseg.environment import apply_quiet_environment
from stackseg.errors import StoreError
from stackseg.tracking.relocate import RelocationReport, find_moved, relocate
from stackseg.tracking.sqlite import (
    ARTIFACT_FOLDER,
    find_or_create,
    open_store,
    prepare_database,
    ready_experiment,
)
from stackseg.tracking.store_errors import store_errors, store_lock
from stackseg.tracking.uri import (
    DATABASE_NAME,
    TRACKING_VARIABLE,
    database_file,
    project_root,
    shown_uri,
    tracking_uri,
)

__all__ = ["StoreReady", "prepare_store", "project_root", "store_errors", "tracking_uri"]

REACH_TIMEOUT_S = 5
_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


@dataclass(frozen=True)
class StoreReady:
    """A store to log to: experiment id, address, and what was mended if the project had been moved."""

    experiment_id: str
    uri: str
    relocated: RelocationReport | None


def prepare_store(root: Path, *, experiment: str) -> StoreReady:
    """Make the project's tracking store and its experiment ready, and point MLflow at them.

    Many processes may call it at once. A moved project is mended first (see `relocation`). Artifacts of a database
    store go to `root`/mlruns/<experiment id>, whatever the working directory; a server places its own. MLflow exports
    the address to `MLFLOW_TRACKING_URI`, so that child processes log to the same store.

    Parameters
    ----------
    root
        The project, as `project_root` gives it.
    experiment
        `project.experiment` of params.yaml.

    Raises
    ------
    StoreError
        The store cannot be reached, read or written, has another MLflow's schema, or the experiment is not usable.
    """
    apply_quiet_environment()
    root = root.resolve()
    uri = tracking_uri(root)
    database = database_file(uri)
    relocated = None
    with store_errors(shown_uri(uri)):
        if database is None:
            experiment_id = _prepare_server(root, uri, experiment)
        else:
            _require_writable(database)
            _refuse_remains(root)
            relocated = _mend_move(root)
            ready = ready_experiment(database, root, experiment)
            if ready is None:
                with store_lock(database.with_name(f"{database.name}.lock")):
                    ready = prepare_database(database, root, uri, experiment)
            experiment_id = ready
        import mlflow

        mlflow.set_tracking_uri(uri)
    return StoreReady(experiment_id=experiment_id, uri=uri, relocated=relocated)


def _mend_move(root: Path) -> RelocationReport | None:
    if find_moved(root) is None:
        return None
    report = relocate(root)
    return report if report.num_rows_total else None  # another process may have been quicker


def _require_writable(database: Path) -> None:
    folder = database.parent
    if not folder.is_dir():
        raise StoreError(
            f"the folder {folder} does not exist",
            expected="the folder of the tracking database",
            where=TRACKING_VARIABLE,
            remedy=f"make the folder, or unset {TRACKING_VARIABLE} to record runs in the project",
        )
    # sqlite writes beside its file as well (-wal, -shm).
    for path in (folder, database) if database.exists() else (folder,):
        if not os.access(path, os.W_OK):
            raise StoreError(
                f"{path} cannot be written",
                expected="a place to record runs",
                remedy=f"give yourself write permission there, or set {TRACKING_VARIABLE} to another store",
            )


def _refuse_remains(root: Path) -> None:
    """Refuse remains of MLflow's old file store, which a bare `mlflow ui` would open instead of the database."""
    if os.environ.get(TRACKING_VARIABLE):
        return
    remains = next((root / ARTIFACT_FOLDER).glob("[0-9]*/meta.yaml"), None)
    if remains is not None:
        raise StoreError(
            f"{remains} belongs to MLflow's old file store, which MLflow would use instead of {DATABASE_NAME}",
            expected=f"only artifacts in {ARTIFACT_FOLDER}",
            remedy=f"move {root / ARTIFACT_FOLDER} aside; to keep its runs, see `mlflow migrate-filestore --help`",
        )


def _prepare_server(root: Path, uri: str, experiment: str) -> str:
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme == "file":
        raise StoreError(
            f"{uri} is MLflow's old file store",
            expected="a database or a server",
            where=TRACKING_VARIABLE,
            remedy=f"unset {TRACKING_VARIABLE}; to keep its runs, see `mlflow migrate-filestore --help`",
        )
    if scheme in _DEFAULT_PORTS:
        _require_reachable(uri, _DEFAULT_PORTS[scheme])
        with store_lock(root / f"{DATABASE_NAME}.lock"):
            return find_or_create(open_store(uri, root), experiment, is_server=False)
    if scheme in ("http", "https"):
        _require_answer(uri)
    from mlflow import MlflowClient

    return find_or_create(MlflowClient(tracking_uri=uri), experiment, is_server=True)


def _require_reachable(uri: str, default_port: int) -> None:
    """Try the database's port first: MLflow would go on trying for two minutes."""
    from sqlalchemy import make_url

    address = make_url(uri)
    if address.host:
        try:
            socket.create_connection((address.host, address.port or default_port), timeout=REACH_TIMEOUT_S).close()
        except OSError as error:
            raise _not_reached(uri, error) from error


def _require_answer(uri: str) -> None:
    """Ask for any answer first: MLflow repeats its requests for minutes, which suits a run under way, not a start."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        http_request(
            host_creds=get_default_host_creds(uri),
            endpoint="/health",
            method="GET",
            max_retries=0,
            timeout=REACH_TIMEOUT_S,
            raise_on_status=False,
        )
    except MlflowException as error:
        raise _not_reached(uri, error) from error


def open_store_to_read(root: Path) -> bool:
    """Point MLflow at the project's tracking store and change nothing in it; return whether there is one yet.

    Raises
    ------
    StoreError
        The server does not answer.
    """
    apply_quiet_environment()
    uri = tracking_uri(root.resolve())
    database, scheme = database_file(uri), uri.partition(":")[0].partition("+")[0]
    with store_errors(shown_uri(uri)):
        if database is not None and (not database.is_file() or not database.stat().st_size):
            return False  # MLflow would make one
        if scheme in _DEFAULT_PORTS:
            _require_reachable(uri, _DEFAULT_PORTS[scheme])
        if scheme in ("http", "https"):
            _require_answer(uri)
        import mlflow

        mlflow.set_tracking_uri(uri)
    return True


def _not_reached(uri: str, error: Exception) -> StoreError:
    cause: BaseException = error
    while deeper := cause.__cause__ or cause.__context__:
        cause = deeper
    return StoreError(
        f"the tracking server does not answer ({type(cause).__name__})",
        expected=f"an answer within {REACH_TIMEOUT_S} s",
        where=shown_uri(uri),
        remedy=f"start the server, correct {TRACKING_VARIABLE}, or unset it to record runs in the project",
    )
