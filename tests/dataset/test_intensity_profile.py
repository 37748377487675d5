"""Drift: planes of the training part's kind pass, planes of another kind are named with their figures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackseg.dataset.intensity_profile import (
    NOISE_FACTOR,
    PlaneFigures,
    intensity_drift,
    intensity_profile,
    plane_figures,
    voxel_factor,
)


def _plane(seed: int, noise: float = 40.0, gain: float = 1.0, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    blocks_yx = rng.integers(2, 6, (8, 8)).repeat(16, 0).repeat(16, 1) * 1000.0
    image_yx = (blocks_yx + rng.normal(0, noise, (128, 128))) * gain + offset
    return np.clip(image_yx, 0, 65535).astype(np.uint16)[:, :, None]


@pytest.fixture(scope="module")
def figures() -> list[tuple[PlaneFigures, ...]]:
    return [plane_figures(_plane(seed)) for seed in range(6)]


class TestNoise:
    @pytest.mark.parametrize("sigma", [5.0, 40.0, 200.0])
    def test_is_the_standard_deviation_of_white_noise_whatever_lies_under_it(self, sigma: float) -> None:
        (one,) = plane_figures(_plane(3, noise=sigma))
        assert one.noise == pytest.approx(sigma, rel=0.15)

    def test_a_ramp_is_no_noise(self) -> None:
        ramp_yx = np.add.outer(np.arange(64), 3 * np.arange(64)).astype(np.uint16)
        assert plane_figures(ramp_yx[:, :, None])[0].noise == 0


class TestDrift:
    def test_planes_of_the_same_kind_have_none(self, figures: list[tuple[PlaneFigures, ...]]) -> None:
        profile = intensity_profile(figures)
        for seed in range(100, 110):
            assert intensity_drift(profile, plane_figures(_plane(seed))) == []

    def test_training_planes_have_none(self, figures: list[tuple[PlaneFigures, ...]]) -> None:
        profile = intensity_profile(figures)
        assert profile.num_planes == 6
        assert all(intensity_drift(profile, one) == [] for one in figures)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"gain": 2.0}, {"median", "high", "noise"}),
            ({"offset": 3000.0}, {"low", "median", "high"}),
            ({"noise": 160.0}, {"noise"}),
            ({"noise": 5.0}, {"noise"}),
        ],
    )
    def test_another_exposure_or_noise_is_named(
        self, figures: list[tuple[PlaneFigures, ...]], change: dict[str, float], named: set[str]
    ) -> None:
        drift = intensity_drift(intensity_profile(figures), plane_figures(_plane(7, **change)))
        assert named <= {one.figure for one in drift}
        for one in drift:
            assert not one.training_low <= one.found <= one.training_high

    def test_channels_are_told_apart(self) -> None:
        both = [np.concatenate([_plane(seed), _plane(seed + 50)], axis=2) for seed in range(4)]
        profile = intensity_profile([plane_figures(one) for one in both])
        brighter = np.concatenate([_plane(9), _plane(10, gain=2.0)], axis=2)
        assert {one.figure.partition(" of ")[2] for one in intensity_drift(profile, plane_figures(brighter))} == {
            "channel 1"
        }

    @settings(max_examples=50)
    @given(st.lists(st.floats(1, 1000), min_size=1, max_size=5), st.floats(0.1, 2000))
    def test_noise_is_judged_by_its_factor(self, seen: list[float], found: float) -> None:
        profile = intensity_profile([(PlaneFigures(low=0, median=5, high=9, noise=one),) for one in seen])
        drift = intensity_drift(profile, (PlaneFigures(low=0, median=5, high=9, noise=found),))
        outside = found < min(seen) / NOISE_FACTOR or found > max(seen) * NOISE_FACTOR
        assert bool(drift) == outside


class TestVoxelFactor:
    def test_is_symmetric_and_takes_the_worst_known_axis(self) -> None:
        assert voxel_factor((1.0, 0.5, 0.5), (1.0, 1.0, 0.5)) == 2
        assert voxel_factor((1.0, 1.0, 0.5), (1.0, 0.5, 0.5)) == 2
        assert voxel_factor((None, 0.5, 0.5), (7.0, 0.5, 0.4)) == pytest.approx(1.25)

    def test_is_none_where_nothing_is_known(self) -> None:
        assert voxel_factor(None, (1.0, 1.0, 1.0)) is None
        assert voxel_factor((None, None, None), (1.0, 1.0, 1.0)) is None


def test_noise_on_a_large_pedestal_is_what_it_is_without() -> None:
    plain = np.random.default_rng(0).integers(0, 40, (64, 64, 1)).astype(np.uint16)
    (expected,) = plane_figures(plain)
    (found,) = plane_figures(plain.astype(np.uint32) + np.uint32(3_000_000_000))
    assert found.noise == expected.noise > 0
