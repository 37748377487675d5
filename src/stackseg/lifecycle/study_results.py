"""What a study leaves behind: its best params as a file, and commands that train them for the record."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial
from ruamel.yaml import YAML

from stackseg.aside import file_aside, write_text_aside
from stackseg.lifecycle.space import Space
from stackseg.lifecycle.studies import objective_place
from stackseg.params import Params


def write_best_params(path: Path, study: Study, best: FrozenTrial, space: Space) -> dict[str, Any]:
    """Write the keys that the best trial changed, as a piece of params.yaml; returns dotted key to value."""
    values = space.overrides(best.params)
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        node = tree
        for name in sections:
            node = node.setdefault(name, {})
        node[last] = value
    score = best.values[objective_place(study)]
    with file_aside(path) as aside, aside.open("w", encoding="utf-8") as file:
        file.write(
            f"# Study {study.study_name}, trial {best.number} of {len(study.trials)}: "
            f"validation mean IoU {score:.4f}.\n"
            "# `stackseg search --trials N --resume --apply` writes it into params.yaml.\n"
        )
        YAML().dump(tree, file)
    return values


def write_queue(path: Path, best: Sequence[FrozenTrial], space: Space) -> None:
    """Write a shell script that queues the best trials as DVC experiments, to be trained for the record."""
    lines = ["#!/bin/sh", "# Trains these trials for the record: sh this file, then `dvc queue start`.", "set -e"]
    for one in best:
        options = [
            part for change in dvc_changes(space.overrides(one.params), space.present) for part in ("-S", change)
        ]
        lines.append(shlex.join(["dvc", "exp", "run", "--queue", "--name", f"trial-{one.number}", *options]))
    write_text_aside(path, "\n".join(lines) + "\n")


def dvc_changes(values: Mapping[str, Any], present: Params) -> list[str]:
    """Return dotted keys and values as `dvc exp run -S` takes them (Hydra's grammar of overrides).

    A mapping such as train.loss is changed key by key: DVC would merge it with the one that is there.
    """
    changes = []
    for key, value in values.items():
        if not isinstance(value, dict):
            changes.append(f"++{key}={_hydra(value)}")
            continue
        section, _, last = key.rpartition(".")
        held = present.value(key) if last in getattr(present, section).model_fields_set else {}
        changes += [f"~{key}.{name}" for name in held if name not in value]
        changes += [f"++{key}.{name}={_hydra(one)}" for name, one in value.items()]
    return changes


def _hydra(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
