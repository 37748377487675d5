"""How unsure a model is of each pixel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import entr


def entropy(probabilities_cyx: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the entropy (Y, X) of class probabilities (C, Y, X): 0 where one is certain, 1 where all are equal."""
    return np.asarray(entr(probabilities_cyx).sum(0) / np.log(len(probabilities_cyx)), np.float32)
