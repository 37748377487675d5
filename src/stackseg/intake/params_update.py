"""Write a data set's table, and settings that fit it, into params.yaml; comments stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from stackseg.dataset.channels import ColourPolicy
from stackseg.dataset.labels.table import LabelTable
from stackseg.intake.proposal import Proposal
from stackseg.params import Params
from stackseg.params.file import read_params, read_tree, write_tree
from stackseg.params.model import LITE_ENCODERS
from stackseg.params.split import SplitParams
from stackseg.params.train import TrainParams

SAMPLE_TRAINING = {"epochs": 12, "patch_size": 128, "batch_size": 16, "lr": 0.002, "validate_every": 3}
"""Section `train` of params.yaml where the sample asks for other values than the section's defaults."""


def adapt_params(
    path: Path,
    table: LabelTable,
    proposals: Sequence[Proposal],
    *,
    fresh: bool,
    anew: bool,
    colour: ColourPolicy,
) -> list[str]:
    """Write the class table and, for fresh data, the settings that are proposed for them.

    Parameters
    ----------
    table
        Classes of the data, and what is ignored.
    proposals
        Settings that suit the data.
    fresh
        Whether there is no other data: then the proposals go into each section that nobody has touched.
    anew
        Whether table and settings of other data are there: then they make way, and all proposals hold.
    colour
        What `data.colour` is to be.

    Returns
    -------
    list of str
        What was changed, a line each.
    """
    classes = list(zip(table.names, table.raw, table.display, strict=True))
    tree = read_tree(path)
    changed = []
    rows = [{"name": name, "raw": _short(raw), "display": _quoted(display)} for name, raw, display in classes]
    data = tree.setdefault("data", {})
    params = read_params(path)
    present = params.data
    named = [(one.name, one.codes, one.display) for one in present.classes]
    same = present.ignored == table.ignore and named == classes
    if anew or not same:
        data["classes"] = rows
        data["ignore"] = _short(table.ignore) if table.ignore else None
        changed.append(f"data.classes has {len(rows)} classes")
    if present.instances != table.instances:
        _set(tree, "data", {"instances": table.instances}, changed)
    if (present.unlabelled == "ignore") != table.ignores_unlabelled:
        _set(tree, "data", {"unlabelled": "ignore" if table.ignores_unlabelled else None}, changed)
    if anew and present.partial:
        _set(tree, "data", {"partial": {}}, changed)
    _set(tree, "data", {"colour": colour}, changed)
    for section in dict.fromkeys(one.section for one in proposals):
        if section == "model" and params.model.init is not None:
            continue  # the network is that of the model to begin with
        untouched = getattr(params, section) == getattr(Params(), section)
        if anew or (fresh and untouched):
            reset = _what_the_sample_asked_for(section) if anew else {}
            proposed = {one.name: one.value for one in proposals if one.section == section}
            _set(tree, section, reset | proposed, changed)
            _widen_space(tree, section, proposed, changed)
    write_tree(path, tree)
    return changed


def _what_the_sample_asked_for(section: str) -> dict[str, Any]:
    """Return the defaults in the place of what belongs to the sample, or to the data that was there before."""
    if section == "split":
        return SplitParams().model_dump(mode="json")
    defaults = TrainParams().model_dump(mode="json")
    return {key: defaults[key] for key in SAMPLE_TRAINING} if section == "train" else {}


def _widen_space(tree: Any, section: str, proposed: Mapping[str, Any], changed: list[str]) -> None:
    """Let a search space hold what is proposed, for a search begins with the present params.

    Encoders are replaced by those that the proposed weights are there for.
    """
    space = tree.get("search", {}).get("space", {})
    for name, value in proposed.items():
        key = f"{section}.{name}"
        choices = _plain(space.get(key))
        if isinstance(choices, list) and value not in choices:
            wider = list(LITE_ENCODERS) if key == "model.encoder" else [*choices, value]
            _set(tree["search"], "space", {key: wider}, changed)
            changed[-1] = f"search.space.{key}: {wider}"


def _set(tree: Any, section: str, values: Mapping[str, Any], changed: list[str]) -> None:
    node = tree.setdefault(section, {})
    for key, value in values.items():
        if _plain(node.get(key)) != value:
            node[key] = value
            changed.append(f"{section}.{key}: {value}")


def _quoted(code: int | str) -> int | str:
    # an unquoted # starts a comment
    return DoubleQuotedScalarString(code) if isinstance(code, str) else code


def _short(codes: Sequence[int | str]) -> int | str | list[int | str]:
    return _quoted(codes[0]) if len(codes) == 1 else [*map(_quoted, codes)]


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    return [_plain(value) for value in node] if isinstance(node, list) else node
