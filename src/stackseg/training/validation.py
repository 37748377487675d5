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

from stackseg.dataset.records import Catalog
from stackseg.dataset.specimens import find_specimens
from stackseg.model.bundle import InferenceSpec, Segmenter, prepare_network
from stackseg.model.confusion import confusion_counts, iou_per_class, mean_iou, pixel_accuracy
from stackseg.model.segment import segment
from stackseg.training.callbacks import EpochReport


class Validation:
    """The validation part of a catalogue, and how a network is scored on it."""

    def __init__(self, catalog: Catalog, data: Path, inference: InferenceSpec, fabric: Fabric) -> None:
        self._catalog = catalog
        self._inference = inference
        self._fabric = fabric
        self._specimens = {one.name: one for one in find_specimens(data)}

    def score(self, network: torch.nn.Module, report: EpochReport) -> EpochReport:
        """Return the report with the scores of a network, which stays as it is."""
        # a copy, since inference folds layers and has its own memory layout and mode
        copied = prepare_network(copy.deepcopy(network), self._inference, self._fabric.device)
        counts_cc = self._count(Segmenter(self._inference, copied))
        return replace(
            report,
            validation_mean_iou=mean_iou(counts_cc),
            validation_pixel_accuracy=pixel_accuracy(counts_cc),
            validation_iou=dict(zip(self._inference.class_names, iou_per_class(counts_cc), strict=True)),
        )

    def _count(self, segmenter: Segmenter) -> npt.NDArray[np.int64]:
        num_classes = len(self._catalog.classes)
        counts_cc = np.zeros((num_classes, num_classes), np.int64)
        planes = [ref for ref, _ in self._catalog.planes("validation")]
        mine = planes[self._fabric.global_rank :: self._fabric.world_size]
        for name in dict.fromkeys(ref.specimen for ref in mine):
            specimen = self._specimens[name]
            for plane in segment(specimen, segmenter, planes=[ref.z for ref in mine if ref.specimen == name]):
                truth_yx = specimen.labels(plane.z, self._catalog.table)
                counts_cc += confusion_counts(truth_yx, plane.mask_yx, num_classes)
        return sum_over_processes(self._fabric, torch.from_numpy(counts_cc)).numpy()


def sum_over_processes(fabric: Fabric, values: torch.Tensor) -> torch.Tensor:
    """Return the sum over all processes, on the CPU."""
    if fabric.world_size == 1:
        return values.cpu()
    return cast(torch.Tensor, fabric.all_reduce(values.to(fabric.device), reduce_op="sum")).cpu()
