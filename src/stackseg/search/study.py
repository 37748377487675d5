"""A study: created once, compared with what it began with when it is joined or resumed, and its best trials."""

from __future__ import annotations

import time
import uuid
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from stackseg.dataset.records import Catalog
from stackseg.errors import StoreError
from stackseg.model.code_digest import code_digest
from stackseg.search.progress import progress_of, requeue_interrupted
from stackseg.search.samplers import DIRECTIONS, build_pruner
from stackseg.search.space.space import Space
from stackseg.training.augmentation import load_pipeline
from stackseg.training.export import trained_with

# attributes of a study
IDENTITY, STUDY_ID = "stackseg.identity", "stackseg.id"
HEARTBEAT, NUM_KEPT = "stackseg.heartbeat", "stackseg.num_kept"
# a study that is between two trials for so long is still running
_PAUSE_S = 3
_CREATION_TIMEOUT_S = 30


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
        Whether a study that is there may go on although nobody works on it.

    Raises
    ------
    StoreError
        It is there but not to be resumed, is to be resumed but not there, or searches something else.
    """
    params = space.params
    identity = identity_of(space, catalog)
    pruner = build_pruner(space)
    exists = name in optuna.get_all_study_names(storage)
    if resume and not exists:
        raise StoreError(
            f"there is no study '{name}' to resume", where="--resume", remedy="leave --resume out to begin it"
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
            study.set_user_attr(HEARTBEAT, params.search.heartbeat)
            study.set_user_attr(STUDY_ID, uuid.uuid4().hex)  # last: others wait for it
            return study, True
    study = optuna.load_study(study_name=name, storage=storage, pruner=pruner)
    _wait_until_created(study)
    _require_same(study, identity)
    _require_same_heartbeat(study, params.search.heartbeat)
    is_running = _is_running(study)
    if exists and not resume and not is_running:
        progress = progress_of(study.get_trials(deepcopy=False))
        raise StoreError(
            f"the study '{name}' is there already, with {progress.num_finished} finished trials",
            where="--study",
            remedy="--resume goes on with it, --study NAME begins another",
        )
    if resume and not is_running:
        requeue_interrupted(study)
    return study, False


def load_study(storage: BaseStorage, name: str, space: Space, sampler: BaseSampler) -> Study:
    """Return a study that exists, for a worker."""
    return optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=build_pruner(space))


def identity_of(space: Space, catalog: Catalog) -> dict[str, Any]:
    """Return what all trials of a study have in common: without it their values could not be compared."""
    params = space.params
    # a key with a condition has params.yaml's value while that does not hold, so it stays among the fixed ones
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
        # params have the names of the files only
        "pipelines": {file: load_pipeline(file) for file in space.augment_files()},
        # trials on folds describe their own catalogues
        "code": code_digest() if params.search.folds is None else code_digest("catalog"),
    }


def fail_stale_trials(study: Study) -> None:
    """Fail the trials whose workers have died, and queue them once more; see `stale_callback`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)


def num_kept(study: Study, asked: int | None) -> int:
    """Return how many bundles of the best trials are kept: as asked now, or else as last time, or else one."""
    if asked is None:  # and record nothing: another machine may be about to record what it was asked for
        before: int = study.user_attrs.get(NUM_KEPT, 1)
        return before
    study.set_user_attr(NUM_KEPT, asked)
    return asked


def best_trials(study: Study) -> list[FrozenTrial]:
    """Return the completed trials, best first; with several objectives the Pareto front, by mean IoU."""
    if len(study.directions) > 1:
        index = iou_index(study)
        return sorted(study.best_trials, key=lambda one: -one.values[index])
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(complete, key=lambda one: (-(one.value or 0.0), one.number))


def iou_index(study: Study) -> int:
    """Return the index of the mean IoU among a study's objectives: the only one that is maximised."""
    return study.directions.index(StudyDirection.MAXIMIZE)


def _wait_until_created(study: Study) -> None:
    deadline = time.monotonic() + _CREATION_TIMEOUT_S
    while STUDY_ID not in study.user_attrs:
        if time.monotonic() > deadline:
            raise StoreError(
                f"the study '{study.study_name}' was not created by stackseg, or only half created",
                where="--study",
                remedy="choose another name",
            )
        time.sleep(0.2)


def _require_same(study: Study, identity: Mapping[str, Any]) -> None:
    stored = study.user_attrs.get(IDENTITY, {})
    names = {"catalog": "the catalogue (data, split or intensity)", "code": "the code of stackseg"}
    names["pipelines"] = "the pipeline of augment.file"
    # other code may know other keys of `fixed`, so it is named before them
    for part in ("space", "objectives", "folds", "code", "fixed", "catalog", "pipelines"):
        found, expected = identity[part], stored.get(part)
        if found == expected:
            continue
        what = names.get(part, f"search.{part}")
        if part in ("space", "fixed"):
            old = expected or {}
            # a key may be new, or gone, and null where it is there
            pairs = {key: (found.get(key, "not there"), old.get(key, "not there")) for key in sorted({*found, *old})}
            key = next(key for key, (now, then) in pairs.items() if now != then)
            what = f"search.space.{key}" if part == "space" else key
            found, expected = pairs[key]
        shown = "" if part in names else f" is {found}"
        raise StoreError(
            f"{what}{shown or ' has changed'} since study '{study.study_name}' began",
            expected="" if part in names else str(expected),
            where="params.yaml" if part not in names else "--study",
            remedy="set it back, or begin another study with --study NAME: its trials could not be compared with these",
        )


def _require_same_heartbeat(study: Study, heartbeat: int) -> None:
    begun_with = study.user_attrs.get(HEARTBEAT)
    if begun_with != heartbeat:
        raise StoreError(
            f"search.heartbeat is {heartbeat} since study '{study.study_name}' began",
            expected=f"{begun_with}: with a shorter one, trials of other workers would be taken for dead",
            where="params.yaml",
            remedy="set it back, or begin another study with --study NAME",
        )


def _is_running(study: Study) -> bool:
    """Return whether a worker somewhere makes trials; without heartbeats, a dead worker seems to."""
    deadline = time.monotonic() + _PAUSE_S
    while time.monotonic() < deadline:
        fail_stale_trials(study)
        trials = study.get_trials(deepcopy=False)
        if any(one.state == TrialState.RUNNING for one in trials):
            return True
        if [one.state for one in trials] == [TrialState.WAITING]:  # it was created just now
            return True
        time.sleep(0.1)
    return False
