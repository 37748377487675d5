"""Samplers and pruners of Optuna by name, and a dry run that finds wrong arguments before the first trial."""

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
    """Optuna's, without its way of ending a study.

    It wants each trial's place on the grid, which queued trials do not have; here `max_trials` ends the study.
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
Built = TypeVar("Built")
# the default pruner looks after a quarter of a training, and keeps one trial in four
REDUCTION = 4
# more than samplers draw at random to begin with
_NUM_DRY_TRIALS = 12


def build_sampler(space: Space, seed: int) -> BaseSampler:
    """Return the sampler of `search.sampler`, with a seed of its own; see `first_seed`.

    Samplers whose seed decides on the order of fixed points have the same seed in all workers.

    Raises
    ------
    ParamsError
        Its arguments are not Optuna's.
    """
    chosen = space.params.search.sampler
    arguments: dict[str, Any] = {**chosen.arguments, "seed": seed % 2**32}
    if chosen.name in ("grid", "qmc"):
        arguments["seed"] = first_seed(space.params) % 2**32
    if chosen.name == "qmc":
        # choices are not part of the sequence: each worker draws its own
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
    return _build(SAMPLERS[chosen.name], arguments, "search.sampler.arguments")


def first_seed(params: Params) -> int:
    """Return the seed of a new study's first worker: the sampler's argument, or else params.yaml's seed.

    Raises
    ------
    ParamsError
        It is no whole number.
    """
    seed = params.search.sampler.arguments.get("seed", params.seed)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ParamsError(f"seed is {seed!r}", expected="a whole number from 0", where="search.sampler.arguments")
    return seed


def max_trials(space: Space) -> int | None:
    """Return how many trials a sampler makes that tries every point of the space once; None for the others."""
    name = space.params.search.sampler.name
    if name == "brute_force":
        return space.num_points()
    # Optuna's grid does not know that the present params, which are trial 0, are one of its points
    return math.prod(len(values) for values in space.grid().values()) + 1 if name == "grid" else None


def build_pruner(space: Space) -> BasePruner:
    """Return the pruner of `search.pruner`; its steps are epochs of the longest training of the space.

    Raises
    ------
    ParamsError
        Its arguments are not Optuna's.
    """
    chosen, validate_every = space.params.search.pruner, space.params.train.validate_every
    num_epochs = space.max_value("train.epochs")
    defaults: dict[str, Any] = {}
    if chosen.name == "successive_halving":
        # Optuna would guess it from the first trial that ends, and prune nothing until then. There is one look only,
        # rounded up so that no second one comes shortly before the end: earlier scores are not yet in their final
        # order, and more looks leave too few trials of a short study to compare with (benchmarks/search.py)
        defaults = {
            "min_resource": max(validate_every, math.ceil(num_epochs / REDUCTION)),
            "reduction_factor": REDUCTION,
        }
    if chosen.name == "hyperband":
        defaults = {"min_resource": validate_every, "max_resource": num_epochs}
    return _build(PRUNERS[chosen.name], defaults | dict(chosen.arguments), "search.pruner.arguments")


def dry_run(space: Space) -> None:
    """Make trials of random scores with sampler and pruner, so that wrong arguments fail before the first real one.

    Raises
    ------
    ParamsError
        They are not Optuna's, or make it fail.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would log the study in memory
    params = space.params
    sampler, pruner = build_sampler(space, first_seed(params)), build_pruner(space)
    if params.search.sampler.name in ("grid", "brute_force"):  # these end with their space
        sampler = RandomSampler(seed=0)
    directions = [DIRECTIONS[one] for one in params.search.objectives]
    study = optuna.create_study(directions=directions, sampler=sampler, pruner=pruner)
    study.enqueue_trial(space.first_trial())
    scores = random.Random(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(_NUM_DRY_TRIALS):
            with _optuna_errors("search.sampler.arguments"):
                trial = study.ask()
                space.suggest(trial)
            if len(directions) == 1:
                with _optuna_errors("search.pruner.arguments"):
                    for epoch in range(space.max_value("train.epochs")):
                        trial.report(scores.random(), epoch + 1)
                        trial.should_prune()
            with _optuna_errors("search.sampler.arguments"):
                study.tell(trial, [scores.random() for _ in directions])


@contextmanager
def _optuna_errors(where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Optuna does not check all arguments: anything may be raised
        text = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
        if isinstance(error, ImportError):
            remedy, where, text = "install it, or choose another", where.rpartition(".")[0], str(error).splitlines()[0]
        else:
            remedy = "see Optuna's documentation of it for its arguments"
        raise ParamsError(f"Optuna refuses: {text}", where=where, remedy=remedy) from error


def _build(kind: Callable[..., Built], arguments: Mapping[str, Any], where: str) -> Built:
    with warnings.catch_warnings(), _optuna_errors(where):
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return kind(**arguments)
