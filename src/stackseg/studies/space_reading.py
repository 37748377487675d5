"""Reading `search.space`: whatever no trial could be made of is refused before the first one."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel

from stackseg.errors import ParamsError
from stackseg.learning.augmentation import build_augmentation, check_augmentation
from stackseg.learning.devices import resolve_precision
from stackseg.learning.learner import training_loss
from stackseg.learning.network import NetworkSpec, build_network
from stackseg.params import Params
from stackseg.params.search import SpaceEntry
from stackseg.studies.space import WHERE, Dimension, Space, as_choice

# what decides on the planes or on the measure stays the same for all trials, or their scores could not be compared
SECTIONS = ("model", "augment", "train", "inference")
# whole numbers of a range that are tried against the other params before the first trial
MAX_CHECKED = 200


def read_space(params: Params) -> Space:
    """Return the space of `search.space`, every value of which fits by itself.

    Raises
    ------
    ParamsError
        It is empty, a key is unknown, decides on the data or is a part of another, a value does not fit, conditions go
        round in a circle or cannot be met, or the present params lie outside of it.
    """
    entries = params.search.space
    if not entries:
        raise ParamsError(
            "nothing to search",
            expected="a dotted key with choices or a range",
            where=WHERE,
            remedy="write for example `train.lr: {low: 0.0003, high: 0.01, log: true}` under it in params.yaml",
        )
    for key, entry in entries.items():
        _check_key(key, params)
        for other in entry.when:
            params.value(other)
            for varied in entries:
                if other.startswith(f"{varied}.") or varied.startswith(f"{other}."):
                    raise ParamsError(
                        f"the condition asks for {other}, and {varied} varies",
                        expected="a condition on a key as it varies, or on one that does not",
                        where=f"{WHERE}.{key}.when",
                        remedy=f"ask for values of {varied}, or take it out of the space",
                    )
        for other in entries:
            if key.startswith(f"{other}."):
                raise ParamsError(
                    f"{key} is a part of {other}", where=WHERE, remedy="take one of the two out of the space"
                )
    for key, entry in entries.items():
        for other, values in entry.when.items():
            for value in values:
                params.override(_together({other: value}, params), f"{WHERE}.{key}.when")
    space = Space(tuple(_dimension(key, entries[key], params) for key in _ordered(entries)), params)
    _check_values(space)
    _check_conditions(space)
    _check_present(space)
    return space


def check_buildable(space: Space, in_channels: int, class_pixels: Sequence[int], device: torch.device) -> None:
    """Build every combination of architecture and encoder once, with its weights, losses, precisions and pipelines.

    Weights that come from a hub are then there before workers ask for them at the same moment.

    Parameters
    ----------
    space
        Its networks and losses.
    in_channels
        Channels of an image, context slices included.
    class_pixels
        Labelled training pixels of each class.
    device
        Where the trials are made.

    Raises
    ------
    ParamsError, ModelError, MachineError
        One is unknown or impossible.
    """
    for chosen in space.networks():
        model = space.present.override(chosen, WHERE).model
        spec = NetworkSpec(
            architecture=model.architecture,
            encoder=model.encoder,
            in_channels=in_channels,
            num_classes=len(class_pixels),
            decoder_dropout=model.decoder_dropout,
        )
        build_network(spec, encoder_weights=model.encoder_weights)
    size = space.present.train.patch_size
    for file in space.augment_files():
        check_augmentation(build_augmentation("file", file=file), (size, size, in_channels))
    for one in space.dimensions:
        if one.key.startswith(("train.loss", "train.class_weights")):
            for value in _some_values(one):
                training_loss(space.present.override({one.key: one.value_of(value)}, WHERE).train, class_pixels)
        if one.key == "train.precision":
            for value in _some_values(one):
                resolve_precision(one.value_of(value), device)


def _check_key(key: str, params: Params) -> None:
    section = key.partition(".")[0]
    if isinstance(params.value(key), dict) and not key.startswith("train.loss"):
        raise ParamsError(
            f"{key} is a section", expected="one of its keys", where=WHERE, remedy="name the key to be varied"
        )
    if section not in SECTIONS:
        raise ParamsError(
            f"{key} decides on the data or on the measure: trials could not be compared",
            expected=f"keys of {', '.join(SECTIONS)}",
            where=WHERE,
            remedy=f"take {key} out, and search once for each of its values with --study",
        )


def _check_values(space: Space) -> None:
    """Refuse values that do not fit params.yaml's rules, by themselves or two by two, as a trial would have them."""
    params = space.present
    entries = params.search.space
    for one in space.dimensions:
        for value in _some_values(one):
            params.override(_together({one.key: one.value_of(value)}, params), f"{WHERE}.{one.key}")
    for one, other in itertools.combinations(space.dimensions, 2):
        if one.key.partition(".")[0] != other.key.partition(".")[0]:  # the rules are those of a section
            continue
        for pair in itertools.product(_extremes(one), _extremes(other)):
            forced = {one.key: one.value_of(pair[0]), other.key: other.value_of(pair[1])}
            chosen = _together(forced, params)
            if all(_counts(key, chosen, params) for key in forced if key in entries):
                params.override(chosen, f"{WHERE}: {one.key} with {other.key}")


def _together(forced: Mapping[str, Any], params: Params) -> dict[str, Any]:
    """Return some values of the space with others that a trial has beside them, as dotted key to value.

    These are what their conditions ask for, and keys that count only beside them.
    """
    entries = params.search.space
    chosen = dict(forced)
    waiting = list(forced)
    while waiting:
        key = waiting.pop()
        asked_for = entries[key].when if key in entries else {}  # a condition may be on a key that does not vary
        beside = {
            other: values[0]
            for other, values in asked_for.items()
            if other in entries and chosen.get(other, params.value(other)) not in values
        }
        for other, entry in entries.items():
            if key in entry.when and _counts(other, chosen, params) and not _has(entry, params.value(other)):
                beside[other] = entry.choices[0] if entry.choices is not None else entry.low
        for other, value in beside.items():
            if other not in chosen:
                chosen[other] = value
                waiting.append(other)
    return chosen


def _counts(key: str, chosen: Mapping[str, Any], params: Params) -> bool:
    return all(
        chosen.get(other, params.value(other)) in values for other, values in params.search.space[key].when.items()
    )


def _has(entry: SpaceEntry, value: Any) -> bool:
    if entry.choices is not None:
        return value in entry.choices
    return isinstance(value, int | float) and entry.low <= value <= entry.high  # type: ignore[operator]


def _check_conditions(space: Space) -> None:
    """Refuse a condition on what no trial can have; on a key that stays as it is, it may fail to hold."""
    varied = {one.key: one for one in space.dimensions}
    for dimension in space.dimensions:
        for other, values in dimension.when.items():
            for value in values:
                if other in varied and not varied[other].holds(value):
                    raise ParamsError(
                        f"{value!r} is no value of {other}",
                        expected=varied[other].shown(),
                        where=f"{WHERE}.{dimension.key}.when",
                        remedy="mend the condition",
                    )


def _check_present(space: Space) -> None:
    """Refuse a space without the present params, which are trial 0."""
    counting = space.first_trial()
    for one in space.dimensions:
        value = space.present.value(one.key)
        if one.key in counting and not one.holds(value):
            raise ParamsError(
                f"the present value of {one.key} is {value}, which is not in the space",
                expected="the params that are there among what is tried: they are trial 0",
                where=f"{WHERE}.{one.key}",
                remedy=f"add {value} to the space, or change {one.key}",
            )


def _dimension(key: str, entry: SpaceEntry, params: Params) -> Dimension:
    if entry.choices is not None:
        # as params.yaml would hold them: 1 is 1.0 where a number need not be whole
        held = [params.override(_together({key: one}, params), f"{WHERE}.{key}").value(key) for one in entry.choices]
        meaning = {as_choice(one): one for one in held}
        if len(meaning) < len(entry.choices):
            raise ParamsError("a choice is named twice", where=f"{WHERE}.{key}", remedy="take one out")
        return Dimension(key, CategoricalDistribution(tuple(meaning)), entry.when, meaning)
    low, high = entry.low, entry.high
    if low is None or high is None:
        raise TypeError("a range has both ends")
    if _is_whole(key):
        numbers = (low, high, 1 if entry.step is None else entry.step)
        if any(one != int(one) for one in numbers):
            raise ParamsError(
                f"low {low}, high {high}, step {entry.step}", expected="whole numbers", where=f"{WHERE}.{key}"
            )
        step = 1 if entry.step is None else int(entry.step)
        _check_step(key, low, high, step)
        return Dimension(key, IntDistribution(int(low), int(high), log=entry.log, step=step), entry.when)
    if entry.step is not None:
        _check_step(key, low, high, entry.step)
    step_or_none = None if entry.step is None else float(entry.step)
    return Dimension(key, FloatDistribution(float(low), float(high), log=entry.log, step=step_or_none), entry.when)


def _check_step(key: str, low: float, high: float, step: float) -> None:
    """Optuna would lower the upper end without a word that anyone reads."""
    end = low + int((high - low) / step) * step
    if abs((high - low) / step - round((high - low) / step)) > 1e-9:
        raise ParamsError(
            f"steps of {step} from {low} do not end at {high}",
            where=f"{WHERE}.{key}",
            remedy="take smaller steps" if end == low else f"set high to {end:g}",
        )


def _is_whole(key: str) -> bool:
    """Return whether the typed section holds whole numbers under a key."""
    model: type[BaseModel] = Params
    annotation: Any = None
    for name in key.split("."):
        field = model.model_fields.get(name)
        if field is None:  # inside a mapping, such as the weights of train.loss
            return False
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    kinds = typing.get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return int in kinds and float not in kinds


def _ordered(entries: Mapping[str, SpaceEntry]) -> list[str]:
    """Return the keys so that each comes behind those that its condition asks for."""
    ordered: list[str] = []
    waiting = list(entries)
    while waiting:
        free = [key for key in waiting if not any(other in waiting for other in entries[key].when)]
        if not free:
            raise ParamsError(
                f"the conditions of {', '.join(waiting)} go round in a circle", where=WHERE, remedy="take one out"
            )
        ordered.extend(free)
        waiting = [key for key in waiting if key not in free]
    return ordered


def _extremes(one: Dimension) -> list[Any]:
    """Return the values of a dimension that are tried with those of others: both ends, or all choices."""
    distribution = one.distribution
    if isinstance(distribution, IntDistribution):
        return [distribution.low, distribution.high]
    return _some_values(one)


def _some_values(one: Dimension) -> list[Any]:
    """Return the values of a dimension that are tried against params.yaml's rules: both ends, or all that there are."""
    distribution = one.distribution
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution):
        whole = range(distribution.low, distribution.high + 1, distribution.step)
        return [*whole[:MAX_CHECKED], distribution.high]
    if isinstance(distribution, FloatDistribution):
        return [distribution.low, distribution.high]
    raise TypeError(type(distribution).__name__)
