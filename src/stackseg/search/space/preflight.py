"""What is refused before the first trial: values, conditions, networks, losses and data that cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from stackseg.catalog.build import folded
from stackseg.dataset.fingerprints import require_same_planes
from stackseg.dataset.records import Catalog, read_catalog, require_described_by
from stackseg.dataset.splits import Part
from stackseg.errors import ParamsError
from stackseg.model.devices import resolve_precision
from stackseg.model.network import NetworkSpec, build_network
from stackseg.params import Params
from stackseg.params.search import SpaceEntry
from stackseg.search.space.space import WHERE, Dimension, Space, condition_holds
from stackseg.training.augmentation import build_augmentation, check_augmentation
from stackseg.training.losses import training_loss

# whole numbers of a range that are checked before the first trial
MAX_CHECKED = 200


def check_values(space: Space) -> None:
    """Refuse values that do not fit params.yaml's rules, each on top of the present params."""
    params = space.params
    for one in space.dimensions:
        for value in _checked_values(one):
            chosen = with_dependent_keys({one.key: one.param_value(value)}, params)
            params.override(chosen, f"{WHERE}.{one.key}")


def with_dependent_keys(forced: Mapping[str, Any], params: Params) -> dict[str, Any]:
    """Return dotted keys and values of the space, and with them others that a trial must have at the same time.

    These are what their conditions ask for, and keys that count only together with them.
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
                and not _contains(entry, params.value(other))
            ):
                beside[other] = entry.choices[0] if entry.choices is not None else entry.low
        for other, value in beside.items():
            if other not in chosen:
                chosen[other] = value
                waiting.append(other)
    return chosen


def _contains(entry: SpaceEntry, value: Any) -> bool:
    if entry.choices is not None:
        return value in entry.choices
    return isinstance(value, int | float) and entry.low <= value <= entry.high  # type: ignore[operator]


def check_conditions(space: Space) -> None:
    """Refuse a condition on a value that its key never has; on a key that does not vary, it may fail to hold."""
    varied = {one.key: one for one in space.dimensions}
    for dimension in space.dimensions:
        for other, values in dimension.when.items():
            for value in values:
                if other in varied and not varied[other].contains(value):
                    raise ParamsError(
                        f"{value!r} is no value of {other}",
                        expected=varied[other].text(),
                        where=f"{WHERE}.{dimension.key}.when",
                        remedy="correct the condition",
                    )


def check_present(space: Space) -> None:
    """Refuse a space without the present params, which are trial 0."""
    counting = space.first_trial()
    for one in space.dimensions:
        value = space.params.value(one.key)
        if one.key in counting and not one.contains(value):
            raise ParamsError(
                f"the present value of {one.key} is {value}, which is not in the space",
                expected="the present params within the space: they are trial 0",
                where=f"{WHERE}.{one.key}",
                remedy=f"add {value} to the space, or change {one.key}",
            )


def _checked_values(one: Dimension) -> list[Any]:
    """Return the values of a dimension that are checked before the first trial: both ends of a range, or all values."""
    distribution = one.distribution
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution):
        whole = range(distribution.low, distribution.high + 1, distribution.step)
        return [*whole[:MAX_CHECKED], distribution.high]
    if isinstance(distribution, FloatDistribution):
        return [distribution.low, distribution.high]
    raise TypeError(type(distribution).__name__)


def check_buildable(space: Space, in_channels: int, class_pixels: Sequence[int], device: torch.device) -> None:
    """Build every combination of architecture and encoder once, with its weights, losses, precisions and pipelines.

    Weights that come from a hub are then on disk before several workers ask for them.

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
        model = space.params.override(chosen, WHERE).model
        spec = NetworkSpec(
            architecture=model.architecture,
            encoder=model.encoder,
            in_channels=in_channels,
            num_classes=len(class_pixels),
            decoder_dropout=model.decoder_dropout,
        )
        build_network(spec, encoder_weights=model.encoder_weights)
    size = space.params.train.patch_size
    for file in space.augment_files():
        check_augmentation(build_augmentation("file", file=file), (size, size, in_channels))
    for one in space.dimensions:
        if one.key.startswith(("train.loss", "train.class_weights")):
            for value in _checked_values(one):
                training_loss(space.params.override({one.key: one.param_value(value)}, WHERE).train, class_pixels)
        if one.key == "train.precision":
            for value in _checked_values(one):
                resolve_precision(one.param_value(value), device)


def read_search_catalog(space: Space, file: Path, data: Path) -> Catalog:
    """Read the catalogue, and require that trials can be made on it without the test part.

    Raises
    ------
    DataError, ParamsError
        It was made with other params or of other planes, or test planes would reach a training or validation.
    """
    catalog = read_catalog(file)
    require_described_by(catalog, space.params, file)
    context, folds = space.max_value("model.context_slices"), space.params.search.folds
    catalog.require_test_unread()
    catalog.require_test_apart(context, folds=folds)
    if folds is not None:
        folded(catalog, folds)
    parts: tuple[Part, ...] = ("training", "validation")
    # neighbours are input too, and each fold has another gap
    require_same_planes(catalog, data, *parts, *(("gap", "unused") if context or folds is not None else ()))
    return catalog
