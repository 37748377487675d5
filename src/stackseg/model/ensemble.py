"""Join bundles to one whose answer is the mean of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from importlib.metadata import version
from pathlib import Path

import torch

from stackseg.dataset.intensity_profile import ChannelRanges, IntensityProfile
from stackseg.dataset.normalisation import ChannelStatistics, IntensityPolicy
from stackseg.dataset.records import Catalog
from stackseg.errors import ModelError
from stackseg.model.bundle import (
    BundleSpec,
    InferenceSpec,
    Lineage,
    ParentRecord,
    SeenPlanes,
    ValidationScore,
    save_bundle,
)
from stackseg.model.code_digest import code_digest
from stackseg.model.ensemble_network import Member


def join_bundles(
    folder: Path,
    bundles: Sequence[tuple[ParentRecord, BundleSpec, dict[str, torch.Tensor]]],
    catalog: Catalog,
    git: tuple[str | None, bool | None],
) -> BundleSpec:
    """Save an ensemble in the place of `folder`, whole or not at all.

    It has seen what any member has seen, and has no validation score: each member was chosen on planes of its own.

    Parameters
    ----------
    bundles
        As the user named each, with its bundle.json and its weights.
    catalog, git
        The data set and commit at which it was made.

    Raises
    ------
    ModelError
        Fewer than two, the same one twice, an ensemble among them, or members that do not go together.
    """
    specs = [spec for _, spec, _ in bundles]
    names = [str(record) for record, _, _ in bundles]
    _check(specs, names)
    first = specs[0]
    voxel_sizes = {one.inference.voxel_size_zyx_um for one in specs}
    inference = first.inference.model_copy(
        update={
            "intensity": _common_intensity([one.inference for one in specs]),
            "runtime": "torch",  # what a member was exported for is not there for all of them together
            "voxel_size_zyx_um": first.inference.voxel_size_zyx_um if len(voxel_sizes) == 1 else None,
            "members": tuple(
                Member(network=one.inference.network, statistics=one.inference.intensity.statistics) for one in specs
            ),
        }
    )
    weights = {
        f"members.{place}.{name}": tensor
        for place, (_, _, tensors) in enumerate(bundles)
        for name, tensor in tensors.items()
    }
    return save_bundle(
        folder,
        InferenceSpec.model_validate(inference.model_dump()),
        weights,
        validation=ValidationScore(
            epoch=max(one.validation.epoch for one in specs),
            mean_iou=None,
            iou={},
            pixel_accuracy=None,
            precision=first.validation.precision,
            device=first.validation.device,
        ),
        seen=reduce(SeenPlanes.joined, (one.seen for one in specs)),
        profile=_common_profile(specs),
        lineage=Lineage(
            stackseg_version=version("stackseg"),
            code_digest=code_digest(),
            git_commit=git[0],
            git_dirty=git[1],
            data_md5=catalog.data_md5,
            catalog_digest=catalog.digest(),
            params=first.lineage.params,
            versions=first.lineage.versions,
            members=tuple(record for record, _, _ in bundles),
        ),
    )


def _check(specs: Sequence[BundleSpec], names: Sequence[str]) -> None:
    if len(specs) < 2:
        raise ModelError(f"{len(specs)} model", expected="two at least", remedy="name the others, too")
    digests = [one.digest for one in specs]
    for place, (spec, name) in enumerate(zip(specs, names, strict=True)):
        if spec.inference.members:
            raise ModelError("an ensemble", expected="single models", where=name, remedy="name its members instead")
        if digests.index(spec.digest) < place:
            raise ModelError(
                f"the same model as {names[digests.index(spec.digest)]}", where=name, remedy="name it once"
            )
        for what, own, others in zip(_MAKE, _make(spec.inference), _make(specs[0].inference), strict=True):
            if own != others:
                raise ModelError(
                    f"{what}: {own}",
                    expected=f"{others}, as {names[0]} has it",
                    where=name,
                    remedy="only models that take the same images and tell the same classes are joined",
                )


_MAKE = ("classes", "image channels", "context slices", "instances", "intensity", "colour")


def _make(inference: InferenceSpec) -> tuple[object, ...]:
    policy = inference.intensity
    return (
        ", ".join(inference.class_names),
        inference.num_channels,
        inference.context_slices,
        inference.instances,
        policy.params,
        policy.colour,
    )


def _common_intensity(members: Sequence[InferenceSpec]) -> IntensityPolicy:
    """Return the first member's policy with limits so wide that no member misses anything."""
    policies = [one.intensity for one in members]
    by_channel = list(zip(*(one.statistics for one in policies if one.statistics is not None), strict=True))
    if not by_channel:
        return policies[0]
    wide = tuple(
        ChannelStatistics(
            low=min(one.low for one in channel),
            high=max(one.high for one in channel),
            mean=channel[0].mean,
            std=channel[0].std,
        )
        for channel in by_channel
    )
    return policies[0].model_copy(update={"statistics": wide})


def _common_profile(specs: Sequence[BundleSpec]) -> IntensityProfile:
    """Return ranges that hold the training planes of every member."""
    profiles = [one.profile for one in specs]
    figures = tuple(ChannelRanges.model_fields)
    channels = tuple(
        ChannelRanges(**{figure: _hull([getattr(one, figure) for one in channel]) for figure in figures})
        for channel in zip(*(one.channels for one in profiles), strict=True)
    )
    return IntensityProfile(channels=channels, num_planes=sum(one.num_planes for one in profiles))


def _hull(ranges: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return min(low for low, _ in ranges), max(high for _, high in ranges)
