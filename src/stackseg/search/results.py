"""A study's results: its best params as a file and in params.yaml, its best bundles, and a queue of experiments."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial
from ruamel.yaml import YAML

from stackseg.atomic import atomic_file, write_text
from stackseg.dataset.records import Catalog
from stackseg.errors import DataError, ModelError, ParamsError
from stackseg.params import read_params
from stackseg.params.file import write_values
from stackseg.search.mlflow_runs import trial_folder
from stackseg.search.objective import SearchJob, remove_surplus_bundles
from stackseg.search.progress import FAILURE, RUN_ID
from stackseg.search.space.space import Space
from stackseg.search.study import STUDY_ID, best_trials, identity_of, iou_index
from stackseg.tracking.run_logger import read_run

# at least so many of the best trials are queued
NUM_QUEUED = 5


@dataclass(frozen=True)
class StudyResults:
    """Files that a study has left, and its best trials, best first."""

    best: Sequence[FrozenTrial]
    values: Mapping[str, Any]
    """Of the best trial: dotted key to value."""
    best_params: Path
    queue: Path
    without_bundle: Sequence[FrozenTrial]
    """Trials among those to be kept whose bundles are not on this machine."""


def claim_folder(folder: Path, checkpoints: Path, study: Study) -> None:
    """Empty the folders of bundles and checkpoints if they hold those of another study of that name."""
    mark = folder / "study.txt"
    if mark.is_file() and mark.read_text(encoding="utf-8") == study.user_attrs[STUDY_ID]:
        return
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(checkpoints, ignore_errors=True)
    write_text(mark, study.user_attrs[STUDY_ID])


def write_results(study: Study, space: Space, job: SearchJob, outputs: Path) -> StudyResults | None:
    """Keep the best bundles, and write the best params and the queue; None if no trial is complete.

    Raises
    ------
    ModelError
        No trial is complete, and some have failed.
    """
    best = best_trials(study)
    if not best:
        failures = [one.user_attrs[FAILURE] for one in study.get_trials(deepcopy=False) if FAILURE in one.user_attrs]
        if failures:
            raise ModelError(
                f"no trial is complete; {len(failures)} failed, the last with: {failures[-1]}",
                where=f"study {study.study_name}",
                remedy="correct params.yaml and begin another study",
            )
        return None
    remove_surplus_bundles(study, job.folder, job.num_kept)
    results = StudyResults(
        best=best,
        values=space.overrides(best[0].params),
        best_params=outputs / "best_params.yaml",
        queue=job.folder / "queue.sh",
        without_bundle=[one for one in best[: job.num_kept] if not trial_folder(job.folder, one.number).is_dir()],
    )
    write_queue(results.queue, study, best[: max(job.num_kept, NUM_QUEUED)], space)
    write_best_params(results.best_params, study, best[0], space)
    return results


def apply_best(results: StudyResults, space: Space, catalog: Catalog, file: Path) -> None:
    """Write the best params into params.yaml, unless it has other params by now than the trials were made with."""
    now = read_params(file).flat()
    for key, value in identity_of(space, catalog)["fixed"].items():
        if now.get(key, "not there") != value:
            raise ParamsError(
                f"{key} was changed to {now.get(key, 'nothing')} while the search went on",
                expected=f"{value}, with which the trials were made",
                where=str(file),
                remedy=f"set it back and type the command with --resume; {results.best_params} has the best",
            )
    write_values(file, results.values)


def best_bundle(results: StudyResults, job: SearchJob) -> Path:
    """Return the folder of the best trial's outputs, with the catalogue beside its bundle, to be registered.

    Raises
    ------
    DataError
        The bundle is not on this machine.
    """
    best = results.best[0]
    folder = trial_folder(job.folder, best.number)
    run_file = folder / "run.json"
    if not run_file.is_file() or read_run(run_file).run_id != best.user_attrs[RUN_ID]:
        raise DataError(
            f"the bundle of trial {best.number} is not here: it was made on {best.user_attrs.get('host')}, or removed",
            expected="the bundle of the best trial",
            where=str(folder),
            remedy="register it there; or use --apply, then `dvc repro`",
        )
    write_text(folder / "catalog.json", job.catalog.model_dump_json(indent=1) + "\n")
    return folder


def write_best_params(path: Path, study: Study, best: FrozenTrial, space: Space) -> None:
    """Write the keys that count for the best trial as a piece of params.yaml."""
    tree: dict[str, Any] = {}
    for key, value in space.overrides(best.params).items():
        *sections, last = key.split(".")
        node = tree
        for name in sections:
            node = node.setdefault(name, {})
        node[last] = value
    score = best.values[iou_index(study)]
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(
            f"# Study {study.study_name}, trial {best.number} of {len(study.trials)}: "
            f"validation mean IoU {score:.4f}.\n"
            "# `stackseg search --trials N --resume --apply` writes it into params.yaml.\n"
        )
        YAML().dump(tree, file)


def write_queue(path: Path, study: Study, best: Sequence[FrozenTrial], space: Space) -> None:
    """Write a shell script that queues the best trials as DVC experiments, to be trained for the record."""
    lines = ["#!/bin/sh", "# Trains these trials for the record: sh this file, then `dvc queue start`.", "set -e"]
    for one in best:
        # every key of the space: params.yaml may have changed by then, as by --apply
        present = {dimension.key: space.params.value(dimension.key) for dimension in space.dimensions}
        options = [part for change in dvc_changes(present | space.overrides(one.params)) for part in ("-S", change)]
        lines.append(
            shlex.join(["dvc", "exp", "run", "--queue", "--name", f"{study.study_name}-trial-{one.number}", *options])
        )
    write_text(path, "\n".join(lines) + "\n")


def dvc_changes(values: Mapping[str, Any]) -> list[str]:
    """Return dotted keys and values as `dvc exp run -S` takes them (Hydra's grammar of overrides).

    A mapping such as train.loss is removed first: DVC would merge it with the present one.
    """
    changes = []
    for key, value in values.items():
        if not isinstance(value, dict):
            changes.append(f"++{key}={_hydra(value)}")
            continue
        parts = [f"{name}:{_hydra(one)}" for name, one in value.items()]
        # only a key that exists can be removed
        changes += [f"++{key}.{parts[0].replace(':', '=', 1)}", f"~{key}", f"++{key}={{{','.join(parts)}}}"]
    return changes


def _hydra(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
