"""V_rand and V_info after border thinning: whether the cells of an electron micrograph come out whole and apart.

The convention is that of the ISBI-2012 challenge: I. Arganda-Carreras et al. (2015), "Crowdsourcing the creation of
image segmentation algorithms for connectomics", Front. Neuroanat. 9:142, and the script its authors publish for Fiji.

- The cells of the truth are the 4-connected components of what is not membrane. Only their pixels are counted
  (foreground-restricted), so the true membrane needs no thinning.
- The predicted membrane is thinned to one pixel by flooding it from the predicted cells (watershed with lines), so the
  drawn width does not matter and a membrane that encloses nothing vanishes. A skeleton would do the same inside the
  plane, but it draws back from the rim and so opens cells there.
- A counted pixel that lies on a thinned line is a segment of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy import ndimage
from skimage.metrics import contingency_table
from skimage.segmentation import watershed

from stackseg.dataset.labels.table import IGNORE_INDEX
from stackseg.model.confusion import mean_of_present

_PLAIN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RandViScore(BaseModel):
    """V_rand and V_info of one plane, 1 at best; None where undefined.

    Both are None if the truth has no cell. V_info is None too if truth and prediction are each one segment: then there
    is no information to share. `num_pixels` counts the pixels of true cells.
    """

    model_config = _PLAIN

    v_rand: float | None
    v_info: float | None
    num_truth_segments: int
    num_predicted_segments: int
    num_pixels: int


class RandViScores(BaseModel):
    """Means over the planes where a score is defined, as the challenge takes them, and the planes themselves."""

    model_config = _PLAIN

    v_rand: float | None
    v_info: float | None
    num_planes_v_rand: int
    num_planes_v_info: int
    planes: tuple[RandViScore, ...]


def rand_vi_score(
    truth_yx: npt.NDArray[np.integer], prediction_yx: npt.NDArray[np.integer], membrane_class: int
) -> RandViScore:
    """Compare the cells that two membrane maps enclose.

    Parameters
    ----------
    truth_yx
        (Y, X) class indices, `IGNORE_INDEX` where nobody knows; cells end at ignored pixels on both sides.
    prediction_yx
        (Y, X) class indices.
    membrane_class
        The class that parts the cells; every other class is cell.

    Notes
    -----
    With p_ij the share of counted pixels in predicted segment i and true segment j, s_i and t_j its sums:
    V_rand = Σ p_ij² / (½ Σ s_i² + ½ Σ t_j²) and V_info = I(S; T) / (½ H(S) + ½ H(T)).
    """
    known_yx = truth_yx != IGNORE_INDEX
    truth_segments_yx = _cells(truth_yx != membrane_class, known_yx)
    predicted_segments_yx = _segments_after_thinning(prediction_yx == membrane_class, known_yx)
    counted_yx = truth_segments_yx > 0
    v_rand, v_info = _v_rand_and_info(truth_segments_yx[counted_yx], predicted_segments_yx[counted_yx])
    return RandViScore(
        v_rand=v_rand,
        v_info=v_info,
        num_truth_segments=int(truth_segments_yx.max()),
        num_predicted_segments=int(predicted_segments_yx.max()),
        num_pixels=int(counted_yx.sum()),
    )


def mean_rand_vi(planes: Sequence[RandViScore]) -> RandViScores:
    """Average the planes' scores, leaving out those that are undefined and saying how many were not."""
    v_rands = [plane.v_rand for plane in planes]
    v_infos = [plane.v_info for plane in planes]
    return RandViScores(
        v_rand=mean_of_present(v_rands),
        v_info=mean_of_present(v_infos),
        num_planes_v_rand=sum(value is not None for value in v_rands),
        num_planes_v_info=sum(value is not None for value in v_infos),
        planes=tuple(planes),
    )


def _segments_after_thinning(
    membrane_yx: npt.NDArray[np.bool_], known_yx: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Return (Y, X) segments numbered from 1, 0 on the lines between them and where nothing is known."""
    cells_yx = _cells(~membrane_yx, known_yx)
    if not cells_yx.any():
        return cells_yx
    segments_yx = watershed(membrane_yx, markers=cells_yx, connectivity=1, mask=known_yx, watershed_line=True)
    return np.asarray(segments_yx, dtype=np.int64)


def _cells(cell_yx: npt.NDArray[np.bool_], known_yx: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    components_yx, _ = ndimage.label(cell_yx & known_yx)
    return np.asarray(components_yx, dtype=np.int64)


def _v_rand_and_info(
    truth_n: npt.NDArray[np.int64], predicted_n: npt.NDArray[np.int64]
) -> tuple[float | None, float | None]:
    """Score two labellings of n pixels, where a predicted 0 marks a pixel that is a segment of its own."""
    num_pixels = truth_n.size
    if num_pixels == 0:
        return None, None
    alone_n = predicted_n == 0
    numbered_n = predicted_n.copy()
    numbered_n[alone_n] = predicted_n.max() + 1 + np.arange(np.count_nonzero(alone_n))
    table_ts = contingency_table(truth_n, numbered_n, sparse_type="array")
    joint, truth_t, predicted_s = table_ts.data, table_ts.sum(axis=1), table_ts.sum(axis=0)
    v_rand = float((joint @ joint) / (0.5 * (predicted_s @ predicted_s) + 0.5 * (truth_t @ truth_t)))
    entropy_st, entropy_t, entropy_s = (_entropy(sizes / num_pixels) for sizes in (joint, truth_t, predicted_s))
    if entropy_s + entropy_t == 0:
        return v_rand, None
    # Rounding can carry the shared information a hair below 0 or above both entropies.
    shared = float(np.clip(entropy_s + entropy_t - entropy_st, 0, min(entropy_s, entropy_t)))
    return v_rand, shared / (0.5 * entropy_s + 0.5 * entropy_t)


def _entropy(shares: npt.NDArray[np.float64]) -> float:
    occupied = shares[shares > 0]
    return float(-(occupied * np.log(occupied)).sum())
