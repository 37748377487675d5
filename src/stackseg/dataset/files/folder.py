"""A folder of slices as one stack: files of one plane each, in the order people count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from natsort import natsorted

from stackseg.dataset.files.pages import holds_image
from stackseg.dataset.files.stack import StackInfo, open_stack
from stackseg.errors import DataError

_PASSED_OVER = ("thumbs.db", "stackseg.json")
"""The second is what `predict` writes beside masks."""
_NAMED = 3


class FolderPages:
    """A folder of TIFF or PNG files of one plane each; a `PageSource` of `pages.py`, whose pages are the files.

    Hidden files are passed over. `axes` are those of each file.
    """

    def __init__(self, folder: Path, *, axes: str | None = None) -> None:
        shown = [one for one in folder.iterdir() if not one.name.startswith(".")]
        paths = natsorted((one for one in shown if one.name.lower() not in _PASSED_OVER), key=lambda one: one.name)
        if not paths:
            raise DataError(
                "an empty folder", expected="slices in TIFF or PNG", where=str(folder), remedy="name another"
            )
        if others := [one.name for one in paths if one.is_dir() or not holds_image(one)]:
            raise DataError(
                f"{', '.join(others[:_NAMED])}{', …' if len(others) > _NAMED else ''} in it: no image",
                expected="nothing but slices in TIFF or PNG",
                where=str(folder),
                remedy="move what is no slice out of it, or copy damaged slices again",
            )
        self._files = [open_stack(one, axes=axes) for one in paths]
        infos = [one.info for one in self._files]
        first = infos[0]
        for info in infos:
            if info.num_planes > 1:
                raise DataError(
                    f"{info.num_planes} planes",
                    expected="one plane in each file of a folder",
                    where=str(info.path),
                    remedy="name a stack by itself, not its folder",
                )
            _check_alike(info, first)
        sizes = {info.voxel_size_zyx_um for info in infos}
        self.notes = list(dict.fromkeys(note for info in infos for note in info.notes))
        if len(sizes) > 1:
            self.notes.append("its files name different voxel sizes: none is taken")
        self.voxel_size_zyx_um = first.voxel_size_zyx_um if len(sizes) == 1 else None
        self.axes = "YX"
        self.shape: tuple[int, ...] = first.shape_yx
        if first.num_channels > 1:
            self.axes += "S" if first.encoding.is_colour else "C"
            self.shape = (*self.shape, first.num_channels)
        self.num_page_axes = len(self.axes)
        if len(paths) > 1:
            self.axes, self.shape = f"Z{self.axes}", (len(paths), *self.shape)
        self.dtype: np.dtype[np.generic] = np.dtype(first.dtype)
        self.alpha = ""  # each file drops its own
        self.encoding = first.encoding
        self.guessed_channels = False

    def page(self, number: int, region: tuple[slice, ...] | None = None) -> npt.NDArray[np.generic]:
        """Decode one file, or a part of it."""
        file = self._files[number]
        image_yxc = file.plane(0) if region is None else file.window(0, *region[:2])
        return image_yxc if self.num_page_axes == 3 else image_yxc[:, :, 0]

    def close(self) -> None:
        """Do nothing: each file is opened while it is read."""


def _check_alike(info: StackInfo, first: StackInfo) -> None:
    """Raise DataError where a file differs from the first one of its folder."""
    conflict = info.encoding.conflict(first.encoding)
    if info.shape_yx != first.shape_yx:
        found, expected = ("×".join(map(str, one.shape_yx)) + " pixels" for one in (info, first))
    elif info.dtype != first.dtype:
        found, expected = info.dtype, first.dtype
    elif info.num_channels != first.num_channels:
        found, expected = (f"{one.num_channels} channels" for one in (info, first))
    elif conflict:
        found, expected = conflict, "the same"
    else:
        return
    raise DataError(
        found,
        expected=f"{expected}, as {first.path.name} has",
        where=str(info.path),
        remedy="put slices of one kind into a folder, or convert this one",
    )
