"""Planes with a mask, planes of the test part and their neighbours are never candidates, whatever file they are in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stackseg.dataset.fingerprints import pixel_digest
from stackseg.dataset.specimens import find_specimens
from stackseg.dataset.splits import PlaneRef
from stackseg.params.split import SplitParams
from stackseg.suggestion.candidates import Candidates, KnownPlanes, default_distance, find_candidates, find_known
from tiny_projects import Project, tiny_stack, write_specimen


class Planes:
    def __init__(self, images_zyx: np.ndarray) -> None:
        self._images = images_zyx

    def __len__(self) -> int:
        return len(self._images)

    def plane(self, z: int) -> np.ndarray:
        return self._images[z, :, :, None]


@pytest.fixture
def images() -> np.ndarray:
    return tiny_stack(12)[0]


def known(images: np.ndarray, annotated: list[int], test: list[int]) -> KnownPlanes:
    digests = [pixel_digest(image[:, :, None]) for image in images]
    return KnownPlanes(frozenset(digests[z] for z in annotated), frozenset(digests[z] for z in test))


def test_a_gap_around_test_planes_is_kept_also_in_another_order(images: np.ndarray) -> None:
    there = known(images, [1, 8], [8])
    assert find_candidates(Planes(images), there, SplitParams(gap=2)) == Candidates(
        12, allowed=(0, 2, 3, 4, 5, 11), annotated=(1, 8), kept_from=(6, 7, 9, 10)
    )
    other = find_candidates(Planes(images[::-1]), there, SplitParams(gap=0))
    assert (other.annotated, other.kept_from) == ((3, 10), ())
    whole = find_candidates(Planes(images), there, SplitParams(method="specimens", gap=0))
    assert whole.allowed == ()


def test_what_is_known_comes_from_the_split_the_last_catalogue_and_the_model(tmp_path: Path, tiny: Project) -> None:
    images, masks = tiny_stack(4, seed=3)
    write_specimen(tmp_path / "data" / "other", images, masks)
    specimens = find_specimens(tmp_path / "data")
    own = [pixel_digest(image[:, :, None]) for image in images]
    found = find_known(specimens, None, {PlaneRef("other", 2): "test"}, tiny.catalog, ["abc"])
    recorded = {record.image_sha256 for _, record in tiny.catalog.planes("test")}
    assert found.test == {own[2], *recorded}
    assert found.annotated == {*own, *recorded, "abc"}


def test_the_default_distance_is_half_of_even_spacing_and_more_than_the_gap() -> None:
    stack = Candidates(200, tuple(range(195)), tuple(range(195, 200)), ())
    assert default_distance(stack, 5, SplitParams(gap=2)) == 10
    assert default_distance(stack, 5, SplitParams(gap=12)) == 13
