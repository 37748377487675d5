"""The search space: from params.yaml's `search.space` to Optuna's distributions, and from a trial back to params."""

from __future__ import annotations

import itertools
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from types import UnionType
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial
from pydantic import BaseModel

from stackseg.errors import ParamsError
from stackseg.learning.learner import training_loss
from stackseg.learning.network import NetworkSpec, build_network
from stackseg.params import Params
from stackseg.params.search import SpaceEntry

# what decides on the planes or on the measure stays the same for all trials, or their scores could not be compared
SECTIONS = ("model", "augment", "train", "inference")
WHERE = "search.space"
NETWORK_KEYS = ("model.architecture", "model.encoder", "model.encoder_weights")
# whole numbers of a range that are tried against the other params before the first trial
MAX_CHECKED = 200


@dataclass(frozen=True)
class Dimension:
    """One dotted key: its distribution, what a suggested value stands for, and the condition under which it counts."""

    key: str
    distribution: BaseDistribution
    when: Mapping[str, list[Any]]
    meaning: Mapping[Any, Any] | None = None

    def suggest(self, trial: Trial) -> Any:
        """Let the trial choose."""
        one = self.distribution
        if isinstance(one, CategoricalDistribution):
            return self.value_of(trial.suggest_categorical(self.key, one.choices))
        if isinstance(one, IntDistribution):
            return trial.suggest_int(self.key, one.low, one.high, step=one.step, log=one.log)
        if isinstance(one, FloatDistribution):
            return self.value_of(trial.suggest_float(self.key, one.low, one.high, step=one.step, log=one.log))
        raise TypeError(type(one).__name__)

    def value_of(self, suggested: Any) -> Any:
        """Return what params.yaml would hold for a value of Optuna's."""
        if self.meaning is not None:
            return self.meaning[suggested]
        one = self.distribution
        if isinstance(one, FloatDistribution) and one.step is not None:
            return _on_step(one, round((suggested - one.low) / one.step))
        return suggested

    def without(self, keys: set[str]) -> Dimension:
        """Return the same dimension without its conditions on some keys."""
        return replace(self, when={key: values for key, values in self.when.items() if key not in keys})

    def holds(self, value: Any) -> bool:
        """Return whether a trial may have a value, given as params.yaml would hold it."""
        suggested = self.suggested_for(value)
        try:
            return bool(self.distribution._contains(self.distribution.to_internal_repr(suggested)))
        except (ValueError, TypeError):
            return False

    def shown(self) -> str:
        """Return its values as people would name them."""
        one = self.distribution
        if isinstance(one, IntDistribution | FloatDistribution):
            step = f" in steps of {one.step}" if one.step not in (None, 1) else ""
            return f"{one.low} to {one.high}{step}"
        return ", ".join(str(value) for value in (self.meaning or {}).values())

    def suggested_for(self, value: Any) -> Any:
        """Return Optuna's value for one of params.yaml's."""
        return value if self.meaning is None else _as_choice(value)


@dataclass(frozen=True)
class Space:
    """All dimensions, each behind those that its condition asks for, around the present params."""

    dimensions: tuple[Dimension, ...]
    present: Params

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Let a trial choose; returns dotted key to value, of the dimensions that count."""
        chosen: dict[str, Any] = {}
        for one in self.dimensions:
            if self._counts(one, chosen):
                chosen[one.key] = one.suggest(trial)
        return chosen

    def overrides(self, suggested: Mapping[str, Any]) -> dict[str, Any]:
        """Return dotted key to value for the parameters that Optuna stored of a trial."""
        return {one.key: one.value_of(suggested[one.key]) for one in self.dimensions if one.key in suggested}

    def first_trial(self) -> dict[str, Any]:
        """Return the present params as Optuna's parameters."""
        chosen: dict[str, Any] = {}
        for one in self.dimensions:
            if self._counts(one, chosen):
                chosen[one.key] = self.present.value(one.key)
        return {one.key: one.suggested_for(chosen[one.key]) for one in self.dimensions if one.key in chosen}

    def grid(self) -> dict[str, list[Any]]:
        """Return every value of every dimension, for samplers that try all.

        Raises
        ------
        ParamsError
            A range has no step.
        """
        return {one.key: list(_all_values(one)) for one in self.dimensions}

    def describe(self) -> dict[str, Any]:
        """Return the space as plain JSON, by which a stored study is known again."""
        entries = self.present.search.space
        return {key: entries[key].model_dump(mode="json", exclude_defaults=True) for key in sorted(entries)}

    def _counts(self, dimension: Dimension, chosen: Mapping[str, Any]) -> bool:
        return all(
            (chosen[key] if key in chosen else self.present.value(key)) in values
            for key, values in dimension.when.items()
        )

    def networks(self) -> Iterator[dict[str, Any]]:
        """Yield every combination of architecture, encoder and its weights that a trial may come to."""
        named = [one for one in self.dimensions if one.key in NETWORK_KEYS]
        varied = {one.key for one in self.dimensions} - {one.key for one in named}
        told: list[dict[str, Any]] = []
        # a condition on another key that varies may hold or not
        for present in itertools.product(*([True, False] if varied & set(one.when) else [True] for one in named)):
            counting = [one.without(varied) for one, holds in zip(named, present, strict=True) if holds]
            for point in self._points(counting):
                if point not in told:
                    told.append(point)
                    yield point

    def num_points(self) -> int:
        """Return how many points a space of choices and steps has.

        Raises
        ------
        ParamsError
            A range has no step.
        """
        return sum(1 for _ in self._points(self.dimensions))

    def _points(self, dimensions: Sequence[Dimension]) -> Iterator[dict[str, Any]]:
        """Yield each combination of values once, as dotted key to value, of the dimensions that count."""

        def below(depth: int, chosen: dict[str, Any]) -> Iterator[dict[str, Any]]:
            if depth == len(dimensions):
                yield chosen
                return
            one = dimensions[depth]
            if not self._counts(one, chosen):
                yield from below(depth + 1, chosen)
                return
            for value in _all_values(one):
                yield from below(depth + 1, {**chosen, one.key: one.value_of(value)})

        yield from below(0, {})


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
        for other in entries:
            if key.startswith(f"{other}."):
                raise ParamsError(
                    f"{key} is a part of {other}", where=WHERE, remedy="take one of the two out of the space"
                )
    space = Space(tuple(_dimension(key, entries[key], params) for key in _ordered(entries)), params)
    for one in space.dimensions:
        for value in _some_values(one):
            params.override({one.key: one.value_of(value)}, f"{WHERE}.{one.key}")
    _check_conditions(space)
    _check_present(space)
    return space


def check_buildable(space: Space, in_channels: int, class_pixels: Sequence[int]) -> None:
    """Build every combination of architecture and encoder once, with its weights, and every loss.

    Weights that come from a hub are then there before workers ask for them at the same moment.

    Parameters
    ----------
    space
        Its networks and losses.
    in_channels
        Channels of an image, context slices included.
    class_pixels
        Labelled training pixels of each class.

    Raises
    ------
    ParamsError, ModelError
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
    for one in space.dimensions:
        if one.key.startswith(("train.loss", "train.class_weights")):
            for value in _some_values(one):
                training_loss(space.present.override({one.key: one.value_of(value)}, WHERE).train, class_pixels)


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


def _check_conditions(space: Space) -> None:
    """Refuse a condition on what no trial can have; on a key that stays as it is, it may fail to hold."""
    varied = {one.key: one for one in space.dimensions}
    for dimension in space.dimensions:
        where = f"{WHERE}.{dimension.key}.when"
        for other, values in dimension.when.items():
            for value in values:
                space.present.override({other: value}, where)
                if other in varied and not varied[other].holds(value):
                    raise ParamsError(
                        f"{value!r} is no value of {other}",
                        expected=varied[other].shown(),
                        where=where,
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
        held = [params.override({key: one}, f"{WHERE}.{key}").value(key) for one in entry.choices]
        meaning = {_as_choice(one): one for one in held}
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


def _all_values(one: Dimension) -> Iterator[Any]:
    """Yield all of Optuna's values of a dimension."""
    distribution = one.distribution
    if isinstance(distribution, CategoricalDistribution):
        yield from distribution.choices
    elif isinstance(distribution, IntDistribution) and not distribution.log:
        yield from range(distribution.low, distribution.high + 1, distribution.step)
    elif isinstance(distribution, FloatDistribution) and distribution.step is not None:
        num = round((distribution.high - distribution.low) / distribution.step)
        yield from (_on_step(distribution, place) for place in range(num + 1))
    else:
        raise ParamsError(
            f"{one.key} is a range without step",
            expected="choices, or a range with a step",
            where=WHERE,
            remedy="give it a step, or choose another search.sampler.name: grid and brute_force try all values",
        )


def _on_step(distribution: FloatDistribution, place: int) -> float:
    """Return a value of a stepped range as people write it: in binary, 0.1 + 2 * 0.1 is not 0.3."""
    return float(Decimal(str(distribution.low)) + place * Decimal(str(distribution.step)))


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


def _as_choice(value: Any) -> Any:
    """Return a value as Optuna stores choices: lists and mappings as JSON text."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value, sort_keys=True)
