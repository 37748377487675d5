"""Reading `search.space`: keys, values and conditions that cannot be are refused before the first trial."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from stackseg.errors import ParamsError
from stackseg.params import Params
from stackseg.params.search import SpaceEntry
from stackseg.search.space.preflight import check_conditions, check_present, check_values, with_dependent_keys
from stackseg.search.space.space import WHERE, Dimension, Space, as_choice

# keys that decide on the planes or on the scoring stay the same for all trials, so that their scores can be compared
SECTIONS = ("model", "augment", "train", "inference")


def read_space(params: Params) -> Space:
    """Return the space of `search.space`, every value of which fits by itself.

    Raises
    ------
    ParamsError
        `model.init` is set or varied, the space is empty, a key is unknown, decides on the data or is part of another,
        a value does not fit, conditions form a circle or cannot be met, or the present params lie outside of it.
    """
    entries = params.search.space
    if params.model.init is not None or "model.init" in entries:
        raise ParamsError(
            "a search begins each of its trials without the weights of another model",
            expected="model.init: null, and not among the keys of search.space",
            where="model.init",
            remedy="search without them; then set it, and `dvc repro` trains with the params that were found",
        )
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
            params.value(other)  # refuses an unknown key
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
                params.override(with_dependent_keys({other: value}, params), f"{WHERE}.{key}.when")
    space = Space(tuple(_dimension(key, entries[key], params) for key in _ordered(entries)), params)
    check_values(space)
    check_conditions(space)
    check_present(space)
    return space


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


def _dimension(key: str, entry: SpaceEntry, params: Params) -> Dimension:
    if entry.choices is not None:
        # as params.yaml holds them: 1 is 1.0 where a number need not be whole
        values = [
            params.override(with_dependent_keys({key: one}, params), f"{WHERE}.{key}").value(key)
            for one in entry.choices
        ]
        param_values = {as_choice(one): one for one in values}
        if len(param_values) < len(entry.choices):
            raise ParamsError("a choice is named twice", where=f"{WHERE}.{key}", remedy="take one out")
        return Dimension(key, CategoricalDistribution(tuple(param_values)), entry.when, param_values)
    low, high = entry.low, entry.high
    if low is None or high is None:
        raise TypeError("a range has both ends")
    numbers = (low, high, 1 if entry.step is None else entry.step)
    are_whole = all(one == int(one) for one in numbers)
    # params.yaml's rules say whether a key takes whole numbers only
    lowest = with_dependent_keys({key: int(low) if are_whole else low}, params)
    if isinstance(params.override(lowest, f"{WHERE}.{key}").value(key), int):
        if not are_whole:
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
    """Refuse steps that miss the upper end: Optuna would lower it with a warning that nobody reads."""
    end = low + int((high - low) / step) * step
    if abs((high - low) / step - round((high - low) / step)) > 1e-9:
        raise ParamsError(
            f"steps of {step} from {low} do not end at {high}",
            where=f"{WHERE}.{key}",
            remedy="take smaller steps" if end == low else f"set high to {end:g}",
        )


def _ordered(entries: Mapping[str, SpaceEntry]) -> list[str]:
    """Return the keys so that each comes after those that its condition names."""
    conditions = {key: [other for other in entry.when if other in entries] for key, entry in entries.items()}
    try:
        return list(TopologicalSorter(conditions).static_order())
    except CycleError as error:
        circle = sorted(set(error.args[1]))
        raise ParamsError(
            f"the conditions of {', '.join(circle)} go round in a circle", where=WHERE, remedy="take one out"
        ) from None
