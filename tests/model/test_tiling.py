from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate

from stackseg.model.plane_image import whole
from stackseg.model.tiling import MULTIPLE, Blend, Tiling

sizes = st.integers(1, 300)
tilings = st.integers(1, 6).flatmap(  # params allow half the tile, and 32 less than it
    lambda times: st.builds(Tiling, st.just(32 * times), st.integers(0, min(16 * times, 32 * (times - 1))))
)


def through(tiling: Tiling, image_yxc: npt.NDArray[np.float32], network: object = None) -> npt.NDArray[np.float32]:
    """Send a plane (Y, X, C) through windows and blending, as inference does; returns (C, Y, X)."""
    shape_yx = image_yxc.shape[0], image_yxc.shape[1]
    blend = Blend(tiling, shape_yx, whole(shape_yx))
    for window in tiling.windows(shape_yx, whole(shape_yx)):
        values_cyx = tiling.read(image_yxc, window).transpose(2, 0, 1)
        blend.add(window, torch.from_numpy(network(values_cyx) if callable(network) else values_cyx))
    return blend.result().numpy()


@given(sizes, sizes, tilings)
@example(64, 300, Tiling(512, 64))
@example(33, 50, Tiling(512, 64))
@settings(deadline=None, max_examples=60)
def test_cover_and_blend_give_the_plane_back(height: int, width: int, tiling: Tiling) -> None:
    image_yxc = np.random.default_rng(height * 301 + width).uniform(-1, 1, (height, width, 2)).astype(np.float32)
    np.testing.assert_allclose(through(tiling, image_yxc), image_yxc.transpose(2, 0, 1), rtol=0, atol=1e-6)


@given(sizes, sizes, tilings)
@settings(deadline=None, max_examples=60)
def test_windows_lie_inside_and_reach_everywhere(height: int, width: int, tiling: Tiling) -> None:
    padded_yx = tiling.padded_shape((height, width))
    weight_yx = np.zeros(padded_yx)
    windows = list(tiling.windows((height, width), whole((height, width))))
    for window in windows:
        for part, size in zip(window, padded_yx, strict=True):
            assert 0 <= part.start < part.stop <= size
            assert part.start % MULTIPLE == part.stop % MULTIPLE == 0
            assert part.stop - part.start <= tiling.tile
        weights_yx = tiling.weights(window, (height, width)).numpy()
        assert weights_yx.min() >= 0
        assert weights_yx.max() <= 1
        weight_yx[window] += weights_yx
    assert weight_yx.min() > 0
    assert len({(rows.start, columns.start) for rows, columns in windows}) == len(windows)
    assert {(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in windows} == {
        tiling.window_shape((height, width))
    }
    for axis in (0, 1):
        parts = sorted({(window[axis].start, window[axis].stop) for window in windows})
        assert all(before[1] - after[0] >= tiling.overlap for before, after in pairwise(parts))


@given(sizes, sizes, tilings)
@settings(deadline=None, max_examples=40)
def test_no_more_is_padded_than_to_a_multiple(height: int, width: int, tiling: Tiling) -> None:
    for padded, size in zip(tiling.padded_shape((height, width)), (height, width), strict=True):
        assert size <= padded < size + MULTIPLE


@given(st.integers(1, 20_000))
def test_windows_are_no_larger_than_their_number_asks_for(size: int) -> None:
    tiling = Tiling(1024, 64)
    side, _ = tiling.window_shape((size, 1))
    number = sum(1 for _ in tiling.windows((size, 1), whole((size, 1))))
    assert number == max(1, -(-(size - 64) // (1024 - 64)))
    # what all windows compute, against what has to be computed
    assert number * side <= size + (number - 1) * 64 + number * 2 * MULTIPLE


def test_a_plane_a_little_larger_than_the_tile_takes_small_windows() -> None:
    assert Tiling(1024, 64).window_shape((1024, 996)) == (1024, 1024)
    assert Tiling(1024, 64).window_shape((1100, 2048)) == (608, 736)


@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize(("tile", "overlap"), [(64, 8), (64, 32), (96, 20), (128, 64)])
@pytest.mark.parametrize("shape_yx", [(64, 160), (129, 200), (256, 33 * 4), (32, 300)])
def test_tiled_equals_whole_for_one_convolution(
    radius: int, tile: int, overlap: int, shape_yx: tuple[int, int]
) -> None:
    assert radius <= overlap // 4
    rng = np.random.default_rng(3)
    kernel_cyx = rng.normal(size=(1, 2 * radius + 1, 2 * radius + 1)).astype(np.float32)
    image_yxc = rng.normal(size=(*shape_yx, 1)).astype(np.float32)

    def network(values_cyx: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        # zero padding, as convolutions do: wrong at every side of a window
        return np.asarray(correlate(values_cyx, kernel_cyx, mode="constant"))

    tiling = Tiling(tile, overlap)
    whole_cyx = network(padded(tiling, image_yxc).transpose(2, 0, 1))[:, : shape_yx[0], : shape_yx[1]]
    np.testing.assert_allclose(
        through(tiling, image_yxc, network), whole_cyx, rtol=0, atol=1e-6 * np.abs(whole_cyx).max()
    )


def test_a_network_that_sees_further_would_show_seams() -> None:
    """The test above can fail: a radius beyond a quarter of the overlap leaves the window's edge in the result."""
    image_yxc = np.random.default_rng(3).normal(size=(64, 200, 1)).astype(np.float32)
    kernel_cyx = np.ones((1, 9, 9), np.float32)

    def network(values_cyx: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.asarray(correlate(values_cyx, kernel_cyx, mode="constant"))

    difference = np.abs(through(Tiling(64, 8), image_yxc, network) - network(image_yxc.transpose(2, 0, 1)))
    assert difference.max() > 1


def test_neighbours_share_what_they_overlap_by_halves() -> None:
    tiling = Tiling(64, 32)
    left, right = tiling.windows((64, 96), whole((64, 96)))
    assert (left[1].stop, right[1].start) == (64, 32)
    sum_yx = np.zeros((64, 96))
    for window in (left, right):
        sum_yx[window] += tiling.weights(window, (64, 96)).numpy()
    np.testing.assert_allclose(sum_yx, 1, atol=1e-6)
    ramp = tiling.weights(right, (64, 96))[0, :32]
    assert (ramp[:8] == 0).all()
    assert (ramp[24:] == 1).all()
    assert (np.diff(ramp[7:25]) > 0).all()


def padded(tiling: Tiling, image_yxc: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return a plane (Y, X, C) as all its windows see it."""
    height, width = tiling.padded_shape((image_yxc.shape[0], image_yxc.shape[1]))
    return tiling.read(image_yxc, (slice(0, height), slice(0, width)))


def test_padding_mirrors_the_plane() -> None:
    image_yxc = np.arange(6, dtype=np.float32).reshape(2, 3, 1)
    padded_yxc = padded(Tiling(64, 8), image_yxc)
    assert padded_yxc.shape == (32, 32, 1)
    assert padded_yxc[:4, :6, 0].tolist() == [
        [0, 1, 2, 2, 1, 0],
        [3, 4, 5, 5, 4, 3],
        [3, 4, 5, 5, 4, 3],
        [0, 1, 2, 2, 1, 0],
    ]


@given(sizes, sizes, tilings)
@example(33, 65, Tiling(32, 0))
@settings(deadline=None, max_examples=60)
def test_windows_show_the_padded_plane(height: int, width: int, tiling: Tiling) -> None:
    image_yxc = np.random.default_rng(height * 301 + width).uniform(-1, 1, (height, width, 1)).astype(np.float32)
    beyond = [
        (0, want - have) for want, have in zip(tiling.padded_shape((height, width)), (height, width), strict=True)
    ]
    padded_yxc = np.pad(image_yxc, [*beyond, (0, 0)], mode="symmetric")
    for window in tiling.windows((height, width), whole((height, width))):
        np.testing.assert_array_equal(tiling.read(image_yxc, window), padded_yxc[window])


@given(sizes, sizes, tilings, st.data())
@settings(deadline=None, max_examples=60)
def test_a_region_takes_the_windows_that_touch_it(height: int, width: int, tiling: Tiling, data: st.DataObject) -> None:
    region = tuple(
        slice(start, data.draw(st.integers(start + 1, size)))
        for size in (height, width)
        for start in [data.draw(st.integers(0, size - 1))]
    )
    image_yxc = np.random.default_rng(height * 301 + width).uniform(-1, 1, (height, width, 1)).astype(np.float32)
    expected_cyx = through(tiling, image_yxc)[:, *region]
    blend = Blend(tiling, (height, width), (region[0], region[1]))
    for window in tiling.windows((height, width), (region[0], region[1])):
        blend.add(window, torch.from_numpy(tiling.read(image_yxc, window).transpose(2, 0, 1)))
    np.testing.assert_array_equal(blend.result().numpy(), expected_cyx)
