"""Masks as they are answered: a file in a base64 string, never nested lists."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from stackseg.errors import DataError

OutputForm = Literal["png", "tiff", "npz"]
IGNORE_VOXEL_SIZE = 'set the parameter "ignore_voxel_size"'
"""How a refusal names the way out; `stackseg segment-remote` has an option instead."""

Mask = npt.NDArray[np.unsignedinteger]
Probabilities = npt.NDArray[np.float32]


def as_labels(objects: npt.NDArray[np.int32]) -> Mask:
    """Return numbers of objects in the smallest type that other programs read: 16 bits, or 32 where there are more."""
    wide = objects.astype(np.uint32)
    return wide if wide.max() > np.iinfo(np.uint16).max else wide.astype(np.uint16)


def encode_mask(mask_zyx: Mask, probabilities_zcyx: Probabilities | None, output: OutputForm) -> dict[str, str | None]:
    """Return the base64 strings `mask` and `probabilities`.

    Parameters
    ----------
    mask_zyx
        Class indices, or numbers of objects.
    probabilities_zcyx
        Of each class, or None if they were not asked for.
    output
        ``png``: one plane, grey of 8 bits, or 16 for objects; ``tiff``: deflated pages; ``npz``: arrays ``mask``
        (Z, Y, X) and, if asked for, ``probabilities`` (Z, C, Y, X).

    Raises
    ------
    DataError
        PNG cannot hold a stack, probabilities, or numbers beyond 65,535.
    """
    if output == "png":
        if len(mask_zyx) > 1 or probabilities_zcyx is not None or mask_zyx.dtype.itemsize > 2:
            what = "probabilities" if probabilities_zcyx is not None else f"{len(mask_zyx)} planes"
            if mask_zyx.dtype.itemsize > 2:
                what = f"{mask_zyx.max()} objects"
            raise DataError(
                f"{what} asked for as png",
                expected="one plane, without probabilities, of up to 65535 objects",
                remedy='set "output" to tiff or npz',
            )
        return {"mask": _base64(lambda file: Image.fromarray(mask_zyx[0]).save(file, "PNG")), "probabilities": None}
    arrays: dict[str, npt.NDArray[Any]] = {"mask": mask_zyx}
    if probabilities_zcyx is not None:
        arrays["probabilities"] = probabilities_zcyx
    if output == "npz":
        return {"mask": _base64(lambda file: np.savez_compressed(file, **arrays)), "probabilities": None}  # type: ignore[arg-type]
    return {"mask": None, "probabilities": None} | {
        name: _base64(partial(_write_tiff, array)) for name, array in arrays.items()
    }


def decode_tiff_mask(text: str) -> Mask:
    """Return the class indices or numbers of objects (Z, Y, X) of a response in the form ``tiff``."""
    found = tifffile.imread(io.BytesIO(base64.b64decode(text, validate=True)))
    return np.asarray(found.reshape(-1, *found.shape[-2:]))


def _base64(write: Callable[[io.BytesIO], object]) -> str:
    file = io.BytesIO()
    write(file)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _write_tiff(array: npt.NDArray[Any], file: io.BytesIO) -> None:
    axes = "ZYX" if array.ndim == 3 else "ZCYX"
    tifffile.imwrite(file, array, compression="zlib", metadata={"axes": axes}, photometric="minisblack")
