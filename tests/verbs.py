"""Verbs run in the process of the tests: one of their own would spend most of its time on importing libraries."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stackseg.cli.main import app


@contextmanager
def own_store() -> Iterator[None]:
    """MLflow keeps its address in the process and in the environment: whoever comes next must not inherit it."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        yield
    finally:
        if mlflow := sys.modules.get("mlflow"):
            mlflow.set_tracking_uri(None)
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        if given is not None:
            os.environ["MLFLOW_TRACKING_URI"] = given


@contextmanager
def inside(root: Path) -> Iterator[None]:
    """Work in a project for a while, on the CPU."""
    with pytest.MonkeyPatch.context() as there, own_store():
        there.chdir(root)
        there.setenv("STACKSEG_DEVICE", "cpu")
        yield


def verb(root: Path, *words: str) -> str:
    """Run a verb in a project and return what it says; errors are raised."""
    with inside(root):
        done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output
