"""DVC keeps outputs as links into its cache: evaluate and register hand MLflow files all the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from served_projects import BIN, environment, run


@pytest.mark.slow
def test_outputs_that_are_links_into_the_cache_are_scored_and_registered(tiny_pipeline: Path) -> None:
    quiet = {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": os.environ["DVC_SITE_CACHE_DIR"]}
    env = environment(PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}") | quiet
    run(tiny_pipeline, env, "dvc", "config", "cache.type", "symlink")
    run(tiny_pipeline, env, "dvc", "add", "data")
    said = run(tiny_pipeline, env, "dvc", "repro")
    assert "registered stackseg version 1" in said
    assert next((tiny_pipeline / "outputs" / "model").iterdir()).is_symlink()
    (tiny_pipeline / "mlflow.db").unlink()  # a colleague's clone, whose outputs come from the cache
    assert "registered stackseg version 1" in run(tiny_pipeline, env, "stackseg", "register")
