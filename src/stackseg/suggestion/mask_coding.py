"""Class indices → raw mask values: the table of `data.classes` the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stackseg.dataset.files.encoding import Encoding
from stackseg.dataset.labels.codes import RawCode
from stackseg.dataset.labels.table import LabelTable
from stackseg.dataset.specimens import Specimen
from stackseg.errors import ParamsError


@dataclass(frozen=True)
class MaskCoding:
    """The raw code of each class, all of them integers or all "#rrggbb", and the colours of the integers from 0."""

    codes: tuple[RawCode, ...]
    colours: tuple[str, ...] = ()

    def encode(self, labels_yx: npt.NDArray[np.integer]) -> npt.NDArray[np.unsignedinteger]:
        """Return class indices (Y, X) as raw values (Y, X), or as colours (Y, X, 3)."""
        if isinstance(self.codes[0], str):
            colours_c3 = np.array([[*bytes.fromhex(str(one)[1:])] for one in self.codes], np.uint8)
            return np.asarray(colours_c3[labels_yx])
        codes_c = np.array(self.codes)
        return np.asarray(codes_c.astype(np.min_scalar_type(codes_c.max()))[labels_yx])


def choose_coding(table: LabelTable | None, like: Specimen | None, specimens: Sequence[Specimen]) -> MaskCoding:
    """Return how masks of further planes are coded, so that `add` takes them.

    Parameters
    ----------
    table
        The classes; without them there is one value, 0.
    like
        The specimen that the masks will join, if it is there: theirs have to be of one kind with its masks.
    specimens
        All that are there: palettes have to be the same everywhere.

    Raises
    ------
    ParamsError
        A class has no code of the kind.
    """
    if table is None:
        return MaskCoding((0,))
    integers, colours = _first_codes(table, int), _first_codes(table, str)
    as_colours = integers is None if like is None else _encoding(like).is_colour
    chosen = colours if as_colours else integers
    if chosen is None:
        raise ParamsError(
            "some class has no colour" if as_colours else "some class has no whole number from 0",
            expected="a code of one kind for every class" if like is None else f"one, as the masks of {like.name} have",
            where="data.classes",
            remedy="add to raw, which takes a list, the codes that are missing",
        )
    if as_colours or max(map(int, chosen)) > np.iinfo(np.uint8).max:
        return MaskCoding(chosen)
    display = dict(zip(map(int, chosen), table.display, strict=True))
    palette = next((one.palette for one in map(_encoding, specimens) if one.kind == "palette"), b"")
    shown = [f"#{palette[at : at + 3].hex()}" for at in range(0, len(palette), 3)]
    return MaskCoding(chosen, tuple(shown or (display.get(n, "#000000") for n in range(max(display) + 1))))


def _encoding(specimen: Specimen) -> Encoding:
    return specimen.mask_file(specimen.labelled[0]).info.encoding


def _first_codes(table: LabelTable, kind: type[int] | type[str]) -> tuple[RawCode, ...] | None:
    """Return the first code of a kind of every class, None where a class has none that can be written."""
    fitting = [
        [code for code in raw if isinstance(code, kind) and (len(code) == 7 if isinstance(code, str) else code >= 0)]
        for raw in table.raw
    ]
    return tuple(codes[0] for codes in fitting) if all(fitting) else None
