"""Planes as the network wants them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stackseg.dataset.normalisation import IntensityPolicy
from stackseg.model.plane_image import LargePlane, Neighbours, Turn, blocks, whole
from stackseg.model.segment import SYMMETRIES
from stackseg.params.intensity import IntensityParams

sizes = st.integers(1, 20)
turns = st.sampled_from(SYMMETRIES["d4"])


def image_of(height: int, width: int, channels: int = 1) -> Any:
    return np.arange(height * width * channels, dtype=np.float32).reshape(height, width, channels)


@st.composite
def regions(draw: st.DrawFn) -> Any:
    shape = draw(sizes), draw(sizes)
    starts = [draw(st.integers(0, size - 1)) for size in shape]
    return shape, tuple(slice(one, draw(st.integers(one + 1, size))) for one, size in zip(starts, shape, strict=True))


def test_there_are_eight_symmetries_of_a_square() -> None:
    image_yxc = image_of(3, 3)
    assert len({turn.apply(image_yxc).tobytes() for turn in SYMMETRIES["d4"]}) == 8
    assert SYMMETRIES["none"] == SYMMETRIES["flips"][:1] == SYMMETRIES["d4"][:1]
    assert SYMMETRIES["flips"] == SYMMETRIES["d4"][:4]


@given(regions(), turns)
def test_a_turned_plane_gives_what_the_turned_pixels_hold(found: Any, turn: Turn) -> None:
    shape_yx, region = found
    image_yxc = image_of(*shape_yx, 2)
    there = turn.region_of(region, shape_yx)
    assert turn.region_before(there, shape_yx) == region
    assert turn.of(image_yxc).shape == turn.apply(image_yxc).shape
    np.testing.assert_array_equal(turn.of(image_yxc)[there], turn.apply(image_yxc)[there])
    np.testing.assert_array_equal(turn.of(image_yxc)[there], turn.apply(image_yxc[region]))
    values_vyx = torch.from_numpy(turn.apply(image_yxc).transpose(2, 0, 1).copy())
    np.testing.assert_array_equal(turn.undo(values_vyx).numpy(), image_yxc.transpose(2, 0, 1))


@given(sizes, sizes, st.integers(1, 25))
def test_blocks_divide_a_plane(height: int, width: int, side: int) -> None:
    times_yx = np.zeros((height, width), int)
    for rows, columns in blocks((height, width, 3), side):
        assert 0 < rows.stop - rows.start <= side
        assert 0 < columns.stop - columns.start <= side
        times_yx[rows, columns] += 1
    assert (times_yx == 1).all()


@pytest.mark.parametrize("scope", ["plane", "dataset"])
@pytest.mark.parametrize("colour", ["keep", "grey"])
def test_a_large_plane_is_the_plane_region_by_region(scope: Any, colour: Any) -> None:
    raw_yxc = np.random.default_rng(3).integers(0, 60000, (40, 50, 3)).astype(np.uint16)
    policy = IntensityPolicy(params=IntensityParams(scope=scope), colour=colour, statistics=None)
    num_channels = 3 if colour == "keep" else 1
    reference = None if scope == "plane" else policy.plane_reference(raw_yxc[:, :, :num_channels])
    plane = LargePlane(raw_yxc, policy, reference, "plane 0")
    expected_yxc = policy.apply(raw_yxc, reference, "plane 0")
    assert plane.shape == expected_yxc.shape
    region = slice(7, 33), slice(20, 50)
    np.testing.assert_array_equal(plane[region], expected_yxc[region])
    np.testing.assert_array_equal(plane[whole(plane.shape)], expected_yxc)


def test_neighbours_are_channels() -> None:
    below, above = image_of(4, 5, 2), -image_of(4, 5, 1)
    both = Neighbours([below, above])
    assert both.shape == (4, 5, 3)
    np.testing.assert_array_equal(both[1:3, 2:4], np.concatenate([below, above], axis=2)[1:3, 2:4])
