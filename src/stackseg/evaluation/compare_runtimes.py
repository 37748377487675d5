"""What another runtime makes of a model, side by side with torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stackseg.dataset.fingerprints import by_specimen
from stackseg.dataset.records import Catalog
from stackseg.model.bundle import Segmenter
from stackseg.model.confusion import confusion_counts, count_as_first, mean_iou
from stackseg.model.segment import SegmentedPlane, segment


@dataclass(frozen=True)
class RuntimeComparison:
    """Figures on the validation part, where a runtime may be chosen."""

    num_planes: int
    differing_pixels: float
    """Share of the pixels whose class is another."""
    mean_iou: float | None
    mean_iou_torch: float | None
    ms_per_megapixel: float
    ms_per_megapixel_torch: float


def compare_runtimes(
    torch_segmenter: Segmenter,
    other: Segmenter,
    catalog: Catalog,
    data: Path,
    progress: Callable[[int, int], None] = lambda done, all_: None,
) -> RuntimeComparison:
    """Segment the validation part by both, a plane by one and then by the other."""
    refs = [ref for ref, _ in catalog.planes("validation")]
    num_classes = len(catalog.classes)
    counts_2cc = np.zeros((2, num_classes, num_classes), np.int64)
    seconds = [0.0, 0.0]
    differing = pixels = done = 0
    for specimen, planes in by_specimen(refs, data):
        table, numbers = catalog.table_of(specimen.name), [one.z for one in planes]
        for one in (torch_segmenter, other):
            list(segment(specimen, one, planes=numbers[:1]))  # the first call prepares what later ones use
        both = [segment(specimen, one, planes=numbers) for one in (torch_segmenter, other)]
        for z in numbers:
            masks = []
            for place, segmented in enumerate(both):
                plane, took = _timed(segmented)
                seconds[place] += took
                masks.append(plane.mask_yx)
                found_yx = count_as_first(plane.mask_yx, table.not_annotated)
                counts_2cc[place] += confusion_counts(specimen.labels(z, table), found_yx, num_classes)
            differing += int((masks[0] != masks[1]).sum())
            pixels += masks[0].size
            done += 1
            progress(done, len(refs))
    return RuntimeComparison(
        num_planes=done,
        differing_pixels=differing / pixels,
        mean_iou=mean_iou(counts_2cc[1]),
        mean_iou_torch=mean_iou(counts_2cc[0]),
        ms_per_megapixel=1e9 * seconds[1] / pixels,
        ms_per_megapixel_torch=1e9 * seconds[0] / pixels,
    )


def _timed(segmented: Iterator[SegmentedPlane]) -> tuple[SegmentedPlane, float]:
    started = time.perf_counter()
    plane = next(segmented)
    return plane, time.perf_counter() - started
