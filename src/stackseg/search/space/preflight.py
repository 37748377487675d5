"""What is refused before the first trial: values against params.yaml's rules, conditions that cannot be met."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from stackseg.errors import ParamsError
from stackseg.params import Params
from stackseg.params.search import SpaceEntry
from stackseg.search.space.space import WHERE, Dimension, Space, condition_holds

# whole numbers of a range that are tried against the other params before the first trial
MAX_CHECKED = 200


def check_values(space: Space) -> None:
    """Refuse values that do not fit params.yaml's rules, by themselves or two by two, as a trial would have them."""
    params = space.present
    entries = params.search.space
    for one in space.dimensions:
        for value in some_values(one):
            params.override(together({one.key: one.value_of(value)}, params), f"{WHERE}.{one.key}")
    for one, other in itertools.combinations(space.dimensions, 2):
        if one.key.partition(".")[0] != other.key.partition(".")[0]:  # the rules are those of a section
            continue
        for pair in itertools.product(_extremes(one), _extremes(other)):
            forced = {one.key: one.value_of(pair[0]), other.key: other.value_of(pair[1])}
            chosen = together(forced, params)
            if all(condition_holds(entries[key].when, chosen, params) for key in forced):
                params.override(chosen, f"{WHERE}: {one.key} with {other.key}")


def together(forced: Mapping[str, Any], params: Params) -> dict[str, Any]:
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
            if (
                key in entry.when
                and condition_holds(entry.when, chosen, params)
                and not _has(entry, params.value(other))
            ):
                beside[other] = entry.choices[0] if entry.choices is not None else entry.low
        for other, value in beside.items():
            if other not in chosen:
                chosen[other] = value
                waiting.append(other)
    return chosen


def _has(entry: SpaceEntry, value: Any) -> bool:
    if entry.choices is not None:
        return value in entry.choices
    return isinstance(value, int | float) and entry.low <= value <= entry.high  # type: ignore[operator]


def check_conditions(space: Space) -> None:
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


def check_present(space: Space) -> None:
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


def _extremes(one: Dimension) -> list[Any]:
    """Return the values of a dimension that are tried with those of others: both ends, or all choices."""
    distribution = one.distribution
    if isinstance(distribution, IntDistribution):
        return [distribution.low, distribution.high]
    return some_values(one)


def some_values(one: Dimension) -> list[Any]:
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
