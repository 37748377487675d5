"""Whether pores lead from one side of a volume to the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class PoreSpace:
    """The pores of a volume; voxels that share a face are one pore."""

    class_index: int
    porosity: float
    """Share of the volume that is pore."""
    num_pores: int
    largest_share: float
    """Share of the pore space that its largest pore has; 0 where there are no pores."""
    percolating_share_zyx: tuple[float, float, float]
    """Share of the pore space in pores that touch both ends of an axis; 0 where none leads through."""


def describe_pores(
    class_index: int, numbers_zyx: npt.NDArray[np.integer], sizes_n: npt.NDArray[np.integer]
) -> PoreSpace:
    """Describe pores that are numbered (Z, Y, X) from 1, 0 being solid, and hold so many voxels each."""
    num_pore_voxels = int(sizes_n.sum())

    def share(numbers: npt.NDArray[np.integer]) -> float:
        return float(sizes_n[numbers - 1].sum() / num_pore_voxels) if num_pore_voxels else 0.0

    through = (np.intersect1d(numbers_zyx.take(0, axis), numbers_zyx.take(-1, axis)) for axis in range(3))
    z, y, x = (share(numbers[numbers > 0]) for numbers in through)
    return PoreSpace(
        class_index,
        porosity=num_pore_voxels / numbers_zyx.size,
        num_pores=len(sizes_n),
        largest_share=float(sizes_n.max() / num_pore_voxels) if num_pore_voxels else 0.0,
        percolating_share_zyx=(z, y, x),
    )
