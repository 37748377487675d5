from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from stackseg.measurement.pores import PoreSpace, describe_pores


def described(pore_zyx: np.ndarray) -> PoreSpace:
    numbers_zyx, num_pores = ndimage.label(pore_zyx)
    return describe_pores(0, numbers_zyx, np.bincount(numbers_zyx.ravel(), minlength=num_pores + 1)[1:])


def test_a_tube_along_z_percolates_along_z_only() -> None:
    pore_zyx = np.zeros((6, 10, 10), bool)
    pore_zyx[:, 4:6, 4:6] = True  # 24 voxels
    pore_zyx[2:4, 8, 8] = True  # 2 that lead nowhere
    found = described(pore_zyx)
    assert found.porosity == pytest.approx(26 / 600)
    assert found.num_pores == 2
    assert found.largest_share == pytest.approx(24 / 26)
    assert found.percolating_share_zyx == pytest.approx((24 / 26, 0, 0))


def test_a_bent_tube_percolates_and_one_of_corners_does_not() -> None:
    bent_zyx = np.zeros((4, 5, 5), bool)
    bent_zyx[:2, 1, 1] = bent_zyx[1, 1:4, 1] = bent_zyx[1:, 3, 1] = True
    assert described(bent_zyx).percolating_share_zyx == (1, 0, 0)
    diagonal_zyx = np.zeros((4, 5, 5), bool)
    diagonal_zyx[range(4), range(4), range(4)] = True
    found = described(diagonal_zyx)
    assert (found.num_pores, found.percolating_share_zyx) == (4, (0, 0, 0))


def test_two_tubes_that_end_within_do_not_make_one() -> None:
    pore_zyx = np.zeros((5, 4, 4), bool)
    pore_zyx[:3, 1, 1] = pore_zyx[3:, 2, 2] = True
    assert described(pore_zyx).percolating_share_zyx == (0, 0, 0)


def test_no_pores_at_all() -> None:
    assert described(np.zeros((2, 3, 3), bool)) == PoreSpace(0, 0.0, 0, 0.0, (0.0, 0.0, 0.0))
