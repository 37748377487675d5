from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackseg.dataset.labels.table import IGNORE_INDEX
from stackseg.evaluation.bootstrap import (
    Interval,
    Statistic,
    bootstrap_interval,
    gain_of_same_classes,
    group_into_blocks,
    mean_iou_of_same_classes,
    tile_counts,
)
from stackseg.model.confusion import Counts, confusion_counts, mean_iou, pixel_accuracy


def simulated_planes(num_planes: int, rng: np.random.Generator) -> Counts:
    """Counts of planes that differ in their share of classes and in how often each class is mistaken."""
    mistakes_cc = np.array([[0.9, 0.04, 0.06], [0.1, 0.7, 0.2], [0.05, 0.05, 0.9]])
    shares_uc = rng.dirichlet([6, 2, 6], size=num_planes)
    rates_ucc = np.stack([rng.dirichlet(row * 40, size=num_planes) for row in mistakes_cc], axis=1)
    return (shares_uc[:, :, None] * rates_ucc * 1e6).astype(np.int64)


def ninety_five(counts_ucc: Counts, **options: int) -> tuple[float, float]:
    interval = bootstrap_interval(counts_ucc, mean_iou, **{"num_samples": 400, "seed": 0} | options, confidence=0.95)
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


def planes_of_which_some_fail(num_planes: int, rng: np.random.Generator) -> Counts:
    """Counts of fields that differ tenfold in how much they hold of a class; in one of ten most of it is missed."""
    held_u = 0.05 * np.exp(rng.normal(0, 0.7, num_planes)).clip(0.1, 8)
    found_u = np.where(rng.random(num_planes) < 0.1, rng.beta(4, 4, num_planes), rng.beta(30, 3, num_planes))
    wrong_u = held_u * rng.beta(2, 25, num_planes)
    counts_ucc = np.zeros((num_planes, 2, 2))
    counts_ucc[:, 1] = np.stack([held_u * (1 - found_u), held_u * found_u], axis=1)
    counts_ucc[:, 0] = np.stack([1 - held_u - wrong_u, wrong_u], axis=1)
    return (counts_ucc * 65536).astype(np.int64)


@pytest.mark.parametrize(
    ("planes_like", "num_planes"),
    [(simulated_planes, 5), (simulated_planes, 12), (planes_of_which_some_fail, 20), (planes_of_which_some_fail, 40)],
)
def test_a_nominal_95_percent_interval_holds_the_truth_in_nine_of_ten_cases(
    planes_like: Callable[[int, np.random.Generator], Counts], num_planes: int
) -> None:
    rng = np.random.default_rng(1)
    truth = mean_iou(planes_like(100_000, rng).sum(axis=0))
    assert truth is not None
    ends = [ninety_five(planes_like(num_planes, rng), num_samples=100) for _ in range(150)]
    assert np.mean([low <= truth <= high for low, high in ends]) >= 0.9


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(*[st.integers(0, 1000)] * 4), min_size=5, max_size=12),
    st.sampled_from([0.5, 0.9, 0.99]),
)
def test_the_interval_holds_the_score_and_stays_within_its_range(
    units: list[tuple[int, int, int, int]], confidence: float
) -> None:
    counts_ucc = np.array(units, dtype=np.int64).reshape(-1, 2, 2)
    scores: list[tuple[Counts, Statistic, float]] = [(counts_ucc, mean_iou_of_same_classes(counts_ucc), 0.0)]
    pairs_u2cc = np.stack([counts_ucc, counts_ucc[:, :, ::-1]], axis=1)
    scores.append((pairs_u2cc, gain_of_same_classes(pairs_u2cc), -1.0))
    for counts_u, statistic, lowest in scores:
        interval = bootstrap_interval(counts_u, statistic, num_samples=60, confidence=confidence, seed=0, lowest=lowest)
        if interval.low is None or interval.high is None:
            assert interval.reason is not None
            continue
        score = statistic(counts_u.sum(axis=0))
        assert score is not None
        assert lowest <= interval.low <= score + 1e-9
        assert score - 1e-9 <= interval.high <= 1
        assert 2 <= (interval.effective_units or 0) <= interval.num_units


def test_one_unit_that_decides_the_score_makes_the_interval_wide() -> None:
    even_ucc = np.array([[[80, 0], [20 + place, 100]] for place in range(-10, 10)])
    uneven_ucc = even_ucc.copy()
    uneven_ucc[0] = [[80, 0], [700, 100]]
    even, uneven = (
        bootstrap_interval(counts_ucc, mean_iou, num_samples=300, confidence=0.95, seed=0)
        for counts_ucc in (even_ucc, uneven_ucc)
    )
    assert (even.num_units, uneven.num_units) == (20, 20)
    assert (even.effective_units or 0) > 8
    assert uneven.effective_units == 2
    assert ninety_five(uneven_ucc)[1] > mean_iou(uneven_ucc[1:].sum(axis=0))  # what it would be without that unit


def test_a_record_from_before_effective_units_is_read() -> None:
    old = '{"low":0.8,"high":0.9,"confidence":0.95,"num_units":40,"unit":"plane",'
    old += '"method":"expanded percentile bootstrap"}'
    assert Interval.model_validate_json(old).method == "expanded percentile bootstrap"


def test_the_interval_surrounds_the_score_and_narrows_with_more_units() -> None:
    counts_ucc = simulated_planes(80, np.random.default_rng(2))
    few, many = ninety_five(counts_ucc[:8]), ninety_five(counts_ucc)
    assert few[0] < mean_iou(counts_ucc[:8].sum(axis=0)) < few[1]
    assert many[0] < mean_iou(counts_ucc.sum(axis=0)) < many[1]
    assert many[1] - many[0] < 0.6 * (few[1] - few[0])


def test_more_confidence_is_a_wider_interval_and_equal_seeds_agree() -> None:
    counts_ucc = simulated_planes(10, np.random.default_rng(3))
    widths = []
    for confidence in (0.5, 0.8, 0.95):
        interval = bootstrap_interval(counts_ucc, mean_iou, num_samples=500, confidence=confidence, seed=4)
        assert interval == bootstrap_interval(counts_ucc, mean_iou, num_samples=500, confidence=confidence, seed=4)
        assert interval.confidence == confidence
        widths.append(interval.high - interval.low)
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_equal_units_leave_no_doubt() -> None:
    counts_ucc = np.repeat(np.array([[[5, 1], [2, 8]]]), 6, axis=0)
    low, high = ninety_five(counts_ucc)
    assert low == pytest.approx(high) == pytest.approx((5 / 8 + 8 / 11) / 2)


def test_resampling_one_pixel_units_gives_the_binomial_interval() -> None:
    num_right, num_units = 70, 100
    counts_ucc = np.zeros((num_units, 2, 2), dtype=np.int64)
    counts_ucc[:num_right, 0, 0] = 1
    counts_ucc[num_right:, 0, 1] = 1
    interval = bootstrap_interval(counts_ucc, pixel_accuracy, num_samples=4000, confidence=0.95, seed=0)
    half = 1.984 * np.sqrt(0.7 * 0.3 / (num_units - 1))  # Student's t with 99 degrees of freedom
    assert interval.low == pytest.approx(0.7 - half, abs=0.015)
    assert interval.high == pytest.approx(0.7 + half, abs=0.015)


def test_too_few_units_give_null_and_the_number() -> None:
    counts_ucc = simulated_planes(4, np.random.default_rng(0))
    interval = bootstrap_interval(
        counts_ucc, mean_iou, num_samples=100, confidence=0.95, seed=0, unit="block of planes"
    )
    assert (interval.low, interval.high, interval.num_units) == (None, None, 4)
    assert interval.reason is not None
    assert "4 independent units" in interval.reason
    assert "5" in interval.reason
    assert interval.unit == "block of planes"


def test_units_without_a_pixel_do_not_count() -> None:
    counts_ucc = simulated_planes(6, np.random.default_rng(0))
    with_empty = np.concatenate([counts_ucc, np.zeros((3, 3, 3), dtype=np.int64)])
    assert ninety_five(with_empty) == ninety_five(counts_ucc)
    assert bootstrap_interval(counts_ucc * 0, mean_iou, num_samples=9, confidence=0.9, seed=0).num_units == 0


def test_resamples_without_a_score_are_left_out_and_counted() -> None:
    # Class 1 occurs in one unit of six: a resample misses it in (5/6)^6 = 33 % of cases.
    counts_ucc = np.repeat(np.array([[[90, 0], [0, 0]]]), 6, axis=0)
    counts_ucc[0] = [[50, 10], [20, 10]]
    statistic = mean_iou_of_same_classes(counts_ucc)
    interval = bootstrap_interval(counts_ucc, statistic, num_samples=1000, confidence=0.95, seed=0)
    assert interval.num_samples == 1000
    assert interval.num_left_out == pytest.approx(335, abs=50)
    # Plain mean IoU takes the resamples without the class for perfect.
    plain = bootstrap_interval(counts_ucc, mean_iou, num_samples=1000, confidence=0.95, seed=0)
    assert plain.num_left_out == 0
    assert (interval.high or 1) < (plain.high or 0) - 0.1


def test_a_score_that_is_undefined_gives_null_with_a_reason() -> None:
    counts_ucc = simulated_planes(6, np.random.default_rng(0))
    nowhere = bootstrap_interval(counts_ucc, lambda _: None, num_samples=10, confidence=0.95, seed=0)
    assert (nowhere.low, nowhere.high) == (None, None)
    assert nowhere.reason is not None
    # Counts of which no other resample has the same sum.
    distinct_ucc = np.zeros((5, 1, 1), dtype=np.int64)
    distinct_ucc[:, 0, 0] = [1, 10, 100, 1000, 10_000]

    def only_on_all(counts_cc: Counts) -> float | None:
        return 1.0 if counts_cc.sum() == 11_111 else None

    kept = bootstrap_interval(distinct_ucc, only_on_all, num_samples=2000, confidence=0.95, seed=0)
    # All five once: 5! / 5^5 = 3.8 % of resamples.
    assert kept.num_left_out == pytest.approx(2000 * (1 - 120 / 3125), abs=40)
    assert (kept.low, kept.high) == (1.0, 1.0)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 60)), min_size=1, max_size=40, unique=True),
    st.integers(1, 12),
)
def test_blocks_partition_the_planes_and_keep_neighbours_together(
    planes: list[tuple[str, int]], block_planes: int
) -> None:
    specimens, zs = [name for name, _ in planes], [z for _, z in planes]
    blocks = group_into_blocks(specimens, zs, block_planes)
    assert sorted(i for block in blocks for i in block) == list(range(len(planes)))
    spans = []
    for block in blocks:
        assert len({specimens[i] for i in block}) == 1
        spans.append((specimens[block[0]], min(zs[i] for i in block), max(zs[i] for i in block)))
    spans.sort()
    for (specimen, _, end), (next_specimen, start, _) in pairwise(spans):
        assert specimen != next_specimen or start > end


def test_blocks_of_stacks_and_of_sparse_planes() -> None:
    dense = group_into_blocks(["core"] * 25, list(range(25)), 10)
    assert [len(block) for block in dense] == [13, 12]
    assert group_into_blocks(["core"] * 7, [0, 50, 100, 150, 200, 250, 300], 10) == [[i] for i in range(7)]
    assert group_into_blocks(["core"] * 3, [0, 9, 19], 10) == [[0, 1], [2]]
    assert group_into_blocks(["core"] * 2, [0, 10], 10) == [[0], [1]]
    assert group_into_blocks(["core"] * 12, list(range(12)), 10) == [list(range(12))]
    assert group_into_blocks(["a", "b", "a"], [1, 0, 0], 10) == [[2, 0], [1]]
    assert group_into_blocks(["a"] * 3, [0, 1, 2], 1) == [[0], [1], [2]]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 16), st.integers(0, 2**32 - 1))
def test_tiles_sum_to_the_plane(num_y: int, num_x: int, tile: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth_yx = rng.choice([0, 1, 2, IGNORE_INDEX], size=(num_y, num_x)).astype(np.uint8)
    prediction_yx = rng.integers(0, 3, size=(num_y, num_x)).astype(np.uint8)
    counts_tcc = tile_counts(truth_yx, prediction_yx, 3, tile)
    assert len(counts_tcc) == -(-num_y // tile) * -(-num_x // tile)
    assert counts_tcc.sum(axis=(1, 2)).max() <= tile**2
    np.testing.assert_array_equal(counts_tcc.sum(axis=0), confusion_counts(truth_yx, prediction_yx, 3))


def test_a_plane_of_1024_by_996_has_64_tiles() -> None:
    plane_yx = np.zeros((1024, 996), dtype=np.uint8)
    assert tile_counts(plane_yx, plane_yx, 2).shape == (64, 2, 2)
