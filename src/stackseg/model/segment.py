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
from stackseg.model.tiling import Blend, Tiling
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
    before_window
        Called before each window; what it raises ends the work, as for a client that has left.

    Raises
    ------
    DataError
        Channels differ from training's, or context planes differ in size.
    """
    spec = segmenter.inference
    device, precision = segmenter.device, segmenter.precision
    reference = spec.intensity.reference(source)
    prepared: dict[int, npt.NDArray[np.float32]] = {}
    for z in range(len(source)) if planes is None else planes:
        needed = context_indices(z, len(source), spec.context_slices)
        prepared = {
            one: prepared[one] if one in prepared else prepare(source, one, spec, reference)
            for one in dict.fromkeys(needed)
        }
        image_yxc = stack_context([prepared[one] for one in needed], z)
        symmetries = SYMMETRIES[tta or spec.tta]
        compute = partial(_window_values, segmenter, precision, disagreement and bool(spec.members))
        values_vyx = _blend_turned(image_yxc, compute, spec.tiling, device, before_window, symmetries)
        outputs_oyx = values_vyx[: spec.network.num_classes]
        classes_cyx = class_probabilities(outputs_oyx) if spec.instances else outputs_oyx
        mask_yx = classes_cyx.argmax(0).to(torch.uint8).numpy(force=True)
        objects_yx = find_objects(outputs_oyx.numpy(force=True), mask_yx) if objects and spec.instances else None
        yield SegmentedPlane(
            z,
            mask_yx,
            classes_cyx.numpy(force=True) if probabilities else None,
            objects_yx,
            values_vyx[-1].numpy(force=True) if len(values_vyx) > len(outputs_oyx) else None,
        )


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


def _window_values(segmenter: Segmenter, precision: str, disagreement: bool, tile_bcyx: Tensor) -> Tensor:
    """Return the probabilities (O, Y, X) of the network's outputs for one window and, as one more, the disagreement."""
    with torch.autocast(tile_bcyx.device.type, torch.bfloat16, enabled=precision == "bf16"):
        if disagreement:
            members_moyx = segmenter.network.member_probabilities(tile_bcyx)[:, 0]  # type: ignore[operator]
            # as the network itself does it: what else is asked for leaves the mask alone
            logits_oyx = members_moyx.mean(0).log()
        else:
            logits_oyx = segmenter.network(tile_bcyx)[0]
    outputs_oyx = torch.softmax(logits_oyx.float(), 0)
    return torch.cat([outputs_oyx, disagreement_of(members_moyx)[None]]) if disagreement else outputs_oyx


@torch.inference_mode()
def _blend_turned(
    image_yxc: npt.NDArray[np.float32],
    compute: Callable[[Tensor], Tensor],
    tiling: Tiling,
    device: torch.device,
    before_window: Callable[[], None],
    symmetries: Sequence[tuple[bool, tuple[int, ...]]],
) -> Tensor:
    """Return the values (V, Y, X) that are computed of one plane's windows, averaged over its symmetries."""

    def turned_back() -> Iterator[Tensor]:
        for transposed, axes in symmetries:
            turned_yxc = np.flip(image_yxc.swapaxes(0, 1) if transposed else image_yxc, axes)
            blended_vyx = _blend(turned_yxc, compute, tiling, device, before_window)
            upright_vyx = blended_vyx.flip([axis + 1 for axis in axes])
            yield upright_vyx.transpose(1, 2) if transposed else upright_vyx

    return reduce(torch.add, turned_back()) / len(symmetries)


def _blend(
    image_yxc: npt.NDArray[np.float32],
    compute: Callable[[Tensor], Tensor],
    tiling: Tiling,
    device: torch.device,
    before_window: Callable[[], None],
) -> Tensor:
    """Return the values (V, Y, X) that are computed of one plane's windows."""
    shape_yx = image_yxc.shape[0], image_yxc.shape[1]
    blend = Blend(tiling, shape_yx)
    image_byxc = torch.from_numpy(np.ascontiguousarray(tiling.pad(image_yxc)))[None].to(device)
    for window in tiling.windows(shape_yx):
        before_window()
        # a permuted (B, Y, X, C) tensor already has the channels-last layout
        blend.add(window, compute(image_byxc[:, *window].contiguous().permute(0, 3, 1, 2)))
    return blend.result()
