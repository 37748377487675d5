from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackseg.dataset.normalisation import (
    SAMPLED_PIXELS,
    ChannelStatistics,
    IntensityPolicy,
    fit_statistics,
    standardise,
)
from stackseg.errors import DataError
from stackseg.params.intensity import IntensityParams

DTYPES = ("uint8", "uint16", "int16", "float32")


def planes(dtype: str, num_planes: int = 3, num_channels: int = 2, seed: int = 1) -> list[npt.NDArray[np.generic]]:
    rng = np.random.default_rng(seed)
    drawn = rng.gamma(3, 12, (num_planes, 40, 50, num_channels)) - (30 if dtype == "int16" else 0)
    return [np.clip(one, -200, 255).astype(dtype) for one in drawn]


class Source:
    def __init__(self, held: list[npt.NDArray[np.generic]]) -> None:
        self.held = held
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.held)

    def plane(self, z: int) -> npt.NDArray[np.generic]:
        self.read.append(z)
        return self.held[z]


def policy(scope: str, statistics: tuple[ChannelStatistics, ...] | None = None) -> IntensityPolicy:
    return IntensityPolicy(
        params=IntensityParams.model_validate({"scope": scope}), colour="keep", statistics=statistics
    )


class TestFit:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("low", "high"), [(0.1, 99.9), (0.0, 100.0), (2.0, 98.0)])
    def test_it_is_what_numpy_says(self, dtype: str, low: float, high: float) -> None:
        given_planes = planes(dtype)
        found = fit_statistics(given_planes, 3, IntensityParams(low_percentile=low, high_percentile=high))
        pixels_nc = np.concatenate([one.reshape(-1, 2) for one in given_planes]).astype(float)
        for channel, one in enumerate(found):
            values = pixels_nc[:, channel]
            limits = np.percentile(values, [low, high])
            clipped = np.clip(values, *limits)
            np.testing.assert_allclose(
                (one.low, one.high, one.mean, one.std), (*limits, clipped.mean(), clipped.std()), rtol=1e-12
            )

    def test_planes_of_unlike_size_count_by_their_pixels(self) -> None:
        small_yxc, large_yxc = np.zeros((10, 10, 1), np.uint8), np.full((30, 10, 1), 4, np.uint8)
        (one,) = fit_statistics([small_yxc, large_yxc], 2, IntensityParams())
        assert one.mean == pytest.approx(3)

    def test_large_data_are_sampled_evenly(self) -> None:
        height, width = 2048, 2048
        ramp_yxc = np.broadcast_to(np.arange(width, dtype=np.uint16), (height, width))[:, :, None]
        (one,) = fit_statistics([ramp_yxc] * 2, 2, IntensityParams())
        assert height * width * 2 > 2 * SAMPLED_PIXELS
        assert one.mean == pytest.approx((width - 1) / 2, rel=2e-3)
        assert one.std == pytest.approx(width / 12**0.5, rel=2e-3)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("level", [0, 0.1, 100, 127])
    def test_a_constant_channel_has_no_spread_at_all(self, dtype: str, level: float) -> None:
        (one,) = fit_statistics([np.full((37, 41, 1), level).astype(dtype)], 1, IntensityParams())
        assert one.std == 0
        assert one.low == one.high == one.mean


class TestStandardise:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_training_planes_become_zero_and_one(self, dtype: str) -> None:
        given_planes = planes(dtype)
        statistics = fit_statistics(given_planes, 3, IntensityParams())
        inputs = np.stack([standardise(one, statistics) for one in given_planes])
        assert inputs.dtype == np.float32
        np.testing.assert_allclose(inputs.mean((0, 1, 2)), 0, atol=1e-5)
        np.testing.assert_allclose(inputs.std((0, 1, 2)), 1, atol=1e-5)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_channel_without_contrast_becomes_zero(self, dtype: str) -> None:
        image_yxc = planes(dtype)[0].copy()
        image_yxc[:, :, 1] = 100
        (inputs_yxc,) = (standardise(image_yxc, fit_statistics([image_yxc], 1, IntensityParams())),)
        assert (inputs_yxc[:, :, 1] == 0).all()
        assert inputs_yxc[:, :, 0].std() > 0.9

    def test_values_beyond_the_limits_are_clipped(self) -> None:
        statistics = (ChannelStatistics(low=10, high=20, mean=14, std=2),)
        image_yxc = np.array([[[-5], [10], [14], [20], [60000]]], np.float32)
        assert standardise(image_yxc, statistics)[0, :, 0].tolist() == [-2, -2, 0, 3, 3]

    def test_int16_does_not_overflow(self) -> None:
        image_yxc = np.array([[[-32768], [32767]]], np.int16)
        statistics = fit_statistics([image_yxc], 1, IntensityParams(low_percentile=0, high_percentile=100))
        np.testing.assert_allclose(standardise(image_yxc, statistics)[0, :, 0], [-1, 1], atol=1e-4)


class TestPolicy:
    @given(st.integers(0, 2**31), st.sampled_from(["uint16", "float32"]), st.integers(0, 5000))
    @settings(deadline=None, max_examples=25)
    def test_exposure_does_not_matter_where_each_plane_is_its_own_reference(
        self, seed: int, dtype: str, offset: int
    ) -> None:
        image_yxc = np.random.default_rng(seed).gamma(3, 400, (40, 50, 1)).astype(dtype)
        brighter_yxc = (image_yxc.astype(np.float64) * 4 + offset).astype(dtype)
        plain, bright = (policy("plane").apply(one, None, "") for one in (image_yxc, brighter_yxc))
        np.testing.assert_allclose(bright, plain, rtol=0, atol=1e-4)

    def test_exposure_matters_where_all_planes_share_one(self) -> None:
        image_yxc = planes("float32", 1)[0]
        shared = policy("dataset", fit_statistics([image_yxc], 1, IntensityParams()))
        reference = shared.reference(Source([image_yxc]))
        assert np.abs(shared.apply(image_yxc * 4, reference, "") - shared.apply(image_yxc, reference, "")).max() > 1

    def test_a_stack_is_its_own_reference(self) -> None:
        held = planes("uint16", 5)
        reference = policy("specimen").reference(Source(held))
        assert reference == fit_statistics(held, 5, IntensityParams())

    @pytest.mark.parametrize("num_planes", [1, 31, 32, 33, 100, 1000])
    def test_a_long_stack_is_read_in_part_from_end_to_end(self, num_planes: int) -> None:
        source = Source([np.full((2, 2, 1), z, np.uint16) for z in range(num_planes)])
        policy("specimen").reference(source)
        assert min(num_planes, 16) <= len(source.read) <= 32
        assert source.read == sorted(set(source.read))
        steps = np.diff([*source.read, num_planes])
        assert steps.max() <= -(-num_planes // 32)

    def test_planes_are_their_own_reference(self) -> None:
        source = Source(planes("uint16"))
        assert policy("plane").reference(source) is None
        assert source.read == []

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("scope", ["dataset", "specimen", "plane"])
    def test_inputs_are_finite_float32_of_the_same_shape(self, dtype: str, scope: str) -> None:
        held = planes(dtype)
        chosen = policy(scope, fit_statistics(held, 3, IntensityParams()) if scope == "dataset" else None)
        inputs_yxc = chosen.apply(held[0], chosen.reference(Source(held)), "")
        assert inputs_yxc.dtype == np.float32
        assert inputs_yxc.shape == held[0].shape
        assert np.isfinite(inputs_yxc).all()

    def test_other_channels_than_in_training(self) -> None:
        held = planes("uint8", 1, 3)
        shared = policy("dataset", fit_statistics(held, 1, IntensityParams()))
        with pytest.raises(DataError, match=r"^plane 4: 1 channels; expected 3, as in training"):
            shared.apply(held[0][:, :, :1], shared.statistics, "plane 4")

    def test_the_colour_policy_comes_first(self) -> None:
        rgb_yxc = np.repeat(planes("uint8", 1, 1)[0], 3, axis=2)
        grey = IntensityPolicy(params=IntensityParams(scope="plane"), colour="grey", statistics=None)
        np.testing.assert_array_equal(grey.apply(rgb_yxc, None, ""), policy("plane").apply(rgb_yxc[:, :, :1], None, ""))

    def test_it_travels_as_json(self) -> None:
        shared = policy("dataset", fit_statistics(planes("float32"), 3, IntensityParams()))
        assert IntensityPolicy.model_validate_json(shared.model_dump_json()) == shared


class TestPrecision:
    @pytest.mark.parametrize(
        ("dtype", "offset", "scale"),
        [("uint32", 3_000_000_000, 1), ("int32", -2_000_000_000, 1), ("float64", 1e6, 1e-4)],
    )
    def test_a_pedestal_costs_no_level(self, dtype: str, offset: float, scale: float) -> None:
        levels = np.random.default_rng(0).permutation(np.arange(64 * 64) % 189).reshape(64, 64, 1)
        plain, raised = levels.astype(np.uint16), (levels * scale + offset).astype(dtype)
        wide = IntensityParams(low_percentile=0.0, high_percentile=100.0)
        found = standardise(raised, fit_statistics([raised], 1, wide))
        assert found.dtype == np.float32
        expected = standardise(plain, fit_statistics([plain], 1, wide))
        assert len(np.unique(found.round(5))) == len(np.unique(expected)) == 189
        np.testing.assert_allclose(found, expected, rtol=0, atol=4e-6 if scale < 1 else 1e-6)

    @given(offset=st.integers(0, 2**32 - 2**16), seed=st.integers(0, 99))
    @settings(deadline=None)
    def test_an_offset_of_integers_changes_nothing(self, offset: int, seed: int) -> None:
        image = np.random.default_rng(seed).integers(0, 2**16, (9, 8, 2)).astype(np.uint32)
        first, second = (
            standardise(one, fit_statistics([one], 1, IntensityParams())) for one in (image, image + offset)
        )
        np.testing.assert_allclose(second, first, rtol=0, atol=4 * np.finfo(np.float32).eps)

    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
    def test_small_types_give_the_bits_of_float32_arithmetic(self, dtype: str) -> None:
        (image, *_) = planes(dtype)
        statistics = fit_statistics([image], 1, IntensityParams())
        low, high, mean, std = np.array([(s.low, s.high, s.mean, s.std) for s in statistics], np.float32).T
        assert np.array_equal(
            standardise(image, statistics), (np.clip(image.astype(np.float32), low, high) - mean) / std
        )

    def test_intensities_without_a_standard_deviation_are_refused(self) -> None:
        huge = np.array([0.0, 1e300]).repeat(50).reshape(10, 10, 1)
        with pytest.raises(DataError, match="intensities from 0 to 1e\\+300; expected values whose mean"):
            fit_statistics([huge], 1, IntensityParams())
