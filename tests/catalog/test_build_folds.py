"""The catalogue of a fold: what `catalog` would write for it, without reading the test part."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from stackseg.catalog.build import build_catalog, fold_catalog, folded
from stackseg.dataset.files import stack as stacks
from stackseg.dataset.records import Catalog
from stackseg.errors import DataError
from stackseg.params import Params

CLASSES = [
    {"name": "void", "raw": 0, "display": "#000000"},
    {"name": "grain", "raw": 5, "display": "#ffffff"},
]
NUM_SPECIMENS, NUM_PLANES = 5, 8
NAMED = {"validation": ["s0/3"], "test": ["s1/2-4", "s4/*"], "unused": ["s2/0"]}
METHODS: dict[str, dict[str, Any]] = {
    "blocks": {"split.method": "blocks", "split.gap": 1},
    "blocks-gap": {"split.method": "blocks", "split.gap": 0},
    "specimens": {"split.method": "specimens"},
    "random": {"split.method": "random"},
    "groups-size": {"split.method": "groups", "split.group_size": 2},
    "groups-file": {"split.method": "groups"},
    "explicit": {"split.method": "explicit", "split.explicit": NAMED},
}


def params(more: Mapping[str, Any]) -> Params:
    return Params().override({"data.classes": CLASSES, "split.validation": 0.2, "split.test": 0.2, **more})


def planes(num_planes: int, seed: int) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    masks = (random.random((num_planes, 24, 20)) < 0.4).astype(np.uint8) * 5
    images = (masks.astype(np.int64) * 400 + random.integers(0, 900, masks.shape)).astype(np.uint16)
    return images, masks


def write(folder: Path, images: Any, masks: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, stack in (("images.tif", images), ("masks.tif", masks)):
        tifffile.imwrite(folder / name, stack, photometric="minisblack", metadata={"axes": "ZYX"})


def written(folder: Path) -> Path:
    """Write stacks and the groups of their planes."""
    lines = ["specimen,plane,group"]
    for place in range(NUM_SPECIMENS):
        write(folder / f"s{place}", *planes(NUM_PLANES, place))
        lines += [f"s{place},{z},{'abcdefg'[(z + place) % 7]}" for z in range(NUM_PLANES)]
    (folder / "groups.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("folds") / "data")


def comparable(catalog: Catalog) -> dict[str, Any]:
    """Return what the catalogue of a fold says as if it had been written for it."""
    said = catalog.model_dump(exclude={"leakage"})
    return said | {"warnings": [one for one in catalog.warnings if not one.startswith("the split leaks")]}


@functools.cache
def described_by(method: str, data: Path) -> Catalog:
    return build_catalog(data, params(METHODS[method]))


@functools.cache
def three_folds(method: str, data: Path) -> list[Catalog]:
    return [fold_catalog(described_by(method, data), data, fold=fold, folds=3) for fold in range(3)]


@pytest.mark.parametrize("method", METHODS)
def test_it_is_the_catalogue_of_the_fold(data: Path, method: str) -> None:
    for fold, found in enumerate(three_folds(method, data)):
        expected = build_catalog(data, params({**METHODS[method], "split.folds": 3, "split.fold": fold}))
        assert comparable(found) == comparable(expected)
        assert found.planes("test") == described_by(method, data).planes("test")


@pytest.mark.parametrize("method", METHODS)
def test_every_plane_outside_the_test_part_validates_once(data: Path, method: str) -> None:
    described, folds = described_by(method, data), three_folds(method, data)
    validated = [{ref for ref, _ in one.planes("validation")} for one in folds]
    assert all(validated)
    assert not any(one & other for one, other in itertools.combinations(validated, 2))
    trained = {ref for one in folds for ref, _ in one.planes("training")}
    assert set.union(*validated) >= trained
    assert not set.union(*validated) & {ref for ref, _ in described.planes("test", "unused")}


@pytest.mark.parametrize("scope", ["dataset", "specimen", "plane"])
@pytest.mark.parametrize("colour", ["keep", "rgb"])
def test_statistics_are_those_of_its_training_part(data: Path, scope: str, colour: str) -> None:
    asked = {"split.gap": 0, "intensity.scope": scope, "intensity.low_percentile": 2.0, "data.colour": colour}
    described = build_catalog(data, params(asked))
    found = [fold_catalog(described, data, fold=fold, folds=4) for fold in range(4)]
    for fold, one in enumerate(found):
        expected = build_catalog(data, params({**asked, "split.folds": 4, "split.fold": fold}))
        assert (one.intensity, one.profile) == (expected.intensity, expected.profile)
        assert (one.intensity.statistics is None) == (scope != "dataset")
    assert len({one.profile.model_dump_json() for one in found}) == 4


@pytest.mark.parametrize("method", METHODS)
def test_pixels_of_the_test_part_change_nothing(tmp_path: Path, data: Path, method: str) -> None:
    described, before = described_by(method, data), three_folds(method, data)
    held_out: dict[str, list[int]] = {}
    for ref, _ in described.planes("test"):
        held_out.setdefault(ref.specimen, []).append(ref.z)
    for place in range(NUM_SPECIMENS):
        images, masks = planes(NUM_PLANES, place)
        chosen = held_out.get(f"s{place}", [])
        noise = np.random.default_rng(99).integers(0, 65535, images[chosen].shape)
        images[chosen], masks[chosen] = noise, 7  # no class has 7
        write(tmp_path / f"s{place}", images, masks)
    assert [fold_catalog(described, tmp_path, fold=fold, folds=3) for fold in range(3)] == before
    # other planes do
    seen = described.planes("training")[0][0]
    images, masks = planes(NUM_PLANES, int(seen.specimen[1:]))
    images[seen.z] += 3000
    write(tmp_path / seen.specimen, images, masks)
    assert [fold_catalog(described, tmp_path, fold=fold, folds=3) for fold in range(3)] != before


@pytest.mark.parametrize("method", ["blocks", "random", "explicit"])
def test_planes_of_the_test_part_are_not_even_decoded(data: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    described = described_by(method, data)
    read: set[tuple[str, int]] = set()
    plane = stacks.Stack.plane

    def noted(self: stacks.Stack, z: int) -> Any:
        read.add((str(self.info.path.relative_to(data)), z))
        return plane(self, z)

    monkeypatch.setattr(stacks.Stack, "plane", noted)
    fold_catalog(described, data, fold=1, folds=3)
    others = described.planes("training", "validation", "gap", "unused")
    assert read == {(f"{ref.specimen}/images.tif", ref.z) for ref, _ in others}


def test_the_leakage_is_that_of_the_planes_outside_the_test_part(tmp_path: Path) -> None:
    images, masks = planes(12, 0)
    images[-1] = images[0]  # the test plane has been trained on
    write(tmp_path, images, masks)
    described = build_catalog(tmp_path, params({"split.gap": 0, "split.test": 0.05, "split.validation": 0.1}))
    assert described.leakage.worst_plane == "specimen/11"
    found = fold_catalog(described, tmp_path, fold=1, folds=3)
    assert found.leakage.worst_plane != "specimen/11"
    assert found.leakage.worst_similarity is not None
    assert found.leakage.worst_similarity < 0.99


def test_one_fold_after_another_is_as_each_by_itself(data: Path) -> None:
    described = build_catalog(data, params({"split.gap": 0}))
    first = fold_catalog(described, data, fold=0, folds=4)
    assert fold_catalog(first, data, fold=2, folds=3) == fold_catalog(described, data, fold=2, folds=3)


@pytest.mark.parametrize(
    ("more", "folds"),
    [
        ({"split.gap": 0}, 11),
        ({"split.method": "random"}, 11),
        ({"split.method": "groups", "split.group_size": 4}, 3),
        ({"split.method": "explicit", "split.explicit": {"validation": ["specimen/0"], "test": ["specimen/5-9"]}}, 8),
    ],
    ids=["blocks", "random", "groups", "explicit"],
)
def test_fewer_planes_than_folds_are_refused_before_the_first_is_trained(
    tmp_path: Path, more: dict[str, Any], folds: int
) -> None:
    write(tmp_path, *planes(12, 0))
    described = build_catalog(tmp_path, params(more))
    with pytest.raises(DataError, match=r"Lower (split|search)\.folds"):
        fold_catalog(described, tmp_path, fold=0, folds=folds)


def test_a_fold_that_trains_on_constant_planes_only_is_refused(tmp_path: Path) -> None:
    images, masks = planes(12, 0)
    images[:5] = images[10:] = 7
    write(tmp_path, images, masks)
    asked = {"split.gap": 0, "split.validation": 0.1}
    described = build_catalog(tmp_path, params(asked))
    fold = {"split.folds": 2, "split.fold": 1}
    with pytest.raises(DataError, match="training planes are constant"):
        build_catalog(tmp_path, params({**asked, **fold}))
    with pytest.raises(DataError, match="fold 1 of 2: all 5 training planes are constant"):
        fold_catalog(described, tmp_path, fold=1, folds=2)


def test_a_fold_without_a_class_is_refused(tmp_path: Path) -> None:
    images, masks = planes(12, 0)
    masks[:5] = 0
    write(tmp_path, images, masks)
    described = build_catalog(tmp_path, params({"split.gap": 0}))
    for fold in range(2):  # before the other is trained
        with pytest.raises(DataError, match="fold 1 of 2: class grain has no pixel in the training part"):
            fold_catalog(described, tmp_path, fold=fold, folds=2)


def test_each_fold_must_be_trainable_and_scored(tmp_path: Path) -> None:
    images, masks = planes(12, 0)
    rare = masks.copy()
    rare[rare == 5] = 0
    rare[2] = masks[2]  # the only plane with a grain: one fold validates on it
    write(tmp_path / "rare" / "s0", images, rare)
    split = {"split.method": "blocks", "split.gap": 0, "split.validation": 0.1, "split.test": 0.1}
    described = build_catalog(tmp_path / "rare", params(split))
    with pytest.raises(DataError, match=r"rare, fold \d of 3: class grain has no pixel in the training part"):
        folded(described, 3)
    void = masks.copy()
    void[:4] = 9
    write(tmp_path / "void" / "s0", images, void)
    described = build_catalog(tmp_path / "void", params({**split, "data.ignore": 9}))
    with pytest.raises(DataError, match=r"void, fold \d of 3: the validation part has no labelled pixel"):
        folded(described, 3)
