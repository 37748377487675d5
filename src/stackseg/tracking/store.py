"""The tracking store, prepared: made once, with its experiment, and pointing to where the project is now."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from stackseg.environment import apply_quiet_environment
from stackseg.errors import StoreError
from stackseg.tracking.relocate import ROOT_TAG, RelocationReport, find_moved, relocate
from stackseg.tracking.sqlite import make_database
from stackseg.tracking.store_errors import store_errors, store_lock
from stackseg.tracking.uri import (
    DATABASE_NAME,
    TRACKING_VARIABLE,
    database_file,
    own_database,
    project_root,
    require_whole_server,
    shown_uri,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

__all__ = ["PreparedStore", "prepare_store", "project_root", "store_errors", "tracking_uri"]

ARTIFACT_FOLDER = "mlruns"
REACH_TIMEOUT_S = 5
_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}

# what the experiment is; MLflow 3.17's page shows runs first where its address or the browser's choice says
# workflowType=machine_learning
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
EXPERIMENT_NOTE = (
    "Segmentation models, trained by stackseg. A run is one training: compare runs by `validation/mean_iou`, "
    "which training watches, and by `test/mean_iou`, which `stackseg evaluate` adds with its interval. A run's "
    "description says which data, split and commit it comes from; its images show the same validation planes epoch "
    "by epoch. Runs called *study* hold the trials of a search, runs called *folds* those of a cross-validation."
)


@dataclass(frozen=True)
class PreparedStore:
    """A store to log to: experiment id, address, and what was relocated if the project had been moved."""

    experiment_id: str
    uri: str
    relocated: RelocationReport | None


def prepare_store(root: Path, *, experiment: str) -> PreparedStore:
    """Make the project's tracking store and its experiment if they are missing, and point MLflow at them.

    Many processes may call it at once. A moved project is relocated first. Artifacts of a database store go to
    `root`/mlruns/<experiment id>, whatever the working directory; a server places its own. MLflow exports the address
    to `MLFLOW_TRACKING_URI`, so that child processes log to the same store.

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
    with store_errors(shown_uri(uri)), _quiet_mlflow():
        if database is None:
            _prepare_server(root, uri)
        else:
            _require_writable(database)
            _refuse_file_store(root)
            make_database(
                database,
                lambda new: _open_database(new, root).engine.dispose(),
                remedy=f"set {TRACKING_VARIABLE} to a server or to a database on a local disk",
            )
            relocated = _relocate_if_moved(root)
        experiment_id = _prepare_experiment(root, uri, experiment)
        import mlflow

        mlflow.set_tracking_uri(uri)
    return PreparedStore(experiment_id=experiment_id, uri=uri, relocated=relocated)


def _open_database(uri: str, root: Path) -> SqlAlchemyStore:
    """Open a database by MLflow's own class, making its tables if there are none; artifacts go to `root`/mlruns."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    return SqlAlchemyStore(uri, (root / ARTIFACT_FOLDER).as_uri())


def _relocate_if_moved(root: Path) -> RelocationReport | None:
    if find_moved(root) is None:
        return None
    report = relocate(root)
    return report if report.num_rows_total else None  # another process may have been quicker


def _prepare_experiment(root: Path, uri: str, name: str) -> str:
    """Return the id of the experiment called `name`, creating it and what is missing of its tags."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(name)
    if found is None:
        # only an opened database can be told where artifacts go
        creator = _open_database(uri, root) if _is_database(uri) else client
        try:
            creator.create_experiment(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was quicker
                raise
        found = cast("Experiment", client.get_experiment_by_name(name))
    _require_usable(found, uri)
    tags = {KIND_TAG: KIND, MLFLOW_RUN_NOTE: EXPERIMENT_NOTE}
    missing = {key: value for key, value in tags.items() if key not in found.tags}
    if own_database(root) is not None and found.tags.get(ROOT_TAG) != str(root):
        missing[ROOT_TAG] = str(root)
    for key, value in missing.items():
        client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def _require_usable(experiment: Experiment, uri: str) -> None:
    another = "give another name as project.experiment in params.yaml"
    if experiment.lifecycle_stage != "active":
        raise StoreError(
            f"the experiment '{experiment.name}' was deleted",
            expected="an active experiment",
            remedy=f"type `mlflow experiments restore --experiment-id {experiment.experiment_id}`, or {another}",
        )
    location = str(experiment.artifact_location)
    if location.startswith("mlflow-artifacts:") and _is_database(uri):
        raise StoreError(
            f"the experiment '{experiment.name}' was made through an MLflow server and keeps its artifacts there "
            f"({location})",
            expected="an experiment with artifacts in a folder",
            remedy=f"{another}, or set {TRACKING_VARIABLE} to the server's address",
        )


def _require_writable(database: Path) -> None:
    folder = database.parent
    # sqlite writes beside its file as well (-wal, -shm)
    for path in (folder, database) if database.exists() else (folder,):
        if not os.access(path, os.W_OK):
            raise StoreError(
                f"{path} cannot be written" if path.exists() else f"the folder {folder} does not exist",
                expected="a place to record runs",
                where=TRACKING_VARIABLE if os.environ.get(TRACKING_VARIABLE) else "",
                remedy=f"make it and give yourself write permission there, set {TRACKING_VARIABLE} to another store, "
                f"or unset {TRACKING_VARIABLE} to record runs in the project",
            )


def _refuse_file_store(root: Path) -> None:
    """Refuse remains of MLflow's old file store, which a bare `mlflow ui` would open instead of the database."""
    remains = next((root / ARTIFACT_FOLDER).glob("[0-9]*/meta.yaml"), None)
    if remains is not None and not os.environ.get(TRACKING_VARIABLE):
        raise StoreError(
            f"{remains} belongs to MLflow's old file store, which MLflow would use instead of {DATABASE_NAME}",
            expected=f"only artifacts in {ARTIFACT_FOLDER}",
            remedy=f"move {root / ARTIFACT_FOLDER} aside; to keep its runs, see `mlflow migrate-filestore --help`",
        )


def _prepare_server(root: Path, uri: str) -> None:
    """Refuse an address that nobody answers at, and make the tables of a database server."""
    if _scheme(uri) == "file":
        raise StoreError(
            f"{uri} is MLflow's old file store",
            expected="a database or a server",
            where=TRACKING_VARIABLE,
            remedy=f"unset {TRACKING_VARIABLE}; to keep its runs, see `mlflow migrate-filestore --help`",
        )
    require_answer(uri)
    if _is_database(uri):
        with store_lock(root / f"{DATABASE_NAME}.lock"):
            _open_database(uri, root)


def require_answer(uri: str) -> None:
    """Ask a server for any answer: MLflow would go on trying for minutes, which suits a run under way, not a start.

    Raises
    ------
    StoreError
        None came within seconds, or a database server lets nobody in. Addresses that are neither http nor of a database
        server are not asked.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        if _scheme(uri) in _DEFAULT_PORTS:
            _connect_once(uri)
        elif _scheme(uri) in ("http", "https"):
            creds = get_default_host_creds(uri)
            http_request(creds, "/health", "GET", max_retries=0, timeout=REACH_TIMEOUT_S, raise_on_status=False)
    except (OSError, MlflowException) as error:
        cause: BaseException = error
        while deeper := cause.__cause__ or cause.__context__:
            cause = deeper
        raise StoreError(
            f"the tracking server does not answer ({type(cause).__name__})",
            expected=f"an answer within {REACH_TIMEOUT_S} s",
            where=shown_uri(uri),
            remedy=f"start the server, correct {TRACKING_VARIABLE}, or unset it to record runs in the project",
        ) from error


def _connect_once(uri: str) -> None:
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.exc import ArgumentError

    try:
        address = make_url(uri)
    except (ValueError, ArgumentError):  # it says the password
        raise StoreError(
            f"{shown_uri(uri)} is no address",
            expected="one such as postgresql://user@host:port/database",
            where=TRACKING_VARIABLE,
            remedy=f"correct {TRACKING_VARIABLE}",
        ) from None
    require_whole_server(uri, address, TRACKING_VARIABLE)
    if address.host:  # where nobody answers, a driver may wait for minutes
        place = (address.host, address.port or _DEFAULT_PORTS[_scheme(uri)])
        socket.create_connection(place, timeout=REACH_TIMEOUT_S).close()
    engine = create_engine(address)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _is_database(uri: str) -> bool:
    return database_file(uri) is not None or _scheme(uri) in _DEFAULT_PORTS


def _scheme(uri: str) -> str:
    """Return the kind of an address, without the driver that may follow it."""
    return uri.partition(":")[0].partition("+")[0]


@contextmanager
def _quiet_mlflow() -> Iterator[None]:
    """Keep MLflow's and alembic's account of every migration, and MLflow's tracebacks, off the terminal."""
    levels = {"alembic": logging.WARNING, "mlflow.store.db.utils": logging.CRITICAL}
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def open_store_to_read(root: Path) -> bool:
    """Point MLflow at the project's tracking store and change nothing in it; return whether there is one yet.

    Raises
    ------
    StoreError
        The server does not answer.
    """
    apply_quiet_environment()
    uri = tracking_uri(root.resolve())
    database = database_file(uri)
    with store_errors(shown_uri(uri)):
        if database is not None and (not database.is_file() or not database.stat().st_size):
            return False  # MLflow would make one
        require_answer(uri)
        import mlflow

        mlflow.set_tracking_uri(uri)
    return True
