from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from stackseg.dataset.channels import context_indices
from stackseg.dataset.leakage import Leakage, measure_leakage, reduce_plane, require_test_apart
from stackseg.dataset.normalisation import exact_type
from stackseg.dataset.splits import Part, PlaneRef, assign_parts
from stackseg.errors import ParamsError
from stackseg.params.split import SplitParams

Planes = list[npt.NDArray[np.float32]]


def texture(*shape: int, sigma: float | tuple[float, ...] = 0, seed: int = 1) -> npt.NDArray[np.float32]:
    noise = np.random.default_rng(seed).normal(size=shape)
    return np.asarray(gaussian_filter(noise, sigma) if sigma else noise, np.float32)


def measure(planes_zyx: npt.NDArray[np.float32], split: SplitParams, name: str = "a") -> Leakage:
    refs = [PlaneRef(name, z) for z in range(len(planes_zyx))]
    parts = assign_parts(refs, split, 7)
    return measure_leakage({ref: reduce_plane(planes_zyx[ref.z][:, :, None]) for ref in refs}, parts)


class TestFigure:
    def test_planes_seen_in_training_count_as_one(self) -> None:
        unlike_zyx = texture(10, 96, 96, sigma=(0, 2, 2))
        planes_zyx = np.concatenate([unlike_zyx, unlike_zyx])
        refs = [PlaneRef("a", z) for z in range(20)]
        parts: dict[PlaneRef, Part] = {
            ref: "training" if ref.z < 10 else "validation" if ref.z < 15 else "test" for ref in refs
        }
        leakage = measure_leakage({ref: reduce_plane(planes_zyx[ref.z][:, :, None]) for ref in refs}, parts)
        assert leakage.figure == pytest.approx(1, abs=0.01)
        assert leakage.nearest == pytest.approx(1, abs=1e-4)
        assert leakage.leaks
        assert leakage.worst_plane is not None
        assert leakage.worst_nearest is not None
        assert int(leakage.worst_plane[2:]) == int(leakage.worst_nearest[2:]) + 10

    @pytest.mark.parametrize("method", ["blocks", "random"])
    @pytest.mark.parametrize("sigma", [1, 2])
    def test_independent_planes_count_as_none(self, method: str, sigma: float) -> None:
        leakage = measure(texture(30, 96, 128, sigma=(0, sigma, sigma)), SplitParams.model_validate({"method": method}))
        assert leakage.figure is not None
        # the nearest of many is always a little nearer than the middle one
        assert 0 <= leakage.figure < 0.12
        assert not leakage.leaks

    def test_a_stack_that_is_smooth_along_z(self) -> None:
        planes_zyx = texture(60, 96, 96, sigma=(1.5, 2, 2))
        random = measure(planes_zyx, SplitParams(method="random"))
        blocks = measure(planes_zyx, SplitParams(method="blocks", gap=4))
        touching = measure(planes_zyx, SplitParams(method="blocks", gap=0))
        assert random.figure is not None
        assert blocks.figure is not None
        assert touching.figure is not None
        assert random.leaks
        assert random.figure > 0.5
        assert not blocks.leaks
        assert blocks.figure < 0.15
        assert blocks.figure < touching.figure < random.figure

    def test_one_copied_plane_among_many_is_enough(self) -> None:
        planes_zyx = texture(40, 64, 64, sigma=(0, 1, 1))
        planes_zyx[39] = planes_zyx[3]
        leakage = measure(planes_zyx, SplitParams(gap=0))
        assert leakage.leaks
        assert (leakage.worst_plane, leakage.worst_nearest) == ("a/39", "a/3")
        assert leakage.worst_similarity == pytest.approx(1, abs=1e-4)

    def test_planes_that_are_all_alike_leak(self) -> None:
        planes_zyx = np.repeat(texture(1, 64, 64), 12, axis=0)
        assert measure(planes_zyx, SplitParams(gap=0)).leaks

    def test_other_specimens_are_far_apart(self) -> None:
        refs = [PlaneRef(name, z) for name in "abc" for z in range(3)]
        planes = {ref: reduce_plane(texture(64, 64, 1, seed=place)) for place, ref in enumerate(refs)}
        parts: dict[PlaneRef, Part] = {
            ref: {"a": "training", "b": "validation", "c": "test"}[ref.specimen]
            for ref in refs  # type: ignore[misc]
        }
        leakage = measure_leakage(planes, parts)
        assert leakage.far == pytest.approx(0, abs=0.05)
        assert not leakage.leaks

    def test_the_gap_and_unused_planes_are_not_asked(self) -> None:
        planes_zyx = texture(6, 64, 64)
        planes_zyx[5] = planes_zyx[4] = planes_zyx[0]
        refs = [PlaneRef("a", z) for z in range(6)]
        which: tuple[Part, ...] = ("training", "training", "validation", "test", "gap", "unused")
        parts = dict(zip(refs, which, strict=True))
        assert not measure_leakage({ref: reduce_plane(planes_zyx[ref.z][:, :, None]) for ref in refs}, parts).leaks

    def test_planes_of_unlike_size_cannot_be_compared(self) -> None:
        planes = {PlaneRef("a", z): reduce_plane(texture(40 + 9 * z, 50, 1)) for z in range(3)}
        parts: dict[PlaneRef, Part] = dict(zip(planes, ("training", "validation", "test"), strict=True))  # type: ignore[arg-type]
        leakage = measure_leakage(planes, parts)
        assert (leakage.figure, leakage.nearest, leakage.worst_plane, leakage.leaks) == (None, None, None, False)


class TestInvariance:
    def test_neither_order_nor_exposure_matters(self) -> None:
        planes_zyx = texture(24, 64, 80, sigma=(1, 1, 1)) * 100
        refs = [PlaneRef("a", z) for z in range(24)]
        parts = assign_parts(refs, SplitParams(gap=1), 7)
        plain = measure_leakage({ref: reduce_plane(planes_zyx[ref.z][:, :, None]) for ref in refs}, parts)
        rng = np.random.default_rng(5)
        gains, offsets = rng.uniform(0.25, 4, 24), rng.uniform(0, 3000, 24)
        changed = {
            PlaneRef("a", int(z)): reduce_plane((planes_zyx[z] * gains[z] + offsets[z]).astype(np.float32)[:, :, None])
            for z in rng.permutation(24)
        }
        other = measure_leakage(changed, parts)
        for name in ("nearest", "far", "figure", "worst_similarity"):
            assert getattr(other, name) == pytest.approx(getattr(plain, name), abs=2e-4)
        assert (other.worst_plane, other.worst_nearest) == (plain.worst_plane, plain.worst_nearest)

    def test_shading_that_all_planes_share_is_no_likeness(self) -> None:
        shading_yx = 20 * np.hypot(*np.mgrid[-1:1:96j, -1:1:96j]).astype(np.float32)
        leakage = measure(texture(30, 96, 96, sigma=(0, 1, 1)) + shading_yx, SplitParams(gap=0))
        assert not leakage.leaks
        assert leakage.figure is not None
        assert leakage.figure < 0.12

    def test_noise_does_not_hide_a_copy(self) -> None:
        planes_zyx = texture(30, 384, 384, sigma=(0, 6, 6))
        planes_zyx /= planes_zyx.std()
        planes_zyx[29] = planes_zyx[2]
        planes_zyx += texture(30, 384, 384, seed=2)
        leakage = measure(planes_zyx, SplitParams(gap=0))
        assert (leakage.worst_plane, leakage.worst_nearest) == ("a/29", "a/2")
        assert leakage.worst_similarity is not None
        assert leakage.worst_similarity > 0.8


class TestContext:
    @given(
        st.lists(st.sampled_from(["training", "validation", "test", "gap", "unused"]), min_size=1, max_size=12),
        st.integers(0, 12),
        st.integers(0, 5),
    )
    def test_no_neighbour_is_of_the_test_part(self, named: list[Part], rest: int, context_slices: int) -> None:
        parts = {PlaneRef("a", z): part for z, part in enumerate(named)}
        depth = len(named) + rest

        def reaches(num: int) -> bool:
            return any(
                parts.get(PlaneRef("a", z)) == "test"
                for ref, part in parts.items()
                if part in ("training", "validation")
                for z in context_indices(ref.z, depth, num)
            )

        if not reaches(context_slices):
            require_test_apart(parts, {"a": depth}, context_slices)
            return
        with pytest.raises(ParamsError, match=r"model\.context_slices: with .* Set it to at most") as caught:
            require_test_apart(parts, {"a": depth}, context_slices)
        most = int(caught.value.remedy.split("at most ")[1].split(",")[0])
        assert not reaches(most)
        assert reaches(most + 1)


class TestReduce:
    @given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 3))
    @settings(deadline=None, max_examples=25)
    def test_any_shape_gives_a_unit_vector_of_a_bounded_length(self, height: int, width: int, channels: int) -> None:
        image_yxc = np.random.default_rng(height).uniform(0, 9, (height, width, channels)).astype(np.float32)
        reduced = reduce_plane(image_yxc)
        assert reduced.ndim == 1
        assert reduced.dtype == np.float32
        assert len(reduced) <= 191 * 191
        assert np.linalg.norm(reduced) == pytest.approx(1, abs=1e-5) or height * width == 1

    @pytest.mark.parametrize("level", [0, 0.1, 1 / 3, 7, 1234.567, 65535, 1e6, -3.3])
    @pytest.mark.parametrize("shape", [(64, 64, 1), (33, 70, 3), (200, 130, 1)])
    def test_a_constant_plane_is_like_no_other(self, level: float, shape: tuple[int, ...]) -> None:
        assert np.abs(reduce_plane(np.full(shape, level, np.float32))).max() == 0


def test_a_pedestal_does_not_hide_what_two_planes_share() -> None:
    plain = np.random.default_rng(0).integers(0, 189, (96, 96, 1))
    raised = plain.astype(np.uint32) + np.uint32(3_000_000_000)
    reduced = [reduce_plane(one.astype(exact_type(one.dtype))) for one in (plain.astype(np.uint16), raised)]
    assert float(reduced[0] @ reduced[1]) == pytest.approx(1, abs=1e-5)
