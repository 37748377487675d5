"""Masks come back from their answers as they were."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from stackseg.errors import DataError
from stackseg.serving.encode import OutputForm, as_labels, decode_tiff_mask, encode_mask

MASKS = arrays.arrays(
    st.sampled_from([np.uint8, np.uint16]), st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
)


def decode(text: str, output: OutputForm) -> np.ndarray:
    """Return the mask as a client's program gets it."""
    if output == "tiff":
        return decode_tiff_mask(text)
    file = io.BytesIO(base64.b64decode(text, validate=True))
    return np.asarray(Image.open(file))[None] if output == "png" else np.load(file)["mask"]


@settings(max_examples=60, deadline=None)
@given(MASKS, st.sampled_from(["png", "tiff", "npz"]))
def test_a_mask_comes_back(mask_zyx: np.ndarray, output: OutputForm) -> None:
    if output == "png":
        mask_zyx = mask_zyx[:1]
    text = encode_mask(mask_zyx, None, output)["mask"]
    assert text is not None
    found_zyx = decode(text, output)
    np.testing.assert_array_equal(found_zyx, mask_zyx)
    assert found_zyx.dtype == mask_zyx.dtype


@pytest.mark.parametrize("output", ["tiff", "npz"])
def test_probabilities_come_with_it(output: OutputForm) -> None:
    probabilities = np.random.default_rng(0).random((2, 3, 8, 9), np.float32)
    answer = encode_mask(probabilities.argmax(1).astype(np.uint8), probabilities, output)
    file = io.BytesIO(base64.b64decode(answer["probabilities" if output == "tiff" else "mask"] or ""))
    found = tifffile.imread(file) if output == "tiff" else np.load(file)["probabilities"]
    np.testing.assert_array_equal(found, probabilities)


@pytest.mark.parametrize(("num_objects", "dtype"), [(0, np.uint16), (65_535, np.uint16), (65_536, np.uint32)])
def test_objects_take_16_bits_or_32_where_there_are_more(num_objects: int, dtype: type) -> None:
    labels_zyx = as_labels(np.array([[[0, num_objects]]], np.int32))
    assert labels_zyx.dtype == dtype
    for output in ("tiff", "npz"):
        text = encode_mask(labels_zyx, None, output)["mask"]  # type: ignore[arg-type]
        assert text is not None
        np.testing.assert_array_equal(decode(text, output), labels_zyx)  # type: ignore[arg-type]


def test_png_says_what_it_cannot_hold() -> None:
    mask_zyx = np.zeros((2, 4, 4), np.uint8)
    with pytest.raises(DataError, match=r"2 planes asked for as png.*tiff or npz"):
        encode_mask(mask_zyx, None, "png")
    with pytest.raises(DataError, match=r"70000 objects asked for as png.*tiff or npz"):
        encode_mask(np.full((1, 4, 4), 70_000, np.uint32), None, "png")
    with pytest.raises(DataError, match="probabilities asked for as png"):
        encode_mask(mask_zyx[:1], np.zeros((1, 2, 4, 4), np.float32), "png")
