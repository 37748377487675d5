"""The gate: what it lets through, what it refuses, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackseg.dataset.splits import PlaneRef
from stackseg.errors import DataError
from stackseg.evaluation.evaluate import PlaneCounts
from stackseg.params import Params
from stackseg.registry import gate as promotion
from stackseg.registry.gate import Verdict, judge, measure_speed, unseen_planes

CLASSES = ("pore", "grain")


@dataclass(frozen=True)
class Named:
    name: str
    is_stack: bool = False


@dataclass(frozen=True)
class Plane:
    image_sha256: str
    group: str | None = None


@dataclass(frozen=True)
class Seen:
    training: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    gap: tuple[str, ...] = ()


@dataclass(frozen=True)
class Told:
    seen: Seen


@dataclass(frozen=True)
class Model:
    digest: str


@dataclass(frozen=True)
class Entrant:
    """What the gate reads of a contender."""

    version: str
    seen: Seen = field(default_factory=Seen)
    num_bytes: int = 5_000_000

    @property
    def spec(self) -> Told:
        return Told(self.seen)

    @property
    def bundle(self) -> Model:
        return Model(f"digest-{self.version}")


@dataclass(frozen=True)
class Answered:
    """A segmented plane of a megapixel."""

    mask_yx: np.ndarray = field(default_factory=lambda: np.zeros((1000, 1000), np.uint8))


@dataclass(frozen=True)
class Split:
    method: str = "random"


@dataclass(frozen=True)
class Data:
    """What the gate reads of a catalogue."""

    digests: tuple[str, ...] = ()
    is_stack: bool = False
    seed: int = 0
    split: Split = field(default_factory=Split)

    @property
    def classes(self) -> tuple[Named, ...]:
        return tuple(Named(name) for name in CLASSES)

    @property
    def specimens(self) -> tuple[Named, ...]:
        return (Named("rock", self.is_stack),)

    def planes(self, part: str) -> list[tuple[PlaneRef, Plane]]:
        assert part == "test"
        return [(PlaneRef("rock", z), Plane(digest)) for z, digest in enumerate(self.digests)]

    def digest(self) -> str:
        return "catalogue"


def counts(errors: Sequence[float], *, share: float = 0.5, only: int | None = None) -> list[PlaneCounts]:
    """Return planes of a thousand pixels with these shares of mistakes; of both classes, or of one only."""
    planes = []
    for z, error in enumerate(errors):
        size = np.array([share, 1 - share]) * 1000
        wrong = np.array([error, error]) if only is None else np.eye(2)[only] * error
        counts_cc = np.diag(size * (1 - wrong)) + np.fliplr(np.diag(size * wrong))
        counts_cc = np.rint(counts_cc).astype(np.int64)
        planes.append(PlaneCounts(PlaneRef("rock", z), Plane(str(z)), counts_cc, counts_cc[None], None, None))  # type: ignore[arg-type]
    return planes


def judged(
    challenger: list[PlaneCounts],
    champion: list[PlaneCounts] | None,
    *,
    is_stack: bool = False,
    speed: float = 100.0,
    num_samples: int = 300,
    **rules: Any,
) -> Verdict:
    params = Params().override(
        {"evaluate.bootstrap_samples": num_samples} | {f"promotion.{k}": v for k, v in rules.items()}
    )
    return judge(
        Entrant("2"),  # type: ignore[arg-type]
        None if champion is None else Entrant("1"),  # type: ignore[arg-type]
        challenger,
        champion,
        Data(is_stack=is_stack, split=Split("blocks" if is_stack else "random")),  # type: ignore[arg-type]
        params,
        num_seen=0,
        ms_per_megapixel=speed,
    )


NOISE = [0.10, 0.14, 0.08, 0.12, 0.11, 0.09, 0.13, 0.10]


def shifted(by: float) -> list[float]:
    return [one + by for one in NOISE]


class TestFirstVersion:
    def test_passes_on_floors_alone_even_on_one_plane(self) -> None:
        verdict = judged(counts([0.1]), None)
        assert verdict.passed
        assert verdict.gain is None
        assert verdict.champion is None

    def test_is_refused_below_a_floor(self) -> None:
        refused = judged(counts([0.5]), None, floor_mean_iou=0.4)
        assert [one.split(" is ")[0] for one in refused.reasons] == ["mean IoU 0.3333"]
        assert not judged(counts([0.1, 0.1], only=0), None, floor_class_iou=0.95).passed

    def test_keeps_the_budget(self) -> None:
        assert not judged(counts([0.1]), None, max_ms_per_megapixel=99).passed
        assert not judged(counts([0.1]), None, max_megabytes=4.9).passed
        assert judged(counts([0.1]), None, max_ms_per_megapixel=101, max_megabytes=5.1).passed


class TestAgainstAChampion:
    def test_a_clear_gain_on_every_plane_passes(self) -> None:
        verdict = judged(counts(NOISE), counts(shifted(0.03)))
        assert verdict.passed, verdict.reasons
        assert verdict.gain is not None
        assert verdict.gain.low is not None
        assert 0 < verdict.gain.low < (verdict.gain_mean_iou or 0) < (verdict.gain.high or 0)

    def test_pairing_finds_a_gain_that_differs_less_than_planes_do(self) -> None:
        # planes differ by several percent, the gain is a third of one on each
        assert judged(counts(NOISE), counts(shifted(0.003))).passed

    def test_the_same_model_is_refused(self) -> None:
        verdict = judged(counts(NOISE), counts(NOISE))
        assert not verdict.passed
        assert verdict.gain_mean_iou == 0

    def test_a_gain_on_some_planes_and_a_loss_on_others_is_refused(self) -> None:
        mixed = [one + (0.06 if place % 2 else -0.05) for place, one in enumerate(NOISE)]
        (reason,) = judged(counts(NOISE), counts(mixed)).reasons
        assert "with 95% confidence" in reason

    def test_more_than_min_gain_is_wanted(self) -> None:
        pair = counts(NOISE), counts(shifted(0.01))
        assert judged(*pair, min_gain=0.005).passed
        assert not judged(*pair, min_gain=0.05).passed

    def test_a_class_may_not_fall(self) -> None:
        better = counts([0.02] * 8, only=0)
        worse = counts([0.30] * 8, only=0)
        # the champion confuses one class less, and the other one much more
        verdict = judged(better, worse, max_class_drop=0.0)
        assert verdict.passed
        lopsided = counts([0.02] * 8, share=0.9, only=1)
        refused = judged(lopsided, counts([0.001] * 8, share=0.9), max_class_drop=0.0)
        assert any("falls by" in one for one in refused.reasons)

    @pytest.mark.parametrize("num_planes", [1, 4])
    def test_too_few_units_are_refused_with_what_would_settle_it(self, num_planes: int) -> None:
        (reason,) = judged(counts(NOISE[:num_planes]), counts(shifted(0.1)[:num_planes])).reasons
        assert f"{num_planes} independent units" in reason
        assert "split.test" in reason

    def test_neighbouring_planes_of_a_stack_are_one_unit(self) -> None:
        verdict = judged(counts(NOISE), counts(shifted(0.1)), is_stack=True)
        assert (verdict.num_planes, verdict.num_units) == (8, 1)
        assert not verdict.passed

    @settings(max_examples=30, deadline=None)
    @given(
        st.lists(st.floats(0.01, 0.4), min_size=5, max_size=12),
        st.lists(st.floats(0.01, 0.4), min_size=12, max_size=12),
    )
    def test_of_two_models_at_most_one_passes_against_the_other(self, first: list[float], second: list[float]) -> None:
        a, b = counts(first), counts(second[: len(first)])
        forward, backward = (judged(*pair, num_samples=100, floor_mean_iou=0.0) for pair in ((a, b), (b, a)))
        assert not (forward.passed and backward.passed)
        assert forward.gain_mean_iou == pytest.approx(-(backward.gain_mean_iou or 0))


def test_the_least_disturbed_run_is_the_speed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = iter([0, 9, 10, 10.5, 20, 24, 30, 30.2, 40, 47, 50, 51])  # six runs; the first one warms up
    monkeypatch.setattr(promotion.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(promotion, "find_specimens", lambda data: [Named("rock")])
    monkeypatch.setattr(promotion, "segment", lambda *_, **__: [Answered()])
    assert measure_speed(None, tmp_path, PlaneRef("rock", 0)) == pytest.approx(200)  # type: ignore[arg-type]


class TestUnseenPlanes:
    def test_planes_that_either_has_seen_are_left_out(self) -> None:
        data = Data(tuple("abcdef"))
        entrants = [
            Entrant("2", Seen(training=("a", "x"), validation=("b",))),
            Entrant("1", Seen(gap=("d",), training=("y",))),
        ]
        chosen, num_seen = unseen_planes(data, entrants)  # type: ignore[arg-type]
        assert [ref.z for ref in chosen] == [2, 4, 5]
        assert num_seen == 3

    def test_none_left_is_an_error_with_the_count(self) -> None:
        with pytest.raises(DataError, match="0 of 2 test planes are new to version 2 and version 1"):
            unseen_planes(
                Data(("a", "b")),  # type: ignore[arg-type]
                [Entrant("2", Seen(training=("a",))), Entrant("1", Seen(validation=("b",)))],  # type: ignore[list-item]
            )
