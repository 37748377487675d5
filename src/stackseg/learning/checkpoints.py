"""Checkpoints from which only an equal training goes on."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from stackseg.aside import file_aside
from stackseg.errors import MachineError, ModelError

LAST_FILE = "last.pt"
BEST_FILE = "best.pt"


def checkpoint_key(*parts: Any) -> str:
    """Return the name of the folder that an equal training, and no other, finds again."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Checkpoints:
    """Last and best state of one training, in a folder of its own.

    Tensors and plain values only: files are read with ``weights_only``, so nothing in them is executed.
    """

    def __init__(self, root: Path, key: str) -> None:
        self.folder = root / key
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save_meanwhile(self, name: str, state: dict[str, Any]) -> None:
        """Write a copy of a state while training goes on; left out while the one before it is still being written.

        On a GPU an epoch can be quicker than the disk: then not every epoch is one to go on from.

        Raises
        ------
        MachineError
            The state before this one could not be written whole.
        """
        if self._pending is not None:
            if not self._pending.done():
                return
            self._pending.result()
        self._pending = self._writer.submit(self.save, name, copy.deepcopy(state))

    def finish(self) -> None:
        """Wait for what is being written.

        Raises
        ------
        MachineError
            It could not be written whole.
        """
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Write a state aside, then put it in place.

        Raises
        ------
        MachineError
            It could not be written whole.
        """
        try:
            with file_aside(self.folder / name) as aside:
                torch.save(state, aside)
        except RuntimeError:  # all that torch's writer tells of a full disk is a wrong position
            raise MachineError(
                "a checkpoint could not be written whole",
                where=str(self.folder / name),
                remedy="free some space on the disk and run the same command again: training goes on",
            ) from None

    def load(self, name: str) -> dict[str, Any] | None:
        """Return a state, or None where there is none.

        Raises
        ------
        ModelError
            The file is damaged.
        """
        path = self.folder / name
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, ValueError, UnpicklingError) as error:
            raise ModelError(
                f"damaged checkpoint ({' '.join(str(error).split())[:100]})",
                where=str(path),
                remedy=f"remove {self.folder} to train from the start",
            ) from None
        return state

    def remove(self) -> None:
        """Remove the folder; a finished training has its bundle."""
        shutil.rmtree(self.folder, ignore_errors=True)
