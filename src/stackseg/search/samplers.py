"""How a study chooses its trials and stops the poor ones: samplers and pruners by name, tried out beforehand."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
)
from optuna.samplers import (
    BaseSampler,
    BruteForceSampler,
    CmaEsSampler,
    GPSampler,
    GridSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from stackseg.errors import ParamsError
from stackseg.params import Params
from stackseg.search.space.space import Space


class Grid(GridSampler):
    """Optuna's, without its own way to end a study.

    That asks for the place on the grid of every trial, which queued ones do not have; here `most_trials` ends it.
    """

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Do nothing."""


SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "tpe": TPESampler,
    "gp": GPSampler,
    "cmaes": CmaEsSampler,
    "nsgaii": NSGAIISampler,
    "nsgaiii": NSGAIIISampler,
    "random": RandomSampler,
    "qmc": QMCSampler,
    "grid": Grid,
    "brute_force": BruteForceSampler,
}
PRUNERS: dict[str, Callable[..., BasePruner]] = {
    "none": NopPruner,
    "successive_halving": SuccessiveHalvingPruner,
    "hyperband": HyperbandPruner,
    "median": MedianPruner,
    "percentile": PercentilePruner,
    "threshold": ThresholdPruner,
}
DIRECTIONS = {
    "mean_iou": StudyDirection.MAXIMIZE,
    "ms_per_megapixel": StudyDirection.MINIMIZE,
    "parameters": StudyDirection.MINIMIZE,
}
Made = TypeVar("Made")
# of the default pruner: it looks after one part in so many of a training, and keeps one trial in so many
KEPT = 4
# more than samplers draw at random to begin with
_NUM_REHEARSED = 12


def build_sampler(space: Space, seed: int) -> BaseSampler:
    """Return the sampler of `search.sampler`, with a seed of its own; see `first_seed`.

    Samplers that go through points in an order drawn by the seed have the same order, and so the same seed, everywhere.

    Raises
    ------
    ParamsError
        Its arguments are not Optuna's.
    """
    chosen = space.present.search.sampler
    arguments: dict[str, Any] = {**chosen.arguments, "seed": seed % 2**32}
    if chosen.name in ("grid", "qmc"):
        arguments["seed"] = first_seed(space.present) % 2**32
    if chosen.name == "qmc":
        # what is not of the sequence, as choices, is not to be drawn alike by all workers
        arguments.setdefault("independent_sampler", RandomSampler(seed=seed % 2**32))
    if chosen.name == "grid":
        if "search_space" in arguments:
            raise ParamsError(
                "search_space is given twice",
                expected="the space under search.space only",
                where="search.sampler.arguments",
                remedy="take it out there",
            )
        arguments["search_space"] = space.grid()
    if chosen.name == "brute_force":
        space.grid()  # refuses ranges without a step
    return _made(SAMPLERS[chosen.name], arguments, "search.sampler.arguments")


def first_seed(params: Params) -> int:
    """Return the seed of a new study's first worker: the sampler's own, or else that of all.

    Raises
    ------
    ParamsError
        It is no whole number.
    """
    seed = params.search.sampler.arguments.get("seed", params.seed)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ParamsError(f"seed is {seed!r}", expected="a whole number from 0", where="search.sampler.arguments")
    return seed


def most_trials(space: Space) -> int | None:
    """Return how many trials a sampler has that tries every point of the space once; None for all others."""
    name = space.present.search.sampler.name
    if name == "brute_force":
        return space.num_points()
    # Optuna's grid does not know that the present params were among its points
    return math.prod(len(values) for values in space.grid().values()) + 1 if name == "grid" else None


def build_pruner(space: Space) -> BasePruner:
    """Return the pruner of `search.pruner`; its steps are epochs of the longest training of the space.

    Raises
    ------
    ParamsError
        Its arguments are not Optuna's.
    """
    chosen, validate_every = space.present.search.pruner, space.present.train.validate_every
    num_epochs = space.most("train.epochs")
    defaults: dict[str, Any] = {}
    if chosen.name == "successive_halving":
        # Optuna would guess it from the first trial that ends, and prune nothing until then. One look, rounded up so
        # that no second one comes shortly before the end: earlier, scores are not yet in the order of the end, and
        # after more looks too few trials of a short study are left to compare with (benchmarks/search.py)
        defaults = {"min_resource": max(validate_every, math.ceil(num_epochs / KEPT)), "reduction_factor": KEPT}
    if chosen.name == "hyperband":
        defaults = {"min_resource": validate_every, "max_resource": num_epochs}
    return _made(PRUNERS[chosen.name], defaults | dict(chosen.arguments), "search.pruner.arguments")


def rehearse(space: Space) -> None:
    """Make made-up trials with sampler and pruner, so that wrong arguments are told of before the first real one.

    Raises
    ------
    ParamsError
        They are not Optuna's, or make it fail.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would tell of a study in memory
    params = space.present
    sampler, pruner = build_sampler(space, first_seed(params)), build_pruner(space)
    if params.search.sampler.name in ("grid", "brute_force"):  # these end with their space
        sampler = RandomSampler(seed=0)
    directions = [DIRECTIONS[one] for one in params.search.objectives]
    study = optuna.create_study(directions=directions, sampler=sampler, pruner=pruner)
    study.enqueue_trial(space.first_trial())
    draw = random.Random(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(_NUM_REHEARSED):
            with _optuna_errors("search.sampler.arguments"):
                trial = study.ask()
                space.suggest(trial)
            if len(directions) == 1:
                with _optuna_errors("search.pruner.arguments"):
                    for epoch in range(space.most("train.epochs")):
                        trial.report(draw.random(), epoch + 1)
                        trial.should_prune()
            with _optuna_errors("search.sampler.arguments"):
                study.tell(trial, [draw.random() for _ in directions])


@contextmanager
def _optuna_errors(where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever Optuna runs into with an argument that it did not check
        raise ParamsError(
            f"Optuna fails with them ({' '.join(str(error).split()).rstrip('.')})",
            where=where,
            remedy="see Optuna's documentation of it for its arguments",
        ) from error


def _made(kind: Callable[..., Made], arguments: Mapping[str, Any], where: str) -> Made:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            return kind(**arguments)
        except (TypeError, ValueError) as error:
            text = " ".join(str(error).split()).rstrip(".")
            raise ParamsError(text, where=where, remedy="see Optuna's documentation of it for its arguments") from None
        except ImportError as error:
            raise ParamsError(
                str(error).splitlines()[0], where=where.rpartition(".")[0], remedy="install it, or choose another"
            ) from None
