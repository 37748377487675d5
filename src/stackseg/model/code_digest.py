"""The digest of the code that makes a model."""

from __future__ import annotations

import hashlib
from pathlib import Path

import stackseg

TRAIN_STAGE_ROOMS = ("params", "dataset", "model", "training")
"""Folders of the package whose code shapes a trained model; dvc.yaml's train stage depends on the same."""


def code_digest(*more_rooms: str) -> str:
    """Return the SHA-256 over the source files of the train stage's folders, and of further folders by name."""
    package = Path(stackseg.__file__).parent
    sha = hashlib.sha256()
    for room in (*TRAIN_STAGE_ROOMS, *more_rooms):
        for path in sorted((package / room).rglob("*.py")):
            # line ends differ between platforms, the code does not
            sha.update(f"{path.relative_to(package).as_posix()}\n".encode())
            sha.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return sha.hexdigest()
