"""What a finished training leaves: its bundle, and history.csv."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stackseg.atomic import atomic_file
from stackseg.dataset.records import Catalog
from stackseg.dataset.splits import Part
from stackseg.errors import ParamsError
from stackseg.model.bundle import BundleSpec, InferenceSpec, Lineage, SeenPlanes, ValidationScore, save_bundle
from stackseg.model.code_digest import code_digest
from stackseg.model.devices import resolve_precision
from stackseg.model.network import NetworkSpec
from stackseg.model.orthogonal import require_isotropic
from stackseg.model.weights_file import weights_origin
from stackseg.params import Params
from stackseg.training.callbacks import EpochReport

if TYPE_CHECKING:
    from stackseg.training.parent import Parent

PACKAGES = ("torch", "segmentation-models-pytorch", "timm", "albumentations", "lightning", "numpy", "tifffile")


def inference_spec(params: Params, catalog: Catalog) -> InferenceSpec:
    """Return all that inference will read, from params and catalogue."""
    context = params.model.context_slices
    voxel_sizes = {one.voxel_size_zyx_um for one in catalog.specimens}
    if params.inference.orthogonal:
        for specimen in catalog.specimens:
            require_isotropic(specimen.voxel_size_zyx_um, specimen.name)
            if not specimen.is_stack:
                raise ParamsError(
                    f"inference.orthogonal is true, and {specimen.name} is single images",
                    expected="stacks, which have sections across",
                    remedy="set it to false",
                )
    return InferenceSpec(
        network=NetworkSpec(
            architecture=params.model.architecture,
            encoder=params.model.encoder,
            in_channels=catalog.num_channels * (2 * context + 1),
            num_classes=len(catalog.classes) + catalog.instances,
            decoder_dropout=params.model.decoder_dropout,
        ),
        classes=catalog.classes,
        intensity=catalog.intensity,
        num_channels=catalog.num_channels,
        context_slices=context,
        tile=params.inference.tile,
        overlap=params.inference.overlap,
        precision=params.inference.precision,
        tta=params.inference.tta,
        orthogonal=params.inference.orthogonal,
        voxel_size_zyx_um=voxel_sizes.pop() if len(voxel_sizes) == 1 else None,
        instances=catalog.instances,
    )


def trained_with(params: Params) -> dict[str, Any]:
    """Return the params that training reads, as plain JSON; those of the data are in the catalogue."""
    return params.model_dump(mode="json", include={"seed", "model", "augment", "train", "inference"})


def bundle_training(
    folder: Path,
    inference: InferenceSpec,
    weights: dict[str, torch.Tensor],
    report: EpochReport,
    *,
    params: Params,
    catalog: Catalog,
    git: tuple[str | None, bool | None],
    device: torch.device,
    parent: Parent | None = None,
) -> BundleSpec:
    """Save the bundle of a training's best epoch.

    Parameters
    ----------
    folder
        Where the bundle is put.
    inference, weights, report
        The network and what its epoch scored.
    params, catalog, git
        Where it comes from.
    device
        On which it was validated.
    parent
        The model that it began with: what that has seen, it has seen.
    """
    seen = SeenPlanes(
        training=_image_digests(catalog, "training"),
        validation=_image_digests(catalog, "validation"),
        gap=_image_digests(catalog, "gap"),
    )
    return save_bundle(
        folder,
        inference,
        weights,
        validation=ValidationScore(
            epoch=report.epoch,
            mean_iou=report.validation_mean_iou,
            iou=report.validation_iou or {},
            pixel_accuracy=report.validation_pixel_accuracy,
            precision=resolve_precision(inference.precision, device),
            device=device.type,
        ),
        seen=seen if parent is None else seen.joined(parent.spec.seen),
        profile=catalog.profile,
        lineage=Lineage(
            stackseg_version=version("stackseg"),
            code_digest=code_digest(),
            git_commit=git[0],
            git_dirty=git[1],
            data_md5=catalog.data_md5,
            catalog_digest=catalog.digest(),
            encoder_weights=weights_origin(params.model.encoder, params.model.encoder_weights),
            params=trained_with(params),
            versions={name: version(name) for name in PACKAGES},
            parent=None if parent is None else parent.record,
        ),
    )


def write_history(path: Path, history: Sequence[EpochReport]) -> None:
    """Write one row per epoch: what training saw, and the latest validation at that epoch."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        columns = [name for name in asdict(history[0]) if name != "validation_iou"]
        classes = sorted({name for one in history for name in one.validation_iou or {}})
        writer = csv.writer(file)
        writer.writerow([*columns, *(f"validation_iou/{name}" for name in classes)])
        for one in history:
            row = asdict(one)
            scores = one.validation_iou or {}
            writer.writerow([*(row[name] for name in columns), *(scores.get(name) for name in classes)])


def _image_digests(catalog: Catalog, part: Part) -> tuple[str, ...]:
    return tuple(plane.image_sha256 for _, plane in catalog.planes(part))
