"""A tracking store made once: MLflow takes seconds for its tables."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from stackseg.tracking.store import prepare_store


@pytest.fixture(scope="session")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a store without any test's run, which is copied."""
    return tmp_path_factory.mktemp("untouched")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, untouched: Path) -> Path:
    """Return a project with a store, made over what a killed process left; tests add to it, but break only copies."""
    root = tmp_path_factory.mktemp("prepared") / "rock & ü project"
    root.mkdir()
    (root / "mlflow.db").touch()
    (root / "mlflow.db.new-1").write_bytes(b"SQLite format 3\0 half")
    forget_store()
    prepare_store(root, experiment="rocks")
    forget_store()
    _copy_database(root, untouched)
    return root


@pytest.fixture(scope="session")
def copy_store(prepared: Path, untouched: Path) -> Callable[[Path], None]:
    """Return a function that puts a copy of the store into a folder."""
    return lambda root: _copy_database(untouched, root)


def _copy_database(source: Path, target: Path) -> None:
    with (
        closing(sqlite3.connect(source / "mlflow.db")) as one,
        closing(sqlite3.connect(target / "mlflow.db")) as other,
    ):
        one.backup(other)


def forget_store() -> None:
    """Forget the store that MLflow points at, and DVC's root."""
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "DVC_ROOT"):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def _own_store() -> None:
    forget_store()
