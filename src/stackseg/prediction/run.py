"""Segment a stack into files: planes are read ahead, segmented, cleaned up, and written behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tifffile

from stackseg import __version__
from stackseg.dataset.channels import PlaneSource
from stackseg.dataset.files.axes import VoxelSize
from stackseg.dataset.fingerprints import pixel_digest
from stackseg.dataset.slices import planes_of
from stackseg.intake.write_tiff import cannot_write
from stackseg.model.bundle import Bundle
from stackseg.model.segment import SegmentedPlane, segment
from stackseg.model.uncertainty import entropy
from stackseg.params.inference import Tta
from stackseg.prediction.cleaning import absorb_small, drop_small, fill_holes
from stackseg.prediction.feed import Feed
from stackseg.prediction.outputs import WHOLE, Described, Layer, Outputs, Share
from stackseg.prediction.part import Part
from stackseg.prediction.prefetch import Prefetched
from stackseg.prediction.writers import tiff
from stackseg.prediction.writers.png import PngLayer


@dataclass(frozen=True)
class Options:
    """What may be asked for besides a mask as the model gives it.

    Parameters
    ----------
    tta
        Test-time augmentation other than the model's own.
    slices
        "A:B" for some planes; their neighbours outside still count as context.
    min_object
        Pieces of fewer pixels are taken out of a mask, and objects of fewer pixels dropped.
    fill_holes
        Whether background enclosed by one class, or one object, is filled.
    orthogonal
        Whether to average over xy, xz and yz sections, other than the model's own.
    """

    tta: Tta | None = None
    slices: str | None = None
    min_object: int = 0
    fill_holes: bool = False
    orthogonal: bool | None = None


@dataclass(frozen=True)
class FinishedPlane:
    """What is written of a plane: the layers, (Y, X) or (Y, X, C), at its place among those that are written."""

    place: int
    layers: Mapping[Layer, npt.NDArray[np.generic]]
    pixels: tuple[int, ...]
    """Of each class."""
    num_objects: int

    @property
    def figures(self) -> dict[str, Any]:
        """What is told of it at the end."""
        return {"pixels": self.pixels, "objects": self.num_objects}


@dataclass(frozen=True)
class Prediction:
    """What was written."""

    num_planes: int
    num_resumed: int
    """Of these, how many were there from an earlier call."""
    pixels: tuple[int, ...]
    """Of each class."""
    num_objects: int
    written: tuple[Path, ...]
    large: tuple[Path, ...]
    """Of these, each .tif that became an OME-BigTIFF."""
    num_waiting: int = 0
    """How many shares of the planes lack some, so that nothing is in its place yet."""


Progress = Callable[[int, int, int], None]
"""Told how many planes are done, of how many, and how many pixels this call has computed."""


def predict(
    source: PlaneSource,
    bundle: Bundle,
    outputs: Outputs,
    options: Options,
    *,
    voxel_size_zyx_um: VoxelSize | None,
    model: str,
    resume: bool = False,
    share: Share = WHOLE,
    put: bool = True,
    progress: Progress = lambda done, total, pixels: None,
) -> Prediction:
    """Segment a stack and write the layers, in memory for a few planes.

    Masks are what `segment()` gives, unless `options` clean them up. Probabilities, entropy and disagreement are those
    of the network, from 0 to 255 for 0 to 1.

    Parameters
    ----------
    source
        Planes (Y, X, C) in raw intensity; a thread of this function reads them.
    outputs
        What to write; that it may be replaced is checked by `require_free`.
    model
        What the files call it.
    resume
        Go on with what an earlier call left.
    share
        Those of the planes that this call segments, where several fill one .zarr or folder.
    put
        Whether the last of them to end puts it in its place; else the caller does.

    Raises
    ------
    DataError
        A plane cannot be read or segmented, the slices are not there, or what was left is of another call.
    MachineError
        A disk is full.
    """
    all_planes = planes_of(options.slices, len(source))
    planes = share.planes(all_planes)
    spec = bundle.inference
    asked = {name: value for name, value in asdict(options).items() if value}
    provenance = {"version": __version__, "model": model, "digest": bundle.digest, "runtime": spec.runtime, **asked}
    described = Described(all_planes, len(source), voxel_size_zyx_um, spec.classes, spec.instances, provenance)
    feeds: list[Feed[FinishedPlane]] = []

    def check() -> None:
        for feed in feeds:
            feed.check()

    with Prefetched(source, min(planes.stop + spec.context_slices, len(source))) as ahead:
        part = None
        if outputs.resumable:
            record = _record(ahead, bundle, outputs, options, all_planes) | {"parts": share.of}
            part = Part(outputs, record, all_planes, share, resume=resume)
        done = list(part.done) if part else []
        num_resumed, num_waiting = len(done), 0
        try:
            finished = _finished(
                ahead,
                bundle,
                outputs,
                options,
                planes[num_resumed:],
                planes.start - all_planes.start + num_resumed,
                check,
            )
            # which layers a model has is known by its first plane
            if first := next(finished, None):
                feeds += [Feed(one) for one in _consumers(outputs, part, first, described)]
                num_pixels = 0
                for plane in chain([first], finished):
                    for feed in feeds:
                        feed.put(plane)
                    done.append(plane.figures)
                    num_pixels += sum(plane.pixels)
                    progress(len(done), len(planes), num_pixels)
                for feed in feeds:
                    feed.finish()
            if part and put:
                num_waiting = part.finish()
        except BaseException:
            for feed in feeds:
                feed.abandon()
            if part:
                part.drop_if_empty()
            raise
    written = tuple(path for path in map(outputs.path, outputs.layers) if path.exists())
    return Prediction(
        num_planes=len(planes),
        num_resumed=num_resumed,
        pixels=tuple(np.sum([[0] * len(spec.classes), *(one["pixels"] for one in done)], 0).tolist()),
        num_objects=sum(one["objects"] for one in done),
        written=written,
        large=tuple(path for path in written if outputs.kind == "tiff" and _is_ome(path)),
        num_waiting=num_waiting,
    )


def _finished(
    source: PlaneSource,
    bundle: Bundle,
    outputs: Outputs,
    options: Options,
    planes: range,
    first_place: int,
    before_window: Callable[[], None],
) -> Iterator[FinishedPlane]:
    """Segment what is not there yet, and make of each plane what is written of it."""
    segmented = segment(
        source,
        bundle,
        planes=planes,
        probabilities=len(outputs.layers) > 1,
        objects=True,
        disagreement="disagreement" in outputs.layers,
        tta=options.tta,
        orthogonal=options.orthogonal,
        before_window=before_window,
    )
    for place, plane in enumerate(segmented, start=first_place):
        mask_yx, objects_yx = _cleaned(plane, options)
        layers: dict[Layer, npt.NDArray[np.generic]] = {
            "mask": mask_yx if objects_yx is None else objects_yx.astype(np.uint32)
        }
        if plane.probabilities_cyx is not None:
            if "probabilities" in outputs.layers:
                layers["probabilities"] = _as_bytes(np.moveaxis(plane.probabilities_cyx, 0, 2))
            if "uncertainty" in outputs.layers:
                layers["uncertainty"] = _as_bytes(entropy(plane.probabilities_cyx))
        if "disagreement" in outputs.layers and plane.disagreement_yx is not None:
            layers["disagreement"] = _as_bytes(plane.disagreement_yx)
        pixels = np.bincount(mask_yx.ravel(), minlength=len(bundle.inference.classes))
        num_objects = 0 if objects_yx is None else int(objects_yx.max())
        yield FinishedPlane(place, layers, tuple(pixels.tolist()), num_objects)


def _cleaned(plane: SegmentedPlane, options: Options) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32] | None]:
    """Return mask and objects (Y, X) without small pieces and holes; the two agree."""
    mask_yx, objects_yx = plane.mask_yx, plane.objects_yx
    if objects_yx is None:
        if options.min_object:
            mask_yx = absorb_small(mask_yx, options.min_object)
        return (fill_holes(mask_yx) if options.fill_holes else mask_yx), None
    if options.min_object:
        kept_yx = drop_small(objects_yx, options.min_object)
        mask_yx = np.where((objects_yx > 0) & (kept_yx == 0), 0, mask_yx).astype(np.uint8)
        objects_yx = kept_yx
    if options.fill_holes:
        objects_yx = fill_holes(objects_yx)
        mask_yx = np.where(objects_yx > 0, 1, mask_yx).astype(np.uint8)
    return mask_yx, objects_yx


def _as_bytes(shares: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return 0 to 255 for 0 to 1."""
    return np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)


def _consumers(
    outputs: Outputs, part: Part | None, first: FinishedPlane, described: Described
) -> list[Callable[[Iterator[FinishedPlane]], None]]:
    """Return what writes the layers: one function for each TIFF, one for all folders, whose planes count together."""
    if part:
        return [partial(_write_folders, outputs, part, first, described)]
    return [partial(_write_tiff, outputs, layer, described) for layer in first.layers]


def _write_tiff(outputs: Outputs, layer: Layer, described: Described, planes: Iterator[FinishedPlane]) -> None:
    numbers = layer == "mask" and described.instances
    write = tiff.write_numbers if numbers else partial(tiff.write_layer, layer=layer)
    write(outputs.path(layer), outputs.kind, planes=(plane.layers[layer] for plane in planes), described=described)


def _write_folders(
    outputs: Outputs, part: Part, first: FinishedPlane, described: Described, planes: Iterator[FinishedPlane]
) -> None:
    try:
        writers = {
            layer: _folder_writer(outputs, part.layer(layer), layer, array, described)
            for layer, array in first.layers.items()
        }
        for plane in planes:
            for layer, array in plane.layers.items():
                writers[layer].add(plane.place, array)
            part.note(plane.place, plane.figures)
    except OSError as error:
        raise cannot_write(outputs.mask, error) from error


class _FolderWriter(Protocol):
    def add(self, place: int, plane: npt.NDArray[np.generic]) -> None: ...


def _folder_writer(
    outputs: Outputs, folder: Path, layer: Layer, first: npt.NDArray[np.generic], described: Described
) -> _FolderWriter:
    if outputs.kind == "png":
        return PngLayer(folder, layer, described)
    from stackseg.prediction.writers.zarr import ZarrLayer  # it imports dask, which takes seconds

    return ZarrLayer(folder, layer, first, described)


def _record(source: PlaneSource, bundle: Bundle, outputs: Outputs, options: Options, planes: range) -> dict[str, Any]:
    """Return all that decides the pixels: of the input, its shape and three planes of those that are segmented."""
    looked_at = sorted({planes[0], planes[len(planes) // 2], planes[-1]})
    return {
        "stackseg": __version__,
        "model": bundle.digest,
        "device": bundle.device.type,
        "input": [len(source), *(pixel_digest(source.plane(z)) for z in looked_at)],
        "kind": outputs.kind,
        "layers": outputs.layers,
        "tta": options.tta or bundle.inference.tta,
        "orthogonal": bundle.inference.orthogonal if options.orthogonal is None else options.orthogonal,
        "runtime": bundle.inference.runtime,
        "slices": [planes.start, planes.stop],
        "min-object": options.min_object,
        "fill-holes": options.fill_holes,
    }


def _is_ome(path: Path) -> bool:
    with tifffile.TiffFile(path) as file:
        return file.is_ome
