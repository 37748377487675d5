"""A study: created once, known again, and how many of its trials are done."""

from __future__ import annotations

import math
import random
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from stackseg.errors import ParamsError, StoreError
from stackseg.imaging.catalog import Catalog
from stackseg.learning.bundling import trained_with
from stackseg.learning.code import code_digest
from stackseg.lifecycle.space import Space
from stackseg.params import Params

SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "tpe": TPESampler,
    "gp": GPSampler,
    "cmaes": CmaEsSampler,
    "nsgaii": NSGAIISampler,
    "nsgaiii": NSGAIIISampler,
    "random": RandomSampler,
    "qmc": QMCSampler,
    "grid": GridSampler,
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
# attributes of a study
IDENTITY, STUDY_ID = "stackseg.identity", "stackseg.id"
# attributes of a trial: why it failed, that there was one too many, or which one it makes once more
FAILURE, SURPLUS, AGAIN = "failure", "surplus", "again"
RUN_ID, FOLD_SCORES = "run_id", "fold_scores"
# a study between two trials is still at work
_PAUSE_S = 3
_CREATION_TIMEOUT_S = 30
# more than samplers draw at random to begin with
_NUM_REHEARSED = 12


@dataclass(frozen=True)
class Standing:
    """How far a study is: trials that count as finished by how they ended, and those at work."""

    num_complete: int
    num_pruned: int
    num_failed: int
    num_running: int

    @property
    def num_finished(self) -> int:
        """Trials that are done with; interrupted ones, and ones that another worker took up, are not among them."""
        return self.num_complete + self.num_pruned + self.num_failed


def standing_of(trials: Sequence[FrozenTrial]) -> Standing:
    """Count trials by how they ended; failed are those that failed for a reason of their own."""
    states = [one.state for one in trials]
    taken_up = _taken_up(trials)
    failed = [one for one in trials if one.state == TrialState.FAIL and one.number not in taken_up]
    return Standing(
        num_complete=states.count(TrialState.COMPLETE),
        num_pruned=states.count(TrialState.PRUNED),
        # a trial that has cost two workers their lives is not tried a third time
        num_failed=sum(FAILURE in one.user_attrs or "retry_history" in one.system_attrs for one in failed),
        num_running=states.count(TrialState.RUNNING),
    )


def _taken_up(trials: Sequence[FrozenTrial]) -> set[int]:
    """Return the numbers of the trials that others make, or made, once more."""
    stale = {number for one in trials for number in one.system_attrs.get("retry_history", [])}
    return stale | {one.user_attrs[AGAIN] for one in trials if AGAIN in one.user_attrs}


def hand_back(study: Study, number: int, params: Mapping[str, Any]) -> None:
    """Queue the params of a trial that was interrupted, so that nothing of the study is lost."""
    if params:
        study.enqueue_trial(dict(params), user_attrs={AGAIN: number})


def hand_back_lost(study: Study) -> None:
    """Queue what was interrupted and could not be handed back then, as on a full disk."""
    trials = study.get_trials(deepcopy=False)
    taken_up = _taken_up(trials)
    for one in trials:
        given_up = {FAILURE, SURPLUS} & set(one.user_attrs) or "retry_history" in one.system_attrs
        if one.state == TrialState.FAIL and one.number not in taken_up and not given_up:
            hand_back(study, one.number, one.params)


def open_study(storage: BaseStorage, name: str, space: Space, catalog: Catalog, *, resume: bool) -> tuple[Study, bool]:
    """Create a study with the present params as its first trial, or join the one of that name.

    Returns the study, and whether it is new.

    Parameters
    ----------
    storage, name
        Where it is kept, and its name.
    space, catalog
        What is searched, and on which planes: a stored study must be about the same.
    resume
        Whether one that is there may be gone on with although nobody is at work on it.

    Raises
    ------
    StoreError
        It is there and nobody resumes it, is not there to be resumed, or is about something else.
    """
    params = space.present
    identity = identity_of(space, catalog)
    pruner = build_pruner(params)
    exists = name in optuna.get_all_study_names(storage)
    if resume and not exists:
        raise StoreError(
            f"there is no study '{name}' to go on with", where="--resume", remedy="leave --resume out to begin it"
        )
    if not exists:
        try:
            study = optuna.create_study(
                storage=storage,
                study_name=name,
                directions=[DIRECTIONS[one] for one in params.search.objectives],
                pruner=pruner,
            )
        except optuna.exceptions.DuplicatedStudyError:
            pass  # another machine was quicker
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(list(params.search.objectives))
            study.enqueue_trial(space.first_trial())
            study.set_user_attr(IDENTITY, identity)
            study.set_user_attr(STUDY_ID, uuid.uuid4().hex)  # the last step: the others wait for it
            return study, True
    study = optuna.load_study(study_name=name, storage=storage, pruner=pruner)
    _wait_until_created(study)
    _require_same(study, identity)
    if exists and not resume and not _is_at_work(study):
        standing = standing_of(study.get_trials(deepcopy=False))
        raise StoreError(
            f"the study '{name}' is there already, with {standing.num_finished} finished trials",
            where="--study",
            remedy="--resume goes on with it, --study NAME begins another",
        )
    if resume and not _is_at_work(study):
        hand_back_lost(study)
    return study, False


def load_study(storage: BaseStorage, name: str, params: Params, sampler: BaseSampler) -> Study:
    """Return a study that is known to be there, for a worker."""
    return optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=build_pruner(params))


def identity_of(space: Space, catalog: Catalog) -> dict[str, Any]:
    """Return what all trials of a study have in common: with anything else, their values could not be compared."""
    params = space.present
    # a key that counts only at times holds params.yaml's value at others
    varied = [key for key, entry in params.search.space.items() if not entry.when]
    fixed = {
        key: value
        for key, value in params.flat().items()
        if key.partition(".")[0] in trained_with(params)
        and not any(key == one or key.startswith(f"{one}.") for one in varied)
    }
    return {
        "space": space.describe(),
        "objectives": list(params.search.objectives),
        "folds": params.search.folds,
        "fixed": fixed,
        "catalog": catalog.digest(),
        "code": code_digest(),
    }


def build_sampler(space: Space, seed: int) -> BaseSampler:
    """Return the sampler of `search.sampler`, with a seed of its own; see `first_seed`.

    Raises
    ------
    ParamsError
        Its arguments are not Optuna's.
    """
    chosen = space.present.search.sampler
    arguments: dict[str, Any] = {**chosen.arguments, "seed": seed % 2**32}
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


def rehearse(space: Space) -> None:
    """Make made-up trials with sampler and pruner, so that wrong arguments are told of before the first real one.

    Raises
    ------
    ParamsError
        They are not Optuna's, or make it fail.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would tell of a study in memory
    params = space.present
    sampler, pruner = build_sampler(space, first_seed(params)), build_pruner(params)
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
                    for epoch in range(params.train.epochs):
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


def build_pruner(params: Params) -> BasePruner:
    """Return the pruner of `search.pruner`; its steps are epochs.

    Raises
    ------
    ParamsError
        Its arguments are not Optuna's.
    """
    chosen, train = params.search.pruner, params.train
    defaults: dict[str, Any] = {}
    if chosen.name in ("successive_halving", "hyperband"):
        # Optuna would guess it from the first trial that ends, and prune nothing until then; while the learning rate
        # is at its height, the order of the scores is not yet that of the end
        defaults["min_resource"] = max(train.validate_every, round(train.epochs / 3))
        # a quarter kept, as Optuna would have it, or a third loses the best of a short study too often, and the sampler
        # its way (benchmarks/search.py)
        defaults["reduction_factor"] = 2
    if chosen.name == "hyperband":
        defaults["max_resource"] = train.epochs
    return _made(PRUNERS[chosen.name], defaults | dict(chosen.arguments), "search.pruner.arguments")


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


def fail_stale_trials(study: Study) -> None:
    """Fail the trials whose workers have died, and have them made once more; see `stale_callback`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)


def best_trials(study: Study) -> list[FrozenTrial]:
    """Return the completed trials, best first; with several objectives the Pareto front, by mean IoU."""
    if len(study.directions) > 1:
        place = objective_place(study)
        return sorted(study.best_trials, key=lambda one: -one.values[place])
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
    return sorted(complete, key=lambda one: (sign * (one.value or 0.0), one.number))


def objective_place(study: Study) -> int:
    """Return which of a study's objectives is the mean IoU, the only one to be maximised."""
    return study.directions.index(StudyDirection.MAXIMIZE)


def _wait_until_created(study: Study) -> None:
    deadline = time.monotonic() + _CREATION_TIMEOUT_S
    while STUDY_ID not in study.user_attrs:
        if time.monotonic() > deadline:
            raise StoreError(
                f"the study '{study.study_name}' was not made by stackseg, or left half-made",
                where="--study",
                remedy=f"choose another name, or type `optuna delete-study --study-name {study.study_name}`",
            )
        time.sleep(0.2)


def _require_same(study: Study, identity: Mapping[str, Any]) -> None:
    stored = study.user_attrs.get(IDENTITY, {})
    names = {"catalog": "the catalogue (data, split or intensity)", "code": "the code of stackseg"}
    for part in ("space", "objectives", "folds", "fixed", "catalog", "code"):
        found, expected = identity[part], stored.get(part)
        if found == expected:
            continue
        what = names.get(part, f"search.{part}")
        if part in ("space", "fixed"):
            old = expected or {}
            key = next(key for key in sorted({*found, *old}) if found.get(key) != old.get(key))
            what = f"search.space.{key}" if part == "space" else key
            found, expected = found.get(key), old.get(key)
        shown = "" if part in names else f" is {found}"
        raise StoreError(
            f"{what}{shown or ' has changed'} since study '{study.study_name}' began",
            expected="" if part in names else str(expected),
            where="params.yaml" if part not in names else "--study",
            remedy="set it back, or begin another study with --study NAME: its trials could not be compared with these",
        )


def _is_at_work(study: Study) -> bool:
    """Return whether a worker somewhere makes trials; only where there are heartbeats, a dead one's do not count."""
    deadline = time.monotonic() + _PAUSE_S
    while time.monotonic() < deadline:
        fail_stale_trials(study)
        trials = study.get_trials(deepcopy=False)
        if any(one.state == TrialState.RUNNING for one in trials):
            return True
        if [one.state for one in trials] == [TrialState.WAITING]:  # just made: nobody has begun
            return True
        time.sleep(0.1)
    return False
