"""Data on which no trial may be made: changed planes, and test planes that would reach a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from stackseg.errors import StacksegError
from stackseg.search.space.parse import read_space
from stackseg.search.space.preflight import read_search_catalog
from tiny_projects import Project, make_tiny_project

LR = {"train.lr": {"low": 1e-4, "high": 1e-2, "log": True}}
CONTEXT = {"model.context_slices": {"low": 0, "high": 3}}


def project_of(folder: Path, settings: dict[str, Any], space: dict[str, Any] = LR, folds: int | None = None) -> Project:
    project = make_tiny_project(folder, {"search": {"space": space, "folds": folds}, **settings}, num_planes=24)
    (folder / "catalog.json").write_text(project.catalog.model_dump_json())
    return project


def read(project: Project) -> None:
    read_search_catalog(read_space(project.params), project.folder / "catalog.json", project.data)


def told(project: Project) -> str:
    with pytest.raises(StacksegError) as caught:
        read(project)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fill_with_noise(specimen: Path, planes: list[int]) -> None:
    assert planes
    random = np.random.default_rng(3)
    for name, values in (("images.tif", np.arange(65536)), ("masks.tif", np.array([0, 3, 7]))):
        stack = tifffile.imread(specimen / name)
        stack[planes] = random.choice(values, stack[planes].shape)
        tifffile.imwrite(specimen / name, stack, metadata={"axes": "ZYX"})


def test_planes_that_have_changed_are_refused_unless_they_are_of_the_test_part(tmp_path: Path) -> None:
    project = project_of(tmp_path, {})
    fill_with_noise(project.data / "rock", [ref.z for ref, _ in project.catalog.planes("test")])
    read(project)
    fill_with_noise(project.data / "rock", [ref.z for ref, _ in project.catalog.planes("training")])
    assert "has changed since the catalogue was made. `dvc repro`" in told(project)


def test_with_folds_planes_of_the_gap_are_compared_too(tmp_path: Path) -> None:
    project = project_of(tmp_path, {"split.gap": 1}, folds=3)
    fill_with_noise(project.data / "rock", [ref.z for ref, _ in project.catalog.planes("gap")])
    assert "has changed since the catalogue was made. `dvc repro`" in told(project)


def test_more_folds_than_units_are_refused(tmp_path: Path) -> None:
    assert "there are fewer units than folds" in told(project_of(tmp_path, {}, folds=60))


def test_intensities_of_whole_specimens_with_test_planes_are_refused(tmp_path: Path) -> None:
    found = told(project_of(tmp_path, {"intensity.scope": "specimen"}))
    assert "intensity.scope: intensities of the whole of rock, its test planes among them, would reach" in found


@pytest.mark.parametrize("folds", [None, 3])
def test_neighbours_from_the_test_part_are_refused(tmp_path: Path, folds: int | None) -> None:
    found = told(project_of(tmp_path, {"split.gap": 2}, CONTEXT, folds))
    assert "model.context_slices: with 3 neighbours on each side rock/" in found
    assert "expected a test part that no training has seen. Set it to at most 2, or widen split.gap" in found
