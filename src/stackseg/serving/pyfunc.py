"""The pyfunc face of segment(): an image in, its mask out."""

from __future__ import annotations

import base64
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel

from stackseg.errors import StacksegError
from stackseg.imaging.stacks import open_stack
from stackseg.learning.bundle import Bundle, load_bundle
from stackseg.learning.code import code_digest
from stackseg.learning.segmentation import segment


class SegmentationModel(PythonModel):
    """Answers a DataFrame with a binary column `image` (a TIFF or PNG file) with one row per image."""

    def load_context(self, context: Any) -> None:
        """Load and verify the bundle."""
        self._bundle = load_bundle(Path(context.artifacts["bundle"]), torch.device("cpu"))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Segment each image.

        Returns
        -------
        DataFrame
            `mask`: base64 of a deflated uint8 TIFF (Z, Y, X) of class indices; `shape`; `classes` and
            `fractions` in the order of the class index; and the lineage of the answer.
        """
        return pd.DataFrame([self._answer(image) for image in model_input["image"]])

    def _answer(self, image: bytes) -> dict[str, Any]:
        started = time.perf_counter()
        try:
            mask_zyx = segment_bytes(image, self._bundle)
        except StacksegError as error:
            # MLflow answers its own exception without a stack trace
            raise MlflowException.invalid_parameter_value(error.sentence()) from None
        spec = self._bundle.spec
        pixels = np.bincount(mask_zyx.ravel(), minlength=len(self._bundle.inference.classes))
        return {
            "mask": base64.b64encode(encode_tiff(mask_zyx)).decode("ascii"),
            "shape": list(mask_zyx.shape),
            "classes": list(self._bundle.inference.class_names),
            "fractions": [round(float(n) / mask_zyx.size, 6) for n in pixels],
            "bundle_digest": self._bundle.digest,
            "code_digest": code_digest(),
            "git_commit": spec.lineage.git_commit if spec else None,
            "data_md5": spec.lineage.data_md5 if spec else None,
            "milliseconds": round(1000 * (time.perf_counter() - started), 1),
        }


def segment_bytes(image: bytes, bundle: Bundle) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Segment an image file held in memory; returns class indices (Z, Y, X)."""
    suffix = ".png" if image[:8] == b"\x89PNG\r\n\x1a\n" else ".tif"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"image{suffix}"
        path.write_bytes(image)
        with open_stack(path) as stack:
            return np.stack([plane.mask_yx for plane in segment(stack, bundle)])


def encode_tiff(mask_zyx: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Return a deflated TIFF of class indices (Z, Y, X)."""
    file = io.BytesIO()
    tifffile.imwrite(file, mask_zyx, compression="zlib", metadata={"axes": "ZYX"}, photometric="minisblack")
    return file.getvalue()
