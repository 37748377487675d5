"""Write a data set's table, and settings that fit it, into params.yaml; comments stay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from stackseg.dataset.channels import ColourPolicy
from stackseg.dataset.labels.table import LabelTable
from stackseg.params.file import read_params, read_tree, write_tree
from stackseg.params.split import SplitParams
from stackseg.params.train import TrainParams

SAMPLE_TRAINING = {"epochs": 12, "patch_size": 128, "batch_size": 16, "lr": 0.002, "validate_every": 3}
"""Section `train` of params.yaml where the sample asks for other values than the section's defaults."""


def adapt_params(
    path: Path,
    table: LabelTable,
    shapes_yx: Sequence[tuple[int, int]],
    *,
    fresh: bool,
    anew: bool,
    colour: ColourPolicy,
) -> list[str]:
    """Write the class table and, for fresh data, a split and patches that fit it.

    Parameters
    ----------
    table
        Classes of the data; one raw code at most is ignored.
    shapes_yx
        Shape of each annotated plane.
    fresh
        Whether there is no other data: then split and patches that nobody has chosen are made to fit.
    anew
        Whether table, split and training settings of other data are there: then all are replaced.
    colour
        What `data.colour` is to be.

    Returns
    -------
    list of str
        What was changed, a line each.
    """
    classes = list(zip(table.names, table.raw, table.display, strict=True))
    ignore = table.ignore[0] if table.ignore else None
    tree = read_tree(path)
    changed = []
    rows = [
        {"name": name, "raw": _quoted(raw[0]) if len(raw) == 1 else [*map(_quoted, raw)], "display": _quoted(display)}
        for name, raw, display in classes
    ]
    data = tree.setdefault("data", {})
    params = read_params(path)
    present = params.data
    same = present.ignore == ignore and [(one.name, one.codes, one.display) for one in present.classes] == classes
    if anew or not same:
        data["classes"] = rows
        data["ignore"] = None if ignore is None else _quoted(ignore)
        changed.append(f"data.classes has {len(rows)} classes")
    if present.instances != table.instances:
        _set(tree, "data", {"instances": table.instances}, changed)
    _set(tree, "data", {"colour": colour}, changed)
    if anew or (fresh and params.split == SplitParams()):
        _set(tree, "split", _split_for(len(shapes_yx), one_size=len(set(shapes_yx)) == 1), changed)
    if anew or (fresh and params.train == TrainParams()):
        side = max(32, min(TrainParams().patch_size, min(map(min, shapes_yx)) // 32 * 32))
        defaults = TrainParams().model_dump(mode="json")
        _set(tree, "train", {key: defaults[key] for key in SAMPLE_TRAINING} | {"patch_size": side}, changed)
    write_tree(path, tree)
    return changed


def _split_for(num_labelled: int, *, one_size: bool) -> dict[str, Any]:
    """Return a split for a stack; images of different sizes are no stack, and independent."""
    split = SplitParams().model_dump(mode="json")
    # a gap of more planes than that would eat up a short stack; the leakage figure says what it costs
    return split | {"gap": min(2, num_labelled // 16), "method": "blocks" if one_size else "random"}


def _set(tree: Any, section: str, values: dict[str, Any], changed: list[str]) -> None:
    node = tree.setdefault(section, {})
    for key, value in values.items():
        if _plain(node.get(key)) != value:
            node[key] = value
            changed.append(f"{section}.{key}: {value}")


def _quoted(code: int | str) -> int | str:
    # an unquoted # starts a comment
    return DoubleQuotedScalarString(code) if isinstance(code, str) else code


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    return [_plain(value) for value in node] if isinstance(node, list) else node
