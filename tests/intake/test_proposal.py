"""Fingerprints measure what was made, and proposals follow from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from stackseg.dataset.labels.table import LabelTable
from stackseg.intake.add import open_pair
from stackseg.intake.fingerprint import MEASURED_PLANES, Fingerprint, chosen_planes, measure
from stackseg.intake.proposal import propose
from stackseg.params import Params

TABLE = LabelTable(("a", "b"), ((0,), (1,)), ("#000000", "#ffffff"))


def fingerprint_of(folder: Path, images_zyx: Any, masks_zyx: Any) -> Fingerprint:
    folder.mkdir(exist_ok=True)
    for name, stack in (("images", images_zyx), ("masks", masks_zyx)):
        tifffile.imwrite(folder / f"{name}.tif", stack, photometric="minisblack", metadata={"axes": "ZYX"})
    return measure(open_pair(folder / "images.tif", folder / "masks.tif"), TABLE, "keep")


def rock(num_planes: int, sigma_z: float, side: int = 96) -> tuple[Any, Any]:
    """A random rock (Z, Y, X) whose slices grow less alike over `sigma_z` planes, and its two phases."""
    noise = np.random.default_rng(3).standard_normal((num_planes, side, side))
    smooth = gaussian_filter(noise, (sigma_z, 3, 3))
    masks = (smooth > np.median(smooth)).astype(np.uint8)
    return np.uint8(80 + 60 * masks), masks


def proposed(found: Fingerprint) -> dict[str, Any]:
    return {one.key: one.value for one in propose(found)}


def test_likeness_falls_with_distance_and_no_sooner(tmp_path: Path) -> None:
    images, masks = rock(40, 4.0)
    found = fingerprint_of(tmp_path, images, masks)
    assert found.likeness[1] > 0.8
    assert found.likeness[4] > found.likeness[8] > found.likeness[14]
    assert abs(found.likeness[20]) < 0.1
    loose = fingerprint_of(tmp_path / "loose", *rock(40, 0.0))
    assert all(abs(alike) < 0.1 for alike in loose.likeness.values())


def test_exposure_is_of_the_light_and_not_of_the_content(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    masks = (random.random((20, 200, 200)) < np.linspace(0.05, 0.95, 20)[:, None, None]).astype(np.uint8)
    content = fingerprint_of(tmp_path, np.uint8(50 + 50 * masks), masks)
    assert content.exposure == pytest.approx(0, abs=1e-9)
    light = np.linspace(0.4, 2.0, 20)[:, None, None]
    assert (fingerprint_of(tmp_path / "light", np.uint8((50 + 50 * masks) * light), masks).exposure or 0) > 0.3


@given(st.integers(1, 2000))
def test_measured_planes_are_few_spread_and_have_neighbours(num: int) -> None:
    chosen = chosen_planes(range(num))
    assert len(chosen) == min(num, MEASURED_PLANES) == len(set(chosen)) or num > MEASURED_PLANES
    assert len(chosen) <= MEASURED_PLANES
    assert (chosen[0], chosen[-1]) == (0, num - 1)
    assert num == 1 or 1 in np.diff(chosen)


CONTINUOUS = Fingerprint(
    shapes_yx=((512, 512),) * 60, spacing=1, exposure=0.05,
    likeness={1: 0.7, 2: 0.4, 3: 0.25, 4: 0.15, 5: 0.0},
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {"split.method": "blocks", "split.gap": 3, "intensity.scope": "dataset", "train.patch_size": 256}),
        ({"shapes_yx": ((512, 512),) * 12}, {"split.gap": 1}),
        ({"shapes_yx": ((512, 512),) * 7}, {"split.gap": 0}),
        ({"likeness": {10: 0.1}, "spacing": 10}, {"split.gap": 9}),
        ({"exposure": 0.5}, {"split.method": "blocks", "intensity.scope": "plane"}),
        ({"exposure": 0.5, "likeness": {1: 0.0}}, {"split.method": "random", "split.gap": 0}),
        # tiles of one slice are strangers, too, but no fields of their own
        ({"exposure": 0.5, "likeness": {1: 0.0}, "shapes_yx": ((128, 128),) * 60},
         {"split.method": "blocks", "intensity.scope": "dataset", "train.patch_size": 128}),
        ({"shapes_yx": ((512, 300), (400, 512), (40, 600))},
         {"split.method": "random", "train.patch_size": 32}),
        ({"exposure": None, "likeness": {}, "shapes_yx": ((512, 512),)}, {"split.method": "blocks", "split.gap": 0}),
    ],
)  # fmt: skip
def test_settings_follow_the_data(change: dict[str, Any], expected: dict[str, Any]) -> None:
    found = proposed(replace(CONTINUOUS, **change))
    assert {key: found[key] for key in expected} == expected
    Params().override(found)  # all of them are valid


@given(st.floats(0.001, 1e5))
def test_more_pixels_never_train_for_less_and_the_time_is_bounded(megapixels: float) -> None:
    side = max(32, int((megapixels * 1e6) ** 0.5))
    more = replace(CONTINUOUS, shapes_yx=((2 * side, 2 * side),))
    few = replace(CONTINUOUS, shapes_yx=((side, side),))
    assert 30 <= proposed(few)["train.epochs"] <= proposed(more)["train.epochs"] <= 60


def test_each_proposal_has_its_reason() -> None:
    assert all(len(one.reason) > 10 for one in propose(CONTINUOUS))
