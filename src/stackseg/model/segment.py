"""The one inference path: validation, evaluation, prediction and the served model all call `segment()`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stackseg.dataset.channels import PlaneSource, context_indices
from stackseg.dataset.normalisation import ChannelStatistics
from stackseg.errors import DataError
from stackseg.model.bundle import InferenceSpec, Segmenter
from stackseg.model.objects import class_probabilities, find_objects
from stackseg.model.orthogonal import mean_over_sections
from stackseg.model.plane_image import LargePlane, Neighbours, PlaneImage, Region, Turn, blocks, whole
from stackseg.model.tiling import Blend
from stackseg.model.uncertainty import disagreement as disagreement_of
from stackseg.params.inference import Tta

_FLIPS: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (0, 1))
SYMMETRIES: Mapping[Tta, tuple[Turn, ...]] = {
    "none": (Turn(False, ()),),
    "flips": tuple(Turn(False, axes) for axes in _FLIPS),
    "d4": tuple(Turn(transposed, axes) for transposed in (False, True) for axes in _FLIPS),
}
"""What a plane is averaged over."""

BLOCK = 8192
"""Side in pixels of the blocks in which larger planes are computed: what is held in floats is of one block."""


@dataclass(frozen=True)
class SegmentedPlane:
    """Class indices (Y, X) of plane z and, if asked for, the probabilities (C, Y, X) behind them.

    `objects_yx` numbers the objects (Y, X) from 1, 0 being background; it is None where it was not asked for, and where
    the model does not tell objects apart. `disagreement_yx` is how much the members of a model of several differ
    (Y, X), 0 to 1; None of a single one.
    """

    z: int
    mask_yx: npt.NDArray[np.uint8]
    probabilities_cyx: npt.NDArray[np.float32] | None
    objects_yx: npt.NDArray[np.int32] | None = None
    disagreement_yx: npt.NDArray[np.float32] | None = None


def segment(
    source: PlaneSource,
    segmenter: Segmenter,
    *,
    planes: Iterable[int] | None = None,
    probabilities: bool = False,
    objects: bool = False,
    disagreement: bool = False,
    tta: Tta | None = None,
    orthogonal: bool | None = None,
    before_window: Callable[[], None] = lambda: None,
    block: int = BLOCK,
) -> Iterator[SegmentedPlane]:
    """Segment planes of a stack, one after another.

    Windows go through the network one by one: what a plane is batched with can change the last bits of a
    convolution, and a mask must not depend on that.

    Parameters
    ----------
    source
        Planes (Y, X, C) in raw intensity.
    segmenter
        A loaded bundle, or a network in training; it runs where its weights are.
    planes
        Plane numbers; all by default.
    probabilities
        Whether to hand out the probabilities, too.
    objects
        Whether to find the objects, too, where the model tells them apart.
    disagreement
        Whether to say how much the members of an ensemble differ, too, as the mean over test-time augmentation.
    tta
        Test-time augmentation other than the model's own: then the masks are other ones than those that were scored.
    orthogonal
        Whether to average over xy, xz and yz sections of the stack, other than the model's own.
    before_window
        Called before each window; what it raises ends the work, as for a client that has left.
    block
        Side in pixels of the blocks in which larger planes are computed. Results do not depend on it, memory does:
        windows at the borders of blocks are computed twice.

    Raises
    ------
    DataError
        Channels differ from training's, or context planes differ in size.
    """
    spec = segmenter.inference
    with_members = disagreement and bool(spec.members)
    with_objects = objects and spec.instances
    chosen = list(range(len(source)) if planes is None else planes)
    compute = partial(_region_values, segmenter, with_members, SYMMETRIES[tta or spec.tta], before_window)
    reference = spec.intensity.reference(source)
    divided: Iterable[_DividedPlane]
    if spec.orthogonal if orthogonal is None else orthogonal:
        image_of = partial(prepare, source, spec=spec, reference=reference)
        sections = mean_over_sections(
            len(source), chosen, image_of, spec.context_slices, lambda image: compute(image, whole(image.shape))
        )
        divided = map(_undivided, sections)
    else:
        images = _images(source, chosen, spec, reference, block)
        divided = (_divided(image, compute, block) for image in images)
    for z, plane in zip(chosen, divided, strict=True):
        mask_yx, values_vyx = _join(plane, spec, with_values=probabilities or with_objects or with_members)
        outputs_oyx = values_vyx[: spec.network.num_classes]
        yield SegmentedPlane(
            z,
            mask_yx,
            _classes(outputs_oyx, spec).numpy() if probabilities else None,
            find_objects(outputs_oyx.numpy(), mask_yx) if with_objects else None,
            values_vyx[-1].numpy() if with_members else None,
        )


@dataclass(frozen=True)
class _DividedPlane:
    """Values (V, Y, X) of the regions that divide a plane, computed when they are asked for."""

    shape_yx: Sequence[int]
    parts: Iterable[tuple[Region, Tensor]]


def _divided(image: PlaneImage, compute: Callable[[PlaneImage, Region], Tensor], block: int) -> _DividedPlane:
    return _DividedPlane(image.shape[:2], ((one, compute(image, one)) for one in blocks(image.shape, block)))


def _undivided(values_vyx: Tensor) -> _DividedPlane:
    shape_yx = values_vyx.shape[1:]
    return _DividedPlane(shape_yx, [(whole(shape_yx), values_vyx)])


def _join(plane: _DividedPlane, spec: InferenceSpec, *, with_values: bool) -> tuple[npt.NDArray[np.uint8], Tensor]:
    """Return mask (Y, X) and values (V, Y, X) of a plane; of these nothing where they are not wanted."""
    mask_yx, all_vyx = np.empty(plane.shape_yx, np.uint8), torch.empty(0)
    for region, values_vyx in plane.parts:
        classes_cyx = _classes(values_vyx[: spec.network.num_classes], spec)
        mask_yx[region] = classes_cyx.argmax(0).to(torch.uint8).numpy(force=True)
        if with_values:
            if not all_vyx.numel():
                all_vyx = torch.empty(len(values_vyx), *plane.shape_yx)
            all_vyx[:, *region] = values_vyx.cpu()
    return mask_yx, all_vyx


def _classes(outputs_oyx: Tensor, spec: InferenceSpec) -> Tensor:
    """Return the probabilities of the classes (C, Y, X) from those of the network's outputs (O, Y, X)."""
    return class_probabilities(outputs_oyx) if spec.instances else outputs_oyx


def _images(
    source: PlaneSource,
    planes: Iterable[int],
    spec: InferenceSpec,
    reference: tuple[ChannelStatistics, ...] | None,
    block: int,
) -> Iterator[PlaneImage]:
    """Yield planes as the network wants them, each with its neighbours (Y, X, planes × C); each is prepared once."""
    prepared: dict[int, PlaneImage] = {}
    for z in planes:
        needed = context_indices(z, len(source), spec.context_slices)
        prepared = {
            one: prepared[one] if one in prepared else _image(source, one, spec, reference, block)
            for one in dict.fromkeys(needed)
        }
        check_neighbours([prepared[one] for one in needed], z)
        yield prepared[z] if len(needed) == 1 else Neighbours([prepared[one] for one in needed])


def _image(
    source: PlaneSource, z: int, spec: InferenceSpec, reference: tuple[ChannelStatistics, ...] | None, block: int
) -> PlaneImage:
    """Return plane z (Y, X, C) as the network wants it: as a whole, or region by region where it is large."""
    raw_yxc = source.plane(z)
    if max(raw_yxc.shape[:2]) <= block:
        return _prepared(raw_yxc, z, spec, reference)
    large = LargePlane(raw_yxc, spec.intensity, reference, f"plane {z}")
    _require_channels(large.shape[2], spec, z)
    return large


def prepare(
    source: PlaneSource, z: int, spec: InferenceSpec, reference: tuple[ChannelStatistics, ...] | None
) -> npt.NDArray[np.float32]:
    """Return plane z (Y, X, C) as the network wants it."""
    return _prepared(source.plane(z), z, spec, reference)


def _prepared(
    raw_yxc: npt.NDArray[np.generic], z: int, spec: InferenceSpec, reference: tuple[ChannelStatistics, ...] | None
) -> npt.NDArray[np.float32]:
    image_yxc = spec.intensity.apply(raw_yxc, reference, f"plane {z}")
    _require_channels(image_yxc.shape[2], spec, z)
    return image_yxc


def _require_channels(num_channels: int, spec: InferenceSpec, z: int) -> None:
    if num_channels != spec.num_channels:
        raise DataError(
            f"{num_channels} channels",
            expected=f"{spec.num_channels}, as in training",
            where=f"plane {z}",
            remedy="convert the image, or train with data.colour: grey or rgb",
        )


def stack_context(planes: list[npt.NDArray[np.float32]], z: int) -> npt.NDArray[np.float32]:
    """Join a plane's context planes (Y, X, C each) to one image (Y, X, planes × C)."""
    check_neighbours(planes, z)
    return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)


def check_neighbours(planes: Sequence[PlaneImage | npt.NDArray[np.generic]], z: int) -> None:
    """Raise DataError if the context planes (Y, X, C each) of plane z differ in size."""
    shapes = {one.shape[:2] for one in planes}
    if len(shapes) > 1:
        raise DataError(
            f"neighbours of different sizes ({', '.join(f'{h}×{w}' for h, w in sorted(shapes))})",
            where=f"plane {z}",
            remedy="model.context_slices needs stacks: set it to 0 for single images",
        )


@torch.inference_mode()
def _region_values(
    segmenter: Segmenter,
    with_members: bool,
    turns: Sequence[Turn],
    before_window: Callable[[], None],
    image: PlaneImage,
    region: Region,
) -> Tensor:
    """Return the values (V, Y, X) of a region of a plane, averaged over its symmetries: see `_window_values`."""
    plane_yx = image.shape[0], image.shape[1]
    turned_back = (
        turn.undo(_blend(turn.of(image), turn.region_of(region, plane_yx), segmenter, with_members, before_window))
        for turn in turns
    )
    # in place: of a large plane these are gigabytes
    return reduce(Tensor.add_, turned_back).div_(len(turns))


def _blend(
    image: PlaneImage, region: Region, segmenter: Segmenter, with_members: bool, before_window: Callable[[], None]
) -> Tensor:
    """Return the values (V, Y, X) of a region of a plane from those of the windows that cover it."""
    tiling, device, precision = segmenter.inference.tiling, segmenter.device, segmenter.precision
    plane_yx = image.shape[0], image.shape[1]
    blend = Blend(tiling, plane_yx, region)
    for window in tiling.windows(plane_yx, region):
        before_window()
        image_yxc = np.ascontiguousarray(tiling.read(image, window))
        # a permuted (B, Y, X, C) tensor already has the channels-last layout
        tile_bcyx = torch.from_numpy(image_yxc)[None].to(device).permute(0, 3, 1, 2)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            blend.add(window, _window_values(tile_bcyx, segmenter.network, with_members))
    return blend.result()


def _window_values(tile_bcyx: Tensor, network: torch.nn.Module, with_members: bool) -> Tensor:
    """Return the probabilities (O, Y, X) of the network's outputs and, as one more, how much its members disagree."""
    if not with_members:
        return torch.softmax(network(tile_bcyx)[0].float(), 0)
    members_moyx = network.member_probabilities(tile_bcyx)[:, 0]  # type: ignore[operator]
    # as the network itself does it: what else is asked for leaves the mask alone
    outputs_oyx = torch.softmax(members_moyx.mean(0).log(), 0)
    return torch.cat([outputs_oyx, disagreement_of(members_moyx)[None]])
