"""Validation while training: `segment()` on the whole planes of the validation part, shared among the processes."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric import Fabric

from stackseg.dataset.fingerprints import by_specimen
from stackseg.dataset.records import Catalog
from stackseg.dataset.splits import PlaneRef
from stackseg.model.bundle import InferenceSpec, Segmenter, prepare_network
from stackseg.model.confusion import confusion_counts, count_as_first, iou_per_class, mean_iou, pixel_accuracy
from stackseg.model.segment import segment
from stackseg.training.callbacks import EpochReport, ValidationPlane


class Validation:
    """The validation part of a catalogue, and how a network is scored on it."""

    def __init__(self, catalog: Catalog, data: Path, inference: InferenceSpec, fabric: Fabric) -> None:
        self._catalog = catalog
        self._inference = inference
        self._fabric = fabric
        self._shown, self._mine = _shares(catalog, fabric.global_rank, fabric.world_size)
        self._specimens = {one.name: one for one, _ in by_specimen(self._mine, data)}

    def score(self, network: torch.nn.Module, report: EpochReport) -> tuple[EpochReport, list[ValidationPlane]]:
        """Return the report with the scores of a network, which stays as it is, and on the first process two planes."""
        # a copy, since inference folds layers and has its own memory layout and mode
        copied = prepare_network(copy.deepcopy(network), self._inference, self._fabric.device)
        counts_cc, shown = self._count(Segmenter(self._inference, copied))
        scored = replace(
            report,
            validation_mean_iou=mean_iou(counts_cc),
            validation_pixel_accuracy=pixel_accuracy(counts_cc),
            validation_iou=dict(zip(self._inference.class_names, iou_per_class(counts_cc), strict=True)),
        )
        return scored, shown

    def _count(self, segmenter: Segmenter) -> tuple[npt.NDArray[np.int64], list[ValidationPlane]]:
        num_classes = len(self._catalog.classes)
        counts_cc = np.zeros((num_classes, num_classes), np.int64)
        shown = []
        for name in dict.fromkeys(ref.specimen for ref in self._mine):
            specimen, table = self._specimens[name], self._catalog.table_of(name)
            for plane in segment(specimen, segmenter, planes=[ref.z for ref in self._mine if ref.specimen == name]):
                truth_yx = specimen.labels(plane.z, table)
                found_yx = count_as_first(plane.mask_yx, table.not_annotated)
                counts_cc += confusion_counts(truth_yx, found_yx, num_classes)
                if PlaneRef(name, plane.z) in self._shown:
                    image_yxc = specimen.plane(plane.z)
                    shown.append(ValidationPlane(name, plane.z, image_yxc, truth_yx, found_yx))
        return sum_over_processes(self._fabric, torch.from_numpy(counts_cc)).numpy(), shown


def _shares(catalog: Catalog, rank: int, num_processes: int) -> tuple[list[PlaneRef], list[PlaneRef]]:
    """Return the planes to look at, which are the same in every run, and all that a process validates.

    Those to look at hold the most classes of the first and of the second half; the first process validates them.
    """
    planes = catalog.planes("validation")
    half = -(-len(planes) // 2)
    shown = [
        max(part, key=lambda one: np.count_nonzero(one[1].class_pixels))[0]
        for part in (planes[:half], planes[half:])
        if part
    ]
    others = [ref for ref, _ in planes if ref not in shown]
    # every num_processes-th plane is of the first process
    dealt = [*shown[:1], *others[: num_processes - 1], *shown[1:], *others[num_processes - 1 :]]
    mine = set(dealt[rank::num_processes])
    return shown if rank == 0 else [], [ref for ref, _ in planes if ref in mine]


def sum_over_processes(fabric: Fabric, values: torch.Tensor) -> torch.Tensor:
    """Return the sum over all processes, on the CPU."""
    if fabric.world_size == 1:
        return values.cpu()
    return cast(torch.Tensor, fabric.all_reduce(values.to(fabric.device), reduce_op="sum")).cpu()
