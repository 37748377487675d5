"""A database as MLflow's store: create it once, check it quickly, find or create an experiment in it."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

from stackseg.errors import StoreError
from stackseg.tracking.relocate import BUSY_TIMEOUT_S, ROOT_TAG
from stackseg.tracking.uri import TRACKING_VARIABLE, own_database, sqlite_uri

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

ARTIFACT_FOLDER = "mlruns"


class Experiments(Protocol):
    """What MLflow's client and its database store have in common here."""

    def get_experiment_by_name(self, name: str) -> Experiment | None:
        """Return the experiment, deleted or not, or None."""

    def create_experiment(self, name: str) -> str:
        """Create the experiment and return its id."""


def ready_experiment(database: Path, root: Path, name: str) -> str | None:
    """Return the id of an experiment if database, schema, WAL mode and experiment are in order, else None.

    Reads the file directly: MLflow's own check of the schema takes half a second.
    """
    if not _has_content(database):
        return None
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT_S)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchall():
            return None
        revisions = {revision for (revision,) in connection.execute("SELECT version_num FROM alembic_version")}
        journal = connection.execute("PRAGMA journal_mode").fetchone()[0]
        if revisions != _schema_heads() or journal != "wal":
            return None
        row = connection.execute(
            "SELECT e.experiment_id, e.lifecycle_stage, e.artifact_location, t.value FROM experiments e "
            "LEFT JOIN experiment_tags t ON t.experiment_id = e.experiment_id AND t.key = ? WHERE e.name = ?",
            (ROOT_TAG, name),
        ).fetchone()
    if row is None:
        return None
    experiment_id, stage, location, recorded_root = row
    _require_usable(name, str(experiment_id), stage, location)
    is_tagged = recorded_root == str(root) or own_database(root) is None
    return str(experiment_id) if is_tagged else None


def prepare_database(database: Path, root: Path, uri: str, experiment: str) -> str:
    """Create what is missing of database and experiment and return the experiment's id; to be called under the lock."""
    if not _has_content(database):
        _create_database(database, root)
    _switch_to_wal(database)
    store = open_store(uri, root)
    experiment_id = find_or_create(store, experiment, is_server=False)
    if own_database(root) is not None:
        from mlflow.entities import ExperimentTag

        tag = ExperimentTag(ROOT_TAG, str(root))
        store.set_experiment_tag(experiment_id, tag)
    return experiment_id


def open_store(uri: str, root: Path) -> SqlAlchemyStore:
    """Open a database by MLflow's own class, creating its tables if there are none; artifacts go to `root`/mlruns."""
    with _quiet_creation():
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        artifact_root = (root / ARTIFACT_FOLDER).as_uri()
        return SqlAlchemyStore(uri, artifact_root)


def find_or_create(experiments: Experiments, name: str, *, is_server: bool) -> str:
    """Return the id of the experiment called `name`, creating it if it is not there.

    Raises
    ------
    StoreError
        It was deleted, or its artifacts can only be reached through a server.
    """
    from mlflow.exceptions import MlflowException

    found = experiments.get_experiment_by_name(name)
    if found is None:
        try:
            return str(experiments.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = experiments.get_experiment_by_name(name)  # another machine was quicker
            if found is None:
                raise
    location = "" if is_server else found.artifact_location
    _require_usable(name, found.experiment_id, found.lifecycle_stage, location)
    return str(found.experiment_id)


def _has_content(database: Path) -> bool:
    return database.is_file() and database.stat().st_size > 0


def _require_usable(name: str, experiment_id: str, stage: str, location: str) -> None:
    another = "give another name as project.experiment in params.yaml"
    if stage != "active":
        raise StoreError(
            f"the experiment '{name}' was deleted",
            expected="an active experiment",
            remedy=f"type `mlflow experiments restore --experiment-id {experiment_id}`, or {another}",
        )
    if location.startswith("mlflow-artifacts:"):
        raise StoreError(
            f"the experiment '{name}' was made through an MLflow server and keeps its artifacts there ({location})",
            expected="an experiment with artifacts in a folder",
            remedy=f"{another}, or set {TRACKING_VARIABLE} to the server's address",
        )


def _schema_heads() -> set[str]:
    """Return the newest revisions of MLflow's schema, read from the text of its migrations."""
    spec = importlib.util.find_spec("mlflow")
    folders = [] if spec is None else spec.submodule_search_locations or []
    revisions: set[str] = set()
    replaced: set[str] = set()
    for folder in folders:
        for migration in Path(folder).glob("store/db_migrations/versions/*.py"):
            text = migration.read_text(encoding="utf-8")
            for line in re.findall(r"^(?:down_)?revision\b.*", text, flags=re.MULTILINE):
                (replaced if line.startswith("down_") else revisions).update(re.findall(r"[\"'](\w+)[\"']", line))
    return revisions - replaced


def _create_database(database: Path, root: Path) -> None:
    """Create the database under another name and rename it, so that nobody ever sees a half-made one."""
    # A name of its own for each try: MLflow keeps connections by address, also to the file of a try that failed.
    new = database.with_name(f"{database.name}.new-{uuid4().hex}")
    try:
        open_store(sqlite_uri(new), root).engine.dispose()
        if not _has_content(database):  # a bare `mlflow ui`, which knows no lock of ours, may have been quicker
            os.replace(new, database)
    finally:
        for remains in database.parent.glob(f"{database.name}.new-*"):
            remains.unlink()


def _switch_to_wal(database: Path) -> None:
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT_S)) as connection:
        journal = connection.execute("PRAGMA journal_mode = wal").fetchone()[0]
    if journal != "wal":
        raise StoreError(
            f"sqlite's WAL mode is not possible here (journal mode {journal})",
            expected="a local disk",
            where=str(database),
            remedy=f"set {TRACKING_VARIABLE} to a server or to a database on a local disk",
        )


@contextmanager
def _quiet_creation() -> Iterator[None]:
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
