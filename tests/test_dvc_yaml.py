"""dvc.yaml, params.yaml, the typed sections and the imports hold each other to account."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grimp
import pytest
from ruamel.yaml import YAML

from stackseg.model.code_digest import TRAIN_STAGE_ROOMS
from stackseg.params import Params, read_params
from stackseg.params.file import dotted_keys, json_schema

ROOT = Path(__file__).parents[1]
ENTRY = {"catalog": "catalog.build", "train": "training.train", "evaluate": "evaluation.report"}
# rewording a message or how a file is put in place changes no result
NO_DEPENDENCY = {"atomic", "errors"}


@pytest.fixture(scope="module")
def stages() -> dict[str, Any]:
    tree = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
    return dict(tree["stages"])


@pytest.mark.parametrize("stage", ENTRY)
def test_a_stage_depends_on_the_folders_it_imports_from_and_on_no_other(stages: dict[str, Any], stage: str) -> None:
    entry = f"stackseg.{ENTRY[stage]}"
    modules = grimp.build_graph("stackseg").find_upstream_modules(entry) | {entry}
    rooms = {module.split(".")[1] for module in modules if "." in module} - NO_DEPENDENCY
    assert source_folders(stages[stage]) == {f"src/stackseg/{room}" for room in rooms}


def test_the_code_digest_covers_what_train_depends_on(stages: dict[str, Any]) -> None:
    assert source_folders(stages["train"]) == {f"src/stackseg/{room}" for room in TRAIN_STAGE_ROOMS}


def source_folders(stage: dict[str, Any]) -> set[str]:
    return {dep for dep in stage["deps"] if dep.startswith("src/")}


def test_every_dependency_and_param_exists(stages: dict[str, Any]) -> None:
    keys = set(dotted_keys())
    for stage in stages.values():
        assert set(stage["params"]) <= keys
        assert [dep for dep in stage["deps"] if dep.startswith("src/") and not (ROOT / dep).is_dir()] == []


def test_every_section_is_read_by_a_stage(stages: dict[str, Any]) -> None:
    listed = {name for stage in stages.values() for name in stage["params"]}
    # promoting is a decision and no stage
    assert listed == set(Params.model_fields) - {"format", "promotion", "search"}


def test_params_yaml_is_complete_and_so_is_its_schema() -> None:
    params = read_params(ROOT / "params.yaml")
    tree = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    for name in Params.model_fields:
        section = getattr(params, name)
        if hasattr(section, "model_fields_set"):
            assert set(tree[name]) == set(type(section).model_fields), name
    assert (ROOT / "params.schema.json").read_text() == json_schema()


def test_compiled_leftovers_change_no_stage() -> None:
    assert "__pycache__" in (ROOT / ".dvcignore").read_text()
