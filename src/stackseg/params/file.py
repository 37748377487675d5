"""Read, check, override and write params.yaml."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError

from stackseg.atomic import read_text, write_text
from stackseg.errors import ParamsError
from stackseg.params.augment import AugmentParams
from stackseg.params.base import Section
from stackseg.params.data import ClassParams, DataParams
from stackseg.params.evaluate import EvaluateParams
from stackseg.params.inference import InferenceParams
from stackseg.params.intensity import IntensityParams
from stackseg.params.model import ModelParams
from stackseg.params.project import ProjectParams
from stackseg.params.promotion import PromotionParams
from stackseg.params.search import SearchParams
from stackseg.params.split import SplitParams
from stackseg.params.train import TrainParams

FORMAT = 1


class Params(Section):
    """All settings of a run; params.yaml is their only home."""

    format: int = Field(FORMAT, ge=1)
    """Version of this file's layout."""
    seed: int = Field(7, ge=0, lt=2**32)
    """Seed of the split, the patches, the augmentation and the weights."""
    project: ProjectParams = ProjectParams()
    data: DataParams = DataParams()
    split: SplitParams = SplitParams()
    intensity: IntensityParams = IntensityParams()
    model: ModelParams = ModelParams()
    augment: AugmentParams = AugmentParams()
    train: TrainParams = TrainParams()
    inference: InferenceParams = InferenceParams()
    evaluate: EvaluateParams = EvaluateParams()
    promotion: PromotionParams = PromotionParams()
    search: SearchParams = SearchParams()

    def override(self, values: Mapping[str, Any], where: str = "override") -> Params:
        """Return params with dotted keys replaced, checked as a file would be.

        Parameters
        ----------
        values
            Dotted key to value, e.g. ``{"train.lr": 3e-4}``.
        where
            What an error names as the values' origin.

        Raises
        ------
        ParamsError
            A key does not exist or a value does not fit.
        """
        tree: dict[str, Any] = self.model_dump()
        for key, value in values.items():
            *sections, last = key.split(".")
            node: Any = tree
            for name in sections:
                node = node.get(name) if isinstance(node, dict) else None
            if not isinstance(node, dict):
                raise _unknown_key(key, where)
            node[last] = value
        return _validate(tree, where)

    def value(self, key: str) -> Any:
        """Return what a dotted key holds, as plain values.

        Raises
        ------
        ParamsError
            There is no such key.
        """
        node: Any = self.model_dump()
        for name in key.split("."):
            if not isinstance(node, dict) or name not in node:
                raise _unknown_key(key, "params.yaml")
            node = node[name]
        return node

    def flat(self) -> dict[str, Any]:
        """Return dotted key to value, lists and class tables as compact JSON."""
        return dict(_leaves(self.model_dump()))


def read_params(path: Path) -> Params:
    """Read and check params.yaml.

    Raises
    ------
    ParamsError
        The file is missing, is no YAML, has an unknown key, a wrong type or a value out of range.
    """
    return _validate(read_tree(path), str(path))


def read_tree(path: Path) -> Any:
    """Read a YAML file so that it can be written again with its comments."""
    try:
        yaml = YAML(typ="rt")
        yaml.preserve_quotes = True
        tree = yaml.load(read_text(path, ParamsError))
    except FileNotFoundError:
        raise ParamsError(
            "no such file", where=str(path), remedy="run from the project's root, where params.yaml is"
        ) from None
    except YAMLError as error:
        raise ParamsError(f"not valid YAML ({error})", where=str(path), remedy="mend the line named above") from None
    if not isinstance(tree, dict):
        raise ParamsError("holds no sections", where=str(path), expected="a mapping of sections")
    return tree


def write_tree(path: Path, tree: Any) -> None:
    """Write a tree from `read_tree`, comments kept, whole or not at all."""
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    # a key without a value reads like an oversight
    yaml.representer.add_representer(
        type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 120
    text = StringIO()
    yaml.dump(tree, text)
    path = path.resolve()  # a link stays one
    mode = path.stat().st_mode if path.exists() else None
    write_text(path, text.getvalue())
    if mode is not None:
        path.chmod(mode)


def write_values(path: Path, values: Mapping[str, Any]) -> None:
    """Write dotted keys into params.yaml, comments kept, if the result is valid.

    Raises
    ------
    ParamsError
        A key does not exist or a value does not fit; the file stays as it is.
    """
    tree = read_tree(path)
    present, known = _validate(tree, str(path)), set(dotted_keys())
    for key, value in values.items():
        *sections, last = key.split(".")
        node, above = tree, ""
        for name in sections:
            above = f"{above}.{name}".removeprefix(".")
            if above not in known:
                raise _unknown_key(key, str(path))
            if name not in node:
                is_section = any(one.startswith(f"{above}.") for one in known)
                # what a file leaves out has its default, of which only one part changes
                node[name] = CommentedMap() if is_section else CommentedMap(present.value(above))
            node = node[name]
            if not isinstance(node, dict):
                raise _unknown_key(key, str(path))
        _replace(node, last, value)
    _validate(tree, str(path))
    write_tree(path, tree)


def _replace(node: CommentedMap, key: str, value: Any) -> None:
    """Replace a value; what ruamel keeps behind the last entry of a block, comments below it among them, stays."""
    held = node.get(key)
    comment = None
    if isinstance(held, CommentedMap) and held:
        comment = (held.ca.items.pop(next(reversed(held)), None) or [None] * 4)[2]
    elif isinstance(held, CommentedSeq) and held:
        comment = (held.ca.items.pop(len(held) - 1, None) or [None])[0]
    if isinstance(held, CommentedMap) and isinstance(value, dict):
        for name in [one for one in held if one not in value]:
            del held[name]
        held.update(value)
        last = next(reversed(held), None)
        holder, place, slots = held, last, [None, None, comment, None]
    elif isinstance(value, list) and value:
        node[key] = CommentedSeq(value)
        holder, place, slots = node[key], len(value) - 1, [comment, None]
    else:
        node[key] = value
        own = (node.ca.items.get(key) or [None] * 3)[2]  # behind the key, where a block began below it
        if own is not None and comment is not None:
            own.value = own.value.rstrip("\n") + comment.value
            comment = own
        holder, place, slots = node, key, [None, None, comment, None]
    if comment is not None and place is not None:
        holder.ca.items[place] = slots


def json_schema() -> str:
    """Return the JSON schema of params.yaml, for editors."""
    schema = Params.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "stackseg params.yaml"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def dotted_keys(model: type[BaseModel] = Params, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key that params.yaml may hold, sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from dotted_keys(field.annotation, f"{prefix}{name}.")


def _validate(tree: Any, where: str) -> Params:
    plain = _plain(tree)
    found = plain.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise ParamsError(
            f"format is {found}", expected=f"{FORMAT} or older", where=where, remedy="update stackseg to read it"
        )
    try:
        return Params.model_validate(plain)
    except ValidationError as error:
        raise _as_params_error(error, plain, where) from None


def _as_params_error(error: ValidationError, plain: Any, where: str) -> ParamsError:
    # an unknown key is the likeliest cause of every other complaint: name it first; of what each member of a union
    # has to say, that from deepest inside, and last that it would like another type altogether
    problems = sorted(error.errors(), key=lambda one: (one["type"] != "extra_forbidden", _wants_another_type(one)))
    first = problems[0]
    key = ".".join(_real_keys(first["loc"], plain))
    if first["type"] == "extra_forbidden":
        return _unknown_key(key, where)
    others = {".".join(_real_keys(one["loc"], plain)) for one in problems} - {key}
    num_others = sum(not key.startswith(f"{other}.") for other in others)
    more = f" (and {num_others} more)" if num_others else ""
    value = first.get("input")
    shown = "" if isinstance(value, dict) else f" is {value!r}"
    message = first["msg"].removeprefix("Value error, ")
    return ParamsError(f"{key}{shown}: {message}{more}", where=where, remedy=f"mend {key} in {where}")


def _wants_another_type(problem: ErrorDetails) -> bool:
    return problem["type"].endswith(("_type", "_error")) and problem["type"] != "value_error"


def _real_keys(location: Sequence[str | int], plain: Any) -> Iterator[str]:
    """Yield the parts of pydantic's location that the file has, without the names of union members."""
    node = plain
    for part in location:
        held = part in node if isinstance(node, dict) else isinstance(node, list) and isinstance(part, int)
        if held:
            node = node[part]
        if held or (isinstance(node, dict) and part is location[-1]):
            yield str(part)


def _unknown_key(key: str, where: str) -> ParamsError:
    valid = [*dotted_keys(), *(f"data.classes.{name}" for name in ClassParams.model_fields)]
    wanted = ".".join(part for part in key.split(".") if not part.isdecimal())
    leaf = wanted.rpartition(".")[2]
    # a key may be right, and only in the wrong section
    near = [one for one in valid if one.rpartition(".")[2] == leaf][:1]
    near = near or difflib.get_close_matches(wanted, valid, n=1, cutoff=0.5)
    near = near or [one for one in valid if difflib.get_close_matches(leaf, [one.rpartition(".")[2]], cutoff=0.7)][:1]
    remedy = f"the nearest valid key is {near[0]}" if near else "`stackseg params schema` lists the keys"
    return ParamsError(f"unknown key {key}", where=where, remedy=remedy)


def _plain(node: Any) -> Any:
    """Strip ruamel's comment-keeping types, which strict validation would refuse."""
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(value) for value in node]
    if isinstance(node, bool) or node is None:
        return node
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, json.dumps(value) if isinstance(value, list) else value
