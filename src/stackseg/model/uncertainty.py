"""How unsure a model is of each pixel."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import entr
from torch import Tensor


def entropy(probabilities_cyx: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the entropy (Y, X) of class probabilities (C, Y, X): 0 where one is certain, 1 where all are equal."""
    return np.asarray(entr(probabilities_cyx).sum(0) / np.log(len(probabilities_cyx)), np.float32)


def disagreement(members_mcyx: Tensor) -> Tensor:
    """Return how much members differ (Y, X), given the class probabilities (M, C, Y, X) of each: from 0 to 1.

    It is the mutual information of class and member, by the logarithm of the number of classes (BALD, Houlsby et al.
    2011, arXiv:1112.5745): 0 where all say the same, however unsure each is.
    """
    members_mcyx = members_mcyx.double()  # a small difference of two entropies
    of_mean_yx = torch.special.entr(members_mcyx.mean(0)).sum(0)
    of_each_yx = torch.special.entr(members_mcyx).sum(1).mean(0)
    share_yx: Tensor = (of_mean_yx - of_each_yx) / math.log(members_mcyx.shape[1])
    return share_yx.clamp(0, 1).float()
