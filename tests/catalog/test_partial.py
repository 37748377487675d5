"""Annotations that are not whole: planes without a label, and classes that nobody annotated in some specimens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stackseg.catalog.build import build_catalog, folded
from stackseg.catalog.partial import classes_not_annotated
from stackseg.dataset.fingerprints import require_same_planes
from stackseg.dataset.labels.table import IGNORE_INDEX
from stackseg.dataset.records import read_catalog, require_described_by, write_catalog
from stackseg.dataset.specimens import find_specimens
from stackseg.errors import DataError, ParamsError
from stackseg.params import Params
from tiny_projects import SETTINGS, tiny_stack, write_specimen


def params(**more: Any) -> Params:
    return Params().override({**SETTINGS, **{key.replace("__", "."): value for key, value in more.items()}})


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two specimens of ten planes."""
    for seed, name in enumerate(("a", "b")):
        write_specimen(tmp_path / "data" / name, *tiny_stack(seed=seed))
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("partial", "told"),
    [
        ({"c": ["ore"]}, "^data.partial: no specimen 'c'; expected one of a, b. Name a folder of data/"),
        ({"b": ["ore", "clay"]}, "^data.partial.b: no class 'clay'; expected one of grain, ore. Name it as"),
        ({"b": ["void"]}, "^data.partial.b: void is the first class of data.classes; expected one of grain, ore"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(two: Path, partial: Any, told: str) -> None:
    with pytest.raises(ParamsError, match=told) as caught:
        build_catalog(two, params(data__partial=partial))
    assert "\n" not in str(caught.value)


def test_classes_come_in_the_order_of_their_index() -> None:
    data = params(data__partial={"b": ["ore", "grain"]}).data
    assert classes_not_annotated(data, ["a", "b"]) == {"a": (), "b": (1, 2)}


def test_a_class_that_nobody_annotated_counts_nowhere_in_that_specimen(two: Path, tmp_path: Path) -> None:
    asked = params(data__partial={"b": ["ore"], "a": []})
    catalog = build_catalog(two, asked)
    whole = build_catalog(two, params())
    _, b = find_specimens(two)
    assert catalog.specimens[0] == whole.specimens[0]
    for plane, before in zip(catalog.specimens[1].planes, whole.specimens[1].planes, strict=True):
        assert plane.class_pixels == (*before.class_pixels[:2], 0)
        assert plane.ignored_pixels == before.class_pixels[2]
        raw_yx = b.raw_mask(plane.z)[..., 0]
        labels_yx = b.labels(plane.z, catalog.table_of("b"))
        assert ((labels_yx == IGNORE_INDEX) == (raw_yx == 7)).all()
    assert catalog.table_of("a") == catalog.table == whole.table
    assert any("b: ore not annotated (data.partial)" in line for line in catalog.warnings)
    require_same_planes(catalog, two, "training")
    assert {one.not_annotated for one in folded(catalog, 2)[1].specimens} == {(), ("ore",)}
    write_catalog(tmp_path / "catalog.json", catalog)
    assert read_catalog(tmp_path / "catalog.json") == catalog
    require_described_by(catalog, asked, tmp_path)
    with pytest.raises(ParamsError, match=r"^[^:]*: data\.partial of params\.yaml changed"):
        require_described_by(catalog, params(), tmp_path)
    # what says nothing changes no digest
    assert build_catalog(two, params(data__partial={"a": []})).digest() == whole.digest()
    assert not {"unlabelled", "not_annotated"} & {*whole.model_dump(), *whole.specimens[0].model_dump()}


def scribbled(data: Path, drawn: list[int]) -> Any:
    """Write masks of all ten planes in which a tenth of some planes is drawn, with 1 added to each value."""
    images, masks_zyx = tiny_stack()
    masks_zyx += 1
    masks_zyx[np.random.default_rng(0).random(masks_zyx.shape) > 0.1] = 0
    masks_zyx[[z for z in range(10) if z not in drawn]] = 0
    write_specimen(data / "rock", images, masks_zyx)
    return masks_zyx


CODES = {"void": 1, "grain": 4, "ore": 8}
DRAWN = [{"name": name, "raw": raw, "display": f"#00000{raw}"} for name, raw in CODES.items()]


def test_planes_without_a_scribble_are_not_annotated(tmp_path: Path) -> None:
    drawn = [0, 2, 3, 5, 8]
    masks_zyx = scribbled(tmp_path / "data", drawn)
    with pytest.raises(DataError, match=r"value 0 \(\d+ pixels\) is in no class.*data\.unlabelled: ignore"):
        build_catalog(tmp_path / "data", params(data__classes=DRAWN))
    asked = params(data__classes=DRAWN, data__unlabelled="ignore")
    catalog = build_catalog(tmp_path / "data", asked)
    (rock,) = catalog.specimens
    assert [plane.z for plane in rock.planes] == drawn
    for plane in rock.planes:
        assert plane.class_pixels == tuple((masks_zyx[plane.z] == raw).sum() for raw in CODES.values())
        assert plane.ignored_pixels == (masks_zyx[plane.z] == 0).sum()
    # the parts are those of the drawn planes
    assert {part: [ref.z for ref, _ in catalog.planes(part)] for part in ("training", "validation", "test")} == {
        "training": [0, 2, 3],
        "validation": [5],
        "test": [8],
    }
    write_catalog(tmp_path / "catalog.json", catalog)
    assert read_catalog(tmp_path / "catalog.json") == catalog
    require_described_by(catalog, asked, tmp_path)
    with pytest.raises(ParamsError, match=r"^[^:]*: data\.unlabelled of params\.yaml changed"):
        require_described_by(catalog, params(data__classes=DRAWN), tmp_path)


def test_a_specimen_without_a_scribble_is_named(tmp_path: Path) -> None:
    scribbled(tmp_path / "data", [])
    with pytest.raises(
        DataError, match=r"rock/masks\.tif: no pixel of any class in 10 masks; expected void, grain, ore"
    ):
        build_catalog(tmp_path / "data", params(data__classes=DRAWN, data__unlabelled="ignore"))


def test_a_class_on_constant_planes_only_is_missing(tmp_path: Path) -> None:
    images, masks_zyx = tiny_stack()
    images[0] = 500
    masks_zyx[1:][masks_zyx[1:] == 7] = 0
    masks_zyx[0, :4] = 7
    write_specimen(tmp_path / "data" / "rock", images, masks_zyx)
    with pytest.raises(DataError, match="class ore has no pixel in the training part"):
        build_catalog(tmp_path / "data", params())
