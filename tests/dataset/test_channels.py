from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackseg.dataset.channels import apply_colour, context_indices
from stackseg.errors import DataError


class TestContext:
    @pytest.mark.parametrize(
        ("z", "num_planes", "context", "expected"),
        [
            (3, 7, 0, [3]),
            (3, 7, 2, [1, 2, 3, 4, 5]),
            (0, 7, 2, [2, 1, 0, 1, 2]),
            (6, 7, 2, [4, 5, 6, 5, 4]),
            (1, 7, 3, [2, 1, 0, 1, 2, 3, 4]),
            (0, 2, 3, [1, 0, 1, 0, 1, 0, 1]),
            (0, 1, 2, [0, 0, 0, 0, 0]),
        ],
    )
    def test_mirrored_at_the_ends(self, z: int, num_planes: int, context: int, expected: list[int]) -> None:
        assert context_indices(z, num_planes, context) == expected

    @given(st.integers(1, 40), st.integers(0, 16), st.data())
    @settings(deadline=None, max_examples=200)
    def test_as_numpy_reflects(self, num_planes: int, context: int, data: st.DataObject) -> None:
        z = data.draw(st.integers(0, num_planes - 1))
        expected = np.pad(np.arange(num_planes), context, mode="reflect" if num_planes > 1 else "edge")
        assert context_indices(z, num_planes, context) == expected[z : z + 2 * context + 1].tolist()


class TestColour:
    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
    @pytest.mark.parametrize("num_channels", [1, 2, 3, 5])
    def test_keep_keeps(self, dtype: str, num_channels: int) -> None:
        image_yxc = np.arange(6 * num_channels).reshape(2, 3, num_channels).astype(dtype)
        assert apply_colour(image_yxc, "keep", "") is image_yxc

    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
    def test_grey_is_luminance_in_the_raw_range(self, dtype: str) -> None:
        image_yxc = np.array([[[100, 100, 100], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype)
        grey_yxc = apply_colour(image_yxc, "grey", "")
        assert grey_yxc.dtype == dtype
        assert grey_yxc.shape == (1, 4, 1)
        expected = np.array([100, 255 * 0.2125, 255 * 0.7154, 255 * 0.0721])
        np.testing.assert_allclose(grey_yxc[0, :, 0], expected, atol=0.5 if dtype != "float32" else 1e-4)

    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
    def test_grey_repeated_and_taken_back_is_the_same(self, dtype: str) -> None:
        image_yxc = np.array([[0, 1, 7, 100, 127]], dtype)[:, :, None]
        rgb_yxc = apply_colour(image_yxc, "rgb", "")
        assert rgb_yxc.dtype == dtype
        assert rgb_yxc.shape == (1, 5, 3)
        np.testing.assert_allclose(apply_colour(rgb_yxc, "grey", ""), image_yxc, rtol=1e-6)

    @pytest.mark.parametrize(("policy", "num_channels"), [("grey", 1), ("rgb", 3)])
    def test_what_is_so_already_stays(self, policy: str, num_channels: int) -> None:
        image_yxc = np.zeros((2, 2, num_channels), np.uint8)
        assert apply_colour(image_yxc, policy, "") is image_yxc  # type: ignore[arg-type]

    def test_full_range_does_not_overflow(self) -> None:
        for dtype in (np.uint8, np.uint16, np.int16):
            image_yxc = np.full((1, 1, 3), np.iinfo(dtype).max, dtype)
            assert apply_colour(image_yxc, "grey", "")[0, 0, 0] == np.iinfo(dtype).max

    @pytest.mark.parametrize("policy", ["grey", "rgb"])
    @pytest.mark.parametrize("num_channels", [2, 4])
    def test_other_channels_are_refused(self, policy: str, num_channels: int) -> None:
        with pytest.raises(DataError, match=f"^here: {num_channels} channels; expected 1 or 3.*keep"):
            apply_colour(np.zeros((2, 2, num_channels), np.uint8), policy, "here")  # type: ignore[arg-type]
