"""Training patches: each is a pure function of (seed, epoch, index), whatever loads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import torch
from cachetools import LRUCache
from torch.utils.data import DataLoader, Dataset, Sampler

from stackseg.dataset.channels import apply_colour, context_indices
from stackseg.dataset.fingerprints import by_specimen
from stackseg.dataset.labels.table import IGNORE_INDEX
from stackseg.dataset.normalisation import ChannelStatistics, standardise
from stackseg.dataset.records import Catalog, PlaneRecord
from stackseg.dataset.specimens import Specimen
from stackseg.dataset.splits import PlaneRef
from stackseg.model.segment import check_neighbours, stack_context
from stackseg.training.augmentation import Augmentation, MaskYX
from stackseg.training.instance_targets import instance_target, patch_codes

# pixels of a rare class, or of any in a sparse mask, remembered per plane: enough to centre patches anywhere it is
REMEMBERED_PIXELS = 4096
# below this share of labelled pixels, patches of a plane are drawn around them
SPARSE_SHARE = 0.5
# decoded planes may fill this share of the memory that is free at the start
MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class PatchPlan:
    """What is drawn: side in pixels, share centred on rare classes, context planes on each side, seed."""

    patch_size: int
    patches_per_epoch: int
    rare_share: float
    context_slices: int
    seed: int


class PatchDataset(Dataset[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]):
    """Random patches of the training planes that have labelled pixels.

    Item number ``epoch * patches_per_epoch + index`` is (image (C, Y, X) float32, target (Y, X) int64, missing (C,)
    bool): the target holds class indices, or what `instance_target` makes of masks that number objects; missing are the
    classes that nobody annotated in the specimen.

    Parameters
    ----------
    catalog
        Names the training planes and their statistics.
    data
        Folder of the specimens.
    plan
        What is drawn.
    augmentation
        Varies a patch (Y, X, C) and its labels (Y, X), given a seed.
    memory_share
        Share of the memory for decoded planes that this copy may fill, where several processes have one each.

    Raises
    ------
    DataError
        A specimen is missing; while patches are drawn: a plane cannot be read, or its context planes differ from it in
        size.
    """

    def __init__(
        self, catalog: Catalog, data: Path, plan: PatchPlan, augmentation: Augmentation, *, memory_share: float = 1.0
    ) -> None:
        self._plan = plan
        self._augmentation = augmentation
        self._policy = catalog.intensity
        self._tables = {one.name: catalog.table_of(one.name) for one in catalog.specimens}
        self._planes: list[tuple[PlaneRef, PlaneRecord]] = [
            one for one in catalog.planes("training") if not one[1].constant and any(one[1].class_pixels)
        ]
        opened = by_specimen([ref for ref, _ in self._planes], data)
        self._specimens: dict[str, Specimen] = {one.name: one for one, _ in opened}
        areas = np.array([plane.shape_yx[0] * plane.shape_yx[1] for _, plane in self._planes], np.float64)
        self._area_odds = np.cumsum(areas / areas.sum())
        self._rare_odds = _rare_odds(self._planes, len(catalog.classes))
        budget = int(psutil.virtual_memory().available * MEMORY_SHARE * memory_share)
        self._cache: LRUCache[object, npt.NDArray[np.generic]] = LRUCache(budget, getsizeof=_num_bytes)
        self._references: dict[str, tuple[ChannelStatistics, ...] | None] = {}

    def __len__(self) -> int:
        return self._plan.patches_per_epoch

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        epoch, index = divmod(number, self._plan.patches_per_epoch)
        random = np.random.Generator(np.random.PCG64([self._plan.seed, epoch, index]))
        ref, top, left = self._choose(random)
        image_yxc, truth_yx = self._crop(ref, top, left)
        image_yxc, truth_yx = self._augmentation(image_yxc, truth_yx, int(random.integers(2**31)))
        # behind the augmentation: a contour that was resampled would break
        table = self._tables[ref.specimen]
        target_yx = instance_target(truth_yx) if table.instances else truth_yx
        image = torch.from_numpy(np.ascontiguousarray(image_yxc)).permute(2, 0, 1)
        missing = torch.tensor([index in table.not_annotated for index in range(len(table.names))])
        return image, torch.from_numpy(target_yx.astype(np.int64)), missing

    def _choose(self, random: np.random.Generator) -> tuple[PlaneRef, int, int]:
        """Draw a plane and the upper left corner of a patch in it."""
        size = self._plan.patch_size
        if self._rare_odds and random.random() < self._plan.rare_share:
            classes = list(self._rare_odds)
            rare = classes[random.integers(len(classes))]
            ref, plane = self._planes[int(np.searchsorted(self._rare_odds[rare], random.random(), "right"))]
            y, x = self._around(ref, plane, rare, random)
        else:
            ref, plane = self._planes[int(np.searchsorted(self._area_odds, random.random(), "right"))]
            if sum(plane.class_pixels) < SPARSE_SHARE * plane.shape_yx[0] * plane.shape_yx[1]:
                y, x = self._around(ref, plane, None, random)
            else:
                y, x = (int(random.integers(max(1, extent - size + 1))) for extent in plane.shape_yx)
        top, left = (min(max(0, at), max(0, n - size)) for at, n in zip((y, x), plane.shape_yx, strict=True))
        return ref, top, left

    def _around(
        self, ref: PlaneRef, plane: PlaneRecord, wanted: int | None, random: np.random.Generator
    ) -> tuple[int, int]:
        """Draw the upper left corner of a patch that holds a pixel of a class, or of any."""
        size = self._plan.patch_size
        pixels = self._pixels_of(ref, wanted)
        y, x = divmod(int(pixels[random.integers(len(pixels))]), plane.shape_yx[1])
        # not exactly in the centre: the network must not learn that the middle is special
        y, x = (place - int(random.integers(size // 4, 3 * size // 4)) for place in (y, x))
        return y, x

    def _crop(self, ref: PlaneRef, top: int, left: int) -> tuple[npt.NDArray[np.float32], MaskYX]:
        """Return a standardised patch (Y, X, C) with its context and its class indices or codes of objects (Y, X)."""
        size = self._plan.patch_size
        specimen = self._specimens[ref.specimen]
        window = (slice(top, top + size), slice(left, left + size))
        needed = context_indices(ref.z, len(specimen), self._plan.context_slices)
        check_neighbours([self._image(specimen, z) for z in needed], ref.z)
        patches = [standardise(self._image(specimen, z)[window], self._reference(specimen, z)) for z in needed]
        image_yxc = stack_context(patches, ref.z)
        truth_yx: MaskYX = self._labels(ref)[window]
        if self._tables[ref.specimen].instances:
            truth_yx = patch_codes(self._objects(ref)[window])
        beyond = [(0, size - have) for have in truth_yx.shape]
        if any(after for _, after in beyond):
            image_yxc = np.pad(image_yxc, [*beyond, (0, 0)], mode="symmetric")
            truth_yx = np.pad(truth_yx, beyond, constant_values=IGNORE_INDEX)
        return image_yxc, truth_yx

    def _image(self, specimen: Specimen, z: int) -> npt.NDArray[np.generic]:
        def read() -> npt.NDArray[np.generic]:
            return apply_colour(specimen.plane(z), self._policy.colour, specimen.where(z))

        return self._cached((specimen.name, z), read)

    def _labels(self, ref: PlaneRef) -> npt.NDArray[np.uint8]:
        def read() -> npt.NDArray[np.generic]:
            return self._specimens[ref.specimen].labels(ref.z, self._tables[ref.specimen])

        return self._cached((ref.specimen, ref.z, "labels"), read)  # type: ignore[return-value]

    def _objects(self, ref: PlaneRef) -> npt.NDArray[np.int32]:
        def read() -> npt.NDArray[np.generic]:
            return self._specimens[ref.specimen].instances(ref.z, self._tables[ref.specimen])

        return self._cached((ref.specimen, ref.z, "objects"), read)  # type: ignore[return-value]

    def _pixels_of(self, ref: PlaneRef, wanted: int | None) -> npt.NDArray[np.generic]:
        """Return places in the plane of pixels of a class, or of any."""

        def read() -> npt.NDArray[np.generic]:
            labels_yx = self._labels(ref)
            pixels = np.flatnonzero(labels_yx != IGNORE_INDEX if wanted is None else labels_yx == wanted)
            # a copy: a view would keep all of them in memory
            return pixels[:: -(-len(pixels) // REMEMBERED_PIXELS)].copy()

        return self._cached((ref.specimen, ref.z, wanted), read)

    def _reference(self, specimen: Specimen, z: int) -> tuple[ChannelStatistics, ...]:
        """Return the statistics that `segment()` would use for this plane."""
        scope = self._policy.params.scope
        key = f"{specimen.name}/{z}" if scope == "plane" else specimen.name
        if key not in self._references:
            self._references[key] = (
                self._policy.plane_reference(self._image(specimen, z))
                if scope == "plane"
                else self._policy.reference(specimen)
            )
        return self._references[key]  # type: ignore[return-value]

    def _cached(self, key: object, read: Callable[[], npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
        found = self._cache.get(key)
        if found is None:
            found = read()
            if found.nbytes <= self._cache.maxsize:
                self._cache[key] = found
        return found


def _num_bytes(array: npt.NDArray[np.generic]) -> int:
    return array.nbytes


def _rare_odds(planes: list[tuple[PlaneRef, PlaneRecord]], num_classes: int) -> Mapping[int, npt.NDArray[np.float64]]:
    """Return, for every class below its equal share of the pixels, the summed odds of the planes that hold it."""
    pixels_pc = np.array([plane.class_pixels for _, plane in planes], np.float64)
    shares_c = pixels_pc.sum(0) / pixels_pc.sum()
    rare = [c for c in range(num_classes) if 0 < shares_c[c] < 1 / num_classes]
    return {c: np.cumsum(pixels_pc[:, c] / pixels_pc[:, c].sum()) for c in rare}


class EpochSampler(Sampler[list[int]]):
    """Batches of item numbers of one epoch for one of several processes, which share each batch evenly."""

    def __init__(self, patches_per_epoch: int, batch_size: int, *, rank: int = 0, num_processes: int = 1) -> None:
        self._patches_per_epoch = patches_per_epoch
        self._batch_size = batch_size
        self._rank = rank
        self._num_processes = num_processes
        self.epoch = 0

    def __len__(self) -> int:
        return self._patches_per_epoch // self._batch_size

    def __iter__(self) -> Iterator[list[int]]:
        first = self.epoch * self._patches_per_epoch
        for step in range(len(self)):
            start = first + step * self._batch_size
            yield list(range(start + self._rank, start + self._batch_size, self._num_processes))


def patch_loader(
    dataset: PatchDataset, sampler: EpochSampler, num_workers: int, *, pin_memory: bool
) -> DataLoader[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return a loader of batches (image (B, C, Y, X), labels (B, Y, X), missing (B, C))."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        # of its own, or it would draw from the stream that dropout draws from
        generator=torch.Generator(),
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
    )
