"""Picks are apart from each other, follow the score the more the more is annotated, and are those of a seed."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stackseg.dataset.splits import PlaneRef
from stackseg.suggestion.candidates import Candidates
from stackseg.suggestion.choose import choose_planes, far_candidates, noise_temperature, spread_evenly

PLANES = [PlaneRef("rock", z) for z in range(60)]
SCORES = [0.1 + 0.3 * np.exp(-((z - 40) ** 2) / 50) for z in range(60)]
NO_DISTANCE = {"rock": 1}


def picked(method: str, num: int = 5, distance: int = 1, **more: int) -> list[int]:
    scores = SCORES if method in ("entropy", "foreground") else ()
    return [
        one.z
        for one in choose_planes(method, PLANES, num, {"rock": distance}, scores=scores, **more)  # type: ignore[arg-type]
    ]


@given(st.sampled_from(["entropy", "random", "even", "foreground"]), st.integers(1, 9), st.integers(1, 20))
def test_picks_are_different_and_apart(method: str, num: int, distance: int) -> None:
    found = sorted(picked(method, num, distance, seed=num))
    assert 1 <= len(found) <= num
    assert all(b - a >= distance for a, b in itertools.pairwise(found))
    if num * (2 * distance - 1) <= len(PLANES):  # no pick closes more than so many planes
        assert len(found) == num


def test_distances_do_not_reach_into_another_stack() -> None:
    planes = [PlaneRef("a", 0), PlaneRef("b", 1)]
    assert len(choose_planes("even", planes, 2, {"a": 9, "b": 9})) == 2
    stacks = {"a": Candidates(5, (0, 1, 2, 3), (4,), ()), "b": Candidates(5, (0, 4), (), ())}
    far = far_candidates(stacks, {"a": 3, "b": 3})
    assert far == [PlaneRef("a", 0), PlaneRef("a", 1), PlaneRef("b", 0), PlaneRef("b", 4)]


def test_even_picks_are_the_middles_of_equal_parts() -> None:
    assert picked("even") == [6, 18, 30, 42, 54]
    assert spread_evenly(9, 3) == [0, 1, 2]


def test_the_seed_and_the_annotated_planes_choose_the_noise() -> None:
    for method in ("entropy", "random", "foreground"):
        assert picked(method, seed=1, num_annotated=4) == picked(method, seed=1, num_annotated=4)
        assert picked(method, seed=1, num_annotated=4) != picked(method, seed=2, num_annotated=4)
        assert picked(method, seed=1, num_annotated=4) != picked(method, seed=1, num_annotated=5)


def test_noise_falls_with_the_annotated_planes_until_the_highest_scores_are_picked() -> None:
    logs = np.log(SCORES)
    assert noise_temperature(logs, 0) == np.std(logs)
    assert noise_temperature(logs, 8) == np.std(logs) / 2
    best = set(np.argsort(SCORES)[-5:])

    def hits(num_annotated: int) -> int:
        return sum(len(best & {*picked("entropy", seed=seed, num_annotated=num_annotated)}) for seed in range(50))

    assert 50 < hits(0) < 0.8 * hits(100)
    assert hits(100_000) > 245


def test_planes_that_are_all_alike_and_planes_without_uncertainty_are_drawn_too() -> None:
    for scores in ([0.2] * 60, [0.0] * 60, [0.0] * 57 + [0.1] * 3):
        assert len(choose_planes("entropy", PLANES, 5, NO_DISTANCE, scores=scores)) == 5


def test_foreground_is_drawn_in_proportion() -> None:
    planes, shares = PLANES[:3], [0.1, 0.3, 0.6]
    first = Counter(
        choose_planes("foreground", planes, 1, NO_DISTANCE, scores=shares, seed=seed)[0].z for seed in range(2000)
    )
    np.testing.assert_allclose([first[z] / 2000 for z in range(3)], shares, atol=0.04)
