"""Digests: the one by which DVC knows a folder, and that of decoded pixels."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt


def data_digest(folder: Path) -> str:
    """Return the md5 that DVC writes into data.dvc for this folder, computed from the bytes that are there.

    DVC's directory object is the JSON list of relative paths and file md5s, sorted by path
    (dvc-data, hashfile/tree.py); its name is that list's md5 with ".dir" behind it.
    """
    files = sorted(one for one in folder.rglob("*") if one.is_file())
    listed = [{"md5": file_md5(one), "relpath": one.relative_to(folder).as_posix()} for one in files]
    listed.sort(key=lambda one: one["relpath"])
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def file_md5(path: Path) -> str:
    """Return the md5 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def pixel_digest(array: npt.NDArray[np.generic]) -> str:
    """Return the SHA-256 over type, shape and little-endian pixels of an array."""
    head = f"{array.dtype.name} {array.shape} ".encode()
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return hashlib.sha256(head + little.tobytes()).hexdigest()
