"""A result that grows in a folder beside its place, and can be gone on with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stackseg.atomic import write_text
from stackseg.errors import DataError
from stackseg.prediction.outputs import Layer, Outputs

_RECORD = "begun.json"
_DONE = "done.jsonl"


class Part:
    """`OUT.part`: a folder for each layer, what it was begun with, and a line for each plane that is there whole.

    Parameters
    ----------
    record
        All that decides the pixels; only what was begun with an equal one is gone on with.
    resume
        Go on with what is there, if anything is; else it is removed.

    Raises
    ------
    DataError
        What is there was begun with another record.
    """

    def __init__(self, outputs: Outputs, record: Mapping[str, Any], *, resume: bool) -> None:
        self._outputs = outputs
        self.folder = outputs.part
        self.done: list[dict[str, Any]] = []
        """What was said of each plane that is there, in their order."""
        if resume and (self.folder / _RECORD).exists():
            self._require_same(record)
            lines = (self.folder / _DONE).read_text("utf-8").splitlines(keepends=True)
            # a kill may cut the last line
            self.done = [json.loads(line) for line in lines if line.endswith("\n")]
        if self.done:
            write_text(self.folder / _DONE, "".join(f"{json.dumps(one)}\n" for one in self.done))
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        write_text(self.folder / _DONE, "")
        write_text(self.folder / _RECORD, json.dumps(record, indent=2) + "\n")

    def layer(self, layer: Layer) -> Path:
        """Return the folder of a layer."""
        return self.folder / layer

    def note(self, plane: Mapping[str, Any]) -> None:
        """Note that the next plane is there in all layers."""
        with (self.folder / _DONE).open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(plane)}\n")
        self.done.append(dict(plane))

    def finish(self) -> None:
        """Put the layers in their places, the mask last."""
        for layer in reversed(self._outputs.layers):
            # one that is not there is in its place, or was not to be had
            if self.layer(layer).exists():
                _put(self.layer(layer), self._outputs.path(layer))
        shutil.rmtree(self.folder)

    def drop_if_empty(self) -> None:
        """Remove the folder if no plane is there."""
        if not self.done:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _require_same(self, record: Mapping[str, Any]) -> None:
        begun = json.loads((self.folder / _RECORD).read_text("utf-8"))
        now = json.loads(json.dumps(record))
        other = sorted(name for name in begun.keys() | now.keys() if begun.get(name) != now.get(name))
        if other:
            raise DataError(
                f"begun with other {', '.join(other)}",
                where=str(self.folder),
                remedy="repeat the same command to go on, or begin anew with --overwrite",
            )


def _put(folder: Path, place: Path) -> None:
    former = place.with_name(f".{place.name}.old")
    shutil.rmtree(former, ignore_errors=True)
    if place.is_dir() and not place.is_symlink():
        os.replace(place, former)
    else:
        place.unlink(missing_ok=True)
    os.replace(folder, place)
    shutil.rmtree(former, ignore_errors=True)
