"""Measure how much of the validation and test planes has been seen in training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy.ndimage import gaussian_filter

from stackseg.dataset.channels import context_indices
from stackseg.dataset.splits import Part, PlaneRef
from stackseg.errors import ParamsError

# long side to which planes are reduced: keeps structure, averages noise away
REDUCED_SIDE = 96
# above this share of the way from far-apart planes to identical ones, a score is no longer about unseen material
WARN_ABOVE = 0.2


class Leakage(BaseModel):
    """Similarity across the split; correlation of planes whose slow shading is removed, 1 for equal planes.

    `figure` is (nearest - far) / (1 - far): 0 where a held-out plane is no more like its nearest training plane
    than planes far apart are like each other, 1 where it has been trained on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    nearest: float | None = None
    far: float | None = None
    figure: float | None = None
    worst_plane: str | None = None
    worst_nearest: str | None = None
    worst_similarity: float | None = None
    leaks: bool = False


def require_test_apart(parts: Mapping[PlaneRef, Part], depths: Mapping[str, int], context_slices: int) -> None:
    """Refuse context (2.5D) by which planes of the test part would be input of training or validation.

    Parameters
    ----------
    parts
        The annotated planes.
    depths
        Planes of each specimen, annotated or not.
    context_slices
        Neighbours on each side.

    Raises
    ------
    ParamsError
        They reach a test plane.
    """
    for num in range(1, context_slices + 1):
        for ref, part in parts.items():
            if part not in ("training", "validation"):
                continue
            around = (PlaneRef(ref.specimen, z) for z in context_indices(ref.z, depths[ref.specimen], num))
            reached = next((one for one in around if parts.get(one) == "test"), None)
            if reached is not None:
                raise ParamsError(
                    f"with {context_slices} neighbours on each side {ref} ({part} part) takes in {reached} (test part)",
                    expected="a test part that no training has seen",
                    where="model.context_slices",
                    remedy=f"set it to at most {num - 1}, or widen split.gap",
                )


def reduce_plane(image_yxc: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Return a small, high-passed, unit-norm copy (N,) of a plane (Y, X, C), to correlate with others of its shape."""
    image_yx = image_yxc.mean(2)
    block = max(1, max(image_yx.shape) // REDUCED_SIDE)
    rows, columns = (min(block, size) for size in image_yx.shape)
    height, width = image_yx.shape[0] // rows, image_yx.shape[1] // columns
    small_yx = image_yx[: height * rows, : width * columns].reshape(height, rows, width, columns).mean((1, 3))
    detail_yx = small_yx - gaussian_filter(small_yx, 8)
    detail_yx -= detail_yx.mean()
    norm = float(np.linalg.norm(detail_yx))
    # a constant plane is like no other
    reduced: npt.NDArray[np.float32] = (detail_yx / norm if norm > 0 else detail_yx).astype(np.float32).ravel()
    return reduced


def measure_leakage(reduced: Mapping[PlaneRef, npt.NDArray[np.float32]], parts: Mapping[PlaneRef, Part]) -> Leakage:
    """Compare each validation and test plane with its nearest training plane, and with planes far apart.

    Far-apart planes lie in other specimens, or at least a third of the annotated range away; where there are
    none, the least similar half of the training planes stands for them.
    """
    training = [ref for ref in reduced if parts[ref] == "training"]
    nearest, far = [], []
    worst: tuple[float, PlaneRef, PlaneRef] | None = None
    for ref in (one for one in reduced if parts[one] in ("validation", "test")):
        peers = [other for other in training if reduced[other].shape == reduced[ref].shape]
        if not peers:
            continue
        similarities = np.array([float(reduced[ref] @ reduced[other]) for other in peers])
        best = int(similarities.argmax())
        nearest.append(similarities[best])
        reach = max(abs(other.z - ref.z) for other in peers) / 3 if len({o.specimen for o in peers}) == 1 else 0
        apart = [
            s
            for s, other in zip(similarities, peers, strict=True)
            if other.specimen != ref.specimen or abs(other.z - ref.z) >= max(reach, 1)
        ]
        far.append(float(np.median(apart if len(apart) > 1 else np.sort(similarities)[: len(peers) // 2 + 1])))
        if worst is None or similarities[best] > worst[0]:
            worst = (float(similarities[best]), ref, peers[best])
    if worst is None:
        return Leakage()
    near_mean, far_mean = float(np.mean(nearest)), float(np.mean(far))
    figure = (near_mean - far_mean) / max(1 - far_mean, 1e-6)
    return Leakage(
        nearest=near_mean,
        far=far_mean,
        figure=figure,
        worst_plane=str(worst[1]),
        worst_nearest=str(worst[2]),
        worst_similarity=worst[0],
        leaks=figure > WARN_ABOVE or worst[0] > 0.98,
    )
