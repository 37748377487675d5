"""Choose planes: in the order of a noisy score, or evenly, and not too near to each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from stackseg.dataset.splits import PlaneRef
from stackseg.suggestion.candidates import Candidates, far_from

Method = Literal["entropy", "random", "even", "foreground"]

_HALVED_AFTER = 8
"""Annotated planes after which the noise on the entropy is half of what it is without any."""
_LOWEST_SHARE = 1e-3
"""Of the highest score: below it scores are alike."""


def noise_temperature(log_scores: npt.NDArray[np.float64], num_annotated: int) -> float:
    """Return the temperature of the noise on log scores: their spread at first, less the more planes are annotated.

    A model of a few planes does not know what it does not know, and its most uncertain planes are alike. So the first
    picks are nearly random, and later ones follow the score.
    """
    return float(log_scores.std()) * _HALVED_AFTER / (_HALVED_AFTER + num_annotated)


def order_by_entropy(
    uncertainty: Sequence[float], num_annotated: int, random: np.random.Generator
) -> npt.NDArray[np.intp]:
    """Return places of planes, first that of the highest log score with Gumbel noise."""
    log_scores = _logs(uncertainty)
    noise = random.gumbel(size=len(log_scores)) * noise_temperature(log_scores, num_annotated)
    return np.argsort(-(log_scores + noise), kind="stable")


def order_by_foreground(shares: Sequence[float], random: np.random.Generator) -> npt.NDArray[np.intp]:
    """Return places of planes, drawn one after another with chances in proportion to their share of foreground."""
    # the highest of logs with Gumbel noise of temperature 1 is such a draw
    log_shares = _logs(shares)
    return np.argsort(-(log_shares + random.gumbel(size=len(log_shares))), kind="stable")


def _logs(scores: Sequence[float]) -> npt.NDArray[np.float64]:
    values = np.asarray(scores, np.float64)
    return np.log(np.maximum(values, max(values.max() * _LOWEST_SHARE, np.finfo(np.float64).tiny)))


def spread_evenly(num: int, num_all: int) -> list[int]:
    """Return the places of `num` of `num_all` things in the middle of equal parts; all where there are no more."""
    num = min(num, num_all)
    return [(2 * place + 1) * num_all // (2 * num) for place in range(num)]


def far_candidates(stacks: Mapping[str, Candidates], distances: Mapping[str, int]) -> list[PlaneRef]:
    """Return the planes that may be suggested and lie far enough from every annotated one."""
    return [
        PlaneRef(name, z)
        for name, stack in stacks.items()
        for z in stack.allowed
        if far_from(z, stack.annotated, distances[name])
    ]


def take_apart(order: Iterable[PlaneRef], num: int, distances: Mapping[str, int]) -> list[PlaneRef]:
    """Return the first `num` planes of an order, passing over those too near to one taken before."""
    taken: list[PlaneRef] = []
    for ref in order:
        if len(taken) == num:
            break
        if far_from(ref.z, [one.z for one in taken if one.specimen == ref.specimen], distances[ref.specimen]):
            taken.append(ref)
    return taken


def choose_planes(
    method: Method,
    planes: Sequence[PlaneRef],
    num: int,
    distances: Mapping[str, int],
    *,
    scores: Sequence[float] = (),
    num_annotated: int = 0,
    seed: int = 0,
) -> list[PlaneRef]:
    """Return at most `num` of the planes, the first choice first; fewer where the distances leave no more.

    Parameters
    ----------
    planes
        Those that may be suggested; see `far_candidates`.
    distances
        Least distance in z between two picks of each stack.
    scores
        Of each plane: class-stratified entropy for ``entropy``, share of foreground for ``foreground``.
    num_annotated
        Annotated planes so far: the noise falls with them, and differs from round to round.
    seed
        Of the noise.
    """
    if not planes:
        return []
    random = np.random.default_rng([seed, num_annotated])
    if method == "entropy":
        order = order_by_entropy(scores, num_annotated, random)
    elif method == "foreground":
        order = order_by_foreground(scores, random)
    elif method == "random":
        order = random.permutation(len(planes))
    else:
        even = spread_evenly(num, len(planes))
        # the others fill up where some are too near to each other
        order = np.array([*even, *sorted({*range(len(planes))} - {*even})])
    return take_apart((planes[place] for place in order), num, distances)
