"""Bring the absolute paths in the tracking store up to date after the project's folder was moved or copied.

MLflow records where artifacts lie as absolute paths. `prepare_store` therefore leaves the project's folder as a tag on
its experiments; where tag and folder differ, the folder was moved, or this is a copy. In a copy the original may still
be there: the database is the copy's own all the same, and must not make it write into the original.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePath
from urllib.parse import urlsplit
from urllib.request import url2pathname

from stackseg.errors import StoreError
from stackseg.tracking.sqlite import connect
from stackseg.tracking.store_errors import store_errors, store_lock
from stackseg.tracking.uri import own_database, shown_uri, tracking_uri

ROOT_TAG = "stackseg.project_root"

# Every column in which MLflow 3.17 keeps a path that it will follow. What only tells where something came from
# (the tag mlflow.source.name, the inputs of spans, MLmodel files) stays as it was written.
_LOCATIONS = (
    ("experiments", "artifact_location", ""),
    ("runs", "artifact_uri", ""),
    ("logged_models", "artifact_location", ""),
    ("model_versions", "storage_location", ""),
    ("model_versions", "source", ""),
    ("trace_tags", "value", "key IN ('mlflow.artifactLocation', 'mlflow.trace.archiveLocation')"),
    ("experiment_tags", "value", f"key = '{ROOT_TAG}'"),
)
_DATASET_SOURCES = ("datasets", "dataset_source", "dataset_source_type = 'local'")


@dataclass(frozen=True)
class RelocationReport:
    """What a relocation changed: the old folders, the new one, and `table.column` → rows rewritten."""

    old: tuple[str, ...]
    new: str
    num_rows: dict[str, int]

    @property
    def num_rows_total(self) -> int:
        """Return the number of rows rewritten in all tables."""
        return sum(self.num_rows.values())

    def sentence(self) -> str:
        """Return on one line what was done, for the person at the terminal."""
        return (
            f"The project was at {' and '.join(self.old)} when its runs were recorded and is at {self.new} now: "
            f"{self.num_rows_total} recorded paths were brought up to date"
        )


def find_moved(root: Path) -> str | None:
    """Return the folder at which the project was when its runs were recorded, or None if it is still there.

    Reads only. None also where the store lies outside the project: such a store does not move with it.

    Raises
    ------
    StoreError
        The database cannot be read.
    """
    root = root.resolve()
    database = own_database(root)
    if database is None or not database.is_file():
        return None
    with store_errors(str(database)), closing(connect(database, "ro")) as connection:
        return next(iter(_recorded_roots(connection, root)), None)


def relocate(root: Path, old_prefix: str | None = None) -> RelocationReport:
    """Rewrite recorded paths under the old project folder to `root`, in one transaction.

    Doing it twice changes nothing; locations elsewhere (s3://, other folders) are left alone.

    Parameters
    ----------
    root
        The project's folder as it is now.
    old_prefix
        The project's folder as it was; by default all that the store's experiments name.

    Raises
    ------
    StoreError
        There is no database of the project's own, it cannot be written, or `old_prefix` is not absolute.
    """
    root = root.resolve()
    database = own_database(root)
    if database is None or not database.is_file():
        raise StoreError(
            f"the runs are recorded in {shown_uri(tracking_uri(root))}",
            expected="a database inside the project, as only that moves with it",
            where=str(root),
            remedy="run the command in a project with an mlflow.db, without MLFLOW_TRACKING_URI",
        )
    if old_prefix is not None and not PurePath(old_prefix).is_absolute():
        raise StoreError(f"the old folder is given as {old_prefix}", expected="an absolute path", where=str(root))
    lock_file = database.with_name(f"{database.name}.lock")
    with store_errors(str(database)), store_lock(lock_file), closing(connect(database, "rw")) as connection:
        connection.execute("BEGIN IMMEDIATE")
        old = _recorded_roots(connection, root) if old_prefix is None else (str(PurePath(old_prefix)),)
        num_rows = _rewrite(connection, old, root)
        connection.execute("COMMIT")
    return RelocationReport(old=old, new=str(root), num_rows=num_rows)


def moved_location(location: str, old: tuple[str, ...], root: Path) -> str:
    """Return a path or file URI with the old folder replaced by `root`; other locations come back as they are.

    Folders match whole: /a/proj does not match /a/project2. What is already under `root` stays, so that a project
    moved into a subfolder of its old one is not moved twice.
    """
    is_uri = location.startswith("file:")
    path = PurePath(url2pathname(urlsplit(location).path) if is_uri else location)
    for folder in sorted(old, key=len, reverse=True):
        if path.is_relative_to(folder) and not (root.is_relative_to(folder) and path.is_relative_to(root)):
            target = root / path.relative_to(folder)
            return target.as_uri() if is_uri else str(target)
    return location


def _recorded_roots(connection: sqlite3.Connection, root: Path) -> tuple[str, ...]:
    if not _has_column(connection, "experiment_tags", "value"):
        return ()
    rows = connection.execute(
        "SELECT DISTINCT value FROM experiment_tags WHERE key = ? AND value <> ? ORDER BY value", (ROOT_TAG, str(root))
    )
    return tuple(value for (value,) in rows)


def _rewrite(connection: sqlite3.Connection, old: tuple[str, ...], root: Path) -> dict[str, int]:
    def location(value: str | None) -> str | None:
        return None if value is None else moved_location(value, old, root)

    def dataset_source(value: str) -> str:
        source = json.loads(value)
        moved = {**source, "uri": moved_location(source["uri"], old, root)} if "uri" in source else source
        return value if moved == source else json.dumps(moved)

    connection.create_function("moved_location", 1, location, deterministic=True)
    connection.create_function("moved_dataset_source", 1, dataset_source, deterministic=True)
    columns = [("moved_location", *entry) for entry in _LOCATIONS]
    columns.append(("moved_dataset_source", *_DATASET_SOURCES))
    num_rows = {}
    for function, table, column, condition in columns:
        if _has_column(connection, table, column):
            cursor = connection.execute(
                f"UPDATE {table} SET {column} = {function}({column}) "
                f"WHERE {condition or 'TRUE'} AND {function}({column}) IS NOT {column}"
            )
            num_rows[f"{table}.{column}"] = cursor.rowcount
    return num_rows


def _has_column(connection: sqlite3.Connection, table: str, column: str) -> bool:
    return any(name == column for _, name, *_ in connection.execute(f"PRAGMA table_info({table})"))
