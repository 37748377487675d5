"""A tracking store for the tests of the registry: made once, with a registered model of its own for each test."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from verbs import own_store


@pytest.fixture(scope="session")
def _store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from stackseg.tracking.store import prepare_store

    root = tmp_path_factory.mktemp("store")
    for name in ("params.yaml", "dvc.yaml"):
        (root / name).touch()
    # made before the first test of the session begins, so that no test would take its address back
    with own_store():
        prepare_store(root, experiment="stackseg")
    return root


@pytest.fixture
def registry(_store: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Return a registered model of this test's; the project in whose store it is becomes the working directory.

    Nothing but the store is there from other tests.
    """
    from mlflow.tracking import MlflowClient

    from stackseg.tracking.store import open_store_to_read

    for left in _store.iterdir():
        if left.is_dir() and left.name != "mlruns":
            shutil.rmtree(left)
    name = f"rock model {uuid4().hex[:8]}"
    (_store / "params.yaml").write_text(f"format: 1\nproject:\n  model_name: {name}\n")
    monkeypatch.chdir(_store)
    open_store_to_read(_store)
    MlflowClient().create_registered_model(name)
    return Registry(_store, name)


class Registry:
    """The project's folder, the registered model's name, and what a test wants of them."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.name = name
        self.lock = root / "mlflow.db.lock"

    def add_version(self, source: str, **options: Any) -> str:
        """Create a version and return its number."""
        from mlflow.tracking import MlflowClient

        return str(MlflowClient().create_model_version(self.name, source, **options).version)
