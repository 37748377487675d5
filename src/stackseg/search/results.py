"""What a study leaves behind: its best params as a file, and commands that train them for the record."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial
from ruamel.yaml import YAML

from stackseg.atomic import atomic_file, write_text
from stackseg.search.space.space import Space
from stackseg.search.study import STUDY_ID, objective_place


def take_folder(folder: Path, checkpoints: Path, study: Study) -> None:
    """Empty the folders of bundles and checkpoints if what lies there is of another study of that name."""
    mark = folder / "study.txt"
    if mark.is_file() and mark.read_text(encoding="utf-8") == study.user_attrs[STUDY_ID]:
        return
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(checkpoints, ignore_errors=True)
    write_text(mark, study.user_attrs[STUDY_ID])


def write_best_params(path: Path, study: Study, best: FrozenTrial, space: Space) -> dict[str, Any]:
    """Write the keys that count for the best trial as a piece of params.yaml; returns dotted key to value."""
    values = space.overrides(best.params)
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        node = tree
        for name in sections:
            node = node.setdefault(name, {})
        node[last] = value
    score = best.values[objective_place(study)]
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(
            f"# Study {study.study_name}, trial {best.number} of {len(study.trials)}: "
            f"validation mean IoU {score:.4f}.\n"
            "# `stackseg search --trials N --resume --apply` writes it into params.yaml.\n"
        )
        YAML().dump(tree, file)
    return values


def write_queue(path: Path, study: Study, best: Sequence[FrozenTrial], space: Space) -> None:
    """Write a shell script that queues the best trials as DVC experiments, to be trained for the record."""
    lines = ["#!/bin/sh", "# Trains these trials for the record: sh this file, then `dvc queue start`.", "set -e"]
    for one in best:
        # every key of the space: params.yaml may be another by then, as after --apply
        held = {dimension.key: space.present.value(dimension.key) for dimension in space.dimensions}
        options = [part for change in dvc_changes(held | space.overrides(one.params)) for part in ("-S", change)]
        lines.append(
            shlex.join(["dvc", "exp", "run", "--queue", "--name", f"{study.study_name}-trial-{one.number}", *options])
        )
    write_text(path, "\n".join(lines) + "\n")


def dvc_changes(values: Mapping[str, Any]) -> list[str]:
    """Return dotted keys and values as `dvc exp run -S` takes them (Hydra's grammar of overrides).

    A mapping such as train.loss is removed first: DVC would merge it with the one that is there.
    """
    changes = []
    for key, value in values.items():
        if not isinstance(value, dict):
            changes.append(f"++{key}={_hydra(value)}")
            continue
        parts = [f"{name}:{_hydra(one)}" for name, one in value.items()]
        # only what is there can be removed
        changes += [f"++{key}.{parts[0].replace(':', '=', 1)}", f"~{key}", f"++{key}={{{','.join(parts)}}}"]
    return changes


def _hydra(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
