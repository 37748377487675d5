"""Masks as they are answered: a file in a base64 string, never nested lists."""

from __future__ import annotations

import base64
import io
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from stackseg.errors import DataError

OutputForm = Literal["png", "tiff", "npz"]
OUTPUT_FORMS: tuple[OutputForm, ...] = ("png", "tiff", "npz")
IGNORE_VOXEL_SIZE = 'set the parameter "ignore_voxel_size"'
"""How a refusal names the way out; `stackseg segment-remote` has an option instead."""

Mask = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]


def encode_mask(mask_zyx: Mask, probabilities_zcyx: Probabilities | None, output: OutputForm) -> dict[str, str | None]:
    """Return the base64 strings `mask` and `probabilities`.

    Parameters
    ----------
    mask_zyx
        Class indices.
    probabilities_zcyx
        Of each class, or None if they were not asked for.
    output
        ``png``: one plane, 8-bit grey; ``tiff``: deflated pages; ``npz``: arrays ``mask`` (Z, Y, X) and, if asked for,
        ``probabilities`` (Z, C, Y, X).

    Raises
    ------
    DataError
        PNG cannot hold a stack, or probabilities.
    """
    if output == "png":
        return {"mask": _text(_png(mask_zyx, probabilities_zcyx)), "probabilities": None}
    if output == "npz":
        arrays: dict[str, Any] = {"mask": mask_zyx}
        if probabilities_zcyx is not None:
            arrays["probabilities"] = probabilities_zcyx
        return {"mask": _text(_npz(arrays)), "probabilities": None}
    return {
        "mask": _text(_tiff(mask_zyx, "ZYX")),
        "probabilities": None if probabilities_zcyx is None else _text(_tiff(probabilities_zcyx, "ZCYX")),
    }


def decode_mask(text: str, output: OutputForm) -> Mask:
    """Return the class indices (Z, Y, X) of an answer."""
    file = io.BytesIO(base64.b64decode(text, validate=True))
    if output == "png":
        return np.asarray(Image.open(file, formats=["PNG"]), np.uint8)[None]
    if output == "npz":
        with np.load(file, allow_pickle=False) as arrays:
            return np.asarray(arrays["mask"], np.uint8)
    found = tifffile.imread(file)
    return np.asarray(found.reshape(-1, *found.shape[-2:]), np.uint8)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _png(mask_zyx: Mask, probabilities_zcyx: Probabilities | None) -> bytes:
    if len(mask_zyx) > 1 or probabilities_zcyx is not None:
        what = "probabilities" if probabilities_zcyx is not None else f"{len(mask_zyx)} planes"
        raise DataError(
            f"{what} asked for as png",
            expected="one plane, without probabilities",
            remedy='set "output" to tiff or npz',
        )
    file = io.BytesIO()
    Image.fromarray(mask_zyx[0]).save(file, "PNG")
    return file.getvalue()


def _npz(arrays: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def _tiff(array: npt.NDArray[Any], axes: str) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, compression="zlib", metadata={"axes": axes}, photometric="minisblack")
    return file.getvalue()
