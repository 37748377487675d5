from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate

from stackseg.model.tiling import MULTIPLE, Blend, Tiling

sizes = st.integers(1, 300)
tilings = st.integers(1, 6).flatmap(
    lambda times: st.builds(Tiling, st.just(32 * times), st.integers(0, 16 * times))  # params allow half the tile
)


def through(tiling: Tiling, image_yxc: npt.NDArray[np.float32], network: object = None) -> npt.NDArray[np.float32]:
    """Send a plane (Y, X, C) through windows and blending, as inference does; returns (C, Y, X)."""
    blend = Blend(tiling, (image_yxc.shape[0], image_yxc.shape[1]), image_yxc.shape[2])
    padded_yxc = tiling.pad(image_yxc)
    assert padded_yxc.shape[:2] == blend.padded_yx
    for window in tiling.windows(blend.padded_yx):
        values_cyx = padded_yxc[window].transpose(2, 0, 1)
        blend.add(window, network(values_cyx) if callable(network) else values_cyx)
    return blend.result()


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
    padded_yx = Blend(tiling, (height, width), 1).padded_yx
    weight_yx = np.zeros(padded_yx)
    windows = list(tiling.windows(padded_yx))
    for window in windows:
        for part, size in zip(window, padded_yx, strict=True):
            assert 0 <= part.start < part.stop <= size
            assert (part.stop - part.start) % MULTIPLE == 0
            assert part.stop - part.start <= tiling.tile
        weights_yx = tiling.weights(window, padded_yx)
        assert weights_yx.min() >= 0
        assert weights_yx.max() <= 1
        weight_yx[window] += weights_yx
    assert weight_yx.min() > 0
    assert len({(rows.start, columns.start) for rows, columns in windows}) == len(windows)
    assert {(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in windows} == {
        tiling.window_shape((height, width))
    }


@given(sizes, sizes, tilings)
@settings(deadline=None, max_examples=40)
def test_no_more_is_padded_than_one_window_needs(height: int, width: int, tiling: Tiling) -> None:
    padded_yx = Blend(tiling, (height, width), 1).padded_yx
    for padded, size in zip(padded_yx, (height, width), strict=True):
        assert padded == (size if size >= tiling.tile else -(-size // MULTIPLE) * MULTIPLE)


@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize(("tile", "overlap"), [(32, 8), (64, 8), (64, 32), (96, 20), (128, 64)])
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
    whole_cyx = network(tiling.pad(image_yxc).transpose(2, 0, 1))[:, : shape_yx[0], : shape_yx[1]]
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
    tiling = Tiling(64, 16)
    left, right = tiling.windows((64, 112))
    assert (left[1].stop, right[1].start) == (64, 48)
    sum_yx = np.zeros((64, 112))
    for window in (left, right):
        sum_yx[window] += tiling.weights(window, (64, 112))
    np.testing.assert_allclose(sum_yx, 1, atol=1e-6)
    ramp = tiling.weights(right, (64, 112))[0, :16]
    assert ramp[:4].tolist() == [0, 0, 0, 0]
    assert ramp[12:].tolist() == [1, 1, 1, 1]
    assert (np.diff(ramp[3:13]) > 0).all()


def test_padding_mirrors_the_plane() -> None:
    image_yxc = np.arange(6, dtype=np.float32).reshape(2, 3, 1)
    padded_yxc = Tiling(64, 8).pad(image_yxc)
    assert padded_yxc.shape == (32, 32, 1)
    assert padded_yxc[:4, :6, 0].tolist() == [
        [0, 1, 2, 2, 1, 0],
        [3, 4, 5, 5, 4, 3],
        [3, 4, 5, 5, 4, 3],
        [0, 1, 2, 2, 1, 0],
    ]
    whole_yxc = np.zeros((64, 96, 1), np.float32)
    assert Tiling(64, 8).pad(whole_yxc) is whole_yxc
