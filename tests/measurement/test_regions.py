from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import regionprops_table

from stackseg.measurement.regions import Regions, regions_of_plane


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    highest=st.integers(0, 6),
    dtype=st.sampled_from(["u1", "u2", "i4", "u4", "i8"]),
)
def test_regions_gathered_by_planes_are_those_of_scikit_image(
    seed: int, shape: tuple[int, int, int], highest: int, dtype: str
) -> None:
    numbers_zyx = np.random.default_rng(seed).integers(0, highest, shape, endpoint=True).astype(dtype)
    found = Regions.merged([regions_of_plane(one, z) for z, one in enumerate(numbers_zyx)])
    # scikit-image knows no volumes of one plane
    padded_zyx = np.concatenate([numbers_zyx, np.zeros_like(numbers_zyx)])
    known = regionprops_table(padded_zyx.astype(np.int64), properties=("label", "area", "centroid", "bbox"))
    assert np.array_equal(found.numbers_n, known["label"])
    assert np.array_equal(found.sizes_n, known["area"])
    for axis in range(3):
        np.testing.assert_allclose(found.centroids_n3[:, axis], known[f"centroid-{axis}"])
        assert np.array_equal(found.low_n3[:, axis], known[f"bbox-{axis}"])
        assert np.array_equal(found.high_n3[:, axis], known[f"bbox-{axis + 3}"])
