"""A search space: dotted keys of params.yaml as Optuna's distributions, and a trial's values back as params."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from stackseg.errors import ParamsError
from stackseg.params import Params

WHERE = "search.space"
# of a space whose points are all tried
MAX_POINTS = 100_000
NETWORK_KEYS = ("model.architecture", "model.encoder", "model.encoder_weights")


@dataclass(frozen=True)
class Dimension:
    """One dotted key: its distribution, the conditions under which it counts, and what each choice stands for."""

    key: str
    distribution: BaseDistribution
    when: Mapping[str, list[Any]]
    param_values: Mapping[Any, Any] | None = None

    def suggest(self, trial: Trial) -> Any:
        """Let the trial choose."""
        one = self.distribution
        if isinstance(one, CategoricalDistribution):
            return self.param_value(trial.suggest_categorical(self.key, one.choices))
        if isinstance(one, IntDistribution):
            return trial.suggest_int(self.key, one.low, one.high, step=one.step, log=one.log)
        if isinstance(one, FloatDistribution):
            return self.param_value(trial.suggest_float(self.key, one.low, one.high, step=one.step, log=one.log))
        raise TypeError(type(one).__name__)

    def param_value(self, suggested: Any) -> Any:
        """Return params.yaml's value for one of Optuna's."""
        if self.param_values is not None:
            return self.param_values[suggested]
        one = self.distribution
        if isinstance(one, FloatDistribution) and one.step is not None:
            return _on_step(one, round((suggested - one.low) / one.step))
        return suggested

    def without(self, keys: set[str]) -> Dimension:
        """Return the same dimension without its conditions on some keys."""
        return replace(self, when={key: values for key, values in self.when.items() if key not in keys})

    def contains(self, value: Any) -> bool:
        """Return whether a trial may have a value of params.yaml's."""
        suggested = self.optuna_value(value)
        try:
            return bool(self.distribution._contains(self.distribution.to_internal_repr(suggested)))
        except (ValueError, TypeError):
            return False

    def text(self) -> str:
        """Return its values for a message."""
        one = self.distribution
        if isinstance(one, IntDistribution | FloatDistribution):
            step = f" in steps of {one.step}" if one.step not in (None, 1) else ""
            return f"{one.low} to {one.high}{step}"
        return ", ".join(str(value) for value in (self.param_values or {}).values())

    def optuna_value(self, value: Any) -> Any:
        """Return Optuna's value for one of params.yaml's."""
        return value if self.param_values is None else as_choice(value)


@dataclass(frozen=True)
class Space:
    """All dimensions, each after those that its condition names, and the present params, which are trial 0."""

    dimensions: tuple[Dimension, ...]
    params: Params

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Let a trial choose; returns dotted key to value, of the dimensions that count."""
        chosen: dict[str, Any] = {}
        for one in self.dimensions:
            if condition_holds(one.when, chosen, self.params):
                chosen[one.key] = one.suggest(trial)
        return chosen

    def overrides(self, suggested: Mapping[str, Any]) -> dict[str, Any]:
        """Return dotted key to value for the parameters that Optuna stored of a trial."""
        return {one.key: one.param_value(suggested[one.key]) for one in self.dimensions if one.key in suggested}

    def first_trial(self) -> dict[str, Any]:
        """Return the present params as Optuna's parameters."""
        chosen: dict[str, Any] = {}
        for one in self.dimensions:
            if condition_holds(one.when, chosen, self.params):
                chosen[one.key] = self.params.value(one.key)
        return {one.key: one.optuna_value(chosen[one.key]) for one in self.dimensions if one.key in chosen}

    def augment_files(self) -> list[str]:
        """Return the augmentation pipelines that a trial may read."""
        files = [
            value for one in self.dimensions if one.key == "augment.file" for value in (one.param_values or {}).values()
        ]
        return [one for one in dict.fromkeys([self.params.augment.file, *files]) if one is not None]

    def grid(self) -> dict[str, list[Any]]:
        """Return every value of every dimension, for samplers that try all.

        Raises
        ------
        ParamsError
            A range has no step, or there are too many points.
        """
        values = {one.key: list(itertools.islice(_all_values(one), MAX_POINTS + 1)) for one in self.dimensions}
        if math.prod(map(len, values.values())) > MAX_POINTS:
            raise ParamsError(
                f"more than {MAX_POINTS} points",
                expected="a space that can be tried whole",
                where=WHERE,
                remedy="take keys or values out, or choose another search.sampler.name",
            )
        return values

    def max_value(self, key: str) -> int:
        """Return the largest whole number that a trial may have under a key."""
        values: list[int] = [self.params.value(key)]  # of a key that is not in the space, or does not count at times
        for one in self.dimensions:
            if one.key == key:
                values.extend((one.param_values or {}).values())
                if isinstance(one.distribution, IntDistribution):
                    values.append(one.distribution.high)
        return max(values)

    def describe(self) -> dict[str, Any]:
        """Return the space as plain JSON, to be compared with that of a stored study."""
        entries = self.params.search.space
        return {key: entries[key].model_dump(mode="json", exclude_defaults=True) for key in sorted(entries)}

    def networks(self) -> Iterator[dict[str, Any]]:
        """Yield every combination of architecture, encoder and weights that a trial may have."""
        named = [one for one in self.dimensions if one.key in NETWORK_KEYS]
        varied = {one.key for one in self.dimensions} - {one.key for one in named}
        known: list[dict[str, Any]] = []
        # a condition on another key that varies may hold or not
        for holding in itertools.product(*([True, False] if varied & set(one.when) else [True] for one in named)):
            counting = [one.without(varied) for one, holds in zip(named, holding, strict=True) if holds]
            for point in self._points(counting):
                if point not in known:
                    known.append(point)
                    yield point

    def num_points(self) -> int:
        """Return how many points a space of choices and steps has.

        Raises
        ------
        ParamsError
            A range has no step, or there are too many points.
        """
        self.grid()  # refuses a space with too many
        return sum(1 for _ in self._points(self.dimensions))

    def _points(self, dimensions: Sequence[Dimension]) -> Iterator[dict[str, Any]]:
        """Yield each combination of values once, as dotted key to value, of the dimensions that count."""

        def below(depth: int, chosen: dict[str, Any]) -> Iterator[dict[str, Any]]:
            if depth == len(dimensions):
                yield chosen
                return
            one = dimensions[depth]
            if not condition_holds(one.when, chosen, self.params):
                yield from below(depth + 1, chosen)
                return
            for value in _all_values(one):
                yield from below(depth + 1, {**chosen, one.key: one.param_value(value)})

        yield from below(0, {})


def condition_holds(when: Mapping[str, Sequence[Any]], chosen: Mapping[str, Any], params: Params) -> bool:
    """Return whether a condition holds for chosen values, dotted key to value, on top of params."""
    return all((chosen[key] if key in chosen else params.value(key)) in values for key, values in when.items())


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


def as_choice(value: Any) -> Any:
    """Return a value as Optuna stores choices: lists and mappings as JSON text."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value, sort_keys=True)
