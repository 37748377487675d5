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
from stackseg.model.tiling import Blend
from stackseg.model.uncertainty import disagreement as disagreement_of
from stackseg.params.inference import Tta

_FLIPS: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (0, 1))
SYMMETRIES: Mapping[Tta, tuple[tuple[bool, tuple[int, ...]], ...]] = {
    "none": ((False, ()),),
    "flips": tuple((False, axes) for axes in _FLIPS),
    "d4": tuple((transposed, axes) for transposed in (False, True) for axes in _FLIPS),
}
"""What a plane is averaged over: whether it is transposed, and the axes along which it is then flipped."""


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

    Raises
    ------
    DataError
        Channels differ from training's, or context planes differ in size.
    """
    spec = segmenter.inference
    with_members = disagreement and bool(spec.members)
    chosen = list(range(len(source)) if planes is None else planes)
    compute = partial(_plane_values, segmenter, with_members, SYMMETRIES[tta or spec.tta], before_window)
    reference = spec.intensity.reference(source)
    if spec.orthogonal if orthogonal is None else orthogonal:
        image_of = partial(prepare, source, spec=spec, reference=reference)
        all_values = mean_over_sections(len(source), chosen, image_of, spec.context_slices, compute)
    else:
        all_values = map(compute, _images(source, chosen, spec, reference))
    for z, values_vyx in zip(chosen, all_values, strict=True):
        outputs_oyx = values_vyx[: spec.network.num_classes]
        classes_cyx = class_probabilities(outputs_oyx) if spec.instances else outputs_oyx
        mask_yx = classes_cyx.argmax(0).to(torch.uint8).numpy(force=True)
        yield SegmentedPlane(
            z,
            mask_yx,
            classes_cyx.numpy(force=True) if probabilities else None,
            find_objects(outputs_oyx.numpy(force=True), mask_yx) if objects and spec.instances else None,
            values_vyx[-1].numpy(force=True) if with_members else None,
        )


def _images(
    source: PlaneSource,
    planes: Iterable[int],
    spec: InferenceSpec,
    reference: tuple[ChannelStatistics, ...] | None,
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield planes as the network wants them, each with its neighbours (Y, X, planes × C); each is prepared once."""
    prepared: dict[int, npt.NDArray[np.float32]] = {}
    for z in planes:
        needed = context_indices(z, len(source), spec.context_slices)
        prepared = {
            one: prepared[one] if one in prepared else prepare(source, one, spec, reference)
            for one in dict.fromkeys(needed)
        }
        yield stack_context([prepared[one] for one in needed], z)


def prepare(
    source: PlaneSource, z: int, spec: InferenceSpec, reference: tuple[ChannelStatistics, ...] | None
) -> npt.NDArray[np.float32]:
    """Return plane z (Y, X, C) as the network wants it."""
    image_yxc = spec.intensity.apply(source.plane(z), reference, f"plane {z}")
    if image_yxc.shape[2] != spec.num_channels:
        raise DataError(
            f"{image_yxc.shape[2]} channels",
            expected=f"{spec.num_channels}, as in training",
            where=f"plane {z}",
            remedy="convert the image, or train with data.colour: grey or rgb",
        )
    return image_yxc


def stack_context(planes: list[npt.NDArray[np.float32]], z: int) -> npt.NDArray[np.float32]:
    """Join a plane's context planes (Y, X, C each) to one image (Y, X, planes × C)."""
    check_neighbours(planes, z)
    return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)


def check_neighbours(planes: Sequence[npt.NDArray[np.generic]], z: int) -> None:
    """Raise DataError if the context planes (Y, X, C each) of plane z differ in size."""
    shapes = {one.shape[:2] for one in planes}
    if len(shapes) > 1:
        raise DataError(
            f"neighbours of different sizes ({', '.join(f'{h}×{w}' for h, w in sorted(shapes))})",
            where=f"plane {z}",
            remedy="model.context_slices needs stacks: set it to 0 for single images",
        )


@torch.inference_mode()
def _plane_values(
    segmenter: Segmenter,
    with_members: bool,
    symmetries: Sequence[tuple[bool, tuple[int, ...]]],
    before_window: Callable[[], None],
    image_yxc: npt.NDArray[np.float32],
) -> Tensor:
    """Return the values (V, Y, X) of one plane, averaged over its symmetries: see `_window_values`."""

    def turned_back() -> Iterator[Tensor]:
        for transposed, axes in symmetries:
            turned_yxc = np.flip(image_yxc.swapaxes(0, 1) if transposed else image_yxc, axes)
            upright_vyx = _blend(turned_yxc, segmenter, with_members, before_window).flip([axis + 1 for axis in axes])
            yield upright_vyx.transpose(1, 2) if transposed else upright_vyx

    return reduce(torch.add, turned_back()) / len(symmetries)


def _blend(
    image_yxc: npt.NDArray[np.float32], segmenter: Segmenter, with_members: bool, before_window: Callable[[], None]
) -> Tensor:
    """Return the values (V, Y, X) of one plane from those of its windows."""
    tiling, device, precision = segmenter.inference.tiling, segmenter.device, segmenter.precision
    shape_yx = image_yxc.shape[0], image_yxc.shape[1]
    blend = Blend(tiling, shape_yx)
    image_byxc = torch.from_numpy(np.ascontiguousarray(tiling.pad(image_yxc)))[None].to(device)
    for window in tiling.windows(shape_yx):
        before_window()
        # a permuted (B, Y, X, C) tensor already has the channels-last layout
        tile_bcyx = image_byxc[:, *window].contiguous().permute(0, 3, 1, 2)
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
