"""Checkpoints from which only an equal training goes on."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from stackseg.atomic import atomic_file
from stackseg.errors import MachineError, ModelError, is_out_of_memory, one_line

BEST_FILE = "best.pt"
_SPARE_FILE = ".last.spare"


def checkpoint_key(*parts: Any) -> str:
    """Return the name of the folder that an equal training, and no other, finds again."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def lock_of(folder: Path) -> FileLock:
    """Return the lock that a process holds while it trains with a folder of checkpoints; a kill frees it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_name(f"{folder.name}.lock"), blocking=False)


def remove_checkpoints(folder: Path) -> None:
    """Remove a folder of checkpoints and its lock, unless a process trains with it."""
    lock = lock_of(folder)
    with suppress(Timeout), lock:
        shutil.rmtree(folder)
        _process_note(folder).unlink(missing_ok=True)
        with suppress(PermissionError):  # on Windows, where the lock goes by itself
            Path(lock.lock_file).unlink()


class Checkpoints:
    """Last and best state of one training, in a folder of its own.

    Tensors and plain values only: files are read with ``weights_only``, so nothing in them is executed. The last state
    is the ``last-<n>.pt`` of the highest number; the one before it stays, for the next to be written over it, as new
    pages of a file cost several times what old ones do.
    """

    def __init__(self, root: Path, key: str) -> None:
        self.folder = root / key
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._copy: Any = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training with the same folder; what a killed process held is free.

        Raises
        ------
        MachineError
            Another process trains with it.
        """
        note = _process_note(self.folder)
        try:
            lock = lock_of(self.folder).acquire()
        except Timeout:
            holder = f" (process {note.read_text()})" if note.exists() else ""  # it may have begun this very moment
            raise MachineError(
                f"a training of this project is running{holder}",
                where=str(self.folder),
                remedy="wait for it, or end that process: the same command then goes on at its last epoch",
            ) from None
        with lock:
            note.write_text(str(os.getpid()))
            yield

    def save_last_meanwhile(self, state: dict[str, Any]) -> None:
        """Write a copy of the last state while training goes on; left out while the one before is still being written.

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
        self._copy = _copied(state, self._copy)
        self._pending = self._writer.submit(self._save_last, self._copy)

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

    def save_best(self, state: dict[str, Any]) -> None:
        """Write the best state, whole or not at all.

        Raises
        ------
        MachineError
            It could not be written whole.
        """
        with _full_disk_said(self.folder / BEST_FILE), atomic_file(self.folder / BEST_FILE) as temporary:
            torch.save(state, temporary)

    def load_last(self) -> dict[str, Any] | None:
        """Return the last state, or None where there is none.

        Raises
        ------
        ModelError
            The file is damaged.
        """
        found = self._last_files()
        return self._load(found[-1]) if found else None

    def load_best(self) -> dict[str, Any] | None:
        """Return the best state, or None where there is none.

        Raises
        ------
        ModelError
            The file is damaged.
        """
        path = self.folder / BEST_FILE
        return self._load(path) if os.path.lexists(path) else None

    def set_aside_damaged(self) -> Path | None:
        """Rename the folder if a state in it cannot be read, and return where it is then; None if all is well."""
        try:
            if self.load_last() is not None:
                self.load_best()
        except ModelError:
            damaged = self.folder.with_name(f"{self.folder.name}.damaged")
            shutil.rmtree(damaged, ignore_errors=True)
            os.replace(self.folder, damaged)
            return damaged
        return None

    def _save_last(self, state: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        found = self._last_files()
        number = int(found[-1].stem.partition("-")[2]) + 1 if found else 1
        spare = self.folder / _SPARE_FILE
        for former in found[:-1]:
            os.replace(former, spare)
        try:
            with _full_disk_said(spare), spare.open("r+b" if spare.exists() else "wb") as file:
                torch.save(state, file)
                file.truncate()
        except BaseException:
            spare.unlink()
            raise
        os.replace(spare, self.folder / f"last-{number:06d}.pt")

    def _last_files(self) -> list[Path]:
        return sorted(self.folder.glob("last-[0-9][0-9][0-9][0-9][0-9][0-9].pt"))

    def _load(self, path: Path) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state, dict):
                raise ValueError("not the state of a training")
        except Exception as error:  # whatever a damaged pickle makes torch raise
            if is_out_of_memory(error):  # the file may be whole
                raise
            raise ModelError(
                f"damaged checkpoint ({one_line(error, 100) or type(error).__name__})",
                where=str(path),
                remedy=f"remove {self.folder} to train from the start",
            ) from None
        return state


def _process_note(folder: Path) -> Path:
    # not in the lock's own file, which nobody else may read on Windows
    return folder.with_name(f"{folder.name}.process")


@contextmanager
def _full_disk_said(path: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:
        # all that torch's writer tells of a full disk may be a wrong position
        if is_out_of_memory(error):
            raise
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise MachineError(
            "a checkpoint could not be written whole",
            where=str(path.parent),
            remedy="free some space on the disk and run the same command again: training goes on",
        ) from None


def _copied(state: Any, held: Any) -> Any:
    """Return a copy of a state on the CPU, in the memory of an earlier copy where that fits."""
    if isinstance(state, torch.Tensor):
        fits = isinstance(held, torch.Tensor) and held.shape == state.shape and held.dtype == state.dtype
        kept = held if fits else torch.empty_like(state, device="cpu")
        return kept.copy_(state.detach())
    if isinstance(state, Mapping):
        former = held if isinstance(held, Mapping) else {}
        return {key: _copied(value, former.get(key)) for key, value in state.items()}
    if isinstance(state, list | tuple):
        parts = held if isinstance(held, list | tuple) and len(held) == len(state) else [None] * len(state)
        return type(state)(_copied(value, one) for value, one in zip(state, parts, strict=True))
    return state
