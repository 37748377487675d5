"""A result that grows in a folder beside its place, and can be gone on with."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stackseg.atomic import put_once, write_text
from stackseg.errors import DataError
from stackseg.prediction.outputs import WHOLE, Layer, Outputs, Share

_RECORD = "begun.json"


class Part:
    """`OUT.part`: a folder for each layer, what it was begun with, and a line for each plane that is there whole.

    Several calls may fill it, each with its share of the planes: each notes its own, and the last puts the layers in
    their places.

    Parameters
    ----------
    record
        All that decides the pixels; only what was begun with an equal one is gone on with.
    planes
        All that are to be written.
    share
        Those of them that this call writes.
    resume
        Go on with what is there of the share, if anything is; else it is removed.

    Raises
    ------
    DataError
        What is there was begun with another record, or the share was begun before and is not to be gone on with.
    """

    def __init__(
        self, outputs: Outputs, record: Mapping[str, Any], planes: range, share: Share, *, resume: bool
    ) -> None:
        self._outputs = outputs
        self._planes = planes
        self._share = share
        self.folder = outputs.part
        self.done: list[dict[str, Any]] = []
        """What was said of each plane of the share that is there, in their order."""
        if share == WHOLE and not resume:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._begin(record)
        self._require_same(record)
        if resume:
            self.done = list(self._noted(share).values())
        elif self._notes(share).exists():
            raise DataError(
                f"part {share.number}/{share.of} was begun before",
                where=str(self.folder),
                remedy="--resume goes on with it",
            )
        write_text(self._notes(share), "".join(f"{json.dumps(one)}\n" for one in self.done))

    def layer(self, layer: Layer) -> Path:
        """Return the folder of a layer."""
        return self.folder / layer

    def note(self, place: int, plane: Mapping[str, Any]) -> None:
        """Note that the plane at a place is there in all layers."""
        noted = {"place": place, **plane}
        with self._notes(self._share).open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(noted)}\n")
        self.done.append(noted)

    def finish(self) -> int:
        """Put the layers in their places if all planes are there; return how many shares lack some."""
        if self._share == WHOLE:
            put_layers(self._outputs, _put)
            return 0
        try:
            waiting = self._count_waiting()
            if not waiting:
                put_layers(self._outputs, put_once)
        except FileNotFoundError:  # another call has found all planes, and put them in their places
            return 0
        return waiting

    def _count_waiting(self) -> int:
        shares = [Share(number, self._share.of) for number in range(1, self._share.of + 1)]
        shares = [one for one in shares if one.planes(self._planes)]
        there = set(os.listdir(self.folder))
        begun = [one for one in shares if self._notes(one).name in there]
        # of thousands, only the last few look into all notes
        if len(begun) < len(shares):
            return len(shares) - len(begun)
        return sum(len(self._noted(one)) < len(one.planes(self._planes)) for one in shares)

    def drop_if_empty(self) -> None:
        """Remove what is there if no plane is: of a share its notes, of the whole the folder."""
        if not self.done:
            if self._share == WHOLE:
                shutil.rmtree(self.folder, ignore_errors=True)
            else:
                self._notes(self._share).unlink(missing_ok=True)

    def _notes(self, share: Share) -> Path:
        return self.folder / f"done_{share.number}_of_{share.of}.jsonl"

    def _noted(self, share: Share) -> dict[int, dict[str, Any]]:
        """Return what was noted of the planes of a share, by place; a plane that was done twice counts once."""
        path = self._notes(share)
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
        # a kill may cut the last line
        noted = [json.loads(line) for line in lines if line.endswith("\n")]
        return {one["place"]: one for one in noted}

    def _begin(self, record: Mapping[str, Any]) -> None:
        """Make the folder with its record, unless it is there or another call is quicker."""
        if (self.folder / _RECORD).exists():
            return
        with tempfile.TemporaryDirectory(prefix=f".{self.folder.name}.", dir=self.folder.parent) as made:
            whole = Path(made) / "part"
            whole.mkdir()
            write_text(whole / _RECORD, json.dumps(record, indent=2) + "\n")
            put_once(whole, self.folder)

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


def put_layers(outputs: Outputs, put: Callable[[Path, Path], None] = os.rename) -> None:
    """Put what has grown in its places, the mask last."""
    for layer in reversed(outputs.layers):
        # one that is not there is in its place, or was not to be had
        if (outputs.part / layer).exists():
            put(outputs.part / layer, outputs.path(layer))
    shutil.rmtree(outputs.part)


def _put(folder: Path, place: Path) -> None:
    former = place.with_name(f".{place.name}.old")
    shutil.rmtree(former, ignore_errors=True)
    if place.is_dir() and not place.is_symlink():
        os.replace(place, former)
    else:
        place.unlink(missing_ok=True)
    os.replace(folder, place)
    shutil.rmtree(former, ignore_errors=True)
